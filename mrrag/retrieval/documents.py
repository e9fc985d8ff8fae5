"""The documents of a knowledge base, read from ``documents.jsonl`` and checked.

It knows neither vectors nor images.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import string
from abc import abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt

from mrrag.errors import KnowledgeBaseError
from mrrag.retrieval.manifest import REMEDY
from mrrag.schema import FieldError, Record, Row, Text, Whole
from mrrag.types import Document

__all__ = [
    "DocumentTable",
    "Documents",
    "Keys",
    "ReadDocument",
    "check_document",
    "check_ids",
    "key_digest",
    "sampled",
    "words",
]

# Bytes of a line of documents.jsonl. A report has a few thousand.
MOST_LINE = 2**24
PERMUTED = 2**22  # documents; permuting their numbers takes 32 MiB and 0.1 s
_NAME = Text(1)
_FIELDS = {"id": _NAME, "report": Text(1, MOST_LINE), "patient": _NAME, "study": _NAME}
_OPTIONAL = {name: Text() for name in ("source", "licence", "split", "view")}
_DOCUMENT = Record(_FIELDS, _OPTIONAL, closed=True)
_LINE = Record(
    # file, offset and length in bytes
    {**_FIELDS, "thumbnail": Row((_NAME, Whole(0, 2**50), Whole(1, 2**31)))},
    _OPTIONAL,
    closed=True,
)


class ReadDocument(NamedTuple):
    """A document with its thumbnail, and size and time of its image file."""

    document: Document
    jpeg: bytes
    stamp: tuple[int, int]


class Keys(Protocol):
    """Digests of all documents' patients, studies, ids or reports, by document number.

    An int64 array [N] in memory, or one that is fetched where it is indexed.
    """

    def __getitem__(self, numbers: Any, /) -> Any:
        """Return the digests of an int64 array of document numbers, in its shape."""

    def __array__(self, *arguments: Any, **keywords: Any) -> Any:
        """Return the digests of all documents, int64 [N]."""


class Documents(Sequence[Document]):
    """The documents of a knowledge base by number, with :class:`Keys` to compare them by.

    Documents with one key have, but for a chance of 2^-64, the same patient, study or id.
    Reports that differ in case, punctuation and white space alone have one key.
    """

    patients: Keys
    studies: Keys
    ids: Keys
    reports: Keys

    @abstractmethod
    def read(self, numbers: Sequence[int]) -> list[Document]:
        """Return the documents of these numbers, in their order."""


class DocumentTable(Documents):
    """The lines of ``documents.jsonl``, parsed on access; the file stays on disk.

    Only eight-byte digests of patients, studies, ids and reports are held in memory. A lookup
    gives candidates, which are then read to be sure.
    """

    patients: npt.NDArray[np.int64]
    studies: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    reports: npt.NDArray[np.int64]

    def __init__(self, path: Path) -> None:
        starts = [0]
        places: list[tuple[int, int, int]] = []
        digests = array("q")
        self.files: dict[str, int] = {}
        with path.open("rb") as lines:
            for line in iter(lambda: lines.readline(MOST_LINE + 1), b""):
                try:
                    document, (file, offset, length) = _parse_line(line)
                except (ValueError, RecursionError) as error:
                    raise _bad_line(path, len(starts), error) from None
                starts.append(starts[-1] + len(line))
                places.append((self.files.setdefault(file, len(self.files)), offset, length))
                keys = (document.patient, document.study, document.id, words(document.report))
                digests.extend(map(key_digest, keys))
        self._starts = np.array(starts, dtype=np.int64)
        self.places = np.array(places, dtype=np.int64).reshape(-1, 3)
        table_4N = np.array(digests, dtype=np.int64).reshape(-1, 4).T
        self.patients, self.studies, self.ids, self.reports = map(np.ascontiguousarray, table_4N)
        self._lines: mmap.mmap | bytes = b""
        if places:  # a map of nothing is refused
            with path.open("rb") as stream:
                self._lines = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, i: int) -> Document: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Document]: ...
    def __getitem__(self, i: int | slice) -> Document | Sequence[Document]:
        if isinstance(i, slice):
            return [self[n] for n in range(*i.indices(len(self)))]
        n = range(len(self))[i]
        return _parse_line(self._lines[self._starts[n] : self._starts[n + 1]])[0]

    def read(self, numbers: Sequence[int]) -> list[Document]:
        """Return the documents of these numbers, in their order."""
        return [self[i] for i in numbers]


def sampled(rng: np.random.Generator, count: int, most: int) -> npt.NDArray[np.int64]:
    """Return up to ``most`` of the numbers from 0 to ``count``, drawn in random order.

    All of them are held for a moment only where there are few.
    """
    if count <= PERMUTED:
        return rng.permutation(count)[:most]
    return rng.choice(count, most, replace=False)


def check_document(values: Mapping[str, object]) -> Document:
    """Return a document of the fields of one line, or raise :class:`FieldError`."""
    return Document(**_DOCUMENT.check(values))


def key_digest(key: str) -> int:
    """Return the digest by which a patient, study, id or report is looked up, int64."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big", signed=True)


_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))


def words(report: str) -> str:
    """Return a report's words in lower case, without punctuation, one space apart."""
    return " ".join(report.lower().translate(_PUNCTUATION).split())


def _parse_line(line: bytes) -> tuple[Document, tuple[str, int, int]]:
    if len(line) > MOST_LINE:
        raise FieldError("longer than that", f"a line of at most {MOST_LINE:,} bytes")
    values = _LINE.check(json.loads(line.decode()))
    place: tuple[str, int, int] = values.pop("thumbnail")
    return Document(**values), place


def _bad_line(path: Path, number: int, error: Exception) -> KnowledgeBaseError:
    came, allowed, field = "not JSON", "an object with id, report, ...", ""
    if isinstance(error, FieldError):
        came, allowed, field = error.came, error.allowed, error.path
    what = f"In line {number} of {path}, {field}" if field else f"Line {number} of {path}"
    return KnowledgeBaseError(f"{what} is {came}. Allowed: {allowed}. {REMEDY}")


def check_ids(documents: DocumentTable, path: Path) -> None:
    """Raise KnowledgeBaseError where two documents have one id."""
    order = np.argsort(documents.ids, kind="stable")
    ids = documents.ids[order]
    twice = np.flatnonzero(ids[1:] == ids[:-1])
    if len(twice):
        first, second = (int(order[twice[0] + n]) + 1 for n in (0, 1))
        raise KnowledgeBaseError(
            f"In {path}, lines {first} and {second} have the same id. Allowed: ids that occur "
            f"once. {REMEDY}"
        )
