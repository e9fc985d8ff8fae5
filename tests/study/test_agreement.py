"""Agreement on findings: what is retrieved, the figures, and their resamples."""

import numpy as np
import pytest

from mrrag.study.agreement import agreement, compare, nearest, resamples


def test_a_report_is_retrieved_once_and_a_barred_document_never() -> None:
    score_QN = np.array([[9, 8, 7, 6, 5, 4], [1, 2, 3, 4, 5, -np.inf]], np.float32)
    report_N = np.array([0, 0, 1, 1, 2, 3])
    assert nearest(score_QN, report_N, 3).tolist() == [[0, 2, 4], [4, 3, 1]]
    # With too few other reports a report comes again, rather than a barred document.
    assert nearest(score_QN, report_N, 5)[1].tolist() == [4, 3, 1, 2, 0]


def plain_auroc(votes: np.ndarray, has: np.ndarray) -> float:
    """The probability that a positive has more votes than a negative, ties counting half."""
    pairs = [(p > n) + (p == n) / 2 for p in votes[has].tolist() for n in votes[~has].tolist()]
    return float(np.mean(pairs))


def test_every_figure_of_a_resample_is_that_of_the_queries_it_draws() -> None:
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 30, (20, 8))
    has_QL, holds_NL = rng.random((20, 3)) < 0.4, rng.random((30, 3)) < 0.3
    patient_Q = np.arange(20) // 2
    count_BQ = resamples(patient_Q, 5)
    assert (count_BQ[:, ::2] == count_BQ[:, 1::2]).all()  # whole patients
    found = agreement(chosen, has_QL, holds_NL, np.array([2]), count_BQ)
    for b, count_Q in enumerate(count_BQ.astype(int)):
        drawn = np.repeat(np.arange(20), count_Q)
        has, holds = has_QL[drawn, 2], holds_NL[chosen[drawn], 2]
        assert found.auroc_BF[b, 0] == pytest.approx(plain_auroc(holds.sum(1), has))
        with_it, without = holds[has][:, :5].mean(), (~holds[~has])[:, :5].mean()
        assert found.balanced_BF[b, 0] == pytest.approx((with_it + without) / 2)
        assert found.first_BF[b, 0] == pytest.approx(holds[has][:, 0].mean())
        assert found.near_BF[b, 0] == pytest.approx(with_it)
        near_QKL = holds_NL[chosen[drawn, :5]]
        both, either = near_QKL & has_QL[drawn, None], near_QKL | has_QL[drawn, None]
        overlap = np.where(either.any(2), both.sum(2) / np.maximum(either.sum(2), 1), 1.0)
        assert found.jaccard_B[b] == pytest.approx(overlap.mean())


def test_the_same_reports_for_everybody_are_at_chance_however_precise() -> None:
    has_QL = (np.arange(40) % 4 == 0)[:, None]
    holds_NL = np.array([[True]] * 8 + [[False]] * 8)
    same = np.tile(np.arange(8), (1, 40, 1))  # of one question
    found = agreement(same, has_QL, holds_NL, np.array([0]), resamples(np.arange(40), 20))
    assert found.near_BF[0, 0] == 1.0
    assert found.auroc_BF[0, 0] == found.balanced_BF[0, 0] == 0.5


def test_a_difference_has_the_p_value_of_its_own_resamples() -> None:
    rng = np.random.default_rng(1)
    first_B, noise_B = rng.normal(0.7, 0.02, 1000), rng.normal(0, 0.02, 1000)
    clear = compare(first_B, first_B - 0.1 + noise_B)
    assert clear["interval"][0] > 0
    assert clear["p"] < 0.01
    assert compare(first_B, first_B)["p"] == 1.0
    assert compare(first_B, first_B + noise_B)["p"] > 0.5
