"""MCR, Multimodal Collaborative Retrieval: query → ranked, scored documents.

A document d = (image d_i, report d_t) is scored for a query q = (image q_i, question q_t) by

    f(q, d) = α·cos(q_i, d_t) + β·cos(q_i, d_i) + γ·cos(q_t, d_t)

With unit vectors this is one inner product, ⟨[α·v_q + γ·t_q ; β·v_q], [t_d ; v_d]⟩. The
index answers it exactly, and other weights only change the query vector: nothing is encoded
or indexed again.

This module knows vectors and documents; it reads no file.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from mrrag.errors import SettingsError
from mrrag.retrieval.encoders import Encoder
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.types import Query, QueryVectors, Retrieved, Weights

__all__ = [
    "MAX_K",
    "effective_weights",
    "encode_query",
    "fused_query",
    "gaps",
    "relevance",
    "retrieve",
]

MAX_K = 50
MAX_WEIGHT, MIN_WEIGHT = 1e3, 1e-6
# Terms are multiples of 2^-40. With weights of at most 1000, a sum of three then has at
# most 52 bits: it is exact, in any order, and so the terms sum to the score exactly.
_GRID = 2.0**40
# Candidates beyond k, so that the last place is decided by the same sums that are shown.
_MARGIN = 8


# Document number → its cosines and its terms, as α, β, γ.
_Scored = dict[int, tuple[tuple[float, float, float], tuple[float, float, float]]]


def encode_query(query: Query, encoder: Encoder) -> QueryVectors:
    """Encode a query's image and question; a blank question counts as none.

    Raises
    ------
    SettingsError
        Where the query has neither an image nor a question.
    """
    question = query.question.strip()
    if query.image is None and not question:
        raise SettingsError("There is nothing to search for. Give an image, a question or both.")
    return QueryVectors(
        v=None if query.image is None else encoder.images([query.image])[0],
        t=encoder.texts([question])[0] if question else None,
    )


def effective_weights(weights: Weights, vectors: QueryVectors) -> tuple[Weights, tuple[str, ...]]:
    """Return the weights that a query can use, with notes where they differ from those given.

    Without an image there is nothing for α and β to weigh, without a question nothing for γ.
    The others are then scaled up so that |α| + |β| + |γ| stays the same.

    Raises
    ------
    SettingsError
        Where a weight is not a number or too large, or all usable weights are zero.
    """
    given = (weights.alpha, weights.beta, weights.gamma)
    if not all(abs(w) <= MAX_WEIGHT for w in given):  # false for NaN too
        raise SettingsError(
            f"The weights are α = {given[0]}, β = {given[1]}, γ = {given[2]}. Each must be a "
            f"number from {-MAX_WEIGHT:.0f} to {MAX_WEIGHT:.0f}."
        )
    if max(abs(w) for w in given) < MIN_WEIGHT:
        raise SettingsError(
            "α, β and γ are all zero, so no document is better than another. "
            "Give at least one of them another value."
        )
    kept = tuple(
        w if vector is not None else 0.0
        for w, vector in zip(given, (vectors.v, vectors.v, vectors.t), strict=True)
    )
    if kept == given:
        return weights, ()
    absent = " and ".join(
        name
        for name, vector in (("an image", vectors.v), ("a question", vectors.t))
        if vector is None
    )
    if max(abs(w) for w in kept) < MIN_WEIGHT:
        raise SettingsError(
            f"The query comes without {absent}, and the weights that are left are zero. "
            f"Give {absent}, or raise another weight."
        )
    factor = math.fsum(map(abs, given)) / math.fsum(map(abs, kept))
    dropped = " and ".join(
        f"{name} = {w:.3g}" for name, w, left in zip("αβγ", given, kept, strict=True) if w != left
    )
    note = (
        f"The query comes without {absent}: {dropped} took no part in the score, and what "
        f"is left was multiplied by {factor:.3g}."
    )
    return Weights(*(w * factor for w in kept)), (note,)


def fused_query(vectors: QueryVectors, weights: Weights) -> npt.NDArray[np.float64]:
    """Return [α·v_q + γ·t_q ; β·v_q], float64 [2D], to be searched against [t_d ; v_d]."""
    present = vectors.v if vectors.v is not None else vectors.t
    if present is None:
        raise SettingsError("There is nothing to search for. Give an image, a question or both.")
    nothing = np.zeros(present.size)
    v = nothing if vectors.v is None else vectors.v.astype(np.float64)
    t = nothing if vectors.t is None else vectors.t.astype(np.float64)
    return np.concatenate([weights.alpha * v + weights.gamma * t, weights.beta * v])


def relevance(scores: Sequence[float]) -> tuple[float, ...]:
    """Return IFA's λ before its strength: (s − min) / (max − min) over the documents.

    All zero for one score or equal scores: 0/0 has no value, and steering towards all
    documents alike would be no steering.
    """
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return tuple((s - low) / (high - low) if high > low else 0.0 for s in scores)


def gaps(scores: Sequence[float], weights: Weights) -> tuple[float, ...]:
    """Return (s − min) / (|α| + |β| + |γ|), in cosine, whatever the scale of the weights."""
    low = min(scores, default=0.0)
    scale = abs(weights.alpha) + abs(weights.beta) + abs(weights.gamma)
    return tuple((s - low) / scale for s in scores)


def retrieve(
    knowledge_base: KnowledgeBase,
    vectors: QueryVectors,
    weights: Weights,
    k: int,
    *,
    exclude_patients: Collection[str] = (),
    exclude_studies: Collection[str] = (),
    exclude_ids: Collection[str] = (),
    pinned_ids: Collection[str] = (),
    noise: int = 0,
    seed: int = 0,
) -> tuple[Retrieved, ...]:
    """Return the k documents with the highest MCR score, exactly, best first.

    Documents with the same report, word for word, are retrieved once, by the best of them.

    Parameters
    ----------
    vectors
        From :func:`encode_query`. Keep them: other weights then cost one scan.
    weights
        Those that the query can use; see :func:`effective_weights`, which is applied here too.
    k
        From 1 to 50, and at most the number of documents left after exclusion.
    exclude_patients, exclude_studies, exclude_ids
        Documents of these are never retrieved (a query's own study, for example).
    pinned_ids
        Documents that are retrieved whatever their score, within the k.
    noise
        Number of the k, from the lowest-ranked up and never a pinned one, that are replaced
        by documents drawn uniformly from those not retrieved. They keep their own scores (the
        paper's experiment with irrelevant documents).
    seed
        Of that draw.

    Raises
    ------
    SettingsError
        Where a number is out of its range, or a pinned document is unknown or excluded.
    """
    weights, _ = effective_weights(weights, vectors)
    excluded = set(
        knowledge_base.positions(
            patients=set(exclude_patients), studies=set(exclude_studies), ids=set(exclude_ids)
        )
    )
    _check_k(k, len(knowledge_base), len(excluded))
    pinned = _pinned(knowledge_base, set(pinned_ids), excluded, k)
    scored = _score(knowledge_base, vectors, weights, sorted(pinned))
    best = _best(knowledge_base, vectors, weights, k - len(pinned), scored, excluded)
    left = len(knowledge_base) - len(excluded)
    _check_noise(noise, min(len(best), left - k), k, len(pinned), left)
    drawn = _drawn(knowledge_base, [*best, *pinned], excluded, noise, seed)
    scored.update(_score(knowledge_base, vectors, weights, sorted(drawn)))
    return _explained(
        knowledge_base,
        [i for i in _ranked(scored) if i in {*best[: len(best) - noise], *drawn, *pinned}],
        scored,
        weights,
        drawn,
    )


def _best(
    knowledge_base: KnowledgeBase,
    vectors: QueryVectors,
    weights: Weights,
    count: int,
    scored: _Scored,
    excluded: Collection[int],
) -> list[int]:
    """Return the best documents beside those in ``scored``, which gets those that it looks at.

    Of documents with one report (further views of a study, or the same words for another
    patient) only the best is chosen, unless there are too few other ones.
    """
    report_keys = knowledge_base.documents.reports
    pinned, left = set(scored), len(knowledge_base) - len(excluded)
    query, fetch = fused_query(vectors, weights), count + len(pinned) + _MARGIN
    while True:
        found, _ = knowledge_base.search(query, fetch, excluded)
        scored.update(_score(knowledge_base, vectors, weights, sorted({*found.tolist()} - pinned)))
        known = _ranked(scored)
        key_of = dict(zip(known, report_keys[np.array(known, np.int64)].tolist(), strict=True))
        ranked = [i for i in known if i not in pinned]
        read = {key_of[i] for i in pinned}
        first: list[int] = []
        again: list[int] = []
        for i in ranked:
            (again if key_of[i] in read else first).append(i)
            read.add(key_of[i])
        # The last ones may lack a place to one that was not fetched.
        settled = set(ranked[: len(ranked) - _MARGIN])
        if fetch >= left:
            return [*first, *again][:count]
        if len(first) >= count and settled.issuperset(first[:count]):
            return first[:count]
        fetch *= 2


def _check_k(k: int, documents: int, excluded: int) -> None:
    most = min(MAX_K, documents - excluded)
    if not 1 <= k <= most:
        raise SettingsError(
            f"{k} documents were asked for. From 1 to {most} can be retrieved: the "
            f"knowledge base has {documents}, {excluded} of them excluded."
        )


def _check_noise(noise: int, most: int, k: int, pinned: int, left: int) -> None:
    if not 0 <= noise <= most:
        raise SettingsError(
            f"{noise} irrelevant documents were asked for. From 0 to {most} "
            f"are possible with {k} documents, {pinned} of them pinned, out of {left}."
        )


def _drawn(
    knowledge_base: KnowledgeBase, taken: list[int], excluded: set[int], noise: int, seed: int
) -> list[int]:
    """Draw documents at random among those of other reports than the ones taken.

    Where these are too few, further documents with the reports taken are drawn as well.
    """
    if not noise:
        return []
    count = len(knowledge_base)
    barred = {*taken, *excluded}
    alike = barred.union(knowledge_base.with_reports_of(taken))
    if count - len(alike) >= noise:
        barred = alike
    free = np.random.default_rng(seed).choice(count - len(barred), noise, replace=False)
    # Number n of the free ones has before it as many barred ones as have at most n free before.
    barred_N = np.array(sorted(barred), np.int64)
    drawn = free + np.searchsorted(barred_N - np.arange(len(barred_N)), free, side="right")
    numbers: list[int] = drawn.tolist()
    return numbers


def _explained(
    knowledge_base: KnowledgeBase,
    chosen: Sequence[int],
    scored: _Scored,
    weights: Weights,
    drawn: Collection[int],
) -> tuple[Retrieved, ...]:
    """Return the chosen documents, best first, with why they were chosen."""
    scores = [math.fsum(scored[i][1]) for i in chosen]
    steered = zip(relevance(scores), gaps(scores, weights), strict=True)
    documents = knowledge_base.documents.read(chosen)
    copies = knowledge_base.studies_with_reports_of(chosen)
    rows = zip(chosen, documents, scores, steered, copies, strict=True)
    return tuple(
        Retrieved(
            document,
            rank,
            score,
            *scored[i],
            *by,
            drawn=i in drawn,
            number=i,
            copies=studies,
        )
        for rank, (i, document, score, by, studies) in enumerate(rows, start=1)
    )


def _score(
    knowledge_base: KnowledgeBase, vectors: QueryVectors, weights: Weights, ids: Sequence[int]
) -> _Scored:
    """Return cosines and terms of documents, by number."""
    t_ND, v_ND = knowledge_base.vectors(ids)
    pairs = ((vectors.v, t_ND), (vectors.v, v_ND), (vectors.t, t_ND))
    # Row by row in float64, so that equal documents score alike wherever they stand.
    cosines_3N = [
        np.full(len(ids), np.nan)
        if query is None
        else (documents.astype(np.float64) * query).sum(axis=1)
        for query, documents in pairs
    ]
    scored: _Scored = {}
    for n, i in enumerate(ids):
        alpha, beta, gamma = (float(cosines[n]) for cosines in cosines_3N)
        scored[i] = (
            (alpha, beta, gamma),
            (
                _term(weights.alpha, alpha),
                _term(weights.beta, beta),
                _term(weights.gamma, gamma),
            ),
        )
    return scored


def _term(weight: float, cosine: float) -> float:
    return 0.0 if math.isnan(cosine) else round(weight * cosine * _GRID) / _GRID


def _ranked(scored: _Scored) -> list[int]:
    """Return numbers by descending score; equal scores in document order."""
    return sorted(scored, key=lambda i: (-math.fsum(scored[i][1]), i))


def _pinned(
    knowledge_base: KnowledgeBase, pinned_ids: set[str], excluded: set[int], k: int
) -> set[int]:
    pinned = set(knowledge_base.positions(ids=pinned_ids)) if pinned_ids else set()
    unknown = pinned_ids - {knowledge_base.document(i).id for i in pinned}
    if unknown:
        raise SettingsError(f"The knowledge base has no document {min(unknown)} to pin.")
    both = sorted(knowledge_base.document(i).id for i in pinned & excluded)
    if both:
        raise SettingsError(
            f"Document {both[0]} is both pinned and excluded. Unpin it or do not exclude it."
        )
    if len(pinned) > k:
        raise SettingsError(
            f"{len(pinned)} documents are pinned, and only {k} are to be retrieved. "
            "Unpin some or ask for more."
        )
    return pinned
