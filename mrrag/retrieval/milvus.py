"""A knowledge base in a collection of Milvus: one row a document; reading and search.

A row has the document's number, its vector [t_d ; v_d], its fields, its thumbnail, and the
digests by which patients, studies, ids and reports are looked up. The vectors are the float16
numbers of a folder, held as float32. Nothing is held in memory here: documents, vectors and
digests are fetched when they are asked for, and checked then, since a collection is trusted no
more than a folder from elsewhere.

:mod:`mrrag.retrieval.milvus_build` writes what this module reads.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from mrrag.errors import KnowledgeBaseError
from mrrag.retrieval.address import MilvusCollection
from mrrag.retrieval.documents import Documents, Keys, ReadDocument, check_document, key_digest
from mrrag.retrieval.encoders import Encoder
from mrrag.retrieval.knowledge_base import KnowledgeBase, check_encoder
from mrrag.retrieval.manifest import REMEDY
from mrrag.retrieval.milvus_client import (
    DOCUMENTS,
    INDEXES,
    MOST_ROWS,
    SECONDS,
    TEXTS,
    WRITTEN,
    asked,
    connect,
    found,
)
from mrrag.retrieval.milvus_notes import Notes, read_notes
from mrrag.retrieval.thumbnails import fault_of
from mrrag.retrieval.vector_index import check_norms
from mrrag.schema import FieldError
from mrrag.types import Document, FloatArray

__all__ = ["MilvusBase", "load_collection"]

BLOCK = 1024  # documents of one answer; their thumbnails have some 15 MB


class MilvusBase(KnowledgeBase):
    """A knowledge base in a collection; see :func:`load_collection`.

    Attributes
    ----------
    notes : Notes
        Its manifest, and what else is kept with it.
    """

    def __init__(self, place: MilvusCollection, client: Any, notes: Notes) -> None:
        self._rows = _Rows(place, client, notes.manifest["count"])
        super().__init__(place, notes.manifest, _MilvusDocuments(self._rows))
        self.notes = notes
        self._index = INDEXES[notes.manifest["index"]["type"]]

    def check_count(self) -> None:
        """Raise KnowledgeBaseError where there are not as many documents as the manifest says."""
        count = self._rows.count("number >= 0", **WRITTEN)
        if count != len(self):
            raise KnowledgeBaseError(
                f"In the manifest of {self.place}, count is {len(self):,}. Allowed: {count:,}, as "
                f"many documents as there are. {REMEDY}"
            )

    def thumbnails(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the thumbnails of these documents' images, as JPEG files."""
        rows = self._rows.fetch(numbers, ("thumbnail",))
        return [self._rows.jpeg(i, row) for i, row in zip(numbers, rows, strict=True)]

    def positions(
        self,
        *,
        patients: Collection[str] = (),
        studies: Collection[str] = (),
        ids: Collection[str] = (),
    ) -> list[int]:
        """Return the numbers of documents with any of these keys, ascending."""
        asked_for = (("patient", patients), ("study", studies), ("id", ids))
        numbers: set[int] = set()
        for name, keys in asked_for:
            if keys:
                rows = self._rows.where(f"{name}_key", map(key_digest, keys), (name,))
                numbers |= {int(row["number"]) for row in rows if row[name] in keys}
        return sorted(numbers)

    def vectors(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Return report and image vectors (t, v) as they are stored, float32 [N, D] each."""
        numbers = np.asarray(ids, np.int64).tolist()
        rows = self._rows.fetch(numbers, ("vector",))
        both_ND = self._rows.vectors(numbers, rows, 2 * self.dimension)
        return both_ND[:, : self.dimension], both_ND[:, self.dimension :]

    def nearest(
        self, query_MD: npt.NDArray[np.floating[Any]], k: int
    ) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Return the k documents with the largest inner products with each of M vectors [M, 2D].

        As in the base class; what an index does not find is document 0 with the score NaN.
        """
        ids_MK = np.zeros((len(query_MD), k), np.int64)
        rough_MK = np.full((len(query_MD), k), np.nan, np.float32)
        hits = self._search(np.asarray(query_MD, np.float32), k, ())
        for row, (numbers, scores) in enumerate(hits):
            ids_MK[row, : len(numbers)], rough_MK[row, : len(scores)] = numbers, scores
        return ids_MK, rough_MK

    def with_reports_of(self, numbers: Sequence[int]) -> list[int]:
        """Return the numbers of all documents that have the report of any of these."""
        keys = {int(key) for key in self.documents.reports[list(numbers)]}
        return sorted(int(row["number"]) for row in self._rows.where("report_key", keys, ()))

    def studies_with_reports_of(self, numbers: Sequence[int]) -> list[int]:
        """Return, for each of these, how many studies have its report, its own included."""
        keys = [int(key) for key in self.documents.reports[list(numbers)]]
        counts = {key: self._rows.count(f"report_key == {key} and first == true") for key in keys}
        return [counts[key] for key in keys]

    def stamps(self) -> npt.NDArray[np.int64]:
        """Return what is known of the documents' image files, int64 [N, 2]."""
        columns = [np.asarray(_Column(self._rows, name)) for name in ("stamp_size", "stamp_time")]
        return np.stack(columns, axis=1)

    def rows(self, start: int, stop: int) -> tuple[list[ReadDocument], FloatArray]:
        """Return all of the documents from ``start`` to ``stop``; see the base class."""
        numbers = range(start, stop)
        fields = (*TEXTS, "thumbnail", "stamp_size", "stamp_time", "vector")
        rows = self._rows.fetch(numbers, fields)
        read = [
            ReadDocument(
                self._rows.document(i, row),
                self._rows.jpeg(i, row),
                (int(row["stamp_size"]), int(row["stamp_time"])),
            )
            for i, row in zip(numbers, rows, strict=True)
        ]
        return read, self._rows.vectors(numbers, rows, 2 * self.dimension)

    def _scan(
        self, query_D: FloatArray, fetch: int, barred: Collection[int]
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        numbers, scores = self._search(query_D[None], fetch, barred)[0]
        return np.array(scores, np.float32), np.array(numbers, np.int64)

    def _search(
        self, query_MD: FloatArray, k: int, barred: Collection[int]
    ) -> list[tuple[list[int], list[float]]]:
        """Return numbers and scores of up to k documents for each query, best first."""
        k = min(k, MOST_ROWS)
        parameters = dict(self._index.search(len(self), k))
        place, client = self._rows.place, self._rows.client
        with asked(place):
            answer = client.search(
                place.name,
                data=list(query_MD),
                anns_field="vector",
                limit=k,
                filter=f"number not in {sorted(barred)}" if barred else "",
                partition_names=[DOCUMENTS],
                search_params={"metric_type": "IP", "params": parameters},
                output_fields=["number"],
                timeout=SECONDS,
            )
        return [
            ([self._rows.number(hit["number"]) for hit in hits], [hit["distance"] for hit in hits])
            for hits in answer
        ]


class _Rows:
    """The rows of a collection's documents, fetched by number and checked."""

    def __init__(self, place: MilvusCollection, client: Any, count: int) -> None:
        self.place, self.client, self.documents = place, client, count

    def fetch(self, numbers: Sequence[int], fields: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows of these documents, in their order."""
        known: dict[int, dict[str, Any]] = {}
        wanted = sorted(set(numbers))
        for start in range(0, len(wanted), BLOCK):
            block = wanted[start : start + BLOCK]
            low, high = block[0], block[-1]
            run = high - low + 1 == len(block)
            with asked(self.place):
                rows = self.client.query(
                    self.place.name,
                    filter=f"number >= {low} and number <= {high}" if run else f"number in {block}",
                    output_fields=["number", *fields],
                    partition_names=[DOCUMENTS],
                    limit=len(block),
                    timeout=SECONDS,
                )
            known |= {row["number"]: row for row in rows}
        for i in wanted:
            if i not in known:
                raise KnowledgeBaseError(f"Document {i} is missing in {self.place}. {REMEDY}")
        return [known[i] for i in numbers]

    def where(
        self, name: str, keys: Iterator[int] | Collection[int], fields: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Return the rows whose field is one of these whole numbers."""
        condition = f"{name} in {sorted(keys)}"
        every = range(self.documents)
        return found(self.client, self.place, condition, fields, DOCUMENTS, every)

    def count(self, condition: str, **consistency: str) -> int:
        """Return how many documents fulfil a condition."""
        with asked(self.place):
            rows = self.client.query(
                self.place.name,
                filter=condition,
                output_fields=["count(*)"],
                partition_names=[DOCUMENTS],
                timeout=SECONDS,
                **consistency,
            )
        return int(rows[0]["count(*)"])

    def number(self, value: int) -> int:
        """Return a document's number, or raise KnowledgeBaseError for one that is none."""
        if not 0 <= value < self.documents:
            raise KnowledgeBaseError(
                f"{self.place} has a document with the number {value}. Allowed: 0 to "
                f"{self.documents - 1:,}. {REMEDY}"
            )
        return int(value)

    def document(self, i: int, row: dict[str, Any]) -> Document:
        """Return the document of a row, or raise KnowledgeBaseError where it is none."""
        try:
            return check_document({name: row[name] for name in TEXTS})
        except FieldError as error:
            raise KnowledgeBaseError(
                f"In document {i} of {self.place}, {error.path} is {error.came}. Allowed: "
                f"{error.allowed}. {REMEDY}"
            ) from None

    def jpeg(self, i: int, row: dict[str, Any]) -> bytes:
        """Return the thumbnail of a row, or raise KnowledgeBaseError where it is none."""
        try:
            jpeg = base64.b64decode(row["thumbnail"], validate=True)
            fault = fault_of(jpeg)
        except (binascii.Error, ValueError):
            fault = "not base64"
        if fault:
            raise KnowledgeBaseError(
                f"The thumbnail of document {i} of {self.place} is {fault}. Allowed: a JPEG file "
                f"of a small picture, in base64. {REMEDY}"
            )
        return jpeg

    def vectors(
        self, numbers: Sequence[int], rows: Sequence[dict[str, Any]], width: int
    ) -> FloatArray:
        """Return the vectors of rows, float32 [N, 2D], each finite and of norm 1."""
        both_ND = np.array([row["vector"] for row in rows], np.float32).reshape(len(rows), width)
        check_norms(both_ND, str(self.place), numbers)
        return both_ND


class _Column:
    """The :class:`~mrrag.retrieval.documents.Keys` in a field, fetched where it is indexed."""

    def __init__(self, rows: _Rows, name: str) -> None:
        self._rows, self._name = rows, name

    def __getitem__(self, numbers: Any, /) -> Any:
        if isinstance(numbers, slice):
            numbers = np.arange(self._rows.documents)[numbers]
        wanted = np.asarray(numbers, np.int64)
        unique, places = np.unique(wanted.ravel(), return_inverse=True)
        rows = self._rows.fetch(unique.tolist(), (self._name,))
        values = np.array([row[self._name] for row in rows], np.int64)
        return values[places].reshape(wanted.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self[:] if dtype is None else self[:].astype(dtype)


class _MilvusDocuments(Documents):
    """The documents of a collection, fetched on access."""

    def __init__(self, rows: _Rows) -> None:
        self._rows = rows
        names = ("patient_key", "study_key", "id_key", "report_key")
        keys: list[Keys] = [_Column(rows, name) for name in names]
        self.patients, self.studies, self.ids, self.reports = keys

    def __len__(self) -> int:
        return self._rows.documents

    @overload
    def __getitem__(self, i: int) -> Document: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Document]: ...
    def __getitem__(self, i: int | slice) -> Document | Sequence[Document]:
        if isinstance(i, slice):
            return self.read(range(*i.indices(len(self))))
        return self.read([range(len(self))[i]])[0]

    def __iter__(self) -> Iterator[Document]:
        for start in range(0, len(self), BLOCK):
            yield from self[start : start + BLOCK]

    def read(self, numbers: Sequence[int]) -> list[Document]:
        """Return the documents of these numbers, in their order."""
        rows = self._rows.fetch(numbers, TEXTS)
        return [self._rows.document(i, row) for i, row in zip(numbers, rows, strict=True)]


def load_collection(place: MilvusCollection, encoder: Encoder) -> MilvusBase:
    """Check the manifest, the fields and the number of documents of a collection.

    The parameters and errors are those of :meth:`KnowledgeBase.load`.
    """
    notes = read_notes(place)
    check_encoder(place, notes.manifest, encoder)
    if notes.manifest.get("index", {}).get("type") not in INDEXES:
        raise KnowledgeBaseError(
            f"In the manifest of {place}, index.type is another. Allowed: {', '.join(INDEXES)}. "
            f"{REMEDY}"
        )
    base = MilvusBase(place, connect(place), notes)
    base.check_count()
    return base
