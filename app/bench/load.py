"""Test the page under load: ``python -m app.bench.load``.

Starts ``python app.py`` and lets many visitors use it at once, with the requests that a browser
sends: upload a picture, ask a question, read the answers, again and again. Each visitor has a
picture and a question of their own. Checked: no visitor is shown another's, all uploads are
deleted, and the server's memory does not grow.
"""

from __future__ import annotations

import argparse
import json
import os
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
    """What all visitors saw; times in seconds."""

    evidence: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
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
    mine, rows = f"Is there an effusion, asks visitor {number:03d}?", 128 + number
    try:
        visitor = Visitor(address)
        while time.monotonic() < until:
            shown = visitor.upload(picture(number))
            if f"{rows} px" not in shown["preview"] or json.loads(shown["viewer"])["rows"] != rows:
                tally.mixed.append(f"visitor {number} was shown another picture")
            clicked, seen = time.monotonic(), 0.0
            answered = 0.0
            for shown in visitor.watch("ask", "click", question=mine):
                if not seen and "evidence-card" in shown["evidence"]:
                    seen = time.monotonic() - clicked
                if not answered and shown["answers"].count('data-done="true"') == 3:
                    answered = time.monotonic() - clicked
            if 'class="status done"' not in shown["status"]:
                tally.errors.append(f"visitor {number}: {shown['status']}")
                continue
            tally.evidence.append(seen)
            tally.answers.append(answered)
            if shown["answers"].count("asks visitor") != shown["answers"].count(mine) or (
                mine not in shown["answers"]
            ):
                tally.mixed.append(f"visitor {number} was shown another's answers")
    except Exception as error:
        tally.errors.append(f"visitor {number}: {type(error).__name__}: {error}")


def resident(process: int) -> int:
    """Return a process's resident memory in bytes (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run(visitors: int, seconds: float) -> int:
    """Let the visitors use the page, print the figures, and return the exit status."""
    tally, memory = Tally(), []
    with tempfile.TemporaryDirectory(prefix="mr-rag-load-") as name:
        with running(Path(name) / "served") as server:
            server.wait_for()
            until = time.monotonic() + seconds
            threads = [
                threading.Thread(target=visit, args=(server.address, number, until, tally))
                for number in range(visitors)
            ]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                memory.append(resident(server.process.pid))
                time.sleep(1)
            uploads = server.uploads()
        left = list(server.folder.iterdir())
        logged = "asks visitor" in server.log.read_text()
    third = max(1, len(memory) // 3)
    first, last = statistics.median(memory[:third]), statistics.median(memory[-third:])
    print(f"{visitors} visitors, {seconds:g} s: {len(tally.answers)} cases answered")
    for name, times in (("evidence", tally.evidence), ("answers", tally.answers)):
        if times:
            p50, p95 = np.percentile(times, [50, 95])
            print(f"click to {name:9s} p50 {p50:.2f} s, p95 {p95:.2f} s")
    print(f"memory, median of first and last third: {first / 2**20:.0f}, {last / 2**20:.0f} MiB")
    failures = [
        *tally.mixed,
        *tally.errors,
        *(f"left while running: {file.name}" for file in uploads),
        *(f"left on disk: {path.name}" for path in left),
        *["a question is in the log"] * logged,
        *["memory grew by more than a tenth"] * (last > 1.1 * first),
        *["no case was answered"] * (not tally.answers),
    ]
    print("\n".join(failures) if failures else "Nothing mixed, nothing left, memory flat.")
    return 1 if failures else 0


def main() -> int:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(
        prog="python -m app.bench.load", description="Test the page under load."
    )
    parser.add_argument(
        "--visitors", type=int, default=20, help="visitors at once (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=300, help="duration (default: 300)")
    arguments = parser.parse_args()
    return run(arguments.visitors, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
