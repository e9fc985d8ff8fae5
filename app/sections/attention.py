"""The attention section: heatmaps and lines by layer, and one layer over the picture.

Drawn from the traces of a finished case, before and after IFA, on common scales.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from app.about import About
from app.sections import viewer
from app.sections.settings import digits, whole
from app.sections.visit import NO_CASE, CaseState, Update, refuse
from mrrag.errors import SettingsError
from mrrag.report import cards, plots
from mrrag.report.pictures import data_url, heat_pixels, overlay_html, patches_on_picture, shrink
from mrrag.types import AttentionTrace, FloatArray

OVERLAY_PX = 512
MEAN_OF_HEADS = "Mean"
AS_IT_RAN, SAME_STATES = STATES = ("As it ran", "Counterfactual: on RAG’s own states")


def attention(shown: CaseState, about: About) -> Update:
    """The attention section of a finished case, or none where the model was not asked."""
    result = shown.result
    if result.before is None or result.after is None:
        return {"attention": cards.empty("The model was not asked, so there is no attention.")}
    critical = result.after.layers or about.critical
    layer = critical[len(critical) // 2] if critical else about.layers // 2
    return (
        {
            "attention": "",
            "layer": layer,
            "view": plots.REPORTS,
            "head": MEAN_OF_HEADS,
            "states": AS_IT_RAN,
        }
        | heatmaps(shown, plots.REPORTS, MEAN_OF_HEADS, layer, AS_IT_RAN)
        | overlay(shown, layer)
    )


def heads(about: About) -> list[str]:
    """The choices of the heads' control."""
    return [MEAN_OF_HEADS, *map(str, range(about.heads))]


def _head(trace: AttentionTrace, head: object) -> int | None:
    if head == MEAN_OF_HEADS:
        return None
    return whole("The head", digits(head), 0, trace.mass_LHS.shape[1] - 1)


def heatmaps(shown: object, view: object, head: object, layer: object, states: object) -> Update:
    """The three heatmaps of a view, and the lines of both runs.

    ``states`` says whether the second map is MR-RAG as it ran, or IFA's transform on
    plain RAG's own states.
    """
    if (
        not isinstance(shown, CaseState)
        or shown.result.before is None
        or shown.result.after is None
    ):
        return refuse(NO_CASE)
    if view not in plots.VIEWS:
        return refuse("That view does not exist. Choose one of those shown.")
    if states not in STATES:
        return refuse("Those states do not exist. Choose one of those shown.")
    traces = (shown.result.before, shown.result.after)
    if states == SAME_STATES:
        if shown.result.same_state is None:
            return refuse("That map is still on its way. Try again in a moment.")
        traces = (shown.result.before, shown.result.same_state)
    try:
        wanted = _head(traces[0], head)
    except SettingsError as error:
        return refuse(error)
    maps = plots.attention_maps(*traces, str(view), wanted)
    if maps is None:
        return refuse("This case has no reports to show attention on.")
    title = "After: MR-RAG" if states == AS_IT_RAN else "IFA on RAG’s own states"
    before, after, difference = plots.heatmaps(maps, title)
    return {
        "before": before,
        "after": after,
        "difference": difference,
        "reading": cards.extremes(plots.summary(maps)),
    } | lines(shown, head, layer)


def lines(shown: object, head: object, layer: object) -> Update:
    """Reports→Question mass by layer, with the chosen layer marked."""
    if (
        not isinstance(shown, CaseState)
        or shown.result.before is None
        or shown.result.after is None
    ):
        return refuse(NO_CASE)
    traces = (shown.result.before, shown.result.after)
    try:
        marked = whole("The layer", layer, 0, len(traces[0].keys_LX) - 1)
        return {"lines": plots.report_lines(*traces, marked, _head(traces[0], head))}
    except SettingsError as error:
        return refuse(error)


def overlay(shown: object, layer: object) -> Update:
    """A layer's question→image attention over the X-ray, before and after."""
    if (
        not isinstance(shown, CaseState)
        or shown.result.before is None
        or shown.result.after is None
    ):
        return refuse(NO_CASE)
    traces = (shown.result.before, shown.result.after)
    try:
        wanted = whole("The layer", layer, 0, len(traces[0].keys_LX) - 1)
    except SettingsError as error:
        return refuse(error)
    shape = shown.image.display.shape[:2]
    heats = [patch_attention(trace, wanted) for trace in traces]
    if any(heat.size == 0 for heat in heats):
        return refuse("This case has no picture to show attention on.")
    seen = patches_on_picture(traces[0].grid, *shape)
    top = float(max(heat[seen].max() for heat in heats))
    film = data_url(shrink(shown.image.display, OVERLAY_PX), lossless=False)
    before, after = (
        overlay_html(film, shape, heat_pixels(heat, top), f"X-ray with attention {when} IFA")
        for heat, when in zip(heats, ("before", "after"), strict=True)
    )
    return {
        "heat": viewer.heat(heats[0], heats[1], wanted, shape),
        "overlays": cards.overlays(
            wanted,
            wanted in traces[1].layers,
            before,
            after,
            shares=_pair(float(heat.sum()) for heat in heats),
            padding=_pair(float(heat[~seen].sum()) for heat in heats),
            top=top,
        ),
    }


def patch_attention(trace: AttentionTrace, layer: int) -> FloatArray:
    """Attention on each patch in one layer, float32 [rows, columns]; [0, 0] without image."""
    spans = [span for span in trace.spans if span.name == "image"]
    if not spans:
        return np.zeros((0, 0), np.float32)
    values = trace.keys_LX[layer, spans[0].start : spans[0].stop]
    rows, columns = trace.grid
    # A tower that keeps its class token puts it before the patches.
    return values[len(values) - rows * columns :].reshape(rows, columns)


def _pair(values: Iterable[float]) -> tuple[float, float]:
    first, second = values
    return first, second
