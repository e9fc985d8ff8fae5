"""What is said of a machine is so, names nobody, and holds where parts of it do not work."""

from __future__ import annotations

import getpass
import json
import math
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from app import choice
from mrrag.bench import doctor as module
from mrrag.bench.doctor import (
    ask_hub,
    doctor_text,
    examine,
    has_cuda,
    page_choice,
    versions,
    without_paths,
)
from mrrag.bench.self_test import Check
from mrrag.errors import OTHERWISE, ModelError
from mrrag.files import ASSETS
from mrrag.types import BUNDLED, LLAVA_MED

SIZE = 15_100_000_000


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> int:
        raise ModelError("The hub cannot be reached (ConnectError).")

    monkeypatch.setattr(module, "repository_bytes", unreachable)
    monkeypatch.setattr(module, "downloaded", lambda *_: None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test, which has tests of its own, as one check."""
    checks = [Check("batch and single", False, "Logits differ by nan.", math.nan, 1e-4)]
    monkeypatch.setattr(module, "self_test", lambda pipeline: iter(checks))


def test_the_report_says_what_was_found_and_names_nobody(quick: None) -> None:
    found = examine(ASSETS, release="9.9")
    text, stored = doctor_text(found), json.dumps(asdict(found), allow_nan=False)
    assert found.tested.startswith("bundled, float32, ") or torch.cuda.is_available()
    assert found.versions["torch"] == torch.__version__
    assert found.versions["mrrag"] == "9.9"
    assert "| model            | passed  | Loaded in " in text
    assert "| batch and single | FAILED  | Logits differ by nan. |" in text
    for secret in (getpass.getuser(), platform.node(), str(Path.home()), str(ASSETS)):
        for said in (text, stored):
            assert f"{secret}/" not in said
            assert f" {secret} " not in said


def test_a_model_that_cannot_be_loaded_is_a_failed_check(tmp_path: Path) -> None:
    found = examine(ASSETS, release="9.9", model=str(tmp_path / "nowhere"))
    (check,) = found.checks
    assert (check.name, check.passed) == ("model", False)
    assert "There is no folder …/nowhere." in check.detail
    assert str(tmp_path) not in doctor_text(found)


def test_a_package_that_does_not_work_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ImportError("/home/someone/site/faiss.so: undefined symbol")

    monkeypatch.setattr(module, "load_pipeline", broken)
    (check,) = examine(ASSETS, release="9.9").checks
    assert check.passed is False
    assert check.detail == "Loading it ended with ImportError: …/faiss.so: undefined symbol"


def test_a_package_that_is_absent_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))
    assert versions()["no-such-package"] == "not installed"


# The page's choice


@pytest.mark.parametrize("driver", [None, "/usr/bin/nvidia-smi"])
@pytest.mark.parametrize("torch_finds_one", [True, False])
def test_the_choice_is_the_page_s_own(
    monkeypatch: pytest.MonkeyPatch, driver: str | None, torch_finds_one: bool
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: driver)
    monkeypatch.setattr("torch.cuda.is_available", lambda: torch_finds_one)
    monkeypatch.setattr(module, "_free_disk", lambda: 2 * SIZE)
    monkeypatch.setattr(module, "room", lambda device: 2 * SIZE)
    cuda = choice.has_cuda()
    assert has_cuda() == cuda
    chosen = choice.choose_model(None, cuda=cuda)
    model, why = page_choice(cuda=cuda, size=SIZE)
    assert model == chosen.model
    assert why == chosen.why or cuda


def test_a_model_that_is_there_and_fits_is_chosen_without_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "downloaded", lambda *_: tmp_path)
    monkeypatch.setattr(module, "check_loadable", lambda folder, **_: None)
    assert page_choice(cuda=True, size=None)[0] == LLAVA_MED


def test_a_model_that_does_not_fit_is_replaced_as_the_page_replaces_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    error = ModelError(f"llava-med takes 15.1 GB of memory and 8.0 GB are free. {OTHERWISE}")

    def refuse(folder: Path, **_: Any) -> None:
        raise error

    monkeypatch.setattr(module, "downloaded", lambda *_: tmp_path)
    monkeypatch.setattr(module, "check_loadable", refuse)
    stand_in = choice.instead_of(choice.choose_model(None, cuda=True), error)
    assert page_choice(cuda=True, size=None) == (stand_in.model, stand_in.why)


@pytest.mark.parametrize(
    ("size", "disk", "memory", "model", "said"),
    [
        (None, SIZE, SIZE, BUNDLED, "the hub is not reached"),
        (SIZE, SIZE - 1, SIZE, BUNDLED, "15.1 GB of disk"),
        (SIZE, SIZE, SIZE - 1, BUNDLED, "15.1 GB of memory"),
        (SIZE, SIZE, SIZE, LLAVA_MED, "would download 15.1 GB"),
    ],
)
def test_a_model_to_be_downloaded_needs_the_hub_disk_and_memory(
    monkeypatch: pytest.MonkeyPatch,
    size: int | None,
    disk: int,
    memory: int,
    model: str,
    said: str,
) -> None:
    monkeypatch.setattr(module, "_free_disk", lambda: disk)
    monkeypatch.setattr(module, "room", lambda device: memory)
    chosen, why = page_choice(cuda=True, size=size)
    assert chosen == model
    assert said in why


# The hub


def test_being_offline_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask_hub(LLAVA_MED) == (
        "Not reached, so only models on this machine can be used.",
        None,
    )
    monkeypatch.setattr(module, "repository_bytes", lambda *_, **__: SIZE)
    assert ask_hub(LLAVA_MED) == ("Reached.", SIZE)
    monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", True)
    assert ask_hub(LLAVA_MED) == ("Not asked, since HF_HUB_OFFLINE is set.", None)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("No file /data/jane/llava/config.json.", "No file …/config.json."),
        (r"No file C:\Users\Jane\llava\config.json.", "No file …/config.json."),
        (f"Not in {Path.home()}/models.", "Not in …/models."),
        ("see https://huggingface.co/owner/name", "see https://huggingface.co/owner/name"),
        ("owner/name and 3/4 of it", "owner/name and 3/4 of it"),
    ],
)
def test_paths_are_cut_to_their_last_name(said: str, shown: str) -> None:
    assert without_paths(said) == shown
