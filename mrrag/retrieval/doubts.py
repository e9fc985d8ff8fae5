"""Doubts about the evidence, in sentences: what a reader must know before trusting it.

It knows scores, percentiles and the words of reports; it computes no score.
"""

from __future__ import annotations

from mrrag.data.findings import contradictions
from mrrag.retrieval.calibration import AT_CHANCE, WEAK
from mrrag.types import Familiarity, Retrieved


def warnings_of(
    question: str,
    retrieved: tuple[Retrieved, ...],
    percentiles: tuple[float, ...],
    own_report: float,
    familiarity: Familiarity | None,
    view: str = "",
) -> dict[str, str]:
    """Return what a reader must know before trusting the evidence: kind → sentence.

    "unlike"
        The image is unlike those of the knowledge base, so the evidence may not apply to it.
    "lateral"
        The image is a lateral view (``view``), and none of the retrieved ones is.
    "known"
        The image is in the knowledge base, and its own report was retrieved.
    "weak"
        The encoder cannot relate images to reports in this knowledge base, or the best
        report's score is lower than for 99 of 100 other images.
    "contradiction"
        Reports affirm and deny a finding that the question names.
    """
    warnings = {}
    if familiarity is not None and familiarity.unlike:
        warnings["unlike"] = (
            "This picture is unlike those in the knowledge base; 99 in 100 of its own lie closer "
            "to the rest. The evidence may not apply to it, and then the answers with reports mean "
            "nothing."
        )
    if view == "lateral" and retrieved and "lateral" not in {r.document.view for r in retrieved}:
        warnings["lateral"] = (
            "This is a lateral view, and the retrieved reports are not of lateral ones. Across "
            "views, retrieval says little."
        )
    if familiarity is not None and familiarity.twin in {r.document.id for r in retrieved}:
        warnings["known"] = (
            f"This very picture is in the knowledge base, as document {familiarity.twin}, and its "
            "own report is among these. Exclude it for a fair look."
        )
    if own_report < AT_CHANCE:  # false for NaN
        warnings["weak"] = (
            "The evidence is weak: this encoder hardly relates the pictures of the knowledge base "
            f"to their reports. A picture is closer to its own report than to another one in "
            f"{own_report:.0f} % of pairs, and 50 % is chance."
        )
    elif percentiles and percentiles[0] < WEAK:
        warnings["weak"] = (
            "The evidence is weak: even the best report is less similar than the best one for 99 "
            "of 100 other pictures."
        )
    sides = contradictions(question, [r.document.report for r in retrieved])
    if sides:
        warnings["contradiction"] = (
            "The reports contradict each other: "
            + "; ".join(
                f"{finding} is affirmed by {_ranks(retrieved, yes)} and denied by "
                f"{_ranks(retrieved, no)}"
                for finding, (yes, no) in sides.items()
            )
            + "."
        )
    return warnings


def _ranks(retrieved: tuple[Retrieved, ...], places: tuple[int, ...]) -> str:
    """Return the ranks of documents as words: "1, 2 and 5"."""
    ranks = [str(retrieved[i].rank) for i in places]
    return " and ".join(filter(None, (", ".join(ranks[:-1]), ranks[-1])))
