"""Encoders that were trained with open_clip, BiomedCLIP among them, read as published.

With their own pooling, projections and preprocessing. It does not know what a document, a
score or a knowledge base is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mrrag.errors import ModelError
from mrrag.retrieval.clip_towers import open_clip_image_tower, open_clip_text_tower
from mrrag.retrieval.tower_pair import (
    TOKENIZER_FILE,
    TowerPair,
    commit_of,
    fingerprint_of,
    load_tokenizer,
    name_of,
    needed_file,
    read_config,
    refusing,
)
from mrrag.retrieval.weights import check_settings, read_weights
from mrrag.schema import Items, Number, Record, Whole, refusing_fields
from mrrag.types import FloatArray, Image

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# RULE and MMed-RAG train their retrievers from this one; its configuration and tokenizer
# are those of the .pt files that result.
OPEN_CLIP_BASE = "thaottn/OpenCLIP-resnet50-CC12M"
# Of the pictures that CLIP was trained on, per channel, as fractions of full scale.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# What sizes are read. Which towers are read is checked where they are built.
_WIDTH = Whole(1, 65_536)
_CONFIG = Record(
    {
        "model_cfg": Record(
            {
                "embed_dim": _WIDTH,
                "vision_cfg": Record({}, {"image_size": Whole(1, 4096), "width": _WIDTH}),
                "text_cfg": Record(
                    {},
                    {
                        "context_length": _WIDTH,
                        "vocab_size": Whole(3, 2_000_000),
                        "width": _WIDTH,
                        "heads": _WIDTH,
                        "layers": Whole(1, 200),
                    },
                ),
            }
        )
    },
    {
        "preprocess_cfg": Record(
            {}, {"mean": Items(Number(-10, 10), 3, 3), "std": Items(Number(1e-3, 10), 3, 3)}
        )
    },
)


def clip_pixels_of(
    images: Sequence[Image],
    size: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> FloatArray:
    """Pictures as CLIP reads them: the shorter side to ``size`` px, then the middle square.

    Bicubic, then each channel of [0, 1] less ``mean`` over ``std``. The longer side is
    rounded down and the crop's corner to even, as torchvision does for open_clip;
    transformers' own CLIP processor takes the corner one px off for some sides.

    Returns
    -------
    float32 [N, 3, size, size]
    """
    pixels_NCYX = np.empty((len(images), 3, size, size), dtype=np.float32)
    for n, image in enumerate(images):
        picture = PillowImage.fromarray(image.display).convert("RGB")
        short = min(picture.size)
        # All but the middle is cropped below anyway, and a sliver must not grow without bound.
        width, height = (min(side, 16 * short) for side in picture.size)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
        width, height = (size * side // short for side in picture.size)
        picture = picture.resize((width, height), PillowImage.Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        picture = picture.crop((left, top, left + size, top + size))
        values = np.asarray(picture, dtype=np.float32) / 255
        values = (values - np.array(mean, np.float32)) / np.array(std, np.float32)
        pixels_NCYX[n] = values.transpose(2, 0, 1)
    return pixels_NCYX


class OpenClip(TowerPair):
    """A published tower of open_clip, with its own pooling, projections and preprocessing.

    Parameters
    ----------
    image_tower, text_tower
        As of :mod:`mrrag.retrieval.clip_towers`.
    dimension, image_size, max_text_tokens, name
        As of :class:`BiTower`.
    mean, std
        Per channel, as shares of full scale.
    """

    def __init__(
        self,
        image_tower: nn.Module,
        text_tower: nn.Module,
        tokenizer: PreTrainedTokenizerFast,
        *,
        dimension: int,
        image_size: int,
        max_text_tokens: int,
        name: str,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        super().__init__(
            tokenizer,
            dimension=dimension,
            image_size=image_size,
            max_text_tokens=max_text_tokens,
            name=name,
        )
        self.mean, self.std = tuple(mean), tuple(std)
        self.configuration: dict[str, Any] = {}  # that it was read with
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def prepare(self) -> Callable[[Sequence[Image]], FloatArray]:
        """:func:`clip_pixels_of` at this tower's size."""
        return partial(clip_pixels_of, size=self.image_size, mean=self.mean, std=self.std)

    def encode_pixels(self, pixels_NCYX: Tensor) -> Tensor:
        """Encode pixels of :attr:`prepare`, float32 [N, 3, Y, X], as unit vectors [N, D]."""
        return nn.functional.normalize(self.image_tower(pixels_NCYX), dim=-1)

    def encode_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode ids and mask, int64 [N, T], as unit vectors [N, D]."""
        return nn.functional.normalize(self.text_tower(input_ids, attention_mask), dim=-1)


# Reading


def read_open_clip(
    source: str, config_path: Path, name: str = "", weights: Path | None = None
) -> OpenClip:
    """Read an encoder of open_clip, with other ``weights`` than its own if given."""
    commit = commit_of(source, config_path).get("revision")
    tokenizer_path = needed_file(source, (TOKENIZER_FILE,), commit)
    weights = weights or needed_file(source, OPEN_CLIP_WEIGHTS, commit)
    config = read_config(config_path)
    origin = str(weights)
    with refusing(f"{origin} cannot be read as {config_path} says", " Copy it again."):
        with refusing_fields(str(config_path), "Copy it again.", ModelError):
            _CONFIG.check(config)
        model = config["model_cfg"]
        check_settings(
            f"{config_path} (model_cfg)",
            model,
            dict.fromkeys(("embed_dim", "quick_gelu", "vision_cfg", "text_cfg")),
        )
        preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, **config.get("preprocess_cfg", {})}
        read = {"interpolation": ("bicubic",), "resize_mode": ("shortest",), "mode": ("RGB",)}
        check_settings(
            f"{config_path} (preprocess_cfg)",
            {key: preprocess[key] for key in read if key in preprocess},
            read,
        )
        state = read_weights(weights)
        scale = state.pop("logit_scale", None)
        visual = {key: v for key, v in state.items() if key.startswith("visual.")}
        image_tower = open_clip_image_tower(origin, model, visual)
        text_tower = open_clip_text_tower(
            origin, model, {key: v for key, v in state.items() if key not in visual}
        )
        tower = OpenClip(
            image_tower,
            text_tower,
            # Padding is never read; CLIP's own is the end of a text.
            load_tokenizer(
                tokenizer_path,
                "[PAD]" if "hf_model_name" in model["text_cfg"] else "<|endoftext|>",
            ),
            dimension=int(model["embed_dim"]),
            image_size=int(model["vision_cfg"].get("image_size", 224)),
            max_text_tokens=int(model["text_cfg"].get("context_length", 77)),
            name=name or name_of(source),
            mean=preprocess["mean"],
            std=preprocess["std"],
        )
    if scale is not None:
        tower.logit_scale.data.fill_(float(scale))
    tower.configuration = config
    tower.eval()
    tower.fingerprint = fingerprint_of(
        {"weights": weights, "configuration": config_path, "tokenizer": tokenizer_path}
    )
    return tower
