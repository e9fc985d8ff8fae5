"""Fill an unfinished knowledge base: open, encode and add what it lacks, batch by batch.

It knows neither where the knowledge base is nor how it is stored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mrrag.data.findings import FINDINGS
from mrrag.data.records import Record
from mrrag.errors import KnowledgeBaseError
from mrrag.retrieval.calibration import FEWEST, REFERENCE, spread
from mrrag.retrieval.documents import ReadDocument, sampled
from mrrag.retrieval.draft import THUMBNAIL_FILE_BYTES, Step
from mrrag.retrieval.encoders import Encoder
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.retrieval.manifest import FORMAT
from mrrag.retrieval.open_images import FILES, ImageSource, OpenedImage, open_images, open_in_order
from mrrag.types import FloatArray

__all__ = ["Job", "Unfinished", "check_any", "check_buildable", "fill", "spread_of"]

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]


class Unfinished(Protocol):
    """An unfinished knowledge base, to which documents are added batch by batch.

    Attributes
    ----------
    step : Step
        How far it is; after an interruption, what was whole.
    """

    step: Step

    def add(self, read: Sequence[ReadDocument], vectors_ND: FloatArray) -> None:
        """Add documents with their vectors; :meth:`commit` makes them count."""

    def commit(self, cases: int, skipped: Mapping[str, Sequence[str]]) -> None:
        """Record that so many records were read, and which of the last ones were left out."""


@dataclass(frozen=True)
class Job:
    """What is to be built, and from what.

    Attributes
    ----------
    records : sequence of Record
        In the order of the knowledge base.
    encoder : Encoder
        Of reports and images.
    thumbnail_size : int
        Longer side, px.
    batch : int
        Records that are opened and encoded together.
    known : sequence of KnowledgeBase
        From which unchanged records are taken over without being encoded again.
    images : ImageSource
        Where the records' images are.
    """

    records: Sequence[Record]
    encoder: Encoder
    thumbnail_size: int
    batch: int
    known: Sequence[KnowledgeBase] = ()
    images: ImageSource = FILES

    def digest(self) -> str:
        """Return SHA-256 over all that decides what is written, except the images."""
        settings = [FORMAT, self.encoder.fingerprint, self.thumbnail_size, self.batch]
        settings += [THUMBNAIL_FILE_BYTES, *(base.fingerprint for base in self.known)]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for record in self.records:
            row = [*asdict(record.document).values(), str(record.image_path)]
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()


def check_buildable(records: Sequence[Record], encoder: Encoder) -> None:
    if not encoder.fingerprint:
        raise KnowledgeBaseError(
            f'The encoder "{encoder.name}" was not read from disk, so a query could later be '
            "encoded otherwise unnoticed. Save it, load it and build again."
        )
    counts = Counter(record.document.id for record in records)
    twice = [i for i, n in counts.items() if n > 1]
    if twice:
        raise KnowledgeBaseError(
            f"{len(twice)} document ids occur more than once, such as {twice[0]}. Ids must be "
            "unique."
        )


def check_any(documents: int, job: Job) -> None:
    """Raise KnowledgeBaseError where no record could be used."""
    if not documents:
        raise KnowledgeBaseError(
            f"None of {len(job.records)} cases could be used. Check the data set and its images."
        )


def fill(
    draft: Unfinished,
    job: Job,
    workers: int | None,
    progress: OnProgress,
    *,
    method: str | None = None,
) -> None:
    """Encode what the draft lacks, a batch at a time, in the order of the records.

    ``method`` is how worker processes are started (``multiprocessing``'s name of it).
    """
    done, total = draft.step.cases, len(job.records)
    if done:
        progress(done, total)
    place_of = _places_to_keep(job)
    batches = [
        [(record, place_of(record)) for record in job.records[i : i + job.batch]]
        for i in range(done, total, job.batch)
    ]
    to_open = [
        [r.image_path for r, place in rows if place is None and r.document.report.strip()]
        for rows in batches
    ]
    if workers is None:
        workers = min(os.cpu_count() or 1, sum(map(len, to_open)) // 64)
    open_batch = partial(open_images, job.encoder.prepare, job.thumbnail_size, job.images)
    for rows, opened in zip(
        batches, open_in_order(open_batch, to_open, workers, method), strict=True
    ):
        batch = _read_batch(rows, iter(opened), job.images)
        if batch.read:
            draft.add(batch.read, _vectors_of(batch, job.encoder))
        done += len(rows)
        draft.commit(done, batch.skipped)
        progress(done, total)


Place = tuple[KnowledgeBase, int]


@dataclass(frozen=True)
class _Batch:
    """The documents of one batch, and where their vectors come from.

    ``pixels`` are of documents to be encoded, by their place in the batch; ``kept`` has the
    knowledge base and the number there of those that are taken over.
    """

    read: list[ReadDocument] = field(default_factory=list)
    pixels: dict[int, FloatArray] = field(default_factory=dict)
    kept: dict[int, Place] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)


def _read_batch(
    rows: Sequence[tuple[Record, Place | None]],
    opened: Iterator[OpenedImage],
    images: ImageSource,
) -> _Batch:
    batch = _Batch()
    for record, place in rows:
        document = record.document
        if not document.report.strip():
            batch.skipped.setdefault("no report", []).append(document.id)
        elif place is not None:
            base, number = place
            batch.kept[len(batch.read)] = place
            stamp = images.stamp(record.image_path)
            batch.read.append(ReadDocument(document, base.thumbnail(number), stamp))
        elif (item := next(opened)).pixels_CYX is None:
            logger.warning("Case %s is left out: %s", document.id, item.error)
            batch.skipped.setdefault("image cannot be read", []).append(document.id)
        else:
            batch.pixels[len(batch.read)] = item.pixels_CYX
            batch.read.append(ReadDocument(document, item.jpeg, item.stamp))
    return batch


def _vectors_of(batch: _Batch, encoder: Encoder) -> FloatArray:
    """Return [t_d ; v_d] of a batch's documents, float32 [N, 2D]."""
    vectors_ND = np.empty((len(batch.read), 2 * encoder.dimension), dtype=np.float32)
    if batch.pixels:
        reports = [batch.read[n].document.report for n in batch.pixels]
        pixels_NCYX = np.stack(list(batch.pixels.values()))
        vectors_ND[list(batch.pixels)] = _encode(reports, pixels_NCYX, encoder)
    for n, (base, number) in batch.kept.items():
        vectors_ND[n] = np.concatenate(base.vectors([number]), axis=1)[0]
    return vectors_ND


def _places_to_keep(job: Job) -> Callable[[Record], Place | None]:
    """Return a function that finds where a record stands unchanged, or None."""
    bases: list[tuple[KnowledgeBase, npt.NDArray[np.int64], dict[str, int]]] = []
    for base in job.known:
        if base.manifest.get("thumbnail_size") != job.thumbnail_size:
            continue
        stamps = base.stamps()
        if stamps is None:
            logger.info("%s does not list its image files: all are encoded", base.place)
            continue
        bases.append((base, stamps, {d.id: i for i, d in enumerate(base.documents)}))

    def place_of(record: Record) -> Place | None:
        stamp = None
        for base, stamps, numbers in bases:
            i = numbers.get(record.document.id)
            if i is None or base.document(i).report != record.document.report:
                continue
            stamp = stamp or job.images.stamp(record.image_path)
            if stamp[0] >= 0 and stamp == tuple(stamps[i].tolist()):
                return base, i
        return None

    return place_of


def _encode(reports: Sequence[str], pixels_NCYX: FloatArray, encoder: Encoder) -> FloatArray:
    """Encode documents as [t_d ; v_d], float32 [N, 2D]."""
    t_ND = encoder.texts(reports)
    v_ND = encoder.encode_prepared(pixels_NCYX)
    for vectors in (t_ND, v_ND):
        if not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
            raise KnowledgeBaseError(
                f'The encoder "{encoder.name}" gave vectors that are not of norm 1. '
                "Cosines need unit vectors: check its weights."
            )
    return np.concatenate([t_ND, v_ND], axis=1)


def spread_of(
    count: int, vectors: Callable[[Any], tuple[FloatArray, FloatArray]], encoder: Encoder
) -> dict[str, Any]:
    """Return the manifest's spread of the similarities, by which the default weights divide.

    ``vectors`` returns those of reports and images, float32 [N, D] each, by document number.
    """
    if count < FEWEST:
        return {}
    t_ND, v_ND = vectors(sampled(np.random.default_rng(0), count, REFERENCE))
    questions = encoder.texts([f"Is there {finding}?" for finding in FINDINGS])
    return {"spread": asdict(spread(t_ND, v_ND, questions))}
