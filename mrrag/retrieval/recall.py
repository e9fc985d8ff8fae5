"""How many of the exact best documents an index finds."""

from __future__ import annotations

import numpy as np

from mrrag.retrieval.documents import sampled
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.types import FloatArray

__all__ = ["ENOUGH", "K", "queries_of", "recall_of"]

K = 15  # the paper's number of documents
ENOUGH = 0.99
QUERIES, BLOCK = 100, 1024


def queries_of(base: KnowledgeBase, count: int = QUERIES, *, seed: int = 0) -> FloatArray:
    """Return queries like those of new cases, float32 [M, 2D], one of each sampled document.

    Its own vectors are the image and, with the report of another, the question: α, β and γ are
    0.4, 0.3 and 0.3.
    """
    numbers = sampled(np.random.default_rng(seed), len(base), count)
    t_MD, v_MD = base.vectors(numbers)
    queries_MD: FloatArray = np.concatenate([0.4 * v_MD + 0.3 * np.roll(t_MD, 1, 0), 0.3 * v_MD], 1)
    return queries_MD


def recall_of(base: KnowledgeBase, k: int = K) -> float:
    """Return which share of the k best documents a search finds, 0 to 1, over 100 queries.

    All vectors are read once and scored. A document as good as the k-th best counts as found.
    """
    queries_MD, k = queries_of(base), min(k, len(base))
    best_MK = np.full((len(queries_MD), k), -np.inf, np.float32)
    for start in range(0, len(base), BLOCK):
        both_ND = np.concatenate(base.vectors(range(start, min(len(base), start + BLOCK))), axis=1)
        merged = np.concatenate([best_MK, queries_MD @ both_ND.T], axis=1)
        best_MK = -np.partition(-merged, k - 1, axis=1)[:, :k]
    worst_M = best_MK.min(axis=1) - 1e-5
    _, found_MK = base.nearest(queries_MD, k)
    return float((found_MK >= worst_M[:, None]).mean())
