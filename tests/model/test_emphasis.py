"""Rivals' changes of attention are their published equations, where they say and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_llava import LAMBDAS, QUESTION, REPORTS, make
from torch import Tensor
from transformers import AttentionInterface, LlavaForConditionalGeneration
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mrrag.errors import SettingsError
from mrrag.model.answering import answer_batch, heads_of
from mrrag.model.attention import attention
from mrrag.model.backbone import Backbone, embed
from mrrag.model.decoding import decode
from mrrag.model.emphasis import (
    COLUMNS,
    TRANSFORMS,
    add,
    floor,
    mix,
    plan_emphasis,
    plan_writing,
    scale,
    scale_by_question,
)
from mrrag.model.prefill import Branch, layout, prefill_batch, run_batch
from mrrag.model.prompt import Prompt
from mrrag.model.steering import Transform
from mrrag.types import Emphasis, Shift, Span

# other, image ×2, report 1 ×2, other, report 2 ×1, question ×2, cue ×1
PROMPT = Prompt(
    ids=tuple(range(10)),
    spans=(
        Span("other", 0, 1),
        Span("image", 1, 3),
        Span("report 1", 3, 5),
        Span("other", 5, 6),
        Span("report 2", 6, 7),
        Span("question", 7, 9),
        Span("cue", 9, 10),
    ),
    suffix_start=7,
)
REFERENCE = "reference of the tests"


def at(*values: float) -> Tensor:
    """Return values as the columns of one row: [1, 1, 1, X]."""
    return torch.tensor(values)[None, None, None]


def test_pai_s_equation() -> None:
    raised = TRANSFORMS["raise"](at(2, 1, 0, -1), torch.tensor(0.2), at(1))
    assert raised.flatten().tolist() == pytest.approx([2.4, 1.2, 0, -0.8])


def test_pasta_s_equation() -> None:
    logits, outside = at(1, 0, 0.5, -1, 2), at(1, 1, 0, 0, 1)
    after = add(logits, math.log(0.01) * outside, outside).softmax(-1).flatten()
    expected = [0.012776, 0.004700, 0.774894, 0.172902, 0.034728]
    assert after.tolist() == pytest.approx(expected, abs=1e-6)
    # The same as the published other way: probabilities scaled by 0.01 and normalised.
    scaled = logits.softmax(-1).flatten() * torch.tensor([0.01, 0.01, 1, 1, 0.01])
    torch.testing.assert_close(after, scaled / scaled.sum())


@pytest.mark.parametrize(("share", "bias"), [(0.02, 2.5055), (0.05, 1.5581), (0.1, 0.8109)])
def test_spotlight_s_floor_is_reached_exactly(share: float, bias: float) -> None:
    logits = at(math.log(share), math.log(1 - share))
    target = at(0.2, 0)
    raised = floor(logits, target, torch.ones(1, 1, 1, 2, dtype=torch.bool))
    assert (raised - logits).flatten().tolist() == pytest.approx([bias, 0], abs=1e-4)
    assert raised.softmax(-1)[..., 0].item() == pytest.approx(0.2)


def test_spotlight_lowers_nothing_and_does_not_count_what_cannot_be_seen() -> None:
    logits, target = at(0.0, 0.0, 50.0), at(0.2, 0, 0)
    visible = torch.tensor([True, True, False])[None, None, None]
    assert torch.equal(floor(logits, target, visible), logits)  # the share is one half


def test_spotlight_s_bias_is_one_for_all_heads_and_rows() -> None:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 2
    target = torch.zeros(2, 1, 4, 5)
    target[:, :, 1:, 2] = 0.9
    visible = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    change = floor(logits, target, visible) - logits
    shares = logits.softmax(-1)[:, :, 1:, 2].mean((1, 2))
    expected = torch.logit(torch.tensor(0.9)) - torch.logit(shares)
    for b in range(2):
        torch.testing.assert_close(change[b, :, 1:, 2], expected[b].expand(3, 3))
        assert not change[b, :, 0].any()


def test_alfar_s_equations_with_either_sign() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5, -1.0], [0.3, 1.0, -0.4, 2.0]])[None, None]
    image, reports = torch.tensor([1.0, 1, 0, 0]), torch.tensor([0.0, 0, 1, 1])
    last = torch.tensor([0.0, 1.0])[:, None]
    lowered = scale(logits, -0.4 * last * image, reports)
    assert lowered[0, 0, 1].tolist() == pytest.approx([0.3 * 0.6, 0.6, -0.4, 2.0])
    meet = (torch.tensor([1.0, 0.0])[:, None] * reports)[None, None].bool()  # row 0 asks
    raised = scale_by_question(logits, 0.4 * last * reports, meet)
    weight = 1 / (1 + math.exp(-1.5))  # softmax of 0.5 and −1
    expected = [0.3, 1.0, -0.4 * (1 + 0.4 * weight), 2.0 * (1 + 0.4 * (1 - weight))]
    assert raised[0, 0, 1].tolist() == pytest.approx(expected)
    assert torch.equal(raised[0, 0, 0], logits[0, 0, 0])


def test_mad_s_mixture_is_of_probabilities_and_rows_sum_to_one() -> None:
    logits = torch.randn(1, 2, 4, 6, generator=torch.Generator().manual_seed(0)) * 2
    asked = torch.zeros(1, 1, 4, 6, dtype=torch.bool)
    asked[:, :, :2, 1:3] = True  # rows 0 and 1 ask about columns 1 and 2, the image
    amount = torch.zeros(1, 1, 4, 6)
    amount[:, :, 3, :5] = 0.25  # row 3 sees all but the last column
    mixed = mix(logits, amount, asked)
    assert torch.equal(mixed[:, :, :3], logits[:, :, :3])
    first = torch.zeros(1, 2, 5)
    first[..., 1:3] = logits[:, :, :2, 1:3].softmax(-1).mean(2)
    own = logits[:, :, 3, :5].softmax(-1)
    after = mixed[:, :, 3, :5].softmax(-1)
    torch.testing.assert_close(after, 0.75 * own + 0.25 * first)
    # Where nothing was asked before, the row looks where it looked.
    plain = mix(logits, amount, torch.zeros_like(asked))[:, :, 3, :5]
    torch.testing.assert_close(plain.softmax(-1), own)


@pytest.mark.parametrize("transform", TRANSFORMS.values())
def test_every_transform_is_the_identity_at_zero(transform: Transform) -> None:
    logits = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    region = torch.ones(2, 1, 2, 4, dtype=torch.bool)
    assert torch.equal(transform(logits, torch.zeros(2, 1, 2, 4), region), logits)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("image", [0, 1, 1, 0, 0, 0, 0, 0, 0, 0]),
        ("reports", [0, 0, 0, 1, 1, 0, 1, 0, 0, 0]),
        ("relevance", [0, 0, 0, 1, 1, 0, 0.5, 0, 0, 0]),
        ("all but relevant reports", [0, 1, 1, 0, 0, 1, 1, 1, 1, 1]),
        ("all but image and relevant reports", [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]),
    ],
)
def test_columns_are_the_named_spans(name: str, expected: list[float]) -> None:
    assert COLUMNS[name](PROMPT, (1.0, 0.5)).tolist() == expected


def dense(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Attention by definition: all logits, changed after the mask, and a softmax."""
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    logits = query @ key.mT * options["scaling"]
    Q = logits.shape[2]
    future = ~torch.ones(Q, Q, dtype=torch.bool).tril()
    logits = logits.masked_fill(future, torch.finfo(torch.float32).min)
    if (change := options.get("change")) is not None:
        logits = change(module.layer_idx, logits)
    return (logits.softmax(-1) @ value).transpose(1, 2), None


@pytest.fixture(scope="module")
def reference(stock: LlavaForConditionalGeneration) -> Iterator[LlavaForConditionalGeneration]:
    AttentionInterface.register(REFERENCE, dense)
    AttentionMaskInterface.register(REFERENCE, sdpa_mask)
    stock.set_attn_implementation({"text_config": REFERENCE})
    yield stock
    stock.set_attn_implementation({"text_config": "sdpa"})


Change = Callable[[int, Tensor], Tensor]


def pai(image: slice, _reports: slice, _rows: slice) -> Change:
    def change(layer: int, logits: Tensor) -> Tensor:
        if layer >= 1:
            of_image = logits[:, :, -1, image]
            logits[:, :, -1, image] = of_image + 0.7 * of_image.abs()
        return logits

    return change


def pasta(_image: slice, reports: slice, rows: slice) -> Change:
    def change(layer: int, logits: Tensor) -> Tensor:
        if layer == 1:  # of the two query heads of a key head one alone
            kept = logits[:, 1, rows, reports].clone(), logits[:, 1, rows, 0].clone()
            logits[:, 1, rows] += math.log(0.1)
            logits[:, 1, rows, reports], logits[:, 1, rows, 0] = kept
        return logits

    return change


def spotlight(image: slice, _reports: slice, rows: slice) -> Change:
    def change(layer: int, logits: Tensor) -> Tensor:
        share = logits.softmax(-1)[:, :, rows, image].sum(-1).mean()
        bias = torch.logit(torch.tensor(0.9)) - torch.logit(share)
        logits[:, :, rows, image] += bias.clamp(min=0)
        return logits

    return change


RIVALS = {
    pai: Emphasis("raise", "image", 0.7, "last", 1),
    pasta: Emphasis("add", "all but relevant reports", math.log(0.1), "question+cue", 0, ((1, 1),)),
    spotlight: Emphasis("floor", "image", 0.9, "question+cue"),
}


@pytest.mark.parametrize(("published", "emphasis"), RIVALS.items())
def test_a_rival_equals_a_dense_reference(
    tiny_llava: Backbone,
    reference: LlavaForConditionalGeneration,
    features: Tensor,
    published: Callable[[slice, slice, slice], Change],
    emphasis: Emphasis,
) -> None:
    prompt = make(tiny_llava, REPORTS[:1])
    branch = Branch(prompt, features, (1.0,))
    image, report = prompt.span("image"), prompt.span("report 1")
    change = published(
        slice(image.start, image.stop),
        slice(report.start, report.stop),
        slice(prompt.suffix_start, None),
    )
    options = {"inputs_embeds": embed(tiny_llava, prompt, features)[None]}
    with torch.inference_mode():
        after = reference(**options, change=change).logits[0, -1].softmax(-1)
        before = reference(**options).logits[0, -1].softmax(-1)
    yes = list(tiny_llava.yes_ids)
    # Beside a longer prompt, so that it is padded on the left.
    beside = Branch(make(tiny_llava), features, LAMBDAS)
    ours = answer_batch(tiny_llava, [branch, beside], emphases=(emphasis,))
    assert ours.p_yes[0] == pytest.approx(after[yes].sum().item(), abs=1e-5)
    assert abs((after - before)[yes].sum().item()) > 1e-4


def pai_row(image: slice, _reports: slice) -> Change:
    def change(layer: int, row: Tensor) -> Tensor:
        if layer >= 1:
            row[..., image] += 0.7 * row[..., image].abs()
        return row

    return change


def pasta_row(_image: slice, reports: slice) -> Change:
    def change(layer: int, row: Tensor) -> Tensor:
        if layer == 1:
            outside = torch.ones(row.shape[-1])
            outside[reports] = outside[0] = 0
            row[:, 1] += math.log(0.1) * outside
        return row

    return change


# SpotLight's share is of all that a row sees, the answer too, and is worked out in the test.
WRITTEN = {pai: pai_row, pasta: pasta_row, spotlight: None}


@pytest.mark.parametrize(("published", "of_row"), WRITTEN.items())
def test_a_rival_that_acts_while_writing_equals_a_dense_reference(
    tiny_llava: Backbone,
    reference: LlavaForConditionalGeneration,
    features: Tensor,
    published: Callable[[slice, slice, slice], Change],
    of_row: Callable[[slice, slice], Change] | None,
) -> None:
    """The reference reads prompt and answer in one pass; an answer's words are never raised."""
    prompt = make(tiny_llava, REPORTS[:1])
    n, spans = len(prompt.ids), [prompt.span(name) for name in ("image", "report 1")]
    image, report = (slice(span.start, span.stop) for span in spans)
    before = published(image, report, slice(prompt.suffix_start, n))

    def change(layer: int, logits: Tensor) -> Tensor:
        whole = logits.clone()
        whole[:, :, :n, :n] = before(layer, logits[:, :, :n, :n].clone())
        for r in range(n, logits.shape[2]):
            if of_row is None:
                share = logits[:, :, r].softmax(-1)[..., image].sum(-1).mean()
                bias = torch.logit(torch.tensor(0.9)) - torch.logit(share)
                whole[:, :, r, image] += bias.clamp(min=0)
            else:
                whole[:, :, r, :n] = of_row(image, report)(layer, logits[:, :, r, :n].clone())
        return whole

    written = [[5, 9], [7, 4]]  # two tokens of each answer
    emphases = (replace(RIVALS[published], writing=True),)
    # Beside a longer prompt, so that it is padded on the left.
    branches = [Branch(prompt, features, (1.0,)), Branch(make(tiny_llava), features, LAMBDAS)]
    after, stock_after = (
        written_logits(tiny_llava, branches, written, used)[0] for used in (emphases, ())
    )
    table = tiny_llava.model.get_input_embeddings()
    rows = torch.cat([embed(tiny_llava, prompt, features), table(torch.tensor(written[0]))])
    with torch.inference_mode():
        expected = reference(inputs_embeds=rows[None], change=change).logits[0, n:]
    torch.testing.assert_close(after.softmax(-1), expected.softmax(-1), atol=1e-5, rtol=0)
    assert (after - stock_after).abs().max() > 1e-3


@torch.inference_mode()
def written_logits(
    backbone: Backbone,
    branches: list[Branch],
    written: list[list[int]],
    emphases: tuple[Emphasis, ...],
) -> Tensor:
    """Return what follows each token of answers that are given: [B, tokens, V]."""
    prompts, relevance = [b.prompt for b in branches], [b.relevance for b in branches]
    mask, heads = layout(prompts), heads_of(backbone)
    planned = (prompts, relevance, mask, emphases, backbone.layers, heads)
    cache = prefill_batch(backbone, branches)
    suffixes = [b.suffix(embed(backbone, b.prompt, b.features)) for b in branches]
    run_batch(backbone, suffixes, cache, mask, plan_emphasis(*planned))
    steer, logits = plan_writing(*planned), []
    for ids in torch.tensor(written).T:
        mask = torch.nn.functional.pad(mask, (0, 1), value=True)
        token = backbone.model.get_input_embeddings()(ids)[:, None]
        steered = steer(mask[:, None, None]) if steer else None
        logits.append(run_batch(backbone, [*token], cache, mask, steered))
    return torch.stack(logits, 1)


@pytest.mark.parametrize("emphasis", RIVALS.values())
def test_decoding_in_place_acts_as_a_growing_cache_does(
    tiny_llava: Backbone, features: Tensor, emphasis: Emphasis
) -> None:
    unending = replace(tiny_llava, eos_ids=())
    branches = [Branch(make(tiny_llava, REPORTS[:n]), features, LAMBDAS[:n]) for n in (1, 3)]
    strong = replace(emphasis, amount=emphasis.amount * (1 if emphasis.transform == "floor" else 9))
    emphases = (replace(strong, writing=True),)
    tokens: list[list[int]] = [[], []]
    mask = layout([branch.prompt for branch in branches])
    plan = (
        [branch.prompt for branch in branches],
        [branch.relevance for branch in branches],
        *(mask, emphases, unending.layers, heads_of(unending)),
    )
    with torch.inference_mode():
        cache = prefill_batch(unending, branches)
        suffixes = [b.suffix(embed(unending, b.prompt, b.features)) for b in branches]
        logits = run_batch(unending, suffixes, cache, mask, plan_emphasis(*plan))
        steps = decode(unending, cache, mask, logits, max_new_tokens=6, steer=plan_writing(*plan))
        for step in steps:
            for row, token in zip(tokens, step, strict=True):
                row.append(int(token or 0))
        grown = written_logits(unending, branches, [row[:-1] for row in tokens], emphases)
    assert grown.argmax(-1).tolist() == [row[1:] for row in tokens]


def test_what_writes_nothing_or_changes_nothing_is_plain_bit_for_bit(
    tiny_llava: Backbone, features: Tensor
) -> None:
    branches = [Branch(make(tiny_llava), features, LAMBDAS)]
    written = [[5, 9, 3]]
    plain = written_logits(tiny_llava, branches, written, ())
    for emphasis in RIVALS.values():
        zero = (replace(emphasis, amount=0.0, writing=True),)
        assert torch.equal(written_logits(tiny_llava, branches, written, zero), plain)
    prompts, relevance = [branches[0].prompt], [LAMBDAS]
    planned = (prompts, relevance, layout(prompts))
    assert plan_writing(*planned, (*RIVALS.values(),), 3, 4) is None
    asks = replace(Emphasis("scale by question", "reports", 0.4), writing=True)
    with pytest.raises(SettingsError, match="while the answer is written"):
        plan_writing(*planned, (asks,), 3, 4)


def test_mad_equals_a_dense_reference(
    tiny_llava: Backbone, reference: LlavaForConditionalGeneration, features: Tensor
) -> None:
    prompt = tiny_llava.prompt(QUESTION, REPORTS[:1], twice=True)
    image, asks = prompt.span("image"), prompt.span("first question")

    def change(_layer: int, logits: Tensor) -> Tensor:
        on_image = slice(image.start, image.stop)
        own = 0.4 * logits[:, :, -1].softmax(-1)
        look = logits[:, :, asks.start : asks.stop, on_image].softmax(-1).mean(2)
        own[..., on_image] += 0.6 * look
        logits[:, :, -1] = own.log()
        return logits

    options = {"inputs_embeds": embed(tiny_llava, prompt, features)[None]}
    with torch.inference_mode():
        after, before = (
            reference(**options, **more).logits[0, -1].softmax(-1)
            for more in ({"change": change}, {})
        )
    yes = list(tiny_llava.yes_ids)
    # Beside a longer prompt and one where the question stands once.
    longer = tiny_llava.prompt(QUESTION, REPORTS, twice=True)
    branches = [
        Branch(p, features, (0.0,) * len(p.reports)) for p in (prompt, longer, make(tiny_llava))
    ]
    emphasis = Emphasis("mix", "all", 0.6)
    mixed, plain = (answer_batch(tiny_llava, branches, emphases=e) for e in ((emphasis,), ()))
    assert mixed.p_yes[0] == pytest.approx(after[yes].sum().item(), abs=1e-5)
    assert plain.p_yes[0] == pytest.approx(before[yes].sum().item(), abs=1e-5)
    assert abs(mixed.p_yes[0] - plain.p_yes[0]) > 1e-4
    assert mixed.p_yes[2] == pytest.approx(plain.p_yes[2], abs=1e-6)


# Both query heads of one key head, and a head of another layer, in the tiny model's width.
SHIFT = Shift(
    3.0,
    vectors=(
        (1, 0, tuple(0.1 * n for n in range(12))),
        (1, 1, tuple(-0.1 * n for n in range(12))),
        (2, 3, (1.0,) * 12),
    ),
)


def test_a_shift_is_added_before_the_output_projection_in_every_row_of_the_batch(
    tiny_llava: Backbone, stock: LlavaForConditionalGeneration, features: Tensor
) -> None:
    branches = [Branch(make(tiny_llava, REPORTS[:n]), features, LAMBDAS[:n]) for n in (1, 3)]

    def shifted(layer: int) -> Callable[..., tuple[Tensor]]:
        def hook(_module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
            heads = inputs[0].view(*inputs[0].shape[:2], 4, 12)
            for where, head, values in SHIFT.vectors:
                if where == layer:
                    heads[:, -1, head] += 3.0 * torch.tensor(values)
            return inputs

        return hook

    ours = answer_batch(tiny_llava, branches, shift=SHIFT)
    layers = stock.model.language_model.layers
    hooks = [
        layers[n].self_attn.o_proj.register_forward_pre_hook(shifted(n)) for n in range(len(layers))
    ]
    try:
        for n, branch in enumerate(branches):
            rows = embed(tiny_llava, branch.prompt, features)[None]
            with torch.inference_mode():
                p = stock(inputs_embeds=rows).logits[0, -1].softmax(-1)
            expected = p[list(tiny_llava.yes_ids)].sum().item()
            assert ours.p_yes[n] == pytest.approx(expected, abs=1e-5)
    finally:
        for hook in hooks:
            hook.remove()
    plain = answer_batch(tiny_llava, branches)
    assert abs(plain.p_yes - ours.p_yes).min() > 1e-4


def test_a_shift_of_nothing_is_plain_bit_for_bit(tiny_llava: Backbone, features: Tensor) -> None:
    branches = [Branch(make(tiny_llava), features, LAMBDAS)]
    plain = answer_batch(tiny_llava, branches)
    for shift in (replace(SHIFT, amount=0.0), replace(SHIFT, vectors=())):
        zero = answer_batch(tiny_llava, branches, shift=shift)
        assert (plain.p_yes, plain.p_no) == (zero.p_yes, zero.p_no)
    with pytest.raises(SettingsError, match="heads 0 to 3"):
        answer_batch(tiny_llava, branches, shift=Shift(1.0, vectors=((0, 4, (1.0,)),)))


def test_only_the_named_head_changes() -> None:
    def rand(*shape: int, seed: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    module: Any = type("Layer", (), {"layer_idx": 1, "num_key_value_groups": 2, "is_causal": True})
    tensors = {
        "query": rand(1, 4, 10, 6, seed=1),
        "key": rand(1, 2, 10, 6, seed=2),
        "value": rand(1, 2, 10, 6, seed=3),
    }
    emphasis = Emphasis("add", "image", -3.0, "question+cue", 0, ((1, 2),))
    mask = torch.ones(1, 10, dtype=torch.bool)
    steered = plan_emphasis([PROMPT], [(1.0, 0.0)], mask, [emphasis], 3, 4)
    plain, after = (
        attention(module, **tensors, attention_mask=None, scaling=0.4, steered=s)[0]
        for s in (None, steered)
    )
    changed = (plain != after).any(-1)[0]
    assert changed.nonzero().tolist() == [[row, 2] for row in (7, 8, 9)]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_an_amount_of_zero_is_plain_bit_for_bit(
    tiny_llava: Backbone, features: Tensor, transform: str
) -> None:
    branch = Branch(make(tiny_llava), features, LAMBDAS)
    plain = answer_batch(tiny_llava, [branch])
    zero = answer_batch(tiny_llava, [branch], emphases=(Emphasis(transform, "image", 0.0),))
    assert (plain.p_yes, plain.p_no) == (zero.p_yes, zero.p_no)


def test_prompts_that_are_left_plain_are_untouched(tiny_llava: Backbone, features: Tensor) -> None:
    prompts = [make(tiny_llava), make(tiny_llava)]
    mask_BX = layout(prompts)
    emphasis = Emphasis("raise", "image", 1.0)
    steered = plan_emphasis(
        prompts, [LAMBDAS] * 2, mask_BX, [emphasis], 3, heads_of(tiny_llava), plain=(1,)
    )
    assert steered is not None
    assert steered.edits[0].lam_BQX[0].any()
    assert not steered.edits[0].lam_BQX[1].any()


@pytest.mark.parametrize(
    ("emphasis", "says"),
    [
        (Emphasis("shout", "image", 1.0), "'shout'"),
        (Emphasis("add", "heading", 1.0), "'heading'"),
        (Emphasis("add", "image", 1.0, "first"), "'first'"),
        (Emphasis("add", "image", math.nan), "finite"),
        (Emphasis("floor", "image", 1.5), "below 1"),
        (Emphasis("mix", "all", 1.0), "below 1"),
        (Emphasis("add", "image", 1.0, heads=((0, 4),)), "heads 0 to 3"),
    ],
)
def test_what_is_not_allowed_is_refused(emphasis: Emphasis, says: str) -> None:
    mask = torch.ones(1, 10, dtype=torch.bool)
    with pytest.raises(SettingsError, match=says):
        plan_emphasis([PROMPT], [(1.0, 0.0)], mask, [emphasis], 3, 4)
