"""Learn what depends on model and knowledge base: α, β, γ, the critical layers, IFA's setting.

Any data set with yes/no questions serves. Weights are learnt from training questions, choices
are made on validation questions, and no patient of the test split is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mrrag.data.records import Corpus, Question, Record
from mrrag.data.yes_no import UNPARSED, parse_yes_no
from mrrag.errors import CorpusError
from mrrag.files import json_sha256
from mrrag.forms import FORMS, GAP
from mrrag.learnt import default_weights, study_digest, write_learnt
from mrrag.pipeline import Pipeline
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.study.evaluation import EncodedItem, Ticker, answer_items, encode_items
from mrrag.study.metrics import paired_gain
from mrrag.training.adapter import (
    NEGATIVES,
    Adapter,
    Candidates,
    build_training_set,
    score_candidates,
    train_adapter,
    uncertainty,
)
from mrrag.training.data import DataSet, sample_patients
from mrrag.training.layers import (
    Sweep,
    Trial,
    best_of_forms,
    sweep_layers,
    try_steering,
)
from mrrag.training.loop import record_run
from mrrag.types import PLAIN, Weights

FEWEST = 5  # questions, in each of the two splits


@dataclass(frozen=True)
class QuestionSplit:
    """Yes/no questions for training and validation, grouped by case.

    ``left_out`` counts the questions that are in neither, by reason.
    """

    train: DataSet
    validation: DataSet
    left_out: dict[str, int]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the questions, their answers, patients and studies."""
        return json_sha256(
            [
                [part, record.document.patient, record.document.study, *asdict(question).values()]
                for part, data in (("train", self.train), ("validation", self.validation))
                for record, questions in zip(data.records, data.questions, strict=True)
                for question in questions
            ]
        )

    def describe(self) -> dict[str, object]:
        """Return what ``config.json`` says about the data of a run."""
        parts = {"train": self.train, "validation": self.validation}
        counts = {name: sum(map(len, data.questions)) for name, data in parts.items()}
        return {"questions": counts, "left_out": self.left_out, "fingerprint": self.fingerprint}


class _Row(NamedTuple):
    record: Record
    question: Question
    split: str

    @property
    def patient(self) -> str:
        """The patient by whom rows are split."""
        return self.record.document.patient


def split_questions(
    corpus: Corpus, base: KnowledgeBase, *, validation_share: float = 0.2
) -> QuestionSplit:
    """Split the yes/no questions of a corpus into training and validation, by patient.

    A patient with a question or an image in the test split is left out entirely. Where no
    question is in the validation split, ``validation_share`` of the patients are. Training
    questions about cases that the knowledge base does not hold come first: a question's own
    report is never retrieved, so for a case in the knowledge base there is one document less.

    Raises
    ------
    CorpusError
        If fewer than five questions are left for training or for validation.
    """
    rows, left_out = _usable_questions(corpus)
    chosen = {row.patient for row in rows if row.split == "validation"}
    if not chosen:
        chosen = sample_patients((row.patient for row in rows), validation_share)
    held = base.positions(ids={row.record.document.id for row in rows})
    indexed = {base.document(n).id for n in held}
    train = [row for row in rows if row.patient not in chosen]
    train.sort(key=lambda row: row.record.document.id in indexed)  # stable
    validation = [row for row in rows if row.patient in chosen]
    if min(len(train), len(validation)) < FEWEST:
        reasons = ", ".join(f"{n} {reason}" for reason, n in left_out.items())
        raise CorpusError(
            f"There are {len(train)} yes/no questions for training and {len(validation)} for "
            f"validation; at least {FEWEST} of each are needed. Left out: {reasons or 'none'}."
        )
    return QuestionSplit(_group(train), _group(validation), left_out)


def _usable_questions(corpus: Corpus) -> tuple[list[_Row], dict[str, int]]:
    """Return the yes/no questions outside the test split, and how many others, by reason."""
    by_id = {record.document.id: record for record in corpus.records}
    test = {record.document.patient for record in corpus.records if record.split == "test"}
    left_out: Counter[str] = Counter()
    closed: list[_Row] = []
    for question in corpus.questions:
        record = by_id.get(question.uid)
        if record is None:
            left_out["about no case"] += 1
            continue
        split = question.split or record.split or "train"
        if split == "test":
            test.add(record.document.patient)
        if question.answer_type != "closed" or parse_yes_no(question.answer) == UNPARSED:
            left_out["not answered by yes or no"] += 1
        else:
            closed.append(_Row(record, question, split))
    rows = [row for row in closed if row.patient not in test]
    left_out["of a patient who is held out"] = len(closed) - len(rows)
    return rows, {reason: n for reason, n in left_out.items() if n}


def _group(rows: Iterable[_Row]) -> DataSet:
    """Group questions by case, in the order of the first question about each."""
    groups: dict[str, tuple[Record, list[Question]]] = {}
    for record, question, _ in rows:
        groups.setdefault(record.document.id, (record, []))[1].append(question)
    records = tuple(record for record, _ in groups.values())
    return DataSet(records, tuple(tuple(questions) for _, questions in groups.values()))


def learn_weights(
    pipeline: Pipeline,
    split: QuestionSplit,
    folder: Path,
    path: Path,
    *,
    model: str,
    questions: int,
    k: int = 8,
    ticker: Ticker,
) -> str:
    """Learn α, β, γ, write them to ``path``, and return them with their uncertainty, in words.

    They become the ones in use only where plain RAG answers more validation questions rightly
    with them than with the default weights, by an interval that excludes zero. Otherwise they
    are recorded as not used.

    Parameters
    ----------
    folder
        The run folder. It stores the model's confidence with each candidate, so a stopped run
        resumes, and ends like an uninterrupted one.
    path
        A ``learnt.json``.
    model
        The name by which the model was requested.
    questions
        Maximum number of training and of validation questions.
    k
        Number of reports with which the number of negatives is chosen: the one with the
        highest validation accuracy of plain RAG.
    """
    items = _encode(pipeline, split.train, questions, ticker)
    held_out = _encode(pipeline, split.validation, questions, ticker)
    # The number of questions is in the key, because it decides the size of the last file.
    scores = folder / _run_key(pipeline, split.fingerprint, len(items))
    scored = score_candidates(pipeline, items, scores, ticker=ticker)
    trials = _try_negatives(pipeline, scored, held_out, k, ticker)
    best = max(trials, key=lambda trial: trial.accuracy)
    default = default_weights(path.parent)
    gain = _gain_over(pipeline, default, best, held_out, k, ticker)
    found = asdict(best.adapter) | {
        "used": gain[1] > 0,
        "gain_over_default": gain,
        "positives": "the document with which the model is most confident of the right answer",
        "negatives": best.negatives,
        "trials": [trial.summary() for trial in trials],
        "validation_questions": len(held_out),
        **_provenance(pipeline, split, [*items, *held_out]),
    }
    learnt = replace(pipeline.learnt, weights=best.adapter.weights if gain[1] > 0 else default)
    write_learnt(path, learnt, model=model, adapter=found)
    record_run(
        folder,
        config={"questions": len(items), "k": k, **_made_of(pipeline)},
        seed=0,
        data=split.describe(),
        rows=[trial.metrics() for trial in trials],
        x="negatives",
        lines=("alpha", "beta", "gamma", "validation_accuracy"),
        errors={name: f"{name}_half" for name in ("alpha", "beta", "gamma")},
    )
    return f"{uncertainty(best.adapter)} {_describe_gain(gain, default, len(held_out))}"


def _gain_over(
    pipeline: Pipeline,
    default: Weights,
    best: _NegativesTrial,
    held_out: Sequence[EncodedItem],
    k: int,
    ticker: Ticker,
) -> tuple[float, float, float]:
    """Return the gain of learnt over default weights in plain RAG's accuracy: mean, interval."""
    before = _right(pipeline, held_out, default, k, "default weights", ticker)
    patients = np.array([item.case.document.patient for item in held_out])
    return paired_gain(before, best.right_Q, patients)


def _right(
    pipeline: Pipeline,
    items: Sequence[EncodedItem],
    weights: Weights,
    k: int,
    label: str,
    ticker: Ticker,
) -> npt.NDArray[np.bool_]:
    """Return which questions plain RAG answers rightly with these weights, [Q]."""
    (outcome,) = answer_items(pipeline, items, weights, [PLAIN], k=k, label=label, ticker=ticker)
    right_Q: npt.NDArray[np.bool_] = outcome.predicted == np.array([item.gold for item in items])
    return right_Q


def _describe_gain(gain: tuple[float, float, float], default: Weights, questions: int) -> str:
    mean, low, high = (100 * value for value in gain)
    values = ", ".join(f"{weight:.2f}" for weight in astuple(default))
    text = (
        f"Plain RAG answers {mean:+.1f} % of {questions} validation questions more rightly than "
        f"with the default weights {values} (95 % interval {low:+.1f} to {high:+.1f}). "
    )
    if low > 0:
        return text + "The learnt weights are used."
    return text + "This is not settled, so the learnt weights are recorded and the default is used."


@dataclass(frozen=True)
class _NegativesTrial:
    """The adapter for one number of negatives, and plain RAG's accuracy with it."""

    negatives: int
    adapter: Adapter
    right_Q: npt.NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return float(self.right_Q.mean())

    def summary(self) -> dict[str, object]:
        """Return its entry in ``learnt.json``."""
        return {
            "negatives": self.negatives,
            "weights": asdict(self.adapter.weights),
            "validation_accuracy": self.accuracy,
        }

    def metrics(self) -> dict[str, object]:
        """Return its row in ``metrics.csv``."""
        weights = asdict(self.adapter.weights)
        row = {"negatives": self.negatives, "validation_accuracy": self.accuracy, **weights}
        for name, (low, high) in zip(weights, self.adapter.intervals, strict=True):
            row |= {f"{name}_low": low, f"{name}_high": high, f"{name}_half": (high - low) / 2}
        return row | {"loss": self.adapter.loss, "validation_loss": self.adapter.validation_loss}


def _try_negatives(
    pipeline: Pipeline,
    scored: Candidates,
    held_out: Sequence[EncodedItem],
    k: int,
    ticker: Ticker,
) -> list[_NegativesTrial]:
    """Train an adapter for each number of negatives, and measure it on validation questions."""
    most = int((~np.isnan(scored.confidence_QN)).sum(1).min()) - 1
    if most < 1:
        raise CorpusError(
            "The knowledge base has fewer than two documents of other patients for some question. "
            "Index more cases."
        )
    trials = []
    for negatives in sorted({min(m, most) for m in NEGATIVES}):
        adapter = train_adapter(build_training_set(scored, negatives))
        label = f"m = {negatives}"
        right_Q = _right(pipeline, held_out, adapter.weights, k, label, ticker)
        trials.append(_NegativesTrial(negatives, adapter, right_Q))
    return trials


def learn_layers(
    pipeline: Pipeline,
    split: QuestionSplit,
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
    """Find the critical layers and IFA's setting on validation questions, and write them.

    The setting becomes the one in use only where its gain over plain RAG has an interval that
    excludes zero. Otherwise it is recorded as not used, and IFA stays as it was.

    The parameters are those of :func:`learn_weights` and of
    :func:`mrrag.training.layers.sweep_layers`. Return the result in words.
    """
    items = _encode(pipeline, split.validation, questions, ticker)
    weights = pipeline.learnt.weights
    tried = {name: form.strengths for name, form in FORMS.items()}
    settings = [len(items), astuple(weights), k, window, stride, tried, GAP]
    measured = folder / _run_key(pipeline, split.fingerprint, *settings)
    sweep = sweep_layers(
        pipeline, items, weights, measured, k=k, window=window, stride=stride, ticker=ticker
    )
    noise = sorted({0, k // 4, k // 2, 3 * k // 4})
    layer_sets = _layer_sets(sweep)
    trials = try_steering(
        pipeline, items, weights, layer_sets, measured, k=k, noise=noise, ticker=ticker
    )
    best = max(trials, key=lambda trial: sum(trial.gains))
    settled = best.interval[1] > 0
    found = asdict(sweep) | {
        "used": settled,
        "best": asdict(best),
        "best_of_forms": {form: asdict(t) for form, t in best_of_forms(trials).items()},
        "split": "validation",
        "critical": list(sweep.critical()),
        "noise": noise,
        "trials": [asdict(trial) for trial in trials],
        **_provenance(pipeline, split, items),
    }
    learnt = replace(pipeline.learnt, steering=best.steering) if settled else pipeline.learnt
    write_learnt(path, learnt, model=model, sweep=found)
    rows = zip(sweep.centres, sweep.drops, sweep.errors, strict=True)
    record_run(
        folder,
        config={
            "questions": len(items),
            "k": k,
            "window": window,
            "stride": stride,
            **_made_of(pipeline),
        },
        seed=0,
        data=split.describe(),
        rows=[{"layer": n, "drop": drop, "standard_error": error} for n, drop, error in rows],
        x="layer",
        lines=("drop",),
        errors={"drop": "standard_error"},
    )
    return _describe_layers(sweep, best, noise, len(items), len(trials))


def _layer_sets(sweep: Sweep) -> list[tuple[int, ...]]:
    """Return the sets to steer.

    These are the critical layers, the one and two windows of most drop, and, since layers can
    stand in for one another, all layers and either half of them.
    """
    order = sorted(range(len(sweep.centres)), key=lambda n: -sweep.drops[n])
    sets = {sweep.within(order[:n]) for n in (1, 2)} | {sweep.critical()}
    half = sweep.layers // 2
    spans = (range(sweep.layers), range(half), range(half, sweep.layers))
    return sorted(filter(None, sets | {tuple(span) for span in spans}))


def _describe_layers(
    sweep: Sweep, best: Trial, noise: Sequence[int], questions: int, trials: int
) -> str:
    critical = ", ".join(map(str, sweep.critical())) or "none above two standard errors"
    layers = ", ".join(map(str, best.layers))
    mean, low, high = best.interval
    gains = ", ".join(f"{g:+d} with {n}" for g, n in zip(best.gains, noise, strict=True))
    return (
        "Critical layers (the largest drop of P(right answer), and those of at least half of it): "
        f"{critical}. IFA: form {best.form}, strength {best.strength:g} in layers {layers}, rows "
        f"{best.rows}. Gain in right answers over plain RAG on {questions} questions, by number "
        f"of irrelevant reports: {gains}. It is the best of {trials} trials, so the gain is "
        f"optimistic. On average it is {100 * mean:+.1f} % of the questions (95 % interval "
        f"{100 * low:+.1f} to {100 * high:+.1f}). "
        + (
            "It is used."
            if low > 0
            else "This is not settled, so it is recorded, and IFA stays as it was."
        )
    )


def _encode(pipeline: Pipeline, data: DataSet, questions: int, ticker: Ticker) -> list[EncodedItem]:
    return encode_items(pipeline, data.records, data.questions, limit=questions, ticker=ticker)


def _made_of(pipeline: Pipeline) -> dict[str, str]:
    """Return the fingerprints of the model and the knowledge base."""
    return {
        "model": pipeline.backbone.fingerprint,
        "knowledge_base": pipeline.knowledge_base.fingerprint,
    }


def _run_key(pipeline: Pipeline, *settings: object) -> str:
    """Return a digest of all that the stored results of a run depend on."""
    return json_sha256([*_made_of(pipeline).values(), *settings])[:16]


def _provenance(
    pipeline: Pipeline, split: QuestionSplit, items: Sequence[EncodedItem]
) -> Mapping[str, object]:
    """Return the part of ``learnt.json`` that says from what it was learnt."""
    return {
        "learnt_from": split.describe(),
        "studies": sorted({study_digest(item.case.document.study) for item in items}),
        **_made_of(pipeline),
    }
