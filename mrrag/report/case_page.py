"""A finished case as one HTML page that needs no network, and as a notebook shows it.

The same cards and figures as the page's, and the same values as the JSON export, which the
page holds. Pictures are included only where they were asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from mrrag.case import Case
from mrrag.report import answer_cards, cards, plots
from mrrag.report.heat_tables import heat_tables
from mrrag.report.pictures import data_url, file_url, shrink
from mrrag.report.templating import (
    embedded,
    figure_html,
    plotly_script,
    render,
    style,
)
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.types import Image, Weights

PICTURE_PX = 1024
Pixels = tuple[Image, KnowledgeBase]


def case_to_html(case: Case, exported: Mapping[str, Any], pixels: Pixels | None = None) -> str:
    """Return the case as a page with live figures.

    Parameters
    ----------
    exported
        From :func:`mrrag.report.export.case_to_json`; it is embedded in the page.
    pixels
        The case's picture, and the knowledge base that has the reports' pictures; None leaves
        pictures out.
    """
    attention = _figures(case)
    page = render(
        "case.html",
        **_contents(case, exported, pixels),
        attention=attention,
        plotly=plotly_script() if attention else "",
        facts=_facts(exported),
        embedded=embedded(exported),
        embedded_id="case",
    )
    return str(page)


def case_fragment(case: Case, exported: Mapping[str, Any], pixels: Pixels | None = None) -> str:
    """Return the case as a notebook shows it: in a frame of its own, without any script.

    The parameters are those of :func:`case_to_html`.
    """
    page = render(
        "case.html",
        **_contents(case, exported, pixels),
        attention=_tables(case),
        plotly="",
        facts=(),
        embedded="",
        embedded_id="",
    )
    return str(render("notebook.html", title=f"MR-RAG: {case.question}", page=str(page)))


def _contents(case: Case, exported: Mapping[str, Any], pixels: Pixels | None) -> dict[str, Any]:
    """Return what both forms show in the same way."""
    picture = ""
    if pixels is not None:
        picture = data_url(shrink(pixels[0].display, PICTURE_PX), lossless=False)
    return {
        "title": f"MR-RAG: {case.question}",
        "style": style("base", "case", "offline"),
        "ours": True,
        "disclaimer": cards.DISCLAIMER,
        "question": exported["question"],
        "picture": picture,
        "evidence": _evidence(case, pixels),
        "answers": answer_cards.answer_columns(
            case.question,
            {},
            case.answers,
            case.notes,
            warnings=case.warnings,
            picture=answer_cards.picture_table(case.picture, pixels is not None)
            if case.picture
            else "",
            votes=case.votes,
        ),
        "intro": answer_cards.attention_intro(),
    }


def _evidence(case: Case, pixels: Pixels | None) -> Markup:
    influence = case.influence
    items = []
    for n, item in enumerate(case.retrieved):
        thumbnail = ""
        if pixels is not None:
            thumbnail = file_url(pixels[1].thumbnail(item.number))
        items.append(
            cards.Card(
                item=item,
                thumbnail=thumbnail,
                percentile=case.percentiles[n],
                pinned=item.document.id in case.settings.pinned,
                word=influence.word if influence else "",
                influence=(influence.before[n], influence.after[n]) if influence else None,
            )
        )
    return cards.evidence(
        items,
        case.question,
        case.settings.weights or Weights(0.0, 0.0, 0.0),
        (),
        case.seconds.get("evidence", 0.0),
        case.warnings,
        case.settings.excluded,
    )


def _figures(case: Case) -> Markup | str:
    """Return the attention on each report as live figures; empty where there is none."""
    if case.before is None or case.after is None:
        return ""
    maps = plots.attention_maps(case.before, case.after, plots.REPORTS)
    if maps is None:
        return ""
    middle = case.after.layers[len(case.after.layers) // 2] if case.after.layers else 0
    return render(
        "plots.html",
        maps=[figure_html(figure) for figure in plots.heatmaps(maps)],
        extremes=answer_cards.extremes(plots.summary(maps)),
        lines=figure_html(plots.report_lines(case.before, case.after, middle)),
    )


def _tables(case: Case) -> Markup | str:
    """Return the attention on each report as tables; empty where there is none."""
    if case.before is None or case.after is None:
        return ""
    maps = plots.attention_maps(case.before, case.after, plots.REPORTS)
    if maps is None:
        return ""
    summary = answer_cards.extremes(plots.summary(maps))
    return heat_tables(maps, ("Before: RAG", "After: MR-RAG", "Difference"), summary)


def _facts(exported: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return input, settings and versions, as they are in the JSON."""
    given = {f"input {name}": value for name, value in (exported["input"] or {}).items()}
    return list((given | exported["settings"] | exported["versions"]).items())
