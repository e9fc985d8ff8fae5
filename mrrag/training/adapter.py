"""The MCR adapter: α, β, γ by InfoNCE on D_train; everything else stays frozen.

D_train: for each training question, the model answers once with each candidate document
alone, and its confidence in the right answer, P(gold) / (P(yes) + P(no)) at the first
answer token, says how useful the document is. The best is the positive, the worst m are
the negatives, and the weights are those under which the fused score tells them apart:

    L = −log[ e^{s⁺/τ} / (e^{s⁺/τ} + Σ_j e^{s_j⁻/τ}) ],   s = α·c₁ + β·c₂ + γ·c₃

L is convex in (α, β, γ)/τ, so plain gradient descent finds its one minimum. Only the
ratios matter to ranking and to IFA: the weights are stored with |α| + |β| + |γ| = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mrrag.model.answering import answer_batch
from mrrag.pipeline import Pipeline
from mrrag.retrieval.mcr import retrieve
from mrrag.study.evaluation import EncodedItem, Ticker, branch_of, evidence_for, no_ticker
from mrrag.study.plan import SINGLE
from mrrag.training.loop import cached
from mrrag.types import Retrieved, Weights

# Candidates: so many from the top of each similarity and of their equal mix, and at random.
POOL_EACH = 8
POOL_RANDOM = 16
KEPT_TOGETHER = 16  # questions whose scores are written at once
# m, on which the paper is silent, is chosen among these on the validation split. With few, the
# negatives are only those that mislead, and what misleads names the finding asked about, as
# what helps does: γ is then punished for it. With many, topic is most of what is learnt.
NEGATIVES = (4, 8, 12, 16, 20)


@dataclass(frozen=True)
class Candidates:
    """Every question's candidates: cosines [Q, N, 3] and the model's confidence [Q, N].

    Questions have different numbers of candidates; the rest of a row is NaN.
    """

    cosines_QN3: npt.NDArray[np.float64]
    confidence_QN: npt.NDArray[np.float64]


@dataclass(frozen=True)
class TrainingSet:
    """D_train: cosines of each question's positive [Q, 3] and negatives [Q, M, 3]."""

    positive_Q3: npt.NDArray[np.float64]
    negative_QM3: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Adapter:
    """Learnt weights with what is known of them; intervals are 95 % bootstrap ones."""

    weights: Weights
    intervals: tuple[tuple[float, float], ...]
    temperature: float
    loss: float
    validation_loss: float
    questions: int


def candidates(pipeline: Pipeline, item: EncodedItem, seed: int) -> list[Retrieved]:
    """Documents worth scoring: the top of each similarity and of their mix, some at random.

    Of a knowledge base with few documents, as many as it has.
    """
    document, base = item.case.document, pipeline.knowledge_base
    own = base.positions(patients={document.patient}, studies={document.study})
    each = min(POOL_EACH, len(base) - len(own))
    found: dict[str, Retrieved] = {}
    for weights in (*SINGLE.values(), Weights(1.0, 1.0, 1.0)) if each else ():
        for r in evidence_for(pipeline, item, weights, each):
            found.setdefault(r.document.id, r)
    count = min(POOL_RANDOM, (len(base) - len(own) - len(found)) // 2)
    if not count:
        return list(found.values())
    drawn = retrieve(
        base,
        item.vectors,
        Weights(1.0, 1.0, 1.0),
        count,
        exclude_patients={document.patient},
        exclude_studies={document.study},
        exclude_ids=set(found),
        noise=count,
        seed=seed,
    )
    return [*found.values(), *drawn]


def score_candidates(
    pipeline: Pipeline,
    items: Sequence[EncodedItem],
    folder: Path,
    *,
    seed: int = 0,
    ticker: Ticker = no_ticker,
) -> Candidates:
    """Score every candidate of every question by the model's confidence with it alone.

    What was scored is kept in ``folder``, which is for these questions, model and knowledge
    base: a run that was stopped goes on from there.
    """
    rng = np.random.default_rng(seed)
    seeds = [int(rng.integers(2**31)) for _ in items]
    starts = range(0, len(items), KEPT_TOGETHER)
    parts = []
    for start in ticker(starts, len(starts), "D_train"):
        rows = slice(start, start + KEPT_TOGETHER)
        make = partial(_scored, pipeline, items[rows], seeds[rows])
        parts.append(cached(folder / f"d_train-{start}.safetensors", make))
    return Candidates(
        np.concatenate([part["cosines"] for part in parts]),
        np.concatenate([part["confidence"] for part in parts]),
    )


def _scored(
    pipeline: Pipeline, items: Sequence[EncodedItem], seeds: Sequence[int]
) -> dict[str, npt.NDArray[np.float64]]:
    width = (len(SINGLE) + 1) * POOL_EACH + POOL_RANDOM
    cosines_QN3 = np.full((len(items), width, 3), np.nan)
    confidence_QN = np.full((len(items), width), np.nan)
    for q, (item, seed) in enumerate(zip(items, seeds, strict=True)):
        pool = candidates(pipeline, item, seed)
        branches = [branch_of(pipeline, item, [r.document.report]) for r in pool]
        score = answer_batch(pipeline.backbone, branches)
        right = score.p_yes if item.gold else score.p_no
        both = score.p_yes + score.p_no
        # Where the model says neither, the document is of no use.
        confidence_QN[q, : len(pool)] = np.divide(
            right, both, out=np.zeros_like(both), where=both > 0
        )
        cosines_QN3[q, : len(pool)] = [r.cosines for r in pool]
    return {"cosines": cosines_QN3, "confidence": confidence_QN}


def build_training_set(scored: Candidates, negatives: int) -> TrainingSet:
    """D_train: the candidate with the highest confidence against the lowest ``negatives``."""
    best, worst = [], []
    for cosines_N3, confidence_N in zip(scored.cosines_QN3, scored.confidence_QN, strict=True):
        order = np.argsort(-confidence_N[~np.isnan(confidence_N)], kind="stable")
        best.append(cosines_N3[order[0]])
        worst.append(cosines_N3[order[-negatives:]])
    return TrainingSet(np.array(best), np.array(worst))


def info_nce(
    data: TrainingSet, scaled_3: npt.NDArray[np.float64]
) -> tuple[float, npt.NDArray[np.float64]]:
    """Mean InfoNCE loss, nats, and its gradient [3], for weights already divided by τ."""
    difference_QM3 = data.negative_QM3 - data.positive_Q3[:, None]
    logits_QM = difference_QM3 @ scaled_3
    top_Q1 = np.maximum(logits_QM.max(1, keepdims=True), 0.0)
    total_Q1 = np.exp(-top_Q1) + np.exp(logits_QM - top_Q1).sum(1, keepdims=True)
    loss = float((top_Q1 + np.log(total_Q1)).mean())
    share_QM = np.exp(logits_QM - top_Q1) / total_Q1
    gradient_3 = share_QM.reshape(-1) @ difference_QM3.reshape(-1, 3)
    return loss, gradient_3 / len(data.positive_Q3)


def descend(
    data: TrainingSet, *, steps: int = 4000, rate: float = 5.0, ridge: float = 1e-4
) -> npt.NDArray[np.float64]:
    """Plain gradient descent from equal weights; the ridge keeps the norm bounded."""
    scaled_3 = np.ones(3)
    for _ in range(steps):
        slope_3 = info_nce(data, scaled_3)[1] + ridge * scaled_3
        scaled_3 = scaled_3 - rate * slope_3
        if np.abs(slope_3).max() < 1e-6:
            break
    return scaled_3


def train_adapter(
    data: TrainingSet, *, validation_share: float = 0.2, resamples: int = 100, seed: int = 0
) -> Adapter:
    """Learn α, β, γ; the last ``validation_share`` of the questions only measures."""
    cut = round(len(data.positive_Q3) * (1 - validation_share))
    train = TrainingSet(data.positive_Q3[:cut], data.negative_QM3[:cut])
    held_out = TrainingSet(data.positive_Q3[cut:], data.negative_QM3[cut:])
    scaled_3 = descend(train)
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(resamples):
        rows = rng.integers(cut, size=cut)
        sample = TrainingSet(train.positive_Q3[rows], train.negative_QM3[rows])
        drawn = descend(sample)
        resampled.append(drawn / np.abs(drawn).sum())
    low, high = np.percentile(resampled, (2.5, 97.5), axis=0)
    norm = float(np.abs(scaled_3).sum())
    alpha, beta, gamma = (float(w) for w in scaled_3 / norm)
    return Adapter(
        weights=Weights(alpha, beta, gamma),
        intervals=tuple((float(a), float(b)) for a, b in zip(low, high, strict=True)),
        temperature=1 / norm,
        loss=info_nce(train, scaled_3)[0],
        validation_loss=info_nce(held_out, scaled_3)[0],
        questions=cut,
    )


FEW_QUESTIONS = 200


def uncertainty(adapter: Adapter) -> str:
    """How sure α, β and γ are, in words."""
    names = ("α image-report", "β image-image", "γ question-report")
    weights = astuple(adapter.weights)
    said = [
        f"{name} = {weight:.2f} ({low:.2f} to {high:.2f})"
        for name, weight, (low, high) in zip(names, weights, adapter.intervals, strict=True)
    ]
    text = f"{'; '.join(said)}: 95 % intervals by a bootstrap over {adapter.questions} questions. "
    unsure = [
        name[0]
        for name, (low, high) in zip(names, adapter.intervals, strict=True)
        if low <= 0 <= high
    ]
    if unsure:
        verb = "helps or harms" if len(unsure) == 1 else "help or harm"
        text += f"Whether {' and '.join(unsure)} {verb} is not settled. "
    if adapter.questions < FEW_QUESTIONS:
        text += f"These are few questions: with {FEW_QUESTIONS} or more the weights are steadier. "
    return text.strip()
