"""An unfinished knowledge base: files that grow batch by batch, and a journal of them.

It lies in a hidden directory beside its final place, ``.NAME.partial``. After each batch the
journal records how far each file is complete, so a build that was killed resumes from its
last whole batch, and ends with the same bytes as one that was not.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mrrag.retrieval.documents import ReadDocument
from mrrag.retrieval.manifest import DOCUMENTS, MANIFEST
from mrrag.types import FloatArray

logger = logging.getLogger(__name__)

THUMBNAIL_FILE_BYTES = 8 * 2**20 - 1
# Files that only a build needs.
PLAN, JOURNAL, ROWS, STAMP_ROWS = "plan.json", "journal.jsonl", "rows.f16", "stamps.i64"


@dataclass(frozen=True)
class Step:
    """How far a build is: a line of the journal, written once everything before it is on disk."""

    cases: int = 0
    documents: int = 0
    document_bytes: int = 0
    thumbnail_file: int = -1
    thumbnail_bytes: int = 0
    skipped: Mapping[str, Sequence[str]] = field(default_factory=dict)


def thumbnail_name(number: int) -> str:
    """Return the name of a thumbnail file."""
    return f"thumbnails-{number:03d}.bin"


def not_in(file: int, offset: int, jpeg: bytes) -> bool:
    """Return whether a thumbnail begins the next file, not this one at this offset."""
    return file < 0 or offset + len(jpeg) > THUMBNAIL_FILE_BYTES


def line_of(item: ReadDocument, file: int, offset: int) -> bytes:
    """Return a document's line, with the place of its thumbnail."""
    place = [thumbnail_name(file), offset, len(item.jpeg)]
    line = {**asdict(item.document), "thumbnail": place}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


class Draft:
    """The files of a build, each open at the end of what the journal covers."""

    def __init__(self, directory: Path, plan: str, width: int) -> None:
        self.directory, self.width = directory, width
        self.skipped: dict[str, list[str]] = {}
        self.step = Step()
        steps = self._read_journal(plan)
        if not steps:
            for entry in directory.iterdir():
                entry.unlink()
            (directory / PLAN).write_text(json.dumps({"plan": plan}) + "\n", encoding="utf-8")
        for step in steps:
            self.step = step
            for reason, ids in step.skipped.items():
                self.skipped.setdefault(reason, []).extend(ids)
        (directory / MANIFEST).unlink(missing_ok=True)
        for path in directory.glob("thumbnails-*.bin"):
            if int(path.stem.partition("-")[2]) > self.step.thumbnail_file:
                path.unlink()
        self._files: dict[str, BinaryIO] = {}
        for name, size in self._sizes(self.step).items():
            self._open(name, size)
        journal = "".join(json.dumps(asdict(step)) + "\n" for step in steps)
        self._open(JOURNAL, len(journal.encode()))

    def _sizes(self, step: Step) -> dict[str, int]:
        """Return how many bytes of which file a step covers."""
        sizes = {
            DOCUMENTS: step.document_bytes,
            ROWS: step.documents * self.width * 2,
            STAMP_ROWS: step.documents * 16,
        }
        if step.thumbnail_file >= 0:
            sizes[thumbnail_name(step.thumbnail_file)] = step.thumbnail_bytes
        return sizes

    def _open(self, name: str, size: int) -> BinaryIO:
        stream: BinaryIO = (self.directory / name).open("ab")
        stream.truncate(size)
        self._files[name] = stream
        return stream

    def _read_journal(self, plan: str) -> list[Step]:
        """Return the steps whose files are complete; none where they are of another build."""
        steps: list[Step] = []
        try:
            if json.loads((self.directory / PLAN).read_text(encoding="utf-8"))["plan"] != plan:
                logger.info("%s belongs to another build and is started again", self.directory)
                return steps
            for line in (self.directory / JOURNAL).read_text(encoding="utf-8").splitlines():
                step = Step(**json.loads(line))
                if any(
                    (self.directory / name).stat().st_size < size
                    for name, size in self._sizes(step).items()
                ):
                    break
                steps.append(step)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # what was read before the damage is intact
        return steps

    def add(self, read: Sequence[ReadDocument], vectors_ND: FloatArray) -> None:
        """Write documents with their vectors and thumbnails; :meth:`commit` makes them count."""
        file, offset, lines = self.step.thumbnail_file, self.step.thumbnail_bytes, b""
        for item in read:
            if not_in(file, offset, item.jpeg):
                if file >= 0:
                    self._files.pop(thumbnail_name(file)).close()
                file, offset = file + 1, 0
                self._open(thumbnail_name(file), 0)
            self._files[thumbnail_name(file)].write(item.jpeg)
            lines += line_of(item, file, offset)
            offset += len(item.jpeg)
        self._files[DOCUMENTS].write(lines)
        self._files[ROWS].write(vectors_ND.astype("<f2").tobytes())
        self._files[STAMP_ROWS].write(np.array([i.stamp for i in read], dtype="<i8").tobytes())
        self.step = replace(
            self.step,
            documents=self.step.documents + len(read),
            document_bytes=self.step.document_bytes + len(lines),
            thumbnail_file=file,
            thumbnail_bytes=offset,
        )

    def commit(self, cases: int, skipped: Mapping[str, Sequence[str]]) -> None:
        """Record in the journal all that was written so far."""
        for reason, ids in skipped.items():
            self.skipped.setdefault(reason, []).extend(ids)
        self.step = replace(self.step, cases=cases, skipped=skipped)
        journal = self._files[JOURNAL]
        for stream in self._files.values():
            stream.flush()
        journal.write(json.dumps(asdict(self.step)).encode() + b"\n")
        journal.flush()

    def close(self) -> None:
        """Close all files, which are read by name next."""
        while self._files:
            self._files.popitem()[1].close()

    def abandon(self) -> None:
        """Close what is open and ignore write errors: the journal does not cover it."""
        while self._files:
            with suppress(OSError):
                self._files.popitem()[1].close()
