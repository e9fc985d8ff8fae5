"""Files: the place of bundled assets, digests, JSON, and writes that are whole or not at all.

It knows no format of the project's own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

_PACKAGE = Path(__file__).resolve().parent
# Inside the package where it is installed, beside it in a checkout.
ASSETS = next(
    (p for p in (_PACKAGE / "assets", _PACKAGE.parent / "assets") if p.is_dir()), _PACKAGE
)

MOST_JSON_BYTES = 64 * 2**20

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_out_of_space(error: OSError) -> bool:
    """Return whether a write failed because the disk, the quota or the file is full."""
    return error.errno in _NO_ROOM


def file_sha256(path: Path) -> str:
    """Return SHA-256 of a file's bytes, read a mebibyte at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_sha256(value: object) -> str:
    """Return SHA-256 of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_json(
    path: Path, refuse: Callable[[str], Exception], *, most: int = MOST_JSON_BYTES
) -> Any:
    """Return the value in a JSON file.

    Parameters
    ----------
    refuse
        Makes the error to raise of what went wrong, in a word or a sentence.
    most
        Largest size, in bytes.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device has no end
            raise ValueError("it is not a file")
        if status.st_size > most:
            raise ValueError(f"it has {status.st_size:,} bytes; up to {most:,} are read")
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise refuse("it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise refuse(str(error) or type(error).__name__) from None


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a stream whose bytes become the file at the end, all at once, or not at all.

    They are written to ``NAME.part`` beside it and on disk before the name changes hands.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file at once; text as UTF-8."""
    with atomic(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def locked(path: Path, refuse: Callable[[], Exception]) -> Iterator[None]:
    """Hold a lock file, and remove it at the end.

    The system releases the lock when a process ends, however it ends. Where another process
    holds it, what ``refuse`` makes is raised.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise refuse() from None
    try:
        yield
    finally:
        # Removed while it is held, so that no other process's lock can be. Windows forbids that.
        with suppress(PermissionError):
            path.unlink(missing_ok=True)
        lock.release()
