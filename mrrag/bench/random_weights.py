"""Models of a published size with random weights, to time without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from mrrag.errors import ModelError
from mrrag.model.backbone import Backbone, make_backbone
from mrrag.model.checkpoint import read_config
from mrrag.model.processors import load_image_processor, load_tokenizer
from mrrag.model.weights import room

# Shapes of published models, for random weights: nothing has to be downloaded.
SHAPES: dict[str, dict[str, Any]] = {
    "7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "mm_vision_select_layer": -2,
    }
}


def random_backbone(
    config: Any, bundled: Path, dtype: torch.dtype, device: str, name: str
) -> Backbone:
    """Return a model of a published shape with random weights, and the bundled tokenizer.

    The cost depends on the number of tokens, not on which they are.

    Raises
    ------
    ModelError
        Where memory does not suffice.
    """
    place = "cuda" if device == "auto" else device
    build: Any = LlavaForConditionalGeneration._from_config
    with torch.device("meta"):
        needed = sum(p.nbytes for p in build(config, dtype=dtype).parameters())
    if place != "meta" and needed > room(place):
        raise ModelError(
            f"A model of the shape {name} takes {needed / 1e9:.1f} GB of memory and "
            f"{room(place) / 1e9:.1f} GB are free. Close other programs, or take a larger machine."
        )
    with torch.device(place):
        model = build(config, dtype=dtype)
    return make_backbone(
        model.eval().requires_grad_(False),
        load_tokenizer(bundled, read_config(bundled)),
        load_image_processor(Path("nowhere"), config),
        name=f"{name}, random weights",
        fingerprint="",
        capture=place.startswith("cuda"),
    )
