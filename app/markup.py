"""Two components that every section of the page uses: our own markup, and a plot."""

from __future__ import annotations

import gradio as gr
import plotly.graph_objects as go


def plot(label: str, name: str) -> gr.Plot:
    """Make a plot; its empty figure makes the browser fetch the plotting code early."""
    return gr.Plot(
        go.Figure(), show_label=False, label=label, container=False,
        elem_classes="map", elem_id=name, min_width=0,
    )  # fmt: skip


def html(
    content: str,
    name: str | None = None,
    script: str | None = None,
    template: str = "${value}",
) -> gr.HTML:
    """Make a component for our own markup; a fixed ``template`` leaves it to a script."""
    return gr.HTML(
        content,
        html_template=template,
        elem_id=name,
        elem_classes="ours",
        apply_default_css=False,
        js_on_load=script,
    )
