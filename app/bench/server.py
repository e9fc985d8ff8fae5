"""Start ``python app.py`` in a process of its own, for the benches and the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600.0  # to start, and for one request: machines may be busy
READY = "The model is ready"
# Written by torch as it is imported, up to 2.8.
TORCHS_OWN = "_remote_module_non_scriptable.py"


@dataclass(frozen=True)
class Server:
    """A running page; ``folder`` holds its temporary files, ``log`` what it prints."""

    address: str
    process: subprocess.Popen[bytes]
    folder: Path
    log: Path

    def wait_for(self, line: str = READY) -> None:
        """Wait until the server has printed this."""
        self._wait(lambda: line in self.log.read_text())

    def wait_for_page(self) -> None:
        """Wait until the page is served."""
        self._wait(lambda: answers(self.address))

    def uploads(self) -> list[Path]:
        """Return the uploads in the server's temporary folder."""
        return [f for f in self.folder.rglob("*") if f.is_file() and f.name != TORCHS_OWN]

    def _wait(self, arrived: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not arrived():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The page did not start.\n{self.log.read_text()}")
            time.sleep(0.02)


@contextlib.contextmanager
def running(folder: Path, *options: str, **environment: str) -> Iterator[Server]:
    """Run ``python app.py`` with these options; it may still be starting.

    Parameters
    ----------
    folder
        For its temporary files; its log is beside it.
    """
    folder.mkdir(exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    port = free_port()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port), *options],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(folder)} | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Server(f"http://127.0.0.1:{port}", process, folder, log)
    finally:
        process.terminate()
        process.wait(SECONDS)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(address: str) -> bool:
    """Return whether a page is served at this address."""
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def chromium() -> str | None:
    """Return the path of a Chromium (CHROMIUM names one that is not on the path), or None."""
    # The shell is the same engine without a window, and starts and opens pages faster.
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
