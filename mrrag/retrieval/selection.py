"""Which of the retrieved reports are read: cut-offs on their scores, after retrieval.

A method is a function of the scores, best first, and a threshold; it returns how many of them
are kept. To add one, write such a function and add it to :data:`CUTS`.

It knows scores alone: neither vectors nor what the reports say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import pairwise

from mrrag.errors import SettingsError
from mrrag.retrieval.mcr import gaps, relevance
from mrrag.types import Retrieved, Weights

__all__ = [
    "CUTS",
    "CUT_AT",
    "cut_off",
    "keep_by_count",
    "keep_by_difference",
    "keep_by_gap",
    "keep_by_ratio",
]


def keep_by_gap(scores: Sequence[float], threshold: float) -> int:
    """Cut after the first report whose score falls steeply to the next: MMed-RAG's paper.

    Kept are the reports up to the first i with ln(s_i / s_(i+1)) above the threshold. A score of
    zero or less is infinitely far below a positive one.
    """
    for i, (score, following) in enumerate(pairwise(scores), start=1):
        if score > 0 and (following <= 0 or math.log(score / following) > threshold):
            return i
    return len(scores)


def keep_by_ratio(scores: Sequence[float], threshold: float) -> int:
    """Keep the reports with s_1 / s_j below the threshold: MMed-RAG's published code.

    There a score of zero or less always passes. Here it never does, but for the first report.
    """
    if not scores or scores[0] <= 0:
        return min(1, len(scores))
    return max(1, sum(s > 0 and scores[0] / s < threshold for s in scores))


def keep_by_difference(scores: Sequence[float], threshold: float) -> int:
    """Keep the reports with s_1 − s_j of at most the threshold, in cosine.

    Unlike a ratio it means the same for negative scores. It is not from the paper.
    """
    return sum(scores[0] - s <= threshold for s in scores) if scores else 0


def keep_by_count(scores: Sequence[float], threshold: float) -> int:
    """Keep as many as the threshold says: FactMM-RAG reads one."""
    return min(len(scores), math.floor(threshold))


# How many reports to keep, by name.
CUTS: dict[str, Callable[[Sequence[float], float], int]] = {
    "gap": keep_by_gap,
    "ratio": keep_by_ratio,
    "difference": keep_by_difference,
    "count": keep_by_count,
}
# The threshold of each where none is given: as published where there is one, else from a trial
# on validation questions of the phantom world.
CUT_AT = {"gap": 0.1, "ratio": 1.5, "difference": 0.1, "count": 1.0}


def cut_off(
    retrieved: Sequence[Retrieved],
    weights: Weights,
    cut: str,
    threshold: float | None = None,
    *,
    pinned_ids: Collection[str] = (),
) -> tuple[Retrieved, ...]:
    """Return the retrieved reports that are read, best first; at least one, and pinned ones.

    λ is computed again over those that are kept.

    Parameters
    ----------
    weights
        Those by which they were retrieved. Scores are divided by |α| + |β| + |γ| first, so that
        a threshold does not depend on the scale of the weights.
    cut
        A key of :data:`CUTS`, or empty to keep all.
    threshold
        None for :data:`CUT_AT`.

    Raises
    ------
    SettingsError
        For an unknown cut-off, or a threshold that is negative or no number.
    """
    if not cut:
        return tuple(retrieved)
    if cut not in CUTS:
        raise SettingsError(f"A cut-off {cut!r} was asked for. Choose one of: {', '.join(CUTS)}.")
    at = CUT_AT[cut] if threshold is None else threshold
    if not 0 <= at < math.inf:  # false for NaN too
        raise SettingsError(
            f"A threshold of {at} was asked for; it must be a number of at least 0."
        )
    scale = abs(weights.alpha) + abs(weights.beta) + abs(weights.gamma)
    keep = max(1, CUTS[cut]([r.score / scale for r in retrieved], at))
    kept = [r for r in retrieved if r.rank <= keep or r.document.id in pinned_ids]
    scores = [r.score for r in kept]
    by = zip(relevance(scores), gaps(scores, weights), strict=True)
    return tuple(
        replace(r, rank=rank, relevance=lam, gap=gap)
        for rank, (r, (lam, gap)) in enumerate(zip(kept, by, strict=True), start=1)
    )
