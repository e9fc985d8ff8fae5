"""The vote of the retrieved reports on the findings that a question names.

It reads words alone: no image, no score, and no language model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mrrag.data.findings import affirmed_in, named, stance
from mrrag.retrieval.documents import sampled
from mrrag.types import Retrieved, Vote

if TYPE_CHECKING:  # faiss and torch take seconds to import, and words need neither
    from mrrag.retrieval.knowledge_base import KnowledgeBase

__all__ = ["BaseRates", "per_cent", "sentence", "silent", "votes", "votes_of"]

# Reports that a base rate is counted over, at most: 0.1 s a finding, and 95 % of such counts
# are within 1 point of a rate of 5 %.
COUNTED = 2000


def votes(
    question: str, reports: Sequence[str], rates: Mapping[str, float] | None = None
) -> tuple[Vote, ...]:
    """Count what reports say of each finding that a question names.

    Parameters
    ----------
    rates
        Finding → share of the knowledge base's reports that affirm it (:class:`BaseRates`).

    Returns
    -------
    tuple of Vote
        One a finding, in the order of :data:`mrrag.data.findings.FINDINGS`; none where the
        question names no finding, or there are no reports.
    """
    if not reports:
        return ()
    counted = []
    for finding in named(question):
        said = [stance(report, finding) for report in reports]
        counted.append(
            Vote(
                finding=finding,
                affirm=said.count("affirmed"),
                deny=said.count("denied"),
                doubt=said.count("uncertain"),
                reports=len(reports),
                base_rate=(rates or {}).get(finding, math.nan),
            )
        )
    return tuple(counted)


class BaseRates:
    """Which share of a knowledge base's reports affirms a finding, counted when first asked for.

    Of a base of more than :data:`COUNTED` documents, a sample is counted.
    """

    def __init__(self, knowledge_base: KnowledgeBase) -> None:
        self._knowledge_base = knowledge_base
        self._counted: dict[str, float] = {}

    @cached_property
    def _reports(self) -> list[str]:
        count = len(self._knowledge_base)
        numbers = sampled(np.random.default_rng(0), count, COUNTED).tolist()
        return [document.report for document in self._knowledge_base.documents.read(numbers)]

    def of(self, findings: Collection[str]) -> dict[str, float]:
        """Return the share of each finding, 0 to 1."""
        missing = [finding for finding in findings if finding not in self._counted]
        if missing:
            affirmed = Counter(
                finding for report in self._reports for finding in affirmed_in(report, missing)
            )
            reports = max(len(self._reports), 1)
            self._counted |= {finding: affirmed[finding] / reports for finding in missing}
        return {finding: self._counted[finding] for finding in findings}


def votes_of(rates: BaseRates, question: str, retrieved: Sequence[Retrieved]) -> tuple[Vote, ...]:
    """Count what retrieved reports say of a question's findings, beside their base rates."""
    return votes(question, [r.document.report for r in retrieved], rates.of(named(question)))


def silent(vote: Vote) -> int:
    """Return how many of the reports say nothing of the finding."""
    return vote.reports - vote.affirm - vote.deny - vote.doubt


def sentence(vote: Vote) -> str:
    """Return a vote in words: "pleural effusion: 3 of 8 affirm, 5 deny; 4 % of …"."""
    said = f"{vote.finding}: {vote.affirm} of {vote.reports} affirm, {vote.deny} deny"
    if vote.doubt:
        said += f", {vote.doubt} in doubt"
    if silent(vote):
        said += f", {silent(vote)} silent"
    if not math.isnan(vote.base_rate):
        said += f"; {per_cent(vote.base_rate)} of this knowledge base affirm it"
    return said


def per_cent(share: float) -> str:
    """Return a share from 0 to 1 in whole per cent; "under 1 %" where it is small."""
    return "under 1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"
