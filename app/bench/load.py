"""Test the page under load: ``python -m app.bench.load``.

Starts ``python app.py`` and lets many visitors use it at once, with the requests that a browser
sends: upload a picture, ask a question, read the answers, again and again. Each visitor has a
picture and a question of their own, and comes back when told to where too many wait. Checked: no
visitor is shown another's, all uploads are deleted, and the server's memory does not grow.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
from gradio_client.utils import apply_diff

from app.bench.server import SECONDS, running

API = "gradio_api"


class Visitor:
    """An open page without a browser: the requests that it sends, and what it shows."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=SECONDS)
        self.session = secrets.token_hex(6)
        self.config = self.http.get("/config").raise_for_status().json()
        self.began = time.monotonic()
        self.shown: dict[str, Any] = {}
        self.components = {c["id"]: c for c in self.config["components"]}
        self.names = {i: c["props"].get("elem_id") or str(i) for i, c in self.components.items()}
        self.handlers: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for handler in self.config["dependencies"]:
            for target, event in handler["targets"]:
                name = self.names.get(target, str(handler["trigger_after"]))
                self.handlers.setdefault((name, event), []).append(handler)

    def inputs(self, handler: dict[str, Any], **values: Any) -> list[Any]:
        """Return a handler's inputs: from ``values`` by name or type, else the page's own."""
        row = []
        for identifier in handler["inputs"]:
            component, name = self.components[identifier], self.names[identifier]
            value = None if component["type"] == "state" else component["props"].get("value")
            row.append(values.get(name, values.get(component["type"], value)))
        return row

    def send(
        self, handler: dict[str, Any], data: list[Any], event_data: Any = None
    ) -> Iterator[dict[str, Any]]:
        """Run a handler; yield the components that each of its steps writes, by name.

        Raises
        ------
        RuntimeError
            If the handler failed without a sentence.
        """
        answer = self.join(handler, data, event_data)
        if not handler["queue"]:
            yield self._parts(handler, answer["data"])
            return
        output: list[Any] = []
        failed = None
        query = {"session_hash": self.session}
        # Read to its end: to close it earlier would cancel the next event.
        with self.http.stream("GET", f"/{API}/queue/data", params=query) as stream:
            for line in stream.iter_lines():
                if not line.startswith("data:"):
                    continue
                message: dict[str, Any] = json.loads(line[5:])
                if message["msg"] == "close_stream":
                    break
                if message["msg"] == "unexpected_error":
                    failed = message
                if message["msg"] not in ("process_generating", "process_completed"):
                    continue
                if not message["success"]:
                    failed = message["output"]
                    continue
                given = message["output"].get("data") or []
                if message["msg"] == "process_generating" and output:
                    given = [apply_diff(o, d) for o, d in zip(output, given, strict=True)]
                output = given or output
                yield self._parts(handler, output)
        if failed is not None:
            raise RuntimeError(f"The page failed: {failed}")

    def join(
        self, handler: dict[str, Any], data: list[Any], event_data: Any = None
    ) -> dict[str, Any]:
        """Put a handler into its queue, or run it if it has none; return the reply."""
        body = {
            "fn_index": handler["id"],
            "data": data,
            "event_data": event_data,
            "session_hash": self.session,
        }
        path = "queue/join" if handler["queue"] else "run/predict"
        answer: dict[str, Any] = (
            self.http.post(f"/{API}/{path}", json=body).raise_for_status().json()
        )
        return answer

    def _parts(self, handler: dict[str, Any], output: list[Any]) -> dict[str, Any]:
        """Return what a handler wrote, by name, without the components left as they are."""
        parts = {}
        for identifier, value in zip(handler["outputs"], output, strict=True):
            if isinstance(value, dict) and value.get("__type__") == "update":
                if "value" not in value:
                    continue
                value = value["value"]
            if self.components[identifier]["type"] != "state":
                parts[self.names[identifier]] = value
        return parts

    def do(self, part: str, event: str, event_data: Any = None, **values: Any) -> dict[str, Any]:
        """Trigger an event of a component and return what the page shows at the end."""
        for _ in self.watch(part, event, event_data, **values):
            pass
        return self.shown

    def watch(
        self, part: str, event: str, event_data: Any = None, **values: Any
    ) -> Iterator[dict[str, Any]]:
        """Trigger an event of a component and yield what the page shows as it changes."""
        values = {"number": 1000 * (time.monotonic() - self.began)} | values
        for handler in self.handlers[part, event]:
            for written in self.send(handler, self.inputs(handler, **values), event_data):
                self.shown |= written
                yield self.shown
            then = str(handler["id"])
            if (then, "then") in self.handlers:
                yield from self.watch(then, "then", **values)

    def upload(self, data: bytes, name: str = "picture.png") -> dict[str, Any]:
        """Upload a file as the page does; return what the page then shows."""
        sent = self.http.post(f"/{API}/upload", files={"files": (name, data)}).raise_for_status()
        return self.hand_in(sent.json()[0])

    def hand_in(self, path: object) -> dict[str, Any]:
        """Name ``path`` as an upload; return what the page then shows."""
        file = {"path": path, "orig_name": "picture.png", "meta": {"_type": "gradio.FileData"}}
        if self.do("upload", "upload", upload=[file])["viewer"]:
            self.do("viewer", "fetch")
            self.do("viewer", "seen")
        return self.shown


@dataclass
class Tally:
    """What all visitors saw; times in seconds, from the click on Ask."""

    evidence: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)  # what each report adds is measured, too
    refused: int = 0  # presses of Ask, since too many waited
    mixed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def picture(number: int) -> bytes:
    """Return a PNG whose size is unique to this visitor."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 255, (128 + number, 160), dtype=np.uint8)
    file = BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def visit(address: str, number: int, until: float, tally: Tally) -> None:
    """Use the page until the time is over; record what belongs to another visitor."""
    rows = 128 + number
    try:
        visitor = Visitor(address)
        while time.monotonic() < until:
            shown = visitor.upload(picture(number))
            if f"{rows} px" not in shown["preview"] or json.loads(shown["viewer"])["rows"] != rows:
                tally.mixed.append(f"visitor {number} was shown another picture")
            while time.monotonic() < until and (seconds := ask(visitor, number, tally)):
                time.sleep(max(0.0, min(seconds, until - time.monotonic())))
    except Exception as error:
        tally.errors.append(f"visitor {number}: {type(error).__name__}: {error}")


def ask(visitor: Visitor, number: int, tally: Tally) -> float:
    """Press Ask and read to the end; return after how many seconds to press again, if refused."""
    mine = f"Is there an effusion, asks visitor {number:03d}?"
    clicked, seen, answered = time.monotonic(), 0.0, 0.0
    for shown in visitor.watch("ask", "click", question=mine):
        if not seen and "evidence-card" in shown["evidence"]:
            seen = time.monotonic() - clicked
        if not answered and shown["answers"].count('data-done="true"') == 3:
            answered = time.monotonic() - clicked
    shown = visitor.shown
    if told := re.search(r"Ask again in (?:about )?(\d+|a) (second|minute)", shown["status"]):
        tally.refused += 1
        return (1 if told[1] == "a" else int(told[1])) * (60 if told[2] == "minute" else 1)
    if 'class="status done"' not in shown["status"]:
        tally.errors.append(f"visitor {number}: {shown['status']}")
        return 0.0
    tally.evidence.append(seen)
    tally.answers.append(answered)
    tally.done.append(time.monotonic() - clicked)
    if shown["answers"].count("asks visitor") != shown["answers"].count(mine) or (
        mine not in shown["answers"]
    ):
        tally.mixed.append(f"visitor {number} was shown another's answers")
    return 0.0


def resident(process: int) -> int:
    """Return a process's resident memory in bytes (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(process: int) -> float:
    """Return the seconds that a process and its threads have computed (Linux)."""
    after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def run(visitors: int, seconds: float) -> tuple[str, list[str]]:
    """Let the visitors use the page; return the figures as a line, and what went wrong."""
    tally, memory = Tally(), []
    with tempfile.TemporaryDirectory(prefix="mr-rag-load-") as name:
        with running(Path(name) / "served") as server:
            server.wait_for()
            began, computed = time.monotonic(), cpu_seconds(server.process.pid)
            threads = [
                threading.Thread(
                    target=visit, args=(server.address, number, began + seconds, tally)
                )
                for number in range(visitors)
            ]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                memory.append(resident(server.process.pid))
                time.sleep(1)
            took = time.monotonic() - began
            computed = cpu_seconds(server.process.pid) - computed
            uploads = server.uploads()
        left = list(server.folder.iterdir())
        logged = "asks visitor" in server.log.read_text()
    third = max(1, len(memory) // 3)
    first, last = statistics.median(memory[:third]), statistics.median(memory[-third:])
    failures = [
        *tally.mixed,
        *tally.errors,
        *(f"left while running: {file.name}" for file in uploads),
        *(f"left on disk: {path.name}" for path in left),
        *["a question is in the log"] * logged,
        *["memory grew by more than a tenth"] * (last > 1.1 * first),
        *["no case was answered"] * (not tally.answers),
    ]
    cases = len(tally.answers)
    line = f"{visitors:8d} {cases:6d} {cases / took:9.2f} {computed / max(1, cases):7.2f}"
    for times in (tally.evidence, tally.answers, tally.done):
        p50, p95 = np.percentile(times, [50, 95]) if times else (np.nan, np.nan)
        line += f" {p50:5.2f} {p95:6.2f}"
    return f"{line} {tally.refused:8d} {first / 2**20:6.0f} {last / 2**20:4.0f}", failures


HEADINGS = """\
                                  seconds from the click on Ask to              memory,
                              CPU     evidence      answers   everything      Ask  MiB at
visitors  cases  a second  a case   p50    95%   p50    95%   p50    95%  refused  first last"""


def main() -> int:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(
        prog="python -m app.bench.load", description="Test the page under load."
    )
    parser.add_argument(
        "--visitors",
        type=int,
        nargs="+",
        default=[20],
        help="visitors at once, each number for itself (default: 20)",
    )
    parser.add_argument("--seconds", type=float, default=300, help="duration (default: 300)")
    arguments = parser.parse_args()
    print(HEADINGS)
    wrong = []
    for visitors in arguments.visitors:
        line, failures = run(visitors, arguments.seconds)
        print(line, flush=True)
        wrong += [f"With {visitors}: {failure}" for failure in failures]
    print("\n".join(wrong) if wrong else "Nothing mixed, nothing left, memory flat.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
