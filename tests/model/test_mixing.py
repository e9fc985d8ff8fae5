"""Mixtures of prompts are their published equations, and one prompt is itself."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_llava import LAMBDAS, QUESTION, REPORTS, make
from torch import Tensor

from mrrag.errors import SettingsError
from mrrag.model.answering import answer_batch
from mrrag.model.backbone import Backbone, embed
from mrrag.model.mixing import (
    RULES,
    Group,
    answer_mixtures,
    contrast,
    divergence,
    plausible_contrast,
    ratio_contrast,
    sharing,
)
from mrrag.model.prefill import Branch
from mrrag.types import Emphasis, Mixture, Rival

# Logits of one group: with and without.
PAIR = torch.tensor([[2.0, 1.0, 0.0, -1.0], [1.0, 1.5, 0.5, -1.0]])[None]
NONE = torch.zeros(1, 2)


def amount(value: float) -> Tensor:
    return torch.tensor([[value]])


def test_context_aware_decoding() -> None:
    mixed = contrast(PAIR, NONE, amount(1.0)).softmax(-1).flatten()
    expected = [0.884488, 0.072603, 0.026709, 0.016200]
    assert mixed.tolist() == pytest.approx(expected, abs=1e-6)


def test_adacad_s_divergence() -> None:
    p, q = (torch.tensor([row]).log() for row in ((0.8, 0.2), (0.3, 0.7)))
    assert divergence(p, q).item() == pytest.approx(0.191165, abs=1e-6)
    assert divergence(p, q).item() * math.log(2) == pytest.approx(0.132505, abs=1e-6)
    assert divergence(p, p).item() == pytest.approx(0, abs=1e-7)
    torch.testing.assert_close(
        RULES["adaptive contrast"](PAIR, NONE, amount(9.0)),
        contrast(PAIR, NONE, divergence(PAIR[:, 0], PAIR[:, 1])[:, None]),
    )


def test_pai_s_contrast_and_its_cut() -> None:
    mixed = plausible_contrast(PAIR, NONE, amount(1.1)).flatten().tolist()
    assert mixed == pytest.approx([-0.362108, -1.512108, -2.512108, -math.inf], abs=1e-6)
    # Without the cut it is context-aware decoding with α = γ − 1.
    kept = plausible_contrast(PAIR, NONE, amount(1.1))[:, :3].softmax(-1)
    torch.testing.assert_close(kept, contrast(PAIR, NONE, amount(0.1))[:, :3].softmax(-1))


def test_alfar_s_fusion() -> None:
    equal = ratio_contrast(PAIR, NONE, amount(1.0)).flatten().tolist()
    assert equal == [4.0, -math.inf, -math.inf, -math.inf]  # 2ℓ, and ln 0.7 = −0.36 below the best
    half = ratio_contrast(PAIR, NONE, amount(0.5)).flatten()
    assert half[0].item() == pytest.approx(3 * 2.0 - 0.5 * 1.0)


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, 0.502792), (0.1, 0.779425), (0.05, 0.799007)]
)
def test_replug_s_weights(temperature: float, expected: float) -> None:
    p = torch.tensor([0.8, 0.4, 0.1])
    logits = torch.stack([p, 1 - p], -1).log()[None]
    scores = torch.tensor([[0.9, 0.6, 0.3]])
    mixed = RULES["score"](logits, scores, amount(temperature)).exp()
    assert mixed[0, 0].item() == pytest.approx(expected, abs=1e-6)
    assert mixed.sum().item() == pytest.approx(1, abs=1e-6)


def test_entropy_trusts_the_prompt_that_is_sure() -> None:
    p = torch.tensor([0.99, 0.5])
    logits = torch.stack([p, 1 - p], -1).log()[None]
    sure = -(0.99 * math.log(0.99) + 0.01 * math.log(0.01))
    weight = math.exp(-sure) / (math.exp(-sure) + 0.5)
    mixed = RULES["entropy"](logits, NONE, amount(1.0)).exp()[0, 0].item()
    assert mixed == pytest.approx(weight * 0.99 + (1 - weight) * 0.5)


def test_a_vote_counts_heads_and_even_votes_go_to_the_more_probable() -> None:
    def ballot(*p: float) -> Tensor:
        p_R = torch.tensor(p)
        logits = torch.stack([p_R, 1 - p_R], -1).log()[None]
        return RULES["vote"](logits, torch.zeros(1, len(p)), amount(0.0)).exp()[0]

    assert ballot(0.6, 0.6, 0.01).tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-5)
    assert ballot(0.6, 0.1).argmax() == 1


@pytest.mark.parametrize("rule", ["uniform", "score", "entropy", "vote"])
def test_a_fusion_ignores_order_and_places_without_a_prompt(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4, 6, generator=generator)
    scores = torch.randn(1, 4, generator=generator)
    order = torch.tensor([2, 0, 3, 1])
    mixed = RULES[rule](logits, scores, amount(0.5))
    torch.testing.assert_close(mixed, RULES[rule](logits[:, order], scores[:, order], amount(0.5)))
    fewer = torch.cat([logits, torch.full((1, 1, 6), 9.0)], 1)
    padded = torch.cat([scores, torch.tensor([[-math.inf]])], 1)
    torch.testing.assert_close(mixed, RULES[rule](fewer, padded, amount(0.5)))


def single(backbone: Backbone, features: Tensor, *numbers: int) -> Group:
    branches = [Branch(make(backbone, (REPORTS[n],)), features, (0.0,)) for n in numbers]
    return Group(branches, [0.1 * n for n in numbers])


@pytest.mark.parametrize("rule", ["uniform", "score", "entropy", "vote"])
def test_one_prompt_is_itself_token_by_token(
    tiny_llava: Backbone, features: Tensor, rule: str
) -> None:
    group = single(tiny_llava, features, 1)
    plain = answer_batch(tiny_llava, group.branches, max_new_tokens=6)
    # Beside a group of three, so that it is padded.
    groups = [group, single(tiny_llava, features, 0, 1, 2)]
    ways = [Rival(mixture=Mixture("each report", rule, 0.5))]
    (mixed,) = answer_mixtures(tiny_llava, groups, ways, max_new_tokens=6)
    assert mixed.texts[0] == plain.texts[0] != ""
    if rule != "vote":
        assert mixed.p_yes[0] == pytest.approx(plain.p_yes[0], abs=1e-6)


def test_groups_together_are_groups_apart(tiny_llava: Backbone, features: Tensor) -> None:
    groups = [single(tiny_llava, features, *n) for n in ((0, 1), (2,), (1, 2, 0))]
    mixtures = (Mixture("each report", "score", 0.1), Mixture("each report", "vote"))
    ways = [Rival(mixture=mixture) for mixture in mixtures]
    together = answer_mixtures(tiny_llava, groups, ways, max_new_tokens=4)
    for way, batch in zip(ways, together, strict=True):
        for g, group in enumerate(groups):
            (apart,) = answer_mixtures(tiny_llava, [group], [way], max_new_tokens=4)
            assert batch.p_yes[g] == pytest.approx(apart.p_yes[0], abs=1e-6)
            assert batch.texts[g] == apart.texts[0]


def test_what_prompts_begin_with_is_read_once(tiny_llava: Backbone, features: Tensor) -> None:
    group = single(tiny_llava, features, 0, 1, 2)
    shared = sharing(group)
    assert len({branch.prefix_ids for branch in shared}) == 1
    assert shared[0].prompt.suffix_start > shared[0].prompt.span("image").stop
    blind = Branch(tiny_llava.prompt(QUESTION, REPORTS, image=False))
    apart = Group([*group.branches, blind], (0.0,) * 4)
    assert sharing(apart) == apart.branches
    # And the answer is as if every prompt had been read on its own.
    ways = [Rival(mixture=Mixture("each report", "uniform"))]
    (mixed,) = answer_mixtures(tiny_llava, [group], ways)
    alone = answer_batch(tiny_llava, group.branches)
    assert mixed.p_yes[0] == pytest.approx(alone.p_yes.mean(), abs=1e-6)


def with_and_without(backbone: Backbone, features: Tensor) -> Group:
    branches = [
        Branch(make(backbone), features, LAMBDAS),
        Branch(make(backbone, ()), features),
    ]
    return Group(branches, (0.0, 0.0))


@pytest.mark.parametrize(("rule", "number"), [("contrast", 0.0), ("plausible contrast", 1.0)])
def test_a_contrast_of_nothing_is_the_first_prompt(
    tiny_llava: Backbone, features: Tensor, rule: str, number: float
) -> None:
    group = with_and_without(tiny_llava, features)
    plain = answer_batch(tiny_llava, group.branches[:1], max_new_tokens=6)
    ways = [Rival(mixture=Mixture("no reports", rule, number))]
    (mixed,) = answer_mixtures(tiny_llava, [group], ways, max_new_tokens=6)
    assert mixed.texts == plain.texts
    assert mixed.next_id == plain.next_id


def test_prompts_read_once_for_all_changes_of_attention_answer_as_if_read_for_each(
    tiny_llava: Backbone, features: Tensor
) -> None:
    groups = [with_and_without(tiny_llava, features)] * 2
    raised = [(Emphasis("raise", "image", amount),) for amount in (0.5, 5.0)]
    mixtures = (Mixture("no reports", "contrast", 0.5), Mixture("no reports", "contrast", -0.5))
    ways = [Rival(emphases, mixture) for mixture in mixtures for emphases in ((), *raised)]
    together = answer_mixtures(tiny_llava, groups, ways, max_new_tokens=3)
    assert len({float(batch.p_yes[0]) for batch in together}) == len(ways)
    for way, batch in zip(ways, together, strict=True):
        (alone,) = answer_mixtures(tiny_llava, groups, [way], max_new_tokens=3)
        assert (batch.p_yes == alone.p_yes).all()  # not even rounding differs
        assert batch.texts == alone.texts


def test_a_contrast_s_first_token_is_the_equation_and_the_prompt_without_image_works(
    tiny_llava: Backbone, features: Tensor
) -> None:
    seen, unseen = (tiny_llava.prompt(QUESTION, REPORTS, image=image) for image in (True, False))
    group = Group([Branch(seen, features, LAMBDAS), Branch(unseen, None, LAMBDAS)], (0.0, 0.0))
    (mixed,) = answer_mixtures(
        tiny_llava, [group], [Rival(mixture=Mixture("no image", "contrast", 0.5))]
    )
    parts = (
        answer_batch(tiny_llava, group.branches[:1]),
        answer_batch(tiny_llava, group.branches[1:]),
    )
    odds = [math.log(p.p_yes[0] / p.p_no[0]) for p in parts]
    if len(tiny_llava.yes_ids) == len(tiny_llava.no_ids) == 1:
        expected = 1.5 * odds[0] - 0.5 * odds[1]
        assert math.log(mixed.p_yes[0] / mixed.p_no[0]) == pytest.approx(expected, abs=1e-4)
    assert mixed.p_yes[0] != pytest.approx(parts[0].p_yes[0], abs=1e-6)


def test_alfar_s_ratio_is_the_last_row_s_attention_in_the_last_layer(
    tiny_llava: Backbone, features: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def noted(logits: Tensor, scores: Tensor, ratio: Tensor) -> Tensor:
        seen.append(ratio)
        return ratio_contrast(logits, scores, ratio)

    monkeypatch.setitem(RULES, "ratio contrast", noted)
    group = with_and_without(tiny_llava, features)
    mixture = Mixture("no reports", "ratio contrast")
    answer_mixtures(tiny_llava, [group], [Rival(mixture=mixture)])
    answer_mixtures(tiny_llava, [group], [Rival((Emphasis("raise", "image", 5.0),), mixture)])
    prompt = group.branches[0].prompt
    stock = tiny_llava.model
    stock.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.inference_mode():
            embeds = embed(tiny_llava, prompt, features)[None]
            maps = stock(inputs_embeds=embeds, output_attentions=True).attentions
    finally:
        stock.set_attn_implementation({"text_config": "mrrag"})
    last = maps[-1][0, :, -1].mean(0)
    image = prompt.span("image")
    on_reports = sum(last[s.start : s.stop].sum() for s in prompt.reports)
    assert seen[0].item() == pytest.approx(
        (last[image.start : image.stop].sum() / on_reports).item(), rel=1e-4
    )
    assert seen[1].item() != pytest.approx(seen[0].item())


@pytest.mark.parametrize(
    ("mixture", "says"),
    [
        (Mixture("each report", "loudest"), "uniform"),
        (Mixture("each report", "score", 0.0), "temperature above 0"),
        (Mixture("no reports", "contrast", math.nan), "finite"),
    ],
)
def test_what_is_not_allowed_is_refused(
    tiny_llava: Backbone, features: Tensor, mixture: Mixture, says: str
) -> None:
    group = with_and_without(tiny_llava, features)
    with pytest.raises(SettingsError, match=says):
        answer_mixtures(tiny_llava, [group], [Rival(mixture=mixture)])
