"""A knowledge base: documents, their vectors and thumbnails, and exact search over them.

It is a folder with a FAISS index (:mod:`mrrag.retrieval.folder`) or a collection of Milvus
(:mod:`mrrag.retrieval.milvus`); what both serve, and what they share, is here.

A document is one inner-product vector, the concatenation [t_d ; v_d] of the unit vectors of
its report and its image. This makes MCR exact in one scan (see :mod:`mrrag.retrieval.mcr`).
This module knows no weights and no queries, only vectors.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from mrrag.errors import KnowledgeBaseError, ModelError
from mrrag.retrieval.address import Place, place_of
from mrrag.retrieval.bi_tower import BiTower
from mrrag.retrieval.documents import Documents, DocumentTable, ReadDocument
from mrrag.retrieval.encoders import Encoder, load_described_encoder, load_encoder
from mrrag.retrieval.manifest import MANIFEST, REMEDY, manifest_of
from mrrag.retrieval.open_clip import OpenClip
from mrrag.retrieval.thumbnails import open_thumbnail
from mrrag.types import Document, FloatArray

__all__ = ["DocumentTable", "KnowledgeBase", "check_encoder", "load_encoder_of"]


class KnowledgeBase(ABC):
    """Documents with their thumbnails and vectors; see :meth:`load`.

    Documents are numbered from 0, in the order of building.

    Attributes
    ----------
    place : Path or MilvusCollection
        Where it is.
    documents : Documents
        Read from where they are on access.
    dimension : int
        D of each of the two vectors of a document.
    fingerprint : str
        SHA-256 over the digests of its files; a collection has those of the same knowledge base
        in a folder.
    manifest : mapping
        As stored: encoder, counts, splits, sources and licences.
    """

    def __init__(self, place: Place, manifest: Mapping[str, Any], documents: Documents) -> None:
        self.place = place
        self.manifest = manifest
        self.documents = documents
        self.dimension = int(manifest["dimension"])
        self.fingerprint = fingerprint_of(manifest)

    @staticmethod
    def load(place: str | Place, encoder: Encoder) -> KnowledgeBase:
        """Check a knowledge base, and open it.

        Of a folder every file is checked. Of a collection the manifest, the fields and the
        number of documents are, and the documents as they are read.

        Parameters
        ----------
        place
            A folder, or a collection of Milvus (``milvus:URI/COLLECTION``).
        encoder
            Encodes the queries. Its fingerprint must be that of the encoder with which the
            knowledge base was built.

        Raises
        ------
        KnowledgeBaseError
            Where a part is missing, damaged or of a later format, a field, a vector or a
            thumbnail is not what it may be, or the encoder is a different one.
        """
        place = place_of(place)
        if isinstance(place, Path):
            from mrrag.retrieval.folder import load_folder

            return load_folder(place, encoder)
        from mrrag.retrieval.milvus import load_collection  # pymilvus may not be installed

        return load_collection(place, encoder)

    def __len__(self) -> int:
        return len(self.documents)

    def document(self, i: int) -> Document:
        """Return document number ``i``."""
        return self.documents[i]

    def thumbnail(self, i: int) -> bytes:
        """Return the thumbnail of document ``i``'s image, as a JPEG file."""
        return self.thumbnails([i])[0]

    @abstractmethod
    def thumbnails(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the thumbnails of these documents' images, as JPEG files."""

    def picture(self, i: int) -> PIL.Image.Image:
        """Return the decoded thumbnail of document ``i``'s image.

        Raises
        ------
        KnowledgeBaseError
            Where its JPEG file is damaged.
        """
        return self.pictures([i])[0]

    def pictures(self, numbers: Sequence[int]) -> list[PIL.Image.Image]:
        """Return the decoded thumbnails of these documents' images; see :meth:`picture`."""
        return [
            open_thumbnail(jpeg, f"of document {i} in {self.place}")
            for i, jpeg in zip(numbers, self.thumbnails(numbers), strict=True)
        ]

    @abstractmethod
    def positions(
        self,
        *,
        patients: Collection[str] = (),
        studies: Collection[str] = (),
        ids: Collection[str] = (),
    ) -> list[int]:
        """Return the numbers of documents with any of these keys, ascending."""

    @abstractmethod
    def vectors(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Return report and image vectors (t, v) as they are stored, float32 [N, D] each.

        They are float16 numbers. Their norms are 1 up to rounding, at most 5e-4.
        """

    def search(
        self, vector: npt.NDArray[np.floating[Any]], k: int, exclude: Collection[int] = ()
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the k documents with the largest inner product with ``vector``, exactly.

        The engine sums in float32, so documents that are closer than its rounding may come in
        either order. It is therefore asked for more than k, until the last is below the k-th
        by more than any rounding, and all are scored again in float64. Equal scores come in
        document order. (A collection of Milvus with another index than FLAT may miss some.)

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
        query_D = exact_D.astype(np.float32)
        # n·u·‖q‖·‖d‖ bounds a float32 sum of n products; ‖d‖ = √2, and twice for two.
        tolerance = 2 * np.sqrt(2) * exact_D.size * 2.0**-24 * float(np.linalg.norm(exact_D))
        barred = set(exclude)
        fetch = min(len(self), k + 8)
        while True:
            rough_N, ids = self._scan(query_D, fetch, barred)
            last = float(rough_N[-1]) if len(rough_N) else -np.inf
            t_ND, v_ND = self.vectors(ids)
            # Row by row, so that equal documents get equal scores wherever they stand.
            scores = (np.concatenate([t_ND, v_ND], axis=1) * exact_D).sum(axis=1)
            order = np.lexsort((ids, -scores))
            found, scores = ids[order], scores[order]
            enough = len(found) >= k and scores[k - 1] - last > tolerance
            if fetch == len(self) or len(found) < fetch or enough:
                return found[:k], scores[:k]
            fetch = min(len(self), 2 * fetch)

    @abstractmethod
    def _scan(
        self, query_D: FloatArray, fetch: int, barred: Collection[int]
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Return float32 sums and numbers of the ``fetch`` best documents, best first.

        Fewer where no more are left beside the barred ones, or the engine gives no more.
        """

    @abstractmethod
    def nearest(
        self, query_MD: npt.NDArray[np.floating[Any]], k: int
    ) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Return the k documents with the largest inner products with each of M vectors [M, 2D].

        Numbers int64 [M, k] and scores float32 [M, k], descending, by the engine's sums alone:
        for statistics over many queries, where equal scores may come in any order.
        """

    @abstractmethod
    def with_reports_of(self, numbers: Sequence[int]) -> list[int]:
        """Return the numbers of all documents that have the report of any of these."""

    @abstractmethod
    def studies_with_reports_of(self, numbers: Sequence[int]) -> list[int]:
        """Return, for each of these, how many studies have its report, its own included."""

    @abstractmethod
    def stamps(self) -> npt.NDArray[np.int64] | None:
        """Return what is known of the documents' image files, int64 [N, 2], or None."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> tuple[list[ReadDocument], FloatArray]:
        """Return all of the documents from ``start`` to ``stop``, to be written elsewhere.

        Their fields, thumbnails and stamps, and [t_d ; v_d], float32 [N, 2D].
        """


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """Return SHA-256 over the digests of a knowledge base's files."""
    digests = json.dumps(manifest["files"], sort_keys=True)
    return hashlib.sha256(digests.encode()).hexdigest()


def check_encoder(place: Place, manifest: Mapping[str, Any], encoder: Encoder) -> None:
    """Raise KnowledgeBaseError where a knowledge base was built with another encoder."""
    made_with = manifest["encoder"]
    if made_with["fingerprint"] != encoder.fingerprint:
        raise KnowledgeBaseError(
            f"The knowledge base in {place} was built with the encoder "
            f'"{made_with["name"]}" ({made_with["fingerprint"][:12]}), and the one loaded is '
            f'"{encoder.name}" ({encoder.fingerprint[:12] or "not from disk"}). Their vectors '
            "cannot be compared: load that encoder, or build the knowledge base again with "
            "this one."
        )
    if manifest["dimension"] != encoder.dimension:
        raise KnowledgeBaseError(
            f"In {MANIFEST} of {place}, dimension is {manifest['dimension']:,}. Allowed: "
            f'{encoder.dimension:,}, as the encoder "{encoder.name}" has. {REMEDY}'
        )


def load_encoder_of(place: str | Place, bundled: Path) -> BiTower | OpenClip:
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
    place = place_of(place)
    entry = manifest_of(place)["encoder"]
    encoder = load_encoder(bundled)
    if "source" not in entry or entry["fingerprint"] == encoder.fingerprint:
        return encoder
    try:
        return load_described_encoder(entry, place if isinstance(place, Path) else place.near)
    except ModelError as error:
        raise KnowledgeBaseError(
            f'The knowledge base in {place} needs the encoder "{entry["name"]}" that it was '
            f"built with. {error}"
        ) from error
