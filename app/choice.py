"""Which model answers, decided before anything heavy is imported."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from mrrag.errors import MRRAGError
from mrrag.types import BUNDLED, LLAVA_MED


@dataclass(frozen=True)
class Choice:
    """A model and where it runs.

    Attributes
    ----------
    model : str
        ``"bundled"``, a folder, or a name on the hub.
    device : str
        As :func:`mrrag.model.checkpoint.load_model` takes it.
    why : str
        A sentence for the page where the model is not the one of the paper; else empty.
    replaceable : bool
        Whether the bundled model may take its place, since nobody asked for this one.
    """

    model: str
    device: str
    why: str = ""
    replaceable: bool = False


def choose_model(asked: str | None, *, cuda: bool, zero_gpu: bool = False) -> Choice:
    """The model that was asked for; else LLaVA-Med where there is a GPU, else the bundled one.

    Parameters
    ----------
    zero_gpu
        On a ZeroGPU Space the device comes and goes, so nothing is spread over devices.
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
    """The bundled model in place of one that could not be had; a model asked for has none."""
    if not choice.replaceable:
        raise error
    reason = str(error).removesuffix(" Or use the bundled model: --model bundled.")
    return Choice(BUNDLED, "cpu", why=f"It stands in for {choice.model}. {reason}")


def has_cuda() -> bool:
    """Whether torch can use a GPU; torch itself is asked only where there is a driver."""
    if not (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()):
        return False
    import torch

    return torch.cuda.is_available()


def on_zero_gpu() -> bool:
    """Whether this is a Hugging Face Space with ZeroGPU, by what the Space sets."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
