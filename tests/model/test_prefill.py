"""Forks, padding and shared prefixes change nothing; a full recomputation is the measure."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from tiny_llava import LAMBDAS, STEERED, make, three
from torch import Tensor

from mrrag.model.answering import answer_batch
from mrrag.model.backbone import (
    Backbone,
    embed,
)
from mrrag.model.prefill import (
    Branch,
    fit_together,
    fork,
    layout,
    prefill,
    prefill_batch,
    right_aligned,
    run_batch,
    stack,
)
from mrrag.model.prompt import Prompt
from mrrag.types import Steering


def test_a_fork_is_a_full_recomputation(tiny_llava: Backbone, features: Tensor) -> None:
    prompt = make(tiny_llava)
    embeds = embed(tiny_llava, prompt, features)
    with torch.inference_mode():
        full = tiny_llava.model(inputs_embeds=embeds[None]).logits[0, -1]
    for cut in (1, prompt.span("image").stop, prompt.suffix_start):
        cache = prefill(
            tiny_llava, embeds[cut : prompt.suffix_start], prefill(tiny_llava, embeds[:cut])
        )
        mask = layout([prompt])
        logits = run_batch(tiny_llava, [embeds[prompt.suffix_start :]], cache, mask)
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
    prompts = [Prompt((0,) * 3, (), suffix_start=1), Prompt((0,) * 4, (), suffix_start=3)]
    assert layout(prompts).int().tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 0, 1]]
    assert right_aligned([2, 1]).int().tolist() == [[1, 1], [0, 1]]


def test_prefixes_read_once_serve_every_setting(tiny_llava: Backbone, features: Tensor) -> None:
    branches = three(tiny_llava, features)
    cache = prefill_batch(tiny_llava, branches)
    length = cache.get_seq_length()
    for steering in (STEERED, Steering(2.0, (0,), "question")):
        shared = answer_batch(tiny_llava, branches, steering, cache=cache, max_new_tokens=4)
        fresh = answer_batch(tiny_llava, branches, steering, max_new_tokens=4)
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
        branches = [
            Branch(prompt, features),
            Branch(prompt, other),
            Branch(prompt, features, LAMBDAS),
        ]
        scores = answer_batch(tiny_llava, branches, STEERED)
    finally:
        hook.remove()
    assert seen == [2, 3]
    assert scores.p_yes[0] == pytest.approx(scores.p_yes[1], abs=1e-6)
    assert scores.p_yes[2] != pytest.approx(scores.p_yes[0], abs=1e-4)


def test_stacking_pads_short_caches_on_the_left(tiny_llava: Backbone, features: Tensor) -> None:
    embeds = embed(tiny_llava, make(tiny_llava), features)
    short, long = (prefill(tiny_llava, embeds[:n]) for n in (3, 5))
    stacked = stack([short, long])
    assert stacked.layers[0].keys.shape == (2, 2, 5, 12)
    assert not stacked.layers[0].keys[0, :, :2].any()
    assert torch.equal(stacked.layers[0].keys[0, :, 2:], short.layers[0].keys[0])
    assert torch.equal(stacked.layers[2].values[1], long.layers[2].values[0])


def test_questions_are_read_together_while_an_eighth_of_memory_stays_free(
    tiny_llava: Backbone, features: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = three(tiny_llava, features)
    cache = prefill_batch(tiny_llava, [one[1]])
    tokens = len(one[1].prompt.ids)
    per_token = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    per_token //= cache.get_seq_length()
    needed = 2 * per_token * (3 * (tokens + 5) + tokens)

    def fits(available: int, questions: int) -> bool:
        memory = SimpleNamespace(available=available, total=800)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        return fit_together(tiny_llava, [one] * questions, 5)

    assert fits(needed + 100, 2)
    assert not fits(needed + 99, 2)
    assert not fits(needed + 100, 3)
