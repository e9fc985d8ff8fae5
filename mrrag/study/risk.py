"""Settings whose risk of a wrong answer is bounded, with a stated probability.

RULE (Xia et al. 2024) chooses the number of reports so: each candidate is tested against the
hypothesis that its risk is above what is tolerated (Learn then Test, Angelopoulos et al. 2021).
Here a candidate is any setting. The answers must be to questions that were used for nothing
else, one for each patient, since the test takes them as independent.

It knows counts of wrong answers alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mrrag.errors import SettingsError

__all__ = ["Certified", "binomial_p", "certify", "hoeffding_bentkus_p"]


def binomial_p(errors: int, questions: int, risk: float) -> float:
    """Return P(Bin(n, risk) ≤ errors): valid for 0/1 losses, and tighter than RULE's bound.

    Parameters
    ----------
    errors, questions
        Counts, so that no rounding of a rate can add an error.
    risk
        The tolerated share of wrong answers, above 0 and below 1.
    """
    log_risk, log_rest = math.log(risk), math.log1p(-risk)
    terms = (
        math.lgamma(questions + 1)
        - math.lgamma(i + 1)
        - math.lgamma(questions - i + 1)
        + i * log_risk
        + (questions - i) * log_rest
        for i in range(errors + 1)
    )
    return min(1.0, math.fsum(map(math.exp, terms)))


def hoeffding_bentkus_p(errors: int, questions: int, risk: float) -> float:
    """Return RULE's p-value: the smaller of Hoeffding's bound and Bentkus's, e·P(Bin ≤ errors)."""
    rate = min(errors / questions, risk)
    low = rate * math.log(rate / risk) if rate else 0.0
    high = (1 - rate) * math.log((1 - rate) / (1 - risk))
    bentkus = math.e * binomial_p(errors, questions, risk)
    return min(1.0, math.exp(-questions * (low + high)), bentkus)


@dataclass(frozen=True)
class Certified:
    """What the tests found.

    Attributes
    ----------
    p_values : tuple of float
        Of each candidate, in the order given.
    certified : tuple of bool
        Whether its risk is at most the tolerated one. With a probability of at least
        1 − delta, that is true of all that are certified.
    best : int or None
        The certified candidate with the fewest errors, the first of equals; None where none
        is certified, and then nothing is guaranteed.
    """

    p_values: tuple[float, ...]
    certified: tuple[bool, ...]
    best: int | None


def certify(errors: Sequence[int], questions: int, risk: float, delta: float) -> Certified:
    """Test every candidate, with Holm's correction for their number.

    Parameters
    ----------
    errors
        Number of wrong answers of each candidate to the same questions.
    risk, delta
        The tolerated share of wrong answers, and the probability of a wrong guarantee.

    Raises
    ------
    SettingsError
        Where a share is not between 0 and 1, or there is no question or candidate.
    """
    for name, share in (("risk", risk), ("delta", delta)):
        if not 0 < share < 1:  # false for NaN too
            raise SettingsError(
                f"A {name} of {share} was asked for. Give a share above 0, below 1."
            )
    if questions < 1 or not errors:
        raise SettingsError(
            "There is no question or no setting to test. Give at least one of each."
        )
    p_values = [binomial_p(count, questions, risk) for count in errors]
    certified = [False] * len(errors)
    order = sorted(range(len(errors)), key=lambda i: p_values[i])
    for n, i in enumerate(order):
        if p_values[i] > delta / (len(errors) - n):
            break
        certified[i] = True
    best = min(
        (i for i, sure in enumerate(certified) if sure), key=lambda i: errors[i], default=None
    )
    return Certified(tuple(p_values), tuple(certified), best)
