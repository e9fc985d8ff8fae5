"""Figures checked against scikit-learn's, SciPy's and statsmodels' own."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
)
from sklearn.metrics import log_loss as reference_log_loss
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from mrrag.data.yes_no import UNPARSED, parse_yes_no
from mrrag.study.metrics import bootstrap, brier, holm, log_loss, mcnemar, paired_gain, scores


def answers(seed: int, n: int = 500, right: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 2, n).astype(np.int8)
    said = np.where(rng.random(n) < right, gold, 1 - gold).astype(np.int8)
    return gold, said


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_those_of_scikit_learn(seed: int) -> None:
    gold, said = answers(seed)
    ours = scores(gold, said)
    assert ours.accuracy == pytest.approx(accuracy_score(gold, said))
    assert ours.balanced_accuracy == pytest.approx(balanced_accuracy_score(gold, said))
    assert ours.macro_f1 == pytest.approx(f1_score(gold, said, average="macro"))
    assert ours.macro_precision == pytest.approx(precision_score(gold, said, average="macro"))
    assert ours.macro_recall == pytest.approx(recall_score(gold, said, average="macro"))
    assert ours.positive_f1 == pytest.approx(f1_score(gold, said))
    assert ours.positive_precision == pytest.approx(precision_score(gold, said))
    assert ours.positive_recall == pytest.approx(recall_score(gold, said))


def test_an_unparsed_answer_is_wrong_and_counted() -> None:
    gold = np.array([1, 0, 1], dtype=np.int8)
    said = np.array([1, UNPARSED, UNPARSED], dtype=np.int8)
    assert scores(gold, said).accuracy == pytest.approx(1 / 3)
    assert scores(gold, said).unparsed == 2


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_equals_that_of_statsmodels(seed: int) -> None:
    gold, first = answers(seed)
    _, second = answers(seed, right=0.8)
    second = np.where(np.random.default_rng(seed + 9).random(len(gold)) < 0.5, first, second)
    b, c, p = mcnemar(gold, first, second)
    table = [[0, b], [c, 0]]
    assert p == pytest.approx(reference_mcnemar(table, exact=True).pvalue)


def test_mcnemar_of_equal_answers_is_one() -> None:
    gold, said = answers(0)
    assert mcnemar(gold, said, said) == (0, 0, 1.0)


def test_the_bootstrap_interval_agrees_with_the_normal_one_where_questions_are_independent() -> (
    None
):
    gold, said = answers(3, n=2000)
    (low, high), _ = bootstrap(gold, said, np.arange(2000), resamples=600)
    p = float(np.mean(gold == said))
    half = 1.96 * np.sqrt(p * (1 - p) / 2000)
    assert low == pytest.approx(p - half, abs=0.005)
    assert high == pytest.approx(p + half, abs=0.005)


def test_the_bootstrap_interval_agrees_with_that_of_scipy() -> None:
    gold, said = answers(4, n=400)
    accuracy, f1 = bootstrap(gold, said, np.arange(400), resamples=5000)

    def macro(gold: np.ndarray, said: np.ndarray) -> float:
        hit = [np.sum((gold == v) & (said == v)) for v in (0, 1)]
        size = [np.sum(gold == v) + np.sum(said == v) for v in (0, 1)]
        return hit[0] / size[0] + hit[1] / size[1]

    assert macro(gold, said) == pytest.approx(f1_score(gold, said, average="macro"))
    for ours, figure in ((accuracy, lambda g, s: np.mean(g == s)), (f1, macro)):
        reference = scipy.stats.bootstrap(
            (gold, said),
            figure,
            paired=True,
            vectorized=False,
            n_resamples=5000,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert ours == pytest.approx((reference.low, reference.high), abs=0.006)


def test_patients_with_several_questions_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    gold = np.zeros(1200, dtype=np.int8)
    said = np.repeat(rng.random(200) < 0.3, 6).astype(np.int8)  # a patient is all right or wrong
    alone, _ = bootstrap(gold, said, np.arange(1200), resamples=300)
    together, _ = bootstrap(gold, said, np.repeat(np.arange(200), 6), resamples=300)
    assert together[1] - together[0] > 1.8 * (alone[1] - alone[0])


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("Yes, small left pleural effusion.", 1, 1),
        ("  no.", 0, 0),
        ("- No", 0, 0),
        ("YES", 1, 1),
        ("Nothing is seen.", UNPARSED, UNPARSED),
        ("There is none, so no.", UNPARSED, 0),
        ("It may be yes or no.", UNPARSED, UNPARSED),
        ("", UNPARSED, UNPARSED),
    ],
)
def test_yes_and_no_are_parsed_as_documented(text: str, strict: int, lenient: int) -> None:
    assert parse_yes_no(text) == strict
    assert parse_yes_no(text, lenient=True) == lenient


def test_a_paired_gain_is_settled_by_many_patients_and_not_by_many_questions_of_one() -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(0, 2, 400)
    after = np.where(rng.random(400) < 0.2, 1, before)
    mean, low, high = paired_gain(before, after, np.arange(400))
    assert mean == pytest.approx((after - before).mean())
    assert 0 < low < mean < high
    assert paired_gain(before, before, np.arange(400)) == (0.0, 0.0, 0.0)
    # The same gain, all of it from one patient of twenty.
    groups = np.repeat(np.arange(20), 20)
    one = np.where(groups == 0, 1, before)
    _, low, _ = paired_gain(before, one, groups)
    assert low == 0


def test_holm_s_correction_is_statsmodels() -> None:
    p = [0.01, 0.04, 0.03, 0.005, 0.9, 0.04]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert holm([]) == []


def test_log_loss_and_brier_are_scikit_learn_s() -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 2, 200).astype(np.int8)
    p_yes = rng.uniform(0.01, 0.99, 200)
    assert log_loss(gold, p_yes) == pytest.approx(reference_log_loss(gold, p_yes))
    assert brier(gold, p_yes) == pytest.approx(brier_score_loss(gold, p_yes))
    assert np.isfinite(log_loss(gold, 1.0 - gold))
