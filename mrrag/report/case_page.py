"""A finished case as one HTML file that needs nothing else: figures alive, offline.

The same cards and figures as the page's, and the same values as the JSON export, which
it holds. Pictures are in it only where they were asked for. It knows nothing of gradio.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mrrag.case import Case
from mrrag.report import cards, plots
from mrrag.report.cards import STYLE
from mrrag.report.pictures import data_url, file_url, shrink
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.types import Image

PICTURE_PX = 1024
# The page's own controls have nothing to act on here.
OWN_STYLE = """
body { margin: 0; background: var(--sunk); font-family: system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 16px; display: grid; gap: 14px; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: 14px 16px; min-width: 0; }
.deeds { display: none !important; }
.enlarge { cursor: default; pointer-events: none; }
.picture { max-width: min(100%, 512px); background: #000; }
.facts { display: grid; grid-template-columns: auto 1fr; gap: 2px 14px; font-size: 12.5px; }
.facts dt { color: var(--quiet); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
#maps { margin: 10px 0; }
"""


def case_to_html(
    case: Case,
    exported: Mapping[str, Any],
    pixels: tuple[Image, KnowledgeBase] | None = None,
) -> str:
    """The case as a page.

    Parameters
    ----------
    exported
        What :func:`mrrag.report.export.case_to_json` made of it; it is put into the page.
    pixels
        The case's picture and where the reports' pictures are; None leaves them out.
    """
    title = cards.text(f"MR-RAG: {case.question}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE.read_text(encoding='utf-8')}{OWN_STYLE}</style></head>"
        f'<body class="ours"><main>{_head(exported, pixels)}{_evidence(case, pixels)}'
        f"{_answers(case)}{_attention(case)}{_facts(exported)}</main>"
        f'<script type="application/json" id="case">{_embedded(exported)}</script></body></html>'
    )


def _embedded(exported: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element that holds it."""
    return json.dumps(exported, ensure_ascii=True).replace("<", "\\u003c").replace("&", "\\u0026")


def _head(exported: Mapping[str, Any], pixels: tuple[Image, KnowledgeBase] | None) -> str:
    picture = ""
    if pixels is not None:
        url = data_url(shrink(pixels[0].display, PICTURE_PX), lossless=False)
        picture = f'<img class="picture" src="{url}" alt="The picture that was asked about">'
    return (
        f'<section><h2>MR-RAG, one case</h2><p class="warning"><b>{cards.DISCLAIMER}</b></p>'
        f'<p class="asked"><span class="small">Question</span> '
        f"{cards.text(exported['question'])}</p>{picture}</section>"
    )


def _evidence(case: Case, pixels: tuple[Image, KnowledgeBase] | None) -> str:
    influence = case.influence
    items = []
    for n, item in enumerate(case.retrieved):
        thumbnail = ""
        if pixels is not None:
            (position,) = pixels[1].positions(ids={item.document.id})
            thumbnail = file_url(pixels[1].thumbnail(position))
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
    assert case.settings.weights is not None
    drawn = cards.evidence(
        items,
        case.question,
        case.settings.weights,
        (),
        case.seconds.get("evidence", 0.0),
        case.warnings,
        case.settings.excluded,
    )
    return f"<section><h2>Evidence</h2>{drawn}</section>"


def _answers(case: Case) -> str:
    columns = cards.answer_columns(
        case.question, {}, case.answers, case.notes, warnings=case.warnings
    )
    return f"<section><h2>Answers</h2>{columns}</section>"


def _attention(case: Case) -> str:
    if case.before is None or case.after is None:
        return ""
    maps = plots.attention_maps(case.before, case.after, plots.REPORTS)
    if maps is None:
        return ""
    middle = case.after.layers[len(case.after.layers) // 2] if case.after.layers else 0
    drawn = "".join(f'<div class="map">{_figure(figure)}</div>' for figure in plots.heatmaps(maps))
    lines = _figure(plots.report_lines(case.before, case.after, middle))
    return (
        f"<section><h2>Attention</h2>{cards.attention_intro()}"
        f"<script>{get_plotlyjs()}</script>"
        f'<div id="maps">{drawn}</div>{cards.extremes(plots.summary(maps))}'
        f'<div class="map">{lines}</div></section>'
    )


def _figure(figure: go.Figure) -> str:
    drawn: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displayModeBar": False}
    )
    return drawn


def _facts(exported: Mapping[str, Any]) -> str:
    """Input, settings and versions, as they are in the JSON."""
    facts = {
        **{f"input {name}": value for name, value in (exported["input"] or {}).items()},
        **exported["settings"],
        **exported["versions"],
    }
    listed = "".join(
        f"<dt>{cards.text(name)}</dt><dd>{cards.text(value)}</dd>" for name, value in facts.items()
    )
    return f'<section><h2>How it came about</h2><dl class="facts">{listed}</dl></section>'
