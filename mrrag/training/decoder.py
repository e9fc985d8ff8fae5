"""Train the small LLaVA's decoder in two stages, after its vision tower.

1. *Reading*: answer from the study's own report, without an image. A transformer this small
   learns to find the relevant sentence only in short sequences.
2. *Weighing*: answer from the image and 0 to K reports of other patients, retrieved and random
   ones in random order. So the position of a report says nothing, and its content must be
   weighed against the image and the other reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mrrag.training.data import DataSet
from mrrag.training.loop import fit
from mrrag.training.packing import Packed, Packer, answer_loss, closed_accuracy
from mrrag.types import FloatArray

# Shares of random reports in training. Evaluation goes up to three quarters, beyond what the
# model was trained on.
NOISE = (0.0, 0.25, 0.5)


class Decoder(nn.Module):
    """The trained part: projector, decoder and head. The tower stays frozen."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.projector = model.model.multi_modal_projector
        self.text = model.model.language_model
        self.head = model.lm_head


@dataclass(frozen=True)
class Vectors:
    """Unit vectors of a data set from the frozen bi-tower, by which reports are chosen.

    ``questions_MD`` are those of ``data.questions``, case by case; those of case n start at
    ``first_question[n]``.
    """

    images_ND: FloatArray
    reports_ND: FloatArray
    questions_MD: FloatArray
    first_question: npt.NDArray[np.int64]


def choose_reports(
    data: DataSet,
    vectors: Vectors,
    pool: npt.NDArray[np.int64],
    study: int,
    question: int,
    rng: np.random.Generator,
    *,
    k: int,
    noise: int,
    weights: tuple[float, float, float],
) -> list[int]:
    """Return the rows of ``k`` cases of ``pool``: the best by MCR, then ``noise`` random ones.

    Cases of the study's own patient are never among them.
    """
    alpha, beta, gamma = weights
    v, t = vectors.images_ND[study], vectors.questions_MD[vectors.first_question[study] + question]
    score = vectors.reports_ND[pool] @ (alpha * v + gamma * t) + vectors.images_ND[pool] @ (
        beta * v
    )
    own = data.patients[pool] == data.patients[study]
    score[own] = -np.inf
    best = np.argpartition(-score, k - 1)[:k] if k else np.array([], dtype=np.int64)
    best = best[np.argsort(-score[best])]
    retrieved = best[: k - noise]
    rest = np.setdiff1d(np.flatnonzero(~own), retrieved)
    drawn = rng.choice(rest, size=noise, replace=False)
    return [int(pool[i]) for i in (*retrieved, *drawn)]


@dataclass(frozen=True)
class _Stage:
    """What both stages have in common: the model, the data and the rows with a question."""

    model: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    data: DataSet
    packer: Packer
    batch: int
    seed: int

    def rows(self, split: str) -> list[int]:
        """Return the rows of a split that have a question."""
        return [n for n in self.data.rows(split).tolist() if self.data.questions[n]]

    def pack(self, n: int, reports: list[int]) -> Packed:
        """Return the questions of case ``n`` behind the reports of these cases."""
        texts = [self.data.records[i].document.report for i in reports]
        return self.packer.pack(texts, self.data.questions[n], n)

    def accuracy(self, packed: list[Packed], features_NPD: Tensor | None, batch: int) -> float:
        """Return the accuracy on yes/no questions."""
        return closed_accuracy(self.model, self.tokenizer, packed, features_NPD, batch)


def _reading_loss(
    stage: _Stage, train: list[int], lengths: npt.NDArray[np.int64], step: int
) -> Tensor:
    rng = np.random.default_rng((stage.seed, step))
    # Sequences of similar length: padding costs as much as text.
    size = min(8 * stage.batch, len(lengths))
    pool = rng.choice(len(lengths), size=size, replace=False)
    pool = pool[np.argsort(lengths[pool])]
    start = int(rng.integers(max(1, size // stage.batch))) * stage.batch
    rows = [train[i] for i in pool[start : start + stage.batch]]
    return answer_loss(stage.model, [stage.pack(n, [n]) for n in rows], None, 0)


def train_reading(
    directory: Path,
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    data: DataSet,
    *,
    steps: int = 1200,
    batch: int = 48,
    seed: int = 0,
) -> None:
    """Train stage 1 in place: answer from the study's own report, without an image."""
    stage = _Stage(model, tokenizer, data, Packer.of(model, tokenizer, 0), batch, seed)
    train, validation = stage.rows("train"), stage.rows("validation")[:512]
    lengths = np.array([len(stage.pack(n, [n]).ids) for n in train])

    def evaluate() -> Mapping[str, float]:
        packed = [stage.pack(n, [n]) for n in validation]
        return {"closed_accuracy": stage.accuracy(packed, None, 64)}

    fit(
        directory,
        Decoder(model),
        partial(_reading_loss, stage, train, lengths),
        steps=steps,
        peak_lr=2e-3,
        evaluate=evaluate,
        evaluate_every=100,
    )


@dataclass(frozen=True)
class _Evidence:
    """The image features of every case, and the reports that may be retrieved."""

    features_NPD: Tensor
    vectors: Vectors
    pool: npt.NDArray[np.int64]

    def pack(self, stage: _Stage, n: int, k: int, noise: int, rng: np.random.Generator) -> Packed:
        """Return case ``n`` with ``k`` reports in random order, retrieved by random weights."""
        question = int(rng.integers(len(stage.data.questions[n])))
        a, b, c = (float(w) for w in rng.dirichlet((2.0, 2.0, 2.0)))
        chosen = choose_reports(
            stage.data,
            self.vectors,
            self.pool,
            n,
            question,
            rng,
            k=k,
            noise=noise,
            weights=(a, b, c),
        )
        rng.shuffle(chosen)
        return stage.pack(n, chosen)


def _weighing_loss(
    stage: _Stage, evidence: _Evidence, train: list[int], max_k: int, step: int
) -> Tensor:
    rng = np.random.default_rng((stage.seed, step))
    # One K a batch, so that its sequences have similar lengths; sometimes none.
    k = 0 if rng.random() < 0.1 else int(rng.integers(1, max_k + 1))
    size = stage.batch * max_k // max(k, max_k // 3)
    rows = rng.choice(train, size=size, replace=False)
    noise = [round(k * float(rng.choice(NOISE))) for _ in rows]
    packed = [evidence.pack(stage, n, k, m, rng) for n, m in zip(rows, noise, strict=True)]
    return answer_loss(stage.model, packed, evidence.features_NPD, stage.packer.image_tokens)


def train_weighing(
    directory: Path,
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    data: DataSet,
    features_NPD: Tensor,
    vectors: Vectors,
    pool: npt.NDArray[np.int64],
    *,
    steps: int = 2400,
    batch: int = 16,
    max_k: int = 8,
    seed: int = 0,
) -> None:
    """Train stage 2 in place: answer from the image and 0 to ``max_k`` reports of others.

    Parameters
    ----------
    features_NPD
        :func:`mrrag.training.vision.patch_features` of every case.
    pool
        Rows of the cases whose reports may be retrieved.
    """
    packer = Packer.of(model, tokenizer, features_NPD.shape[1])
    stage = _Stage(model, tokenizer, data, packer, batch, seed)
    evidence = _Evidence(features_NPD, vectors, pool)
    validation = stage.rows("validation")[:320]

    def evaluate() -> Mapping[str, float]:
        figures = {}
        for name, k, noise in (("k0", 0, 0), ("k8", max_k, 0), ("k8_half", max_k, max_k // 2)):
            rng = np.random.default_rng(seed)
            packed = [evidence.pack(stage, n, k, noise, rng) for n in validation]
            figures[name] = stage.accuracy(packed, features_NPD, 32)
        return figures

    fit(
        directory,
        Decoder(model),
        partial(_weighing_loss, stage, evidence, stage.rows("train"), max_k),
        steps=steps,
        peak_lr=1e-3,
        evaluate=evaluate,
        evaluate_every=200,
    )
