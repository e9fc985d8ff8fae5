"""The adapter finds the weights that tell positives from negatives."""

import numpy as np
import pytest

from mrrag.training.adapter import (
    Candidates,
    TrainingSet,
    build_training_set,
    info_nce,
    minimise,
    train_adapter,
    uncertainty,
)


def made(seed: int, truth: tuple[float, float, float], questions: int = 300) -> TrainingSet:
    """Candidates ranked by the score of the weights ``truth``, with noise."""
    rng = np.random.default_rng(seed)
    cosines = rng.normal(0, 0.3, (questions, 13, 3))
    score = cosines @ np.array(truth) + rng.gumbel(0, 0.1, (questions, 13))
    order = np.argsort(-score, axis=1)
    ranked = np.take_along_axis(cosines, order[:, :, None], axis=1)
    return TrainingSet(ranked[:, 0], ranked[:, 1:])


def test_gradient_and_hessian_are_those_of_the_loss() -> None:
    data = made(0, (0.5, 0.3, 0.2))
    weights = np.array([1.0, 2.0, -0.5])
    _, gradient, hessian = info_nce(data, weights)
    for axis in range(3):
        step = np.zeros(3)
        step[axis] = 1e-5
        (above, slope_above, _), (below, slope_below, _) = (
            info_nce(data, weights + sign * step) for sign in (1, -1)
        )
        assert gradient[axis] == pytest.approx((above - below) / 2e-5, rel=1e-4)
        assert hessian[axis] == pytest.approx((slope_above - slope_below) / 2e-5, rel=1e-4)


def test_at_the_minimum_the_penalised_loss_is_flat() -> None:
    data = made(5, (0.5, 0.3, 0.2))
    weights = minimise(data, ridge=1e-4)
    assert info_nce(data, weights)[1] == pytest.approx(-1e-4 * weights, abs=1e-9)


def test_the_ratios_that_made_the_data_are_found_again() -> None:
    found = train_adapter(made(1, (0.6, 0.3, 0.1), 800), resamples=10)
    learnt = (found.weights.alpha, found.weights.beta, found.weights.gamma)
    assert learnt == pytest.approx((0.6, 0.3, 0.1), abs=0.05)
    assert sum(map(abs, learnt)) == pytest.approx(1.0)
    for (low, high), truth in zip(found.intervals, (0.6, 0.3, 0.1), strict=True):
        assert low - 0.03 < truth < high + 0.03


def test_a_similarity_that_says_nothing_gets_no_weight() -> None:
    found = train_adapter(made(2, (0.5, 0.5, 0.0), 800), resamples=2)
    assert abs(found.weights.gamma) < 0.05


def test_more_negatives_give_the_question_more_weight() -> None:
    # Of 24 candidates one helps and four mislead: these five name the finding asked about.
    rng = np.random.default_rng(5)
    cosines_QN3 = rng.normal(0, 0.1, (200, 24, 3))
    cosines_QN3[:, 0, :2] += 0.1
    cosines_QN3[:, :5, 2] += 0.1
    confidence_QN = np.tile([0.9, *[0.1] * 4, *[0.5] * 19], (200, 1))
    data = Candidates(cosines_QN3, confidence_QN)
    gammas = [
        train_adapter(build_training_set(data, m), resamples=1).weights.gamma for m in (4, 6, 12)
    ]
    assert abs(gammas[0]) < 0.15
    assert gammas == sorted(gammas)
    assert gammas[-1] > 0.2


def test_few_questions_leave_wide_intervals() -> None:
    few = train_adapter(made(3, (0.5, 0.3, 0.2), 40), resamples=40)
    many = train_adapter(made(3, (0.5, 0.3, 0.2), 1500), resamples=40)
    width = [b - a for a, b in few.intervals]
    assert min(width) > 2 * max(b - a for a, b in many.intervals)


def test_positives_that_always_win_keep_the_norm_bounded() -> None:
    separable = TrainingSet(np.ones((5, 3)), np.zeros((5, 2, 3)))
    weights = minimise(separable)
    assert info_nce(separable, weights)[0] < info_nce(separable, np.ones(3))[0]
    assert np.linalg.norm(weights) < 100


def test_an_undetermined_sign_and_few_questions_are_reported() -> None:
    unsure = uncertainty(train_adapter(made(3, (0.5, 0.5, 0.0), 60), resamples=20))
    assert "over 48 questions" in unsure
    assert "The sign of γ is not determined." in unsure
    assert "Use 200 questions or more" in unsure
    sure = uncertainty(train_adapter(made(4, (0.4, 0.3, 0.3), 800), resamples=20))
    assert "not determined" not in sure
    assert "or more" not in sure
