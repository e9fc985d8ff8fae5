"""A knowledge base: documents and one FAISS index over them; reading and exact search.

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

The concatenation makes MCR exact in one scan (see :mod:`mrrag.retrieval.mcr`). This module
knows no weights and no queries, only vectors; :mod:`mrrag.retrieval.build` writes what it
reads.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import PIL.Image

from mrrag.errors import KnowledgeBaseError, ModelError
from mrrag.retrieval.bi_tower import BiTower
from mrrag.retrieval.documents import DocumentTable, check_ids, key_digest
from mrrag.retrieval.encoders import Encoder, load_described_encoder, load_encoder
from mrrag.retrieval.manifest import (
    DOCUMENTS,
    MANIFEST,
    REMEDY,
    VECTORS,
    check_files,
    read_manifest,
)
from mrrag.retrieval.open_clip import OpenClip
from mrrag.retrieval.thumbnails import check_thumbnails, open_thumbnail
from mrrag.retrieval.vector_index import read_index
from mrrag.types import Document, FloatArray

__all__ = ["DocumentTable", "KnowledgeBase", "load_encoder_of"]

# Numbers in an index above which a scan is shared among the cores; about 3 ms on one.
SHARED_SCAN = 2**24


class KnowledgeBase:
    """Documents with their thumbnails and vectors; see :meth:`load`.

    Documents are numbered from 0, in the order of building.

    Attributes
    ----------
    documents : sequence of Document
        Read from disk on access.
    dimension : int
        D of each of the two vectors of a document.
    fingerprint : str
        SHA-256 over the digests of its files.
    manifest : mapping
        As on disk: encoder, counts, splits, sources and licences.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Mapping[str, Any],
        documents: DocumentTable,
        index: faiss.Index,
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.documents = documents
        self.dimension = int(manifest["dimension"])
        digests = json.dumps(manifest["files"], sort_keys=True)
        self.fingerprint = hashlib.sha256(digests.encode()).hexdigest()
        self._index = index

    @classmethod
    def load(cls, directory: str | Path, encoder: Encoder) -> KnowledgeBase:
        """Check every file, and open the index memory-mapped.

        Parameters
        ----------
        encoder
            Encodes the queries. Its fingerprint must be that of the encoder with which the
            knowledge base was built.

        Raises
        ------
        KnowledgeBaseError
            Where a file is missing, damaged or of a later format, a field, a vector or a
            thumbnail is not what it may be, or the encoder is a different one.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        made_with = manifest["encoder"]
        if made_with["fingerprint"] != encoder.fingerprint:
            raise KnowledgeBaseError(
                f"The knowledge base in {directory} was built with the encoder "
                f'"{made_with["name"]}" ({made_with["fingerprint"][:12]}), and the one loaded is '
                f'"{encoder.name}" ({encoder.fingerprint[:12] or "not from disk"}). Their vectors '
                "cannot be compared: load that encoder, or build the knowledge base again with "
                "this one."
            )
        if manifest["dimension"] != encoder.dimension:
            raise KnowledgeBaseError(
                f"In {directory / MANIFEST}, dimension is {manifest['dimension']:,}. Allowed: "
                f'{encoder.dimension:,}, as the encoder "{encoder.name}" has. {REMEDY}'
            )
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
        return cls(directory, manifest, documents, index)

    def __len__(self) -> int:
        return len(self.documents)

    def document(self, i: int) -> Document:
        """Return document number ``i``."""
        return self.documents[i]

    def thumbnail(self, i: int) -> bytes:
        """Return the thumbnail of document ``i``'s image, as a JPEG file."""
        file, offset, length = (int(n) for n in self.documents.places[i])
        with (self.directory / list(self.documents.files)[file]).open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)

    def picture(self, i: int) -> PIL.Image.Image:
        """Return the decoded thumbnail of document ``i``'s image.

        Raises
        ------
        KnowledgeBaseError
            Where its JPEG file is damaged.
        """
        return open_thumbnail(self.thumbnail(i), f"of document {i} in {self.directory}")

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

    def search(
        self, vector: npt.NDArray[np.floating[Any]], k: int, exclude: Collection[int] = ()
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the k documents with the largest inner product with ``vector``, exactly.

        FAISS sums in float32, so documents that are closer than its rounding may come in
        either order. It is therefore asked for more than k, until the last is below the k-th
        by more than any rounding, and all are scored again in float64. Equal scores come in
        document order.

        Parameters
        ----------
        vector : [2D]
        k
            At least 1. The result is shorter where fewer documents are left.
        exclude
            Numbers of documents to leave out.

        Returns
        -------
        ids : int64 [N]
        scores : float64 [N], descending
        """
        exact_D = np.asarray(vector, dtype=np.float64)
        query_1D = exact_D.astype(np.float32)[None]
        # n·u·‖q‖·‖d‖ bounds a float32 sum of n products; ‖d‖ = √2, and twice for two.
        tolerance = 2 * np.sqrt(2) * exact_D.size * 2.0**-24 * float(np.linalg.norm(exact_D))
        barred = set(exclude)
        fetch = min(len(self), k + len(barred) + 8)
        while True:
            rough_N, found_N = self._scan(query_1D, fetch)
            ids = np.array([i for i in found_N if int(i) not in barred], dtype=np.int64)
            t_ND, v_ND = self.vectors(ids)
            # Row by row, so that equal documents get equal scores wherever they stand.
            scores = (np.concatenate([t_ND, v_ND], axis=1) * exact_D).sum(axis=1)
            order = np.lexsort((ids, -scores))
            ids, scores = ids[order], scores[order]
            enough = len(ids) >= k and scores[k - 1] - float(rough_N[-1]) > tolerance
            if fetch == len(self) or enough:
                return ids[:k], scores[:k]
            fetch = min(len(self), 2 * fetch)

    def nearest(
        self, query_MD: npt.NDArray[np.floating[Any]], k: int
    ) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Return the k documents with the largest inner products with each of M vectors [M, 2D].

        Numbers int64 [M, k] and scores float32 [M, k], descending, by FAISS's sums alone: for
        statistics over many queries, where equal scores may come in any order.
        """
        rough_MK, ids_MK = self._index.search(np.ascontiguousarray(query_MD, np.float32), k)
        return ids_MK, rough_MK

    def studies_with_report_of(self, i: int) -> int:
        """Return how many studies have the report of document ``i``, its own included."""
        known = self.documents
        return len(np.unique(known.studies[known.reports == known.reports[i]]))

    def _scan(self, query_1D: FloatArray, fetch: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
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


def load_encoder_of(directory: str | Path, bundled: Path) -> BiTower | OpenClip:
    """Load the encoder with which a knowledge base was built, from where its manifest says.

    Parameters
    ----------
    bundled
        The directory of the bundled encoder. It is recognised by its fingerprint wherever the
        knowledge base was copied to, and is also used where the manifest does not say where
        the encoder is; :meth:`KnowledgeBase.load` then checks that it is the right one.

    Raises
    ------
    KnowledgeBaseError
        Where there is no knowledge base, or its encoder is missing or has changed.
    """
    entry = read_manifest(Path(directory))["encoder"]
    encoder = load_encoder(bundled)
    if "source" not in entry or entry["fingerprint"] == encoder.fingerprint:
        return encoder
    try:
        return load_described_encoder(entry, Path(directory))
    except ModelError as error:
        raise KnowledgeBaseError(
            f'The knowledge base in {directory} needs the encoder "{entry["name"]}" that it was '
            f"built with. {error}"
        ) from error
