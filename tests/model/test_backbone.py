"""What a checkpoint's folder states is what is loaded; images are read as transformers does."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llava import REPORTS, last, make, picture, three
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from mrrag.errors import ModelError, SettingsError
from mrrag.model.backbone import (
    Backbone,
    embed,
    encode_images,
    load_backbone,
    model_input,
    pixel_values,
)
from mrrag.model.prefill import (
    Branch,
)
from mrrag.types import Image


def test_features_and_logits_are_transformers_own(
    tiny_llava: Backbone, stock: LlavaForConditionalGeneration, features: Tensor
) -> None:
    prompt = make(tiny_llava)
    pixels = pixel_values(tiny_llava, [picture()])
    with torch.inference_mode():
        theirs = stock(input_ids=torch.tensor([prompt.ids]), pixel_values=pixels)
        ours = tiny_llava.model(inputs_embeds=embed(tiny_llava, prompt, features)[None])
        pooled = stock.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        assert torch.equal(pooled[0], features[0])
        assert torch.equal(theirs.logits, ours.logits)
        branch = last(tiny_llava, [Branch(prompt, features)])
    p_V = theirs.logits[0, -1].softmax(-1)
    assert branch.p_yes[0] == pytest.approx(p_V[list(tiny_llava.yes_ids)].sum().item(), abs=1e-6)
    assert branch.p_no[0] == pytest.approx(p_V[list(tiny_llava.no_ids)].sum().item(), abs=1e-6)


def test_the_vision_tower_keeps_stock_attention(tiny_llava: Backbone) -> None:
    model = tiny_llava.model.model
    assert model.vision_tower.config._attn_implementation == "sdpa"
    assert model.language_model.config._attn_implementation == "mrrag"


def test_colour_and_grey_pictures_are_read_alike(tiny_llava: Backbone) -> None:
    grey = picture()
    colour = Image(display=np.repeat(grey.display[:, :, None], 3, axis=2))
    pixels = pixel_values(tiny_llava, [grey, colour])
    assert pixels.shape == (2, 3, 28, 28)
    assert torch.equal(pixels[0], pixels[1])


@pytest.mark.parametrize("shape", [(40, 30), (20, 50), (33, 33, 3)])
def test_the_shown_model_input_is_what_the_tower_reads(
    tiny_llava: Backbone, shape: tuple[int, ...]
) -> None:
    image = picture(0, shape)
    seen = model_input(tiny_llava, image)
    assert seen.shape == (28, 28, 3)
    # LLaVA's own steps: a square of the mean colour, then bicubic.
    rows, columns = shape[:2]
    side = max(rows, columns)
    square = PIL.Image.new("RGB", (side, side), (122, 116, 104))
    plain = PIL.Image.fromarray(image.display).convert("RGB")
    square.paste(plain, ((side - columns) // 2, (side - rows) // 2))
    expected = np.asarray(square.resize((28, 28), PIL.Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(seen - expected).max() <= 1
    processor = tiny_llava.image_processor
    again = (seen / 255 - processor.image_mean) / processor.image_std
    read = pixel_values(tiny_llava, [image])[0].permute(1, 2, 0).numpy()
    assert np.abs(again - read).max() <= 0.51 / 255 / min(processor.image_std)


def test_images_encoded_together_are_images_encoded_apart(tiny_llava: Backbone) -> None:
    pictures = [picture(0), picture(1, (20, 50)), picture(2, (33, 33, 3))]
    together = encode_images(tiny_llava, pictures)
    apart = torch.cat([encode_images(tiny_llava, [p]) for p in pictures])
    assert together.shape == (3, tiny_llava.image_tokens, 32)
    assert (together - apart).abs().max() < 1e-4
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_what_the_folder_says_is_what_is_loaded(tiny_llava: Backbone) -> None:
    assert tiny_llava.image_tokens == 16
    assert tiny_llava.grid == (4, 4)
    assert tiny_llava.layers == 3
    assert tiny_llava.name == "tiny-llava"
    assert tiny_llava.eos_ids == (tiny_llava.tokenizer.eos_token_id,)
    words = [tiny_llava.tokenizer.decode([i]).strip() for i in tiny_llava.yes_ids]
    assert {"Yes", "yes"} <= set(words) <= {"Yes", "yes", "YES"}
    assert not set(tiny_llava.yes_ids) & set(tiny_llava.no_ids)
    assert not tiny_llava.model.training
    assert not any(p.requires_grad for p in tiny_llava.model.parameters())


@pytest.fixture
def copied(tiny_llava_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llava_folder, tmp_path / "copy"))


def change_weights(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def test_half_precision_files_are_computed_in_the_type_asked_for(
    tiny_llava: Backbone, copied: Path
) -> None:
    change_weights(copied, lambda w: {name: t.half() for name, t in w.items()})
    loaded = load_backbone(copied)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.fingerprint != tiny_llava.fingerprint
    half = load_backbone(copied, dtype=torch.bfloat16)
    step = last(half, three(half, encode_images(half, [picture()])), max_new_tokens=2)
    assert all(0 < p < 1 for p in step.p_yes)


def test_the_fingerprint_is_the_files_own(tiny_llava: Backbone, copied: Path) -> None:
    assert load_backbone(copied).fingerprint == tiny_llava.fingerprint


def test_a_missing_parameter_is_refused_by_name(copied: Path) -> None:
    change_weights(copied, lambda w: {n: t for n, t in w.items() if "lm_head" not in n})
    with pytest.raises(ModelError, match=r"missing parameters: lm_head\.weight"):
        load_backbone(copied)


def test_an_unexpected_parameter_is_refused_by_name(copied: Path) -> None:
    change_weights(copied, lambda w: w | {"adapter.weight": torch.zeros(2)})
    with pytest.raises(ModelError, match=r"unexpected parameters: adapter\.weight"):
        load_backbone(copied)


def test_a_parameter_of_another_shape_is_refused(copied: Path) -> None:
    change_weights(copied, lambda w: {n: t[:5] if "lm_head" in n else t for n, t in w.items()})
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        load_backbone(copied)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_folder_is_refused(copied: Path, missing: str) -> None:
    (copied / missing).unlink()
    with pytest.raises(ModelError):
        load_backbone(copied)


def test_a_folder_of_another_kind_is_refused(copied: Path, tmp_path: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ModelError, match="'bert'"):
        load_backbone(copied)
    with pytest.raises(ModelError, match="There is no folder"):
        load_backbone(tmp_path / "nowhere")


def test_a_prompt_longer_than_the_model_reads_is_refused(
    tiny_llava: Backbone, features: Tensor
) -> None:
    prompt = make(tiny_llava, REPORTS * 20)
    with pytest.raises(SettingsError, match="the model reads 512"):
        embed(tiny_llava, prompt, features)
    model = copy.copy(tiny_llava.model)
    model.config = copy.deepcopy(model.config)
    model.config.text_config.sliding_window = 100
    with pytest.raises(SettingsError, match="the model reads 100"):
        embed(replace(tiny_llava, model=model), make(tiny_llava, REPORTS * 4), features)


def test_features_that_do_not_fit_the_prompt_are_refused(
    tiny_llava: Backbone, features: Tensor
) -> None:
    with pytest.raises(ValueError, match="differ in length"):
        embed(tiny_llava, make(tiny_llava), None)
    with pytest.raises(ValueError, match="differ in length"):
        embed(tiny_llava, make(tiny_llava), features[:, :5])


def test_a_large_model_is_bound_by_weights_where_bfloat16_is_multiplied() -> None:
    with torch.device("meta"):
        weights = {size: torch.nn.Linear(size, 1000, bias=False) for size in (1000, 1000_000)}
    for size, dtype, rounded, bound in [
        (1000_000, torch.bfloat16, None, True),
        (1000_000, torch.bfloat16, "int4", False),
        (1000_000, torch.float32, None, False),
        (1000, torch.bfloat16, None, False),
    ]:
        model = weights[size]
        given = {"model": model, "dtype": dtype, "hf_quantizer": rounded}
        model.get_input_embeddings = lambda model=model: model
        model.dtype, model.hf_quantizer = dtype, rounded
        backbone = Backbone(model, None, None, None, 0, None, (), (), (), "", "")
        assert backbone.bound_by_weights is bound, given
