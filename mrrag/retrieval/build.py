"""Build, resume, update and join knowledge bases in folders.

A build writes a :class:`~mrrag.retrieval.draft.Draft` and renames it once it is whole, so
that there is a whole knowledge base or none. A collection of Milvus is built by
:mod:`mrrag.retrieval.milvus_build`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from mrrag.data.records import Record
from mrrag.errors import KnowledgeBaseError
from mrrag.files import file_sha256, write_atomic
from mrrag.learnt import FILE as LEARNT
from mrrag.retrieval.address import MilvusCollection, Place, place_of
from mrrag.retrieval.draft import JOURNAL, PLAN, ROWS, STAMP_ROWS, Draft, thumbnail_name
from mrrag.retrieval.encoders import Encoder, describe_encoder
from mrrag.retrieval.fill import Job, OnProgress, check_any, check_buildable, fill, spread_of
from mrrag.retrieval.knowledge_base import DocumentTable, KnowledgeBase
from mrrag.retrieval.manifest import DOCUMENTS, FORMAT, MANIFEST, STAMPS, VECTORS
from mrrag.retrieval.open_images import FILES, ImageSource
from mrrag.retrieval.place import check_free, one_build, put_in_place, stopped_in_words
from mrrag.retrieval.vector_index import empty_index
from mrrag.types import FloatArray

__all__ = ["build_knowledge_base", "build_share"]


def build_knowledge_base(
    directory: str | Place,
    records: Sequence[Record],
    encoder: Encoder,
    *,
    thumbnail_size: int = 256,
    batch: int = 32,
    workers: int | None = None,
    overwrite: bool = False,
    update: bool = False,
    parts: Sequence[Place] = (),
    images: ImageSource = FILES,
    index: str = "FLAT",
    progress: OnProgress = lambda done, total: None,
) -> KnowledgeBase:
    """Encode records and write them as a knowledge base, all or nothing.

    Everything is written beside ``directory`` under another name, and renamed once it is
    whole. A build that was stopped, by whatever means, resumes from its last whole batch when
    it is called again with the same records, encoder and settings. Records without a report,
    or whose image cannot be read, are left out and listed under ``skipped`` in the manifest.

    Parameters
    ----------
    directory
        A folder, or a collection of Milvus (:mod:`mrrag.retrieval.milvus_build`).
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
    index
        Of a collection of Milvus: a key of :data:`mrrag.retrieval.milvus_client.INDEXES`.
    progress
        Called with (done, total) after each batch, and at the start of a resumed build.

    Raises
    ------
    KnowledgeBaseError
        Where ``directory`` is taken, there are no records or two with one id, another build
        is running there, the disk is full, or the encoder was not read from disk or gives no
        unit vectors.
    """
    directory = place_of(directory)
    before: list[Place] = [directory] if update else []
    known = [KnowledgeBase.load(place, encoder) for place in (*before, *parts)]
    check_buildable(records, encoder)
    job = Job(records, encoder, thumbnail_size, batch, known, images)
    replaces = {"overwrite": overwrite, "update": update}
    if isinstance(directory, MilvusCollection):
        from mrrag.retrieval.milvus_build import build_collection  # pymilvus may not be installed

        return build_collection(
            directory, job, index=index, workers=workers, progress=progress, **replaces
        )
    return _build_folder(directory, job, workers=workers, progress=progress, **replaces)


def _build_folder(
    directory: Path,
    job: Job,
    *,
    workers: int | None,
    overwrite: bool,
    update: bool,
    progress: OnProgress,
) -> KnowledgeBase:
    check_free(directory, overwrite or update)
    encoder = job.encoder
    hidden = directory.with_name(f".{directory.name}.partial")
    hidden.mkdir(parents=True, exist_ok=True)
    with one_build(directory), stopped_in_words(hidden):
        draft = Draft(hidden, job.digest(), 2 * encoder.dimension)
        try:
            fill(draft, job, workers, progress)
            draft.close()
            count = draft.step.documents
            check_any(count, job)
            index = write_index(draft)

            def vectors(numbers: npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
                t_ND, v_ND = np.split(index.reconstruct_batch(numbers), 2, axis=1)
                return t_ND, v_ND

            write_manifest(draft, _manifest_of(draft, job) | spread_of(count, vectors, encoder))
        except KnowledgeBaseError:
            shutil.rmtree(hidden)  # another attempt would end the same way
            raise
        finally:
            draft.abandon()
        if update and (directory / LEARNT).is_file():
            shutil.copy2(directory / LEARNT, hidden / LEARNT)
        put_in_place(hidden, directory)
    clear_draft(directory)
    return KnowledgeBase.load(directory, encoder)


def build_share(
    directory: str | Place,
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
    place = place_of(directory)
    shares = _place_of_shares(place, encoder, overwrite, update)
    number, count = share
    size = batch * -(-len(records) // (batch * count))
    starts = range(0, len(records), size)
    places = [shares / f"{n}-of-{count}" for n in range(len(starts))]
    kept = {name: settings[name] for name in settings if name != "index"}  # folders have one kind
    if number < len(places):
        build_knowledge_base(
            places[number],
            records[starts[number] : starts[number] + size],
            encoder,
            batch=batch,
            update=(places[number] / MANIFEST).is_file(),
            parts=[place] if update else [],
            progress=progress,
            **kept,
        )
    wait()
    if number:
        return None
    learnt = place / LEARNT if isinstance(place, Path) else None
    if update and learnt is not None and learnt.is_file():
        shutil.copy2(learnt, shares / LEARNT)
    built = build_knowledge_base(
        place,
        records,
        encoder,
        batch=batch,
        overwrite=overwrite or update,
        parts=places,
        **settings,
    )
    if learnt is not None and (shares / LEARNT).is_file():
        os.replace(shares / LEARNT, learnt)
    shutil.rmtree(shares)
    return built


def _place_of_shares(place: Place, encoder: Encoder, overwrite: bool, update: bool) -> Path:
    """Return the folder of the processes' shares; raise KnowledgeBaseError where none may be."""
    name = f".{place.name}.{encoder.fingerprint[:12]}.shares"
    if isinstance(place, Path):
        check_free(place, overwrite or update)
        return place.with_name(name)
    if update:
        raise KnowledgeBaseError(
            f"Several processes build {place} anew, and do not update it. Leave out --update, or "
            "`accelerate launch`."
        )
    return place.near / name


def write_index(draft: Draft) -> faiss.Index:
    """Build the index of a draft from its rows, and write it; return it."""
    directory = draft.directory
    index = empty_index(draft.width)
    with (directory / ROWS).open("rb") as rows:
        while block := rows.read(4096 * draft.width * 2):
            index.add(np.frombuffer(block, "<f2").reshape(-1, draft.width).astype(np.float32))
    # FAISS's own writer does not say why it failed.
    with (directory / VECTORS).open("wb") as stream:
        stream.write(faiss.serialize_index(index).data)
    stamps = np.fromfile(directory / STAMP_ROWS, dtype="<i8").reshape(-1, 2)
    np.save(directory / STAMPS, stamps)
    return index


def write_manifest(draft: Draft, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a draft, last of all, and wait until everything is on disk."""
    directory = draft.directory
    write_atomic(directory / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    for path in directory.iterdir():  # everything is on disk before it gets its name
        with path.open("rb") as written:
            os.fsync(written.fileno())


def clear_draft(directory: Path) -> None:
    """Remove the files that only a build needs."""
    for name in (PLAN, JOURNAL, ROWS, STAMP_ROWS):
        (directory / name).unlink(missing_ok=True)


def digests_of(draft: Draft) -> dict[str, Any]:
    """Return size and SHA-256 of each file that the manifest declares."""
    directory = draft.directory
    thumbnails = map(thumbnail_name, range(draft.step.thumbnail_file + 1))
    return {
        name: {
            "bytes": (directory / name).stat().st_size,
            "sha256": file_sha256(directory / name),
        }
        for name in (DOCUMENTS, VECTORS, *thumbnails)
    }


def _manifest_of(draft: Draft, job: Job) -> dict[str, Any]:
    directory = draft.directory
    documents = DocumentTable(directory / DOCUMENTS)
    sources = Counter((d.source, d.licence) for d in documents)
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
        "files": digests_of(draft),
    }
