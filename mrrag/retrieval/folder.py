"""A knowledge base in a folder: documents and one FAISS index over them; reading and search.

A knowledge base is a directory:

- ``documents.jsonl``: one document per line, with the place of its thumbnail;
- ``thumbnails-000.bin``, ...: JPEG files one after another, below 8 MiB each;
- ``vectors.index``: one inner-product index over the concatenation [t_d ; v_d] of the unit
  vectors of report and image, float16;
- ``manifest.json``: format, encoder and where it is, counts, licences, and size and SHA-256
  of all other files. It is written last: without it there is no knowledge base;
- ``images.npy``: size and time of each document's image file when it was read, int64
  [N, 2]. Only an update uses it, and without it encodes everything again;
- ``learnt.json``, where something was learnt for it (:mod:`mrrag.learnt`).

:mod:`mrrag.retrieval.build` writes what this module reads.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from mrrag.errors import KnowledgeBaseError
from mrrag.retrieval.documents import DocumentTable, ReadDocument, check_ids, key_digest
from mrrag.retrieval.encoders import Encoder
from mrrag.retrieval.knowledge_base import KnowledgeBase, check_encoder
from mrrag.retrieval.manifest import (
    DOCUMENTS,
    MANIFEST,
    REMEDY,
    STAMPS,
    VECTORS,
    check_files,
    read_manifest,
)
from mrrag.retrieval.thumbnails import check_thumbnails
from mrrag.retrieval.vector_index import read_index
from mrrag.types import FloatArray

__all__ = ["Folder", "load_folder"]

# Numbers in an index above which a scan is shared among the cores; about 3 ms on one.
SHARED_SCAN = 2**24


class Folder(KnowledgeBase):
    """A knowledge base in a folder; see :func:`load_folder`."""

    documents: DocumentTable

    def __init__(
        self,
        directory: Path,
        manifest: Mapping[str, Any],
        documents: DocumentTable,
        index: faiss.Index,
    ) -> None:
        super().__init__(directory, manifest, documents)
        self.directory = directory
        self._index = index

    def thumbnails(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the thumbnails of these documents' images, as JPEG files."""
        names, found = list(self.documents.files), []
        for file, offset, length in self.documents.places[list(numbers)].tolist():
            with (self.directory / names[file]).open("rb") as stream:
                stream.seek(offset)
                found.append(stream.read(length))
        return found

    def positions(
        self,
        *,
        patients: Collection[str] = (),
        studies: Collection[str] = (),
        ids: Collection[str] = (),
    ) -> list[int]:
        """Return the numbers of documents with any of these keys, ascending."""
        known = self.documents
        maybe = np.zeros(len(self), dtype=bool)
        for keys, digests_N in (
            (patients, known.patients),
            (studies, known.studies),
            (ids, known.ids),
        ):
            if keys:
                maybe |= np.isin(digests_N, [key_digest(key) for key in keys])
        numbers: list[int] = np.flatnonzero(maybe).tolist()
        return [
            i
            for i in numbers
            if (d := known[i]).patient in patients or d.study in studies or d.id in ids
        ]

    def vectors(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Return report and image vectors (t, v) as the index holds them, float32 [N, D] each.

        Their norms are 1 up to the rounding of float16, at most 5e-4.
        """
        wanted = np.ascontiguousarray(ids, dtype=np.int64)
        if not len(wanted):
            nothing = np.empty((0, self.dimension), dtype=np.float32)
            return nothing, nothing
        both: FloatArray = self._index.reconstruct_batch(wanted)
        return both[:, : self.dimension], both[:, self.dimension :]

    def nearest(
        self, query_MD: npt.NDArray[np.floating[Any]], k: int
    ) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Return the k documents with the largest inner products with each of M vectors [M, 2D].

        Numbers int64 [M, k] and scores float32 [M, k], descending, by FAISS's sums alone: for
        statistics over many queries, where equal scores may come in any order.
        """
        rough_MK, ids_MK = self._index.search(np.ascontiguousarray(query_MD, np.float32), k)
        return ids_MK, rough_MK

    def with_reports_of(self, numbers: Sequence[int]) -> list[int]:
        """Return the numbers of all documents that have the report of any of these."""
        reports_N = self.documents.reports
        alike: list[int] = np.flatnonzero(np.isin(reports_N, reports_N[list(numbers)])).tolist()
        return alike

    def studies_with_reports_of(self, numbers: Sequence[int]) -> list[int]:
        """Return, for each of these, how many studies have its report, its own included."""
        known = self.documents
        return [len(np.unique(known.studies[known.reports == known.reports[i]])) for i in numbers]

    def stamps(self) -> npt.NDArray[np.int64] | None:
        """Return what is known of the documents' image files, int64 [N, 2], or None."""
        try:
            stamps = np.load(self.directory / STAMPS, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return stamps if stamps.shape == (len(self), 2) else None

    def rows(self, start: int, stop: int) -> tuple[list[ReadDocument], FloatArray]:
        """Return all of the documents from ``start`` to ``stop``; see the base class."""
        numbers, stamps = range(start, stop), self.stamps()
        known = [(-1, -1)] * len(numbers) if stamps is None else stamps[start:stop].tolist()
        read = [
            ReadDocument(document, jpeg, (size, time))
            for document, jpeg, (size, time) in zip(
                self.documents.read(numbers), self.thumbnails(numbers), known, strict=True
            )
        ]
        return read, np.concatenate(self.vectors(numbers), axis=1)

    def _scan(
        self, query_D: FloatArray, fetch: int, barred: Collection[int]
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        rough_N, ids_N = self._scan_all(query_D[None], min(len(self), fetch + len(barred)))
        if barred:
            left = ~np.isin(ids_N, list(barred))
            rough_N, ids_N = rough_N[left], ids_N[left]
        return rough_N[:fetch], ids_N[:fetch]

    def _scan_all(
        self, query_1D: FloatArray, fetch: int
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Return the ``fetch`` best documents by FAISS's float32 sums, best first.

        FAISS scans for one query on one core. A large index is therefore split into one
        range of documents per core, and the best of each are merged: every document is still
        scored.
        """
        cores = min(os.cpu_count() or 1, len(self))
        if cores == 1 or len(self) * query_1D.size < SHARED_SCAN:
            rough_1N, ids_1N = self._index.search(query_1D, fetch)
            return rough_1N[0], ids_1N[0]

        def scan(low: int, high: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
            chosen = faiss.SearchParameters(  # type: ignore[call-arg]
                sel=faiss.IDSelectorRange(low, high)
            )
            rough_1N, ids_1N = self._index.search(query_1D, min(fetch, high - low), params=chosen)
            return rough_1N[0], ids_1N[0]

        bounds = np.linspace(0, len(self), cores + 1).astype(np.int64).tolist()
        with ThreadPoolExecutor(cores) as pool:
            parts = list(pool.map(scan, bounds[:-1], bounds[1:]))
        rough_N = np.concatenate([rough for rough, _ in parts])
        ids_N = np.concatenate([ids for _, ids in parts])
        best = np.lexsort((ids_N, -rough_N))[:fetch]
        return rough_N[best], ids_N[best]


def load_folder(directory: Path, encoder: Encoder) -> Folder:
    """Check every file, and open the index memory-mapped.

    The parameters and errors are those of :meth:`KnowledgeBase.load`.
    """
    manifest = read_manifest(directory)
    check_encoder(directory, manifest, encoder)
    check_files(directory, manifest["files"])
    documents = DocumentTable(directory / DOCUMENTS)
    if len(documents) != manifest["count"]:
        raise KnowledgeBaseError(
            f"In {directory / MANIFEST}, count is {manifest['count']:,}. Allowed: "
            f"{len(documents):,}, as many documents as {DOCUMENTS} lists. {REMEDY}"
        )
    check_ids(documents, directory / DOCUMENTS)
    sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    check_thumbnails(directory, list(documents.files), documents.places, sizes)
    index = read_index(directory / VECTORS, len(documents), encoder.dimension)
    return Folder(directory, manifest, documents, index)
