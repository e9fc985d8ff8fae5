"""What a transform does to a logit, and on which rows and columns."""

from __future__ import annotations

import math

import pytest
import torch

from mrrag.errors import SettingsError
from mrrag.forms import FORMS
from mrrag.model.prompt import Prompt
from mrrag.model.steering import (
    ROWS,
    TRANSFORMS,
    Transform,
    align,
    balanced,
    below_mean,
    block,
    ifa,
    make_edit,
    question_rows,
    report_keys,
)
from mrrag.types import Span

# other, image ×2, report 1 ×2, other, report 2 ×1, question ×2, cue ×1
SPANS = (
    Span("other", 0, 1),
    Span("image", 1, 3),
    Span("report 1", 3, 5),
    Span("other", 5, 6),
    Span("report 2", 6, 7),
    Span("question", 7, 9),
    Span("cue", 9, 10),
)
PROMPT = Prompt(ids=tuple(range(10)), spans=SPANS, suffix_start=7)
PLAIN = Prompt(
    ids=tuple(range(4)),
    spans=(Span("other", 0, 1), Span("question", 1, 3), Span("cue", 3, 4)),
    suffix_start=1,
)


def test_ifa_is_the_equation_of_the_paper() -> None:
    logits = torch.tensor([2.0, -2.0, 0.0, -3.0])
    lam = torch.tensor([0.5, 0.5, 1.0, 1.0])
    assert ifa(logits, lam, lam > 0).tolist() == [3.0, -1.0, 0.0, 0.0]


def test_ifa_never_lowers_a_logit() -> None:
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0)) * 10
    for lam in (0.0, 0.3, 1.0, 4.0):
        assert (ifa(logits, torch.tensor(lam), torch.tensor(True)) >= logits).all()


def test_block_removes_exactly_the_chosen_keys() -> None:
    logits = torch.tensor([1.0, -1.0, 2.0])
    lam = torch.tensor([0.0, 1.0, 0.5])
    assert block(logits, lam, lam > 0).tolist() == [1.0, -math.inf, -math.inf]


def test_balanced_is_a_prior_over_the_reports_and_moves_nothing_else() -> None:
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)) * 4
    report_1, report_2, report_3 = slice(1, 3), slice(3, 6), slice(6, 7)
    lam = torch.zeros(8)
    lam[report_1], lam[report_2] = 2.0, 0.5  # the third, the least relevant, has λ = 0
    reports = torch.zeros(8, dtype=torch.bool)
    reports[1:7] = True
    before, after = logits.softmax(-1), balanced(logits, lam, reports).softmax(-1)
    # What is read from reports together, and from all else, is as it was.
    torch.testing.assert_close(after[:, ~reports], before[:, ~reports])
    # Within a report its words share as they did.
    for report in (report_1, report_2, report_3):
        share = [w[:, report] / w[:, report].sum(-1, keepdim=True) for w in (before, after)]
        torch.testing.assert_close(share[1], share[0])
    # Between reports attention is multiplied by e to the λ, up to one factor a row.
    odds = [w[:, report_1].sum(-1) / w[:, report_3].sum(-1) for w in (before, after)]
    torch.testing.assert_close(odds[1], odds[0] * math.exp(2.0))
    odds = [w[:, report_1].sum(-1) / w[:, report_2].sum(-1) for w in (before, after)]
    torch.testing.assert_close(odds[1], odds[0] * math.exp(1.5))


def test_balanced_changes_nothing_where_all_reports_are_alike() -> None:
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    reports = torch.tensor([False, True, True, True, False, False])
    torch.testing.assert_close(balanced(logits, reports * 1.5, reports), logits)


def test_every_form_has_a_transform() -> None:
    assert [*TRANSFORMS] == [*FORMS]


@pytest.mark.parametrize("transform", [block, *TRANSFORMS.values()])
def test_every_transform_is_the_identity_at_zero(transform: Transform) -> None:
    logits = torch.tensor([1.5, -2.5, 0.0, -1e30])
    reports = torch.tensor([True, False, True, True])
    assert torch.equal(transform(logits, torch.zeros(4), reports), logits)


def test_question_rows_are_the_chosen_spans() -> None:
    assert question_rows(PROMPT, "question").nonzero().flatten().tolist() == [7, 8]
    assert question_rows(PROMPT, "question+cue").nonzero().flatten().tolist() == [7, 8, 9]
    with pytest.raises(SettingsError, match="'question' or 'question\\+cue'"):
        question_rows(PROMPT, "answer")


def test_amounts_land_on_the_report_tokens_only() -> None:
    assert report_keys(PROMPT, (0.25, 1.0)).tolist() == [0, 0, 0, 0.25, 0.25, 0, 1, 0, 0, 0]
    assert not report_keys(PROMPT, ()).any()
    with pytest.raises(ValueError, match="3 amounts for 2 reports"):
        report_keys(PROMPT, (0.0, 0.5, 1.0))


def test_aligning_follows_the_tokens_through_the_padding() -> None:
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 1, 0]], dtype=torch.bool)
    aligned = align([torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6, 7])], mask)
    assert aligned.tolist() == [[0, 1, 0, 2, 3], [4, 5, 6, 7, 0]]


@pytest.mark.parametrize("rows", ROWS)
def test_lambda_is_on_question_rows_and_report_columns_only(rows: str) -> None:
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, :2] = False
    mask[1, :8] = False
    question = align([question_rows(p, rows) for p in (PROMPT, PLAIN)], mask)[:, -3:]
    edit = make_edit(ifa, (PROMPT, PLAIN), ((0.5, 1.0), ()), question, mask, (1,))
    assert edit is not None
    expected = torch.zeros(2, 1, 3, 12)
    for row in range(3 if rows == "question+cue" else 2):
        expected[0, 0, row, 2 + 3 : 2 + 5] = 0.5
        expected[0, 0, row, 2 + 6] = 1.0
    assert torch.equal(edit.lam_BQX, expected)
    assert torch.equal(edit.region_BQX, expected > 0)


def test_nothing_to_do_is_no_edit() -> None:
    mask = torch.ones(1, 10, dtype=torch.bool)
    question = question_rows(PROMPT, "question")[None, -3:]
    assert make_edit(ifa, (PROMPT,), ((0.0, 0.0),), question, mask, (0,)) is None
    assert make_edit(ifa, (PROMPT,), ((),), question, mask, (0,)) is None
    assert make_edit(ifa, (PROMPT,), ((0.0, 1.0),), question, mask, ()) is None
    assert make_edit(ifa, (PROMPT,), ((0.0, 1.0),), question, mask, (0,)) is not None


@pytest.mark.parametrize("amount", [-0.5, math.nan, math.inf])
def test_an_amount_outside_what_is_allowed_is_refused(amount: float) -> None:
    mask = torch.ones(1, 10, dtype=torch.bool)
    question = question_rows(PROMPT, "question")[None, -3:]
    with pytest.raises(SettingsError, match="strength"):
        make_edit(ifa, (PROMPT,), ((0.0, amount),), question, mask, (0,))


def test_the_hard_mask_takes_the_reports_below_the_mean() -> None:
    assert below_mean((0.9, 0.5, 0.4, 0.1)) == (3, 4)
    assert below_mean((0.3, 0.3)) == ()
    assert below_mean(()) == ()
