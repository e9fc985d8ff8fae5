"""LoRA adapters: trained changes of some weights, merged into the model as it is loaded.

An adapter in peft's format adds a product of two narrow matrices to the weights of some linear
layers: W' = W + (α / r)·B·A, or α / √r with ``use_rslora``. It is merged once, so that answering
is no slower. The names in its file are those of the class with which it was trained. What does
not fit this model by name or shape, and what is more than such products, is refused.

peft itself is not needed: it would replace each layer by one of its own to add one product.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mrrag.errors import ModelError
from mrrag.files import file_sha256, json_sha256

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = [CONFIG, WEIGHTS]
PREFIX = "base_model.model."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
# Names by today's transformers, by older ones, and by LLaVA's own code → those of today.
NAMES: tuple[dict[str, str], ...] = (
    {},
    {r"^language_model\.model\.": "model.language_model."},
    {r"^model\.layers\.": "model.language_model.layers."},
)
# Fields of the config, each with what it must be; and others, which must not be set.
REQUIRED = {"peft_type": "LORA", "bias": "none"}
UNSET = (
    *("use_dora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern"),
    *("modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters"),
)
SHOWN = 4  # names in a message


def fingerprint_with(model: str, folder: Path) -> str:
    """Return the fingerprint of a model with an adapter merged into it."""
    return json_sha256([model, *(file_sha256(folder / name) for name in FILES)])[:16]


@torch.no_grad()
def merge_adapter(model: nn.Module, folder: Path) -> None:
    """Add an adapter to a model's weights, in place; computed in float32.

    Raises
    ------
    ModelError
        Where files are missing or damaged, the adapter does something other than LoRA on linear
        layers, or it does not fit the model.
    """
    config = _read_config(folder)
    try:
        stored = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(
            f"{folder.name} has no readable {WEIGHTS}. An adapter is read from safetensors alone; "
            "save it in that format."
        ) from error
    rank = int(config["r"])
    scale = float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)
    for layer, (down, up) in fit(model, stored, rank, folder.name).items():
        weight = layer.weight
        if weight.is_meta:
            raise ModelError(
                f"The adapter {folder.name} changes weights that do not fit on the GPUs. Use a "
                "larger GPU, or leave --adapter out."
            )
        added = scale * (up.float() @ down.float()).to(weight.device)
        weight.copy_((weight.float() + added).to(weight.dtype))


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder.name} has no readable {CONFIG}, so it is no adapter in peft's format. Give "
            "the folder or the hub name of one."
        ) from error
    wrong = [f"{f} = {config.get(f)!r}" for f, value in REQUIRED.items() if config.get(f) != value]
    wrong += [f"{field} = {config[field]!r}" for field in UNSET if config.get(field)]
    numbers = (config.get("r"), config.get("lora_alpha"))
    if not all(isinstance(n, int | float) for n in numbers) or int(config["r"]) < 1:
        wrong.append("r = {!r}, lora_alpha = {!r}".format(*numbers))
    if wrong:
        raise ModelError(
            f"The adapter {folder.name} has {', '.join(wrong)}. Only LoRA on linear layers, of one "
            "rank and without biases or whole layers, is read."
        )
    return config


def fit(
    model: nn.Module, stored: Mapping[str, Tensor], rank: int, name: str
) -> dict[nn.Linear, tuple[Tensor, Tensor]]:
    """Return the layers that an adapter changes, each with A [rank, in] and B [out, rank].

    Raises
    ------
    ModelError
        Where a tensor is no part of a LoRA, its layer is not in the model, its other half is
        missing, or it is of another shape.
    """
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    found: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    for key, values in stored.items():
        half = next((half for half in (DOWN, UP) if key.endswith(half)), "")
        path = _renamed(key.removeprefix(PREFIX).removesuffix(half), linear) if half else None
        if path is None:
            unknown.append(key)
        else:
            found.setdefault(path, {})[half] = values
    if unknown or not found:
        raise _unfit(name, "not part of a linear layer of this model", unknown or ["none at all"])
    fitted: dict[nn.Linear, tuple[Tensor, Tensor]] = {}
    for path, halves in found.items():
        layer, shapes = linear[path], {half: tuple(t.shape) for half, t in halves.items()}
        if shapes != {DOWN: (rank, layer.in_features), UP: (layer.out_features, rank)}:
            had = ", ".join(f"{half} {'×'.join(map(str, s))}" for half, s in shapes.items())
            raise _unfit(name, "of another shape, or lack their other half", [f"{path} ({had})"])
        fitted[layer] = (halves[DOWN], halves[UP])
    return fitted


def _renamed(path: str, modules: Mapping[str, nn.Module]) -> str | None:
    """Return the model's own name of a layer, or None where it has no such layer."""
    for names in NAMES:
        renamed = path
        for pattern, replacement in names.items():
            renamed = re.sub(pattern, replacement, renamed)
        if renamed in modules:
            return renamed
    return None


def _unfit(name: str, what: str, keys: Sequence[str]) -> ModelError:
    shown = ", ".join(sorted(keys)[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
    return ModelError(
        f"The adapter {name} does not fit the model. These tensors are {what}: {shown}. Choose the "
        "model that it was trained on."
    )
