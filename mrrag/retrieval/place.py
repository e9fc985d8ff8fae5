"""The place of a knowledge base on disk: free, held by one build, filled by one rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from mrrag.errors import KnowledgeBaseError
from mrrag.files import is_out_of_space, locked
from mrrag.retrieval.manifest import MANIFEST


def check_free(directory: Path, overwrite: bool) -> None:
    """Raise :class:`KnowledgeBaseError` where a knowledge base may not be put."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not (directory / MANIFEST).is_file():
        raise KnowledgeBaseError(
            f"{directory} exists and is not a knowledge base. Choose another directory."
        )
    if not overwrite:
        raise KnowledgeBaseError(
            f"There is a knowledge base in {directory} already. "
            "Choose another directory, or ask for it to be overwritten."
        )


def one_build(directory: Path) -> AbstractContextManager[None]:
    """Hold the place of a knowledge base against other builds."""
    return locked(
        directory.with_name(f".{directory.name}.lock"),
        lambda: KnowledgeBaseError(
            f"Another build is at work for {directory}. Wait for it, or choose another directory."
        ),
    )


@contextmanager
def stopped_in_words(directory: Path) -> Iterator[None]:
    """Turn a full disk or a killed process into a sentence; what was encoded stays."""
    kept = "What was encoded is kept there, and the same command resumes from it"
    try:
        yield
    except OSError as error:
        if not is_out_of_space(error):
            raise
        raise KnowledgeBaseError(
            f"There is no room left for {directory} ({error.strerror}). {kept} once there is."
        ) from error
    except BrokenProcessPool as error:
        raise KnowledgeBaseError(
            f"A process that opens images for {directory} was killed by the system, most likely "
            f"for lack of memory. {kept}; with fewer --workers it needs less."
        ) from error


def put_in_place(whole: Path, directory: Path) -> None:
    """Rename a knowledge base to its place, and remove the one that was there."""
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        os.replace(directory, old)
        try:
            os.replace(whole, directory)
        except OSError:
            os.replace(old, directory)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(whole, directory)
