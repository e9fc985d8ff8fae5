"""Forking, batching and padding change nothing; transformers' own forward is the measure."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from mrrag.errors import ModelError, SettingsError
from mrrag.model.backbone import (
    Backbone,
    Branch,
    Step,
    answer_batch,
    answer_branches,
    captured,
    decode,
    embed,
    encode_image,
    encode_images,
    fork,
    layout,
    load_backbone,
    model_input,
    pixel_values,
    prefill,
    prefill_batch,
    run_suffixes,
    stack,
    token_step,
)
from mrrag.model.prompt import Prompt, build_prompt
from mrrag.model.steering import Block
from mrrag.types import Image

QUESTION = "Is there a pleural effusion?"
REPORTS = ("The heart is enlarged.", "The lungs are clear.", "There is no pneumothorax.")
LAMBDAS = (0.0, 0.4, 1.0)
STEERED: dict[str, Any] = {"strength": 1.0, "layers": (1, 2)}


def picture(seed: int = 0, shape: tuple[int, ...] = (40, 30)) -> Image:
    display = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image(display=display)


@pytest.fixture(scope="module")
def features(tiny_llava: Backbone) -> Tensor:
    return encode_image(tiny_llava, picture())


@pytest.fixture(scope="module")
def stock(tiny_llava_folder: Path) -> LlavaForConditionalGeneration:
    """The same checkpoint as transformers runs it, without anything of ours."""
    return LlavaForConditionalGeneration.from_pretrained(tiny_llava_folder).eval()


def make(
    backbone: Backbone, reports: tuple[str, ...] = REPORTS, question: str = QUESTION
) -> Prompt:
    return build_prompt(
        backbone.tokenizer,
        question,
        reports,
        image_token_id=backbone.image_token_id,
        image_tokens=backbone.image_tokens,
    )


def three(backbone: Backbone) -> list[Branch]:
    return [
        Branch("rag_off", make(backbone, ())),
        Branch("rag", make(backbone)),
        Branch("mr_rag", make(backbone), LAMBDAS),
    ]


def last(backbone: Backbone, features: Tensor | None, branches: list[Branch], **more: Any) -> Step:
    settings = STEERED | {"max_new_tokens": 6} | more
    return list(answer_branches(backbone, features, branches, **settings))[-1]


# Equal to transformers


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
        branch = last(tiny_llava, features, [Branch("rag", prompt)])
    p_V = theirs.logits[0, -1].softmax(-1)
    assert branch.p_yes[0] == pytest.approx(p_V[list(tiny_llava.yes_ids)].sum().item(), abs=1e-6)
    assert branch.p_no[0] == pytest.approx(p_V[list(tiny_llava.no_ids)].sum().item(), abs=1e-6)


@pytest.mark.parametrize("question", [QUESTION, "Is the heart normal?", "Are the lungs clear?"])
def test_greedy_tokens_are_generate_s(
    tiny_llava: Backbone, stock: LlavaForConditionalGeneration, features: Tensor, question: str
) -> None:
    prompts = [make(tiny_llava, question=question), make(tiny_llava, (), question=question)]
    step = last(
        tiny_llava, features, [Branch("rag", p) for p in prompts], max_new_tokens=12, trace=False
    )
    for prompt, text in zip(prompts, step.texts, strict=True):
        ids = torch.tensor([prompt.ids])
        generated = stock.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixel_values(tiny_llava, [picture()]),
            do_sample=False,
            max_new_tokens=12,
        )
        expected = tiny_llava.tokenizer.decode(
            generated[0, len(prompt.ids) :], skip_special_tokens=True
        )
        assert text == expected.strip()
        assert text


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
    apart = torch.cat([encode_image(tiny_llava, p) for p in pictures])
    assert together.shape == (3, tiny_llava.image_tokens, 32)
    assert (together - apart).abs().max() < 1e-4
    assert (together[0] - together[1]).abs().max() > 1e-2


# Forks, batches, padding


def test_a_fork_is_a_full_recomputation(tiny_llava: Backbone, features: Tensor) -> None:
    prompt = make(tiny_llava)
    embeds = embed(tiny_llava, prompt, features)
    with torch.inference_mode():
        full = tiny_llava.model(inputs_embeds=embeds[None]).logits[0, -1]
    for cut in (1, prompt.span("image").stop, prompt.suffix_start):
        cache = prefill(
            tiny_llava, embeds[cut : prompt.suffix_start], prefill(tiny_llava, embeds[:cut])
        )
        mask = layout([prompt.suffix_start], [len(prompt.ids) - prompt.suffix_start])
        logits = run_suffixes(tiny_llava, [embeds[prompt.suffix_start :]], cache, mask, None)
        assert (logits[0] - full).abs().max() < 2e-5


def test_a_fork_shares_tensors_and_never_changes_its_source(
    tiny_llava: Backbone, features: Tensor
) -> None:
    embeds = embed(tiny_llava, make(tiny_llava), features)
    source = prefill(tiny_llava, embeds[:20])
    before = [(layer.keys.clone(), layer.values.clone()) for layer in source.layers]
    forked = fork(source)
    assert forked.layers[0].keys.data_ptr() == source.layers[0].keys.data_ptr()
    assert prefill(tiny_llava, embeds[20:], forked).get_seq_length() == len(embeds)
    assert source.get_seq_length() == forked.get_seq_length() == 20
    for layer, (keys, values) in zip(source.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


def test_the_layout_pads_prefix_and_suffix_on_the_left() -> None:
    assert layout([1, 3], [2, 1]).int().tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 0, 1]]
    assert layout([0, 0], [2, 1]).int().tolist() == [[1, 1], [0, 1]]


def test_branches_together_are_branches_apart(tiny_llava: Backbone, features: Tensor) -> None:
    short = make(tiny_llava, REPORTS[:1], question="Is it?")
    branches = [*three(tiny_llava), Branch("mr_rag", short, (1.0,))]
    together = last(tiny_llava, features, branches, max_new_tokens=10)
    for b, branch in enumerate(branches):
        apart = last(tiny_llava, features, [branch], max_new_tokens=10)
        assert together.texts[b] == apart.texts[0]
        assert together.tokens[b] == apart.tokens[0]
        assert together.p_yes[b] == pytest.approx(apart.p_yes[0], abs=1e-6)
        assert together.p_no[b] == pytest.approx(apart.p_no[0], abs=1e-6)
        for name in ("mass_LHS", "keys_LX"):
            ours, theirs = getattr(together.traces[b], name), getattr(apart.traces[0], name)
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs).max() < 1e-5
        assert together.traces[b].layers == apart.traces[0].layers


def test_answer_batch_equals_answer_branches(tiny_llava: Backbone, features: Tensor) -> None:
    branches = three(tiny_llava)
    step = last(tiny_llava, features, branches)
    items = [(features, branch.prompt, branch.relevance or None) for branch in branches]
    scores = answer_batch(tiny_llava, items, **STEERED, max_new_tokens=6)
    assert np.abs(scores.p_yes - step.p_yes).max() < 1e-6
    assert np.abs(scores.p_no - step.p_no).max() < 1e-6
    assert scores.texts == step.texts
    assert answer_batch(tiny_llava, items, **STEERED).texts == ("",) * 3
    firsts = list(answer_branches(tiny_llava, features, branches, **STEERED, max_new_tokens=1))
    assert [tiny_llava.tokenizer.decode([i]).strip() for i in scores.next_id] == list(
        firsts[-1].texts
    )


def test_prefixes_read_once_serve_every_setting(tiny_llava: Backbone, features: Tensor) -> None:
    items = [(features, branch.prompt, branch.relevance) for branch in three(tiny_llava)]
    cache = prefill_batch(tiny_llava, items)
    length = cache.get_seq_length()
    for settings in (STEERED, {"strength": 2.0, "layers": (0,), "rows": "question"}):
        shared = answer_batch(tiny_llava, items, **settings, cache=cache, max_new_tokens=4)
        fresh = answer_batch(tiny_llava, items, **settings, max_new_tokens=4)
        assert np.array_equal(shared.p_yes, fresh.p_yes)
        assert shared.texts == fresh.texts
    assert cache.get_seq_length() == length


def test_equal_prefixes_are_read_once(tiny_llava: Backbone, features: Tensor) -> None:
    seen: list[int] = []
    hook = tiny_llava.model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[0]), with_kwargs=True
    )
    try:
        other = features.clone()
        prompt = make(tiny_llava)
        items = [(features, prompt, None), (other, prompt, None), (features, prompt, LAMBDAS)]
        scores = answer_batch(tiny_llava, items, **STEERED)
    finally:
        hook.remove()
    assert seen == [2, 3]
    assert scores.p_yes[0] == pytest.approx(scores.p_yes[1], abs=1e-6)
    assert scores.p_yes[2] != pytest.approx(scores.p_yes[0], abs=1e-4)


def test_rows_of_a_batch_keep_their_own_image_and_lambda(tiny_llava: Backbone) -> None:
    pictures = [encode_image(tiny_llava, picture(seed)) for seed in range(3)]
    items = [
        (pictures[0], make(tiny_llava, REPORTS), (1.0, 0.5, 0.0)),
        (pictures[1], make(tiny_llava, REPORTS[:1], "Is it?"), (1.0,)),
        (pictures[2], make(tiny_llava, ()), None),
    ]
    together = answer_batch(tiny_llava, items, **STEERED, rows="question")
    for b, item in enumerate(items):
        apart = answer_batch(tiny_llava, [item], **STEERED, rows="question")
        assert together.p_yes[b] == pytest.approx(apart.p_yes[0], abs=1e-6)
        assert together.next_id[b] == apart.next_id[0]


def test_a_plain_row_next_to_a_steered_one_is_untouched(
    tiny_llava: Backbone, features: Tensor
) -> None:
    branches = three(tiny_llava)
    strong = last(tiny_llava, features, branches, strength=3.0)
    none = last(tiny_llava, features, branches, strength=0.0)
    assert strong.p_yes[:2] == none.p_yes[:2]
    assert strong.texts[:2] == none.texts[:2]
    # Equal rows of one batch may be rounded apart in the last place.
    assert none.p_yes[2] == pytest.approx(none.p_yes[1], abs=1e-6)
    assert strong.p_yes[2] != pytest.approx(strong.p_yes[1], abs=1e-4)


def test_one_report_alone_has_no_relative_relevance_and_equals_rag(
    tiny_llava: Backbone, features: Tensor
) -> None:
    prompt = make(tiny_llava, REPORTS[:1])
    step = last(tiny_llava, features, [Branch("rag", prompt), Branch("mr_rag", prompt, (0.0,))])
    assert step.p_yes[0] == step.p_yes[1]
    assert step.texts[0] == step.texts[1]
    assert np.array_equal(step.traces[0].mass_LHS, step.traces[1].mass_LHS)
    assert step.traces[1].layers == ()


def test_the_trace_changes_no_answer(tiny_llava: Backbone, features: Tensor) -> None:
    branches = three(tiny_llava)
    shown, hidden = (last(tiny_llava, features, branches, trace=t) for t in (True, False))
    assert shown.p_yes == hidden.p_yes
    assert shown.texts == hidden.texts
    assert len(shown.traces) == 3
    assert hidden.traces == ()


def test_blocking_all_reports_everywhere_differs_from_not_having_read_them(
    tiny_llava: Backbone, features: Tensor
) -> None:
    prompt = make(tiny_llava)
    items = [(features, prompt, None)] * 3
    every = Block(layers=range(tiny_llava.layers), reports=((), (1, 2, 3), (3,)))
    none, all_three, third = answer_batch(
        tiny_llava, items, strength=1.0, layers=(), block=every
    ).p_yes
    plain = answer_batch(tiny_llava, items[:1], strength=1.0, layers=()).p_yes[0]
    assert none == pytest.approx(plain, abs=1e-6)
    assert len({round(float(p), 5) for p in (none, all_three, third)}) == 3


def test_a_question_without_an_image_is_answered(tiny_llava: Backbone) -> None:
    prompt = build_prompt(tiny_llava.tokenizer, QUESTION, REPORTS, image_token_id=3, image_tokens=0)
    step = last(tiny_llava, None, [Branch("mr_rag", prompt, LAMBDAS)])
    assert "image" not in step.traces[0].names
    assert step.tokens == (6,)


# Streaming


def test_steps_grow_by_one_token_and_the_last_is_done(
    tiny_llava: Backbone, features: Tensor
) -> None:
    steps = list(
        answer_branches(tiny_llava, features, three(tiny_llava), **STEERED, max_new_tokens=4)
    )
    assert steps[0].texts == ("", "", "")
    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
    for before, after in itertools.pairwise(steps):
        assert all(b <= a <= b + 1 for b, a in zip(before.tokens, after.tokens, strict=True))
        assert after.p_yes == before.p_yes
    assert steps[-1].tokens == (4, 4, 4)
    assert all(0 < p < 1 for p in (*steps[0].p_yes, *steps[0].p_no))


def test_each_row_stops_at_its_own_end(tiny_llava: Backbone, features: Tensor) -> None:
    branches = three(tiny_llava)
    items = [(features, branch.prompt, branch.relevance) for branch in branches]
    free = last(tiny_llava, features, branches, max_new_tokens=8)
    embeds = [embed(tiny_llava, branch.prompt, features) for branch in branches]
    mask = layout([0] * 3, [len(e) for e in embeds])
    cache = prefill(tiny_llava, embeds[0][:0])
    logits = run_suffixes(tiny_llava, embeds, cache, mask, None)
    rows = list(decode(tiny_llava, cache, mask, logits, max_new_tokens=8))
    # The second row's third token becomes the end of an answer.
    end = rows[2][1]
    assert end is not None
    ending = type(tiny_llava)(**{**vars(tiny_llava), "eos_ids": (*tiny_llava.eos_ids, end)})
    stopped = last(ending, features, branches, max_new_tokens=8)
    assert stopped.tokens[1] == [row[1] for row in rows].index(end)
    assert free.texts[1].startswith(stopped.texts[1])
    assert answer_batch(ending, items, **STEERED, max_new_tokens=8).texts == stopped.texts


def test_decoding_in_place_is_decoding_with_a_growing_cache(
    tiny_llava: Backbone, features: Tensor
) -> None:
    embeds = [embed(tiny_llava, branch.prompt, features) for branch in three(tiny_llava)]
    mask = layout([0] * 3, [len(e) for e in embeds])
    cache = prefill(tiny_llava, embeds[0][:0])
    logits = run_suffixes(tiny_llava, embeds, cache, mask, None)
    length = cache.get_seq_length()
    unending = replace(tiny_llava, eos_ids=())
    tokens = list(decode(unending, fork(cache), mask, logits, max_new_tokens=9))
    assert cache.get_seq_length() == length
    for _ in range(9):
        ids = logits.argmax(-1)
        assert ids.tolist() == tokens.pop(0)
        token = tiny_llava.model.get_input_embeddings()(ids)[:, None]
        mask = torch.nn.functional.pad(mask, (0, 1), value=True)
        logits = run_suffixes(tiny_llava, list(token), cache, mask, None)


def test_a_captured_step_starts_where_the_trial_run_started(
    tiny_llava: Backbone, features: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is stood in for by the step itself: what is tested is what surrounds it."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(wait_stream=lambda _: None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: torch.cuda.Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    for works in (True, False):

        class Graph:
            step: Any = None

            def replay(self) -> None:
                type(self).step()

        @contextlib.contextmanager
        def capturing(graph: Graph, works: bool = works, **_: object) -> Any:
            if not works:
                raise RuntimeError("operation not permitted when stream is capturing")
            yield

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", capturing)
        prompt = make(tiny_llava)
        embeds = embed(tiny_llava, prompt, features)
        with torch.inference_mode():
            cache = prefill(tiny_llava, embeds)
            mask = layout([0], [len(embeds)])
            plain, replayed = torch.tensor([[5]]), torch.tensor([[5]])
            step = token_step(tiny_llava, fork(cache), mask, plain, room=4)
            inner = token_step(tiny_llava, fork(cache), mask, replayed, room=4)
            state = [c.cell_contents for c in inner.__closure__ if torch.is_tensor(c.cell_contents)]
            Graph.step = staticmethod(inner)
            again = captured(inner, state)
            for _ in range(4):
                step()
                again()
                assert plain.tolist() == replayed.tolist()


def test_closing_the_generator_stops_the_model(tiny_llava: Backbone, features: Tensor) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = tiny_llava.model.lm_head.register_forward_hook(count)
    try:
        steps = answer_branches(
            tiny_llava, features, three(tiny_llava), **STEERED, max_new_tokens=50
        )
        next(steps)
        next(steps)
        ran = calls
        steps.close()
        assert calls == ran
        assert list(steps) == []
    finally:
        hook.remove()


def test_two_interleaved_answers_share_nothing(tiny_llava: Backbone, features: Tensor) -> None:
    other = encode_image(tiny_llava, picture(7))
    short = [Branch("mr_rag", make(tiny_llava, REPORTS[:2], "Is it?"), (0.0, 1.0))]
    jobs = [(features, three(tiny_llava)), (other, short)]

    def start(job: int) -> Any:
        return answer_branches(tiny_llava, *jobs[job], **STEERED, max_new_tokens=6)

    alone = [list(start(0)), list(start(1))]
    together = list(zip(start(0), start(1), strict=True))
    for job in (0, 1):
        for one, other_step in zip(alone[job], (pair[job] for pair in together), strict=True):
            assert one.texts == other_step.texts
            assert one.p_yes == other_step.p_yes
            for a, b in zip(one.traces, other_step.traces, strict=True):
                assert np.array_equal(a.mass_LHS, b.mass_LHS)


def test_a_generator_leaves_inference_mode_to_itself(
    tiny_llava: Backbone, features: Tensor
) -> None:
    steps = answer_branches(tiny_llava, features, three(tiny_llava), **STEERED, max_new_tokens=2)
    for _ in steps:
        assert not torch.is_inference_mode_enabled()


# Loading and refusing


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
    step = last(half, encode_image(half, picture()), three(half), max_new_tokens=2)
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


def test_a_layer_that_does_not_exist_is_refused(tiny_llava: Backbone, features: Tensor) -> None:
    branches = three(tiny_llava)
    with pytest.raises(SettingsError, match="layers 0 to 2"):
        last(tiny_llava, features, branches, layers=(1, 3))
    with pytest.raises(SettingsError, match="layers 0 to 2"):
        answer_batch(
            tiny_llava,
            [(features, branches[1].prompt, None)],
            strength=1.0,
            layers=(),
            block=Block(layers=(-1,)),
        )


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


def test_stacking_pads_short_caches_on_the_left(tiny_llava: Backbone, features: Tensor) -> None:
    embeds = embed(tiny_llava, make(tiny_llava), features)
    short, long = (prefill(tiny_llava, embeds[:n]) for n in (3, 5))
    stacked = stack([short, long])
    assert stacked.layers[0].keys.shape == (2, 2, 5, 12)
    assert not stacked.layers[0].keys[0, :, :2].any()
    assert torch.equal(stacked.layers[0].keys[0, :, 2:], short.layers[0].keys[0])
    assert torch.equal(stacked.layers[2].values[1], long.layers[2].values[0])
