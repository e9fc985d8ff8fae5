"""Every family of models has every property, measured against transformers' own model."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_families import TINY, Tiny, write_json
from tiny_llava import LAMBDAS, QUESTION, REPORTS, last, picture
from torch import Tensor
from transformers import AttentionInterface, SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import mrrag
from mrrag.errors import ModelError, SettingsError
from mrrag.model.answering import answer_batch
from mrrag.model.backbone import (
    Backbone,
    encode_all,
    encode_each,
    encode_images,
    load_backbone,
    model_input,
)
from mrrag.model.families import FAMILIES, REFUSED
from mrrag.model.prefill import Branch
from mrrag.model.prompt import Prompt, prompt_text
from mrrag.report.pictures import patch_box, patches_on_picture
from mrrag.types import Image, Steering

STEERED = Steering(1.0, (0, 1, 2))
# Not square, and in neither direction.
SHAPES = [(56, 28), (30, 61)]


def make(
    backbone: Backbone, reports: tuple[str, ...] = REPORTS, question: str = QUESTION
) -> Prompt:
    return backbone.prompt(question, reports, image=backbone.grid_of(picture()))


@pytest.fixture(scope="module", params=list(TINY))
def family(request: pytest.FixtureRequest) -> Tiny:
    return TINY[request.param]


@pytest.fixture(scope="module")
def folder(family: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family") / "tiny"
    folder.mkdir()
    family.write(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(folder)


@pytest.fixture(scope="module")
def stock(family: Tiny, folder: Path) -> Any:
    return family.stock(folder)


@pytest.fixture(scope="module")
def features(backbone: Backbone) -> Tensor:
    return encode_images(backbone, [picture()])


@torch.inference_mode()
def reference(
    stock: Any, family: Tiny, backbone: Backbone, branch: Branch, steering: Steering
) -> Tensor:
    """The next token's logits by transformers' own pass over the whole prompt; [V].

    The attention is by definition, dense and without a cache, with λ for every row.
    """
    prompt = branch.prompt
    lam_QX = torch.zeros(len(prompt.ids), len(prompt.ids))
    question = slice(prompt.span("question").start, len(prompt.ids))
    for span, lam in zip(prompt.reports, branch.relevance, strict=False):
        lam_QX[question, span.start : span.stop] = lam * steering.strength

    def dense(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any):
        heads = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(heads, dim=1).double() for t in (key, value))
        logits = query.double() @ key.mT * options["scaling"]
        if module.layer_idx in steering.layers:
            logits = logits + lam_QX * logits.abs()
        future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        weights = logits.masked_fill(future, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2).float(), None

    AttentionInterface.register("dense-reference", dense)
    AttentionMaskInterface.register("dense-reference", sdpa_mask)
    stock.set_attn_implementation({"text_config": "dense-reference"})
    try:
        ids = torch.tensor([prompt.ids])
        output = stock(input_ids=ids, **family.inputs(backbone, picture(), prompt))
    finally:
        stock.set_attn_implementation({"text_config": "sdpa"})
    logits: Tensor = output.logits[0, -1]
    return logits


def test_greedy_tokens_are_generate_s(
    family: Tiny, backbone: Backbone, stock: Any, features: Tensor
) -> None:
    prompts = [make(backbone), make(backbone, ()), make(backbone, REPORTS[:1], "Is it clear?")]
    step = last(backbone, [Branch(p, features) for p in prompts], max_new_tokens=8, trace=False)
    for prompt, text in zip(prompts, step.texts, strict=True):
        ids = torch.tensor([prompt.ids])
        generated = stock.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=8,
            pad_token_id=0,
            **family.inputs(backbone, picture(), prompt),
        )
        expected = backbone.tokenizer.decode(
            generated[0, len(prompt.ids) :], skip_special_tokens=True
        )
        assert text == expected.strip()
        assert text


def test_strength_zero_is_plain_bit_for_bit(backbone: Backbone, features: Tensor) -> None:
    prompt = make(backbone)
    for form in ("ifa", "balanced"):
        none = replace(STEERED, strength=0.0, form=form)
        plain = last(backbone, [Branch(prompt, features)], none)
        steered = last(backbone, [Branch(prompt, features, LAMBDAS)], none)
        assert plain.p_yes == steered.p_yes
        assert plain.texts == steered.texts
        assert np.array_equal(plain.traces[0].keys_LX, steered.traces[0].keys_LX)


@pytest.mark.parametrize("strength", [0.0, 1.0, 3.0])
def test_steered_rows_equal_a_dense_reference(
    family: Tiny, backbone: Backbone, stock: Any, features: Tensor, strength: float
) -> None:
    steering = replace(STEERED, strength=strength, layers=(0, 2))
    branch = Branch(make(backbone), features, LAMBDAS)
    p_V = reference(stock, family, backbone, branch, steering).softmax(-1)
    # Alone, and as a row of a batch beside a shorter prompt, after a prefix in a cache.
    for branches in ([branch], [Branch(make(backbone, ()), features), branch]):
        step = last(backbone, branches, steering, max_new_tokens=1)
        assert step.p_yes[-1] == pytest.approx(p_V[list(backbone.yes_ids)].sum().item(), abs=1e-5)
        assert step.p_no[-1] == pytest.approx(p_V[list(backbone.no_ids)].sum().item(), abs=1e-5)
    if strength:
        plain = reference(stock, family, backbone, branch, replace(steering, strength=0.0))
        assert (p_V - plain.softmax(-1)).abs().max() > 1e-3


def test_a_shared_prefix_is_a_full_recomputation(backbone: Backbone, features: Tensor) -> None:
    first = last(backbone, [Branch(make(backbone), features, LAMBDAS)], STEERED)
    # Its prefix serves another question, which begins with the same reports.
    other = [Branch(make(backbone, REPORTS[:2], "Is it?"), features, (1.0, 0.0))]
    shared = last(backbone, other, STEERED, known=first.prefix)
    alone = last(backbone, other, STEERED)
    assert shared.texts == alone.texts
    assert shared.p_yes == pytest.approx(alone.p_yes, abs=1e-5)
    assert np.abs(shared.traces[0].keys_LX - alone.traces[0].keys_LX).max() < 1e-5


def test_a_batch_is_its_rows_alone(backbone: Backbone) -> None:
    pictures = [picture(n, shape) for n, shape in enumerate(SHAPES)]
    tall, wide = encode_each(backbone, pictures)
    tall_grid, wide_grid = map(backbone.grid_of, pictures)
    branches = [
        Branch(backbone.prompt(QUESTION, REPORTS, image=tall_grid), tall, LAMBDAS),
        Branch(backbone.prompt("Is it?", REPORTS[:1], image=wide_grid), wide, (1.0,)),
        Branch(backbone.prompt(QUESTION, (), image=wide_grid), wide),
        Branch(backbone.prompt(QUESTION, REPORTS, image=False), None, LAMBDAS),
    ]
    together = answer_batch(backbone, branches, STEERED, max_new_tokens=5)
    for b, branch in enumerate(branches):
        apart = answer_batch(backbone, [branch], STEERED, max_new_tokens=5)
        streamed = last(backbone, [branch], STEERED, max_new_tokens=5)
        assert together.p_yes[b] == pytest.approx(apart.p_yes[0], abs=1e-5)
        assert together.p_yes[b] == pytest.approx(streamed.p_yes[0], abs=1e-5)
        assert together.texts[b] == apart.texts[0] == streamed.texts[0]


def test_spans_tile_the_ids_and_decode_to_their_text(family: Tiny, backbone: Backbone) -> None:
    prompt = make(backbone)
    assert prompt.spans[0].start == 0
    assert prompt.spans[-1].stop == len(prompt.ids)
    for left, right in itertools.pairwise(prompt.spans):
        assert left.stop == right.start > left.start

    def text(name: str) -> str:
        span = prompt.span(name)
        return str(backbone.tokenizer.decode(list(prompt.ids[span.start : span.stop])))

    assert text("question") == QUESTION
    assert [text(span.name) for span in prompt.reports] == list(REPORTS)
    image = prompt.span("image")
    assert set(prompt.ids[image.start : image.stop]) == {backbone.image_token_id}
    assert prompt.ids.count(backbone.image_token_id) == image.stop - image.start
    reports = "".join(f"{k}. {report}\n" for k, report in enumerate(REPORTS, 1))
    assert prompt_text(backbone.tokenizer.decode, prompt) == family.prompt.format(
        image="<image>" * (image.stop - image.start),
        text=f"Reports of similar cases:\n{reports}{QUESTION}",
    )


def test_no_text_can_type_a_control_token(backbone: Backbone) -> None:
    control = [str(t) for t in backbone.tokenizer.added_tokens_decoder.values()]
    prompt = make(backbone, (f"The {' '.join(control)} heart.",), f"Is it{control[0]} so?")
    clean = make(backbone, ("The heart.",), "Is it so?")
    assert prompt.ids == clean.ids


@pytest.mark.parametrize("shape", SHAPES)
def test_a_patch_of_attention_lies_where_the_model_read_it(
    backbone: Backbone, shape: tuple[int, int]
) -> None:
    rows, columns = shape
    grey = Image(np.full(shape, 90, np.uint8))
    plain = encode_images(backbone, [grey])[0]
    grid, padded = backbone.grid_of(grey), backbone.family.padded
    assert plain.shape[0] == grid[0] * grid[1]
    seen = patches_on_picture(grid, rows, columns, padded=padded)
    found = 0
    for row, column in zip(*np.nonzero(seen), strict=True):
        box = patch_box(int(row), int(column), grid, rows, columns, padded=padded)
        assert box is not None
        top, left, bottom, right = (round(edge) for edge in box)
        display = grey.display.copy()
        display[top:bottom, left:right] = 250
        change = (encode_images(backbone, [Image(display)])[0] - plain).norm(dim=-1)
        if bottom - top >= 3 and right - left >= 3:
            assert int(change.argmax()) == row * grid[1] + column
            found += 1
    assert found >= 6


def test_the_shown_input_is_the_picture(backbone: Backbone) -> None:
    display = np.full((60, 30), 40, np.uint8)
    display[:20] = 220
    shown = model_input(backbone, Image(display)).astype(int)
    assert shown.ndim == 3
    middle = shown[:, shown.shape[1] // 2, 0]
    assert abs(middle[len(middle) // 6] - 220) < 12
    assert abs(middle[-len(middle) // 6] - 40) < 12


def test_every_family_answers_a_case_through_the_library(folder: Path) -> None:
    case = mrrag.load(str(folder)).ask(
        picture(0, (61, 40)), "Is the heart enlarged?", k=2, layers=(0, 2), max_new_tokens=3
    )
    assert set(case.answers) == {"rag_off", "rag", "mr_rag"}
    assert case.after is not None
    assert case.after.layers == (0, 2)
    assert np.abs(case.after.mass_LHS.sum(-1) - 1).max() < 1e-4
    image = next(span for span in case.after.spans if span.name == "image")
    assert image.stop - image.start == case.after.grid[0] * case.after.grid[1]
    assert "<svg" in case.to_html() or "<img" in case.to_html()


def test_answers_end_where_the_checkpoint_says(backbone: Backbone, folder: Path) -> None:
    assert backbone.tokenizer.eos_token_id in backbone.eos_ids
    assert backbone.layers == 3
    assert {backbone.tokenizer.decode([i]).strip().lower() for i in backbone.yes_ids} == {"yes"}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_kind_that_cannot_be_served_is_refused_with_the_reason(tmp_path: Path, kind: str) -> None:
    write_json(tmp_path / "config.json", {"model_type": kind})
    with pytest.raises(ModelError) as caught:
        load_backbone(tmp_path)
    assert f"is of the kind {kind!r}" in str(caught.value)
    assert f"It cannot be read: {REFUSED[kind]}." in str(caught.value)
    assert "--model bundled" in str(caught.value)
    assert not set(REFUSED) & set(FAMILIES)


def test_only_a_llava_s_vision_tower_can_be_replaced(tmp_path: Path) -> None:
    TINY["smolvlm"].write(tmp_path)
    with pytest.raises(SettingsError, match="--vision-tower stock was asked for"):
        load_backbone(tmp_path, vision_tower="stock")


SMOLVLM_SIZES = {256_484_928: (576, 1536, 30, 9, 3), 507_482_304: (960, 2560, 32, 15, 5)}


@pytest.mark.parametrize("parameters", SMOLVLM_SIZES)
def test_smolvlm2_has_its_published_shape_and_64_image_tokens(parameters: int) -> None:
    hidden, intermediate, layers, heads, key_heads = SMOLVLM_SIZES[parameters]
    config = SmolVLMConfig(
        scale_factor=4,
        text_config={
            "model_type": "llama",
            "vocab_size": 49280,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_heads,
            "head_dim": 64,
        },
        vision_config={
            "hidden_size": 768,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
    )
    with torch.device("meta"):
        model = SmolVLMForConditionalGeneration(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    family = FAMILIES["smolvlm"]
    assert family.grid(config, None, None) == (8, 8)
    assert family.image_tokens(config, (8, 8)) == 64


def test_over_a_small_memory_limit_tokens_and_steering_stay_the_same(
    backbone: Backbone, folder: Path, features: Tensor, tmp_path: Path
) -> None:
    """As accelerate places a model by itself: what exceeds the limit is read from disk."""
    from accelerate import dispatch_model, infer_auto_device_map

    spread = load_backbone(folder)
    model = spread.model
    size = sum(p.nbytes for p in model.parameters())
    places = infer_auto_device_map(
        model, {"cpu": size // 2, "disk": 10 * size}, model._no_split_modules
    )
    assert set(places.values()) == {"cpu", "disk"}
    dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert any(p.is_meta for p in model.parameters())
    assert torch.equal(encode_images(spread, [picture()]), features)
    branches = [Branch(make(spread), features), Branch(make(spread), features, LAMBDAS)]
    here = last(backbone, branches, STEERED, max_new_tokens=6)
    there = last(spread, branches, STEERED, max_new_tokens=6)
    assert there.texts == here.texts
    assert there.p_yes == pytest.approx(here.p_yes, abs=1e-6)
    assert here.p_yes[0] != here.p_yes[1]
    for before, after in zip(here.traces, there.traces, strict=True):
        assert np.abs(before.keys_LX - after.keys_LX).max() < 1e-6


@torch.inference_mode()
def test_with_several_pictures_greedy_tokens_are_generate_s(
    family: Tiny, backbone: Backbone, stock: Any
) -> None:
    """Each report after its own picture, each picture of a shape of its own."""
    images = [picture(), picture(5, (28, 56)), picture(6, (61, 30))]
    grids = [backbone.grid_of(image) for image in images]
    prompt = backbone.prompt(QUESTION, REPORTS[:2], image=grids[0], pictures=grids[1:])
    assert [span.name for span in prompt.images] == ["image", "picture 1", "picture 2"]
    assert prompt.images[1].stop <= prompt.reports[0].start < prompt.images[2].start
    inputs: dict[str, Any] = {}
    for image in images:  # each as transformers' own processor makes it
        for name, value in family.inputs(backbone, image, prompt).items():
            several = name in inputs and name != "mm_token_type_ids"
            along = int(isinstance(stock, SmolVLMForConditionalGeneration))
            inputs[name] = torch.cat([inputs[name], value], along) if several else value
    branch = Branch(prompt, encode_all(backbone, images))
    step = last(backbone, [branch], max_new_tokens=8, trace=False)
    ids = torch.tensor([prompt.ids])
    generated = stock.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=8,
        pad_token_id=0,
        **inputs,
    )
    expected = backbone.tokenizer.decode(generated[0, len(prompt.ids) :], skip_special_tokens=True)
    assert step.texts[0] == expected.strip() != ""
    halved = Branch(prompt, torch.cat([branch.features[:, :-1], branch.features[:, -1:] / 2], 1))
    assert last(backbone, [halved], max_new_tokens=1, trace=False).p_yes != step.p_yes


# By the chat templates, before and after an image in the middle of a turn.
AROUND = {
    "smolvlm": ("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    "qwen2.5-vl": ("<|vision_start|>", "<|vision_end|>"),
    "internvl": ("<img>", "</img>\n"),
}


def test_a_report_s_picture_stands_before_it_as_the_chat_template_writes_one(
    family: Tiny, backbone: Backbone
) -> None:
    before, after = AROUND.get(next(n for n, t in TINY.items() if t is family), ("", "\n"))
    grid = backbone.grid_of(picture())
    prompt = backbone.prompt(QUESTION, REPORTS[:1], image=grid, pictures=[grid])
    image, shown = prompt.images
    text = prompt_text(backbone.tokenizer.decode, prompt)
    placeholders = "<image>" * (shown.stop - shown.start)
    assert placeholders.count("<image>") == image.stop - image.start
    assert f"1. {before}{placeholders}{after}{REPORTS[0]}" in text


def test_reports_have_a_picture_each_or_none(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="2 reports have 1 pictures"):
        backbone.prompt(QUESTION, REPORTS[:2], image=(4, 4), pictures=[(4, 4)])
