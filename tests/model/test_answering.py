"""Branches together are branches apart, and equal to transformers' own generate()."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llava import LAMBDAS, QUESTION, REPORTS, STEERED, last, make, picture, three
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from mrrag.errors import SettingsError
from mrrag.model.answering import Asked, Step, answer_batch, answer_branches, answer_questions
from mrrag.model.backbone import (
    Backbone,
    embed,
    encode_images,
    pixel_values,
)
from mrrag.model.decoding import decode
from mrrag.model.prefill import (
    Branch,
    prefill,
    right_aligned,
    run_batch,
)
from mrrag.model.steering import Block
from mrrag.types import Steering


@pytest.mark.parametrize("question", [QUESTION, "Is the heart normal?", "Are the lungs clear?"])
def test_greedy_tokens_are_generate_s(
    tiny_llava: Backbone, stock: LlavaForConditionalGeneration, features: Tensor, question: str
) -> None:
    prompts = [make(tiny_llava, question=question), make(tiny_llava, (), question=question)]
    branches = [Branch(prompt, features) for prompt in prompts]
    step = last(tiny_llava, branches, max_new_tokens=12, trace=False)
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


def test_branches_together_are_branches_apart(tiny_llava: Backbone, features: Tensor) -> None:
    short = make(tiny_llava, REPORTS[:1], question="Is it?")
    branches = [*three(tiny_llava, features), Branch(short, features, (1.0,))]
    together = last(tiny_llava, branches, max_new_tokens=10)
    for b, branch in enumerate(branches):
        apart = last(tiny_llava, [branch], max_new_tokens=10)
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
    branches = three(tiny_llava, features)
    step = last(tiny_llava, branches)
    scores = answer_batch(tiny_llava, branches, STEERED, max_new_tokens=6)
    assert np.abs(scores.p_yes - step.p_yes).max() < 1e-6
    assert np.abs(scores.p_no - step.p_no).max() < 1e-6
    assert scores.texts == step.texts
    assert answer_batch(tiny_llava, branches, STEERED).texts == ("",) * 3
    firsts = list(answer_branches(tiny_llava, branches, STEERED, max_new_tokens=1))
    assert [tiny_llava.tokenizer.decode([i]).strip() for i in scores.next_id] == list(
        firsts[-1].texts
    )


def test_rows_of_a_batch_keep_their_own_image_and_lambda(tiny_llava: Backbone) -> None:
    pictures = [encode_images(tiny_llava, [picture(seed)]) for seed in range(3)]
    branches = [
        Branch(make(tiny_llava, REPORTS), pictures[0], (1.0, 0.5, 0.0)),
        Branch(make(tiny_llava, REPORTS[:1], "Is it?"), pictures[1], (1.0,)),
        Branch(make(tiny_llava, ()), pictures[2]),
    ]
    steering = replace(STEERED, rows="question")
    together = answer_batch(tiny_llava, branches, steering)
    for b, branch in enumerate(branches):
        apart = answer_batch(tiny_llava, [branch], steering)
        assert together.p_yes[b] == pytest.approx(apart.p_yes[0], abs=1e-6)
        assert together.next_id[b] == apart.next_id[0]


def test_a_plain_row_next_to_a_steered_one_is_untouched(
    tiny_llava: Backbone, features: Tensor
) -> None:
    branches = three(tiny_llava, features)
    strong = last(tiny_llava, branches, replace(STEERED, strength=3.0))
    none = last(tiny_llava, branches, replace(STEERED, strength=0.0))
    assert strong.p_yes[:2] == none.p_yes[:2]
    assert strong.texts[:2] == none.texts[:2]
    # Equal rows of one batch may be rounded apart in the last place.
    assert none.p_yes[2] == pytest.approx(none.p_yes[1], abs=1e-6)
    assert strong.p_yes[2] != pytest.approx(strong.p_yes[1], abs=1e-4)


def test_one_report_alone_has_no_relative_relevance_and_equals_rag(
    tiny_llava: Backbone, features: Tensor
) -> None:
    prompt = make(tiny_llava, REPORTS[:1])
    step = last(tiny_llava, [Branch(prompt, features), Branch(prompt, features, (0.0,))])
    assert step.p_yes[0] == step.p_yes[1]
    assert step.texts[0] == step.texts[1]
    assert np.array_equal(step.traces[0].mass_LHS, step.traces[1].mass_LHS)
    assert step.traces[1].layers == ()


def test_the_trace_changes_no_answer(tiny_llava: Backbone, features: Tensor) -> None:
    branches = three(tiny_llava, features)
    shown, hidden = (last(tiny_llava, branches, trace=t) for t in (True, False))
    assert shown.p_yes == hidden.p_yes
    assert shown.texts == hidden.texts
    assert len(shown.traces) == 3
    assert hidden.traces == ()


def test_blocking_all_reports_everywhere_differs_from_not_having_read_them(
    tiny_llava: Backbone, features: Tensor
) -> None:
    prompt = make(tiny_llava)
    branches = [Branch(prompt, features)] * 3
    every = Block(layers=range(tiny_llava.layers), reports=((), (1, 2, 3), (3,)))
    none, all_three, third = answer_batch(tiny_llava, branches, block=every).p_yes
    plain = answer_batch(tiny_llava, branches[:1]).p_yes[0]
    assert none == pytest.approx(plain, abs=1e-6)
    assert len({round(float(p), 5) for p in (none, all_three, third)}) == 3


def test_a_question_without_an_image_is_answered(tiny_llava: Backbone) -> None:
    prompt = tiny_llava.prompt(QUESTION, REPORTS, image=False)
    step = last(tiny_llava, [Branch(prompt, None, LAMBDAS)])
    assert "image" not in step.traces[0].names
    assert step.tokens == (6,)


def test_steps_grow_by_one_token_and_the_last_is_done(
    tiny_llava: Backbone, features: Tensor
) -> None:
    steps = list(
        answer_branches(tiny_llava, three(tiny_llava, features), STEERED, max_new_tokens=4)
    )
    assert steps[0].texts == ("", "", "")
    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
    for before, after in itertools.pairwise(steps):
        assert all(b <= a <= b + 1 for b, a in zip(before.tokens, after.tokens, strict=True))
        assert after.p_yes == before.p_yes
    assert steps[-1].tokens == (4, 4, 4)
    assert all(0 < p < 1 for p in (*steps[0].p_yes, *steps[0].p_no))


def test_each_row_stops_at_its_own_end(tiny_llava: Backbone, features: Tensor) -> None:
    branches = three(tiny_llava, features)
    free = last(tiny_llava, branches, max_new_tokens=8)
    embeds = [embed(tiny_llava, branch.prompt, features) for branch in branches]
    mask = right_aligned([len(e) for e in embeds])
    cache = prefill(tiny_llava, embeds[0][:0])
    logits = run_batch(tiny_llava, embeds, cache, mask)
    rows = list(decode(tiny_llava, cache, mask, logits, max_new_tokens=8))
    # The second row's third token becomes the end of an answer.
    end = rows[2][1]
    assert end is not None
    ending = type(tiny_llava)(**{**vars(tiny_llava), "eos_ids": (*tiny_llava.eos_ids, end)})
    stopped = last(ending, branches, max_new_tokens=8)
    assert stopped.tokens[1] == [row[1] for row in rows].index(end)
    assert free.texts[1].startswith(stopped.texts[1])
    assert answer_batch(ending, branches, STEERED, max_new_tokens=8).texts == stopped.texts


def test_closing_the_generator_stops_the_model(tiny_llava: Backbone, features: Tensor) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = tiny_llava.model.lm_head.register_forward_hook(count)
    try:
        steps = answer_branches(tiny_llava, three(tiny_llava, features), STEERED, max_new_tokens=50)
        next(steps)
        next(steps)
        ran = calls
        steps.close()
        assert calls == ran
        assert list(steps) == []
    finally:
        hook.remove()


def test_two_interleaved_answers_share_nothing(tiny_llava: Backbone, features: Tensor) -> None:
    other = encode_images(tiny_llava, [picture(7)])
    short = [Branch(make(tiny_llava, REPORTS[:2], "Is it?"), other, (0.0, 1.0))]
    jobs = [three(tiny_llava, features), short]

    def start(job: int) -> Any:
        return answer_branches(tiny_llava, jobs[job], STEERED, max_new_tokens=6)

    alone = [list(start(0)), list(start(1))]
    together = list(zip(start(0), start(1), strict=True))
    for job in (0, 1):
        for one, other_step in zip(alone[job], (pair[job] for pair in together), strict=True):
            assert one.texts == other_step.texts
            assert one.p_yes == other_step.p_yes
            for a, b in zip(one.traces, other_step.traces, strict=True):
                assert np.array_equal(a.mass_LHS, b.mass_LHS)


def visitors(backbone: Backbone) -> list[Asked]:
    """Three questions of other lengths, pictures, reports, λ and strengths; one has no picture."""
    first, second = (encode_images(backbone, [picture(seed)]) for seed in (0, 7))
    short = make(backbone, REPORTS[:2], "Is it?")
    blind = backbone.prompt("Is there really no pneumothorax at all?", REPORTS, image=False)
    return [
        Asked(three(backbone, first), 1.0),
        Asked([Branch(short, second), Branch(short, second, (0.0, 1.0))], 3.0),
        Asked([Branch(blind, None, LAMBDAS)], 0.5),
    ]


def alone(backbone: Backbone, one: Asked, **options: Any) -> list[Step]:
    steering = replace(STEERED, strength=one.strength)
    return list(answer_branches(backbone, one.branches, steering, known=one.known, **options))


def assert_equal(ours: Step, theirs: Step) -> None:
    """All but seconds; numbers to float noise, for other padding sums in another order."""
    assert (ours.texts, ours.tokens, ours.done) == (theirs.texts, theirs.tokens, theirs.done)
    assert ours.p_yes == pytest.approx(theirs.p_yes, abs=1e-6)
    assert ours.p_no == pytest.approx(theirs.p_no, abs=1e-6)
    assert ours.prefix.ids == theirs.prefix.ids
    for a, b in zip(ours.traces, theirs.traces, strict=True):
        assert (a.names, a.spans, a.layers) == (b.names, b.spans, b.layers)
        assert np.abs(a.mass_LHS - b.mass_LHS).max() < 1e-5
        assert np.abs(a.keys_LX - b.keys_LX).max() < 1e-5


def test_questions_together_are_questions_apart_step_by_step(tiny_llava: Backbone) -> None:
    asked = visitors(tiny_llava)
    known = alone(tiny_llava, asked[1], max_new_tokens=1)[-1].prefix
    asked[1] = replace(asked[1], known=known)
    together = list(answer_questions(tiny_llava, asked, STEERED, max_new_tokens=5))
    for n, one in enumerate(asked):
        apart = alone(tiny_llava, one, max_new_tokens=5)
        assert len(together) == len(apart)
        for steps, step in zip(together, apart, strict=True):
            assert_equal(steps[n], step)
    texts = [step.texts for step in together[-1]]
    assert len(set(texts)) == 3
    assert together[-1][1].prefix.features is known.features


def test_a_question_is_done_when_its_own_rows_are(tiny_llava: Backbone) -> None:
    asked = visitors(tiny_llava)[1:]
    apart = [alone(tiny_llava, one, max_new_tokens=6)[-1] for one in asked]
    # The first token of the second question ends its answer, and not the first's.
    steering = replace(STEERED, strength=asked[1].strength)
    (end,) = answer_batch(tiny_llava, asked[1].branches, steering).next_id
    ending = replace(tiny_llava, eos_ids=(*tiny_llava.eos_ids, int(end)))
    together = list(answer_questions(ending, asked, STEERED, max_new_tokens=6))
    done = [[step.done for step in steps] for steps in together]
    assert done[0] == [False, False]
    assert done[1] == [False, True]
    assert done[-1] == [True, True]
    assert all(steps[1] is together[1][1] for steps in together[1:])
    assert together[-1][0].texts == apart[0].texts
    assert together[-1][1].tokens == (0,)


def test_a_generator_leaves_inference_mode_to_itself(
    tiny_llava: Backbone, features: Tensor
) -> None:
    steps = answer_branches(tiny_llava, three(tiny_llava, features), STEERED, max_new_tokens=2)
    for _ in steps:
        assert not torch.is_inference_mode_enabled()


def test_a_layer_that_does_not_exist_is_refused(tiny_llava: Backbone, features: Tensor) -> None:
    branches = three(tiny_llava, features)
    with pytest.raises(SettingsError, match="layers 0 to 2"):
        last(tiny_llava, branches, Steering(1.0, (1, 3)))
    with pytest.raises(SettingsError, match="layers 0 to 2"):
        answer_batch(tiny_llava, branches[1:2], block=Block(layers=(-1,)))
