"""P(yes) of MR-RAG as its strength or its weights move: two figures, and the same in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from mrrag.report.cards import TERMS
from mrrag.report.templating import number, render
from mrrag.study.arena_answers import Curve

QUIET = "#7a8b99"
LETTERS = {name: letter for name, letter, _ in TERMS}
# Colour, dash and mark of each weight: no two are told apart by colour alone.
LOOKS = {
    "alpha": ("#0072b2", "solid", "circle"),
    "beta": ("#e69f00", "dash", "square"),
    "gamma": ("#009e73", "dot", "diamond"),
}


def strength_figure(curve: Curve) -> go.Figure:
    """Plot P(yes) by IFA's strength, with the present one marked."""
    figure = go.Figure()
    figure.add_scatter(
        x=list(curve.at), y=list(curve.p_yes), mode="lines+markers", name="MR-RAG",
        line={"color": "#d55e00", "width": 2}, marker={"symbol": "square", "size": 6},
        hovertemplate="strength %{x:.2f}: P(yes) %{y:.3f}<extra></extra>",
    )  # fmt: skip
    _mark_present(figure, curve.present, "present")
    figure.update_layout(
        **_layout("P(yes) by IFA’s strength", "strength; 0 is plain RAG"), showlegend=False
    )
    return figure


def weight_figure(curves: Sequence[Curve]) -> go.Figure:
    """Plot P(yes) by the change of each weight, with the present ones in the middle."""
    figure = go.Figure()
    for curve in curves:
        colour, dash, symbol = LOOKS[curve.setting]
        letter = LETTERS[curve.setting]
        figure.add_scatter(
            x=[value - curve.present for value in curve.at], y=list(curve.p_yes),
            name=f"{letter} (now {number(curve.present, digits=2)})", mode="lines+markers",
            line={"color": colour, "width": 2, "dash": dash},
            marker={"symbol": symbol, "size": 7},
            customdata=list(curve.at),
            hovertemplate=f"{letter} %{{customdata:.2f}}: P(yes) %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    _mark_present(figure, 0.0, "present")
    legend = {
        "orientation": "h", "x": 0, "y": -0.24, "yanchor": "top", "font": {"color": QUIET},
    }  # fmt: skip
    figure.update_layout(
        **_layout("P(yes) as one weight changes", "change of the weight"), legend=legend
    )
    return figure


def _mark_present(figure: go.Figure, at: float, label: str) -> None:
    figure.add_hline(y=0.5, line={"color": QUIET, "width": 1, "dash": "dash"})
    figure.add_vline(
        x=at, line={"color": QUIET, "width": 1.5, "dash": "dot"},
        annotation={"text": label, "font": {"size": 11, "color": QUIET}, "yanchor": "bottom"},
        annotation_position="top",
    )  # fmt: skip


def _layout(title: str, along: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "x": 0, "xanchor": "left", "font": {"size": 13}},
        "height": 280,
        "margin": {"l": 44, "r": 8, "t": 48, "b": 70},
        "font": {"family": "IBM Plex Sans, system-ui, sans-serif", "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "dragmode": False,
        "xaxis": {
            "title": {"text": along, "font": {"size": 11}},
            "fixedrange": True, "showgrid": False, "zeroline": False,
        },
        "yaxis": {
            "range": [-0.02, 1.02], "fixedrange": True, "zeroline": False,
            "gridcolor": "rgba(122,139,153,.25)",
        },
    }  # fmt: skip


def curve_text(curves: Sequence[Curve]) -> Markup:
    """Return what the curves show in sentences, and every value in tables."""
    return render(
        "curves.html",
        sentences=[sentence(curve) for curve in curves],
        tables=[
            (
                _name(curve),
                [
                    (number(at, digits=2), p, at == curve.present)
                    for at, p in zip(curve.at, curve.p_yes, strict=True)
                ],
            )
            for curve in curves
        ],
    )


def sentence(curve: Curve) -> str:
    """Return where P(yes) stands now, between which values it moves, and where it crosses ½."""
    now = curve.p_yes[curve.at.index(curve.present)]
    low, high = min(curve.p_yes), max(curve.p_yes)
    present, first, last = (
        number(value, digits=2) for value in (curve.present, curve.at[0], curve.at[-1])
    )
    said = (
        f"{_name(curve)}: P(yes) is {number(now)} at the present {present}, and between "
        f"{number(low)} and {number(high)} from {first} to {last}."
    )
    points = list(zip(curve.at, curve.p_yes, strict=True))
    crossed = [
        f"{number(a, digits=2)} and {number(b, digits=2)}"
        for (a, p), (b, q) in pairwise(points)
        if (p >= 0.5) != (q >= 0.5)
    ]
    if crossed:
        return f"{said} It crosses one half between {', and between '.join(crossed)}."
    return f"{said} It stays {'above' if now >= 0.5 else 'below'} one half."


def _name(curve: Curve) -> str:
    return "IFA’s strength" if curve.setting == "strength" else LETTERS[curve.setting]
