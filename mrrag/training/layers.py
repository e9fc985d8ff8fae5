"""The critical layers: where cutting Reports→Question hurts a right answer most.

In a window of layers around each layer the question's rows are blocked from the
reports' columns, and the relative drop of the right answer's probability is averaged
over questions that plain RAG answers rightly. The strength of IFA and what counts as
the question, on which the paper is silent, are then chosen on the same split; nothing
here ever sees held-out questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrrag.backbone import answer_batch, prefill_batch
from mrrag.evaluation import BATCH, Asked, Ticker, evidence_for, no_ticker, prompt_for, run
from mrrag.metrics import Answers
from mrrag.pipeline import Pipeline
from mrrag.plan import PLAIN, Steer
from mrrag.steering import Block
from mrrag.types import Weights

STRENGTHS = (0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Sweep:
    """The mean relative drop of P(right answer) per centre layer, and its standard error."""

    drops: tuple[float, ...]
    errors: tuple[float, ...]
    window: int
    questions: int

    def critical(self, share: float = 0.5) -> tuple[int, ...]:
        """Layers whose drop is at least ``share`` of the largest and above two errors."""
        top = max(self.drops)
        return tuple(
            layer
            for layer, (drop, error) in enumerate(zip(self.drops, self.errors, strict=True))
            if drop >= share * top and drop > 2 * error
        )


def sweep_layers(
    pipeline: Pipeline,
    items: Sequence[Asked],
    weights: Weights,
    *,
    k: int,
    window: int = 1,
    ticker: Ticker = no_ticker,
) -> Sweep:
    """Block Reports→Question around each layer in turn."""
    layers = pipeline.backbone.layers
    half = window // 2
    relative: list[list[float]] = [[] for _ in range(layers)]
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
        for layer in range(layers):
            around = range(max(0, layer - half), min(layers, layer + half + 1))
            cut = answer_batch(
                pipeline.backbone,
                batch,
                strength=0.0,
                layers=(),
                block=Block(layers=tuple(around)),
                cache=cache,
            )
            p_cut = np.where(gold == 1, cut.p_yes, cut.p_no)
            relative[layer] += list(((p_right - p_cut) / p_right)[right])
    counts = [len(r) for r in relative]
    return Sweep(
        tuple(float(np.mean(r)) for r in relative),
        tuple(float(np.std(r) / np.sqrt(len(r))) for r in relative),
        window,
        counts[0],
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
        for rows in ("question", "question+cue")
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
