"""Irrelevant reports that a threshold on the score cannot tell from relevant ones.

The paper draws irrelevant reports at random from the whole knowledge base. All of them then
score below all retrieved ones, and cutting the list by score undoes the noise without any
steering. The kinds here come from reports that nearly were retrieved.

It knows questions, gold answers and the finding rules, but no model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mrrag.errors import SettingsError
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.retrieval.mcr import fused_query, retrieve
from mrrag.study.evaluation import EncodedItem
from mrrag.study.labels import cached_stance, finding_of
from mrrag.study.plan import NOISE_KINDS
from mrrag.types import Retrieved, Weights

__all__ = ["hard_noise"]

NEAREST, FARTHEST = 50, 400  # ranks


def hard_noise(
    base: KnowledgeBase,
    item: EncodedItem,
    weights: Weights,
    k: int,
    noise: int,
    kind: str,
    seed: int = 0,
) -> tuple[Retrieved, ...]:
    """Return the k − noise best reports, and others of a kind, by score.

    The kinds are those of :data:`mrrag.study.plan.NOISE_KINDS` but "random". "silent" and
    "opposed" take what they can find down to rank 400, nearest first, and then
    the nearest others: a question may name no finding, and few reports may oppose it.

    Raises
    ------
    SettingsError
        For an unknown kind, or a knowledge base with too few documents.
    """
    if kind not in NOISE_KINDS or kind == "random":
        known = ", ".join(name for name in NOISE_KINDS if name != "random")
        raise SettingsError(f"Noise of the kind {kind!r} was asked for. Choose one of: {known}.")
    own = item.case.document
    excluded = base.positions(patients={own.patient}, studies={own.study})
    best = retrieve(
        base, item.vectors, weights, k, exclude_patients={own.patient}, exclude_studies={own.study}
    )
    ranked, _ = base.search(fused_query(item.vectors, weights), FARTHEST, excluded)
    reports_N = base.documents.reports
    read = reports_N[[r.number for r in best]]
    others = ranked[~np.isin(reports_N[ranked], read)]
    _, first = np.unique(reports_N[others], return_index=True)
    others = others[np.sort(first)]  # of equal reports the best
    if len(others) < noise:
        raise SettingsError(
            f"{noise} irrelevant reports were asked for, and the knowledge base has {len(others)} "
            "other ones for a question. Index more studies."
        )
    drawn = _chosen(base, item, others, noise, kind, seed)
    found = retrieve(
        base,
        item.vectors,
        weights,
        k,
        exclude_patients={own.patient},
        exclude_studies={own.study},
        pinned_ids={base.document(i).id for i in drawn},
    )
    return tuple(replace(r, drawn=r.number in drawn) for r in found)


def _chosen(
    base: KnowledgeBase,
    item: EncodedItem,
    others: npt.NDArray[np.int64],
    noise: int,
    kind: str,
    seed: int,
) -> set[int]:
    if kind == "distant":
        far = others[NEAREST:] if len(others) >= NEAREST + noise else others
        return set(np.random.default_rng(seed).choice(far, noise, replace=False).tolist())
    finding, presence = finding_of(item.question)
    opposite = "denied" if bool(item.gold) == presence else "affirmed"
    wanted = None if kind == "silent" else opposite
    suitable: list[int] = []
    for i in others.tolist():
        if len(suitable) == noise or not finding:
            break
        if cached_stance(base.document(i).report, finding) == wanted:
            suitable.append(i)
    rest = [i for i in others.tolist() if i not in suitable]
    return {*[*suitable, *rest][:noise]}
