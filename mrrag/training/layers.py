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

import numpy as np

from mrrag.backbone import answer_batch, prefill_batch
from mrrag.errors import SettingsError
from mrrag.evaluation import BATCH, Asked, Ticker, evidence_for, no_ticker, prompt_for, run
from mrrag.metrics import Answers
from mrrag.pipeline import Pipeline
from mrrag.plan import PLAIN, Steer
from mrrag.steering import ROWS, Block
from mrrag.types import Weights

STRENGTHS = (0.1, 0.25, 0.5, 1.0)


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
    items: Sequence[Asked],
    weights: Weights,
    *,
    k: int,
    window: int = 1,
    stride: int = 1,
    ticker: Ticker = no_ticker,
) -> Sweep:
    """Block Reports→Question in ``window`` layers around every ``stride``-th layer in turn.

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
    relative: list[list[float]] = [[] for _ in centres]
    chunks = [items[i : i + BATCH] for i in range(0, len(items), BATCH)]
    for chunk in ticker(chunks, len(chunks), "blocking"):
        batch = []
        for item in chunk:
            reports = [r.document.report for r in evidence_for(pipeline, item, weights, k)]
            batch.append((item.features, prompt_for(pipeline, item, reports), ()))
        cache = prefill_batch(pipeline.backbone, batch)
        gold = np.array([item.gold for item in chunk])
        whole = answer_batch(pipeline.backbone, batch, strength=0.0, layers=(), cache=cache)
        p_right = np.where(gold == 1, whole.p_yes, whole.p_no)
        right = (whole.p_yes > whole.p_no) == (gold == 1)
        for n in range(len(centres)):
            cut = answer_batch(
                pipeline.backbone,
                batch,
                strength=0.0,
                layers=(),
                block=Block(layers=sweep.blocked(n)),
                cache=cache,
            )
            p_cut = np.where(gold == 1, cut.p_yes, cut.p_no)
            relative[n] += list(((p_right - p_cut) / p_right)[right])
    answered = len(relative[0])
    if not answered:
        raise SettingsError(
            f"Plain RAG answers none of these {len(items)} questions rightly, so no drop can be "
            "measured. Ask more questions, or others."
        )
    return replace(
        sweep,
        drops=tuple(float(np.mean(r)) for r in relative),
        errors=tuple(float(np.std(r) / np.sqrt(answered)) for r in relative),
        questions=answered,
    )


@dataclass(frozen=True)
class Trial:
    """One steering tried on the validation split."""

    layers: tuple[int, ...]
    strength: float
    rows: str
    gains: tuple[int, ...]


def try_steering(
    pipeline: Pipeline,
    items: Sequence[Asked],
    weights: Weights,
    layer_sets: Sequence[tuple[int, ...]],
    *,
    k: int,
    noise: Sequence[int],
    ticker: Ticker = no_ticker,
) -> list[Trial]:
    """Right answers gained over plain RAG, for each steering and each number of noise reports."""
    steers = [
        Steer(strength, layers, rows)
        for layers in layer_sets
        for strength in STRENGTHS
        for rows in ROWS
    ]
    gold: Answers = np.array([item.gold for item in items], dtype=np.int8)
    gains: list[list[int]] = [[] for _ in steers]
    for drawn in noise:
        plain, *steered = run(
            pipeline,
            items,
            weights,
            [PLAIN, *steers],
            k=k,
            noise=drawn,
            label=f"steering, {drawn} of {k} irrelevant",
            ticker=ticker,
        )
        base = int(np.sum(plain.said == gold))
        for row, outcome in zip(gains, steered, strict=True):
            row.append(int(np.sum(outcome.said == gold)) - base)
    return [
        Trial(steer.layers, steer.strength, steer.rows, tuple(row))
        for steer, row in zip(steers, gains, strict=True)
    ]
