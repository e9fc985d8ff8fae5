"""The events of what answers: the choice of model and knowledge base, and loading another model.

Wiring only, as :mod:`app.page`; what is shared by all visitors is in :mod:`app.models`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from app import frame
from app.about import About
from app.events import NOW, QUIET, Contents, contents, field_of
from app.layout import Parts, components
from app.models import Models
from app.sections.attention import MEAN_OF_HEADS, heads
from app.sections.evidence import choose_backend
from app.sections.settings import max_weight
from app.sections.viewer import READ_VIEW
from app.sections.visit import refuse

SECONDS_BETWEEN_LINES = 1.0


def chosen(parts: Parts) -> list[gr.blocks.Block]:
    """Return the two controls that say what answers.

    Each visit has its own choice: what the browser shows is what is asked.
    """
    return [parts.models.model, parts.evidence.base]


def wire_choice(parts: Parts, models: Models, redrawing: Any, seen: Any) -> None:
    """Wire the choice of model and of knowledge base; ``seen`` draws what the model sees."""
    state, controls = parts.state, parts.settings.controls
    learnt = [
        *(controls.alpha, controls.beta, controls.gamma, controls.strength, controls.form),
        *(controls.layers, parts.attention.head, parts.attention.layer),
    ]
    everything = list(components(parts).values())

    def on_choice(moment: Any, visit: Any, model: Any, base: Any) -> Contents:
        visit.press(moment, base=True)
        about = models.select(model, base).about
        return contents(parts, choose_backend(about)) | controls_for(parts, about)

    # What was being ranked meanwhile is of the model or knowledge base of before.
    gr.on(
        [parts.models.model.input, parts.evidence.base.input],
        on_choice,
        [state.press_time, state.visit, *chosen(parts)],
        list(dict.fromkeys([*everything, *learnt])),
        js=NOW,
        **QUIET,
    ).then(*redrawing, **QUIET).then(*seen, js=READ_VIEW, **QUIET)


def wire_offers(parts: Parts, models: Models) -> None:
    """Wire the panel of further models: the hub is asked, and a model loaded, on a press only."""
    panel = parts.models

    def shown(seconds: float = 0.0) -> Contents:
        ready = models.ready()
        return {
            panel.offers: frame.offers(models.rows(), seconds),
            panel.model: gr.Dropdown(choices=ready, visible=len(ready) > 1),
        }

    def on_load(event: gr.EventData) -> Iterator[Contents]:
        try:
            loading, begun = models.load(field_of(event, "sample")), time.monotonic()
            while not loading.done():
                yield shown(time.monotonic() - begun)
                time.sleep(SECONDS_BETWEEN_LINES)
            yield shown()
        except Exception as error:
            yield contents(parts, refuse(error))

    outputs = [panel.offers, panel.model, parts.case.status]
    panel.panel.expand(shown, None, outputs, **QUIET)
    panel.offers.click(on_load, None, outputs, concurrency_limit=None, **QUIET)


def controls_for(parts: Parts, about: About) -> Contents:
    """Return the controls of another model or knowledge base, as they were learnt for it."""
    attention, last = parts.attention, about.layers - 1
    layer = about.critical[0] if about.critical else 0
    return {
        **learnt_values(parts, about),
        attention.head: gr.Dropdown(heads(about), value=MEAN_OF_HEADS),
        attention.layer: gr.Slider(0, last, layer),
    }


def learnt_values(parts: Parts, about: About) -> Contents:
    """Return the settings as they were learnt for a model and a knowledge base."""
    controls, limit, weights = parts.settings.controls, max_weight(about), about.weights
    return {
        controls.alpha: gr.Slider(-limit, limit, round(weights.alpha, 2)),
        controls.beta: gr.Slider(-limit, limit, round(weights.beta, 2)),
        controls.gamma: gr.Slider(-limit, limit, round(weights.gamma, 2)),
        controls.strength: about.strength,
        controls.layers: gr.CheckboxGroup(
            [str(i) for i in range(about.layers)], value=[str(i) for i in about.critical]
        ),
        controls.form: about.form,
    }
