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
from mrrag.data.wordings import ELSEWHERE, FINDINGS, STRUCTURES

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
_ELSEWHERE = re.compile(ELSEWHERE)
# "The bones are not intact"; any other negation in a denial is the denial's own.
_NOT_NORMAL = re.compile(r"\bnot (?:\w+ )?(?:normal|unremarkable|intact|clear|sharp|straight)\b")
# Of questions: "Is the …" before a thing that is taken for granted, unless its presence is asked.
_THE = re.compile(
    r"^(?:is|are|was|were|do|does|did) (?:the|these|those)"
    r" (?:(?!patient|image|film|x-?ray|radiograph|study|picture|show|have)[\w-]+ ){0,2}$"
)
_ITS_PRESENCE = re.compile(
    r"(?: (?:still|now|also|clearly))*(?: (?:present|there|seen|visible|noted|shown|evident|gone"
    r"|absent|resolved|removed|in place))?\W*(?:(?:on|in) (?:this|the) .*)?$"
)
_OF_THE_METHOD = re.compile(
    r"^(?:can|could) (?:this|an?|the|x-?\W?rays?)\b.{0,30}\b(?:highlight|identify|diagnose|detect"
    r"|used)|\b(?:sufficient|enough) to\b"
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
    opacity" is consolidation. Where neither answer denies the finding ("Are the nodules well
    circumscribed?"), or the question is of the method ("Can this film show fractures?"), it is
    not asked for.
    """
    lowered = _lowered_question(question)
    if _OF_THE_METHOD.search(lowered):
        return ()
    found: dict[str, Literal["presence", "absence"]] = {}
    granted: set[str] = set()
    for finding, start, stop in _longest_wordings(lowered):
        if _presupposed(lowered, start, stop):
            granted.add(finding)
            continue
        gone = lowered.startswith((" absent", " resolved"), stop)
        absence = gone or stance_in(lowered, start, stop, (0, len(lowered))) == "denied"
        found.setdefault(finding, "absence" if absence else "presence")
    for structure in STRUCTURES:
        if (granted | found.keys()) & set(structure.findings):
            continue
        if not re.search(rf"\b(?:{structure.words})", lowered):
            continue
        ill = re.search(rf"\b(?:{structure.abnormal})", lowered) is not None
        if ill or re.search(rf"\b(?:{structure.normal})\b(?! of)", lowered):
            present = ill != (NEGATIONS.search(lowered) is not None)
            for finding in structure.findings:
                found.setdefault(finding, "presence" if present else "absence")
    return tuple(Asked(finding, found[finding]) for finding in FINDINGS if finding in found)


def _lowered_question(question: str) -> str:
    return _without_others(re.sub(r"\bor not\b", "", question.lower()))


def _presupposed(lowered: str, start: int, stop: int) -> bool:
    """Whether a question takes a thing for granted: "Is the mass …" and more than "there"."""
    of_structure = any(re.match(structure.words, lowered[start:]) for structure in STRUCTURES)
    return not of_structure and bool(
        _THE.search(lowered[:start]) and not _ITS_PRESENCE.match(lowered[stop:])
    )


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
    found = {about.finding for about in asked(question)}
    found |= {finding for finding, _, _ in _longest_wordings(_lowered_question(question))}
    return tuple(finding for finding in FINDINGS if finding in found)


def mentions(report: str, findings: Collection[str]) -> tuple[Mention, ...]:
    """Return every mention of these findings, in the order of the text."""
    lowered, places = _prepared(report)
    starts = [start for start, _ in places]
    found: list[Mention] = []
    for finding in findings:
        names, denials = _patterns(finding)
        # In order and apart, so that bisection finds the one that a wording may be part of.
        denied = [m.span() for m in denials.finditer(lowered)] if denials else []
        for start, stop in denied:
            negated = _NOT_NORMAL.search(lowered, start, stop)
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


def _prepared(report: str) -> tuple[str, list[tuple[int, int]]]:
    """Return a report in lower case, without what says nothing of the image, and its sentences."""
    # Lower case may change the length, and then the positions would differ from the report's.
    lowered = report.lower() if len(report.lower()) == len(report) else report
    lowered = _REQUEST.sub(lambda m: " " * len(m.group()), lowered)
    lowered = _without_others(lowered)
    return lowered, sentences(lowered)


def _without_others(lowered: str) -> str:
    """Cross out words like a finding's that are of something else; positions stay."""
    return _ELSEWHERE.sub(lambda m: re.sub(r"[^\W_]", "x", m.group()), lowered)


@cache
def _patterns(finding: str) -> tuple[re.Pattern[str], re.Pattern[str] | None]:
    names, denials = FINDINGS[finding]
    return re.compile(rf"\b(?:{names})"), re.compile(rf"\b(?:{denials})\b") if denials else None


def affirmed_in(report: str, findings: Collection[str]) -> frozenset[str]:
    """Return those of these findings that a report affirms somewhere."""
    return frozenset(m.finding for m in mentions(report, findings) if m.stance == "affirmed")


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
