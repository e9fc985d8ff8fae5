"""The arena section: other methods on the answered case, and how MR-RAG's settings move it.

Nothing runs by itself. Each update of a run is a step that waits for its turn
(:func:`app.waiting.step_by_step`), and a later press supersedes the run. Its results belong to the
answers above and go when they go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from app import frame
from app.backend import Backend
from app.sections.asking import superseded_status
from app.sections.settings import MAX_STRENGTH, max_weight
from app.sections.visit import (
    NO_CASE,
    ArenaState,
    CaseState,
    Update,
    Visit,
    cleared,
    of_base,
    refuse,
)
from mrrag.errors import SettingsError
from mrrag.report.arena_table import arena_table
from mrrag.report.curves import curve_text, strength_figure, weight_figure
from mrrag.study.arena import ARENA, GROUPS, group_of
from mrrag.study.arena_answers import OFFERED, ArenaAnswer
from mrrag.types import Query

PLAIN = "rag"  # what the others are compared with; it is always run
# Heading → the names and titles of its methods.
OFFERS: dict[str, list[tuple[str, str]]] = {
    heading: offered
    for heading in GROUPS
    if (
        offered := [
            (name, ARENA[name].title)
            for name in OFFERED
            if group_of(name) == heading and name != PLAIN
        ]
    )
}
# One or two of each kind, and all quick.
PRETICKED = (
    *("rag_off", "mr_rag", "pai", "spotlight", "cad", "replug", "vote"),
    *("top_report", "mmed_gap_ifa"),
)
STRENGTHS = tuple(MAX_STRENGTH * (n / 16) ** 2 for n in range(17))  # more of them near plain RAG
STEPS = (-0.5, -0.25, -0.125, 0.125, 0.25, 0.5)  # of a weight, as shares of its largest value
BORROWED = (
    "The arena is closed here: this page borrows a GPU for each question, and for nothing else."
)
NO_WORD = (
    "RAG’s answer begins with neither yes nor no, so there is no P(yes) to follow. Ask a yes-or-no "
    "question."
)


def run(
    backend: Backend, visit: Visit, pressed: object, state: object, ticked: Sequence[object]
) -> Iterator[Update]:
    """Yield the table as the ticked methods answer, one after another.

    Parameters
    ----------
    pressed
        The moment of the press; see :class:`Visit`.
    state
        The answered case.
    ticked
        What is ticked under each heading.
    """
    yield from _settled(
        backend,
        visit,
        pressed,
        state,
        lambda case, press: _answers(backend, case, ticked, press),
    )


def draw(backend: Backend, visit: Visit, pressed: object, state: object) -> Iterator[Update]:
    """Yield MR-RAG's P(yes) over IFA's strength and over α, β and γ around the present ones."""
    yield from _settled(
        backend, visit, pressed, state, lambda case, press: _curves(backend, case, press)
    )


class Press(NamedTuple):
    """A press of one of the arena's buttons."""

    visit: Visit
    moment: float

    @property
    def superseded(self) -> bool:
        """Whether there was a later press."""
        return max(self.visit.newest, self.visit.beside) > self.moment

    @property
    def gone(self) -> bool:
        """Whether a later press took the answers away that the arena is about."""
        return self.visit.renewed > self.moment


def _settled(
    backend: Backend,
    visit: Visit,
    pressed: object,
    state: object,
    work: Callable[[CaseState, Press], Iterator[Update]],
) -> Iterator[Update]:
    """Work on the answered case, unless there was a later press; always leave the page settled."""
    try:
        press = Press(visit, visit.press_beside(pressed))
        if press.superseded:
            yield {"status": superseded_status(visit)}
            return
        yield from work(_answered(backend, state), press)
        if press.gone:
            # What took the answers away has emptied the arena, too, but an update of this run may
            # have come after that. A later Ask has the status line.
            none = cleared()
            emptied: Update = {
                "arena_state": none["arena_state"],
                "arena_table": none["arena_table"],
                "curve_text": none["curve_text"],
            }
            if visit.cleared:
                emptied["status"] = superseded_status(visit)
            yield emptied
    except Exception as error:
        yield refuse(error)


def _answered(backend: Backend, state: object) -> CaseState:
    """Return the answered case whose answers are shown.

    Raises
    ------
    SettingsError
        If there is none, its answers still wait for the reader, or the model is not here.
    """
    if backend.lent is not None:
        raise SettingsError(BORROWED)
    case = of_base(backend.about, state, CaseState)
    if case is None:
        raise SettingsError(NO_CASE)
    if case.reading.waits_for:
        raise SettingsError(f"Your {case.reading.waits_for} comes first; then the arena opens.")
    return case


def checked_methods(ticked: Sequence[object]) -> list[str]:
    """Return the ticked methods in the order of the arena, plain RAG first.

    Raises
    ------
    SettingsError
        If none is ticked, or one is none of those shown.
    """
    names = [name for group in ticked if isinstance(group, list | tuple) for name in group]
    if any(name not in OFFERED for name in names):
        raise SettingsError("The arena has no such method. Tick some of those shown.")
    if not names:
        raise SettingsError("No method is ticked. Tick at least one.")
    return [PLAIN, *(name for name in OFFERED if name in names and name != PLAIN)]


def _answers(
    backend: Backend, case: CaseState, ticked: Sequence[object], press: Press
) -> Iterator[Update]:
    from mrrag.study.one_case import answer_arena

    methods, start = checked_methods(ticked), time.perf_counter()
    yield {"arena_table": "", "status": frame.status("The arena: reading", kind="busy")}
    found: list[ArenaAnswer] = []
    query = Query(case.image, case.result.question)
    for answer in answer_arena(backend.pipeline(), query, case.result, methods, cache=case.cache):
        found.append(answer)
        found.sort(key=lambda a: methods.index(a.method))
        if press.gone:
            return
        if press.superseded:
            break
        count = f"The arena: {len(found)} of {len(methods)} methods have answered"
        so_far: Update = {"status": frame.status(count, kind="busy")}
        yield so_far | {"arena_table": _table(case, found, maps=False)}
    if len(found) < len(methods):
        said = frame.status(f"Stopped. {len(found)} of {len(methods)} methods have answered.")
    else:
        seconds = time.perf_counter() - start
        said = frame.status(f"The arena is done in {seconds:.1f} s.", kind="done")
    yield {
        "arena_state": ArenaState(case.result.question, _alone(case, found), case.base),
        "arena_table": _table(case, found, maps=True),
        "status": said,
    }


def _table(case: CaseState, found: Sequence[ArenaAnswer], *, maps: bool) -> str:
    result = case.result
    return arena_table(found, len(result.retrieved), result.warnings, maps=maps)


def _alone(case: CaseState, found: Sequence[ArenaAnswer]) -> dict[str, float]:
    """Return P(yes) by each report alone; empty where no fusion was run."""
    ids = {r.rank: r.document.id for r in case.result.retrieved}
    for answer in found:
        if answer.alone:
            return {ids[rank]: p for rank, p in zip(answer.ranks, answer.alone, strict=True)}
    return {}


def _curves(backend: Backend, case: CaseState, press: Press) -> Iterator[Update]:
    from mrrag.study.one_case import strength_curve, weight_curves

    result, pipeline, start = case.result, backend.pipeline(), time.perf_counter()
    if not result.answers[PLAIN].p_yes + result.answers[PLAIN].p_no > 0.5:  # false for NaN too
        raise SettingsError(NO_WORD)
    yield {"status": frame.status("Drawing the curve of the strength", kind="busy")}
    query, limit = Query(case.image, result.question), max_weight(backend.about)
    strength = strength_curve(pipeline, query, result, STRENGTHS, cache=case.cache)
    drawn: Update = {
        "strength_curve": strength_figure(strength),
        "status": frame.status("Retrieving and reading for other α, β and γ", kind="busy"),
    }
    yield drawn
    if press.superseded:
        if not press.gone:
            yield {"status": frame.status("Stopped. The curves are not complete.")}
        return
    weights = weight_curves(
        pipeline,
        query,
        result,
        [limit * step for step in STEPS],
        limit=limit,
        known_evidence=case.evidence,
        cache=case.cache,
    )
    seconds = time.perf_counter() - start
    yield {
        "weight_curve": weight_figure(weights),
        "curve_text": curve_text([strength, *weights]),
        "status": frame.status(f"The curves are done in {seconds:.1f} s.", kind="done"),
    }
