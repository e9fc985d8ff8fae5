"""An experiment: the same questions, answered in every way that is to be compared.

Answers are kept in the run folder, each under a digest of all that made it, as they
come: an experiment that was stopped goes on where it was and ends as an undisturbed one
does, and another experiment on the same questions answers only what is new in it.
Questions are answered in fixed batches, so that not even rounding differs.

It does not know why a way is asked (:mod:`mrrag.study.plan`), nor what the answers are worth
(:mod:`mrrag.study.tables`).
"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mrrag.data.corpus import Question, Record
from mrrag.data.yes_no import UNPARSED, parse_yes_no
from mrrag.errors import SettingsError
from mrrag.files import file_sha256
from mrrag.pipeline import Pipeline
from mrrag.retrieval.mcr import MAX_K, fused_query
from mrrag.study.evaluation import (
    BATCH,
    EncodedItem,
    Ticker,
    answer_ways,
    encode_questions,
    evidence_for,
    no_ticker,
)
from mrrag.study.plan import Cell, Plan, ReadingPlan
from mrrag.types import Retrieved, Steering, Weights

FORMAT = 2  # of what an answer's digest is made of
ANSWERS = "answers.csv"
COLUMNS = ("key", "qid", "p_yes", "own_rank", "documents", "text")


# The questions


@dataclass(frozen=True)
class EvalItem:
    """A yes/no question about a case; ``image`` is the SHA-256 of its file."""

    question: Question
    case: Record
    gold: int
    image: str


@dataclass(frozen=True)
class Questions:
    """Those that are asked, and how many others there were, by reason.

    ``fingerprint`` is of all that is asked, so that two runs can be told to be on the
    same data.
    """

    items: tuple[EvalItem, ...]
    split: str
    skipped: Mapping[str, int]
    fingerprint: str


def choose_questions(
    cases: Sequence[Record],
    questions: Sequence[Question],
    split: str | None = None,
    limit: int | None = None,
    skipped: Mapping[str, Sequence[str]] | None = None,
) -> Questions:
    """Choose the yes/no questions of a split, in the order of the cases.

    Parameters
    ----------
    split
        A question's own where it has one, else its case's; "all" is no choice, and None is
        "test" where there is one, else "all".
    skipped
        What the reader of the file left out, by reason.

    Raises
    ------
    SettingsError
        Where no question is left.
    """
    by_id = {case.document.id: case for case in cases}
    place = {name: n for n, name in enumerate(by_id)}
    known = [q for q in questions if q.uid in by_id]
    splits = {q.split or by_id[q.uid].split for q in known}
    split = split or ("test" if "test" in splits else "all")
    counts = {reason: len(rows) for reason, rows in (skipped or {}).items()}

    def skip(reason: str) -> None:
        counts[reason] = counts.get(reason, 0) + 1

    chosen: list[tuple[Question, Record, int]] = []
    for question in sorted(known, key=lambda q: place[q.uid]):
        case = by_id[question.uid]
        gold = parse_yes_no(question.answer)
        if split not in ("all", question.split or case.split):
            skip("of another split")
        elif question.answer_type != "closed":
            skip("open: the answer is not yes or no")
        elif gold == UNPARSED:
            skip("closed, but the answer begins with neither yes nor no")
        elif limit is not None and len(chosen) >= limit:
            skip(f"beyond the first {limit}")
        else:
            chosen.append((question, case, gold))
    if not chosen:
        said = ", ".join(f"{n} {reason}" for reason, n in counts.items())
        raise SettingsError(
            f"There is no yes/no question in the split {split} ({said or 'none at all'}). "
            f"Splits: {', '.join(sorted(s or 'none' for s in splits)) or 'none'}."
        )
    digests = {path: file_sha256(path) for path in {case.image_path for _, case, _ in chosen}}
    posed = tuple(EvalItem(q, case, gold, digests[case.image_path]) for q, case, gold in chosen)
    rows = [[p.question.qid, p.question.question, p.gold, p.image, *_who(p.case)] for p in posed]
    return Questions(posed, split, counts, _digest(rows))


def _who(case: Record) -> tuple[str, str]:
    return case.document.patient, case.document.study


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# The answers


@dataclass(frozen=True)
class StoredAnswer:
    """One answer, as it is kept.

    Attributes
    ----------
    p_yes : float
        P(yes) / (P(yes) + P(no)) at the first token.
    documents : tuple of str
        What was read, in the order of reading.
    own_rank : int or None
        Where the study's own report would stand among the knowledge base's, by α and γ
        alone (its image is the query's); one beyond :data:`MAX_K` is as far as it is
        followed. None where it has none, or neither weight counts.
    """

    text: str
    p_yes: float
    documents: tuple[str, ...]
    own_rank: int | None


def keys_of(
    questions: Questions,
    reading: ReadingPlan,
    steering: Steering,
    plan: Plan,
    made_of: Mapping[str, str],
) -> list[str]:
    """A digest an answer: of the question, its image, the way, and what the parts are."""
    way = [FORMAT, dict(made_of), asdict(reading), asdict(steering), plan.answer_tokens]
    head = _digest(way)
    drawn = reading.noise > 0 or reading.order == "shuffled"
    return [
        _digest(
            [head, p.image, p.question.question, *_who(p.case), p.case.document.report]
            + ([_seed(plan, i)] if drawn else [])
        )[:32]
        for i, p in enumerate(questions.items)
    ]


def _seed(plan: Plan, i: int) -> int:
    return plan.seed * 1_000_003 + i


def answer_all(
    pipeline: Pipeline,
    questions: Questions,
    cells: Sequence[Cell],
    plan: Plan,
    folder: Path,
    *,
    made_of: Mapping[str, str],
    part: int = 0,
    parts: int = 1,
    batch: int = BATCH,
    ticker: Ticker = no_ticker,
) -> None:
    """Answer what the run folder does not hold yet.

    Parameters
    ----------
    made_of
        What tells the model, the encoder and the knowledge base apart.
    part, parts
        Which share of the questions is this process's; each writes a file of its own.
    batch
        Questions answered together; another number may round otherwise.

    Raises
    ------
    SettingsError
        Where another process writes there, or there is no room left.
    """
    ways: dict[ReadingPlan, dict[Steering, list[str]]] = {}
    for cell in cells:
        steers = ways.setdefault(cell.reading, {})
        if cell.steering not in steers:
            steers[cell.steering] = keys_of(questions, cell.reading, cell.steering, plan, made_of)
    folder.mkdir(parents=True, exist_ok=True)
    with _appending(folder / (f"answers-{part}.csv" if part else ANSWERS)) as stream:
        known = read_answers(folder).keys()
        starts = range(0, len(questions.items), batch)
        chunks = [range(s, min(s + batch, len(questions.items))) for s in starts][part::parts]
        for chunk in ticker(chunks, len(chunks), "answering"):
            asked: list[EncodedItem] = []
            for reading, steers in ways.items():
                missing = [
                    (steering, [keys[i] for i in chunk])
                    for steering, keys in steers.items()
                    if any(keys[i] not in known for i in chunk)
                ]
                if not missing:
                    continue
                if not asked:
                    pairs = [
                        (p.case, p.question) for p in questions.items[chunk.start : chunk.stop]
                    ]
                    asked = encode_questions(pipeline, pairs)
                seeds = [_seed(plan, i) for i in chunk]
                answered = _answer_chunk(
                    pipeline, asked, reading, [steering for steering, _ in missing], seeds, plan
                )
                _append(
                    stream,
                    [
                        (key, item.question.qid, given)
                        for (_, keys), row in zip(missing, answered, strict=True)
                        for key, item, given in zip(keys, asked, row, strict=True)
                        if key not in known
                    ],
                )


def _answer_chunk(
    pipeline: Pipeline,
    asked: Sequence[EncodedItem],
    reading: ReadingPlan,
    steers: Sequence[Steering],
    seeds: Sequence[int],
    plan: Plan,
) -> list[list[StoredAnswer]]:
    """A batch of questions with one reading, which is prefilled once, and several steers."""
    evidence: list[tuple[Retrieved, ...]] = [()] * len(asked)
    ranks: list[int | None] = [None] * len(asked)
    if reading.weights is not None:
        evidence = [
            _ordered(
                evidence_for(pipeline, item, reading.weights, reading.k, reading.noise, seed),
                reading.order,
                seed,
            )
            for item, seed in zip(asked, seeds, strict=True)
        ]
        ranks = own_ranks(pipeline, asked, reading.weights)
    outcomes = answer_ways(pipeline, asked, evidence, steers, max_new_tokens=plan.answer_tokens)
    return [
        [
            StoredAnswer(
                " ".join(text.split()), float(p), tuple(r.document.id for r in found), rank
            )
            for text, p, found, rank in zip(
                outcome.texts, outcome.p_yes, evidence, ranks, strict=True
            )
        ]
        for outcome in outcomes
    ]


def _ordered(found: tuple[Retrieved, ...], order: str, seed: int) -> tuple[Retrieved, ...]:
    if order == "reversed":
        return found[::-1]
    if order == "shuffled":
        return tuple(found[i] for i in np.random.default_rng(seed).permutation(len(found)))
    return found


def own_ranks(
    pipeline: Pipeline, asked: Sequence[EncodedItem], weights: Weights
) -> list[int | None]:
    """Where each study's own report would stand; see :class:`StoredAnswer`.

    The report is the case's, or where it has none what the knowledge base holds of the
    study. It competes with every document of other studies and patients.
    """
    weights = Weights(weights.alpha, 0.0, weights.gamma)
    if not weights.alpha and not weights.gamma:
        return [None] * len(asked)
    base = pipeline.knowledge_base
    reports = sorted({item.case.document.report for item in asked} - {""})
    t_ND = pipeline.encoder.texts(reports) if reports else np.empty((0, base.dimension))
    encoded = dict(zip(reports, t_ND, strict=True))
    ranks: list[int | None] = []
    for item in asked:
        patient, study = _who(item.case)
        own = encoded.get(item.case.document.report)
        if own is None:
            held = base.vectors(base.positions(studies={study}))[0]
            own = held[0] if len(held) else None
        if own is None:
            ranks.append(None)
            continue
        query = fused_query(item.vectors, weights)
        excluded = base.positions(patients={patient}, studies={study})
        score = float(query[: base.dimension].astype(np.float64) @ own)
        _, others = base.search(query, min(MAX_K, len(base) - len(excluded)), excluded)
        ranks.append(1 + int(np.sum(others > score)))
    return ranks


# The file of answers


@contextmanager
def _appending(path: Path) -> Iterator[BinaryIO]:
    """The file, to be written by this process alone, without a last line that was cut off."""
    with path.open("ab+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                f"Another experiment is writing to {path}. Wait for it, or name another folder "
                "with --folder."
            ) from None
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.seek(0, os.SEEK_END)
        if not stream.tell():
            _write(stream, [COLUMNS])
        yield stream


def _append(stream: BinaryIO, rows: Sequence[tuple[str, str, StoredAnswer]]) -> None:
    _write(
        stream,
        [
            [
                key,
                " ".join(qid.split()),
                repr(g.p_yes),
                "" if g.own_rank is None else g.own_rank,
                json.dumps(g.documents),
                g.text,
            ]
            for key, qid, g in rows
        ],
    )


def _write(stream: BinaryIO, rows: Sequence[Sequence[Any]]) -> None:
    """Write whole lines, which are on disk when this returns."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    try:
        stream.write(text.getvalue().encode())
        stream.flush()
        os.fsync(stream.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise SettingsError(
            f"There is no room left for {stream.name} ({error.strerror}). What was answered is "
            "kept there, and the same command goes on from it once there is."
        ) from None


def read_answers(folder: Path) -> dict[str, StoredAnswer]:
    """All answers in a run folder, by digest; a line that was cut off is none."""
    answers: dict[str, StoredAnswer] = {}
    for path in sorted(folder.glob("answers*.csv")):
        whole = path.read_bytes()
        lines = whole[: whole.rfind(b"\n") + 1].decode("utf-8", errors="replace").split("\n")
        for row in csv.reader(lines[1:]):
            try:
                key, _, p_yes, rank, documents, text = row
                given = StoredAnswer(
                    text, float(p_yes), tuple(json.loads(documents)), int(rank) if rank else None
                )
            except ValueError:
                continue  # not a line of ours, or damaged: it is answered again
            answers.setdefault(key, given)
    return answers
