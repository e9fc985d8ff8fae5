"""Many visits at once: ``python -m app.bench.load``.

Starts the page as a person would, in a process of its own, and lets visitors use it through
the same requests that a browser sends: upload a picture, ask a question, read the answers,
again and again. Each has its own picture and its own question. Checked: no visitor is shown
another's, every upload is gone, and the server's memory does not grow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import socket
import statistics
import subprocess
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

ROOT = Path(__file__).resolve().parents[2]
API = "gradio_api"
SECONDS = 600.0  # for one request, and to start: machines may be busy
# torch writes it as it is imported, up to 2.8.
TORCHS_OWN = "_remote_module_non_scriptable.py"


def files_in(folder: Path) -> list[Path]:
    """Files in a server's temporary folder, which are uploads."""
    return [f for f in folder.rglob("*") if f.is_file() and f.name != TORCHS_OWN]


@contextlib.contextmanager
def serving(
    folder: Path, log: Path, said: str = "The model is ready", **environment: str
) -> Iterator[tuple[str, int]]:
    """Run ``python app.py`` with its temporary files in ``folder``: address and process id.

    It has started once it has ``said`` so.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port)],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(folder)} | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + SECONDS
        while said not in log.read_text():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The page did not start.\n{log.read_text()}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        server.terminate()
        server.wait(SECONDS)


class Visitor:
    """One open page, without a browser: the requests that it sends, and what it shows."""

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
        """A handler's inputs: from ``values`` by name or kind, else as the page shows them."""
        row = []
        for identifier in handler["inputs"]:
            component, name = self.components[identifier], self.names[identifier]
            value = None if component["type"] == "state" else component["props"].get("value")
            row.append(values.get(name, values.get(component["type"], value)))
        return row

    def send(
        self, handler: dict[str, Any], data: list[Any], event_data: Any = None
    ) -> Iterator[dict[str, Any]]:
        """Run a handler; yields the parts of the page that each of its steps writes.

        Raises
        ------
        RuntimeError
            Where the page says no more than that it failed.
        """
        answer = self.join(handler, data, event_data)
        if not handler["queue"]:
            yield self._parts(handler, answer["data"])
            return
        output: list[Any] = []
        failed = None
        query = {"session_hash": self.session}
        # Read to its end: to leave before it would cancel what is asked next.
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
        """Put a handler into its queue, or run it where it has none; what is said to that."""
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
        """What a handler wrote, by the names of the page's parts; it leaves the others alone."""
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
        """Do something to a part of the page, through to the end; what the page then shows."""
        for _ in self.watch(part, event, event_data, **values):
            pass
        return self.shown

    def watch(
        self, part: str, event: str, event_data: Any = None, **values: Any
    ) -> Iterator[dict[str, Any]]:
        """Do something to a part of the page, and yield what the page shows as it changes."""
        values = {"number": 1000 * (time.monotonic() - self.began)} | values
        for handler in self.handlers[part, event]:
            for written in self.send(handler, self.inputs(handler, **values), event_data):
                self.shown |= written
                yield self.shown
            then = str(handler["id"])
            if (then, "then") in self.handlers:
                yield from self.watch(then, "then", **values)

    def upload(self, data: bytes, name: str = "picture.png") -> dict[str, Any]:
        """Upload a file as the page does; what the page then shows."""
        sent = self.http.post(f"/{API}/upload", files={"files": (name, data)}).raise_for_status()
        return self.hand_in(sent.json()[0])

    def hand_in(self, path: object) -> dict[str, Any]:
        """Say that an upload lies at ``path``; what the page then shows."""
        file = {"path": path, "orig_name": "picture.png", "meta": {"_type": "gradio.FileData"}}
        if self.do("upload", "upload", upload=file)["viewer"]:
            self.do("viewer", "fetch")
            self.do("viewer", "seen")
        return self.shown


@dataclass
class Tally:
    """What the visitors saw between them."""

    evidence: list[float] = field(default_factory=list)  # seconds
    answers: list[float] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def picture(number: int) -> bytes:
    """A PNG of a size that no other visitor's has."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 255, (128 + number, 160), dtype=np.uint8)
    file = BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def visit(address: str, number: int, until: float, tally: Tally) -> None:
    """Use the page until the time is over; notes what is not this visitor's."""
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
    """A process's memory in bytes (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run(visitors: int, seconds: float) -> int:
    """Let the visitors at it, and print what came of it; the exit status."""
    with tempfile.TemporaryDirectory(prefix="mr-rag-load-") as name:
        folder = Path(name)
        (folder / "served").mkdir()
        tally, memory = Tally(), []
        with serving(folder / "served", folder / "log") as (address, process):
            until = time.monotonic() + seconds
            threads = [
                threading.Thread(target=visit, args=(address, number, until, tally))
                for number in range(visitors)
            ]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                memory.append(resident(process))
                time.sleep(1)
            uploads = files_in(folder / "served")
        left = list((folder / "served").iterdir())
        logged = "asks visitor" in (folder / "log").read_text()
    third = max(1, len(memory) // 3)
    first, last = statistics.median(memory[:third]), statistics.median(memory[-third:])
    print(f"{visitors} visitors, {seconds:g} s: {len(tally.answers)} cases answered")
    for what, times in (("evidence", tally.evidence), ("answers", tally.answers)):
        if times:
            p50, p95 = np.percentile(times, [50, 95])
            print(f"click to {what:9s} p50 {p50:.2f} s, p95 {p95:.2f} s")
    print(f"memory, median of first and last third: {first / 2**20:.0f}, {last / 2**20:.0f} MiB")
    wrong = [*tally.mixed, *tally.errors]
    wrong += [f"left while running: {file.name}" for file in uploads]
    wrong += [f"left on disk: {path.name}" for path in left]
    wrong += ["a question is in the log"] * logged
    wrong += ["memory grew by more than a tenth"] * (last > 1.1 * first)
    wrong += ["no case was answered"] * (not tally.answers)
    print("\n".join(wrong) if wrong else "Nothing mixed, nothing left, memory flat.")
    return 1 if wrong else 0


def main() -> int:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(prog="python -m app.bench.load", description=__doc__)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=300)
    arguments = parser.parse_args()
    return run(arguments.visitors, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
