"""How well retrieved studies agree with a query on findings: labels → figures with intervals.

Plain arrays in, figures out; it knows no image, no text and no encoder.

Shape suffixes: Q query, N document, F finding asked about, L label, K rank, B resample (the
first is the sample itself).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrrag.types import FloatArray

__all__ = [
    "Agreement",
    "agreement",
    "by_finding",
    "compare",
    "nearest",
    "resamples",
    "summary",
]

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]

NEAR = 5  # ranks of the figures that do not depend on K
MARGIN = 32  # further ranks that are looked at, because a report is retrieved once
TAILS = (2.5, 97.5)  # per cent: the ends of a 95 % interval


def nearest(score_QN: FloatArray, report_N: Int64Array, k: int) -> Int64Array:
    """Return the k documents with the highest scores for each query, best first, int64 [Q, K].

    As in :func:`mrrag.retrieval.mcr.retrieve`, of documents with one report only the best is
    taken, unless there are too few others among the next :data:`MARGIN` and 3 k.

    Parameters
    ----------
    score_QN : float32 [Q, N]
        −inf where a document must not be retrieved; at least k others in each row.
    report_N : int64 [N]
        Equal for documents with equal reports.
    """
    fetch = min(score_QN.shape[1], 4 * k + MARGIN)
    some_QM = np.argpartition(score_QN, -fetch, axis=1)[:, -fetch:]
    score_QM = np.take_along_axis(score_QN, some_QM, axis=1)
    order_QM = np.lexsort((some_QM, -score_QM))
    ranked_QM = np.take_along_axis(some_QM, order_QM, axis=1)
    report_QM = report_N[ranked_QM]
    before_MM = np.tri(fetch, k=-1, dtype=bool)
    again_QM = ((report_QM[:, :, None] == report_QM[:, None, :]) & before_MM).any(axis=2)
    # What must not be retrieved comes after everything else, repeated reports included.
    barred_QM = np.isneginf(np.take_along_axis(score_QM, order_QM, axis=1))
    first_QK = np.argsort(again_QM + 2 * barred_QM, axis=1, kind="stable")[:, :k]
    chosen_QK: Int64Array = np.take_along_axis(ranked_QM, first_QK, axis=1)
    return chosen_QK


def resamples(patient_Q: Int64Array, count: int, seed: int = 0) -> FloatArray:
    """Return how often each query counts in each bootstrap resample, float32 [1 + count, Q].

    Whole patients are drawn, with replacement; the first row is the sample itself, all ones.
    """
    rng = np.random.default_rng(seed)
    members, place_Q = np.unique(patient_Q, return_inverse=True)
    drawn_BP = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=count)
    counts_BQ = np.concatenate([np.ones((1, len(place_Q))), drawn_BP[:, place_Q]])
    return counts_BQ.astype(np.float32)


@dataclass(frozen=True)
class Agreement:
    """The figures of one system, for the sample and every resample; all from 0 to 1.

    A figure that a resample leaves without a value (nobody has the finding) is NaN.

    Attributes
    ----------
    auroc_BF : float64 [B, F]
        Area under the ROC curve of the share of the K retrieved studies that have the finding,
        as a score for whether the query has it; 0.5 is chance, also for a system that
        retrieves the same studies for everybody.
    balanced_BF : float64 [B, F]
        Mean of the share of the five nearest that have the finding, over queries with it, and
        the share that lack it, over queries without; 0.5 is chance.
    first_BF, near_BF : float64 [B, F]
        Share of the nearest, and of the five nearest, that have the finding, over queries with
        it. A system that retrieves the same studies for everybody can be high here.
    jaccard_B : float64 [B]
        Mean overlap |A ∩ B| / |A ∪ B| of the labels of the query and of each of the five
        nearest; 1 where neither has any. Averaged over the findings asked about.
    """

    auroc_BF: Float64Array
    balanced_BF: Float64Array
    first_BF: Float64Array
    near_BF: Float64Array
    jaccard_B: Float64Array

    def means(self) -> dict[str, Float64Array]:
        """Return each figure's mean over the findings, float64 [B], by its name."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a resample without any value
            by_finding = {
                "auroc": np.nanmean(self.auroc_BF, axis=1),
                "balanced_agreement_at_5": np.nanmean(self.balanced_BF, axis=1),
                "precision_at_1": np.nanmean(self.first_BF, axis=1),
                "precision_at_5": np.nanmean(self.near_BF, axis=1),
            }
        return {**by_finding, "jaccard_at_5": self.jaccard_B}


def agreement(
    chosen: Int64Array,
    has_QL: BoolArray,
    holds_NL: BoolArray,
    asked_F: Int64Array,
    count_BQ: FloatArray,
) -> Agreement:
    """Measure how the retrieved studies agree with the queries.

    Parameters
    ----------
    chosen : int64 [Q, K] or [F, Q, K]
        From :func:`nearest`; with the first axis where the question decides, too.
    has_QL, holds_NL : bool [Q, L], [N, L]
        Labels of the queries and of the documents.
    asked_F : int64 [F]
        The labels that are asked about.
    count_BQ : float32 [B, Q]
        From :func:`resamples`.
    """
    alike = chosen.ndim == 2
    of_F = [chosen if alike else chosen[f] for f in range(len(asked_F))]
    rows = [
        _of_finding(holds_NL[of_F[f], label], has_QL[:, label], count_BQ)
        for f, label in enumerate(asked_F)
    ]
    jaccard_Q = np.mean(
        [_jaccard(has_QL, holds_NL[near[:, :NEAR]]) for near in (of_F[:1] if alike else of_F)],
        axis=0,
    )
    auroc, balanced, first, near = (np.stack(column, axis=1) for column in zip(*rows, strict=True))
    return Agreement(auroc, balanced, first, near, _weighted(jaccard_Q, count_BQ))


def _of_finding(
    holds_QK: BoolArray, has_Q: BoolArray, count_BQ: FloatArray
) -> tuple[Float64Array, Float64Array, Float64Array, Float64Array]:
    """Return AUROC, balanced agreement, and precision at 1 and 5, float64 [B] each."""
    near_Q = holds_QK[:, :NEAR].mean(axis=1)
    positive_B = _weighted(near_Q[has_Q], count_BQ[:, has_Q])
    negative_B = _weighted(1.0 - near_Q[~has_Q], count_BQ[:, ~has_Q])
    first_B = _weighted(holds_QK[has_Q, 0].astype(np.float64), count_BQ[:, has_Q])
    balanced_B = (positive_B + negative_B) / 2
    return _auroc(holds_QK.sum(axis=1), has_Q, count_BQ), balanced_B, first_B, positive_B


def _weighted(value_Q: Float64Array, count_BQ: FloatArray) -> Float64Array:
    with np.errstate(invalid="ignore"):
        mean_B: Float64Array = (count_BQ @ value_Q) / count_BQ.sum(axis=1, dtype=np.float64)
    return mean_B


def _auroc(votes_Q: Int64Array, has_Q: BoolArray, count_BQ: FloatArray) -> Float64Array:
    """Return the area under the ROC curve of whole numbers of votes; ties count half.

    As the Mann-Whitney statistic (Hanley and McNeil, Radiology 1982), from the numbers of
    positives and negatives at each number of votes.
    """
    onehot_QV = np.eye(int(votes_Q.max(initial=0)) + 1)[votes_Q]
    positive_BV = count_BQ[:, has_Q] @ onehot_QV[has_Q]
    negative_BV = count_BQ[:, ~has_Q] @ onehot_QV[~has_Q]
    below_BV = np.cumsum(negative_BV, axis=1) - negative_BV / 2
    pairs_B = positive_BV.sum(axis=1) * negative_BV.sum(axis=1)
    with np.errstate(invalid="ignore"):
        area_B: Float64Array = (positive_BV * below_BV).sum(axis=1) / pairs_B
    return area_B


def _jaccard(has_QL: BoolArray, holds_QKL: BoolArray) -> Float64Array:
    both_QK = (has_QL[:, None] & holds_QKL).sum(axis=2)
    either_QK = (has_QL[:, None] | holds_QKL).sum(axis=2)
    overlap_QK = np.where(either_QK == 0, 1.0, both_QK / np.maximum(either_QK, 1))
    mean_Q: Float64Array = overlap_QK.mean(axis=1)
    return mean_Q


def summary(value_B: Float64Array) -> dict[str, object]:
    """Return the value of the sample and its 95 % interval: ``value`` and ``interval``."""
    low, high = np.nanpercentile(value_B[1:], TAILS)
    return {"value": float(value_B[0]), "interval": [float(low), float(high)]}


def compare(first_B: Float64Array, second_B: Float64Array) -> dict[str, object]:
    """Return first − second, with its 95 % interval and p value, from the same resamples.

    p is twice the smaller share of resamples on either side of zero, the observed sample
    counted in (Davison and Hinkley 1997, section 4.2), so never 0.
    """
    difference_B = first_B - second_B
    drawn_B = difference_B[1:][np.isfinite(difference_B[1:])]
    tail = min(int((drawn_B <= 0).sum()), int((drawn_B >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (len(drawn_B) + 1))
    return {**summary(difference_B), "p": p}


def by_finding(figures: Agreement, names: tuple[str, ...]) -> Mapping[str, dict[str, object]]:
    """Return every figure of every finding, with intervals, by the finding's name."""
    columns = {
        "auroc": figures.auroc_BF,
        "balanced_agreement_at_5": figures.balanced_BF,
        "precision_at_1": figures.first_BF,
        "precision_at_5": figures.near_BF,
    }
    return {
        name: {figure: summary(value_BF[:, f]) for figure, value_BF in columns.items()}
        for f, name in enumerate(names)
    }
