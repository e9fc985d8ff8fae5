"""The arena on the page: what it runs, what it refuses, and what becomes of its results."""

from __future__ import annotations

import json
import math
import re
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from tiny_case import ABOUT, answered_case, refused

from app.backend import Backend, Lent
from app.sections.arena import OFFERS, PRETICKED, checked_methods, draw, run
from app.sections.asking import AskInputs, ask, stop
from app.sections.evidence import EvidenceInputs, redraw
from app.sections.settings import MAX_STRENGTH, Controls
from app.sections.visit import ArenaState, ReaderState, Update, Visit, cleared
from app.waiting import Room
from mrrag.data.images import load_image
from mrrag.errors import SettingsError
from mrrag.files import ASSETS
from mrrag.study.arena_answers import OFFERED
from mrrag.types import METHODS, Answer

SAMPLES = ASSETS.parent / "sample_cases"
TICKED: list[list[str]] = [["mr_rag"], ["pai"], [], ["replug"], ["best_last"]]
RUN = ["rag", "mr_rag", "pai", "replug", "best_last"]


@pytest.fixture(scope="module")
def asked(backend: Backend) -> dict[str, Any]:
    """All that a question put on the page."""
    about = backend.about
    learnt = (round(getattr(about.weights, name), 2) for name in ("alpha", "beta", "gamma"))
    layers = [str(i) for i in about.critical]
    controls = Controls(3, *learnt, about.strength, layers, about.form, 0)
    first = json.loads((SAMPLES / "cases.json").read_text())[0]
    inputs = AskInputs(None, None, load_image(SAMPLES / first["file"]), "Is there an effusion?")
    page: dict[str, Any] = {}
    for update in ask(backend, Room(), Visit(), 1.0, inputs, controls):
        page |= update
    return page


@pytest.fixture(scope="module")
def updates(backend: Backend, asked: dict[str, Any]) -> list[Update]:
    """A whole run of the arena."""
    return list(run(backend, Visit(), 1.0, asked["case_state"], TICKED))


def rows(table: str) -> list[str]:
    return re.findall(r'data-name="(\w+)"', table)


def test_every_method_is_offered_once_but_plain_rag_which_always_runs() -> None:
    offered = [name for group in OFFERS.values() for name, _ in group]
    assert sorted([*offered, "rag"]) == sorted(OFFERED)
    assert {*PRETICKED} <= {*offered}
    assert checked_methods([["vote"], ["mr_rag"]]) == ["rag", "mr_rag", "vote"]


@pytest.mark.parametrize(
    ("ticked", "words"),
    [([], "No method is ticked"), ([[], None, "pai"], "No method is ticked"),
     ([["nonsense"]], "no such method"), ([["wrong_picture"]], "no such method"),
     ([[["pai"]]], "no such method")],
)  # fmt: skip
def test_what_is_no_method_is_refused(ticked: list[object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        checked_methods(ticked)


def test_rows_come_one_by_one_and_open_once_all_are_there(updates: list[Update]) -> None:
    tables = [rows(u["arena_table"]) for u in updates]
    assert [len(t) for t in tables] == [0, 1, 2, 3, 4, 5, 5]
    assert tables[-1] == RUN
    assert all("open-maps" not in u["arena_table"] for u in updates[:-1])
    opened = re.findall(r'aria-controls="arena-maps-(\w+)"', updates[-1]["arena_table"])
    assert opened == ["mr_rag", "pai"]
    assert "The arena is done" in updates[-1]["status"]


def test_the_table_has_the_probabilities_of_the_answers_above(
    asked: dict[str, Any], updates: list[Update]
) -> None:
    table = updates[-1]["arena_table"]
    p_yes = dict(re.findall(r'data-name="(\w+)"[^>]*data-p="([^"]*)"', table))
    for name in ("rag", "mr_rag"):
        given = asked["case_state"].result.answers[name].p_yes
        # The arena reads one prompt at a time, and the answers three.
        assert float(p_yes[name]) == pytest.approx(given, abs=0.02)


def test_cards_show_what_each_report_says_alone_while_it_belongs_to_their_case(
    backend: Backend, asked: dict[str, Any], updates: list[Update]
) -> None:
    state = updates[-1]["arena_state"]
    assert state is not None
    inputs = EvidenceInputs(asked["evidence_state"], asked["case_state"], "Off", 0, state)
    drawn = redraw(backend, inputs)["evidence_cards"]
    shown = re.findall(r"by this report alone <b>([\d.]+)</b>", drawn)
    ids = [r.document.id for r in asked["case_state"].result.retrieved]
    assert shown == [f"{state.alone[i]:.3f}" for i in ids]
    for other in (None, replace(state, question="Another?"), ArenaState(state.question, {})):
        drawn = redraw(backend, inputs._replace(arena_state=other))["evidence_cards"]
        assert "alone <b>" not in drawn


def test_a_later_press_stops_the_arena_with_what_it_has(
    backend: Backend, asked: dict[str, Any]
) -> None:
    visit = Visit()
    running = run(backend, visit, 1.0, asked["case_state"], TICKED)
    seen = [next(running), next(running)]
    stop(visit, 2.0)
    *_, last = running
    assert "Stopped. 2 of 5" in last["status"]
    assert rows(last["arena_table"]) == RUN[:2]
    assert len(rows(seen[1]["arena_table"])) == 1
    (late,) = run(backend, visit, 1.5, asked["case_state"], TICKED)
    assert {*late} == {"status"}


@pytest.mark.parametrize("picture", [True, False], ids=["picture", "question"])
def test_another_picture_or_question_leaves_nothing_of_a_run(
    backend: Backend, asked: dict[str, Any], picture: bool
) -> None:
    visit = Visit()
    running = run(backend, visit, 1.0, asked["case_state"], TICKED)
    next(running)
    visit.press(2.0, picture=picture)
    (emptied,) = running
    assert (emptied["arena_state"], emptied["arena_table"], emptied["curve_text"]) == (None, "", "")
    # Where a question was asked, the status line is its own.
    assert ("Another picture" in emptied.get("status", "")) == picture
    assert {"arena_state", "arena_table", "curve_text"} <= {*cleared()}


@pytest.mark.parametrize("action", ["run", "draw"])
def test_nothing_runs_before_the_answers_are_shown(action: str) -> None:
    case = answered_case()
    waiting = replace(case, reading=ReaderState(reader_first=True))
    other = replace(case, base=7)
    cases: list[tuple[object, str]] = [
        (None, "no answered case"), ("state", "no answered case"), (other, "no answered case"),
        (waiting, "impression comes first"),
    ]  # fmt: skip
    for state, words in cases:
        # The model is never loaded: a refusal does not wait for it.
        backend = Backend(ABOUT, Future())
        started = (
            run(backend, Visit(), 1.0, state, TICKED)
            if action == "run"
            else (draw(backend, Visit(), 1.0, state))
        )
        (update,) = started
        assert words in refused(update)


def test_a_page_that_borrows_its_gpu_has_no_arena() -> None:
    lent = Backend(ABOUT, Future(), lent=Lent(lambda: iter(()), lambda: None))
    (update,) = run(lent, Visit(), 1.0, answered_case(), TICKED)
    assert "borrows a GPU" in refused(update)


def test_a_question_outside_what_the_model_knows_is_not_asked_by_rivals(
    backend: Backend, asked: dict[str, Any]
) -> None:
    case = asked["case_state"]
    nothing = {m: Answer(m, "", math.nan, math.nan, "", 0, 0.0) for m in METHODS}
    declined = replace(case, result=replace(case.result, before=None, answers=nothing))
    *_, last = run(backend, Visit(), 1.0, declined, TICKED)
    assert "not asked" in refused(last)
    (last,) = draw(backend, Visit(), 1.0, declined)
    assert "neither yes nor no" in refused(last)


def test_curves_reach_from_plain_rag_to_the_strongest_and_are_said_in_words(
    backend: Backend, asked: dict[str, Any]
) -> None:
    page: dict[str, Any] = {}
    for update in draw(backend, Visit(), 1.0, asked["case_state"]):
        page |= update
    (line,) = page["strength_curve"].data
    assert (line.x[0], line.x[-1]) == (0.0, MAX_STRENGTH)
    answers = asked["case_state"].result.answers
    assert line.y[0] == pytest.approx(answers["rag"].p_yes, abs=0.02)
    now = line.y[line.x.index(backend.about.strength)]
    assert now == pytest.approx(answers["mr_rag"].p_yes, abs=0.02)
    assert len(page["weight_curve"].data) == 3
    for letter in ("strength", "α", "β", "γ"):
        assert f"{letter}: P(yes) is" in page["curve_text"]
    assert "done" in page["status"]


def test_a_press_in_the_arena_stops_no_answers_and_a_later_one_stops_the_arena(
    backend: Backend, asked: dict[str, Any]
) -> None:
    visit = Visit()
    visit.press(1.0)
    running = run(backend, visit, 2.0, asked["case_state"], TICKED)
    next(running)
    assert visit.newest == 1.0  # what explains the answers goes on
    visit.press_beside(3.0)
    *_, last = running
    assert "Stopped. 1 of 5" in last["status"]
