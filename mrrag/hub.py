"""The Hugging Face hub: files of a repository, downloaded once, and its refusals as sentences.

It does not know what the files are for.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mrrag.errors import ModelError

logger = logging.getLogger(__name__)

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_name(source: str) -> bool:
    """Return whether this has the form of a hub name, ``owner/name``."""
    return HUB_NAME.fullmatch(source) is not None


def find_file(source: str, names: Sequence[str], revision: str | None = None) -> Path | None:
    """Return the first of ``names`` that a directory, or a repository of the hub, has.

    A file of the hub is downloaded once and cached; without a network the cache is used.

    Parameters
    ----------
    source
        A directory, or ``owner/name`` on the hub.
    revision
        Branch, tag or commit on the hub.

    Raises
    ------
    ModelError
        Where the directory or repository does not exist or is closed, or the hub cannot be
        reached and none of the files is cached.
    """
    if Path(source).is_dir():
        return next((p for name in names if (p := Path(source) / name).is_file()), None)
    if not is_hub_name(source):
        raise ModelError(
            f"{source} not found. Give a directory, a file, or a name on the hub (owner/name)."
        )
    unreachable: Exception | None = None
    for name in names:
        try:
            return Path(hf_hub_download(source, name, revision=revision))
        except LocalEntryNotFoundError as error:  # an EntryNotFoundError too
            unreachable = error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise ModelError(refusal(error, source, revision)) from error
    if unreachable is not None:
        raise ModelError(refusal(unreachable, source, revision)) from unreachable
    return None


def download(
    name: str,
    patterns: Sequence[str],
    revision: str | None = None,
    *,
    announce: Callable[[str], object] = logger.info,
) -> Path:
    """Return the directory of a repository's files, downloaded once.

    Parameters
    ----------
    name
        ``owner/name`` on the hub.
    patterns
        Which files, as globs.
    announce
        Called with what will be downloaded, and how much, before it begins.

    Raises
    ------
    ModelError
        Where the repository does not exist or is closed, the hub cannot be reached and the
        files are not cached, or the disk is too small.
    """
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(patterns)}
    try:
        try:
            listed = snapshot_download(name, **wanted, dry_run=True)
        except DryRunError as error:
            if isinstance(error.__cause__, HfHubHTTPError):
                raise error.__cause__ from None
            # The hub cannot be reached: what was downloaded before will do.
            return Path(snapshot_download(name, **wanted, local_files_only=True))
        missing = sum(file.file_size or 0 for file in listed if file.will_download)
        if missing:
            _check_disk(name, missing)
            announce(f"Downloading {name}: {missing / 1e9:.1f} GB, once.")
        return Path(snapshot_download(name, **wanted))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(refusal(error, name, revision)) from None


def downloaded(name: str, patterns: Sequence[str]) -> Path | None:
    """Return the directory of a repository's files that were downloaded before, or None."""
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=True))
    except (OSError, ValueError):
        return None


def repository_bytes(name: str, patterns: Sequence[str], *, timeout_s: float) -> int:
    """Return the size of a repository's files, asked of the hub without an account.

    Raises
    ------
    ModelError
        Where the hub cannot be reached or does not answer in ``timeout_s`` seconds.
    """
    try:
        listed = HfApi().model_info(name, files_metadata=True, timeout=timeout_s, token=False)
    except Exception as error:  # of the hub's client, which has changed its library twice
        raise ModelError(f"The hub cannot be reached ({type(error).__name__}).") from error
    return sum(
        file.size or 0
        for file in listed.siblings or ()
        if any(fnmatch(file.rfilename, pattern) for pattern in patterns)
    )


def refusal(error: Exception, name: str, revision: str | None) -> str:
    """Return why the hub did not give a repository's files, and what to do, in sentences."""
    if isinstance(error, GatedRepoError):
        return (
            f"The hub gives {name} only to those who accepted its terms. Accept them at "
            f"https://huggingface.co/{name}, then run `hf auth login`."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {revision!r} on the hub. Give one that its page lists."
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return (
            f"The hub has no repository {name}, or you may not see it. Check the name; for a "
            "private one, run `hf auth login`."
        )
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"The hub cannot be reached, and {name} has not been downloaded before (or not "
            "wholly). Connect to the internet, or copy its files here and give their directory."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _no_space(name)
    return f"{name} could not be downloaded ({one_line(error)}). Try again; it is resumed."


def _check_disk(name: str, missing: int) -> None:
    place = Path(constants.HF_HUB_CACHE)
    existing = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < missing:
        sizes = f" ({missing / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB free)"
        raise ModelError(_no_space(name, sizes))


def _no_space(name: str, sizes: str = "") -> str:
    return (
        f"The disk is full: {name} does not fit into {constants.HF_HUB_CACHE}{sizes}. Free some "
        "space, or set HF_HOME to a directory on a larger disk."
    )


def one_line(error: BaseException) -> str:
    """Return an exception's message on one line; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
