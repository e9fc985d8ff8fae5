"""Pre-train the vision tower of the small LLaVA to classify findings.

LLaVA uses a pre-trained vision tower and keeps it frozen; so do we. CLIP is trained on pairs
of image and text; with only twelve findings, multi-label classification is a shorter way to
useful features. Each patch has a logit for each finding, and the logits are pooled over
patches by log-sum-exp (multiple-instance learning), so that the features of a patch describe
what is at that place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from mrrag.training.loop import fit
from mrrag.types import Image


def patch_features(model: LlavaForConditionalGeneration, pixels_NCYX: Tensor) -> Tensor:
    """Return the projector's input: the selected layer's patch features [N, P, D], without CLS."""
    layer = model.config.vision_feature_layer
    states = model.model.vision_tower(pixels_NCYX, output_hidden_states=True).hidden_states
    features: Tensor = states[layer][:, 1:]
    return features


class FindingClassifier(nn.Module):
    """The tower with a linear classifier of findings on each patch."""

    def __init__(self, model: LlavaForConditionalGeneration, findings: int) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.vote = nn.Linear(self.tower.config.hidden_size, findings)
        self._model = (model,)  # in a tuple: the decoder is not part of this module

    def forward(self, pixels_NCYX: Tensor) -> Tensor:
        """Return logits [N, findings]."""
        features_NPD = patch_features(self._model[0], pixels_NCYX)
        votes_NPF: Tensor = self.vote(features_NPD).float()
        return votes_NPF.logsumexp(1) - math.log(votes_NPF.shape[1])


def jitter(pixels: Tensor, rng: np.random.Generator, shift: float = 0.05) -> Tensor:
    """Augment images by small shifts, contrast changes and noise, without mirroring."""
    count, _, rows, columns = pixels.shape
    reach_y, reach_x = max(1, round(rows * shift)), max(1, round(columns * shift))
    padded = nn.functional.pad(pixels, (reach_x, reach_x, reach_y, reach_y), mode="replicate")
    tops, lefts = (
        rng.integers(2 * reach_y + 1, size=count),
        rng.integers(2 * reach_x + 1, size=count),
    )
    moved = torch.stack(
        [p[:, t : t + rows, x : x + columns] for p, t, x in zip(padded, tops, lefts, strict=True)]
    )
    gain = torch.from_numpy(rng.normal(1.0, 0.1, (count, 1, 1, 1)).astype(np.float32))
    offset = torch.from_numpy(rng.normal(0.0, 0.1, (count, 1, 1, 1)).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal(moved.shape, dtype=np.float32)) * 0.05
    return moved * gain + offset + noise


def model_pixels(side: int, images: Sequence[Image]) -> npt.NDArray[np.float32]:
    """Return images as the small LLaVA's tower reads them, float32 [N, 3, side, side].

    As in LLaVA-Med, they are padded to a square with the mean colour, then resized.
    """
    processor = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    pictures = [PIL.Image.fromarray(image.display).convert("RGB") for image in images]
    return np.asarray(processor(pictures, return_tensors="np")["pixel_values"], dtype=np.float32)


def labels_of(
    problems: Sequence[tuple[str, ...]],
) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Return multi-hot labels [N, findings] and the names of the findings."""
    names = sorted({p for row in problems for p in row} - {"normal"})
    labels = np.array([[name in row for name in names] for row in problems], dtype=np.float32)
    return labels, names


def train_vision(
    directory: Path,
    model: LlavaForConditionalGeneration,
    pixels: npt.NDArray[np.float16],
    labels: npt.NDArray[np.float32],
    train: npt.NDArray[np.int64],
    validation: npt.NDArray[np.int64],
    *,
    steps: int = 2000,
    batch: int = 96,
    seed: int = 0,
) -> None:
    """Train the tower in place; the validation figure is the mean area under the ROC curve."""
    torch.manual_seed(seed)
    module = FindingClassifier(model, labels.shape[1])

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        rows = np.sort(rng.choice(train, size=batch, replace=False))
        shown = jitter(torch.from_numpy(pixels[rows].astype(np.float32)), rng)
        return nn.functional.binary_cross_entropy_with_logits(
            module(shown), torch.from_numpy(labels[rows])
        )

    def evaluate() -> Mapping[str, float]:
        scores = np.concatenate(
            [
                module(torch.from_numpy(pixels[rows].astype(np.float32))).numpy()
                for rows in np.array_split(validation, max(1, len(validation) // 128))
            ]
        )
        return {"auc": mean_auc(labels[validation], scores)}

    fit(directory, module, loss_at, steps=steps, peak_lr=1e-3, evaluate=evaluate)


def mean_auc(labels: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]) -> float:
    """Return the area under the ROC curve (rank-sum form), averaged over columns."""
    ranks = scores.argsort(0).argsort(0) + 1
    positives = labels.sum(0)
    negatives = len(labels) - positives
    area = ((ranks * labels).sum(0) - positives * (positives + 1) / 2) / (positives * negatives)
    return float(area.mean())
