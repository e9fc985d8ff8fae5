"""A checkpoint by its name: find its files, read its shape, load its weights.

A name is a directory, or ``owner/name`` on the Hugging Face hub. A checkpoint is read into the
class of its family (:mod:`mrrag.model.families`). LLaVA has four layouts: those in which
LLaVA-Med 1.5 (``llava_mistral``) and HuatuoGPT-Vision (``llava_qwen2``) were published, which
transformers does not know, and the two that transformers has written since. A missing,
unexpected or differently shaped parameter is refused.

It does not know prompts, questions or caches.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    BitsAndBytesConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    MistralConfig,
    Qwen2Config,
)

from mrrag.errors import OTHERWISE, ModelError, SettingsError
from mrrag.hub import download, is_hub_name, one_line
from mrrag.model.families import CLASS_TOKENS, FAMILIES, REFUSED, family_of
from mrrag.model.weights import (
    QUANTIZED_BYTES,
    check_room,
    default_dtype,
    room,
    stored_config,
    tensor_sizes,
)
from mrrag.types import LLAVA_MED

logger = logging.getLogger(__name__)

STOCK_TOWER = "openai/clip-vit-large-patch14-336"

# What is downloaded from the hub: no other weight format, no code, no pictures.
FILES = ["*.json", "*.safetensors", "tokenizer.model", "chat_template.jinja"]
TOWER_FILES = ["config.json", "model.safetensors", "pytorch_model.bin"]

# How LLaVA's own code names its parameters → how transformers does.
_PUBLISHED_NAMES = {
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
}
# model_type in config.json → how its parameter names become those of the family's class. What
# is no family of its own is a LLaVA. (transformers renames its own older layouts itself.)
KEY_MAPPINGS: dict[str, dict[str, str]] = {
    **{kind: {} for kind in FAMILIES},
    "llava_mistral": _PUBLISHED_NAMES,
    "llava_qwen2": _PUBLISHED_NAMES,
}
# Kinds in the layout of LLaVA's own code → the text model's configuration in transformers.
PUBLISHED_TEXTS: dict[str, Callable[..., Any]] = {
    "llava_mistral": MistralConfig,
    "llava_qwen2": Qwen2Config,
}
# Settings of the published code, each with the one value that is supported.
PUBLISHED = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_patch_merge_type": "flat",
    "image_aspect_ratio": "pad",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
}
# Required in config.json: the class defaults are those of another model.
TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "max_position_embeddings",
    "sliding_window",
    "bos_token_id",
    "eos_token_id",
)
# A text model's further fields, which the others do not have.
MORE_TEXT_FIELDS = {"llava_qwen2": ("use_sliding_window",)}
# The published vocabularies have no <image>. A control token stands in its place, which is
# removed from what a person types: <unk>, which SentencePiece never produces; and Qwen2's
# <|endoftext|>.
PUBLISHED_PLACEHOLDERS: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "llava_mistral": lambda _: 0,
    "llava_qwen2": lambda stored: int(stored["bos_token_id"]),
}
# Finding


def find_checkpoint(
    name: str | Path,
    revision: str | None = None,
    *,
    files: list[str] = FILES,
    announce: Callable[[str], object] = logger.info,
) -> Path:
    """Return the directory of a checkpoint; a name on the hub is downloaded first.

    Parameters
    ----------
    revision
        Branch, tag or commit on the hub; the newest by default.
    announce
        As of :func:`mrrag.hub.download`.

    Raises
    ------
    ModelError
        Where there is neither such a directory nor such a name, or the hub cannot be reached
        or refuses, or the disk is too small.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_name(str(name)):
        raise ModelError(
            f"There is no folder {name}. Give the folder of a checkpoint, or a name on the "
            f"hub such as {LLAVA_MED}. {OTHERWISE}"
        )
    try:
        return download(str(name), files, revision, announce=announce)
    except ModelError as error:
        raise ModelError(f"{error} {OTHERWISE}") from None


# Reading


def read_config(folder: Path) -> Any:
    """Read the model's shape, in transformers' terms, from any layout's config.json.

    Raises
    ------
    ModelError
        Where there is none, it is of another kind, or a value is not supported.
    """
    stored = stored_config(folder)
    kind = stored.get("model_type")
    if kind in PUBLISHED_TEXTS:
        return published_config(folder.name, stored)
    if kind not in KEY_MAPPINGS:
        why = f" It cannot be read: {REFUSED[kind]}." if kind in REFUSED else ""
        raise ModelError(
            f"{folder.name} is of the kind {kind!r}; MR-RAG reads {', '.join(KEY_MAPPINGS)}.{why} "
            f"Choose another checkpoint. {OTHERWISE}"
        )
    family = FAMILIES.get(kind, FAMILIES["llava"])
    try:
        config = family.model.config_class.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{folder.name}/config.json cannot be read ({one_line(error)}). Download it again."
        ) from error
    if family is FAMILIES["llava"]:
        _check_tower(folder.name, config)
    return config


def _check_tower(name: str, config: Any) -> None:
    kind, strategy = config.vision_config.model_type, config.vision_feature_select_strategy
    if kind not in CLASS_TOKENS:
        raise ModelError(
            f"{name} has a vision tower of the kind {kind!r}; MR-RAG reads "
            f"{', '.join(CLASS_TOKENS)}. Choose another checkpoint. {OTHERWISE}"
        )
    if strategy == "default" and not CLASS_TOKENS[kind]:
        raise ModelError(
            f"{name} drops the first feature of its vision tower ('default'), which for "
            f"{kind} is a part of the picture. Choose another checkpoint. {OTHERWISE}"
        )


def published_config(name: str, stored: Mapping[str, Any]) -> LlavaConfig:
    """Return the shape of a model in the published layout, from the fields of its config.json."""
    for field, value in PUBLISHED.items():
        if stored.get(field, value) != value:
            raise ModelError(
                f"{name} has {field} = {stored[field]!r}; only {value!r} is read. Choose another "
                f"checkpoint. {OTHERWISE}"
            )
    kind = str(stored.get("model_type", "llava_mistral"))
    fields = (*TEXT_FIELDS, *MORE_TEXT_FIELDS.get(kind, ()))
    absent = [f for f in (*fields, "mm_vision_select_layer") if f not in stored]
    if absent:
        raise ModelError(f"{name}/config.json lacks {', '.join(absent)}. Download it again.")
    return LlavaConfig(
        text_config=PUBLISHED_TEXTS[kind](**{field: stored[field] for field in fields}),
        vision_config=_tower_config(_named_tower(stored)),
        image_token_index=PUBLISHED_PLACEHOLDERS[kind](stored),
        vision_feature_layer=stored["mm_vision_select_layer"],
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(stored.get("tie_word_embeddings", False)),
    )


def _named_tower(stored: Mapping[str, Any]) -> str:
    """Return the vision tower that a published config names.

    HuatuoGPT-Vision names a folder beside it that holds a copy of the stock tower.
    """
    name = str(stored.get("mm_vision_tower") or STOCK_TOWER)
    copy = Path(name).name.replace("_", "-") == Path(STOCK_TOWER).name
    return STOCK_TOWER if copy and not Path(name).is_dir() else name


def _tower_config(name: str) -> CLIPVisionConfig:
    """Return the shape of the vision tower, which the published config only names."""
    if name == STOCK_TOWER:
        return CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        )
    return CLIPVisionConfig.from_pretrained(find_checkpoint(name, files=TOWER_FILES))


def check_loadable(folder: Path, *, device: str, quantize: str | None) -> None:
    """Raise ModelError where a checkpoint is damaged, of another kind, or too large."""
    read_config(folder)
    dtype = default_dtype(folder, device)
    check_room(folder.name, tensor_sizes(folder), dtype, quantize, room(device, quantize))


# Loading


def load_model(
    folder: Path,
    config: Any,
    *,
    dtype: torch.dtype,
    device: str,
    vision_tower: str = "checkpoint",
    quantize: str | None = None,
) -> Any:
    """Load the model: frozen, placed on its device, and checked name by name.

    Parameters
    ----------
    dtype
        The type to compute in, whatever the files store.
    device
        A torch device, or "auto": accelerate spreads the model over all GPUs and, where they
        are too small, the CPU.
    vision_tower
        "checkpoint", its own; "stock", the CLIP that the checkpoint started from, which
        Microsoft's own loader takes; or a directory or hub name.
    quantize
        "int8", "int4", or None.

    Raises
    ------
    ModelError
        Where files and config do not belong together, or memory does not suffice.
    """
    name = folder.name
    if quantize is not None and quantize not in QUANTIZED_BYTES:
        raise SettingsError(
            f"--quantize can be {' or '.join(QUANTIZED_BYTES)}, not {quantize!r}. Choose one."
        )
    family = family_of(config)
    if vision_tower != "checkpoint" and family is not FAMILIES["llava"]:
        raise SettingsError(
            f"--vision-tower {vision_tower} was asked for; {name} has a vision tower of its own "
            "that cannot be replaced. Leave --vision-tower out."
        )
    sizes = tensor_sizes(folder)
    check_room(name, sizes, dtype, quantize, room(device, quantize))
    placement: dict[str, Any] = {"device_map": device} if quantize or device == "auto" else {}
    try:
        loaded: Any = family.model.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            key_mapping=KEY_MAPPINGS[stored_config(folder)["model_type"]] or None,
            quantization_config=_quantization(quantize, dtype, [*family.vision, "lm_head"]),
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported below, by name, with the others
            output_loading_info=True,
            **placement,
        )
        model, info = loaded
        if not placement:
            model.to(device)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(
            f"Memory ran out while {name} was loaded. Close other programs, or use --quantize "
            f"int8 or int4. {OTHERWISE}"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{name} could not be loaded: {one_line(error)} Download the checkpoint again."
        ) from error
    _check_names(name, info, own_tower=vision_tower == "checkpoint")
    if vision_tower != "checkpoint":
        stock = vision_tower == "stock"
        _replace_tower(model, _named_tower(stored_config(folder)) if stock else vision_tower)
    model.eval().requires_grad_(False)
    return model


def _quantization(
    quantize: str | None, dtype: torch.dtype, kept: list[str]
) -> BitsAndBytesConfig | None:
    """Return how to quantise all linear layers but those in the modules that are ``kept``."""
    if quantize is None:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"--quantize {quantize} needs the package bitsandbytes, which is not installed. Run "
            f"`pip install bitsandbytes`, or leave --quantize out."
        )
    if quantize == "int8":
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_8bit=True, llm_int8_skip_modules=kept
        )
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )


def _check_names(name: str, info: Mapping[str, Any], own_tower: bool) -> None:
    def counts(key: str) -> bool:
        return own_tower or not key.startswith("model.vision_tower.")

    wrong = {
        "missing": sorted(filter(counts, info["missing_keys"])),
        "unexpected": sorted(filter(counts, info["unexpected_keys"])),
        "mismatched": sorted(
            f"{key} ({'×'.join(map(str, stored))} stored, {'×'.join(map(str, wanted))} wanted)"
            for key, stored, wanted in info["mismatched_keys"]
        ),
    }
    found = "; ".join(
        f"{len(keys)} {what} parameters: {', '.join(keys[:6])}{', ...' if len(keys) > 6 else ''}"
        for what, keys in wrong.items()
        if keys
    )
    if found:
        tower = all(key.startswith("model.vision_tower.") for key in wrong["missing"])
        advice = (
            "It has no vision tower of its own: use --vision-tower stock."
            if wrong["missing"] and tower and not wrong["unexpected"]
            else "Its files and its config.json do not belong together. Download it again."
        )
        raise ModelError(f"{name} has {found}. {advice}")


def _replace_tower(model: Any, name: str) -> None:
    folder = find_checkpoint(name, files=TOWER_FILES)
    try:
        loaded: Any = CLIPVisionModel.from_pretrained(
            folder,
            dtype=model.dtype,
            local_files_only=True,
            weights_only=True,
            output_loading_info=True,
        )
        stock, info = loaded
        if info["missing_keys"]:
            raise ValueError(f"it lacks {', '.join(sorted(info['missing_keys'])[:6])}")
        model.model.vision_tower.load_state_dict(stock.state_dict())
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{name} cannot serve as the vision tower: {one_line(error)} Choose another "
            "--vision-tower, or leave it out."
        ) from error
