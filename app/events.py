"""What all events of the page have in common: options, and updates by component."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.layout import Parts, components
from app.sections.visit import Update

# Not preprocessed: the actions check the inputs, and refuse them in a sentence.
QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "preprocess": False,
}
LIVE: dict[str, Any] = {"trigger_mode": "always_last", **QUIET}
# Runs in the browser before an event whose first input is the moment of the press.
NOW = "(_, ...others) => [performance.now(), ...others]"

# New contents by component, as gradio takes them.
Contents = dict[gr.blocks.Block, Any]


def contents(parts: Parts, update: Update) -> Contents:
    """Return an action's update by component; gradio does not take an empty one."""
    by_name = components(parts)
    return {by_name[name]: content for name, content in update.items()} or {
        parts.case.status: gr.skip()
    }


def field_of(event: gr.EventData, name: str) -> object:
    """Return one field of an event's data, or None."""
    return event._data.get(name) if isinstance(event._data, dict) else None
