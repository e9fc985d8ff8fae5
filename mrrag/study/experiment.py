"""An experiment: the same questions, answered in every way that is to be compared.

Answers are stored in the run folder as they come, each under a digest of everything that
produced it. An experiment that was stopped goes on where it was and ends as an
undisturbed one does; another experiment on the same questions answers only what is new.
Questions are answered in fixed batches, so that not even rounding differs.

It does not know why a way is compared (:mod:`mrrag.study.plan`), nor what the answers are
worth (:mod:`mrrag.study.tables`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrrag.data.records import Question, Record
from mrrag.data.yes_no import UNPARSED, parse_yes_no
from mrrag.errors import SettingsError
from mrrag.files import file_sha256, json_sha256
from mrrag.pipeline import Pipeline
from mrrag.retrieval.mcr import MAX_K, fused_query
from mrrag.retrieval.selection import cut_off
from mrrag.study.answer_file import StoredAnswer, append_answers, open_answers, read_answers
from mrrag.study.evaluation import (
    BATCH,
    EncodedItem,
    Ticker,
    answer_ways,
    encode_questions,
    evidence_for,
    no_ticker,
    noise_seed,
)
from mrrag.study.noise import hard_noise
from mrrag.study.plan import Cell, Plan, ReadingPlan
from mrrag.types import FloatArray, Retrieved, Way, Weights

FORMAT = 3  # version of what a key is made of
ANSWERS = "answers.csv"


# Questions


@dataclass(frozen=True)
class EvalItem:
    """A yes/no question about a case; ``image`` is the SHA-256 of its image file."""

    question: Question
    case: Record
    gold: int
    image: str


@dataclass(frozen=True)
class Questions:
    """The questions of an experiment.

    Attributes
    ----------
    split : str
        The split that they come from, or "all".
    skipped : mapping
        Number of other questions, by the reason why they are not asked.
    fingerprint : str
        Digest of all that is asked, to tell whether two runs used the same data.
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
        Compared with a question's own split where it has one, else with its case's. "all"
        chooses every split; None means "test" where there is one, else "all".
    limit
        Maximum number of questions.
    skipped
        What the reader of the file left out, by reason.

    Raises
    ------
    SettingsError
        If no question is left.
    """
    by_id = {case.document.id: case for case in cases}
    place = {name: n for n, name in enumerate(by_id)}
    known = [q for q in questions if q.uid in by_id]
    splits = {q.split or by_id[q.uid].split for q in known}
    split = split or ("test" if "test" in splits else "all")
    counts = Counter({reason: len(rows) for reason, rows in (skipped or {}).items()})
    chosen: list[tuple[Question, Record]] = []
    for question in sorted(known, key=lambda q: place[q.uid]):
        case = by_id[question.uid]
        reason = _unsuitable(question, question.split or case.split, split)
        if not reason and limit is not None and len(chosen) >= limit:
            reason = f"beyond the first {limit}"
        if reason:
            counts[reason] += 1
        else:
            chosen.append((question, case))
    if not chosen:
        others = ", ".join(f"{n} {reason}" for reason, n in counts.items())
        raise SettingsError(
            f"There is no yes/no question in the split {split} ({others or 'none at all'}). "
            f"Splits: {', '.join(sorted(s or 'none' for s in splits)) or 'none'}."
        )
    digests = {path: file_sha256(path) for path in {case.image_path for _, case in chosen}}
    items = tuple(
        EvalItem(question, case, parse_yes_no(question.answer), digests[case.image_path])
        for question, case in chosen
    )
    rows = [[i.question.qid, i.question.question, i.gold, i.image, *_ids(i.case)] for i in items]
    return Questions(items, split, counts, json_sha256(rows))


def one_each(cases: Sequence[Record], questions: Sequence[Question]) -> list[Question]:
    """Return one yes/no question of each patient, drawn by a fixed seed, in their order.

    Questions about one patient are not independent, as a test of risk takes them to be.
    """
    patient_of = {case.document.id: case.document.patient for case in cases}
    by_patient: dict[str, list[int]] = {}
    for n, question in enumerate(questions):
        closed = question.answer_type == "closed" and parse_yes_no(question.answer) != UNPARSED
        if closed and question.uid in patient_of:
            by_patient.setdefault(patient_of[question.uid], []).append(n)
    rng = np.random.default_rng(0)
    chosen = sorted(int(rng.choice(numbers)) for numbers in by_patient.values())
    return [questions[n] for n in chosen]


def _unsuitable(question: Question, own_split: str, split: str) -> str:
    """Return why a question is not asked, or an empty string."""
    if split not in ("all", own_split):
        return "of another split"
    if question.answer_type != "closed":
        return "open: the answer is not yes or no"
    if parse_yes_no(question.answer) == UNPARSED:
        return "closed, but the answer begins with neither yes nor no"
    return ""


def _ids(case: Record) -> tuple[str, str]:
    return case.document.patient, case.document.study


# Answers

# Options that came later, which are left out of a key where they have no effect: the answers of
# older run folders keep their keys.
ADDED = {"relevance": "own", "shift": None, "writing": False}


def _without_added(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if name not in ADDED or value != ADDED[name]}


@dataclass(frozen=True)
class Experiment:
    """Questions, and the ways in which each is answered.

    Attributes
    ----------
    cells : tuple of Cell
        Of the plan; see :func:`mrrag.study.plan.cells_of`.
    made_of : mapping
        What tells the model, the encoder and the knowledge base apart.
    """

    questions: Questions
    plan: Plan
    cells: tuple[Cell, ...]
    made_of: Mapping[str, str]

    def seed(self, i: int) -> int:
        """Return the seed of the i-th question's random reports and shuffled order."""
        return noise_seed(self.plan.seed, i)

    def shown(self, i: int) -> EvalItem:
        """Return the item whose picture stands in as the i-th question's wrong one.

        It is the first of another patient, half of the questions further on.
        """
        items = self.questions.items
        own = items[i].case.document.patient
        for n in range(len(items)):
            other = items[(i + len(items) // 2 + n) % len(items)]
            if other.case.document.patient != own and other.image != items[i].image:
                return other
        raise SettingsError(
            "All questions are about one patient, so there is no other patient's picture to show. "
            "Ask more questions, or leave the wrong picture out with --no-wrong-picture."
        )

    def keys(self, reading: ReadingPlan, way: Way) -> list[str]:
        """Return each question's key for a way of answering: the digest of what decides it."""
        tokens = self.plan.answer_tokens
        how = [asdict(part, dict_factory=_without_added) for part in (reading, way)]
        head = json_sha256([FORMAT, dict(self.made_of), *how, tokens])
        drawn = reading.noise > 0 or "shuffled" in (reading.order, reading.relevance)
        keys = []
        for i, item in enumerate(self.questions.items):
            shown = self.shown(i) if reading.wrong_picture else item
            asked = [shown.image, item.question.question, *_ids(item.case)]
            seed = [self.seed(i)] if drawn else []
            keys.append(json_sha256([head, *asked, item.case.document.report, *seed])[:32])
        return keys


Ways = dict[ReadingPlan, dict[Way, list[str]]]  # with the keys of the answers


def answer_all(
    pipeline: Pipeline,
    experiment: Experiment,
    folder: Path,
    *,
    part: int = 0,
    parts: int = 1,
    batch: int = BATCH,
    ticker: Ticker = no_ticker,
) -> None:
    """Answer what the run folder does not hold yet.

    Parameters
    ----------
    part, parts
        This process's share of the questions; each process writes a file of its own.
    batch
        Number of questions answered together; another number may round differently.

    Raises
    ------
    SettingsError
        If another process writes to the file, or the disk is full.
    """
    ways: Ways = {}
    for cell in experiment.cells:
        steerings = ways.setdefault(cell.reading, {})
        if cell.steering not in steerings:
            steerings[cell.steering] = experiment.keys(cell.reading, cell.steering)
    items = experiment.questions.items
    folder.mkdir(parents=True, exist_ok=True)
    with open_answers(folder / (f"answers-{part}.csv" if part else ANSWERS)) as stream:
        stored = read_answers(folder).keys()
        starts = range(0, len(items), batch)
        chunks = [range(s, min(s + batch, len(items))) for s in starts][part::parts]
        for chunk in ticker(chunks, len(chunks), "answering"):
            missing = _missing(ways, chunk, stored)
            if not missing:
                continue
            encoded = encode_questions(
                pipeline, [(items[i].case, items[i].question) for i in chunk]
            )
            seeds = [experiment.seed(i) for i in chunk]
            wrong: list[EncodedItem] = []
            if any(reading.wrong_picture for reading in missing):
                wrong = _with_wrong_pictures(pipeline, experiment, chunk, encoded)
            for reading, steerings in missing.items():
                answers = _answer_chunk(
                    pipeline,
                    wrong if reading.wrong_picture else encoded,
                    seeds,
                    reading,
                    [*steerings],
                    experiment.plan.answer_tokens,
                )
                for keys, row in zip(steerings.values(), answers, strict=True):
                    append_answers(
                        stream,
                        (
                            (key, item.question.qid, answer)
                            for key, item, answer in zip(keys, encoded, row, strict=True)
                            if key not in stored
                        ),
                    )


def _with_wrong_pictures(
    pipeline: Pipeline, experiment: Experiment, chunk: range, encoded: Sequence[EncodedItem]
) -> list[EncodedItem]:
    """Return the same questions with what the model reads of another patient's picture."""
    others = encode_questions(
        pipeline,
        [(experiment.shown(i).case, experiment.questions.items[i].question) for i in chunk],
    )
    return [
        replace(item, features=other.features, grid=other.grid)
        for item, other in zip(encoded, others, strict=True)
    ]


def _missing(ways: Ways, chunk: range, stored: Collection[str]) -> Ways:
    """Return the ways in which some question of the chunk is not answered, with its keys."""
    missing: Ways = {}
    for reading, steerings in ways.items():
        for steering, keys in steerings.items():
            row = [keys[i] for i in chunk]
            if any(key not in stored for key in row):
                missing.setdefault(reading, {})[steering] = row
    return missing


def _answer_chunk(
    pipeline: Pipeline,
    items: Sequence[EncodedItem],
    seeds: Sequence[int],
    reading: ReadingPlan,
    how: Sequence[Way],
    answer_tokens: int,
) -> list[list[StoredAnswer]]:
    """Answer a batch with one reading, which is prefilled once, in each way."""
    evidence = [
        evidence_of(pipeline, item, reading, seed) for item, seed in zip(items, seeds, strict=True)
    ]
    ranks = own_ranks(pipeline, items, reading.weights)
    outcomes = answer_ways(pipeline, items, evidence, how, max_new_tokens=answer_tokens)
    return [
        [
            StoredAnswer(" ".join(text.split()), float(p), tuple(r.document.id for r in read), rank)
            for text, p, read, rank in zip(
                outcome.texts, outcome.p_yes, evidence, ranks, strict=True
            )
        ]
        for outcome in outcomes
    ]


def evidence_of(
    pipeline: Pipeline, item: EncodedItem, reading: ReadingPlan, seed: int
) -> tuple[Retrieved, ...]:
    """Retrieve what a question's prompt holds, in the order of reading."""
    if reading.weights is None:
        return ()
    base, weights, k, noise = pipeline.knowledge_base, reading.weights, reading.k, reading.noise
    if noise and reading.kind != "random":
        retrieved = hard_noise(base, item, weights, k, noise, reading.kind, seed)
    else:
        retrieved = evidence_for(pipeline, item, weights, k, noise, seed)
    return as_read(retrieved, weights, reading, seed)


def as_read(
    retrieved: Sequence[Retrieved],
    weights: Weights,
    reading: ReadingPlan,
    seed: int = 0,
    pinned_ids: Collection[str] = (),
) -> tuple[Retrieved, ...]:
    """Return which of the retrieved reports a prompt holds, with which λ and in which order.

    ``weights`` are those by which they were retrieved; pinned reports are never cut off.
    """
    kept = cut_off(retrieved, weights, reading.cut, reading.cut_at, pinned_ids=pinned_ids)
    return _in_order(_with_relevance(kept, reading.relevance, seed), reading.order, seed)


def _with_relevance(
    retrieved: tuple[Retrieved, ...], whose: str, seed: int
) -> tuple[Retrieved, ...]:
    """Give each report its own λ, another's, or the mean; all else stays as it is."""
    if whose == "own" or not retrieved:
        return retrieved
    given = np.array([(r.relevance, r.gap) for r in retrieved])
    if whose == "shuffled":
        given = given[np.random.default_rng(seed).permutation(len(given))]
    else:
        given = np.broadcast_to(given.mean(0), given.shape)
    return tuple(
        replace(r, relevance=relevance, gap=gap)
        for r, (relevance, gap) in zip(retrieved, given.tolist(), strict=True)
    )


def _in_order(retrieved: tuple[Retrieved, ...], order: str, seed: int) -> tuple[Retrieved, ...]:
    if order == "reversed":
        return retrieved[::-1]
    if order == "shuffled":
        permutation = np.random.default_rng(seed).permutation(len(retrieved))
        return tuple(retrieved[i] for i in permutation)
    return retrieved


# The rank of a study's own report


def own_ranks(
    pipeline: Pipeline, items: Sequence[EncodedItem], weights: Weights | None
) -> list[int | None]:
    """Return the rank that each study's own report would have in the knowledge base.

    The score is α's and γ's part alone, since the report's image is the query's own. The
    report competes with every document of other patients and studies; ranks are exact up
    to :data:`MAX_K`, and ``MAX_K + 1`` stands for all beyond. None where there is no
    report, or neither weight counts.
    """
    if weights is None or not (weights.alpha or weights.gamma):
        return [None] * len(items)
    weights = Weights(weights.alpha, 0.0, weights.gamma)
    base = pipeline.knowledge_base
    ranks: list[int | None] = []
    for item, own_D in zip(items, _own_vectors(pipeline, items), strict=True):
        if own_D is None:
            ranks.append(None)
            continue
        patient, study = _ids(item.case)
        query = fused_query(item.vectors, weights)
        excluded = base.positions(patients={patient}, studies={study})
        score = float(query[: base.dimension].astype(np.float64) @ own_D)
        _, others = base.search(query, min(MAX_K, len(base) - len(excluded)), excluded)
        ranks.append(1 + int(np.sum(others > score)))
    return ranks


def _own_vectors(pipeline: Pipeline, items: Sequence[EncodedItem]) -> list[FloatArray | None]:
    """Return the vector of each case's report; without one, of its study's first document."""
    base = pipeline.knowledge_base
    reports = sorted({item.case.document.report for item in items} - {""})
    t_ND = pipeline.encoder.texts(reports) if reports else np.empty((0, base.dimension))
    vectors: list[FloatArray | None] = []
    encoded = dict(zip(reports, t_ND, strict=True))
    for item in items:
        own_D = encoded.get(item.case.document.report)
        if own_D is None:
            stored = base.vectors(base.positions(studies={item.case.document.study}))[0]
            own_D = stored[0] if len(stored) else None
        vectors.append(own_D)
    return vectors
