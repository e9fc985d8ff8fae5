"""What frames the sections of the page: header, guide, status line, samples, small texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from app.about import About
from app.choice import SMALL
from mrrag.learnt import ALIKE
from mrrag.report.audit_panel import audit_panel
from mrrag.report.cards import DIRECTION, DISCLAIMER, ROUTING, TERMS
from mrrag.report.templating import number, templates
from mrrag.types import LLAVA_MED

if TYPE_CHECKING:
    from app.models import Row

_HERE = Path(__file__).parent
_TEMPLATES = templates(_HERE / "templates")


def render(template: str, **values: Any) -> Markup:
    """Fill one of the page's templates."""
    return Markup(_TEMPLATES.get_template(template).render(values))


def script(name: str) -> str:
    """Return one of the page's scripts."""
    return (_HERE / "static" / f"{name}.js").read_text(encoding="utf-8")


def header(about: About) -> Markup:
    """Return the bar that stays in view: what this is and is not, which model answers and why."""
    if about.phantoms_only:
        knows = "It knows phantoms (synthetic chest radiographs) only."
    elif about.model in (offer.name for offer in SMALL):
        knows = "It is a general model, not made for medical pictures."
    else:
        allows = "allows" if about.model == LLAVA_MED else "may allow"
        knows = f"Its licence {allows} research use only."
    return render(
        "header.html", disclaimer=DISCLAIMER, model=about.model, knows=knows, why=about.why
    )


def offers(rows: Sequence[Row], seconds: float = 0.0) -> Markup:
    """Return the models that may be loaded; ``seconds`` is how long the person has waited."""
    return render("offers.html", rows=rows, seconds=seconds)


def how_to_read() -> Markup:
    """Return a short guide to the page, closed at first."""
    return render("guide.html", direction=DIRECTION, routing=ROUTING)


def base_facts(about: About) -> Markup:
    """Return a knowledge base in a line, and behind it its sources and what was learnt for it."""
    base = about.base
    learnt = []
    for n, (name, letter, _) in enumerate(TERMS):
        shown = f"{letter} {number(getattr(about.weights, name), digits=2)}"
        if n < len(base.intervals):
            low, high = (number(end, digits=2) for end in base.intervals[n])
            shown += f" ({low} to {high})"
        learnt.append(shown)
    if base.intervals:
        how = "95 % intervals in brackets"
    elif base.chosen:
        how = "chosen by mrrag audit, on studies whose findings are known"
    elif about.weights == ALIKE:
        how = "not learnt for it: all three count alike"
    else:
        how = "not learnt for it: weighed by their spread in it, the question half"
    folder = "" if base.name == "bundled" else base.name
    panel = audit_panel(base.audit, folder)
    return render("base_facts.html", base=base, learnt=", ".join(learnt), how=how, panel=panel)


def empty(sentence: str) -> Markup:
    """Return what a part of the page says before there is anything to show."""
    return render("empty.html", sentence=sentence)


def arena_intro() -> Markup:
    """Return what the arena is for, and what it waits for."""
    return render("arena_intro.html")


def status(sentence: str, *, kind: str = "plain") -> Markup:
    """Return the line under the Ask button; ``kind`` is plain, busy, done or problem."""
    mark = {"plain": "", "busy": "…", "done": "✓", "problem": "!"}[kind]
    return render("status.html", sentence=sentence, kind=kind, mark=mark)


def queue_line(ahead: int) -> Markup:
    """Return how many questions are answered ahead of this one."""
    questions = "1 question is" if ahead == 1 else f"{ahead} questions are"
    return status(f"Waiting: {questions} ahead of yours.", kind="busy")


def samples(entries: Sequence[tuple[str, str]], chosen: int | None) -> Markup:
    """Return the sample cases, (title, thumbnail URL) each, as a grid of buttons."""
    return render("samples.html", samples=entries, chosen=chosen)


def compare(picture: str) -> Markup:
    """Return a dialog, closed at first, for the case's picture beside a report's."""
    return render("compare.html", picture=picture)


def history() -> Markup:
    """Return the list of this visit's cases, which the browser fills."""
    return render("history.html")
