"""A picture is held against those that the answering model was trained on."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mrrag.errors import ModelError
from mrrag.files import ASSETS
from mrrag.model.backbone import Backbone, load_backbone
from mrrag.model.world import WORLD, World, is_outside, load_world, measure_world, save_world
from mrrag.phantom.render import render
from mrrag.phantom.world import draw_studies
from mrrag.types import Image


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(ASSETS / "llava")


@pytest.fixture(scope="module")
def world(backbone: Backbone) -> World:
    found = load_world(ASSETS / "llava", backbone)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def film() -> np.ndarray:
    return (render(draw_studies(3, seed=77)[0], 256) >> 4).astype(np.uint8)


def test_a_phantom_of_another_seed_is_known_however_it_is_stored(
    backbone: Backbone, world: World, film: np.ndarray
) -> None:
    wider = np.clip((film.astype(float) - 127.5) * 0.9 + 127.5, 0, 255).astype(np.uint8)
    for display in (film, np.stack([film] * 3, axis=-1), wider):
        assert not is_outside(backbone, world, Image(display))


def test_what_no_phantom_looks_like_is_outside(
    backbone: Backbone, world: World, film: np.ndarray
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (99, 140)).astype(np.uint8)
    grey = np.full((64, 64), 128, np.uint8)
    for display in (noise, grey, 0 * grey, 255 - film, film[::-1], film[:100]):
        assert is_outside(backbone, world, Image(np.ascontiguousarray(display)))


def test_a_world_is_measured_written_and_read_again(tiny_llava: Backbone, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 28 * 28).reshape(28, 28)
    images = [Image((ramp + rng.integers(0, 30, ramp.shape)).astype(np.uint8)) for _ in range(120)]
    made = measure_world(tiny_llava, images, np.arange(120), "ramps")
    assert load_world(tmp_path, tiny_llava) is None
    save_world(made, tmp_path)
    read = load_world(tmp_path, tiny_llava)
    assert read is not None
    assert torch.equal(read.limits_2, made.limits_2)
    assert "trained on (ramps only)" in read.warning
    assert sum(is_outside(tiny_llava, read, image) for image in images) <= 6
    assert is_outside(tiny_llava, read, Image(255 - images[0].display))


@pytest.mark.parametrize("spoil", ["cut", "absent", "shape", "nan", "tower", "meta"])
def test_a_damaged_world_or_one_of_another_model_is_refused(
    backbone: Backbone, tmp_path: Path, spoil: str
) -> None:
    tensors, meta = load_file(ASSETS / "llava" / WORLD), {"trained_on": "phantoms"}
    if spoil == "absent":
        del tensors["small_D"]
    elif spoil == "shape":
        tensors["center_F"] = tensors["center_F"][1:].contiguous()
    elif spoil == "nan":
        tensors["limits_2"] = tensors["limits_2"] * torch.nan
    elif spoil == "tower":
        tensors["probe_F"] = tensors["probe_F"].flip(0)
    save_file(tensors, tmp_path / WORLD, {"other": ""} if spoil == "meta" else meta)
    if spoil == "cut":
        (tmp_path / WORLD).write_bytes((tmp_path / WORLD).read_bytes()[:1000])
    with pytest.raises(ModelError, match=re.escape("measure-world")):
        load_world(tmp_path, backbone)
