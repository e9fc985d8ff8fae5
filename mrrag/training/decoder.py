"""Train the small LLaVA's decoder in two stages, after its vision tower.

1. *Reading*: answer from the study's own report, without an image. A transformer this small
   learns to find the relevant sentence only in short sequences.
2. *Describing*: answer from the image and 0 to K reports of the same study, each written anew:
   the same truth in other words, with other findings left out.

It never sees a report of another patient, let alone an irrelevant one. So it is not taught RAG,
and trusts what it is given: the situation of the paper, whose model was trained on pictures with
their own reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

NO_REPORT = 0.1  # of the batches of the second stage: the image alone
COPIES = 2**31  # from which the reports written anew are drawn


class Decoder(nn.Module):
    """The trained part: projector, decoder and head. The tower stays frozen."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.projector = model.model.multi_modal_projector
        self.text = model.model.language_model
        self.head = model.lm_head


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

    def pack(self, n: int, reports: Sequence[str]) -> Packed:
        """Return the questions of case ``n`` behind these reports."""
        return self.packer.pack(reports, self.data.questions[n], n)

    def pack_own(self, n: int) -> Packed:
        """Return the questions of case ``n`` behind its report."""
        return self.pack(n, [self.data.records[n].document.report])

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
    return answer_loss(stage.model, [stage.pack_own(n) for n in rows], None, 0)


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
    lengths = np.array([len(stage.pack_own(n).ids) for n in train])

    def evaluate() -> Mapping[str, float]:
        packed = [stage.pack_own(n) for n in validation]
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
    """The image features of every case, and how its report is written anew."""

    features_NPD: Tensor
    written_anew: Callable[[int, int], str]

    def pack(self, stage: _Stage, n: int, k: int, rng: np.random.Generator) -> Packed:
        """Return case ``n`` with ``k`` reports of its own."""
        copies = rng.integers(1, COPIES, size=k).tolist()
        return stage.pack(n, [self.written_anew(n, copy) for copy in copies])


def _describing_loss(
    stage: _Stage, evidence: _Evidence, train: list[int], max_k: int, step: int
) -> Tensor:
    rng = np.random.default_rng((stage.seed, step))
    # One K a batch, so that its sequences have similar lengths; sometimes none.
    k = 0 if rng.random() < NO_REPORT else int(rng.integers(1, max_k + 1))
    size = stage.batch * max_k // max(k, max_k // 3)
    rows = rng.choice(train, size=min(size, len(train)), replace=False).tolist()
    packed = [evidence.pack(stage, n, k, rng) for n in rows]
    return answer_loss(stage.model, packed, evidence.features_NPD, stage.packer.image_tokens)


def train_describing(
    directory: Path,
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    data: DataSet,
    features_NPD: Tensor,
    written_anew: Callable[[int, int], str],
    *,
    steps: int = 1450,
    batch: int = 16,
    max_k: int = 8,
    seed: int = 0,
) -> None:
    """Train stage 2 in place: answer from the image and 0 to ``max_k`` reports of its study.

    Parameters
    ----------
    features_NPD
        :func:`mrrag.training.vision.patch_features` of every case.
    written_anew
        The row of a case and the number of a copy, from 1, to a report of its study.
    """
    packer = Packer.of(model, tokenizer, features_NPD.shape[1])
    stage = _Stage(model, tokenizer, data, packer, batch, seed)
    evidence = _Evidence(features_NPD, written_anew)
    validation = stage.rows("validation")[:320]

    def evaluate() -> Mapping[str, float]:
        figures = {}
        for k in (0, 1, max_k):
            rng = np.random.default_rng(seed)
            packed = [evidence.pack(stage, n, k, rng) for n in validation]
            figures[f"k{k}"] = stage.accuracy(packed, features_NPD, 32)
        return figures

    fit(
        directory,
        Decoder(model),
        partial(_describing_loss, stage, evidence, stage.rows("train"), max_k),
        steps=steps,
        peak_lr=1e-3,
        evaluate=evaluate,
        evaluate_every=200,
    )
