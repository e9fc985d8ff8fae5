"""Asking: what is refused, and what a later press supersedes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from tiny_case import ABOUT, LEARNT_CONTROLS, picture, refused

from app.backend import Backend
from app.sections.asking import AskInputs, ask, stop
from app.sections.visit import Update, Visit
from app.waiting import Room


def press(loading: Future[Any], visit: Visit, image: object, question: object) -> Iterator[Update]:
    """Press Ask one millisecond after the page was opened."""
    inputs = AskInputs(evidence_state=None, case_state=None, image=image, question=question)
    return ask(Backend(ABOUT, loading), Room(), visit, 1.0, inputs, LEARNT_CONTROLS)


@pytest.mark.parametrize(
    ("image", "question", "words"),
    [
        (None, "Is there an effusion?", "no picture"),
        ("a path", "Is there an effusion?", "no picture"),
        (picture(), "  ", "question is empty"),
        (picture(), None, "question is empty"),
        (picture(), "x" * 1001, "1001 characters"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(
    image: object, question: object, words: str
) -> None:
    # The model is never loaded: a refusal does not wait for it.
    *_, update = press(Future(), Visit(), image, question)
    assert words in refused(update)


def test_an_unexpected_error_shows_no_cause(caplog: pytest.LogCaptureFixture) -> None:
    loading: Future[Any] = Future()
    loading.set_exception(RuntimeError("secret of the case"))
    (update,) = press(loading, Visit(), picture(), "Is there an effusion in Mr Smith?")
    assert "secret" not in refused(update)
    assert "Traceback" not in update["status"]
    assert "secret" not in caplog.text
    assert "Smith" not in caplog.text
    assert "RuntimeError" in caplog.text


def test_a_press_supersedes_earlier_ones_and_no_later_one() -> None:
    visit = Visit()
    assert visit.press(20.0) == 20.0
    visit.press(10.0, picture=True)  # its request came late
    assert (visit.newest, visit.picture) == (20.0, False)
    visit.press(30.0, picture=True)
    assert (visit.newest, visit.picture) == (30.0, True)


@pytest.mark.parametrize("moment", [None, "1", True, -1, math.nan, [1]])
def test_an_invalid_moment_counts_as_before_all_presses(moment: object) -> None:
    visit = Visit()
    assert visit.press(moment) == -math.inf
    assert visit.newest == -math.inf


def test_a_question_stopped_before_its_turn_is_not_answered() -> None:
    visit = Visit()
    assert "Stopped" in stop(visit, 2.0)["status"]
    (update,) = press(Future(), visit, picture(), "Is there an effusion?")
    assert set(update) == {"status"}
    assert "Stopped" in update["status"]


def test_stop_ends_the_wait_for_the_model() -> None:
    visit = Visit()
    updates = press(Future(), visit, picture(), "Is there an effusion?")
    assert "Loading" in next(updates)["status"]
    stop(visit, 2.0)
    assert "Stopped" in next(updates)["status"]
    assert list(updates) == []
