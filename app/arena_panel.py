"""The components of the arena, closed until they are opened.

Layout only, as :mod:`app.layout`; what the controls do is in :mod:`app.sections.arena`.
"""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from app import frame
from app.markup import html, plot
from app.sections.arena import OFFERS, PRETICKED


class ArenaParts(NamedTuple):
    """Other methods on the answered case, and the curves of MR-RAG's settings."""

    arena_state: gr.State
    ticked: list[gr.CheckboxGroup]  # one for each heading
    run: gr.Button
    curves: gr.Button
    arena_table: gr.HTML
    curve_text: gr.HTML
    strength_curve: gr.Plot
    weight_curve: gr.Plot


def lay_out_arena(kept_seconds: int) -> ArenaParts:
    """Make the methods to tick, the table and the curves.

    ``kept_seconds`` is how long a visit's results are kept after they were last touched.
    """
    state = gr.State(None, time_to_live=kept_seconds)
    with gr.Accordion("Arena: other methods on this case", open=False, elem_id="arena-panel"):
        html(frame.arena_intro(), "arena-intro")
        with gr.Column(elem_id="arena-body", min_width=0):
            with gr.Row(elem_id="arena-methods", equal_height=False):
                ticked = [
                    gr.CheckboxGroup(
                        [(title, name) for name, title in offered],
                        value=[name for name, _ in offered if name in PRETICKED],
                        label=heading,
                        min_width=0,
                    )
                    for heading, offered in OFFERS.items()
                ]
            with gr.Row(elem_id="arena-go"):
                run = gr.Button(
                    "Run the ticked methods", variant="primary", elem_id="arena-run", min_width=0
                )
                curves = gr.Button("Draw MR-RAG’s curves", elem_id="arena-curves", min_width=0)
            table = html("", "arena-table", frame.script("arena"))
            with gr.Column(elem_id="arena-drawn", min_width=0):
                text = html("", "curve-text")
                with gr.Row(elem_id="curves", equal_height=True):
                    strength = plot("P(yes) by IFA’s strength", "curve-strength")
                    weight = plot("P(yes) by the change of α, β and γ", "curve-weights")
    return ArenaParts(
        arena_state=state, ticked=ticked, run=run, curves=curves, arena_table=table,
        curve_text=text, strength_curve=strength, weight_curve=weight,
    )  # fmt: skip
