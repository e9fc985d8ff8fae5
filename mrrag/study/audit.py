"""How good a knowledge base is, measured without a language model.

Each query study is laid beside what is retrieved for it: do these studies have the findings
that the query has? A finding's question is the neutral "Is there a …?", since questions that
were written from a report give away what it says.

Shape suffixes: as in :mod:`mrrag.study.agreement`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mrrag.data.findings import FINDINGS
from mrrag.data.records import Record
from mrrag.errors import SettingsError
from mrrag.learnt import per_spread
from mrrag.retrieval.encoders import Encoder
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.retrieval.votes import BaseRates
from mrrag.study.agreement import (
    NEAR,
    Agreement,
    agreement,
    by_finding,
    compare,
    nearest,
    resamples,
    summary,
)
from mrrag.study.labels import Labels, labels_of_problems, labels_of_reports, neutral_question
from mrrag.study.similarities import Queries, Similarities, similarities
from mrrag.types import FloatArray, Weights

__all__ = ["Compared", "asked_of", "audit", "choose_weights", "compared", "facts_of", "sample_of"]

FORMAT = 1
MAX_DOCUMENTS = 20_000  # a larger base is sampled; five matrices of 500 queries take 200 MB
QUERIES = 500
FEWEST = 8  # queries with a finding, and without it, for figures about it
RESAMPLES = 2000
STEPS = 5  # parts that the weights are shared out in, when they are chosen

# Shares of α, β and γ on standardised terms, for the similarities alone and in pairs.
SHARES = {
    "alpha": Weights(1, 0, 0),
    "beta": Weights(0, 1, 0),
    "gamma": Weights(0, 0, 1),
    "alpha_beta": Weights(0.5, 0.5, 0),
    "alpha_gamma": Weights(0.5, 0, 0.5),
    "beta_gamma": Weights(0, 0.5, 0.5),
}

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Compared:
    """Queries, documents and their labels, with every similarity between them.

    Attributes
    ----------
    asked_F : int64 [F]
        The labels with enough queries that have them, and that lack them.
    patient_Q : int64 [Q]
        A number for each patient.
    k : int
        Documents retrieved for a query.
    """

    queries: Queries
    labels: Labels
    asked_F: Int64Array
    patient_Q: Int64Array
    similar: Similarities
    k: int

    @property
    def asked(self) -> tuple[str, ...]:
        """The names of the findings that are asked about."""
        return tuple(self.labels.names[f] for f in self.asked_F)


def sample_of(knowledge_base: KnowledgeBase, seed: int = 0) -> Int64Array:
    """Return the numbers of the documents that are compared: all, or a sample of many."""
    drawn = np.random.default_rng(seed).permutation(len(knowledge_base))[:MAX_DOCUMENTS]
    numbers_N: Int64Array = np.sort(drawn)
    return numbers_N


def compared(
    knowledge_base: KnowledgeBase,
    encoder: Encoder,
    numbers_N: Int64Array,
    queries: Queries,
    *,
    records: Sequence[Record] = (),
    k: int = 8,
    seed: int = 0,
) -> Compared:
    """Label queries and documents, and score every pair.

    Parameters
    ----------
    numbers_N
        From :func:`sample_of`.
    records
        Of a data set whose own labels are used, where it labels every query and document;
        else the finding rules label the reports.

    Raises
    ------
    SettingsError
        Where k documents cannot be retrieved for every query, or no finding is had, and
        lacked, by enough queries.
    """
    documents = [knowledge_base.document(int(i)) for i in numbers_N]
    labels = labels_of_problems(
        [d.id for d in queries.documents], [d.id for d in documents], records
    ) or labels_of_reports([d.report for d in queries.documents], [d.report for d in documents])
    asked_F = asked_of(labels)
    if not len(asked_F):
        raise SettingsError(
            f"No finding is had by at least {FEWEST} of the {len(queries.documents)} query "
            f"studies and lacked by {FEWEST}, so nothing can be measured. Audit a larger knowledge "
            "base, or name more studies with --data and --split."
        )
    questions = [neutral_question(labels.names[f]) for f in asked_F]
    similar = similarities(knowledge_base, numbers_N, queries, questions, encoder, seed=seed)
    left = int(np.isfinite(similar.alpha_QN).sum(axis=1).min())
    if not NEAR <= k <= left:
        raise SettingsError(
            f"K is {k}. It must be from {NEAR} to {left}, the number of documents that are left "
            "for every query when its own patient's are left out."
        )
    _, patient_Q = np.unique([d.patient for d in queries.documents], return_inverse=True)
    return Compared(queries, labels, asked_F, patient_Q, similar, k)


def asked_of(labels: Labels) -> Int64Array:
    """Return the labels that enough queries have and lack, but none that equals one before it.

    Where every fracture is of a rib, "fracture" and "rib fracture" would count twice.
    """
    with_L = labels.has_QL.sum(axis=0)
    enough_L = np.minimum(with_L, len(labels.has_QL) - with_L) >= FEWEST
    all_XL = np.concatenate([labels.has_QL, labels.holds_NL])
    _, first = np.unique(all_XL, axis=1, return_index=True)
    asked_F: Int64Array = np.sort(first[enough_L[first]])
    return asked_F


def audit(case: Compared, weights: Weights, *, seed: int = 0) -> dict[str, Any]:
    """Measure every similarity and MCR on the same queries and resamples.

    Pairs count half and half, on terms divided by their spread; MCR has the weights given.

    Returns
    -------
    dict
        Ready for JSON. ``systems`` has each figure's mean over the findings with its interval,
        ``differences`` each system's AUROC minus that of α alone, ``beyond_pixels`` minus that
        of plain pixels, and ``by_finding`` every figure of every finding.
    """
    count_BQ = resamples(case.patient_Q, RESAMPLES, seed)
    measured = _measure(case, weights, count_BQ)
    means = {name: figures.means() for name, figures in measured.items()}
    auroc = {name: figures["auroc"] for name, figures in means.items()}
    return {
        "compared_documents": len(case.similar.report_N),
        "queries": len(case.queries.documents),
        "patients": int(case.patient_Q.max()) + 1,
        "labels": case.labels.origin,
        "k": case.k,
        "weights": asdict(weights),
        "spread": asdict(case.similar.spread()),
        "findings": [
            {
                "name": case.labels.names[f],
                "queries": int(case.labels.has_QL[:, f].sum()),
                "documents": int(case.labels.holds_NL[:, f].sum()),
            }
            for f in case.asked_F
        ],
        "systems": {
            name: {figure: summary(value_B) for figure, value_B in figures.items()}
            for name, figures in means.items()
        },
        "differences": {
            name: compare(auroc[name], auroc["alpha"]) for name in auroc if name != "alpha"
        },
        "beyond_pixels": {
            name: compare(auroc[name], auroc["pixels"]) for name in ("alpha", "beta", "mcr")
        },
        "by_finding": {name: by_finding(each, case.asked) for name, each in measured.items()},
    }


def facts_of(knowledge_base: KnowledgeBase) -> dict[str, Any]:
    """Return what an audit keeps of its knowledge base: which it is, and its base rates.

    ``base_rates`` are the shares of reports that affirm each finding by the finding rules.
    """
    return {
        "format": FORMAT,
        "fingerprint": knowledge_base.fingerprint,
        "documents": len(knowledge_base),
        "base_rates": BaseRates(knowledge_base).of(FINDINGS),
    }


def _measure(case: Compared, weights: Weights, count_BQ: FloatArray) -> dict[str, Agreement]:
    """Return the figures of every system, in the order in which they are shown."""
    similar, spread = case.similar, case.similar.spread()
    scored = {
        "random": (similar.random_QN,),
        "pixels": (similar.pixels_QN,),
        **{name: similar.fused(per_spread(shares, spread)) for name, shares in SHARES.items()},
        "mcr": similar.fused(weights),
        "own_report": (similar.own_report_QN,),
    }
    return {name: _figures(case, scores, count_BQ) for name, scores in scored.items()}


def _figures(case: Compared, scores: Sequence[FloatArray], count_BQ: FloatArray) -> Agreement:
    found = [nearest(score_QN, case.similar.report_N, case.k) for score_QN in scores]
    chosen = found[0] if len(found) == 1 else np.stack(found)
    has_QL, holds_NL = case.labels.has_QL, case.labels.holds_NL
    return agreement(chosen, has_QL, holds_NL, case.asked_F, count_BQ)


def choose_weights(case: Compared, weights: Weights, *, seed: int = 0) -> dict[str, Any]:
    """Choose α, β, γ by AUROC on one half of the patients, and compare on the other half.

    Parameters
    ----------
    weights
        Those in use, which the chosen ones must beat.

    Returns
    -------
    dict
        ``weights``, ``shares`` of the standardised terms, ``chosen_auroc`` and ``in_use_auroc``
        on the other half, their ``difference``, and whether it is ``better``: the interval
        lies above zero. ``studies`` are those that were chosen on.

    Raises
    ------
    SettingsError
        Where there are fewer than four patients.
    """
    patients = int(case.patient_Q.max()) + 1
    if patients < 4:
        raise SettingsError(
            f"Weights are chosen on half of the patients, and there are {patients}."
        )
    order = np.random.default_rng(seed).permutation(patients)
    first_Q = np.isin(case.patient_Q, order[: patients // 2])
    spread = case.similar.spread()
    half = _half(case, first_Q)
    one_BQ = np.ones((1, int(first_Q.sum())), np.float32)
    trials = {
        shares: _auroc(half, per_spread(shares, spread), one_BQ)[0] for shares in _grid(STEPS)
    }
    shares = max(trials, key=lambda each: float(np.nan_to_num(trials[each])))
    chosen = per_spread(shares, spread)
    other = _half(case, ~first_Q)
    count_BQ = resamples(other.patient_Q, RESAMPLES, seed)
    chosen_B, in_use_B = (_auroc(other, each, count_BQ) for each in (chosen, weights))
    difference: Mapping[str, Any] = compare(chosen_B, in_use_B)
    return {
        "weights": asdict(chosen),
        "shares": asdict(shares),
        "in_use": asdict(weights),
        "chosen_auroc": summary(chosen_B),
        "in_use_auroc": summary(in_use_B),
        "difference": difference,
        "better": difference["interval"][0] > 0,
        "queries": [int(first_Q.sum()), int((~first_Q).sum())],
        "studies": [d.study for d, at in zip(case.queries.documents, first_Q, strict=True) if at],
    }


def _half(case: Compared, chosen_Q: npt.NDArray[np.bool_]) -> Compared:
    documents = tuple(d for d, at in zip(case.queries.documents, chosen_Q, strict=True) if at)
    queries = Queries(documents, case.queries.v_QD[chosen_Q], case.queries.small_QP[chosen_Q])
    labels = Labels(
        case.labels.names, case.labels.has_QL[chosen_Q], case.labels.holds_NL, case.labels.origin
    )
    _, patient_Q = np.unique(case.patient_Q[chosen_Q], return_inverse=True)
    return Compared(
        queries, labels, case.asked_F, patient_Q, case.similar.of_queries(chosen_Q), case.k
    )


def _auroc(case: Compared, weights: Weights, count_BQ: FloatArray) -> npt.NDArray[np.float64]:
    return _figures(case, case.similar.fused(weights), count_BQ).means()["auroc"]


def _grid(steps: int) -> tuple[Weights, ...]:
    """Return all shares of three parts that are multiples of 1 / steps, with a sum of 1."""
    return tuple(
        Weights(a / steps, b / steps, (steps - a - b) / steps)
        for a in range(steps + 1)
        for b in range(steps + 1 - a)
    )
