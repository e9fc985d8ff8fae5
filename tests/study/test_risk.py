"""The guarantee holds by its formulas and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from mrrag.errors import SettingsError
from mrrag.study.risk import binomial_p, certify, hoeffding_bentkus_p

# n = 200, tolerated risk 0.2: rate, RULE's p-value, the exact one.
GOLDEN = [
    (0.00, 4.149516e-20, 4.149516e-20),
    (0.05, 3.033966e-09, 1.116134e-09),
    (0.10, 2.879470e-04, 1.059298e-04),
    (0.15, 1.169447e-01, 4.302156e-02),
    (0.19, 9.386590e-01, 4.018775e-01),
    (0.25, 1.0, 9.655032e-01),
]


@pytest.mark.parametrize(("rate", "published", "exact"), GOLDEN)
def test_p_values_are_the_published_ones(rate: float, published: float, exact: float) -> None:
    errors = round(200 * rate)
    assert hoeffding_bentkus_p(errors, 200, 0.2) == pytest.approx(published, rel=1e-6)
    assert binomial_p(errors, 200, 0.2) == pytest.approx(exact, rel=1e-6)
    assert binomial_p(errors, 200, 0.2) == pytest.approx(scipy.stats.binom.cdf(errors, 200, 0.2))


def test_a_wrong_guarantee_is_as_rare_as_asked_for() -> None:
    """Six settings, all of a risk just above the tolerated one, on the same questions."""
    rng, delta, runs = np.random.default_rng(0), 0.1, 2000
    wrong = 0
    for _ in range(runs):
        errors = (rng.random((6, 200)) < 0.201).sum(1).tolist()
        wrong += any(certify(errors, 200, 0.2, delta).certified)
    assert wrong / runs < delta
    assert wrong / runs > delta / 20  # the bound is not idle


def test_the_best_certified_setting_is_chosen_or_none() -> None:
    found = certify([40, 22, 18, 18], 200, 0.15, 0.1)
    assert found.certified == (False, True, True, True) or not found.certified[1]
    assert found.best == 2
    none = certify([40, 38, 36], 200, 0.15, 0.1)
    assert none.certified == (False, False, False)
    assert none.best is None


def test_holm_certifies_all_that_bonferroni_does() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        errors = rng.integers(5, 45, 6).tolist()
        found = certify(errors, 200, 0.15, 0.1)
        bonferroni = [p <= 0.1 / 6 for p in found.p_values]
        assert all(c for c, b in zip(found.certified, bonferroni, strict=True) if b)


@pytest.mark.parametrize(
    ("errors", "questions", "risk", "delta"),
    [([1], 0, 0.1, 0.1), ([], 10, 0.1, 0.1), ([1], 10, 0.0, 0.1), ([1], 10, 0.1, float("nan"))],
)
def test_what_cannot_be_tested_is_refused(
    errors: list[int], questions: int, risk: float, delta: float
) -> None:
    with pytest.raises(SettingsError):
        certify(errors, questions, risk, delta)
