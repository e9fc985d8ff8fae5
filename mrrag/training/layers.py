"""The critical layers: those where blocking Reports→Question harms the right answer most.

In a window of layers around each layer, attention from the question's rows to the reports'
columns is blocked, and the relative drop of the right answer's probability is averaged over
the questions that plain RAG answers correctly. The strength of IFA, its form and the rows that
count as the question, which the paper does not state, are then chosen on the same split. The
test split is never used here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mrrag.errors import SettingsError
from mrrag.forms import FORMS
from mrrag.model.answering import answer_batch
from mrrag.model.prefill import prefill_batch
from mrrag.model.steering import DEFAULT_ROWS, ROWS, Block
from mrrag.pipeline import Pipeline
from mrrag.study.evaluation import (
    BATCH,
    EncodedItem,
    Ticker,
    answer_items,
    branch_of,
    evidence_for,
    no_ticker,
)
from mrrag.study.metrics import paired_gain
from mrrag.training.loop import cached
from mrrag.types import PLAIN, Steering, Weights


@dataclass(frozen=True)
class Sweep:
    """The mean relative drop of P(right answer), and its standard error, by blocked window.

    ``centres`` are the middle layers of the windows, ``layers`` is the depth of the model.
    """

    centres: tuple[int, ...]
    drops: tuple[float, ...]
    errors: tuple[float, ...]
    window: int
    layers: int
    questions: int

    def blocked(self, n: int) -> range:
        """Return the layers of the n-th window."""
        start = self.centres[n] - self.window // 2
        return range(max(0, start), min(self.layers, start + self.window))

    def within(self, numbers: Iterable[int]) -> tuple[int, ...]:
        """Return the layers of these windows, ascending."""
        return tuple(sorted({layer for n in numbers for layer in self.blocked(n)}))

    def critical(self, share: float = 0.5) -> tuple[int, ...]:
        """Return the layers of windows whose drop is over two errors and ``share`` of the top."""
        least = share * max(self.drops)
        pairs = enumerate(zip(self.drops, self.errors, strict=True))
        return self.within(n for n, (drop, err) in pairs if drop >= least and drop > 2 * err)


def sweep_layers(
    pipeline: Pipeline,
    items: Sequence[EncodedItem],
    weights: Weights,
    folder: Path,
    *,
    k: int,
    window: int = 1,
    stride: int = 1,
    ticker: Ticker = no_ticker,
) -> Sweep:
    """Block Reports→Question in ``window`` layers around every ``stride``-th layer in turn.

    Results are stored in ``folder``, which must be specific to all these arguments. A stopped
    run resumes from them.

    Raises
    ------
    SettingsError
        If the window or the stride does not fit the model, or plain RAG answers no question
        correctly.
    """
    layers = pipeline.backbone.layers
    if not (1 <= window <= layers and 1 <= stride <= layers):
        raise SettingsError(
            f"A window of {window} and a stride of {stride} were asked for; this model has "
            f"{layers} layers. Choose from 1 to {layers} for each."
        )
    centres = tuple(range(0, layers, stride))
    sweep = Sweep(centres, (), (), window, layers, 0)
    starts = range(0, len(items), BATCH)
    parts = []
    for start in ticker(starts, len(starts), "blocking"):
        make = partial(_drops, pipeline, items[start : start + BATCH], weights, k, sweep)
        parts.append(cached(folder / f"sweep-{start}.safetensors", make)["drops"])
    drops_LN = np.concatenate(parts, axis=1)
    answered = drops_LN.shape[1]
    if not answered:
        raise SettingsError(
            f"Plain RAG answers none of these {len(items)} questions correctly, so no drop can be "
            "measured. Use more, or other, questions."
        )
    return replace(
        sweep,
        drops=tuple(drops_LN.mean(1).tolist()),
        errors=tuple((drops_LN.std(1) / np.sqrt(answered)).tolist()),
        questions=answered,
    )


def _drops(
    pipeline: Pipeline, items: Sequence[EncodedItem], weights: Weights, k: int, sweep: Sweep
) -> dict[str, npt.NDArray[np.float64]]:
    """Return relative drops [centres, N] of the N questions that plain RAG answers correctly."""
    branches = []
    for item in items:
        reports = [r.document.report for r in evidence_for(pipeline, item, weights, k)]
        branches.append(branch_of(pipeline, item, reports))
    cache = prefill_batch(pipeline.backbone, branches)
    gold = np.array([item.gold for item in items])
    whole = answer_batch(pipeline.backbone, branches, cache=cache)
    p_right = np.where(gold == 1, whole.p_yes, whole.p_no)
    right = (whole.p_yes > whole.p_no) == (gold == 1)
    drops = []
    for n in range(len(sweep.centres)):
        cut = answer_batch(
            pipeline.backbone, branches, block=Block(layers=sweep.blocked(n)), cache=cache
        )
        p_cut = np.where(gold == 1, cut.p_yes, cut.p_no)
        drops.append(((p_right - p_cut) / p_right)[right].astype(np.float64))
    return {"drops": np.stack(drops)}


@dataclass(frozen=True)
class Trial:
    """A steering with its gains in right answers over plain RAG, by number of random reports.

    ``interval`` is the gain's mean over these numbers and its 95 % interval by patient, as
    shares of the questions.
    """

    layers: tuple[int, ...]
    strength: float
    rows: str
    form: str
    gains: tuple[int, ...]
    interval: tuple[float, float, float]

    @property
    def steering(self) -> Steering:
        """What was tried."""
        return Steering(self.strength, self.layers, self.rows, form=self.form)


def try_steering(
    pipeline: Pipeline,
    items: Sequence[EncodedItem],
    weights: Weights,
    layer_sets: Sequence[tuple[int, ...]],
    folder: Path,
    *,
    k: int,
    noise: Sequence[int],
    ticker: Ticker = no_ticker,
) -> list[Trial]:
    """Measure every form and strength of IFA on each of the sets of layers.

    Then the best of each form is measured with every other choice of question rows.

    Parameters
    ----------
    noise
        Numbers of random reports among the ``k``.
    folder
        As in :func:`sweep_layers`.
    """
    try_all = partial(_try, pipeline, items, weights, folder, k, noise, ticker)
    trials = try_all(
        [
            Steering(strength, layers, DEFAULT_ROWS, form=name)
            for layers in layer_sets
            for name, form in FORMS.items()
            for strength in form.strengths
        ],
        "steering",
    )
    return trials + try_all(
        [
            replace(best.steering, rows=rows)
            for best in best_of_forms(trials).values()
            for rows in ROWS
            if rows != best.rows
        ],
        "rows",
    )


def best_of_forms(trials: Sequence[Trial]) -> dict[str, Trial]:
    """Return the trial of each form with the largest sum of gains."""
    return {
        form: max((t for t in trials if t.form == form), key=lambda trial: sum(trial.gains))
        for form in dict.fromkeys(trial.form for trial in trials)
    }


def _try(
    pipeline: Pipeline,
    items: Sequence[EncodedItem],
    weights: Weights,
    folder: Path,
    k: int,
    noise: Sequence[int],
    ticker: Ticker,
    steers: Sequence[Steering],
    name: str,
) -> list[Trial]:
    counts = []
    for n in noise:
        make = partial(_right_answers, pipeline, items, weights, steers, k, n, ticker)
        counts.append(cached(folder / f"{name}-{n}.safetensors", make)["right"])
    right_SNQ = np.stack(counts, axis=1)
    gains_SN = (right_SNQ.sum(-1) - right_SNQ[:1].sum(-1))[1:]
    share_SQ = right_SNQ.mean(1)
    patients = np.array([item.case.document.patient for item in items])
    return [
        Trial(
            steering.layers,
            steering.strength,
            steering.rows,
            steering.form,
            tuple(gains),
            paired_gain(share_SQ[0], share_Q, patients),
        )
        for steering, gains, share_Q in zip(steers, gains_SN.tolist(), share_SQ[1:], strict=True)
    ]


def _right_answers(
    pipeline: Pipeline,
    items: Sequence[EncodedItem],
    weights: Weights,
    steers: Sequence[Steering],
    k: int,
    noise: int,
    ticker: Ticker,
) -> dict[str, npt.NDArray[np.int64]]:
    """Return which answers of plain RAG and of each steering are right, [1 + S, Q]."""
    gold = np.array([item.gold for item in items], dtype=np.int8)
    label = f"steering, {noise} of {k} irrelevant"
    outcomes = answer_items(
        pipeline, items, weights, [PLAIN, *steers], k=k, noise=noise, label=label, ticker=ticker
    )
    return {"right": np.array([outcome.predicted == gold for outcome in outcomes], np.int64)}
