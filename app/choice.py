"""The choice of the model, made before torch is imported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mrrag.errors import OTHERWISE, MRRAGError
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


@dataclass(frozen=True)
class Offer:
    """A model that a visitor of the page may have loaded beside the one of the start.

    Attributes
    ----------
    name : str
        As of :class:`Choice`.
    what : str
        What it is, in a sentence; may be empty.
    """

    name: str
    what: str = ""

    @property
    def title(self) -> str:
        """The name without its owner or folder."""
        return Path(self.name).name


GENERAL = "It was not made for medical pictures: expect wrong answers."
# Pretrained models that answer on a laptop's processor.
SMALL = (
    Offer(
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        f"A general model with 0.26 billion parameters. {GENERAL}",
    ),
    Offer(
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        f"A general model with 0.51 billion parameters, and so slower. {GENERAL}",
    ),
)


def further_models(asked: Sequence[str], first: Choice, *, only_here: bool) -> tuple[Offer, ...]:
    """Return what is offered beside the first model; nothing of it is loaded or asked for yet.

    These are the other models that were asked for. Where none was, and the bundled model answers
    since there is no GPU, they are the :data:`SMALL` ones, but not where the hub must not be
    reached, nor where others than this machine's user could start a download.

    Parameters
    ----------
    only_here
        Whether the page is served to this machine alone.
    """
    if asked:
        return tuple(Offer(name) for name in dict.fromkeys(asked[1:]) if name != asked[0])
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    here = first.model == BUNDLED and first.device == "cpu" and only_here
    return SMALL if here and not offline and not has_cuda() else ()


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
    reason = str(error).removesuffix(f" {OTHERWISE}")
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
