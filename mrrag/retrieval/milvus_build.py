"""Build, resume, update and replace a knowledge base in a collection of Milvus.

Everything is written to a collection beside it, ``NAME_partial``, and renamed once it is whole.
Documents are inserted a few hundred at a time, and after each time a journal in the same
collection records how far it is. A build that was killed resumes from there, and ends with the
same documents, numbers and fingerprint as one that was not.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from mrrag.errors import KnowledgeBaseError
from mrrag.learnt import FILE as LEARNT
from mrrag.retrieval.address import MilvusCollection
from mrrag.retrieval.documents import ReadDocument, key_digest, words
from mrrag.retrieval.draft import Step
from mrrag.retrieval.encoders import Encoder, describe_encoder
from mrrag.retrieval.fill import Job, OnProgress, check_any, fill, spread_of
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.retrieval.manifest import FORMAT, MANIFEST
from mrrag.retrieval.milvus import MilvusBase, load_collection
from mrrag.retrieval.milvus_client import (
    DOCUMENTS,
    FIELDS,
    SECONDS,
    TEXTS,
    asked,
    connect,
    create,
    describe,
)
from mrrag.retrieval.milvus_notes import JOURNAL, Notes, notes_in, read_notes, write_note
from mrrag.retrieval.recall import K, recall_of
from mrrag.retrieval.survey import survey
from mrrag.types import FloatArray

__all__ = ["CollectionDraft", "build_collection", "check_free", "finish"]

INSERTED = 256  # documents of one insertion; their thumbnails have some 4 MB


class CollectionDraft:
    """An unfinished collection, filled up to where its journal says.

    Attributes
    ----------
    step : Step
        How far it is.
    skipped : mapping
        Ids of the records that were left out, by reason.
    """

    def __init__(
        self, place: MilvusCollection, plan: str, width: int, index: str, documents: int
    ) -> None:
        """Resume the build of this plan, or begin it for about so many documents."""
        self.place, self.width, self.index = place, width, index
        self.client, self._plan = connect(place), plan
        self.step, self.skipped = Step(), dict[str, list[str]]()
        self._waiting: list[dict[str, Any]] = []
        self._pairs: set[int] = set()
        journal = self._journal()
        if journal.get("plan") == plan:
            self.step, self.skipped = Step(**journal["step"]), journal["skipped"]
            self._forget_after(self.step.documents)
            return
        with asked(place):
            if self.client.has_collection(place.name):
                self.client.drop_collection(place.name)
        create(self.client, place, width, index, documents)

    def _journal(self) -> dict[str, Any]:
        with asked(self.place):
            if not self.client.has_collection(self.place.name):
                return {}
        describe(self.client, self.place)
        with asked(self.place):
            self.client.load_collection(self.place.name)
        journal: dict[str, Any] = notes_in(self.client, self.place).get(JOURNAL, {})
        return journal

    def _forget_after(self, documents: int) -> None:
        """Delete what the journal does not cover, and learn which reports were there before."""
        with asked(self.place):
            self.client.delete(
                self.place.name, filter=f"number >= {documents}", partition_name=DOCUMENTS
            )
        known = self.base({"count": documents}).documents
        for start in range(0, documents, 4096):
            numbers = np.arange(start, min(documents, start + 4096))
            studies, reports = known.studies[numbers], known.reports[numbers]
            self._pairs.update(map(_pair, studies.tolist(), reports.tolist()))

    def base(self, manifest: Mapping[str, Any]) -> MilvusBase:
        """Return what is there as a knowledge base, to be read."""
        known = {"dimension": self.width // 2, "index": {"type": self.index}, "files": {}}
        return MilvusBase(self.place, self.client, Notes(known | dict(manifest)))

    def add(self, read: Sequence[ReadDocument], vectors_ND: FloatArray) -> None:
        """Take documents with their vectors and thumbnails, to be inserted some at a time."""
        numbers = range(self.step.documents, self.step.documents + len(read))
        for number, item, vector_D in zip(numbers, read, vectors_ND, strict=True):
            self._waiting.append(self._row(number, item, vector_D))
        self.step = replace(self.step, documents=numbers.stop)

    def commit(self, cases: int, skipped: Mapping[str, Sequence[str]]) -> None:
        """Insert what waits, if it is enough, and record in the journal how far it is."""
        for reason, ids in skipped.items():
            self.skipped.setdefault(reason, []).extend(ids)
        self.step = replace(self.step, cases=cases)
        if len(self._waiting) >= INSERTED:
            self.flush()

    def flush(self) -> None:
        """Insert what waits, and record it."""
        with asked(self.place):
            for start in range(0, len(self._waiting), INSERTED):
                rows = self._waiting[start : start + INSERTED]
                self.client.insert(
                    self.place.name, rows, partition_name=DOCUMENTS, timeout=10 * SECONDS
                )
        self._waiting = []
        journal = {"plan": self._plan, "step": asdict(self.step), "skipped": self.skipped}
        write_note(self.client, self.place, JOURNAL, journal, self.width)

    def _row(self, number: int, item: ReadDocument, vector_D: FloatArray) -> dict[str, Any]:
        document = item.document
        keys = (document.id, document.patient, document.study, words(document.report))
        id_key, patient_key, study_key, report_key = map(key_digest, keys)
        pair = _pair(study_key, report_key)
        row = {
            "number": number,
            "vector": vector_D.astype(np.float16).astype(np.float32),
            **{name: getattr(document, name) for name in TEXTS},
            "thumbnail": base64.b64encode(item.jpeg).decode(),
            "id_key": id_key,
            "patient_key": patient_key,
            "study_key": study_key,
            "report_key": report_key,
            "first": pair not in self._pairs,
            "stamp_size": item.stamp[0],
            "stamp_time": item.stamp[1],
        }
        self._pairs.add(pair)
        for name, (_, most) in FIELDS.items():
            if most and len(row[name].encode()) > most:
                raise KnowledgeBaseError(
                    f"Document {document.id} has a {name} of {len(row[name].encode()):,} bytes. "
                    f"Milvus holds up to {most:,}. Shorten it, or give a smaller --thumbnail-size."
                )
        return row


def _pair(study_key: int, report_key: int) -> int:
    """Return one key of a study and a report."""
    return (3 * study_key + 5 * report_key) & (2**64 - 1)


def partial_of(place: MilvusCollection) -> MilvusCollection:
    """Return where a knowledge base is built."""
    return replace(place, name=f"{place.name}_partial")


def check_free(place: MilvusCollection, overwrite: bool) -> None:
    """Raise KnowledgeBaseError where a knowledge base may not be put."""
    client = connect(place)
    with asked(place):
        if not client.has_collection(place.name):
            return
    read_notes(place)  # refuses what is no knowledge base, which is never replaced
    if not overwrite:
        raise KnowledgeBaseError(
            f"There is a knowledge base at {place} already. Choose another collection, or ask for "
            "it to be overwritten."
        )


def build_collection(
    place: MilvusCollection,
    job: Job,
    *,
    index: str = "FLAT",
    workers: int | None = None,
    overwrite: bool = False,
    update: bool = False,
    progress: OnProgress = lambda done, total: None,
) -> KnowledgeBase:
    """Encode records and write them as a collection, all or nothing.

    The parameters and errors are those of
    :func:`mrrag.retrieval.build.build_knowledge_base`.
    """
    check_free(place, overwrite or update)
    plan = f"{job.digest()} {index}"
    draft = CollectionDraft(
        partial_of(place), plan, 2 * job.encoder.dimension, index, len(job.records)
    )
    # Milvus's threads and a forked process do not go together.
    fill(draft, job, workers, progress, method="spawn")
    draft.flush()
    check_any(draft.step.documents, job)
    manifest = {
        "format": FORMAT,
        "vectors": "float16, report then image, inner product",
        "thumbnail_size": job.thumbnail_size,
        "skipped": {"image cannot be read": [], **draft.skipped},
    }
    vectors = draft.base({"count": draft.step.documents}).vectors
    manifest |= spread_of(draft.step.documents, vectors, job.encoder)
    before = read_notes(place).others if update else {}
    others = {LEARNT: before[LEARNT]} if LEARNT in before else {}
    return finish(draft, place, manifest, others, job.encoder)


def finish(
    draft: CollectionDraft,
    place: MilvusCollection,
    manifest: Mapping[str, Any],
    others: Mapping[str, Any],
    encoder: Encoder,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MilvusBase:
    """Complete the manifest of a filled draft, and put it in place.

    Parameters
    ----------
    manifest
        What a pass over the documents does not tell.
    others
        Further notes, by name.
    """
    client, count = draft.client, draft.step.documents
    with asked(place):
        client.flush(draft.place.name, timeout=10 * SECONDS)
    _wait_for_index(draft)
    base = draft.base({"count": count})
    base.check_count()
    index: dict[str, Any] = {"type": draft.index}
    if draft.index != "FLAT":
        index["recall"] = recall_of(base, K)
    whole = {
        **manifest,
        "encoder": describe_encoder(encoder, place.near),
        "dimension": draft.width // 2,
        **survey(base.rows, count, draft.width, progress),
        "index": index,
    }
    for name, value in {**others, MANIFEST: whole}.items():
        write_note(client, draft.place, name, value, draft.width)
    _put_in_place(client, draft.place, place)
    return load_collection(place, encoder)


def _wait_for_index(draft: CollectionDraft) -> None:
    """Wait until a server has indexed all documents; Milvus Lite has when it has flushed."""
    while True:
        with asked(draft.place):
            state = draft.client.describe_index(draft.place.name, "vector") or {}
        if not int(state.get("pending_index_rows") or 0):
            return
        time.sleep(1)


def _put_in_place(client: Any, whole: MilvusCollection, place: MilvusCollection) -> None:
    """Give a whole collection its name, and drop the one that had it."""
    old = f"{place.name}_old"
    with asked(place):
        if client.has_collection(old):
            client.drop_collection(old)
        replaced = client.has_collection(place.name)
        if replaced:
            client.release_collection(place.name)
            client.rename_collection(place.name, old)
        client.release_collection(whole.name)
        client.rename_collection(whole.name, place.name)
        if replaced:
            client.drop_collection(old)
