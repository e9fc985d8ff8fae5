"""Writes a trained tower of open_clip in open_clip's own layout, under its published names.

The reverse of :mod:`mrrag.retrieval.clip_towers`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel

from mrrag.errors import ModelError
from mrrag.retrieval.clip_towers import (
    CLIP_TEXT,
    CLIP_TEXT_BLOCK,
    TIMM_VIT,
    TIMM_VIT_BLOCK,
    ClipText,
    HubBert,
    TimmViT,
    names_of_blocks,
)
from mrrag.retrieval.open_clip import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, OpenClip
from mrrag.retrieval.tower_pair import TOKENIZER_FILE
from mrrag.retrieval.weights import State


def save_open_clip(encoder: OpenClip, directory: str | Path) -> None:
    """Write configuration, weights (float32) and tokenizer, as open_clip publishes them.

    Raises
    ------
    ModelError
        If a weight is not finite.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {**_image_state(encoder.image_tower), **_text_state(encoder.text_tower)}
    state["logit_scale"] = encoder.logit_scale
    stored = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    for key, tensor in stored.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"The encoder's {key} has values that are not finite.")
    save_file(
        {key: tensor.clone() for key, tensor in stored.items()}, directory / OPEN_CLIP_WEIGHTS[0]
    )
    # Without the padding and cutting of the last call, which are settings of ours.
    core = Tokenizer.from_str(encoder.tokenizer.backend_tokenizer.to_str())
    core.no_padding()
    core.no_truncation()
    core.save(str(directory / TOKENIZER_FILE))
    text = json.dumps(encoder.configuration, indent=2) + "\n"
    (directory / OPEN_CLIP_CONFIG).write_text(text, encoding="utf-8")


def _image_state(tower: nn.Module) -> State:
    if not isinstance(tower, TimmViT):  # CLIP's ResNet has the published names
        return _under("visual.", tower)
    layers = tower.vit.config.num_hidden_layers
    names = names_of_blocks(
        TIMM_VIT, TIMM_VIT_BLOCK, "visual.trunk.blocks", "encoder.layer", layers
    )
    return _published(tower.vit, names) | _under("visual.head.proj.", tower.projection)


def _text_state(tower: nn.Module) -> State:
    if isinstance(tower, HubBert):
        return _under("text.transformer.", tower.bert) | _under("text.proj.", tower.projection)
    if not isinstance(tower, ClipText):
        raise ModelError(f"A text tower of the kind {type(tower).__name__} cannot be saved.")
    names = names_of_blocks(
        CLIP_TEXT,
        CLIP_TEXT_BLOCK,
        "transformer.resblocks",
        "text_model.encoder.layers",
        tower.clip.config.num_hidden_layers,
    )
    state = _published(tower.clip, names)
    # open_clip multiplies from the left, a linear layer from the right.
    return state | {"text_projection": state["text_projection"].T}


def _under(prefix: str, module: nn.Module) -> State:
    return {prefix + key: tensor for key, tensor in module.state_dict().items()}


def _published(model: PreTrainedModel, names: Mapping[str, tuple[str, ...]]) -> State:
    """Return a transformers model's tensors under their published names, joined where several."""
    with tempfile.TemporaryDirectory() as folder:
        # Its own names of parameters differ between releases; those it saves do not.
        model.save_pretrained(folder, max_shard_size="100GB")
        saved = load_file(Path(folder) / "model.safetensors")
    return {
        published: torch.cat([saved[key] for key in parts]) if len(parts) > 1 else saved[parts[0]]
        for published, parts in names.items()
    }
