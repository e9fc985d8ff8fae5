"""Templates → HTML. Every value is escaped but the output of another template.

It knows nothing of what is shown.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs


def number(value: float, *, signed: bool = False, digits: int = 3) -> str:
    """Return a number with a true minus sign; a dash where there is none."""
    if math.isnan(value):
        return "–"
    shown = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(shown) == 0:
        shown = shown.lstrip("+-")
    return shown.replace("-", "−")


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: "1 report", "2 reports"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def templates(directory: Path) -> Environment:
    """Return the templates of a directory and of this room, escaping and strict."""
    environment = Environment(
        loader=FileSystemLoader([directory, Path(__file__).parent / "templates"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "plural": plural}
    return environment


_TEMPLATES = templates(Path(__file__).parent / "templates")


def render(template: str, **values: Any) -> Markup:
    """Fill a template of this room; the result may be put into another one."""
    return Markup(_TEMPLATES.get_template(template).render(values))


STATIC = Path(__file__).parent / "static"


def style(*names: str) -> Markup:
    """Return style sheets of this room, one after another."""
    return Markup("".join((STATIC / f"{name}.css").read_text(encoding="utf-8") for name in names))


def embedded(value: object) -> Markup:
    """Return JSON that cannot end the script element that holds it."""
    text = json.dumps(value, ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))


def plotly_script() -> Markup:
    """Return plotly's own script, which makes figures work without a network."""
    return Markup(get_plotlyjs())


def figure_html(figure: go.Figure) -> Markup:
    """Return a figure for a page that holds :func:`plotly_script`."""
    drawn = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displayModeBar": False}
    )
    return Markup(drawn)
