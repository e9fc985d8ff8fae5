"""A checkpoint by its name: where its files are, what they hold, how they become a model.

A name is a folder, or ``owner/name`` on the Hugging Face hub. Three layouts are read, all
into :class:`transformers.LlavaForConditionalGeneration`: the one in which LLaVA-Med 1.5
was published (``llava_mistral``, which transformers does not know), and the two that
transformers has written since. Nothing is loaded that lacks a parameter, has one too
many, or has one of another shape.

It does not know prompts, questions or caches.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from jinja2 import TemplateError
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from mrrag.errors import ModelError, SettingsError
from mrrag.hub import download, is_hub_name, one_line
from mrrag.model.prompt import IMAGE, MISTRAL_INSTRUCT, Template
from mrrag.types import LLAVA_MED

logger = logging.getLogger(__name__)

STOCK_TOWER = "openai/clip-vit-large-patch14-336"
OTHERWISE = "Or use the bundled model: --model bundled."

# What is fetched from the hub: no other weight format, no code, no pictures.
FILES = ["*.json", "*.safetensors", "tokenizer.model", "chat_template.jinja"]
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
TOWER_FILES = ["config.json", "model.safetensors", "pytorch_model.bin"]

# model_type in config.json → how its parameter names become LlavaForConditionalGeneration's.
# (transformers renames its own older layouts itself.)
KEY_MAPPINGS: dict[str, dict[str, str]] = {
    "llava": {},
    "llava_mistral": {
        r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
        r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
        r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
        r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    },
}
# What the published code can be configured to do, and the one way that is read here.
PUBLISHED = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_patch_merge_type": "flat",
    "image_aspect_ratio": "pad",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
}
# The class defaults are another model's, so each of these must be said.
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
# The vision towers that are read, and how many tokens each puts before its patches.
CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
# <unk>: SentencePiece never writes it, and what a person types is cleared of it. The
# published vocabulary has no <image>.
PUBLISHED_PLACEHOLDER = 0
# What stays in full precision: the eye, what joins it to the text, and the last word.
UNQUANTIZED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
QUANTIZED_BYTES = {"int8": 1.0, "int4": 0.5625}
_QUANTIZED_NAME = re.compile(r"layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$")


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


def read_config(folder: Path) -> LlavaConfig:
    """The model's shape, in transformers' terms, from either kind of config.json.

    Raises
    ------
    ModelError
        Where there is none, or it is of another kind, or a value is one not read here.
    """
    stored = _stored_config(folder)
    kind = stored.get("model_type")
    if kind == "llava_mistral":
        return published_config(folder.name, stored)
    if kind not in KEY_MAPPINGS:
        raise ModelError(
            f"{folder.name} is of the kind {kind!r}; MR-RAG reads {', '.join(KEY_MAPPINGS)}. "
            f"Choose another checkpoint. {OTHERWISE}"
        )
    try:
        config = LlavaConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{folder.name}/config.json cannot be read ({one_line(error)}). Download it again."
        ) from error
    _check_tower(folder.name, config)
    return config


def image_tokens(config: Any) -> int:
    """How many features the vision tower gives of one image: its patches, and what it adds."""
    vision = config.vision_config
    added = CLASS_TOKENS[vision.model_type] - (config.vision_feature_select_strategy == "default")
    return int((vision.image_size // vision.patch_size) ** 2 + added)


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


def _stored_config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"No readable config.json in {folder}. Give the folder of a LLaVA checkpoint."
        ) from error


def published_config(name: str, stored: Mapping[str, Any]) -> LlavaConfig:
    """The shape of a model of the published kind, from its config.json's fields."""
    for field, value in PUBLISHED.items():
        if stored.get(field, value) != value:
            raise ModelError(
                f"{name} has {field} = {stored[field]!r}; only {value!r} is read. Choose another "
                f"checkpoint. {OTHERWISE}"
            )
    absent = [f for f in (*TEXT_FIELDS, "mm_vision_select_layer") if f not in stored]
    if absent:
        raise ModelError(f"{name}/config.json lacks {', '.join(absent)}. Download it again.")
    return LlavaConfig(
        text_config=MistralConfig(**{field: stored[field] for field in TEXT_FIELDS}),
        vision_config=_tower_config(stored.get("mm_vision_tower") or STOCK_TOWER),
        image_token_index=PUBLISHED_PLACEHOLDER,
        vision_feature_layer=stored["mm_vision_select_layer"],
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(stored.get("tie_word_embeddings", False)),
    )


def _tower_config(name: str) -> CLIPVisionConfig:
    """The vision tower's shape, which the published config only names."""
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


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that make up the model; whatever else lies there is let be.

    Raises
    ------
    ModelError
        Where there is none, or one that the index names is absent.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    if not index.is_file():
        raise ModelError(
            f"{folder.name} has no model.safetensors and no model.safetensors.index.json, and no "
            "other format is read. Download the checkpoint again, or convert it."
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{folder.name}/{index.name} cannot be read. Download the checkpoint again."
        ) from error
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ModelError(
            f"{folder.name} lacks {', '.join(absent)}, which its index names. Download the "
            "checkpoint again."
        )
    return tuple(folder / name for name in names)


def tensor_sizes(folder: Path) -> dict[str, int]:
    """How many numbers each stored tensor has, by its stored name; reads headers only.

    Raises
    ------
    ModelError
        Where a file is cut short or is not safetensors, by its name.
    """
    sizes = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    sizes[name] = math.prod(tensors.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{folder.name}/{file.name} is cut short or damaged ({one_line(error)}). Delete it "
                "and download the checkpoint again."
            ) from error
    return sizes


def fingerprint(folder: Path) -> str:
    """Sixteen hexadecimal digits that tell checkpoint folders apart, in milliseconds.

    SHA-256 over config.json, the tokenizer, the chat template and, of every weight file, the
    name, the size, and the first and last MiB: enough to notice a retraining, not a seal.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "tokenizer.model", *TEMPLATE_FILES):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    for file in weight_files(folder):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(2**20))
            stream.seek(max(0, size - 2**20))
            digest.update(stream.read())
    return digest.hexdigest()[:16]


# Room


def bytes_needed(sizes: Mapping[str, int], dtype: torch.dtype, quantize: str | None) -> int:
    """What the weights take in memory, without what a prompt takes beside them."""
    return round(
        sum(
            size
            * (
                QUANTIZED_BYTES[quantize]
                if quantize and _QUANTIZED_NAME.search(name)
                else dtype.itemsize
            )
            for name, size in sizes.items()
        )
    )


def room(device: str, quantize: str | None = None) -> int:
    """Free bytes where the weights may go, less a tenth for what a prompt takes.

    With "auto" that is every GPU and the CPU beside them; bitsandbytes does not split a
    model, so quantized weights have the GPUs alone.
    """
    free = 0
    if device == "auto":
        free = sum(torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count()))
    elif device.startswith("cuda"):
        free = torch.cuda.mem_get_info(device)[0]
    if device == "cpu" or (device == "auto" and quantize is None):
        free += psutil.virtual_memory().available
    return int(0.9 * free)


def check_room(
    name: str, sizes: Mapping[str, int], dtype: torch.dtype, quantize: str | None, free: int
) -> None:
    """Raise ModelError where the weights do not fit into ``free`` bytes."""
    needed = bytes_needed(sizes, dtype, quantize)
    if needed <= free:
        return
    smaller = [
        f"--quantize {kind} ({bytes_needed(sizes, dtype, kind) / 1e9:.1f} GB)"
        for kind in QUANTIZED_BYTES
        if bytes_needed(sizes, dtype, kind) < needed
    ]
    advice = f", or use {' or '.join(smaller)}" if smaller else ""
    raise ModelError(
        f"{name} takes {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free. Close "
        f"other programs{advice}. {OTHERWISE}"
    )


def check_loadable(folder: Path, *, device: str, quantize: str | None) -> None:
    """Raise ModelError where a checkpoint is damaged, of another kind, or too large for here."""
    read_config(folder)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
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
    """The model, frozen, placed, and checked name by name.

    Parameters
    ----------
    dtype
        To compute in, whatever the files store.
    device
        As torch names it, or "auto": accelerate spreads it over the GPUs there are and,
        where those are too small, the CPU.
    vision_tower
        Whose vision tower: the "checkpoint"'s own; "stock", the CLIP that the checkpoint
        began from, which is what Microsoft's own loader takes; or a folder or hub name.
    quantize
        "int8", "int4", or None.

    Raises
    ------
    ModelError
        Where the files and the config do not belong together, or there is no room.
    """
    name = folder.name
    if quantize is not None and quantize not in QUANTIZED_BYTES:
        raise SettingsError(
            f"--quantize can be {' or '.join(QUANTIZED_BYTES)}, not {quantize!r}. Choose one."
        )
    sizes = tensor_sizes(folder)
    check_room(name, sizes, dtype, quantize, room(device, quantize))
    placement: dict[str, Any] = {"device_map": device} if quantize or device == "auto" else {}
    try:
        loaded: Any = LlavaForConditionalGeneration.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            key_mapping=KEY_MAPPINGS[_stored_config(folder)["model_type"]] or None,
            quantization_config=_quantization(quantize, dtype),
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # said below, with the names, as the others are
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
        _replace_tower(model, _stock_tower(folder) if vision_tower == "stock" else vision_tower)
    model.eval().requires_grad_(False)
    return model


def _quantization(quantize: str | None, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantize is None:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"--quantize {quantize} needs the package bitsandbytes, which is not installed. Run "
            f"`pip install bitsandbytes`, or leave --quantize out."
        )
    if quantize == "int8":
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_8bit=True, llm_int8_skip_modules=UNQUANTIZED
        )
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=UNQUANTIZED,
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


def _stock_tower(folder: Path) -> str:
    return str(_stored_config(folder).get("mm_vision_tower") or STOCK_TOWER)


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


def load_tokenizer(folder: Path, config: Any) -> Any:
    """The tokenizer, from tokenizer.json or from SentencePiece's tokenizer.model.

    Raises
    ------
    ModelError
        Where there is none, or it does not fit the model.
    """
    try:
        # The config is handed over since transformers does not know the published kind.
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
        raise ModelError(
            f"{folder.name} has no tokenizer that can be read ({one_line(error)}). It needs "
            "tokenizer.json or tokenizer.model: download the checkpoint again."
        ) from error
    if max(tokenizer.get_vocab().values()) >= config.text_config.vocab_size:
        raise ModelError(
            f"{folder.name}'s tokenizer knows {len(tokenizer)} tokens and its model "
            f"{config.text_config.vocab_size}. They do not belong together. Download it again."
        )
    return tokenizer


def load_template(folder: Path, tokenizer: Any) -> Template:
    """What the checkpoint's chat template puts around an image and a text.

    Where it has none, and in the published layout whatever stands there, it is
    ``mistral_instruct``, which LLaVA-Med's own code writes.

    Raises
    ------
    ModelError
        Where there is one, and it cannot be followed.
    """
    stored = tokenizer.chat_template or _processor_template(folder)
    if isinstance(stored, dict):  # several, by name
        stored = stored.get("default")
    if not stored or _stored_config(folder).get("model_type") == "llava_mistral":
        return MISTRAL_INSTRUCT
    text = "\u2016"  # in no template, and never cut or escaped by one
    parts = [{"type": "image"}, {"type": "text", "text": text}]
    rendered = ""
    # A text model's own template takes the whole turn as one string.
    for content in (parts, f"{IMAGE}\n{text}"):
        try:
            rendered = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=stored,
                tokenize=False,
                add_generation_prompt=True,
            )
        except (TemplateError, TypeError, ValueError):
            continue
        opening, image, after = rendered.partition(IMAGE)
        after_image, found, cue = after.partition(text)
        if image and found:
            return Template(opening.removeprefix(tokenizer.bos_token or ""), after_image, cue)
    raise ModelError(
        f"The chat template of {folder.name} does not put a user's text after {IMAGE}; it gives "
        f"{rendered[:200]!r}. Choose another checkpoint. {OTHERWISE}"
    )


def _processor_template(folder: Path) -> str | None:
    """The template where transformers 4 kept a processor's."""
    file = folder / "chat_template.json"
    if not file.is_file():
        return None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["chat_template"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder.name}/{file.name} cannot be read. Download the checkpoint again."
        ) from error


def load_image_processor(folder: Path, config: Any) -> Any:
    """The checkpoint's own colours and resampling or, where it stores none, LLaVA-Med's.

    The picture is always padded to a square with the mean colour, as LLaVA was taught on: many
    stored configurations crop to the middle, and the border of a radiograph is part of it.
    """
    side = config.vision_config.image_size
    square: dict[str, Any] = {
        "do_pad": True,
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
    }
    if any((folder / f).is_file() for f in ("preprocessor_config.json", "processor_config.json")):
        return LlavaImageProcessorPil.from_pretrained(folder, local_files_only=True, **square)
    return LlavaImageProcessorPil(**square)
