"""The arena's answers to one case as one table, which the browser sorts.

Values go in, markup comes out; templates/arena.html says how it looks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from mrrag.report import plots
from mrrag.report.answer_cards import PROBABILITY_LABEL
from mrrag.report.cards import meaningless
from mrrag.report.heat_tables import heat_tables
from mrrag.report.templating import render
from mrrag.study.arena import ARENA
from mrrag.study.arena_answers import ArenaAnswer
from mrrag.types import AttentionTrace, FloatArray

COLUMNS = (
    ("method", "Method", "left"),
    ("answer", "Answer", "left"),
    ("p", "P(yes)", ""),
    ("change", "Change", ""),
    ("seconds", "Seconds", ""),
)
CAPTION = (
    f"P(yes): {PROBABILITY_LABEL}. Change: against plain RAG. Seconds: from the question to the "
    "last word, after what the answers above have read. The headings sort."
)
WHAT_MAPS_SHOW = (
    "Where the tokens look in which the method acts, averaged over heads. Numbers are reports by "
    "rank; ▶ marks the layers in which it acts."
)


def arena_table(
    answers: Sequence[ArenaAnswer],
    reports: int,
    warnings: Mapping[str, str] | None = None,
    *,
    maps: bool = True,
) -> Markup:
    """Return the table of the answers so far, in their order.

    Parameters
    ----------
    reports
        How many the case has.
    warnings
        Of the case's evidence: some mean that the answers mean nothing.
    maps
        Whether rows hold their attention; while answers come it would be sent again with each.
    """
    plain = next((a.p_yes for a in answers if a.method == "rag"), math.nan)
    return render(
        "arena.html",
        doubts=meaningless(warnings or {}),
        outside="outside" in (warnings or {}),
        caption=CAPTION,
        columns=COLUMNS,
        rows=[_row(answer, plain, reports, maps=maps) for answer in answers],
        what_maps_show=WHAT_MAPS_SHOW,
    )


def _row(answer: ArenaAnswer, plain: float, reports: int, *, maps: bool) -> dict[str, Any]:
    method = ARENA[answer.method]
    drawn: Markup | str = ""
    if maps and answer.before is not None and answer.after is not None:
        drawn = _maps(answer.before, answer.after, answer.ranks)
    return {
        "name": answer.method,
        "title": method.title,
        "does": method.does,
        "read": _reports_read(answer.ranks, reports),
        "text": answer.text,
        "p_yes": answer.p_yes,
        "change": math.nan if answer.method == "rag" else answer.p_yes - plain,
        "neither": answer.p_yes + answer.p_no < 0.5,
        "seconds": answer.seconds,
        "maps": drawn,
    }


def _reports_read(ranks: Sequence[int], reports: int) -> str:
    """Return which reports a method read, in words; empty for none, or for all in order."""
    if not ranks or list(ranks) == list(range(1, reports + 1)):
        return ""
    if len(ranks) == 1:
        return f"report {ranks[0]}"
    return f"reports {', '.join(map(str, ranks))}"


def _maps(before: AttentionTrace, after: AttentionTrace, ranks: Sequence[int]) -> Markup:
    mean: list[FloatArray] = [trace.mass_LHS.mean(axis=1) for trace in (before, after)]
    columns = tuple(_column(name, ranks) for name in before.names)
    order = np.argsort([_place(column) for column in columns], kind="stable")
    maps = plots.Maps(
        tuple(columns[i] for i in order), mean[0][:, order], mean[1][:, order], after.layers
    )
    return heat_tables(maps, ("", "With the method", "Difference from plain attention"))


def _column(name: str, ranks: Sequence[int]) -> str:
    """Return a span's heading: a report's is its rank in the case, wherever it stood."""
    return str(ranks[int(name[7:]) - 1]) if name.startswith("report ") else name


def _place(column: str) -> int:
    """Return where a column stands: the image, then reports by rank, then the rest."""
    if column.isdigit():
        return int(column)
    return 0 if column in ("image", "first question") else 10_000
