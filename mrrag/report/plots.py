"""Plotly heatmaps of where the question's tokens read from, before and after IFA.

It reads attention traces and returns figures; it knows nothing of gradio or of a case.
Text colours of the axes are left to the style sheet, which knows the theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from mrrag.report.pictures import CIVIDIS
from mrrag.report.templating import number
from mrrag.types import AttentionTrace, FloatArray

REPORTS, WHOLE_PROMPT = "Each report", "Whole prompt"
VIEWS = (REPORTS, WHOLE_PROMPT)
Scale = Sequence[tuple[float, str]]  # places from 0 to 1, with their colours

SEQUENTIAL: Scale = [(i / (len(CIVIDIS) - 1), colour) for i, colour in enumerate(CIVIDIS)]
# Blue and orange differ to every kind of colour vision; the sign is written in the cell too.
DIVERGING: Scale = [
    (0.0, "#0b4f8a"), (0.25, "#6aa5d6"), (0.5, "#f1f1ee"), (0.75, "#eda35a"), (1.0, "#b04a00"),
]  # fmt: skip
MOST_LABELLED_CELLS = 130


@dataclass(frozen=True)
class Maps:
    """Attention mass by layer and column, averaged over heads: float32 [L, columns]."""

    columns: tuple[str, ...]
    before: FloatArray
    after: FloatArray
    critical: tuple[int, ...]

    @property
    def difference(self) -> FloatArray:
        """After − before."""
        return self.after - self.before

    @property
    def top(self) -> float:
        """The upper end of the scale that before and after share; the lower one is 0."""
        return float(max(self.before.max(initial=0.0), self.after.max(initial=0.0))) or 1.0

    @property
    def swing(self) -> float:
        """The difference's scale runs from −swing to +swing, so that no change is its middle."""
        return max(0.01, float(np.abs(self.difference).max(initial=0.0)))


def attention_maps(
    before: AttentionTrace, after: AttentionTrace, view: str, head: int | None = None
) -> Maps | None:
    """Return Reports→Question mass per report, or the mass on every kind of token.

    Of one head, or of their mean. None where there is no report to show.
    """
    reports = [i for i, name in enumerate(before.names) if name.startswith("report ")]
    mass = [_of_heads(trace, head) for trace in (before, after)]
    if view == REPORTS:
        if not reports:
            return None
        names = tuple(before.names[i].removeprefix("report ") for i in reports)
        return Maps(names, mass[0][:, reports], mass[1][:, reports], after.layers)
    others = [i for i in range(len(before.names)) if i not in reports]
    # The image first and the reports after it, as in the prompt.
    names = tuple(before.names[i] for i in others)
    position = names.index("image") + 1 if "image" in names else 0
    columns = [m[:, others] for m in mass]
    if reports:
        totals = [m[:, reports].sum(axis=1) for m in mass]
        columns = [np.insert(c, position, t, axis=1) for c, t in zip(columns, totals, strict=True)]
        names = (*names[:position], "reports", *names[position:])
    return Maps(names, columns[0], columns[1], after.layers)


def _of_heads(trace: AttentionTrace, head: int | None) -> FloatArray:
    """Mass by layer and name, float32 [L, S]: of one head, or the mean of all."""
    mean_LS: FloatArray = trace.mass_LHS.mean(axis=1)
    return mean_LS if head is None else trace.mass_LHS[:, head]


def report_lines(
    before: AttentionTrace, after: AttentionTrace, layer: int, head: int | None = None
) -> go.Figure:
    """Plot Reports→Question mass by layer for both runs; critical layers are shaded."""
    reports = [i for i, name in enumerate(before.names) if name.startswith("report ")]
    runs = (
        ("RAG", before, "dash", "circle-open", "#7a8b99"),
        ("MR-RAG", after, "solid", "square", "#d55e00"),
    )
    lines = []
    for name, trace, dash, symbol, colour in runs:
        mass = _of_heads(trace, head)[:, reports].sum(axis=1)
        lines.append({
            "type": "scatter", "x": list(range(len(mass))), "y": mass.tolist(), "name": name,
            "mode": "lines+markers",
            "line": {"dash": dash, "color": colour, "width": 2},
            "marker": {"symbol": symbol, "size": 8},
            "hovertemplate": f"layer %{{x}}, {name}: %{{y:.3f}}<extra></extra>",
        })  # fmt: skip
    whole = {"xref": "x", "yref": "y domain", "y0": 0, "y1": 1}
    shaded = [
        {
            "type": "rect", "x0": critical - 0.5, "x1": critical + 0.5, "fillcolor": "#d55e00",
            "opacity": 0.1, "line": {"width": 0}, **whole,
        }
        for critical in after.layers
    ]  # fmt: skip
    chosen = {
        "type": "line", "x0": layer, "x1": layer,
        "line": {"color": "#7a8b99", "width": 1.5, "dash": "dot"}, **whole,
    }  # fmt: skip
    # At once: plotly takes six times as long to add one property after the other.
    return go.Figure(lines, _lines_layout(len(before.mass_LHS)) | {"shapes": [*shaded, chosen]})


def _lines_layout(layers: int) -> dict[str, Any]:
    return {
        "title": {
            "text": "Read from all reports together, by layer", "x": 0, "xanchor": "left",
            "font": {"size": 13},
        },
        "height": 250,
        "margin": {"l": 44, "r": 8, "t": 34, "b": 62},
        "font": {"family": "IBM Plex Sans, system-ui, sans-serif", "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "dragmode": False,
        "legend": {
            "orientation": "h", "x": 0, "y": -0.24, "yanchor": "top",
            "font": {"color": "#7a8b99"},
        },
        "xaxis": {
            "title": {"text": "layer", "font": {"size": 11}}, "fixedrange": True,
            "dtick": 1 if layers <= 16 else 4, "showgrid": False, "zeroline": False,
        },
        "yaxis": {
            "rangemode": "tozero", "fixedrange": True, "gridcolor": "rgba(122,139,153,.25)",
            "zeroline": False,
        },
    }  # fmt: skip


def layer_labels(layers: int, critical: Sequence[int]) -> list[str]:
    """Return layer numbers from 0, with a mark where IFA acts."""
    return [f"▶ {layer}" if layer in critical else str(layer) for layer in range(layers)]


def cell_colours(
    values_LX: FloatArray, limits: tuple[float, float], scale: Scale
) -> tuple[list[list[str]], list[list[str]]]:
    """Return the ground of each cell, and black or white ink, whichever contrasts more."""
    low, high = limits
    share_LX = np.clip((values_LX - low) / (high - low), 0.0, 1.0)
    places = [place for place, _ in scale]
    anchors = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for _, c in scale])
    colours = np.stack([np.interp(share_LX, places, anchors[:, i]) for i in range(3)], axis=-1)
    # Relative luminance and contrast as WCAG 2.2 defines them.
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance_LX = linear @ np.array([0.2126, 0.7152, 0.0722])
    light_LX = 1.05 / (luminance_LX + 0.05) > (luminance_LX + 0.05) / 0.05
    bytes_LX3 = np.rint(255 * colours).astype(int).tolist()
    grounds = [["#{:02x}{:02x}{:02x}".format(*cell) for cell in row] for row in bytes_LX3]
    return grounds, np.where(light_LX, "#ffffff", "#000000").tolist()


def cell_labels(
    values_LX: FloatArray, limits: tuple[float, float], scale: Scale, *, signed: bool
) -> list[dict[str, Any]]:
    """Return the values as traces of text, in the ink that contrasts more with the cell."""
    inks = np.array(cell_colours(values_LX, limits, scale)[1])
    traces = []
    for colour in ("#ffffff", "#000000"):
        layer, column = np.nonzero(inks == colour)
        labels = [number(float(v), signed=signed, digits=2) for v in values_LX[inks == colour]]
        traces.append(
            {
                "type": "scatter",
                "x": column.tolist(),
                "y": layer.tolist(),
                "mode": "text",
                "text": labels,
                "textfont": {"size": 10, "color": colour},
                "hoverinfo": "skip",
            }
        )
    return traces


def heatmap(
    values_LX: FloatArray,
    columns: Sequence[str],
    critical: Sequence[int],
    *,
    title: str,
    limits: tuple[float, float],
    scale: Scale,
    signed: bool = False,
) -> go.Figure:
    """Draw one heatmap, layers × columns; layer 0 is at the top."""
    layers, count = values_LX.shape
    form = "+.3f" if signed else ".3f"
    kind = "report " if columns[0].isdigit() else ""
    data: list[dict[str, Any]] = [
        {
            "type": "heatmap",
            "z": values_LX.tolist(),
            "x": list(range(count)),
            "y": list(range(layers)),
            "zmin": limits[0],
            "zmax": limits[1],
            "colorscale": scale,
            "xgap": 1,
            "ygap": 1,
            "customdata": [[kind + name for name in columns]] * layers,
            "hovertemplate": f"layer %{{y}}, %{{customdata}}: %{{z:{form}}}<extra></extra>",
            "colorbar": {
                "orientation": "h",
                "y": 0,
                "yanchor": "bottom",
                "yref": "container",
                "thickness": 8,
                "len": 0.9,
                "outlinewidth": 0,
                "tickformat": form.replace("3", "2"),
                "nticks": 5,
                "tickfont": {"size": 11},
            },
        }
    ]
    if layers * count <= MOST_LABELLED_CELLS:
        data += cell_labels(values_LX, limits, scale, signed=signed)
    framed = [
        {
            "type": "rect",
            "x0": -0.5, "x1": count - 0.5, "y0": layer - 0.5, "y1": layer + 0.5,
            "line": {"width": 2, "color": "#d55e00"},
        }
        for layer in critical
    ]  # fmt: skip
    return go.Figure(data, _map_layout(title, columns, layers, critical, kind) | {"shapes": framed})


def _map_layout(
    title: str, columns: Sequence[str], layers: int, critical: Sequence[int], kind: str
) -> dict[str, Any]:
    count = len(columns)
    step = max(1, layers // 16)
    shown = [y for y in range(layers) if y % step == 0 or y in critical]
    labels = layer_labels(layers, critical)
    return {
        "title": {"text": title, "x": 0, "xanchor": "left", "font": {"size": 13}},
        "height": int(118 + layers * (26 if layers <= 12 else 13)),
        "margin": {"l": 44, "r": 8, "t": 34, "b": 74},
        "font": {"family": "IBM Plex Sans, system-ui, sans-serif", "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "dragmode": False,
        "showlegend": False,
        "xaxis": {
            "tickvals": list(range(count)),
            "ticktext": list(columns),
            "title": {
                "text": "report, by rank" if kind else "read from",
                "standoff": 4,
                "font": {"size": 11},
            },
            "fixedrange": True,
            "range": [-0.5, count - 0.5],
            "showgrid": False,
            "zeroline": False,
            "tickangle": 0,
        },
        "yaxis": {
            "tickvals": shown,
            "ticktext": [labels[y] for y in shown],
            "title": {"text": "layer", "standoff": 2, "font": {"size": 11}},
            "ticklabelstandoff": 4,
            "fixedrange": True,
            "range": [layers - 0.5, -0.5],
            "showgrid": False,
            "zeroline": False,
        },
    }


def heatmaps(maps: Maps, after: str = "After: MR-RAG") -> tuple[go.Figure, go.Figure, go.Figure]:
    """Draw before and after on one scale from 0, and the difference on one centred at 0."""
    shared = (0.0, maps.top)
    return (
        heatmap(maps.before, maps.columns, maps.critical, title="Before: RAG",
                limits=shared, scale=SEQUENTIAL),
        heatmap(maps.after, maps.columns, maps.critical, title=after,
                limits=shared, scale=SEQUENTIAL),
        heatmap(maps.difference, maps.columns, maps.critical, title="Difference: after − before",
                limits=(-maps.swing, maps.swing), scale=DIVERGING, signed=True),
    )  # fmt: skip


def summary(maps: Maps) -> str:
    """Return the most read cell before IFA and the largest change, in words."""

    def place(values_LX: FloatArray) -> str:
        layer, column = np.unravel_index(np.abs(values_LX).argmax(), values_LX.shape)
        name = maps.columns[column]
        where = f"report {name}" if name.isdigit() else name
        return f"layer {layer} from {where} ({values_LX[layer, column]:+.3f})"

    first = place(maps.before).replace("(+", "(")
    if not np.abs(maps.difference).max(initial=0.0):
        return f"Before IFA, layer by layer, the most is read in {first}; IFA changed nothing."
    return f"Before IFA the most is read in {first}. IFA changes most in {place(maps.difference)}."
