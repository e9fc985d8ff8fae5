"""The MCR adapter: learn α, β, γ by InfoNCE on D_train; everything else stays frozen.

D_train: for each training question, the model answers once with each candidate document
alone. Its confidence in the right answer, P(gold) / (P(yes) + P(no)) at the first answer
token, measures how useful the document is. The best document is the positive, the worst m are
the negatives, and α, β, γ minimise

    L = −log[ e^{s⁺/τ} / (e^{s⁺/τ} + Σ_j e^{s_j⁻/τ}) ],   s = α·c₁ + β·c₂ + γ·c₃

L is convex in (α, β, γ)/τ, so Newton's method finds its only minimum. Only the ratios matter
to ranking and to IFA, so the weights are stored with |α| + |β| + |γ| = 1.
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

# Candidates: the top documents of each similarity and of their equal mix, and random ones.
POOL_EACH = 8
POOL_RANDOM = 16
QUESTIONS_PER_FILE = 16  # scores of this many questions are stored together
# The paper does not state m; it is chosen among these on the validation split. With small m the
# negatives are misleading reports, which name the finding asked about, as helpful ones do, and
# γ is penalised for it. With large m the weights mostly learn the topic. In between γ turns from
# negative to the largest weight, so these lie close.
NEGATIVES = (4, 5, 6, 8, 12)
FEW_QUESTIONS = 200  # below this, the intervals are wide


@dataclass(frozen=True)
class Candidates:
    """The candidates of every question: cosines [Q, N, 3] and the model's confidence [Q, N].

    Questions have different numbers of candidates; rows are padded with NaN.
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
    """Learnt weights with 95 % bootstrap intervals, temperature τ and losses in nats."""

    weights: Weights
    intervals: tuple[tuple[float, float], ...]
    temperature: float
    loss: float
    validation_loss: float
    questions: int


def candidates(pipeline: Pipeline, item: EncodedItem, seed: int) -> list[Retrieved]:
    """Return the candidates of a question: top documents by similarity, and random ones.

    A small knowledge base gives fewer.
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

    Scores are stored in ``folder``, which must be specific to these questions, model and
    knowledge base. A stopped run resumes from them.
    """
    rng = np.random.default_rng(seed)
    seeds = [int(rng.integers(2**31)) for _ in items]
    starts = range(0, len(items), QUESTIONS_PER_FILE)
    parts = []
    for start in ticker(starts, len(starts), "D_train"):
        rows = slice(start, start + QUESTIONS_PER_FILE)
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
        # A document with which the model answers neither yes nor no is useless.
        confidence_QN[q, : len(pool)] = np.divide(
            right, both, out=np.zeros_like(both), where=both > 0
        )
        cosines_QN3[q, : len(pool)] = [r.cosines for r in pool]
    return {"cosines": cosines_QN3, "confidence": confidence_QN}


def build_training_set(scored: Candidates, negatives: int) -> TrainingSet:
    """Return D_train: the candidate of highest confidence, and the ``negatives`` lowest ones."""
    best, worst = [], []
    for cosines_N3, confidence_N in zip(scored.cosines_QN3, scored.confidence_QN, strict=True):
        order = np.argsort(-confidence_N[~np.isnan(confidence_N)], kind="stable")
        best.append(cosines_N3[order[0]])
        worst.append(cosines_N3[order[-negatives:]])
    return TrainingSet(np.array(best), np.array(worst))


def info_nce(
    data: TrainingSet, scaled_3: npt.NDArray[np.float64]
) -> tuple[float, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the mean InfoNCE loss, nats, its gradient [3] and its Hessian [3, 3].

    ``scaled_3`` are the weights divided by τ.
    """
    difference_QM3 = data.negative_QM3 - data.positive_Q3[:, None]
    logits_QM = difference_QM3 @ scaled_3
    top_Q1 = np.maximum(logits_QM.max(1, keepdims=True), 0.0)
    share_QM = np.exp(logits_QM - top_Q1)
    total_Q1 = np.exp(-top_Q1) + share_QM.sum(1, keepdims=True)
    share_QM /= total_Q1
    mean_Q3 = np.einsum("qm,qmi->qi", share_QM, difference_QM3)
    second_33 = np.einsum("qm,qmi,qmj->ij", share_QM, difference_QM3, difference_QM3)
    count = len(data.positive_Q3)
    loss = float((top_Q1 + np.log(total_Q1)).mean())
    return loss, mean_Q3.mean(0), (second_33 - mean_Q3.T @ mean_Q3) / count


def minimise(
    data: TrainingSet, *, ridge: float = 1e-4, most_steps: int = 100
) -> npt.NDArray[np.float64]:
    """Return the weights [3], divided by τ, of the least loss, from equal weights.

    Newton's method, halving a step that does not lower the loss. The L2 penalty ``ridge``
    makes the minimum one point and bounds its norm.
    """

    def penalised(scaled_3: npt.NDArray[np.float64]) -> float:
        return info_nce(data, scaled_3)[0] + ridge / 2 * float(scaled_3 @ scaled_3)

    scaled_3 = np.ones(3)
    for _ in range(most_steps):
        _, gradient_3, hessian_33 = info_nce(data, scaled_3)
        slope_3 = gradient_3 + ridge * scaled_3
        if np.abs(slope_3).max() < 1e-9:
            break
        step_3 = np.linalg.solve(hessian_33 + ridge * np.eye(3), slope_3)
        before = penalised(scaled_3)
        while penalised(scaled_3 - step_3) > before:
            step_3 /= 2
        scaled_3 = scaled_3 - step_3
    return scaled_3


def train_adapter(
    data: TrainingSet, *, validation_share: float = 0.2, resamples: int = 100, seed: int = 0
) -> Adapter:
    """Learn α, β, γ; the last ``validation_share`` of the questions is used for validation only."""
    cut = round(len(data.positive_Q3) * (1 - validation_share))
    train = TrainingSet(data.positive_Q3[:cut], data.negative_QM3[:cut])
    held_out = TrainingSet(data.positive_Q3[cut:], data.negative_QM3[cut:])
    scaled_3 = minimise(train)
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(resamples):
        rows = rng.integers(cut, size=cut)
        sample = TrainingSet(train.positive_Q3[rows], train.negative_QM3[rows])
        drawn = minimise(sample)
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


def uncertainty(adapter: Adapter) -> str:
    """Return α, β and γ with their uncertainty, in words."""
    names = ("α image-report", "β image-image", "γ question-report")
    weights = astuple(adapter.weights)
    values = [
        f"{name} = {weight:.2f} ({low:.2f} to {high:.2f})"
        for name, weight, (low, high) in zip(names, weights, adapter.intervals, strict=True)
    ]
    text = f"{'; '.join(values)}: 95 % bootstrap intervals over {adapter.questions} questions. "
    undetermined = [
        name[0]
        for name, (low, high) in zip(names, adapter.intervals, strict=True)
        if low <= 0 <= high
    ]
    if undetermined:
        text += f"The sign of {' and '.join(undetermined)} is not determined. "
    if adapter.questions < FEW_QUESTIONS:
        text += f"Use {FEW_QUESTIONS} questions or more for narrower intervals. "
    return text.strip()
