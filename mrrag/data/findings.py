"""Findings that a text names, and whether the text affirms or denies them.

What a clause says about a mention is decided by :mod:`mrrag.data.negation`; here are the
findings' wordings. They highlight words on a page, detect reports that contradict each other
and make questions of reports, and are not meant as a labeller for research.

This module knows only words: no images, no models, no scores.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from mrrag.data.negation import NEGATIONS, Stance, sentences, stance_in
from mrrag.data.wordings import FINDINGS, STRUCTURES

__all__ = [
    "FINDINGS",
    "Asked",
    "Mention",
    "asked",
    "contradictions",
    "matched_words",
    "mentions",
    "named",
    "stance",
]

# The sections before the findings say why the image was taken, not what it shows.
_REQUEST = re.compile(
    r"\b(?:indication|history|clinical information|reason for (?:exam\w*|study)|technique)\s*:.*?"
    r"(?=\b(?:findings|impression|comparison|technique|conclusion)\s*:|\n\s*\n|\Z)",
    re.S,
)
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an any are at be can could describe did do does evidence finding from has have how if "
        "image in is it its normal not of on or patient picture present radiograph ray scan see "
        "seen show shown side sign that the their there these this to visible was were what where "
        "which who why with x xray you",
    )
)


@dataclass(frozen=True)
class Mention:
    """A place where a text names a finding, ``text[start:stop]``, and what it says about it."""

    finding: str
    start: int
    stop: int
    stance: Stance


@dataclass(frozen=True)
class Asked:
    """A finding that a question is about, and whether "yes" means that it is there."""

    finding: str
    polarity: Literal["presence", "absence"]


def asked(question: str) -> tuple[Asked, ...]:
    """Return the findings that a question is about, in the order of :data:`FINDINGS`.

    "Is the heart size normal?" asks for the absence of cardiomegaly, and "Are the lungs
    clear?" for that of every opacity. A wording inside a longer one does not count: "airspace
    opacity" is consolidation.
    """
    lowered = re.sub(r"\bor not\b", "", question.lower())
    found: dict[str, Literal["presence", "absence"]] = {}
    for finding, start, stop in _longest_wordings(lowered):
        gone = lowered.startswith((" absent", " resolved"), stop)
        absence = gone or stance_in(lowered, start, stop, (0, len(lowered))) == "denied"
        found.setdefault(finding, "absence" if absence else "presence")
    for structure in STRUCTURES:
        if found.keys() & set(structure.findings):
            continue
        if not re.search(rf"\b(?:{structure.words})", lowered):
            continue
        ill = re.search(rf"\b(?:{structure.abnormal})", lowered) is not None
        if ill or re.search(rf"\b(?:{structure.normal})\b(?! of)", lowered):
            present = ill != (NEGATIONS.search(lowered) is not None)
            for finding in structure.findings:
                found.setdefault(finding, "presence" if present else "absence")
    return tuple(Asked(finding, found[finding]) for finding in FINDINGS if finding in found)


def _longest_wordings(lowered: str) -> list[tuple[str, int, int]]:
    """Return the wordings in a text that are not part of a longer one, or of one before."""
    places = [
        (finding, *match.span())
        for finding in FINDINGS
        for match in _patterns(finding)[0].finditer(lowered)
    ]
    return [
        (finding, start, stop)
        for n, (finding, start, stop) in enumerate(places)
        if not any(
            a <= start and stop <= b and (b - a > stop - start or m < n)
            for m, (_, a, b) in enumerate(places)
            if m != n
        )
    ]


def named(question: str) -> tuple[str, ...]:
    """Return the findings that a question is about, in the order of :data:`FINDINGS`."""
    return tuple(about.finding for about in asked(question))


def mentions(report: str, findings: Collection[str]) -> tuple[Mention, ...]:
    """Return every mention of these findings, in the order of the text."""
    # Lower case may change the length, and then the positions would differ from the report's.
    lowered = report.lower() if len(report.lower()) == len(report) else report
    lowered = _REQUEST.sub(lambda m: " " * len(m.group()), lowered)
    places = sentences(lowered)
    starts = [start for start, _ in places]
    found: list[Mention] = []
    for finding in findings:
        names, denials = _patterns(finding)
        # In order and apart, so that bisection finds the one that a wording may be part of.
        denied = [m.span() for m in denials.finditer(lowered)] if denials else []
        for start, stop in denied:
            # "The heart is not normal in size"; a "no" at the start is the denial's own.
            negated = NEGATIONS.search(lowered, start + 1, stop)
            found.append(Mention(finding, start, stop, "affirmed" if negated else "denied"))
        for match in names.finditer(lowered):
            start, stop = match.span()
            n = bisect_left(denied, (stop, stop))
            if n and start < denied[n - 1][1]:
                continue
            within = places[bisect_right(starts, start) - 1]
            if said := stance_in(lowered, start, stop, within):
                found.append(Mention(finding, start, stop, said))
    return tuple(sorted(found, key=lambda m: (m.start, m.stop)))


@cache
def _patterns(finding: str) -> tuple[re.Pattern[str], re.Pattern[str] | None]:
    names, denials = FINDINGS[finding]
    return re.compile(rf"\b(?:{names})"), re.compile(rf"\b(?:{denials})\b") if denials else None


def stance(report: str, finding: str) -> Stance | None:
    """Return what a whole report says about a finding, None if it does not name it.

    One affirmation outweighs any denial (no effusion on the left, one on the right), and
    doubt outweighs denial.
    """
    said = {m.stance for m in mentions(report, (finding,))}
    order: tuple[Stance, ...] = ("affirmed", "uncertain", "denied")
    return next((s for s in order if s in said), None)


def contradictions(
    question: str, reports: Sequence[str]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the findings of a question that some reports affirm and others deny.

    Returns
    -------
    dict
        Finding → the indices of the reports that affirm it, and of those that deny it.
    """
    split = {}
    for finding in named(question):
        said = [stance(report, finding) for report in reports]
        yes = tuple(i for i, s in enumerate(said) if s == "affirmed")
        no = tuple(i for i, s in enumerate(said) if s == "denied")
        if yes and no:
            split[finding] = (yes, no)
    return split


def matched_words(question: str, report: str) -> tuple[tuple[int, int], ...]:
    """Return the spans of a report's words that are in the question too.

    Common words are left out, and a plural matches its singular.
    """
    words = set(re.findall(r"[^\W\d_]+", question.lower())) - _STOP_WORDS
    asked = {_stem(word) for word in words} - _STOP_WORDS
    return tuple(
        match.span()
        for match in re.finditer(r"[^\W\d_]+", report)
        if _stem(match.group().lower()) in asked
    )


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("is") else word
