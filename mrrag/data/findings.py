"""Findings that a text names, and whether the text affirms or denies them.

The rules follow NegEx (Chapman et al. 2001): a mention is denied if a negation precedes
it, or a denial follows it, within the same clause of the same sentence. They are few on
purpose: they highlight words on a page and detect reports that contradict each other, and
are not meant as a labeller for research.

This module knows only words: no images, no models, no scores.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["FINDINGS", "Mention", "contradictions", "matched_words", "mentions", "named", "stance"]

Stance = Literal["affirmed", "denied", "uncertain"]

# The scope of a negation, in characters, at most: a sentence may lack its full stop.
REACH = 240

_HEART = r"(?:heart|cardiac(?: silhouette)?|cardiomediastinal silhouette)"

# Finding → (wordings that name it, wordings that deny it without a negation).
FINDINGS: dict[str, tuple[str, str]] = {
    "cardiomegaly": (
        rf"cardiomegaly|enlarged {_HEART}|{_HEART}(?: \w+){{0,4}}? enlarge\w*"
        rf"|enlargement of the {_HEART}",
        rf"normal {_HEART} size|{_HEART}(?: \w+){{0,3}}? (?:within )?normal(?: in size| limits)?",
    ),
    "pleural effusion": (
        r"(?:pleural )?effusions?|pleural fluid",
        r"costophrenic angles are (?:sharp|clear)",
    ),
    "pneumothorax": (r"pneumothora(?:x|ces)", ""),
    "consolidation": (
        r"consolidations?|infiltrates?|air ?space (?:opacit\w+|disease)",
        r"lungs are(?: \w+){0,2}? clear",
    ),
    "pneumonia": (r"pneumonias?", r"lungs are(?: \w+){0,2}? clear"),
    "nodule": (r"nodul(?:es?|ar opacit\w+)", ""),
    "mass": (r"mass(?:es)?\b", ""),
    "pulmonary edema": (
        r"(?:pulmonary |interstitial )?o?edema|vascular congestion",
        "",
    ),
    "atelectasis": (r"atelecta(?:sis|tic)", ""),
    "hyperinflation": (
        r"hyperinflat\w+|hyperexpan\w+|emphysem\w+",
        r"lung volumes are normal|normal lung volumes",
    ),
    "pacemaker": (r"pacemakers?|pacing (?:device|leads?)", ""),
    "central line": (
        r"central (?:venous )?(?:line|catheter)s?|internal jugular (?:line|catheter)|picc", "",
    ),
    "rib fracture": (r"(?:rib )?fractures?", r"ribs are intact"),
    "scoliosis": (r"scoliosis|curvature of the(?: \w+)? spine", r"spine is straight"),
    "pleural thickening": (r"pleural thickening", ""),
    "hernia": (r"hernias?", ""),
    "fibrosis": (r"fibro(?:sis|tic)", ""),
}  # fmt: skip

# "No change in the effusion" affirms an effusion.
_NOT_NEGATIONS = re.compile(
    r"\b(?:no|without|not)\b(?: \w+){0,2}? (?:changed?|increased?|decreased?|worsening"
    r"|improvement)\b|\bnot only\b|\bno prior\b"
)
_NEGATIONS = re.compile(
    r"\b(?:no|not|without|none|never|absence of|absent|free of|negative for|denies|neither|nor"
    r"|clear of|resolution of|resolved)\b"
)
_NEGATIONS_AFTER = re.compile(
    r"^[\w ,-]{0,24}?\b(?:(?:is|are|was|were|has|have) (?:absent|resolved|been ruled out|ruled out"
    r"|unlikely|not (?:seen|present|identified|demonstrated|visuali[sz]ed|evident))"
    r"|resolved|ruled out)\b"
)
_DOUBTS = re.compile(
    r"\b(?:possibl[ey]|probabl[ey]|may|might|could|suspicious for|suspected|suspicion of"
    r"|question of|questionable|concern(?:ing)? for|rule out|evaluate for|exclude|versus|vs"
    r"|equivocal|likely)\b"
)
_DOUBTS_AFTER = re.compile(
    r"^[\w ,-]{0,24}?\b(?:(?:can ?not|not) be (?:excluded|ruled out)|not excluded|is possible"
    r"|is questionable|is suspected)\b"
)
# The end of a clause, where the scope of a negation ends.
_CLAUSE_END = re.compile(
    r"\b(?:but|however|although|though|except|aside from|apart from|despite|there (?:is|are)"
    r"|which)\b|[;:]|, (?:a|an|the) "
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
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


def named(question: str) -> tuple[str, ...]:
    """Return the findings that a question names, in the order of :data:`FINDINGS`."""
    lowered = question.lower()
    return tuple(
        finding
        for finding, (wordings, _) in FINDINGS.items()
        if re.search(rf"\b(?:{wordings})", lowered)
    )


def mentions(report: str, findings: Collection[str]) -> tuple[Mention, ...]:
    """Return every mention of these findings, in the order of the text."""
    # Lower case may change the length, and then the positions would differ from the report's.
    lowered = report.lower() if len(report.lower()) == len(report) else report
    lowered = _REQUEST.sub(lambda m: " " * len(m.group()), lowered)
    found: list[Mention] = []
    for start, stop in _sentences(lowered):
        sentence = lowered[start:stop]
        for finding in findings:
            wordings, denials = FINDINGS[finding]
            taken: list[tuple[int, int]] = []
            for match in re.finditer(rf"\b(?:{denials})\b", sentence) if denials else ():
                taken.append(match.span())
                denied: Stance = "affirmed" if _NEGATIONS.search(match.group()) else "denied"
                found.append(Mention(finding, start + match.start(), start + match.end(), denied))
            for match in re.finditer(rf"\b(?:{wordings})", sentence):
                if any(a < match.end() and match.start() < b for a, b in taken):
                    continue
                said = _stance(sentence, *match.span())
                found.append(Mention(finding, start + match.start(), start + match.end(), said))
    return tuple(sorted(found, key=lambda m: (m.start, m.stop)))


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


def _sentences(text: str) -> list[tuple[int, int]]:
    places, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        places.append((start, end.start()))
        start = end.end()
    return [*places, (start, len(text))]


def _stance(sentence: str, start: int, stop: int) -> Stance:
    """Return what a sentence says about its words from ``start`` to ``stop``."""
    # Including the mention: "the heart is not enlarged" contains its own negation.
    before = sentence[max(0, start - REACH) : stop]
    ends = [m.end() for m in _CLAUSE_END.finditer(before[: len(before) - (stop - start)])]
    before = _NOT_NEGATIONS.sub(" ", before[ends[-1] if ends else 0 :])
    after = sentence[stop : stop + REACH]
    cut = _CLAUSE_END.search(after)
    after = after[: cut.start()] if cut else after
    if _DOUBTS_AFTER.search(after):
        return "uncertain"
    if _NEGATIONS_AFTER.search(after) or _NEGATIONS.search(before):
        return "denied"
    return "uncertain" if _DOUBTS.search(before) else "affirmed"
