"""The critical layers: where cutting Reports→Question hurts a right answer most.

In a window of layers around each layer the question's rows are blocked from the
reports' columns, and the relative drop of the right answer's probability is averaged
over questions that plain RAG answers rightly. The strength of IFA and what counts as
the question, on which the paper is silent, are then chosen on the same split; nothing
here ever sees held-out questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mrrag.errors import SettingsError
from mrrag.model.answering import answer_batch
from mrrag.model.prefill import prefill_batch
from mrrag.model.steering import FORMS, ROWS, Block
from mrrag.pipeline import Pipeline
from mrrag.study.evaluation import (
    BATCH,
    EncodedItem,
    Ticker,
    branch_of,
    evidence_for,
    no_ticker,
    run,
)
from mrrag.study.metrics import Answers
from mrrag.training.loop import cached
from mrrag.types import PLAIN, Steering, Weights

STRENGTHS = {"ifa": (0.1, 0.25, 0.5, 1.0), "balanced": (0.5, 1.0, 2.0, 4.0)}


@dataclass(frozen=True)
class Sweep:
    """The mean relative drop of P(right answer), and its standard error, by blocked window.

    ``centres`` are the windows' middle layers, ``layers`` how many the model has.
    """

    centres: tuple[int, ...]
    drops: tuple[float, ...]
    errors: tuple[float, ...]
    window: int
    layers: int
    questions: int

    def blocked(self, n: int) -> range:
        """The layers of the n-th window."""
        start = self.centres[n] - self.window // 2
        return range(max(0, start), min(self.layers, start + self.window))

    def within(self, numbers: Iterable[int]) -> tuple[int, ...]:
        """The layers of these windows, ascending."""
        return tuple(sorted({layer for n in numbers for layer in self.blocked(n)}))

    def critical(self, share: float = 0.5) -> tuple[int, ...]:
        """Layers of the windows whose drop is ``share`` of the largest and above two errors."""
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

    What was measured is kept in ``folder``, which is for all these arguments: a run that
    was stopped goes on from there.

    Raises
    ------
    SettingsError
        Where the window or the stride does not fit the model.
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
            f"Plain RAG answers none of these {len(items)} questions rightly, so no drop can be "
            "measured. Ask more questions, or others."
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
    """Relative drops [centres, N] of the N questions that plain RAG answers rightly."""
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
    """One steering tried on the validation split."""

    layers: tuple[int, ...]
    strength: float
    rows: str
    form: str
    gains: tuple[int, ...]


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
    """Right answers gained over plain RAG, for each steering and each number of noise reports.

    ``folder`` is as in :func:`sweep_layers`.
    """
    steers = [
        Steering(strength, layers, rows, form=form)
        for layers in layer_sets
        for form in FORMS
        for strength in STRENGTHS[form]
        for rows in ROWS
    ]
    gold: Answers = np.array([item.gold for item in items], dtype=np.int8)

    def right(drawn: int) -> dict[str, npt.NDArray[np.int64]]:
        outcomes = run(
            pipeline,
            items,
            weights,
            [PLAIN, *steers],
            k=k,
            noise=drawn,
            label=f"steering, {drawn} of {k} irrelevant",
            ticker=ticker,
        )
        return {"right": np.array([np.sum(outcome.said == gold) for outcome in outcomes])}

    counts = [
        cached(folder / f"steering-{n}.safetensors", partial(right, n))["right"] for n in noise
    ]
    gains_SN = (np.stack(counts, axis=1) - np.stack(counts, axis=1)[:1])[1:]
    return [
        Trial(steering.layers, steering.strength, steering.rows, steering.form, tuple(gains))
        for steering, gains in zip(steers, gains_SN.tolist(), strict=True)
    ]
