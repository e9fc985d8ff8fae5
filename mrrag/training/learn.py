"""What is learnt for a model on a knowledge base: α, β, γ, the critical layers, IFA's setting.

From the yes/no questions of any data set. What is learnt comes from training questions,
what is chosen from validation ones; nothing here sees a patient who is held out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

import numpy as np

from mrrag.data.corpus import Corpus, Question, Record
from mrrag.data.yes_no import UNPARSED, parse_yes_no
from mrrag.errors import CorpusError
from mrrag.learnt import study_digest, write_learnt
from mrrag.pipeline import Pipeline
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.model.steering import GAP
from mrrag.study.evaluation import EncodedItem, Ticker, read_questions_of, run
from mrrag.training.adapter import (
    NEGATIVES,
    build_training_set,
    score_candidates,
    train_adapter,
    uncertainty,
)
from mrrag.training.data import held_out_share
from mrrag.training.layers import STRENGTHS, sweep_layers, try_steering
from mrrag.training.loop import record_run
from mrrag.types import PLAIN, Steering

FEWEST = 5  # questions to learn from, and to choose by
Posed = tuple[tuple[Record, tuple[Question, ...]], ...]


@dataclass(frozen=True)
class LearningSet:
    """Yes/no questions to learn from, and to choose by, case after case.

    ``left_out`` counts those that are neither, by reason.
    """

    train: Posed
    validation: Posed
    left_out: dict[str, int]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the questions, their answers, and whom they are about."""
        rows = [
            [part, case.document.patient, case.document.study, *asdict(question).values()]
            for part, posed in (("train", self.train), ("validation", self.validation))
            for case, questions in posed
            for question in questions
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def describe(self) -> dict[str, object]:
        """For a run's record."""
        counts = {p: sum(len(q) for _, q in getattr(self, p)) for p in ("train", "validation")}
        return {"questions": counts, "left_out": self.left_out, "fingerprint": self.fingerprint}


def learning_set(
    read: Corpus, base: KnowledgeBase, *, validation_share: float = 0.2
) -> LearningSet:
    """Share the questions of a data set out, by patient.

    A patient with a question or an image in the test split is held out whole. Where no
    question is for validation, those of a share of the patients are. Training questions
    about cases that the knowledge base does not hold come first: the others' own reports
    are never retrieved for them either, but leave it the smaller.

    Raises
    ------
    CorpusError
        Where fewer than five questions are left to learn from, or to choose by.
    """
    by_id = {case.document.id: case for case in read.records}
    left_out: Counter[str] = Counter()
    closed: list[tuple[Record, Question, str]] = []
    held_out = {case.document.patient for case in read.records if case.split == "test"}
    for question in read.questions:
        case = by_id.get(question.uid)
        if case is None:
            left_out["about no case"] += 1
            continue
        split = question.split or case.split or "train"
        if split == "test":
            held_out.add(case.document.patient)
        if question.answer_type != "closed" or parse_yes_no(question.answer) == UNPARSED:
            left_out["not answered by yes or no"] += 1
        else:
            closed.append((case, question, split))
    known = [row for row in closed if row[0].document.patient not in held_out]
    left_out["of a patient who is held out"] = len(closed) - len(known)
    chosen = {c.document.patient for c, _, split in known if split == "validation"}
    if not chosen:
        chosen = held_out_share((c.document.patient for c, _, _ in known), validation_share)
    held = base.positions(ids={c.document.id for c, _, _ in known})
    inside = {base.document(n).id for n in held}
    parts: dict[bool, dict[str, list[Question]]] = {True: {}, False: {}}
    for case, question, _ in known:
        part = parts[case.document.patient in chosen]
        part.setdefault(case.document.id, []).append(question)
    train = sorted(parts[False], key=lambda uid: uid in inside)  # stable: else as in the data
    posed = [
        tuple((by_id[uid], tuple(rows[uid])) for uid in order)
        for rows, order in ((parts[False], train), (parts[True], list(parts[True])))
    ]
    lessons = LearningSet(posed[0], posed[1], {k: n for k, n in left_out.items() if n})
    counts = [sum(len(q) for _, q in part) for part in posed]
    if min(counts) < FEWEST:
        said = ", ".join(f"{n} {reason}" for reason, n in lessons.left_out.items())
        raise CorpusError(
            f"There are {counts[0]} yes/no questions to learn from and {counts[1]} to choose by; "
            f"{FEWEST} of each are needed at least. Left out: {said or 'none'}."
        )
    return lessons


def encoded(pipeline: Pipeline, posed: Posed, questions: int, ticker: Ticker) -> list[EncodedItem]:
    """Up to so many of these questions, encoded."""
    return read_questions_of(
        pipeline,
        [case for case, _ in posed],
        [rows for _, rows in posed],
        limit=questions,
        ticker=ticker,
    )


def study_digests(items: Sequence[EncodedItem]) -> list[str]:
    """Of the studies that these questions are about, for ``learnt.json``."""
    return sorted({study_digest(item.case.document.study) for item in items})


def _made_of(pipeline: Pipeline) -> dict[str, str]:
    """What was asked, and over which documents."""
    return {
        "model": pipeline.backbone.fingerprint,
        "knowledge_base": pipeline.knowledge_base.fingerprint,
    }


def _digest(made_of: dict[str, str], *asked: object) -> str:
    """Of all that what is kept of a run depends on."""
    return hashlib.sha256(json.dumps([*made_of.values(), *asked]).encode()).hexdigest()[:16]


def learn_weights(
    pipeline: Pipeline,
    lessons: LearningSet,
    folder: Path,
    path: Path,
    *,
    model: str,
    questions: int,
    k: int = 8,
    ticker: Ticker,
) -> str:
    """Learn α, β, γ into the ``learnt.json`` at ``path``; returns how sure they are, in words.

    Parameters
    ----------
    folder
        The run folder, which keeps the model's confidence with each candidate: a run that
        was stopped asks only what is missing, and ends as an undisturbed one.
    model
        The name under which the model was asked for.
    k
        With how many reports the number of negatives is chosen: the one with which plain
        RAG answers most validation questions rightly.
    """
    items = encoded(pipeline, lessons.train, questions, ticker)
    held_out = encoded(pipeline, lessons.validation, questions, ticker)
    made_of = _made_of(pipeline)
    # By their number too: the last part of fewer questions is a short one.
    kept_in = folder / _digest(made_of, lessons.fingerprint, len(items))
    scored = score_candidates(pipeline, items, kept_in, ticker=ticker)
    gold = np.array([item.gold for item in held_out])
    most = int((~np.isnan(scored.confidence_QN)).sum(1).min()) - 1
    if most < 1:
        raise CorpusError(
            "The knowledge base has fewer than two documents of other patients for some question. "
            "Index more cases."
        )
    trials = []
    for negatives in sorted({min(m, most) for m in NEGATIVES}):
        adapter = train_adapter(build_training_set(scored, negatives))
        (said,) = run(
            pipeline,
            held_out,
            adapter.weights,
            [PLAIN],
            k=k,
            label=f"m = {negatives}",
            ticker=ticker,
        )
        trials.append((negatives, adapter, float(np.mean(said.said == gold))))
    negatives, adapter, _ = max(trials, key=lambda trial: trial[2])
    rows: list[dict[str, object]] = []
    for m, tried, accuracy in trials:
        row: dict[str, object] = {"negatives": m, "validation_accuracy": accuracy}
        row |= asdict(tried.weights)
        for name, (low, high) in zip(asdict(tried.weights), tried.intervals, strict=True):
            row |= {f"{name}_low": low, f"{name}_high": high, f"{name}_half": (high - low) / 2}
        rows.append(row | {"loss": tried.loss, "validation_loss": tried.validation_loss})
    found = asdict(adapter) | {
        "positives": "the document with which the model is most confident of the right answer",
        "negatives": negatives,
        "trials": [
            {"negatives": m, "weights": asdict(a.weights), "validation_accuracy": accuracy}
            for m, a, accuracy in trials
        ],
        "validation_questions": len(held_out),
        "learnt_from": lessons.describe(),
        "studies": study_digests([*items, *held_out]),
        **made_of,
    }
    kept = replace(pipeline.learnt, weights=adapter.weights)
    write_learnt(path, kept, model=model, adapter=found)
    record_run(
        folder,
        config={"questions": len(items), "k": k, **made_of},
        seed=0,
        data=lessons.describe(),
        rows=rows,
        x="negatives",
        lines=("alpha", "beta", "gamma", "validation_accuracy"),
        errors={name: f"{name}_half" for name in ("alpha", "beta", "gamma")},
    )
    return uncertainty(adapter)


def learn_layers(
    pipeline: Pipeline,
    lessons: LearningSet,
    folder: Path,
    path: Path,
    *,
    model: str,
    questions: int,
    k: int = 8,
    window: int = 1,
    stride: int = 1,
    ticker: Ticker,
) -> str:
    """Find the critical layers and IFA's setting, on validation questions, into ``path``.

    The parameters are those of :func:`learn_weights` and of
    :func:`mrrag.training.layers.sweep_layers`. Returns what was found, in words.
    """
    items = encoded(pipeline, lessons.validation, questions, ticker)
    weights = pipeline.learnt.weights
    made_of = _made_of(pipeline)
    asked = [lessons.fingerprint, len(items), astuple(weights), k, window, stride, STRENGTHS, GAP]
    kept_in = folder / _digest(made_of, *asked)
    sweep = sweep_layers(
        pipeline, items, weights, kept_in, k=k, window=window, stride=stride, ticker=ticker
    )
    critical = sweep.critical()
    order = sorted(range(len(sweep.centres)), key=lambda n: -sweep.drops[n])
    sets = {sweep.within(order[:n]) for n in (1, 2)} | {critical}
    noise = sorted({0, k // 4, k // 2, 3 * k // 4})
    trials = try_steering(
        pipeline,
        items,
        weights,
        sorted(filter(None, sets)),
        kept_in,
        k=k,
        noise=noise,
        ticker=ticker,
    )
    best = max(trials, key=lambda t: sum(t.gains))
    found = asdict(sweep) | {
        "split": "validation",
        "critical": list(critical),
        "noise": noise,
        "trials": [asdict(t) for t in trials],
        "learnt_from": lessons.describe(),
        "studies": study_digests(items),
        **made_of,
    }
    steering = Steering(best.strength, best.layers, best.rows, form=best.form)
    kept = replace(pipeline.learnt, steering=steering)
    write_learnt(path, kept, model=model, sweep=found)
    record_run(
        folder,
        config={"questions": len(items), "k": k, "window": window, "stride": stride, **made_of},
        seed=0,
        data=lessons.describe(),
        rows=[
            {"layer": layer, "drop": drop, "standard_error": error}
            for layer, drop, error in zip(sweep.centres, sweep.drops, sweep.errors, strict=True)
        ],
        x="layer",
        lines=("drop",),
        errors={"drop": "standard_error"},
    )
    gains = ", ".join(f"{g:+d} with {n}" for g, n in zip(best.gains, noise, strict=True))
    return (
        f"Critical layers (the largest drop of P(right answer), and half of it or more): "
        f"{', '.join(map(str, critical)) or 'none that is above two errors'}. "
        f"IFA: form {best.form}, strength {best.strength:g} in layers "
        f"{', '.join(map(str, best.layers))}, rows {best.rows}; right answers of {len(items)} "
        f"against plain RAG by irrelevant reports: {gains}. It "
        f"was the best of {len(trials)} trials, so the gain is flattered."
    )
