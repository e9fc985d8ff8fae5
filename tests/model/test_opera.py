"""OPERA is its published equations, and beam search where it punishes nothing."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tiny_llava import LAMBDAS, QUESTION, REPORTS, make
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from mrrag.errors import SettingsError
from mrrag.model.answering import answer_batch
from mrrag.model.backbone import Backbone, embed
from mrrag.model.opera import Beams, Step, answer_beams, lean, place_to_return, readers, search
from mrrag.model.prefill import Branch, layout, prefill_batch, run_batch
from mrrag.types import Opera

ALL = 10_000  # more candidates than there are tokens
SCALE = 50.0


def branches_of(backbone: Backbone, features: Tensor) -> list[Branch]:
    """Return prompts of different lengths, so that they are padded."""
    asked = ((REPORTS[:1], QUESTION), (REPORTS, QUESTION), ((), "Is the heart enlarged?"))
    return [
        Branch(make(backbone, reports, question), features, LAMBDAS[: len(reports)])
        for reports, question in asked
    ]


def test_without_penalty_and_with_all_candidates_it_is_transformers_beam_search(
    tiny_llava: Backbone, stock: LlavaForConditionalGeneration, features: Tensor
) -> None:
    branches = branches_of(tiny_llava, features)[:2]
    plain = Opera(beams=2, candidates=ALL, weight=0.0)

    def generated(branch: Branch, eos: tuple[int, ...]) -> list[int]:
        rows = embed(tiny_llava, branch.prompt, features)[None]
        mask = torch.ones(rows.shape[:2], dtype=torch.long)
        options = {"num_beams": 2, "do_sample": False, "max_new_tokens": 5}
        ids = stock.generate(
            inputs_embeds=rows, attention_mask=mask, eos_token_id=list(eos), **options
        )[0]
        return [i for i in ids.tolist() if i not in (*eos, *tiny_llava.eos_ids)]

    first = generated(branches[0], tiny_llava.eos_ids)
    # With tokens that end answers early, so that beams end one after the other.
    lengths = set()
    for eos in (tiny_llava.eos_ids, (first[1],), (first[2], first[4])):
        ending = replace(tiny_llava, eos_ids=eos)
        ours = answer_beams(ending, branches, plain, max_new_tokens=5)
        for branch, text in zip(branches, ours.texts, strict=True):
            ids = generated(branch, eos)
            lengths.add(len(ids))
            assert text == tiny_llava.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert min(lengths) < 5 in lengths
    greedy = answer_batch(tiny_llava, branches)
    assert ours.p_yes.tolist() == pytest.approx(greedy.p_yes.tolist(), abs=1e-6)
    assert ours.next_id.tolist() == greedy.next_id.tolist()


def last_rows(backbone: Backbone, branch: Branch, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and ω after each answer [N, T] to a prompt, from whole eager maps."""
    table = backbone.model.get_input_embeddings()
    with torch.no_grad():
        rows = embed(backbone, branch.prompt, branch.features).clone()
        rows = torch.cat([rows.expand(len(answers), -1, -1), table(answers)], 1)
        backbone.model.set_attn_implementation({"text_config": "eager"})
        try:
            made = backbone.model(inputs_embeds=rows, output_attentions=True)
        finally:
            backbone.model.set_attn_implementation({"text_config": "mrrag"})
    rows_NX = made.attentions[-1][:, :, -1].amax(1)
    return made.logits[:, -1], rows_NX / rows_NX.sum(-1, keepdim=True)


@pytest.mark.parametrize("looks", [("image",), ("image", "relevance")])
def test_the_first_token_is_the_equation_on_whole_eager_maps(
    tiny_llava: Backbone, features: Tensor, looks: tuple[str, ...]
) -> None:
    branches = branches_of(tiny_llava, features)
    opera = Opera(candidates=ALL, weight=30.0, looks=looks)
    ours = answer_beams(tiny_llava, branches, opera)
    plain = answer_beams(tiny_llava, branches, replace(opera, weight=0.0))
    image = branches[1].prompt.span("image")
    logits_V = last_rows(tiny_llava, branches[1], torch.zeros(1, 0, dtype=torch.long))[0][0]
    _, rows_VX = last_rows(tiny_llava, branches[1], torch.arange(len(logits_V))[:, None])
    logits_V = logits_V + 30 * rows_VX[:, image.start : image.stop].sum(-1)
    if "relevance" in looks:
        for span, lam in zip(branches[1].prompt.reports, LAMBDAS, strict=True):
            logits_V += 30 * lam * rows_VX[:, span.start : span.stop].sum(-1)
    p = logits_V.softmax(-1)
    assert ours.p_yes[1] == pytest.approx(p[list(tiny_llava.yes_ids)].sum().item(), abs=1e-5)
    assert ours.p_no[1] == pytest.approx(p[list(tiny_llava.no_ids)].sum().item(), abs=1e-5)
    assert ours.next_id[1] == p.argmax()
    assert ours.p_yes[1] != pytest.approx(plain.p_yes[1], abs=1e-4)


def test_rows_read_token_by_token_are_those_of_whole_eager_maps(
    tiny_llava: Backbone, features: Tensor
) -> None:
    branch = branches_of(tiny_llava, features)[1]
    mask_1X = layout([branch.prompt])
    cache = prefill_batch(tiny_llava, [branch])
    with torch.inference_mode():
        suffix = branch.suffix(embed(tiny_llava, branch.prompt, features))
        run_batch(tiny_llava, [suffix], cache, mask_1X)
        feed, again = readers(tiny_llava, cache, mask_1X)
        state, _, _ = feed(cache, torch.tensor([0, 0]), torch.tensor([5, 9]))
        # The beams change places, and one is dropped for two of the other.
        state, _, _ = feed(state, torch.tensor([1, 0, 1]), torch.tensor([7, 8, 6]))
        _, logits_RV, row_RX = feed(state, torch.tensor([2, 0]), torch.tensor([4, 3]))
        answers = torch.tensor([[9, 6, 4], [9, 7, 3]])
        expected_RV, expected_RX = last_rows(tiny_llava, branch, answers)
        torch.testing.assert_close(row_RX, expected_RX, atol=1e-5, rtol=0)
        torch.testing.assert_close(logits_RV, expected_RV, atol=1e-4, rtol=0)
        torch.testing.assert_close(again(answers)[1], expected_RV, atol=1e-4, rtol=0)


def test_the_running_sums_are_the_literal_product() -> None:
    rows = torch.rand(14, 14, generator=torch.Generator().manual_seed(0)).tril()
    rows = rows / rows.sum(-1, keepdim=True)
    sums = torch.zeros(1, 0)
    for i in range(14):
        sums = lean(sums, rows[i : i + 1, : i + 1], SCALE)
    for j in range(14):
        product = 1e-7 * math.prod(SCALE * float(rows[i, j]) for i in range(j, 14))
        assert math.exp(float(sums[0, j]) + math.log(1e-7)) == pytest.approx(product, rel=1e-4)
    # What is not looked at once is at −∞ for good, and not NaN.
    zero = lean(lean(sums, torch.zeros(1, 15), SCALE), torch.zeros(1, 16), SCALE)
    assert (zero == -math.inf).all()


def step_of(*places: int) -> Step:
    nothing = torch.zeros(len(places), 0)
    return Step(nothing, nothing, nothing, torch.tensor(places), None, nothing)


def beams_of(*places: list[int]) -> Beams:
    nothing = torch.zeros(len(places), 0)
    return Beams(nothing.long(), nothing, nothing, torch.tensor(places))


def test_it_goes_back_where_every_beam_leans_on_one_late_place_for_long() -> None:
    opera = Opera(threshold=2, candidates=2)
    long = beams_of([3, 12, 12], [12, 3, 12])
    assert place_to_return(long, step_of(12, 12), opera, Counter()) == 13
    assert place_to_return(long, step_of(12, 11), opera, Counter()) is None  # the mode is 11
    one_short = beams_of([3, 12, 12], [3, 3, 12])
    assert place_to_return(one_short, step_of(12, 12), opera, Counter()) is None
    early = beams_of([9, 9], [9, 9])
    assert place_to_return(early, step_of(9, 9), opera, Counter()) is None
    # A token is chosen anew as often as there are candidates, then the one before it, once.
    assert place_to_return(long, step_of(12, 12), opera, Counter({13: 1})) == 13
    assert place_to_return(long, step_of(12, 12), opera, Counter({13: 2})) == 12
    assert place_to_return(long, step_of(12, 12), opera, Counter({13: 2, 12: 1})) is None


def scripted(opera: Opera) -> tuple[tuple[int, ...], list[list[list[int]]]]:
    """Search a script in which every token from the 12th on looks at the 11th alone."""
    returned: list[list[list[int]]] = []
    logits_V = torch.arange(6.0)

    def feed(
        state: list[tuple[int, ...]], rows_R: Tensor, ids_R: Tensor
    ) -> tuple[list[tuple[int, ...]], Tensor, Tensor]:
        written = [(*state[r], i) for r, i in zip(rows_R.tolist(), ids_R.tolist(), strict=True)]
        row_X = torch.zeros(1 + len(written[0]))
        row_X[min(len(written[0]), 11)] = 1.0  # column 0 is the prompt
        return written, logits_V.expand(len(written), -1), row_X.expand(len(written), -1)

    def again(ids_BT: Tensor) -> tuple[list[tuple[int, ...]], Tensor]:
        returned.append(ids_BT.tolist())
        return [tuple(row) for row in ids_BT.tolist()], logits_V.expand(len(ids_BT), -1)

    start = ([()], logits_V[None])
    options = {"eos_ids": (0,), "max_new_tokens": 16}
    _, ids = search(opera, start, feed, again, torch.zeros(1), **options)
    return ids, returned


def test_going_back_bars_what_was_taken_and_ends() -> None:
    opera = Opera(beams=2, candidates=3, threshold=2)
    usual, never = scripted(replace(opera, threshold=99))
    assert never == []
    ids, returned = scripted(opera)
    # Twice: a third time nothing would be left to choose.
    assert [len(rows[0]) for rows in returned] == [11, 11]
    assert returned[0] == returned[1]
    assert [*ids[:11]] in returned[0]
    # Of three candidates of two beams, four were taken before: the most probable among them.
    assert ids[11] < usual[11] == 5
    assert len(ids) == len(usual) == 16


def test_a_place_that_is_leant_on_is_punished_once_the_answer_is_long() -> None:
    opera = Opera(beams=2, candidates=2, threshold=99)
    seen: list[Tensor] = []

    def feed(state: int, rows_R: Tensor, ids_R: Tensor) -> tuple[int, Tensor, Tensor]:
        row_RX = torch.zeros(len(ids_R), 2 + state)
        row_RX[:, 1] = 0.5 * (ids_R == 5)  # token 5 alone leans on the answer's first token
        row_RX[:, -1] = 1e-3
        seen.append(ids_R)
        return state + 1, torch.arange(6.0).expand(len(ids_R), -1), row_RX

    def again(ids_BT: Tensor) -> tuple[int, Tensor]:
        raise AssertionError("went back")

    start = (0, torch.arange(6.0)[None])
    options = {"eos_ids": (0,), "max_new_tokens": 14}
    _, ids = search(opera, start, feed, again, torch.zeros(1), **options)
    # While it is short token 5 is the more probable; 25^10·1e-7 is a penalty of millions.
    assert ids[:10] == (5,) * 10
    assert ids[10] == 4


@pytest.mark.parametrize(
    ("opera", "says"),
    [
        (Opera(beams=1), "at least 2 beams"),
        (Opera(candidates=0), "1 candidate"),
        (Opera(weight=math.nan), "weight nan"),
        (Opera(weight=-1.0), "zero or more"),
        (Opera(scale=0.0), "above zero"),
    ],
)
def test_what_is_not_allowed_is_refused(
    tiny_llava: Backbone, features: Tensor, opera: Opera, says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        answer_beams(tiny_llava, branches_of(tiny_llava, features), opera)
