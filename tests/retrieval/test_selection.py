"""Cut-offs keep what their formulas say, and never drop a report above one that stays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mrrag.errors import SettingsError
from mrrag.retrieval.selection import (
    CUTS,
    cut_off,
    keep_by_count,
    keep_by_difference,
    keep_by_gap,
    keep_by_ratio,
)
from mrrag.types import Document, Retrieved, Weights

ONE = Weights(1.0, 0.0, 0.0)


def ranked(*scores: float) -> tuple[Retrieved, ...]:
    return tuple(
        Retrieved(Document(f"d{n}", "", "p", "s"), n, score, (score, 0, 0), (score, 0, 0), 0.5, 0.5)
        for n, score in enumerate(scores, start=1)
    )


def test_cut_offs_keep_what_the_formulas_say() -> None:
    scores = (0.80, 0.78, 0.74, 0.50, 0.46)
    assert keep_by_gap(scores, 0.2) == 3  # ln(.74 / .50) = .39
    assert keep_by_ratio(scores, 1.5) == 3
    assert keep_by_ratio(scores, 1.7) == 4
    assert keep_by_difference(scores, 0.065) == 3
    assert (keep_by_count(scores, 1), keep_by_count(scores, 9)) == (1, 5)


def test_scores_of_zero_or_less_have_no_ratio_and_are_dropped() -> None:
    assert keep_by_ratio((0.30, 0.25, -0.10), 1.5) == 2  # the published code keeps all three
    assert keep_by_gap((0.30, 0.25, -0.10), 5.0) == 2
    assert keep_by_ratio((-0.1, -0.2), 1.5) == 1
    assert keep_by_difference((-0.1, -0.2, -0.5), 0.2) == 2


@pytest.mark.parametrize("cut", CUTS)
def test_what_is_kept_are_the_first_ones_and_further_reports_do_not_drop_them(cut: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        scores = np.sort(rng.uniform(-0.2, 1.0, 8))[::-1].tolist()
        at = float(rng.uniform(0, 2))
        kept = cut_off(ranked(*scores), ONE, cut, at)
        assert [r.document.id for r in kept] == [f"d{n}" for n in range(1, len(kept) + 1)]
        assert 1 <= len(cut_off(ranked(*scores[:5]), ONE, cut, at)) <= len(kept)


def test_relevance_is_over_the_kept_ones_and_weights_scale_nothing() -> None:
    scores = (0.80, 0.78, 0.74, 0.50, 0.46)
    kept = cut_off(ranked(*scores), ONE, "difference", 0.1)
    assert [r.relevance for r in kept] == pytest.approx([1, 2 / 3, 0])
    assert [r.gap for r in kept] == pytest.approx([0.06, 0.04, 0])
    scaled = cut_off(ranked(*(5 * s for s in scores)), Weights(5.0, 0, 0), "difference", 0.1)
    assert [r.document.id for r in scaled] == [r.document.id for r in kept]
    assert [r.gap for r in scaled] == pytest.approx([r.gap for r in kept])
    assert cut_off(ranked(*scores), ONE, "") == ranked(*scores)


def test_a_pinned_report_is_read_whatever_its_score() -> None:
    kept = cut_off(ranked(0.9, 0.8, 0.1), ONE, "gap", 0.5, pinned_ids={"d3"})
    assert [(r.document.id, r.rank) for r in kept] == [("d1", 1), ("d2", 2), ("d3", 3)]


@pytest.mark.parametrize(("cut", "at"), [("steep", 1.0), ("gap", -1.0), ("gap", math.nan)])
def test_what_is_no_cut_off_is_refused(cut: str, at: float) -> None:
    with pytest.raises(SettingsError, match=r"Choose one|at least 0"):
        cut_off(ranked(0.9, 0.8), ONE, cut, at)
