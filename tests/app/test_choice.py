"""Which model answers, and that the page starts as a Hugging Face Space starts it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import SpaceHardware
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from published import FULL_SIZE

from app.about import read_about
from app.choice import (
    SMALL,
    Choice,
    choose_model,
    further_models,
    has_cuda,
    instead_of,
    on_zero_gpu,
)
from app.frame import header
from mrrag.errors import OTHERWISE, ModelError
from mrrag.learnt import learnt_for
from mrrag.types import BUNDLED, LLAVA_MED, Weights

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets"
# https://huggingface.co/docs/hub/spaces-config-reference
SPACE_KEYS = {
    *("title", "emoji", "colorFrom", "colorTo", "thumbnail", "short_description", "license"),
    *("sdk", "sdk_version", "python_version", "app_file", "app_port", "base_path", "fullWidth"),
    *("suggested_hardware", "suggested_storage", "startup_duration_timeout", "header", "pinned"),
    *("models", "datasets", "tags", "preload_from_hub", "disable_embedding", "custom_headers"),
}


@pytest.mark.parametrize(
    ("asked", "cuda", "zero_gpu", "model", "device"),
    [
        (None, False, False, BUNDLED, "cpu"),
        (None, True, False, LLAVA_MED, "auto"),
        (None, True, True, LLAVA_MED, "cuda"),
        (BUNDLED, True, False, BUNDLED, "cpu"),
        (BUNDLED, False, False, BUNDLED, "cpu"),
        ("a/folder", True, False, "a/folder", "auto"),
        ("a/folder", False, False, "a/folder", "cpu"),
    ],
)
def test_the_model_follows_from_what_was_asked_and_the_gpu(
    asked: str | None, cuda: bool, zero_gpu: bool, model: str, device: str
) -> None:
    choice = choose_model(asked, cuda=cuda, zero_gpu=zero_gpu)
    assert (choice.model, choice.device) == (model, device)
    # What was asked for is never exchanged, and needs no excuse.
    assert choice.replaceable == (asked is None and cuda)
    assert bool(choice.why) == (asked is None and not cuda)


def test_the_bundled_model_stands_in_and_says_why() -> None:
    choice = choose_model(None, cuda=True)
    stand_in = instead_of(choice, ModelError(f"The hub cannot be reached. {OTHERWISE}"))
    assert "--model" not in stand_in.why
    assert (stand_in.model, stand_in.device) == (BUNDLED, "cpu")
    assert "The hub cannot be reached." in stand_in.why
    about = read_about(ASSETS, why=stand_in.why)
    page = header(about)
    assert "The hub cannot be reached." in page
    assert LLAVA_MED in page


def test_small_models_are_offered_only_on_the_own_machine_s_cpu_where_the_hub_may_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("app.choice.has_cuda", lambda: False)
    bundled = choose_model(None, cuda=False)
    assert further_models([], bundled, only_here=True) == SMALL
    assert further_models([], bundled, only_here=False) == ()
    assert further_models([BUNDLED], bundled, only_here=True) == ()
    assert further_models([], choose_model(None, cuda=True), only_here=True) == ()
    monkeypatch.setattr("app.choice.has_cuda", lambda: True)  # it replaces one that did not fit
    assert further_models([], bundled, only_here=True) == ()
    monkeypatch.setattr("app.choice.has_cuda", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert further_models([], bundled, only_here=True) == ()


def test_the_models_that_were_asked_for_beside_the_first_are_offered_once() -> None:
    offers = further_models(["a", "b/c", "b/c", "a"], Choice("a", "cpu"), only_here=False)
    assert [(offer.name, offer.title) for offer in offers] == [("b/c", "c")]


def test_a_small_model_says_that_it_was_not_made_for_medical_pictures() -> None:
    about = replace(read_about(ASSETS), model=SMALL[0].name, phantoms_only=False)
    assert "not made for medical pictures" in header(about)
    assert all("not made for medical pictures" in offer.what for offer in SMALL)


def test_a_model_in_a_folder_is_shown_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FULL_SIZE))
    assert read_about(ASSETS, model=str(tmp_path), folder=tmp_path).model == tmp_path.name


def test_a_model_that_was_asked_for_has_no_stand_in() -> None:
    with pytest.raises(ModelError, match="no such"):
        instead_of(Choice("mine", "cpu"), ModelError("no such folder"))


def test_without_a_driver_torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would fail
    assert not has_cuda()


def test_zero_gpu_is_what_the_space_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert not on_zero_gpu()
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert on_zero_gpu()


def test_the_page_reads_the_published_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FULL_SIZE))
    about = read_about(ASSETS, model=LLAVA_MED, folder=tmp_path)
    assert (about.model, about.layers, about.critical) == (LLAVA_MED, 32, ())
    assert not about.phantoms_only


def test_the_page_reads_a_config_that_leaves_out_what_is_usual(tmp_path: Path) -> None:
    """As transformers 4 wrote them, the converted copies' among them."""
    text = {"model_type": "mistral", "rope_theta": 1e6, "vocab_size": 32064}
    eye = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
    stored = {"model_type": "llava", "text_config": text, "vision_config": eye}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    about = read_about(ASSETS, model=str(tmp_path), folder=tmp_path)
    assert (about.layers, about.heads) == (32, 32)


def test_layers_are_never_guessed_for_another_model(tmp_path: Path) -> None:
    bundled = learnt_for(BUNDLED, None, ASSETS)
    assert bundled.steering.layers
    other = learnt_for(LLAVA_MED, None, ASSETS)
    assert (other.steering.layers, other.steering.strength) == ((), 1.0)
    assert other.weights == bundled.weights
    assert learnt_for(BUNDLED, tmp_path, ASSETS).weights == Weights(1 / 3, 1 / 3, 1 / 3)
    (tmp_path / "learnt.json").write_text(
        json.dumps(
            {
                "model": LLAVA_MED,
                "weights": {"alpha": 0.5, "beta": 0.25, "gamma": 0.25},
                "layers": [14, 15],
                "strength": 0.5,
                "rows": "question",
            }
        )
    )
    own = learnt_for(LLAVA_MED, tmp_path, ASSETS)
    assert (own.weights.alpha, own.steering.layers, own.steering.strength) == (0.5, (14, 15), 0.5)


def free_port() -> int:
    """7860, which is a Space's, where nobody has it."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 7860)):
            return 7860
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


STAND_IN = """
def GPU(duration):
    print("a function that borrows")
    return lambda task: task

def gradio_auto_wrap(task):
    return task
"""


def front_matter() -> dict[str, Any]:
    """What a Space reads of the README."""
    start, matter, _ = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert not start
    values: dict[str, Any] = yaml.safe_load(matter)
    return values


def test_the_front_matter_is_what_a_space_takes() -> None:
    matter = front_matter()
    assert set(matter) <= SPACE_KEYS
    assert matter["sdk"] == "gradio"
    assert matter["suggested_hardware"] in [hardware.value for hardware in SpaceHardware]
    assert len(matter["short_description"]) <= 60
    for colour in (matter["colorFrom"], matter["colorTo"]):
        assert colour in ["red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"]
    assert len(matter["emoji"]) == 1
    assert matter["license"] == "apache-2.0"


def test_the_front_matter_fits_the_project() -> None:
    matter = front_matter()
    pythons = re.search(
        r'requires-python = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    )
    assert pythons
    assert Version(matter["python_version"]) in SpecifierSet(pythons[1])
    needed = [
        Requirement(line)
        for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    gradio = next(r for r in needed if r.name == "gradio")
    assert Version(matter["sdk_version"]) in gradio.specifier
    assert (ROOT / matter["app_file"]).is_file()
    # What the page loads where nobody asks for a model, and so is better there beforehand.
    chosen = choose_model(None, cuda=True, zero_gpu=True).model
    assert matter["models"] == matter["preload_from_hub"] == [chosen]


@pytest.mark.timeout(900)
def test_the_page_starts_as_on_a_space_with_zero_gpu(tmp_path: Path) -> None:
    # The real package wants a torch that was built for CUDA.
    (tmp_path / "spaces.py").write_text(STAND_IN)
    port = free_port()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("GRADIO_")
    } | {
        "SYSTEM": "spaces",
        "SPACE_ID": "someone/mr-rag",
        "SPACE_HOST": "someone-mr-rag.hf.space",
        "SPACE_AUTHOR_NAME": "someone",
        "SPACE_REPO_NAME": "mr-rag",
        "SPACES_ZERO_GPU": "true",
        "PYTHONPATH": str(tmp_path),
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": str(port),
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    log = tmp_path / "log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 840
        while "The model is ready" not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        # Another address than the one that a page of this machine's own has.
        with urllib.request.urlopen(f"http://127.0.0.2:{port}/", timeout=60) as page:
            assert page.status == 200
            assert b"MR-RAG" in page.read()
        # ZeroGPU ends a Space without one, whichever model answers.
        assert "a function that borrows" in log.read_text()
    finally:
        server.terminate()
        server.wait(60)
