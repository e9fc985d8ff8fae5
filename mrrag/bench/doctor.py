"""What this machine can do: packages, devices, memory, the page's model, the hub, a self-test.

What it says names no user, no host and no directory, so that it can be shown to others.
"""

from __future__ import annotations

import math
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
from huggingface_hub import constants

from mrrag.bench.self_test import Check, self_test
from mrrag.errors import OTHERWISE, ModelError, MRRAGError
from mrrag.hub import downloaded, repository_bytes
from mrrag.loading import load_pipeline
from mrrag.model.checkpoint import FILES, check_loadable
from mrrag.model.weights import room
from mrrag.pipeline import PACKAGES, Pipeline
from mrrag.types import BUNDLED, LLAVA_MED

HUB_TIMEOUT_S = 4.0
OUTCOMES = {True: "passed", False: "FAILED", None: "not tested"}


@dataclass(frozen=True)
class Diagnosis:
    """What was found; every text is fit to be shown to others.

    Attributes
    ----------
    versions, machine : dict
        By package; by part of the machine.
    page_model, why : str
        The model that the page would choose, and a sentence that says why.
    hub : str
        Whether the hub answers, in a sentence.
    tested : str
        Model, type and device of the self-test.
    checks : tuple of Check
        The first is whether the model could be loaded.
    seconds : float
        What the self-test took.
    """

    versions: dict[str, str]
    machine: dict[str, str]
    page_model: str
    why: str
    hub: str
    tested: str
    checks: tuple[Check, ...]
    seconds: float


def examine(
    assets: Path, *, release: str, model: str = BUNDLED, quantize: str | None = None
) -> Diagnosis:
    """Look at this machine, and test a model on its GPU or, without one, its CPU.

    Nothing raises: what fails is a failed check.

    Parameters
    ----------
    release
        The version of MR-RAG.
    model, quantize
        As of :func:`mrrag.loading.load_pipeline`.
    """
    hub, size = ask_hub(LLAVA_MED)
    cuda = has_cuda()
    page_model, why = page_choice(cuda=cuda, size=size)
    machine = machine_facts()  # before a model takes its share
    start = time.perf_counter()
    tested, checks = _examined(assets, model, quantize, "auto" if cuda else "cpu")
    return Diagnosis(
        versions={"mrrag": release} | versions(),
        machine=machine,
        page_model=page_model,
        why=without_paths(why),
        hub=hub,
        tested=tested,
        checks=checks,
        seconds=time.perf_counter() - start,
    )


def _examined(
    assets: Path, model: str, quantize: str | None, device: str
) -> tuple[str, tuple[Check, ...]]:
    start = time.perf_counter()
    try:
        pipeline = load_pipeline(assets, model=model, quantize=quantize, device=device)
    except MRRAGError as error:
        return "no model", (Check("model", False, without_paths(str(error))),)
    except Exception as error:  # a package that does not work here
        said = f"Loading it ended with {type(error).__name__}: {error}"
        return "no model", (Check("model", False, without_paths(said)),)
    loaded = Check("model", True, f"Loaded in {time.perf_counter() - start:.1f} s.")
    return _tested(pipeline, model, quantize), (loaded, *_shown(self_test(pipeline)))


def _shown(checks: Iterator[Check]) -> Iterator[Check]:
    for c in checks:
        # JSON has no NaN.
        measured = c.measured if c.measured is not None and math.isfinite(c.measured) else None
        yield Check(c.name, c.passed, without_paths(c.detail), measured, c.allowed)


def _tested(pipeline: Pipeline, model: str, quantize: str | None) -> str:
    backbone = pipeline.backbone
    dtype = str(backbone.model.dtype).removeprefix("torch.")
    device = backbone.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    name = model if model == BUNDLED else backbone.name
    return ", ".join(filter(None, (name, dtype, quantize, where)))


# The machine


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what works."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine_facts() -> dict[str, str]:
    """Return system, processor, memory, disk and GPUs; free memory in GB of 10⁹ bytes."""
    memory = psutil.virtual_memory()
    cores = psutil.cpu_count(logical=False) or "?"
    facts = {
        "system": f"{platform.system()}, {platform.machine()}",
        "processor": f"{cores} cores; threads of torch: {torch.get_num_threads()}",
        "memory": f"{_gb(memory.available)} of {_gb(memory.total)} GB free",
        "disk for downloaded models": f"{_gb(_free_disk())} GB free",
    }
    for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(n)
        facts[f"GPU {n}"] = (
            f"{torch.cuda.get_device_name(n)}, {_gb(free)} of {_gb(total)} GB free, "
            f"CUDA {torch.version.cuda}"
        )
    if not torch.cuda.is_available():
        facts["GPU"] = (
            f"torch finds no CUDA GPU; it was built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else "none, and this torch is built for the CPU alone"
        )
    return facts


def _free_disk() -> int:
    """Return the free bytes of the disk to which models are downloaded."""
    place = Path(constants.HF_HUB_CACHE)
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f}"


# The hub, and the page's model


def ask_hub(name: str, timeout_s: float = HUB_TIMEOUT_S) -> tuple[str, int | None]:
    """Return whether the hub answers, in a sentence, and the size of a repository in bytes."""
    if constants.HF_HUB_OFFLINE:
        return "Not asked, since HF_HUB_OFFLINE is set.", None
    try:
        size = repository_bytes(name, FILES, timeout_s=timeout_s)
    except ModelError:
        return "Not reached, so only models on this machine can be used.", None
    return "Reached.", size


def has_cuda() -> bool:
    """Return whether the page would use a GPU: there is a driver, and torch works with it."""
    driver = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()
    return bool(driver) and torch.cuda.is_available()


def page_choice(*, cuda: bool, size: int | None) -> tuple[str, str]:
    """Return the model that the page chooses where none is asked for, and why.

    The rule is that of ``app.py``: LLaVA-Med on a CUDA GPU, else the bundled model, which also
    replaces LLaVA-Med where that cannot be loaded. Nothing is downloaded.

    Parameters
    ----------
    size
        Bytes of LLaVA-Med on the hub; None where the hub was not reached.
    """
    if not cuda:
        return BUNDLED, "This machine has no CUDA GPU, which LLaVA-Med needs."
    folder = downloaded(LLAVA_MED, FILES)
    if folder is not None:
        try:
            check_loadable(folder, device="auto", quantize=None)
        except ModelError as error:
            reason = str(error).removesuffix(f" {OTHERWISE}")
            return BUNDLED, f"It replaces {LLAVA_MED}. {reason}"
        return LLAVA_MED, "There is a CUDA GPU, and the model is downloaded and fits."
    if size is None:
        return BUNDLED, f"{LLAVA_MED} is not downloaded, and the hub is not reached."
    for free, place in ((_free_disk(), "disk"), (room("auto"), "memory")):
        if free < size:
            return BUNDLED, (
                f"{LLAVA_MED} takes {_gb(size)} GB of {place}, and {_gb(free)} GB are free."
            )
    return LLAVA_MED, f"There is a CUDA GPU. The page would download {_gb(size)} GB, once."


# Text


def without_paths(text: str) -> str:
    """Return a text in which an absolute path is only its last name."""
    text = text.replace(str(Path.home()), "~").replace("~/", "/~/")
    return re.sub(r"(?<![\w:/.])(?:[A-Za-z]:)?[/\\](?:[^\s/\\]+[/\\])+", "…/", text)


def doctor_text(found: Diagnosis) -> str:
    """Return what was found as two tables in Markdown."""
    facts = [
        *found.versions.items(),
        *found.machine.items(),
        ("the page's model", f"{found.page_model}. {found.why}"),
        ("Hugging Face hub", found.hub),
    ]
    checks = [(check.name, OUTCOMES[check.passed], check.detail) for check in found.checks]
    return "\n".join(
        (
            *_table(("machine", "found"), facts),
            "",
            f"Self-test of {found.tested}, {found.seconds:.0f} s:",
            "",
            *_table(("check", "outcome", "found"), checks),
        )
    )


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table with aligned columns."""
    cells = [[" ".join(cell.split()).replace("|", "/") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heading, *cells, strict=True)]
    widths[-1] = len(heading[-1])  # the last column is as long as its text
    for row in (heading, ["-" * width for width in widths], *cells):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"| {' | '.join(padded)} |"
