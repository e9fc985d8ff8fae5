"""Build, resume, update and join knowledge bases.

A build writes a :class:`~mrrag.retrieval.draft.Draft` and renames it once it is whole, so
that there is a whole knowledge base or none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from mrrag.data.findings import FINDINGS
from mrrag.data.records import Record
from mrrag.errors import KnowledgeBaseError
from mrrag.files import file_sha256, write_atomic
from mrrag.learnt import FILE as LEARNT
from mrrag.retrieval.calibration import FEWEST, REFERENCE, spread
from mrrag.retrieval.draft import (
    JOURNAL,
    PLAN,
    ROWS,
    STAMP_ROWS,
    THUMBNAIL_FILE_BYTES,
    Draft,
    ReadDocument,
)
from mrrag.retrieval.encoders import Encoder, describe_encoder
from mrrag.retrieval.knowledge_base import DocumentTable, KnowledgeBase
from mrrag.retrieval.manifest import DOCUMENTS, FORMAT, MANIFEST, STAMPS, VECTORS
from mrrag.retrieval.open_images import FILES, ImageSource, OpenedImage, open_images, open_in_order
from mrrag.retrieval.place import check_free, one_build, put_in_place, stopped_in_words
from mrrag.types import FloatArray

__all__ = ["build_knowledge_base", "build_share"]

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]


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


def build_knowledge_base(
    directory: str | Path,
    records: Sequence[Record],
    encoder: Encoder,
    *,
    thumbnail_size: int = 256,
    batch: int = 32,
    workers: int | None = None,
    overwrite: bool = False,
    update: bool = False,
    parts: Sequence[Path] = (),
    images: ImageSource = FILES,
    progress: OnProgress = lambda done, total: None,
) -> KnowledgeBase:
    """Encode records and write them as a knowledge base, all or nothing.

    Everything is written beside ``directory`` under another name, and renamed once it is
    whole. A build that was stopped, by whatever means, resumes from its last whole batch when
    it is called again with the same records, encoder and settings. Records without a report,
    or whose image cannot be read, are left out and listed under ``skipped`` in the manifest.

    Parameters
    ----------
    thumbnail_size
        Longer side, px.
    batch
        Records that are opened and encoded together.
    workers
        Processes that open images; by default one per core, or none where there are few
        records.
    overwrite
        Replace an existing knowledge base; anything else is never replaced.
    update
        Bring the existing knowledge base in line with ``records``: missing ones are added,
        others are removed, and those with the same id, report and image file (by size and
        time) are taken over without being encoded again.
    parts
        Further knowledge bases from which unchanged records are taken over.
    images
        Where the records' images are: files, unless told otherwise.
    progress
        Called with (done, total) after each batch, and at the start of a resumed build.

    Raises
    ------
    KnowledgeBaseError
        Where ``directory`` is taken, there are no records or two with one id, another build
        is running there, the disk is full, or the encoder was not read from disk or gives no
        unit vectors.
    """
    directory = Path(directory)
    known = [KnowledgeBase.load(d, encoder) for d in ([directory] if update else []) + [*parts]]
    check_free(directory, overwrite or update)
    _check_buildable(records, encoder)
    job = Job(records, encoder, thumbnail_size, batch, known, images)
    hidden = directory.with_name(f".{directory.name}.partial")
    hidden.mkdir(parents=True, exist_ok=True)
    with one_build(directory), stopped_in_words(hidden):
        draft = Draft(hidden, job.digest(), encoder)
        try:
            _fill(draft, job, workers, progress)
            draft.close()
            _finish(draft, job)
        except KnowledgeBaseError:
            shutil.rmtree(hidden)  # another attempt would end the same way
            raise
        finally:
            draft.abandon()
        if update and (directory / LEARNT).is_file():
            shutil.copy2(directory / LEARNT, hidden / LEARNT)
        put_in_place(hidden, directory)
    for name in (PLAN, JOURNAL, ROWS, STAMP_ROWS):
        (directory / name).unlink(missing_ok=True)
    return KnowledgeBase.load(directory, encoder)


def build_share(
    directory: str | Path,
    records: Sequence[Record],
    encoder: Encoder,
    share: tuple[int, int],
    wait: Callable[[], object],
    *,
    batch: int = 32,
    overwrite: bool = False,
    update: bool = False,
    progress: OnProgress = lambda done, total: None,
    **settings: Any,
) -> KnowledgeBase | None:
    """Build a knowledge base by several processes that see the same disk.

    Each encodes a run of whole batches into a knowledge base of its own beside ``directory``,
    and resumes it if it was stopped. The first process then joins them; the result is equal,
    to the byte, to what one process would have built.

    Parameters
    ----------
    share
        This process's number, from 0, and the number of processes.
    wait
        Returns once every process has called it.

    Returns
    -------
    KnowledgeBase or None
        None in all processes but the first.
    """
    directory = Path(directory)
    check_free(directory, overwrite or update)
    number, count = share
    shares = directory.with_name(f".{directory.name}.{encoder.fingerprint[:12]}.shares")
    size = batch * -(-len(records) // (batch * count))
    starts = range(0, len(records), size)
    places = [shares / f"{n}-of-{count}" for n in range(len(starts))]
    if number < len(places):
        build_knowledge_base(
            places[number],
            records[starts[number] : starts[number] + size],
            encoder,
            batch=batch,
            update=(places[number] / MANIFEST).is_file(),
            parts=[directory] if update else [],
            progress=progress,
            **settings,
        )
    wait()
    if number:
        return None
    if update and (directory / LEARNT).is_file():
        shutil.copy2(directory / LEARNT, shares / LEARNT)
    built = build_knowledge_base(
        directory,
        records,
        encoder,
        batch=batch,
        overwrite=overwrite or update,
        parts=places,
        **settings,
    )
    if (shares / LEARNT).is_file():
        os.replace(shares / LEARNT, directory / LEARNT)
    shutil.rmtree(shares)
    return built


def _check_buildable(records: Sequence[Record], encoder: Encoder) -> None:
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


def _fill(draft: Draft, job: Job, workers: int | None, progress: OnProgress) -> None:
    """Encode what the draft lacks, a batch at a time, in the order of the records."""
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
    for rows, opened in zip(batches, open_in_order(open_batch, to_open, workers), strict=True):
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
        try:
            stamps = np.load(base.directory / STAMPS, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            stamps = np.empty((0, 2))
        if stamps.shape != (len(base), 2):
            logger.info("%s does not list its image files: all are encoded", base.directory)
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


def _finish(draft: Draft, job: Job) -> None:
    """Build the index from the rows, and write the manifest, last of all."""
    directory, count = draft.directory, draft.step.documents
    if not count:
        raise KnowledgeBaseError(
            f"None of {len(job.records)} cases could be used. Check the data set and its images."
        )
    index = faiss.IndexScalarQuantizer(
        draft.width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    with (directory / ROWS).open("rb") as rows:
        while block := rows.read(4096 * draft.width * 2):
            index.add(np.frombuffer(block, "<f2").reshape(-1, draft.width).astype(np.float32))
    # FAISS's own writer does not say why it failed.
    with (directory / VECTORS).open("wb") as stream:
        stream.write(faiss.serialize_index(index).data)
    stamps = np.fromfile(directory / STAMP_ROWS, dtype="<i8").reshape(-1, 2)
    np.save(directory / STAMPS, stamps)
    manifest = _manifest_of(draft, job) | _spread_of(index, job.encoder)
    write_atomic(directory / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    for path in directory.iterdir():  # everything is on disk before it gets its name
        with path.open("rb") as written:
            os.fsync(written.fileno())


def _spread_of(index: faiss.Index, encoder: Encoder) -> dict[str, Any]:
    """Return the manifest's spread of the similarities, by which the default weights divide."""
    if index.ntotal < FEWEST:
        return {}
    numbers = np.random.default_rng(0).permutation(index.ntotal)[:REFERENCE]
    t_ND, v_ND = np.split(index.reconstruct_batch(numbers), 2, axis=1)
    questions = encoder.texts([f"Is there {finding}?" for finding in FINDINGS])
    return {"spread": asdict(spread(t_ND, v_ND, questions))}


def _manifest_of(draft: Draft, job: Job) -> dict[str, Any]:
    directory = draft.directory
    documents = DocumentTable(directory / DOCUMENTS)
    sources = Counter((d.source, d.licence) for d in documents)
    thumbnails = map(draft.thumbnail_name, range(draft.step.thumbnail_file + 1))
    return {
        "format": FORMAT,
        # This directory lies beside its final place, so relative paths hold for both.
        "encoder": describe_encoder(job.encoder, directory),
        "dimension": job.encoder.dimension,
        "count": draft.step.documents,
        "patients": len(np.unique(documents.patients)),
        "studies": len(np.unique(documents.studies)),
        "splits": dict(Counter(d.split for d in documents)),
        "vectors": "float16, report then image, inner product",
        "thumbnail_size": job.thumbnail_size,
        "sources": [{"source": s, "licence": b, "count": n} for (s, b), n in sources.items()],
        "skipped": {"image cannot be read": [], **draft.skipped},
        "files": {
            name: {
                "bytes": (directory / name).stat().st_size,
                "sha256": file_sha256(directory / name),
            }
            for name in (DOCUMENTS, VECTORS, *thumbnails)
        },
    }
