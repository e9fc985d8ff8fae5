"""The choice of the model, made before torch is imported."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from mrrag.errors import MRRAGError
from mrrag.types import BUNDLED, LLAVA_MED


@dataclass(frozen=True)
class Choice:
    """A model and its device.

    Attributes
    ----------
    model : str
        ``"bundled"``, a folder, or a name on the hub.
    device : str
        As :func:`mrrag.model.checkpoint.load_model` takes it.
    why : str
        A sentence for the page if the model is not the one of the paper; else empty.
    replaceable : bool
        Whether the bundled model may replace it, since it is only the default.
    """

    model: str
    device: str
    why: str = ""
    replaceable: bool = False


def choose_model(asked: str | None, *, cuda: bool, zero_gpu: bool = False) -> Choice:
    """Return the model that was asked for, else LLaVA-Med on a GPU, else the bundled one.

    Parameters
    ----------
    zero_gpu
        On a ZeroGPU Space the device is lent per call, so nothing is spread over devices.
    """
    device = "cuda" if zero_gpu else "auto" if cuda else "cpu"
    if asked == BUNDLED:
        return Choice(BUNDLED, "cpu")
    if asked:
        return Choice(asked, device)
    if cuda or zero_gpu:
        return Choice(LLAVA_MED, device, replaceable=True)
    return Choice(BUNDLED, "cpu", why="This machine has no CUDA GPU, which LLaVA-Med needs.")


def instead_of(choice: Choice, error: MRRAGError) -> Choice:
    """Return the bundled model in place of a default that could not be loaded.

    Raises
    ------
    MRRAGError
        If the model was asked for.
    """
    if not choice.replaceable:
        raise error
    reason = str(error).removesuffix(" Or use the bundled model: --model bundled.")
    return Choice(BUNDLED, "cpu", why=f"It replaces {choice.model}. {reason}")


def has_cuda() -> bool:
    """Return whether torch can use a GPU; torch is only imported if there is a driver."""
    if not (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()):
        return False
    import torch

    return torch.cuda.is_available()


def on_zero_gpu() -> bool:
    """Return whether this is a Hugging Face Space with ZeroGPU."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
