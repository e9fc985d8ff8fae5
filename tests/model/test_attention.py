"""Stock attention where nothing is asked, an exact reference where something is."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llava import LAMBDAS, make
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mrrag.errors import SettingsError
from mrrag.model.attention import SteeredPass, attention, plan_pass, traces
from mrrag.model.backbone import Backbone, embed
from mrrag.model.prefill import layout
from mrrag.model.prompt import Prompt
from mrrag.model.steering import Block, Edit, ifa
from mrrag.types import Steering

FIELDS = [field.name for field in fields(Steering)]
B, H, HKV, D, X, Q = 2, 4, 2, 12, 9, 4


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(index: int = 0) -> Any:
    return SimpleNamespace(layer_idx=index, num_key_value_groups=H // HKV, is_causal=True)


def heads(queries: int = X) -> dict[str, Tensor]:
    return {
        "query": rand(B, H, queries, D, seed=1) * 2,
        "key": rand(B, HKV, X, D, seed=2) * 2,
        "value": rand(B, HKV, X, D, seed=3),
    }


def padded_mask(queries: int) -> Tensor:
    """Row 0 has two columns of padding; both are causal."""
    mask = torch.ones(B, 1, X, X, dtype=torch.bool).tril()
    mask[0, :, :, :2] = False
    return mask[:, :, -queries:]


def an_edit(seed: int = 4) -> tuple[Tensor, Edit]:
    """Question rows 1 and 2 of the last four; λ on a few past and future columns of row 0."""
    question_BQ = torch.tensor([[False, True, True, False]] * B)
    lam_BX = torch.zeros(B, X)
    lam_BX[0, 3:] = torch.rand(X - 3, generator=torch.Generator().manual_seed(seed))
    lam_BQX = (question_BQ[:, :, None] * lam_BX[:, None])[:, None]
    return question_BQ, Edit(ifa, lam_BQX, lam_BQX > 0, frozenset({0}))


def dense_reference(
    tensors: dict[str, Tensor], mask: Tensor, lam_BQX: Tensor, scaling: float
) -> Tensor:
    """Attention by definition, in float64, with λ for every query row."""
    query, key, value = (tensors[name].double() for name in ("query", "key", "value"))
    key, value = (t.repeat_interleave(H // HKV, dim=1) for t in (key, value))
    logits = torch.einsum("bhqd,bhxd->bhqx", query, key) * scaling
    logits = logits + lam_BQX.double() * logits.abs()
    weights = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("bhqx,bhxd->bqhd", weights, value)


@pytest.mark.parametrize(("queries", "masked"), [(X, False), (X, True), (5, True)])
def test_edited_rows_equal_a_dense_float64_reference(queries: int, masked: bool) -> None:
    tensors = heads(queries)
    mask = padded_mask(queries) if masked else torch.ones(X, X, dtype=torch.bool).tril()
    given = mask if masked else None
    question_BQ, edit = an_edit()
    stock, _ = sdpa_attention_forward(layer(), **tensors, attention_mask=given, scaling=0.3)
    steered, weights = attention(
        layer(),
        **tensors,
        attention_mask=given,
        scaling=0.3,
        steered=SteeredPass(question_BQ, (edit,)),
    )
    lam = torch.zeros(B, 1, queries, X)
    lam[:, :, -Q:] = edit.lam_BQX
    reference = dense_reference(tensors, mask, lam, 0.3)
    assert weights is None
    rows = slice(queries - 3, queries - 1)
    assert (steered[0, rows].double() - reference[0, rows]).abs().max() < 1e-6
    # The edit is large enough to be seen, and touches nothing but those rows.
    assert (steered[0, rows] - stock[0, rows]).abs().max() > 1e-2
    stock[0, rows] = steered[0, rows]
    assert torch.equal(steered, stock)


def test_other_layers_and_plain_calls_are_stock_bit_for_bit() -> None:
    tensors = heads()
    question_BQ, edit = an_edit()
    stock, _ = sdpa_attention_forward(layer(), **tensors, attention_mask=None, scaling=0.3)
    for index, steering in ((0, None), (1, SteeredPass(question_BQ, (edit,)))):
        output, _ = attention(
            layer(index), **tensors, attention_mask=None, scaling=0.3, steered=steering
        )
        assert torch.equal(output, stock)


def test_the_future_stays_masked_under_any_bias() -> None:
    tensors = heads()
    question_BQ = torch.ones(B, Q, dtype=torch.bool)
    everywhere = torch.full((B, 1, Q, X), 50.0)
    outputs = []
    for scale in (1.0, 100.0):
        # Only the future of the first question row changes, and it must not be noticed.
        future = torch.ones(X)
        future[X - Q + 1 :] = scale
        changed = tensors | {
            "key": tensors["key"] * future[:, None],
            "value": tensors["value"] * future[:, None],
        }
        steering = SteeredPass(
            question_BQ, (Edit(ifa, everywhere, everywhere > 0, frozenset({0})),)
        )
        output, _ = attention(
            layer(), **changed, attention_mask=None, scaling=0.3, steered=steering
        )
        outputs.append(output[:, -Q])
    assert outputs[0].isfinite().all()
    assert torch.equal(outputs[0], outputs[1])


def test_half_precision_goes_in_and_comes_out() -> None:
    question_BQ, edit = an_edit()
    tensors = {name: tensor.bfloat16() for name, tensor in heads().items()}
    steering = SteeredPass(question_BQ, (edit,))
    output, _ = attention(layer(), **tensors, attention_mask=None, scaling=0.3, steered=steering)
    lam = torch.zeros(B, 1, X, X)
    lam[:, :, -Q:] = edit.lam_BQX
    mask = torch.ones(X, X, dtype=torch.bool).tril()
    assert output.dtype == torch.bfloat16
    assert (output.double() - dense_reference(tensors, mask, lam, 0.3)).abs().max() < 2e-2


# Through the model


def run(
    backbone: Backbone, features: Tensor, prompt: Prompt, steered: SteeredPass | None
) -> tuple[Tensor, ...]:
    """Hidden states of every layer, then logits; each [tokens, ...]."""
    with torch.inference_mode():
        output = backbone.model(
            inputs_embeds=embed(backbone, prompt, features)[None],
            output_hidden_states=True,
            steered=steered,
        )
    return (*(states[0] for states in output.hidden_states), output.logits[0])


def plan(prompt: Prompt, **options: Any) -> SteeredPass | None:
    steering = Steering(1.0, (0, 1, 2), "question+cue")
    steering = replace(steering, **{n: options.pop(n) for n in FIELDS if n in options})
    relevance = options.pop("relevance", LAMBDAS)
    return plan_pass([prompt], [relevance], layout([prompt]), steering, **options)


def test_zero_lambda_is_plain_attention_bit_for_bit(tiny_llava: Backbone, features: Tensor) -> None:
    prompt = make(tiny_llava, question="Is the heart normal?")
    assert plan(prompt, relevance=(0.0, 0.0, 0.0)) is None
    assert plan(prompt, strength=0.0) is None
    assert plan(prompt, layers=()) is None
    plain = run(tiny_llava, features, prompt, None)
    probed = run(tiny_llava, features, prompt, plan(prompt, strength=0.0, trace=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, probed, strict=True))
    steered = run(tiny_llava, features, prompt, plan(prompt))
    assert (steered[-1][-1] - plain[-1][-1]).abs().max() > 1e-2


def test_only_the_question_s_rows_change_and_only_from_the_steered_layer_on(
    tiny_llava: Backbone, features: Tensor
) -> None:
    prompt = make(tiny_llava, question="Is the heart normal?")
    start = prompt.span("question").start
    plain = run(tiny_llava, features, prompt, None)
    steered = run(tiny_llava, features, prompt, plan(prompt, layers=(1,)))
    for a, b in zip(plain, steered, strict=True):
        assert torch.equal(a[:start], b[:start])
    assert torch.equal(plain[1], steered[1])
    assert (plain[2][start:] - steered[2][start:]).abs().amax(-1).min() > 0


def test_a_prompt_with_the_question_first_would_make_it_a_no_op(
    tiny_llava: Backbone, features: Tensor
) -> None:
    prompt = make(tiny_llava, question="Is the heart normal?")
    head, start = prompt.span("image").stop, prompt.suffix_start
    cue = prompt.span("cue").start
    # image | question | reports | cue, with the spans moved along.
    order = [*range(head), *range(start, cue), *range(head, start), *range(cue, len(prompt.ids))]
    moved = {old: new for new, old in enumerate(order)}
    spans = sorted(
        (type(s)(s.name, moved[s.start], moved[s.stop - 1] + 1) for s in prompt.spans),
        key=lambda s: s.start,
    )
    question_first = Prompt(tuple(prompt.ids[i] for i in order), tuple(spans), head)
    plain = run(tiny_llava, features, question_first, None)[-1]
    steered = run(tiny_llava, features, question_first, plan(question_first, rows="question"))[-1]
    assert (plain - steered).abs().max() < 1e-4
    proper = run(tiny_llava, features, prompt, plan(prompt, rows="question"))[-1]
    assert (proper - run(tiny_llava, features, prompt, None)[-1]).abs().max() > 1e-2


def test_the_trace_is_eager_attention(
    tiny_llava: Backbone, tiny_llava_folder: Path, features: Tensor
) -> None:
    prompt = make(tiny_llava, question="Is the heart normal?")
    steering = plan(prompt, relevance=(), trace=True)
    assert steering is not None
    run(tiny_llava, features, prompt, steering)
    (trace,) = traces(steering, [prompt], layout([prompt]))
    eager = LlavaForConditionalGeneration.from_pretrained(
        tiny_llava_folder, attn_implementation={"text_config": "eager"}
    )
    with torch.inference_mode():
        maps = eager(
            inputs_embeds=embed(tiny_llava, prompt, features)[None], output_attentions=True
        ).attentions
    # Mean over question rows: [layers, heads, keys].
    expected = torch.stack(maps)[:, 0, :, prompt.span("question").start :].mean(2).numpy()
    assert np.abs(trace.keys_LX - expected.mean(1)).max() < 1e-5
    for s, name in enumerate(trace.names):
        keys = [
            x for span in prompt.spans if span.name == name for x in range(span.start, span.stop)
        ]
        assert np.abs(trace.mass_LHS[:, :, s] - expected[:, :, keys].sum(-1)).max() < 1e-5
    assert trace.layers == ()


def test_mass_sums_to_one_and_ifa_takes_it_from_the_rest(
    tiny_llava: Backbone, features: Tensor
) -> None:
    prompt = make(tiny_llava, question="Is the heart normal?")
    found = []
    for relevance in ((), (0.0, 0.0, 1.0)):
        steering = plan(prompt, relevance=relevance, layers=(0,), trace=True)
        assert steering is not None
        run(tiny_llava, features, prompt, steering)
        found += traces(steering, [prompt], layout([prompt]))
    plain, steered = found
    for trace in found:
        assert np.abs(trace.mass_LHS.sum(-1) - 1).max() < 1e-5
        assert np.abs(trace.keys_LX.sum(-1) - 1).max() < 1e-5
        assert trace.mass_LHS.dtype == trace.keys_LX.dtype == np.float32
        assert trace.grid == (4, 4)
    assert plain.names == ("image", "report 1", "report 2", "report 3", "question", "cue", "other")
    change = steered.mass_LHS[0] - plain.mass_LHS[0]
    report_3 = plain.names.index("report 3")
    assert (change[:, report_3] > 0).all()
    assert (np.delete(change, report_3, axis=1) < 0).all()
    assert steered.layers == (0,)


def test_blocking_a_report_removes_its_flow_in_those_layers_only(
    tiny_llava: Backbone, features: Tensor
) -> None:
    prompt = make(tiny_llava, question="Is the heart normal?")
    steering = plan(prompt, relevance=(), trace=True, blocked=Block(layers=(1, 2), reports=((2,),)))
    assert steering is not None
    run(tiny_llava, features, prompt, steering)
    (trace,) = traces(steering, [prompt], layout([prompt]))
    on_2 = trace.mass_LHS[:, :, trace.names.index("report 2")]
    on_1 = trace.mass_LHS[:, :, trace.names.index("report 1")]
    assert (on_2[1:] == 0).all()
    assert (on_2[0] > 0).all()
    assert (on_1 > 0).all()


def test_blocking_every_report_is_the_default_of_a_block(tiny_llava: Backbone) -> None:
    prompt = make(tiny_llava, question="Is the heart normal?")
    implicit = plan(prompt, relevance=(), blocked=Block(layers=(1,)))
    explicit = plan(prompt, relevance=(), blocked=Block(layers=(1,), reports=((1, 2, 3),)))
    assert implicit is not None
    assert explicit is not None
    assert torch.equal(implicit.edits[0].lam_BQX, explicit.edits[0].lam_BQX)


def test_an_unprobed_pass_has_no_trace(tiny_llava: Backbone) -> None:
    prompt = make(tiny_llava, question="Is the heart normal?")
    steering = plan(prompt)
    assert steering is not None
    with pytest.raises(ValueError, match="not probed"):
        traces(steering, [prompt], layout([prompt]))


def test_edits_that_do_not_act_are_seen_and_change_nothing(
    tiny_llava: Backbone, features: Tensor
) -> None:
    prompt = make(tiny_llava, question="Is the heart normal?")
    outputs, found = [], []
    for relevance, acts in (((), True), ((0.0, 0.5, 1.0), False), ((0.0, 0.5, 1.0), True)):
        steering = plan(prompt, relevance=relevance, layers=(0, 1), trace=True, acts=acts)
        assert steering is not None
        outputs.append(run(tiny_llava, features, prompt, steering)[-1])
        found += traces(steering, [prompt], layout([prompt]))
    plain, same_state, steered = found
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    # In the first steered layer the states are still the plain run's; after it they are not.
    np.testing.assert_allclose(same_state.mass_LHS[0], steered.mass_LHS[0], atol=1e-6)
    assert np.abs(same_state.mass_LHS[1] - steered.mass_LHS[1]).max() > 1e-6
    np.testing.assert_allclose(same_state.mass_LHS[2], plain.mass_LHS[2], atol=1e-6)


def test_a_hard_mask_hides_the_reports_below_the_mean(
    tiny_llava: Backbone, features: Tensor
) -> None:
    prompt = make(tiny_llava, question="Is the heart normal?")
    steered = plan(prompt, strength=0.0, masked=(1,), trace=True)
    assert steered is not None
    run(tiny_llava, features, prompt, steered)
    (trace,) = traces(steered, [prompt], layout([prompt]))
    hidden = {n: trace.mass_LHS[1, :, trace.names.index(f"report {n}")].max() for n in (1, 2, 3)}
    assert hidden[1] == hidden[2] == 0.0  # λ 0 and 0.4, below the mean of 0.47
    assert hidden[3] > 0.0
    assert (trace.mass_LHS[[0, 2]][:, :, trace.names.index("report 1")] > 0).all()


def test_an_unknown_form_is_refused(tiny_llava: Backbone) -> None:
    with pytest.raises(SettingsError, match="ifa, balanced"):
        plan(make(tiny_llava), form="pasta")
