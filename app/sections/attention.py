"""The attention section: heatmaps and lines by layer, and one layer over the picture.

Drawn from the traces of an answered case, before and after IFA, on common scales.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from app import frame
from app.about import About
from app.sections import viewer
from app.sections.settings import digits, whole
from app.sections.visit import NO_CASE, CaseState, Update, refuse
from mrrag.errors import SettingsError
from mrrag.report import answer_cards, plots
from mrrag.report.pictures import data_url, heat_pixels, overlay_html, patches_on_picture, shrink
from mrrag.types import AttentionTrace, FloatArray

OVERLAY_PX = 512
MEAN_OF_HEADS = "Mean"
AS_IT_RAN, SAME_STATES = STATES = ("As it ran", "Counterfactual: on RAG’s own states")


def attention(state: CaseState, about: About) -> Update:
    """Return the attention section of a case; a note where the model was not asked."""
    result = state.result
    if result.before is None or result.after is None:
        note = frame.empty("The model was not asked, so there is no attention.")
        return {"attention_note": note}
    critical = result.after.layers or about.critical
    layer = critical[len(critical) // 2] if critical else about.layers // 2
    chosen: Update = {
        "attention_note": "",
        "layer": layer,
        "view": plots.REPORTS,
        "head": MEAN_OF_HEADS,
        "states": AS_IT_RAN,
    }
    maps = heatmaps(state, plots.REPORTS, MEAN_OF_HEADS, layer, AS_IT_RAN)
    return chosen | maps | overlay(state, layer)


def heads(about: About) -> list[str]:
    """Return the options of the control of the heads."""
    return [MEAN_OF_HEADS, *map(str, range(about.heads))]


def heatmaps(state: object, view: object, head: object, layer: object, states: object) -> Update:
    """Return the three heatmaps of a view, and the lines of both runs.

    ``states`` says whether the second map is MR-RAG as it ran, or IFA's transform on
    plain RAG's own states.
    """
    if view not in plots.VIEWS:
        return refuse("That view does not exist. Choose one of those shown.")
    if states not in STATES:
        return refuse("Those states do not exist. Choose one of those shown.")
    try:
        case, before, after = _answered(state)
        number = _head(before, head)
        if states == SAME_STATES:
            after = _same_state(case)
    except SettingsError as error:
        return refuse(error)
    maps = plots.attention_maps(before, after, str(view), number)
    if maps is None:
        return refuse("This case has no reports to show attention on.")
    title = "After: MR-RAG" if states == AS_IT_RAN else "IFA on RAG’s own states"
    figures = plots.heatmaps(maps, title)
    drawn: Update = {
        "before": figures[0],
        "after": figures[1],
        "difference": figures[2],
        "extremes": answer_cards.extremes(plots.summary(maps)),
    }
    return drawn | lines(state, head, layer)


def lines(state: object, head: object, layer: object) -> Update:
    """Return the mass from question to reports by layer, with the chosen layer marked."""
    try:
        _, before, after = _answered(state)
        marked = whole("The layer", layer, 0, len(before.keys_LX) - 1)
        return {"lines": plots.report_lines(before, after, marked, _head(before, head))}
    except SettingsError as error:
        return refuse(error)


def overlay(state: object, layer: object) -> Update:
    """Return one layer's attention from question to image over the X-ray, before and after."""
    try:
        case, *traces = _answered(state)
        number = whole("The layer", layer, 0, len(traces[0].keys_LX) - 1)
    except SettingsError as error:
        return refuse(error)
    display = case.image.display
    rows, columns = display.shape[:2]
    heats = [patch_attention(trace, number) for trace in traces]
    if any(heat.size == 0 for heat in heats):
        return refuse("This case has no picture to show attention on.")
    padded = traces[0].padded
    seen = patches_on_picture(traces[0].grid, rows, columns, padded=padded)
    top = float(max(heat[seen].max() for heat in heats))
    film = data_url(shrink(display, OVERLAY_PX), lossless=False)
    before, after = (
        overlay_html(
            film,
            (rows, columns),
            heat_pixels(heat, top),
            f"X-ray with attention {when} IFA",
            padded=padded,
        )
        for heat, when in zip(heats, ("before", "after"), strict=True)
    )
    return {
        "heat": viewer.heat(heats[0], heats[1], number, (rows, columns), padded=padded),
        "overlays": answer_cards.overlays(
            number,
            number in traces[1].layers,
            before,
            after,
            shares=_pair(float(heat.sum()) for heat in heats),
            padding=_pair(float(heat[~seen].sum()) for heat in heats),
            top=top,
        ),
    }


def patch_attention(trace: AttentionTrace, layer: int) -> FloatArray:
    """Return the attention on each patch in one layer.

    Returns
    -------
    float32 [rows, columns]; [0, 0] without an image
    """
    spans = [span for span in trace.spans if span.name == "image"]
    if not spans:
        return np.zeros((0, 0), np.float32)
    values = trace.keys_LX[layer, spans[0].start : spans[0].stop]
    rows, columns = trace.grid
    # A tower that keeps its class token puts it before the patches.
    return values[len(values) - rows * columns :].reshape(rows, columns)


def _answered(state: object) -> tuple[CaseState, AttentionTrace, AttentionTrace]:
    """Return an answered case, and its attention before and after IFA.

    Raises
    ------
    SettingsError
        If there is no such case, or the model was not asked.
    """
    if isinstance(state, CaseState) and state.result.before and state.result.after:
        return state, state.result.before, state.result.after
    raise SettingsError(NO_CASE)


def _same_state(state: CaseState) -> AttentionTrace:
    """Return IFA's transform on plain RAG's own states.

    Raises
    ------
    SettingsError
        If it has not been computed yet.
    """
    if state.result.same_state is None:
        raise SettingsError("That map is not ready yet. Try again in a moment.")
    return state.result.same_state


def _head(trace: AttentionTrace, head: object) -> int | None:
    """Return the index of a head, or None for the mean."""
    if head == MEAN_OF_HEADS:
        return None
    return whole("The head", digits(head), 0, trace.mass_LHS.shape[1] - 1)


def _pair(values: Iterable[float]) -> tuple[float, float]:
    first, second = values
    return first, second
