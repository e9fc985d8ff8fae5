"""Run a function in a process of its own, which may be killed or limited without harm to others."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def run_apart(function: Callable[..., object], *given: Any) -> tuple[int | None, str]:
    """Return the exit code of ``function(*given)``, and the error that ended it.

    Its process is forked from a server that imports torch once for all the tests of a worker.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "mrrag.retrieval.build"])
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(writer, function, given))
    process.start()
    writer.close()
    process.join(240)
    error = reader.recv() if process.exitcode == 1 and reader.poll() else ""
    reader.close()
    return process.exitcode, error


def _report(writer: Connection, function: Callable[..., object], given: tuple[Any, ...]) -> None:
    try:
        function(*given)
    except BaseException:
        writer.send(traceback.format_exc())
        raise SystemExit(1) from None
