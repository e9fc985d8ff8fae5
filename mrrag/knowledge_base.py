"""Documents and one FAISS index over them: build, save, load, exact fused search.

A knowledge base is a directory:

- ``documents.jsonl``: a document a line, with where its thumbnail lies;
- ``thumbnails-000.bin``, ...: JPEG files one after another, below 8 MiB each;
- ``vectors.index``: one inner-product index over the concatenation [t_d ; v_d] of the
  report's and the image's unit vector, float16;
- ``manifest.json``: format, encoder, counts, licences, and the size and SHA-256 of all
  the others. It is written last, so that without it there is no knowledge base.

The concatenation is what makes MCR exact in one scan (see :mod:`mrrag.retrieval`); this
module knows no weights and no queries, only vectors.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from mrrag.corpus import Case
from mrrag.encoders import Encoder, file_sha256
from mrrag.errors import ImageError, KnowledgeBaseError
from mrrag.images import load_image, thumbnail
from mrrag.types import Document, FloatArray, Image

__all__ = ["KnowledgeBase", "build_knowledge_base"]

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
DOCUMENTS = "documents.jsonl"
VECTORS = "vectors.index"
THUMBNAIL_FILE_BYTES = 8 * 2**20 - 1
CALIBRATION_PAIRS = 2000
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True)
class _Place:
    """Where a thumbnail lies: a file, and bytes in it."""

    file: str
    offset: int
    length: int


class KnowledgeBase:
    """Documents, their thumbnails and their vectors; :meth:`load` makes one.

    Documents are numbered from 0 in the order in which they were built in.

    Attributes
    ----------
    dimension : int
        D of each of the two vectors of a document.
    fingerprint : str
        SHA-256 over the digests of its files.
    manifest : mapping
        As read from disk: encoder, sources and licences, and ``calibration``,
        percentiles of the image-report and image-image cosine between random documents
        of different patients.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Mapping[str, Any],
        documents: Sequence[Document],
        places: Sequence[_Place],
        index: faiss.Index,
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.documents = tuple(documents)
        self.dimension = int(manifest["dimension"])
        digests = json.dumps(manifest["files"], sort_keys=True)
        self.fingerprint = hashlib.sha256(digests.encode()).hexdigest()
        self._places = tuple(places)
        self._numbers = {d.id: i for i, d in enumerate(self.documents)}
        self._index = index

    @classmethod
    def load(cls, directory: str | Path, encoder: Encoder) -> KnowledgeBase:
        """Check every file and open the index, memory-mapped.

        Parameters
        ----------
        encoder
            The one that will encode the queries: its fingerprint must be that of the
            encoder the knowledge base was built with.

        Raises
        ------
        KnowledgeBaseError
            Where a file is absent, damaged or of a later format, or the encoder is
            another one.
        """
        directory = Path(directory)
        manifest = _read_manifest(directory)
        made_with = manifest["encoder"]
        if made_with["fingerprint"] != encoder.fingerprint:
            raise KnowledgeBaseError(
                f"The knowledge base in {directory} was built with the encoder "
                f'"{made_with["name"]}" ({made_with["fingerprint"][:12]}), and the one loaded is '
                f'"{encoder.name}" ({encoder.fingerprint[:12] or "not from disk"}). Their vectors '
                "cannot be compared: load that encoder, or build the knowledge base again with "
                "this one."
            )
        _check_files(directory, manifest["files"])
        try:
            documents, places = _read_documents(directory / DOCUMENTS)
            index = faiss.read_index(str(directory / VECTORS), faiss.IO_FLAG_MMAP_IFC)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise KnowledgeBaseError(
                f"The knowledge base in {directory} cannot be read ({error}). Build it again."
            ) from error
        count, width = manifest["count"], 2 * manifest["dimension"]
        found = (len(documents), index.ntotal, index.d, index.metric_type)
        sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
        if found != (count, count, width, faiss.METRIC_INNER_PRODUCT) or not all(
            0 <= p.offset <= p.offset + p.length <= sizes.get(p.file, -1) for p in places
        ):
            raise KnowledgeBaseError(
                f"The parts of the knowledge base in {directory} do not fit one another: "
                f"{count} documents are declared, {len(documents)} listed and {index.ntotal} "
                "indexed. Build it again."
            )
        return cls(directory, manifest, documents, places, index)

    def __len__(self) -> int:
        return len(self.documents)

    def document(self, i: int) -> Document:
        """Document number ``i``."""
        return self.documents[i]

    def thumbnail(self, i: int) -> bytes:
        """The JPEG file of document ``i``'s image, reduced."""
        place = self._places[i]
        with (self.directory / place.file).open("rb") as stream:
            stream.seek(place.offset)
            return stream.read(place.length)

    def positions(
        self,
        *,
        patients: Collection[str] = (),
        studies: Collection[str] = (),
        ids: Collection[str] = (),
    ) -> list[int]:
        """Numbers of the documents of any of these patients, studies or ids, ascending."""
        if not (patients or studies):
            return sorted(self._numbers[i] for i in ids if i in self._numbers)
        return [
            i
            for i, d in enumerate(self.documents)
            if d.patient in patients or d.study in studies or d.id in ids
        ]

    def vectors(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Report and image vectors (t, v) as the index holds them, float32 [N, D] each.

        Their norms are 1 up to float16's rounding, 5e-4 at most.
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
        """The k documents with the largest inner product with ``vector``, exactly.

        FAISS sums in float32, so that documents closer than its rounding may come in
        either order. It is therefore asked for more than k, until the last one is below
        the k-th by more than any rounding, and those are scored again in float64. Equal
        scores come in document order.

        Parameters
        ----------
        vector : [2D]
        k
            At least 1. Fewer come where fewer are left.
        exclude
            Numbers of documents that must not come.

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
            rough_1N, ids_1N = self._index.search(query_1D, fetch)
            ids = np.array([i for i in ids_1N[0] if int(i) not in barred], dtype=np.int64)
            t_ND, v_ND = self.vectors(ids)
            # Row by row, so that equal documents get equal scores wherever they stand.
            scores = (np.concatenate([t_ND, v_ND], axis=1) * exact_D).sum(axis=1)
            order = np.lexsort((ids, -scores))
            ids, scores = ids[order], scores[order]
            enough = len(ids) >= k and scores[k - 1] - float(rough_1N[0, -1]) > tolerance
            if fetch == len(self) or enough:
                return ids[:k], scores[:k]
            fetch = min(len(self), 2 * fetch)


def build_knowledge_base(
    directory: str | Path,
    cases: Sequence[Case],
    encoder: Encoder,
    *,
    thumbnail_size: int = 256,
    batch: int = 32,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> KnowledgeBase:
    """Encode cases and write them as a knowledge base, all or nothing.

    Everything is written beside ``directory`` under another name, and renamed once it
    is whole. A case whose image cannot be read is left out, and listed under
    ``skipped`` in the manifest.

    Parameters
    ----------
    thumbnail_size
        Longer side, px.
    batch
        How many cases are opened and encoded at a time.
    overwrite
        Replace a knowledge base that is there already; anything else there is never
        replaced.
    progress
        Called with (done, total) after each batch.

    Raises
    ------
    KnowledgeBaseError
        Where ``directory`` is taken, there are no cases or two of one id, or the encoder
        was not read from disk or gives no unit vectors.
    """
    directory = Path(directory)
    _check_free(directory, overwrite)
    if not encoder.fingerprint:
        raise KnowledgeBaseError(
            f'The encoder "{encoder.name}" was not read from disk, so that nothing could tell '
            "later whether a query is encoded alike. Save it, load it and build again."
        )
    twice = [i for i, n in Counter(case.document.id for case in cases).items() if n > 1]
    if twice:
        raise KnowledgeBaseError(
            f"{len(twice)} document ids come more than once, {twice[0]} for one. Give each its own."
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    tag = uuid.uuid4().hex[:8]
    partial = directory.with_name(f".{directory.name}.{tag}.partial")
    partial.mkdir()
    try:
        _write(partial, cases, encoder, thumbnail_size, batch, progress)
        if directory.exists():
            old = directory.with_name(f".{directory.name}.{tag}.old")
            os.replace(directory, old)
            try:
                os.replace(partial, directory)
            except OSError:
                os.replace(old, directory)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return KnowledgeBase.load(directory, encoder)


def _check_free(directory: Path, overwrite: bool) -> None:
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


def _write(
    directory: Path,
    cases: Sequence[Case],
    encoder: Encoder,
    thumbnail_size: int,
    batch: int,
    progress: Callable[[int, int], None],
) -> None:
    """Write the files of a knowledge base, the manifest last."""
    index = faiss.IndexScalarQuantizer(
        2 * encoder.dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    documents: list[Document] = []
    unreadable: list[str] = []
    files: list[str] = [DOCUMENTS, VECTORS]
    offset = THUMBNAIL_FILE_BYTES + 1  # the first thumbnail opens the first file
    with (directory / DOCUMENTS).open("w", encoding="utf-8") as lines:
        for start in range(0, len(cases), batch):
            read: list[tuple[Document, Image]] = []
            for case in cases[start : start + batch]:
                try:
                    read.append((case.document, load_image(case.image_path)))
                except ImageError as error:
                    logger.warning("Case %s is left out: %s", case.document.id, error)
                    unreadable.append(case.document.id)
            if read:
                index.add(_encode(read, encoder))
            for document, image in read:
                jpeg = thumbnail(image, thumbnail_size)
                if offset + len(jpeg) > THUMBNAIL_FILE_BYTES:
                    files.append(f"thumbnails-{len(files) - 2:03d}.bin")
                    offset = 0
                with (directory / files[-1]).open("ab") as stream:
                    stream.write(jpeg)
                line = {**asdict(document), "thumbnail": [files[-1], offset, len(jpeg)]}
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
                offset += len(jpeg)
                documents.append(document)
            progress(min(start + batch, len(cases)), len(cases))
    if not documents:
        raise KnowledgeBaseError(
            f"None of {len(cases)} cases could be built in. Check the data set and its images."
        )
    faiss.write_index(index, str(directory / VECTORS))
    sources = Counter((d.source, d.licence) for d in documents)
    manifest = {
        "format": FORMAT,
        "encoder": {"name": encoder.name, "fingerprint": encoder.fingerprint},
        "dimension": encoder.dimension,
        "count": len(documents),
        "vectors": "float16, report then image, inner product",
        "thumbnail_size": thumbnail_size,
        "sources": [{"source": s, "licence": b, "count": n} for (s, b), n in sources.items()],
        "skipped": {"image cannot be read": unreadable},
        "calibration": _calibration(index, documents),
        "files": {
            name: {
                "bytes": (directory / name).stat().st_size,
                "sha256": file_sha256(directory / name),
            }
            for name in files
        },
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def _encode(read: Sequence[tuple[Document, Image]], encoder: Encoder) -> FloatArray:
    """[t_d ; v_d] of documents, float32 [N, 2D]."""
    t_ND = encoder.texts([document.report for document, _ in read])
    v_ND = encoder.images([image for _, image in read])
    for vectors in (t_ND, v_ND):
        if not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
            raise KnowledgeBaseError(
                f'The encoder "{encoder.name}" gave vectors that are not of norm 1. '
                "Cosines need unit vectors: check its weights."
            )
    return np.concatenate([t_ND, v_ND], axis=1)


def _calibration(index: faiss.Index, documents: Sequence[Document]) -> dict[str, Any] | None:
    """Percentiles of cosines between random documents of different patients."""
    rng = np.random.default_rng(0)
    pairs = [
        (int(a), int(b))
        for a, b in rng.integers(0, len(documents), (CALIBRATION_PAIRS, 2))
        if documents[a].patient != documents[b].patient
    ]
    if not pairs:
        return None
    dimension = index.d // 2
    first, second = (index.reconstruct_batch(np.array(side)) for side in zip(*pairs, strict=True))
    images = first[:, dimension:]
    cosines = {
        "image_report": (images * second[:, :dimension]).sum(axis=1),
        "image_image": (images * second[:, dimension:]).sum(axis=1),
    }
    return {
        "pairs": len(pairs),
        "percentiles": list(PERCENTILES),
        **{
            name: [round(float(p), 6) for p in np.percentile(values, PERCENTILES)]
            for name, values in cosines.items()
        },
    }


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        later = manifest["format"] > FORMAT
        if not later:
            for key, kind in (("encoder", dict), ("files", dict), ("dimension", int)):
                if not isinstance(manifest[key], kind):
                    raise TypeError(f"{key} is not of type {kind.__name__}")
            manifest["count"], manifest["encoder"]["name"], manifest["encoder"]["fingerprint"]
    except OSError as error:
        raise KnowledgeBaseError(
            f"There is no knowledge base in {directory}: its {MANIFEST} cannot be read "
            f"({error.strerror}). Build one, or give the directory that holds one."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise KnowledgeBaseError(
            f"{path} is not the manifest of a knowledge base ({error!r}). Build it again."
        ) from error
    if later:
        raise KnowledgeBaseError(
            f"The knowledge base in {directory} has format {manifest['format']}, and this version "
            f"reads up to {FORMAT}. Update MR-RAG, or build it again with this version."
        )
    return manifest


def _check_files(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name in (DOCUMENTS, VECTORS, *files):
        path = directory / name
        entry = files.get(name)
        if entry is None or Path(name).name != name:
            problem = "is not declared as it should be"
        elif not path.is_file():
            problem = "is absent"
        elif path.stat().st_size != entry.get("bytes"):
            problem = f"has {path.stat().st_size} bytes instead of {entry.get('bytes')}"
        elif file_sha256(path) != entry.get("sha256"):
            problem = "has been changed (its SHA-256 differs)"
        else:
            continue
        raise KnowledgeBaseError(
            f"{name} of the knowledge base in {directory} {problem}. Copy it or build it again."
        )


def _read_documents(path: Path) -> tuple[list[Document], list[_Place]]:
    documents: list[Document] = []
    places: list[_Place] = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            values = json.loads(line)
            places.append(_Place(*values.pop("thumbnail")))
            documents.append(Document(**values))
    return documents, places
