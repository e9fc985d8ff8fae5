"""Public data sets from where they are published, to a folder that the readers know.

A download goes on where it broke off, in the same run or a later one, and counts as
whole only when it has the size that the server declared. An archive is unpacked beside
its place and renamed once it is whole; of what a hostile one may hold (names that lead
outside, links, devices, more bytes than there should be) nothing is written.
"""

from __future__ import annotations

import errno
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

__all__ = ["OPENI", "fetch_iu_xray"]

logger = logging.getLogger(__name__)

OPENI = "https://openi.nlm.nih.gov/imgs/collections"
BLOCK = 1 << 20
TIMEOUT_S = 30.0
ATTEMPTS = 5  # in a row that bring nothing new
PAUSE_S = 2.0  # before the second attempt; twice as long before each further one
# The most that is ever decompressed in one go; a tar header that asks for more is no honest one.
MAX_READ = 1 << 25

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Archive:
    """A .tgz, the folder its files go to, and the most that it may hold.

    ``files`` is how many it is known to hold; another number is only remarked on.
    """

    name: str
    folder: str
    suffix: str
    files: int
    max_files: int
    max_file_bytes: int
    max_bytes: int


IU_XRAY = (
    Archive("NLMCXR_reports.tgz", "ecgen-radiology", ".xml", 3955, 10_000, 2**20, 2**27),
    Archive("NLMCXR_png.tgz", "NLMCXR_png", ".png", 7470, 20_000, 2**25, 2**33),
)


def fetch_iu_xray(
    directory: str | Path,
    *,
    source: str = OPENI,
    progress: OnProgress = lambda name, done, total: None,
    pause_s: float = PAUSE_S,
) -> dict[str, int]:
    """Download Open-i's two archives of IU-Xray and unpack them below ``directory``.

    What is there already is not fetched again. The archives are removed once unpacked.

    Parameters
    ----------
    source
        Where the archives lie, without their names: a mirror, say.
    progress
        Called with (archive, bytes so far, bytes in all).

    Returns
    -------
    Number of files by folder, fit for :func:`mrrag.data.corpus.read_openi`.

    Raises
    ------
    FetchError
        Where the server cannot be reached, breaks off again and again or does not keep
        to what it says, an archive is damaged or unsafe, or the disk is full.
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
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise FetchError(
                f"There is no room left in {directory} ({error.strerror}). What was fetched is "
                "kept: make room, or choose another directory, and run the same command again."
            ) from error
        raise FetchError(
            f"{error.filename or directory} cannot be written ({error.strerror or error})."
        ) from error


def _download(url: str, path: Path, archive: Archive, progress: OnProgress, pause_s: float) -> None:
    part = path.with_name(path.name + ".part")
    failures = 0
    furthest = part.stat().st_size if part.exists() else 0
    while True:
        problem = _download_once(url, part, archive, progress)
        if problem is None:
            os.replace(part, path)
            _about(part).unlink(missing_ok=True)
            return
        have = part.stat().st_size if part.exists() else 0
        failures = 0 if have > furthest else failures + 1
        furthest = max(furthest, have)
        if failures >= ATTEMPTS:
            kept = f"{have:,} bytes are kept, and the same command goes on from there."
            raise FetchError(
                f"{url} could not be downloaded: {problem}. Check the connection, or fetch it "
                f"another way and put it at {path}. {kept if have else ''}".rstrip()
            )
        logger.info("%s: %s; trying again", archive.name, problem)
        time.sleep(pause_s * 2**failures)


def _download_once(url: str, part: Path, archive: Archive, progress: OnProgress) -> str | None:
    """Fetch what is missing; None once all is there, else what went wrong in a few words."""
    have = part.stat().st_size if part.exists() else 0
    about = _read_about(part)
    if have and not about:  # of what, nobody knows any more
        part.unlink()
        have = 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mr-rag"})
        if have:
            request.add_header("Range", f"bytes={have}-")
            # The rest of another version would make a file that is neither.
            request.add_header("If-Range", str(about["validator"]))
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            total = _declared(response, have)
            if total is None:
                raise FetchError(
                    f"{url} comes without its size, so that nobody could tell when it is whole. "
                    f"Fetch it another way and put it at {part.with_suffix('')}."
                )
            if total > archive.max_bytes:
                raise FetchError(
                    f"{url} is said to have {total:,} bytes; at most {archive.max_bytes:,} are "
                    "fetched. Check the address."
                )
            if response.status != 206:
                have = 0
            elif total != about["total"]:
                part.unlink()
                return f"it has {total:,} bytes now and had {about['total']:,}"
            _check_room(part.parent, total - have)
            headers = response.headers
            validator = headers.get("ETag") or headers.get("Last-Modified") or ""
            if validator.startswith("W/"):  # If-Range allows strong ones only (RFC 9110, 13.1.5)
                validator = headers.get("Last-Modified") or ""
            if response.status != 206:
                part.unlink(missing_ok=True)
                if validator:
                    text = json.dumps({"validator": validator, "total": total})
                    _about(part).write_text(text, encoding="utf-8")
                else:
                    _about(part).unlink(missing_ok=True)
            with part.open("ab") as file:
                while have < total and (block := response.read(min(BLOCK, total - have))):
                    file.write(block)
                    have += len(block)
                    progress(archive.name, have, total)
            if have < total:
                return f"the connection broke off at {have:,} of {total:,} bytes"
            return None
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # what is here is not the beginning of what is there
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
        raise FetchError(f"{url} is not an address that can be fetched ({error}).") from error


def _declared(response: Any, have: int) -> int | None:
    """The whole file's size as the server declares it, or None."""
    try:
        if response.status == 206:
            span, _, total = response.headers.get("Content-Range", "").rpartition("/")
            first = int(span.removeprefix("bytes ").partition("-")[0])
            return int(total) if first == have else None
        return int(response.headers.get("Content-Length", ""))
    except ValueError:
        return None


def _about(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_about(part: Path) -> dict[str, Any]:
    """What the server said about the file that a part is of, or nothing."""
    try:
        about = json.loads(_about(part).read_text(encoding="utf-8"))
        return {"validator": str(about["validator"]), "total": int(about["total"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _check_room(directory: Path, needed: int) -> None:
    # Twice: the archive lies beside what is unpacked from it until that is whole.
    free = shutil.disk_usage(directory).free
    if free < 2 * needed:
        raise FetchError(
            f"{directory} has {free:,} bytes left, and {2 * needed:,} are needed to fetch and "
            "unpack. Make room, or choose another directory."
        )


class _BoundedGzip(gzip.GzipFile):
    """A gzip stream that ends with an error where it holds more than it may."""

    limit = 0

    def _allow(self, stop: int, size: int) -> None:
        if stop > self.limit or size > MAX_READ:
            raise FetchError(
                f"The archive holds more than the {self.limit:,} bytes that it may. "
                "It is damaged or not what it says; nothing of it was kept."
            )

    def read(self, size: int | None = -1) -> bytes:
        """As of a file; all the rest cannot be asked for."""
        self._allow(self.tell() + (size or 0), MAX_READ + 1 if size is None or size < 0 else size)
        return super().read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of a file."""
        self._allow(offset, 0)
        return super().seek(offset, whence)


def _unpack(path: Path, directory: Path, archive: Archive) -> None:
    """Unpack an archive's files into one folder, all or nothing."""
    partial = directory / f".{archive.folder}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    count = 0
    # Headers and padding come to less than two kilobytes a file.
    limit = archive.max_bytes + 2048 * archive.max_files
    try:
        with _BoundedGzip(path, "rb") as stream:
            stream.limit = limit
            with tarfile.open(fileobj=cast(Any, stream), mode="r:") as tar:
                for member in tar:
                    name = Path(member.name)
                    _check_member(member, partial, archive)
                    if member.isdir() or name.suffix.lower() != archive.suffix:
                        continue
                    count += 1
                    if count > archive.max_files:
                        raise FetchError(
                            f"{path.name} holds more than {archive.max_files:,} files; nothing of "
                            "it was kept. Delete it and fetch it again."
                        )
                    if (partial / name.name).exists():
                        raise FetchError(
                            f"{path.name} holds two files {name.name}; nothing of it was kept. "
                            "Delete it and fetch it again."
                        )
                    tar.extract(member.replace(name=name.name, deep=False), partial, filter="data")
            # To the end: the checksum of the whole stands there.
            while stream.read(BLOCK):
                pass
        if not count:
            raise FetchError(
                f"{path.name} holds no {archive.suffix} file. Delete it and fetch it again."
            )
        if count != archive.files:
            logger.warning("%s holds %d files; %d were published", path.name, count, archive.files)
        os.replace(partial, directory / archive.folder)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        path.unlink()  # another attempt shall fetch it anew
        raise FetchError(
            f"{path.name} is damaged or unsafe ({error}); it was deleted, and nothing of it kept. "
            "Run the same command to fetch it again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_member(member: tarfile.TarInfo, partial: Path, archive: Archive) -> None:
    """Refuse the whole archive where a member is anything but a plain file or folder."""
    tarfile.data_filter(member, str(partial))  # raises on what leads outside
    if not (member.isreg() or member.isdir()):
        raise tarfile.TarError(f"{member.name} is a link or a device")
    if member.size > archive.max_file_bytes:
        raise tarfile.TarError(
            f"{member.name} has {member.size:,} bytes of {archive.max_file_bytes:,} allowed"
        )
