"""The evidence as HTML: a card per retrieved report, warnings and notes.

Values go in, markup comes out; templates/*.html say how it looks. It knows neither the page
nor its controls.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mrrag.data.findings import matched_words, mentions, named
from mrrag.report.templating import number, render
from mrrag.types import Retrieved, Weights

DISCLAIMER = "Research demonstration. Not a medical device."
DIRECTION = "question tokens reading from report tokens"
ROUTING = "Attention shows where information is routed, not why."
LONGEST_REPORT = 4000
WARNINGS = {
    "outside": "Outside what the model knows",
    "unlike": "Unknown kind of picture",
    "lateral": "Lateral view",
    "known": "Picture in the knowledge base",
    "weak": "Weak evidence",
    "contradiction": "Contradiction",
}
MEANINGLESS = ("outside", "unlike")  # the kinds after which an answer means nothing
SHOWN_AT_ONCE = 4
# The influence that fills a bar at least, so that a negligible one looks negligible.
LEAST_INFLUENCE = 0.02
TERMS = (
    ("alpha", "α", "image–report"),
    ("beta", "β", "image–image"),
    ("gamma", "γ", "question–report"),
)
_HEADING = re.compile(r"\b(FINDINGS|IMPRESSION|INDICATION|COMPARISON|TECHNIQUE):\s*", re.I)

# A report as the model read it, the (start, stop) of its tokens, and a share for each.
Tokens = tuple[str, Sequence[tuple[int, int]], Sequence[float]]


@dataclass(frozen=True)
class Card:
    """A retrieved report with what is known of it.

    Attributes
    ----------
    thumbnail : str
        URL of its radiograph; empty where there is none.
    percentile : float
        Percentage of other images whose report at this rank has a lower score.
    learnt_rank : int or None
        Its rank with the learnt weights; 0 where it is beyond those that were ranked,
        None where the weights are the learnt ones.
    influence : (float, float) or None
        What the report adds to the probability of :attr:`word`, under RAG and MR-RAG.
    tokens : Tokens or None
        For the tint: attention on each token as a share of the most attended one.
    alone : float or None
        P(yes) where the model reads this report and no other.
    """

    item: Retrieved
    thumbnail: str = ""
    percentile: float = math.nan
    learnt_rank: int | None = None
    pinned: bool = False
    word: str = ""
    influence: tuple[float, float] | None = None
    tokens: Tokens | None = None
    alone: float | None = None


# Scores


def rounded_terms(terms: Sequence[float], score: float, digits: int = 3) -> list[float]:
    """Round the terms so that they add up to the score as it is shown.

    Each is rounded down, and the missing units go to those that lost most (largest
    remainder), so none is off by a whole unit of the last digit.
    """
    unit = 10**digits
    floors = [math.floor(t * unit) for t in terms]
    missing = round(score * unit) - sum(floors)
    by_loss = sorted(range(len(terms)), key=lambda i: floors[i] - terms[i] * unit)
    for i in by_loss[: max(0, missing)]:
        floors[i] += 1
    return [f / unit for f in floors]


def term_bars(item: Retrieved, lowest: float, highest: float) -> dict[str, Any]:
    """Lay the three signed terms out as one stacked bar around zero.

    ``lowest`` (≤ 0) and ``highest`` (≥ 0) are the ends of the scale that all cards share.
    Negative terms grow to the left of zero and positive ones to the right.
    """
    width = (highest - lowest) or 1.0
    ends = {True: 0.0, False: 0.0}
    bars = []
    rounded = rounded_terms(item.terms, item.score)
    for (name, letter, pair), term, shown in zip(TERMS, item.terms, rounded, strict=True):
        start = ends[term >= 0]
        ends[term >= 0] += term
        size = abs(term) / width
        bars.append(
            {
                "name": name,
                "letter": letter,
                "pair": pair,
                "left": f"{100 * (min(start, start + term) - lowest) / width:.3f}",
                "width": f"{100 * size:.3f}",
                "label": letter if size > 0.07 else "",
                "shown": number(shown, signed=True),
            }
        )
    spoken = ", ".join(f"{bar['letter']} {bar['pair']} {bar['shown']}" for bar in bars)
    return {"bars": bars, "spoken": spoken, "zero": f"{100 * -lowest / width:.3f}"}


def rank_move(rank: int, learnt: int | None) -> dict[str, str] | None:
    """Return how a report moved against the ranking by the learnt weights."""
    if learnt is None:
        return None
    if learnt == 0:
        return {"way": "up", "title": "far below with the learnt weights", "text": "▲ new"}
    if learnt == rank:
        return {"way": "", "title": "the same rank with the learnt weights", "text": "= same"}
    way, arrow = ("up", "▲") if rank < learnt else ("down", "▼")
    title = f"rank {learnt} with the learnt weights"
    return {"way": way, "title": title, "text": f"{arrow} {abs(learnt - rank)}"}


def influence_swings(card: Card, most: float) -> list[dict[str, str]]:
    """Return the bars of what a report adds to the answer's probability; none if unknown."""
    swings = []
    for name, value in zip(("RAG", "MR-RAG"), card.influence or (), strict=False):
        size = 50 * min(1.0, abs(value) / most)
        swings.append(
            {
                "name": name,
                "side": "for" if value >= 0 else "against",
                "left": f"{50 if value >= 0 else 50 - size:.2f}",
                "width": f"{size:.2f}",
                "shown": number(value, signed=True),
            }
        )
    return swings


# The report's words


@dataclass(frozen=True)
class _Piece:
    """A run of a report's characters that looks alike throughout."""

    text: str
    heading: bool = False
    mark: tuple[str, str] | None = None
    tint: str | None = None


def report_html(report: str, question: str = "", tokens: Tokens | None = None) -> Markup:
    """Return a report with its headings set apart and the question's words marked.

    Mentions of a finding that the question names are marked by whether the report
    affirms, denies or doubts it. ``tokens`` tints the words by attention. A very long
    report is cut, and says so.
    """
    whole = tokens[0] if tokens else report
    shown = whole[:LONGEST_REPORT]
    pieces = _pieces(shown, _marks(shown, question), _tints(shown, tokens))
    return render("report.html", pieces=pieces, cut=len(whole) > LONGEST_REPORT)


_Mark = tuple[int, int, str, str]
_Tint = tuple[int, int, float]


def _marks(shown: str, question: str) -> list[_Mark]:
    marks: list[_Mark] = [
        (m.start, m.stop, m.stance, f"{m.finding}: {m.stance}")
        for m in mentions(shown, named(question))
    ]
    for start, stop in matched_words(question, shown):
        if not any(start < b and a < stop for a, b, _, _ in marks):
            marks.append((start, stop, "matched", "a word of the question"))
    return sorted(marks)


def _tints(shown: str, tokens: Tokens | None) -> list[_Tint]:
    if tokens is None:
        return []
    return [
        (start, stop, share)
        for (start, stop), share in zip(tokens[1], tokens[2], strict=True)
        if stop <= len(shown)
    ]


def _pieces(shown: str, marks: Sequence[_Mark], tints: Sequence[_Tint]) -> list[_Piece]:
    """Cut a report wherever anything begins or ends; each piece then has one look."""
    headings = [m.span() for m in _HEADING.finditer(shown)]
    runs = [(0, len(shown)), *headings, *(m[:2] for m in marks), *(t[:2] for t in tints)]
    inside = {place for a, b in headings for place in range(a + 1, b)}
    cuts = sorted({end for run in runs for end in run} - inside)
    pieces = []
    mark = tint = 0
    for start, stop in itertools.pairwise(cuts):
        piece = shown[start:stop]
        if any(a <= start < b for a, b in headings):
            pieces.append(_Piece(piece.strip(" :").capitalize(), heading=True))
            continue
        while tint < len(tints) and tints[tint][1] <= start:
            tint += 1
        while mark < len(marks) and marks[mark][1] <= start:
            mark += 1
        tinted = tint < len(tints) and tints[tint][0] <= start
        marked = mark < len(marks) and marks[mark][0] <= start
        pieces.append(
            _Piece(
                piece,
                mark=marks[mark][2:] if marked else None,
                tint=f"{100 * tints[tint][2]:.0f}" if tinted else None,
            )
        )
    return pieces


# Cards and lists


def _card(card: Card, question: str, scale: tuple[float, float], most: float) -> dict[str, Any]:
    """Return what the template shows of a card."""
    item = card.item
    cosines = (
        f"{letter} {number(value, digits=3)}" if not math.isnan(value) else f"{letter} absent"
        for (_, letter, _), value in zip(TERMS, item.cosines, strict=True)
    )
    return {
        "item": item,
        "id": item.document.id,
        "thumbnail": card.thumbnail,
        "moved": rank_move(item.rank, card.learnt_rank),
        "report": report_html(item.document.report, question, card.tokens),
        "pinned": card.pinned,
        "source": ", ".join(filter(None, (item.document.source, item.document.licence))),
        "terms": term_bars(item, *scale),
        "cosines": " · ".join(cosines),
        "percentile": None if math.isnan(card.percentile) else f"{card.percentile:.0f}",
        "word": card.word,
        "swings": influence_swings(card, most),
        "alone": card.alone,
        "meter": f"{100 * item.relevance:.1f}",
    }


def evidence(
    cards: Sequence[Card],
    question: str,
    weights: Weights,
    notes: Sequence[str],
    seconds: float,
    warnings: Mapping[str, str] | None = None,
    excluded: Sequence[str] = (),
) -> Markup:
    """Return all reports on one scale: the first few in full view, the rest one click away."""
    retrieved = [card.item for card in cards]
    lowest = min((sum(min(t, 0.0) for t in r.terms) for r in retrieved), default=0.0)
    highest = max((sum(max(t, 0.0) for t in r.terms) for r in retrieved), default=1.0)
    most = max([LEAST_INFLUENCE, *(abs(v) for card in cards for v in card.influence or ())])
    values = (weights.alpha, weights.beta, weights.gamma)
    return render(
        "evidence.html",
        cards=[_card(card, question, (lowest, highest), most) for card in cards],
        legend=[
            {"name": name, "letter": letter, "pair": pair, "weight": number(value, digits=2)}
            for (name, letter, pair), value in zip(TERMS, values, strict=True)
        ],
        at_once=SHOWN_AT_ONCE,
        seconds=f"{seconds:.2f}",
        warnings=titled(warnings or {}),
        excluded=excluded,
        notes=notes,
    )


def titled(warnings: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return warnings as (kind, title, sentence)."""
    return [(kind, WARNINGS[kind], sentence) for kind, sentence in warnings.items()]


def meaningless(warnings: Mapping[str, str]) -> Markup:
    """Return the warnings that belong above the answers too: that they mean nothing."""
    found = {kind: sentence for kind, sentence in warnings.items() if kind in MEANINGLESS}
    return render("warnings.html", warnings=titled(found))


def note_list(notes: Sequence[str]) -> Markup:
    """Return notes on how a result was obtained."""
    return render("notes.html", notes=notes)
