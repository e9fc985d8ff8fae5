"""A checkpoint's files: its configuration, its weight files, their size, and room for them.

Only headers are read here, never a whole tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open

from mrrag.errors import OTHERWISE, ModelError
from mrrag.hub import one_line
from mrrag.types import BUNDLED

TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
LARGE = 10**9  # parameters
QUANTIZED_BYTES = {"int8": 1.0, "int4": 0.5625}
_QUANTIZED_NAME = re.compile(r"layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$")


def stored_config(folder: Path) -> dict[str, Any]:
    """Return the fields of a checkpoint's config.json."""
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"No readable config.json in {folder}. Give the folder of a checkpoint."
        ) from error


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files that make up the model.

    Raises
    ------
    ModelError
        Where there is none, or one that the index names is missing.
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
    """Return the number of values of each stored tensor, by its stored name.

    Raises
    ------
    ModelError
        Where a file is truncated or is not a safetensors file.
    """
    return {name: math.prod(shape) for name, shape, _ in _tensors(folder)}


def _tensors(folder: Path) -> Iterator[tuple[str, list[int], str]]:
    """Yield name, shape and type of each stored tensor; the type as safetensors names it."""
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    tensor = tensors.get_slice(name)
                    yield name, tensor.get_shape(), tensor.get_dtype()
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{folder.name}/{file.name} is cut short or damaged ({one_line(error)}). Delete it "
                "and download the checkpoint again."
            ) from error


def default_dtype(folder: Path, device: str) -> torch.dtype:
    """Return the type to compute in: bfloat16 on a GPU, and for a large model on some CPUs.

    A CPU with Intel's AMX or AVX-512 BF16 reads a prompt several times as fast in bfloat16, and
    the model takes half the memory. Files that store float32 keep their precision on a CPU, and
    so does a small model, whose answers are then the same on every machine.
    """
    if device != "cpu":
        return torch.bfloat16
    # Not in every PyTorch that is allowed; float32 is always right.
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if not (able.get("amx_bf16") or able.get("avx512_bf16")):
        return torch.float32
    tensors = [*_tensors(folder)]
    large = sum(math.prod(shape) for _, shape, _ in tensors) >= LARGE
    half = any(kind in ("BF16", "F16") for _, _, kind in tensors)
    return torch.bfloat16 if large and half else torch.float32


def fingerprint(folder: Path) -> str:
    """Return sixteen hexadecimal digits that tell checkpoints apart, in milliseconds.

    SHA-256 over config.json, the tokenizer, the chat template and, for every weight file, its
    name, size, and first and last MiB: enough to notice retraining, but no seal.
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


def bytes_needed(sizes: Mapping[str, int], dtype: torch.dtype, quantize: str | None) -> int:
    """Return the memory of the weights alone, in bytes."""
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


def best_device(model: str) -> str:
    """Return "auto", which is every GPU there is, or "cpu" for the bundled model."""
    return "auto" if model != BUNDLED and torch.cuda.is_available() else "cpu"


def room(device: str, quantize: str | None = None) -> int:
    """Return the free bytes for weights on a device, less a tenth for prompts.

    "auto" counts every GPU and the CPU. bitsandbytes does not split a model, so quantised
    weights have the GPUs alone.
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
