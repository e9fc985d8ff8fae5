"""Scores of yes/no answers, with intervals and tests; plain functions of arrays.

An answer is 1 (yes), 0 (no) or -1 (not parsed), which always counts as wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mrrag.data.yes_no import UNPARSED

Answers = npt.NDArray[np.int8]
SMALLEST_P = 1e-4


@dataclass(frozen=True)
class Scores:
    """Accuracy, precision, recall and F1 on one set of questions.

    ``macro`` scores are the mean of both classes; ``positive`` ones are those of "yes". The
    paper's F1 is taken to be macro, since only that fits its class balance.
    """

    n: int
    accuracy: float
    balanced_accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    positive_precision: float
    positive_recall: float
    positive_f1: float
    unparsed: int


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0


def scores(gold: Answers, predicted: Answers) -> Scores:
    """Score predicted answers against gold ones (1 or 0).

    A class that is never predicted has precision 0, and one that is absent from the gold
    answers recall 0; balanced accuracy averages the classes that are present.
    """
    per_class = []
    for value in (0, 1):
        hit = float(np.sum((gold == value) & (predicted == value)))
        precision = _ratio(hit, float(np.sum(predicted == value)))
        recall = _ratio(hit, float(np.sum(gold == value)))
        per_class.append((precision, recall, _ratio(2 * precision * recall, precision + recall)))
    macro = np.mean(per_class, axis=0)
    present = [per_class[v][1] for v in (0, 1) if np.any(gold == v)]
    return Scores(
        n=len(gold),
        accuracy=float(np.mean(gold == predicted)),
        balanced_accuracy=float(np.mean(present)),
        macro_precision=float(macro[0]),
        macro_recall=float(macro[1]),
        macro_f1=float(macro[2]),
        positive_precision=per_class[1][0],
        positive_recall=per_class[1][1],
        positive_f1=per_class[1][2],
        unparsed=int(np.sum(predicted == UNPARSED)),
    )


def _tallies(gold: Answers, predicted: Answers) -> npt.NDArray[np.float64]:
    """Return the counts that accuracy and macro F1 are made of, [N, 6], one row per question.

    Columns: right; one; hits of no and of yes; gold plus predicted of no and of yes.
    """
    hits = [(gold == value) & (predicted == value) for value in (0, 1)]
    sizes = [(gold == value).astype(float) + (predicted == value) for value in (0, 1)]
    return np.stack([gold == predicted, np.ones(len(gold)), *hits, *sizes], axis=1).astype(
        np.float64
    )


def bootstrap(
    gold: Answers,
    predicted: Answers,
    groups: npt.NDArray[np.int64],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return percentile intervals of accuracy and macro F1, resampling whole patients.

    Parameters
    ----------
    groups : int [N]
        The patient of each question; questions about one patient are not independent.
    level
        Coverage of the intervals.
    """
    rng = np.random.default_rng(seed)
    members, group_N = np.unique(groups, return_inverse=True)
    tallies_G6 = np.zeros((len(members), 6))
    np.add.at(tallies_G6, group_N, _tallies(gold, predicted))
    accuracy, f1 = np.empty(resamples), np.empty(resamples)
    for i in range(resamples):
        chosen = rng.integers(len(members), size=len(members))
        right, n, *rest = np.bincount(chosen, minlength=len(members)) @ tallies_G6
        accuracy[i] = right / n
        f1[i] = sum(_ratio(2 * rest[v], rest[2 + v]) for v in (0, 1)) / 2
    tails = (50 * (1 - level), 100 - 50 * (1 - level))
    low_a, high_a = (float(p) for p in np.percentile(accuracy, tails))
    low_f, high_f = (float(p) for p in np.percentile(f1, tails))
    return (low_a, high_a), (low_f, high_f)


def paired_gain(
    before: npt.NDArray[np.generic],
    after: npt.NDArray[np.generic],
    groups: npt.NDArray[np.generic],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return the mean of ``after − before`` and its 95 % interval, resampling whole patients.

    Parameters
    ----------
    before, after : [N]
        Of each question: 1 or 0 for right or wrong, or a mean of several such.
    groups : [N]
        The patient of each question.
    """
    change_N = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    members, group_N = np.unique(groups, return_inverse=True)
    sums_G = np.bincount(group_N, change_N)
    counts_G = np.bincount(group_N).astype(np.float64)
    rng = np.random.default_rng(seed)
    drawn_RG = rng.integers(len(members), size=(resamples, len(members)))
    means_R = sums_G[drawn_RG].sum(1) / counts_G[drawn_RG].sum(1)
    low, high = (float(p) for p in np.percentile(means_R, (2.5, 97.5)))
    return float(change_N.mean()), low, high


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(order), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def log_loss(gold: Answers, p_yes: npt.NDArray[np.floating[Any]]) -> float:
    """Return the mean negative log-likelihood of the gold answers, in nats.

    Probabilities are kept off 0 and 1 by :data:`SMALLEST_P`, so that no answer counts infinitely.
    """
    p = np.where(gold == 1, p_yes, 1 - p_yes).astype(np.float64)
    return float(-np.log(p.clip(SMALLEST_P, 1 - SMALLEST_P)).mean())


def brier(gold: Answers, p_yes: npt.NDArray[np.floating[Any]]) -> float:
    """Return the mean squared difference of P(yes) from the gold answers, 0 to 1."""
    return float(np.mean((p_yes.astype(np.float64) - gold) ** 2))


def mcnemar(gold: Answers, first: Answers, second: Answers) -> tuple[int, int, float]:
    """Return McNemar's exact test of two methods on the same questions.

    Returns
    -------
    only_first, only_second : int
        Number of questions that only this method answered correctly.
    p : float
        Two-sided exact binomial probability.
    """
    b = int(np.sum((first == gold) & (second != gold)))
    c = int(np.sum((first != gold) & (second == gold)))
    n, k = b + c, min(b, c)
    if n == 0:
        return b, c, 1.0
    # Summed in logarithms: the binomial coefficients of a large n exceed a float.
    terms = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2)
        for i in range(k + 1)
    ]
    return b, c, min(1.0, 2 * math.fsum(math.exp(t) for t in terms))
