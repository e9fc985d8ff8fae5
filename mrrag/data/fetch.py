"""Downloads public data sets to folders that the readers know.

An interrupted download continues where it stopped, in the same run or in a later one, and
is complete only if it has the size that the server declared. An archive is unpacked to a
temporary folder, which is renamed once it is complete. Nothing is written outside it, and
nothing is kept of an archive that is hostile (paths that lead outside, links, devices, more
bytes than allowed).
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast

from mrrag.errors import FetchError
from mrrag.files import is_out_of_space, write_atomic

__all__ = ["OPENI", "fetch_iu_xray"]

logger = logging.getLogger(__name__)

OPENI = "https://openi.nlm.nih.gov/imgs/collections"
BLOCK = 1 << 20
TIMEOUT_S = 30.0
ATTEMPTS = 5  # in a row that bring no new bytes
PAUSE_S = 2.0  # before the second attempt; doubled before each further one
MAX_READ = 1 << 25  # bytes decompressed at once; only a hostile tar header asks for more

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Archive:
    """A .tgz, the folder for its files, and the limits on what it may hold.

    ``files`` is the number of files as published; another number is only logged.
    """

    name: str
    folder: str
    suffix: str
    files: int
    max_files: int
    max_file_bytes: int
    max_bytes: int


IU_XRAY = (
    Archive(
        name="NLMCXR_reports.tgz",
        folder="ecgen-radiology",
        suffix=".xml",
        files=3955,
        max_files=10_000,
        max_file_bytes=2**20,
        max_bytes=2**27,
    ),
    Archive(
        name="NLMCXR_png.tgz",
        folder="NLMCXR_png",
        suffix=".png",
        files=7470,
        max_files=20_000,
        max_file_bytes=2**25,
        max_bytes=2**33,
    ),
)


def fetch_iu_xray(
    directory: str | Path,
    *,
    source: str = OPENI,
    progress: OnProgress = lambda name, done, total: None,
    pause_s: float = PAUSE_S,
) -> dict[str, int]:
    """Download Open-i's two archives of IU-Xray and unpack them below ``directory``.

    A folder that exists is not fetched again. The archives are removed once unpacked.

    Parameters
    ----------
    source
        URL of the archives without their names, for example that of a mirror.
    progress
        Called with (archive, bytes so far, bytes in total).
    pause_s
        Seconds before the second attempt.

    Returns
    -------
    dict
        Number of files by folder. :func:`mrrag.data.corpus.read_corpus` reads the folders.

    Raises
    ------
    FetchError
        If the server cannot be reached, fails repeatedly or contradicts itself, an archive
        is damaged or unsafe, or the disk is full.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for archive in IU_XRAY:
            if (directory / archive.folder).is_dir():
                continue
            path = directory / archive.name
            if not path.exists():
                _download(f"{source.rstrip('/')}/{archive.name}", path, archive, progress, pause_s)
            _unpack(path, directory, archive)
            path.unlink()
        return {a.folder: sum(1 for _ in (directory / a.folder).iterdir()) for a in IU_XRAY}
    except OSError as error:
        if is_out_of_space(error):
            raise FetchError(
                f"There is no room left in {directory} ({error.strerror}). What was downloaded is "
                "kept: make room, or choose another directory, and run the same command again."
            ) from error
        raise FetchError(
            f"{error.filename or directory} cannot be written ({error.strerror or error})."
        ) from error


def _download(url: str, path: Path, archive: Archive, progress: OnProgress, pause_s: float) -> None:
    """Download an archive, and give up after ``ATTEMPTS`` in a row without new bytes."""
    part = path.with_name(path.name + ".part")
    failures = 0
    furthest = _size(part)
    while True:
        problem = _attempt(url, part, archive, progress)
        if problem is None:
            os.replace(part, path)
            _state_file(part).unlink(missing_ok=True)
            return
        have = _size(part)
        failures = 0 if have > furthest else failures + 1
        furthest = max(furthest, have)
        if failures >= ATTEMPTS:
            kept = f"{have:,} bytes are kept, and the same command continues from there."
            raise FetchError(
                f"{url} could not be downloaded: {problem}. Check the connection, or download it "
                f"in another way and save it as {path}. {kept if have else ''}".rstrip()
            )
        logger.info("%s: %s; trying again", archive.name, problem)
        time.sleep(pause_s * 2**failures)


def _attempt(url: str, part: Path, archive: Archive, progress: OnProgress) -> str | None:
    """Download what is missing; return None once complete, else the problem in a few words."""
    try:
        return _download_rest(url, part, archive, progress)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # the part is not the beginning of the server's file
                part.unlink(missing_ok=True)
            if error.code in (404, 410):
                raise FetchError(
                    f"{url} does not exist ({error.code}). Look for the archive at "
                    "https://openi.nlm.nih.gov/faq and give its folder with --source."
                ) from error
            return f"the server answered {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return f"the server cannot be reached ({error.reason})"
    except (HTTPException, TimeoutError, ConnectionError) as error:
        return f"the connection broke off ({error or type(error).__name__})"
    except ValueError as error:
        raise FetchError(f"{url} is not a valid address ({error}).") from error


def _download_rest(url: str, part: Path, archive: Archive, progress: OnProgress) -> str | None:
    have = _size(part)
    state = _read_state(part)
    if have and not state:  # nobody knows which version this is a part of
        part.unlink()
        have = 0
    request = urllib.request.Request(url, headers={"User-Agent": "mr-rag"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        # A part of one version must not be completed with the rest of another.
        request.add_header("If-Range", str(state["validator"]))
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        total = _checked_size(url, response, have, part, archive)
        if response.status != 206:
            have = 0
        elif have and total != state["total"]:
            part.unlink()
            return f"it has {total:,} bytes now and had {state['total']:,}"
        _check_room(part.parent, total - have)
        if not have:
            part.unlink(missing_ok=True)
            _write_state(part, response.headers, total)
        with part.open("ab") as file:
            while have < total and (block := response.read(min(BLOCK, total - have))):
                file.write(block)
                have += len(block)
                progress(archive.name, have, total)
    return None if have >= total else f"the connection broke off at {have:,} of {total:,} bytes"


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _checked_size(url: str, response: Any, have: int, part: Path, archive: Archive) -> int:
    """Return the size of the whole file, if the server declares one that is allowed."""
    total = _declared_size(response, have)
    if total is None:
        raise FetchError(
            f"{url} comes without its size, so that it is unknown when it is complete. "
            f"Download it in another way and save it as {part.with_suffix('')}."
        )
    if total > archive.max_bytes:
        raise FetchError(
            f"{url} has {total:,} bytes according to the server; at most {archive.max_bytes:,} "
            "are allowed. Check the address."
        )
    return total


def _declared_size(response: Any, have: int) -> int | None:
    try:
        if response.status == 206:
            span, _, total = response.headers.get("Content-Range", "").rpartition("/")
            first = int(span.removeprefix("bytes ").partition("-")[0])
            return int(total) if first == have else None
        return int(response.headers.get("Content-Length", ""))
    except ValueError:
        return None


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _write_state(part: Path, headers: Any, total: int) -> None:
    """Save what is needed to continue a download: the version (validator) and the size."""
    validator = headers.get("ETag") or headers.get("Last-Modified") or ""
    if validator.startswith("W/"):  # If-Range allows only strong ones (RFC 9110, 13.1.5)
        validator = headers.get("Last-Modified") or ""
    if validator:
        state = {"validator": validator, "total": total}
        write_atomic(_state_file(part), json.dumps(state))
    else:
        _state_file(part).unlink(missing_ok=True)


def _read_state(part: Path) -> dict[str, Any]:
    """Return what :func:`_write_state` saved, or nothing."""
    try:
        state = json.loads(_state_file(part).read_text(encoding="utf-8"))
        return {"validator": str(state["validator"]), "total": int(state["total"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _check_room(directory: Path, needed: int) -> None:
    # Twice: the archive stays until its unpacked files are complete.
    free = shutil.disk_usage(directory).free
    if free < 2 * needed:
        raise FetchError(
            f"{directory} has {free:,} bytes left, and {2 * needed:,} are needed to download and "
            "unpack. Make room, or choose another directory."
        )


class _BoundedGzip(gzip.GzipFile):
    """A gzip stream that raises an error when it holds more than ``limit`` bytes."""

    limit = 0

    def _allow(self, stop: int, size: int) -> None:
        if stop > self.limit or size > MAX_READ:
            raise FetchError(
                f"The archive holds more than the allowed {self.limit:,} bytes. "
                "It is damaged or another file; nothing of it was kept."
            )

    def read(self, size: int | None = -1) -> bytes:
        """Read bytes, as of a file; ``size`` must be given."""
        self._allow(self.tell() + (size or 0), MAX_READ + 1 if size is None or size < 0 else size)
        return super().read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek, as in a file."""
        self._allow(offset, 0)
        return super().seek(offset, whence)


def _unpack(path: Path, directory: Path, archive: Archive) -> None:
    """Unpack an archive's files into one folder, all or nothing."""
    partial = directory / f".{archive.folder}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    # Headers and padding take less than two kilobytes per file.
    limit = archive.max_bytes + 2048 * archive.max_files
    try:
        with _BoundedGzip(path, "rb") as stream:
            stream.limit = limit
            with tarfile.open(fileobj=cast(Any, stream), mode="r:") as tar:
                count = _extract(tar, partial, archive)
            # To the end, where the checksum of the whole is.
            while stream.read(BLOCK):
                pass
        if not count:
            raise FetchError(
                f"{path.name} holds no {archive.suffix} file. Delete it and run the same command "
                "again."
            )
        if count != archive.files:
            logger.warning("%s holds %d files; %d were published", path.name, count, archive.files)
        os.replace(partial, directory / archive.folder)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        path.unlink()  # so that the next attempt downloads it again
        raise FetchError(
            f"{path.name} is damaged or unsafe ({error}); it was deleted, and nothing of it kept. "
            "Run the same command again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract(tar: tarfile.TarFile, folder: Path, archive: Archive) -> int:
    """Extract the archive's files without their folders, and return their number."""
    count = 0
    for member in tar:
        name = Path(member.name).name
        _check_member(member, folder, archive)
        if member.isdir() or Path(name).suffix.lower() != archive.suffix:
            continue
        count += 1
        fault = ""
        if count > archive.max_files:
            fault = f"more than {archive.max_files:,} files"
        elif (folder / name).exists():
            fault = f"two files {name}"
        if fault:
            raise FetchError(
                f"{archive.name} holds {fault}; nothing of it was kept. Delete it and run the "
                "same command again."
            )
        tar.extract(member.replace(name=name, deep=False), folder, filter="data")
    return count


def _check_member(member: tarfile.TarInfo, partial: Path, archive: Archive) -> None:
    """Refuse the whole archive if a member is not a plain file or folder of allowed size."""
    tarfile.data_filter(member, str(partial))  # raises if the path leads outside
    if not (member.isreg() or member.isdir()):
        raise tarfile.TarError(f"{member.name} is a link or a device")
    if member.size > archive.max_file_bytes:
        raise tarfile.TarError(
            f"{member.name} has {member.size:,} bytes of {archive.max_file_bytes:,} allowed"
        )
