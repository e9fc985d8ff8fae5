"""What a data set holds, counted by study: views, sections, redactions, repeated reports."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mrrag.data.records import Record
from mrrag.data.views import pictures_of_studies

__all__ = ["Facts", "facts_of", "repeated_reports"]

# How IU-Xray and MIMIC-CXR mark removed words.
_REDACTED = re.compile(r"X{4,}|_{3,}")


@dataclass(frozen=True)
class Facts:
    """Counts of a data set whose pictures are all given.

    Attributes
    ----------
    frontal, lateral, unknown : int
        Pictures by view.
    only_lateral, second_frontals : int
        Studies without any other picture, and frontal pictures beyond a study's first.
    impression_only, redacted : int
        Studies whose report has no findings section, and those whose report has removed words
        ("XXXX" or "___").
    repeated, commonest : int
        See :func:`repeated_reports`.
    """

    frontal: int
    lateral: int
    unknown: int
    only_lateral: int
    second_frontals: int
    impression_only: int
    redacted: int
    repeated: int
    commonest: int


def facts_of(records: Sequence[Record]) -> Facts:
    """Count what a data set holds; give the records of all its pictures."""
    by_view = Counter(record.view for record in records)
    studies = pictures_of_studies(records)
    views = [[records[n].view for n in rows] for rows in studies]
    firsts = [records[rows[0]] for rows in studies]
    repeated, commonest = repeated_reports(records)
    return Facts(
        frontal=by_view["frontal"],
        lateral=by_view["lateral"],
        unknown=by_view[""],
        only_lateral=sum(set(one) == {"lateral"} for one in views),
        second_frontals=sum(max(0, one.count("frontal") - 1) for one in views),
        impression_only=sum(record.impression_only for record in firsts),
        redacted=sum(bool(_REDACTED.search(record.document.report)) for record in firsts),
        repeated=repeated,
        commonest=commonest,
    )


def repeated_reports(records: Sequence[Record]) -> tuple[int, int]:
    """Return how many reports repeat an earlier study's, and how often the commonest stands.

    Reports are the same where they differ in case and white space at most. Pictures of one
    study share a report, which counts once.
    """
    firsts = (records[rows[0]].document.report for rows in pictures_of_studies(records))
    counts = Counter(text for report in firsts if (text := " ".join(report.lower().split())))
    return counts.total() - len(counts), max(counts.values(), default=0)
