"""Cases that wait together are one batch; nobody gets anything of another's, nor its troubles."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.backend import Backend, Lent
from app.joining import Joint
from app.sections.asking import AskInputs, ask, stop
from app.sections.programs import controls_of
from app.sections.visit import CaseState, Update, Visit
from app.waiting import Room
from mrrag import pipeline as engine
from mrrag.case import Case, Progress
from mrrag.data.images import load_image
from mrrag.evidence import find_evidence
from mrrag.explain import explain
from mrrag.files import ASSETS
from mrrag.model import prefill
from mrrag.model.answering import answer_questions
from mrrag.model.backbone import Backbone
from mrrag.pipeline import Pipeline
from mrrag.types import Image, Query

QUESTIONS = ("Is there a pleural effusion?", "Is the heart enlarged?", "Is there a pacemaker?")


class Heavy(Backbone):
    """The included model, as if its weights were what decoding waits for."""

    bound_by_weights = True


@pytest.fixture(scope="module")
def heavy(backend: Backend, pipeline: Pipeline) -> Backend:
    loading: Future[Pipeline] = Future()
    loading.set_result(replace(pipeline, backbone=Heavy(**vars(pipeline.backbone))))
    return backend._replace(loading=loading)


@pytest.fixture(scope="module")
def images() -> list[Image]:
    samples = Path(ASSETS).parent / "sample_cases"
    return [load_image(samples / f"case-{n}.dcm") for n in (1, 2)]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each batch that the model answers."""
    sizes: list[int] = []
    real = answer_questions

    def counted(backbone: Backbone, asked: Sequence[Any], *given: Any, **options: Any) -> Any:
        sizes.append(len(asked))
        return real(backbone, asked, *given, **options)

    monkeypatch.setattr(engine, "answer_questions", counted)
    return sizes


class Waiting:
    """A visitor who has pressed Ask while somebody else had the model."""

    def __init__(
        self, backend: Backend, room: Room, image: Image, question: str, **settings: Any
    ) -> None:
        self.question, self.visit = question, Visit()
        inputs = AskInputs(evidence_state=None, case_state=None, image=image, question=question)
        controls = controls_of(backend.about, {"k": 2} | settings)
        self.updates = ask(backend, room, self.visit, 1.0, inputs, controls)
        self.seen: list[Update] = [next(self.updates)]
        assert "ahead" in self.seen[0]["status"]

    def until(self, part: str) -> Any:
        """Read on until a part of the page is written; return it, or None at the end."""
        for update in self.updates:
            self.seen.append(update)
            if update.get(part):
                return update.get(part)
        return None

    def close(self) -> None:
        """Leave the page."""
        assert isinstance(self.updates, Generator)
        self.updates.close()

    def case(self) -> Case:
        state = self.until("case_state")
        assert isinstance(state, CaseState)
        return state.result


@pytest.fixture
def three(heavy: Backend, images: list[Image]) -> Iterator[list[Waiting]]:
    """Three visitors whose turn has come."""
    with ExitStack() as before:
        room = Room()
        before.enter_context(room.turn("before"))
        waiting = [
            Waiting(heavy, room, images[n % 2], question, strength=float(n))
            for n, question in enumerate(QUESTIONS)
        ]
        before.close()
        yield waiting
        for one in waiting:
            one.close()


def alone(backend: Backend, case: Case, image: Image) -> Case:
    """Answer a case's question and settings alone."""
    query = Query(image, case.question)
    evidence = find_evidence(backend.pipeline(), query, case.settings)
    *_, answered = engine.answer(backend.pipeline(), query, evidence, case.settings)
    assert isinstance(answered, Case)
    return answered


def assert_own(waiting: Waiting, case: Case, apart: Case, others: Sequence[Waiting]) -> None:
    assert case.question == waiting.question
    assert case.retrieved == apart.retrieved
    for ours, theirs in zip(case.answers.values(), apart.answers.values(), strict=True):
        assert (ours.text, ours.prompt, ours.tokens) == (theirs.text, theirs.prompt, theirs.tokens)
        assert ours.p_yes == pytest.approx(theirs.p_yes, abs=1e-5)
    written = str(waiting.seen)
    assert waiting.question in written
    assert not any(other.question in written for other in others if other is not waiting)


def test_visitors_who_wait_together_are_answered_as_one_batch_and_each_gets_their_own(
    three: list[Waiting], heavy: Backend, images: list[Image], batches: list[int]
) -> None:
    """Each reads in a thread of its own, as the page does."""
    with ThreadPoolExecutor(len(three)) as threads:
        cases = list(threads.map(Waiting.case, three))
    assert batches == [3]
    for n, (visitor, case) in enumerate(zip(three, cases, strict=True)):
        assert case.settings.strength == n
        assert_own(visitor, case, alone(heavy, case, images[n % 2]), three)


def test_who_stops_or_leaves_ends_no_other_s_answers(
    three: list[Waiting], heavy: Backend, images: list[Image], batches: list[int]
) -> None:
    first, second, third = three
    assert first.until("evidence_cards")
    assert next(first.updates) == {}  # the others are called
    assert second.until("evidence_cards")
    assert third.until("evidence_cards")
    assert first.until("answer_columns")
    first.close()
    stop(second.visit, 2.0)
    assert "Stopped" in second.until("status")
    case = third.case()
    assert_own(third, case, alone(heavy, case, images[0]), three)
    assert batches == [3, 1]


def test_a_case_that_fails_is_left_out_and_says_so_to_its_own_visitor(
    three: list[Waiting], monkeypatch: pytest.MonkeyPatch, batches: list[int]
) -> None:
    real = find_evidence

    def failing(pipeline: Pipeline, query: Any, settings: Any) -> Any:
        if query.question == QUESTIONS[1]:
            raise RuntimeError("secret")
        return real(pipeline, query, settings)

    monkeypatch.setattr("mrrag.evidence.find_evidence", failing)
    first, second, third = three
    assert first.case().question == QUESTIONS[0]
    assert third.case().question == QUESTIONS[2]
    assert batches == [2]
    first.close()
    third.close()
    assert "went wrong" in second.until("status")
    assert list(second.updates) == []


def test_a_batch_that_fails_is_answered_one_by_one(
    three: list[Waiting], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = answer_questions

    def failing(backbone: Backbone, asked: Sequence[Any], *given: Any, **options: Any) -> Any:
        for n, steps in enumerate(real(backbone, asked, *given, **options)):
            if len(asked) > 1 and n == 2:
                raise MemoryError
            yield steps

    monkeypatch.setattr(engine, "answer_questions", failing)
    assert [visitor.case().question for visitor in three] == list(QUESTIONS)


@pytest.mark.parametrize("why", ["other layers", "no memory", "a lent device", "a small model"])
def test_who_cannot_be_joined_has_a_turn_of_their_own(
    heavy: Backend,
    pipeline: Pipeline,
    images: list[Image],
    batches: list[int],
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    backend, other = heavy, {}
    if why == "other layers":
        other = {"layers": [0]}
    elif why == "no memory":
        monkeypatch.setattr(prefill, "fit_together", lambda *_: False)
    elif why == "a lent device":
        backend = heavy._replace(lent=Lent(engine.answer, explain))
    else:
        light: Future[Pipeline] = Future()
        light.set_result(pipeline)
        backend = heavy._replace(loading=light)
    room = Room()
    with room.turn("before"):
        first = Waiting(backend, room, images[0], QUESTIONS[0])
        second = Waiting(backend, room, images[1], QUESTIONS[1], **other)
    assert first.case().question == QUESTIONS[0]
    assert batches == [1]
    first.close()
    assert second.case().question == QUESTIONS[1]
    assert batches == [1, 1]
    second.close()


def test_a_batch_is_freed_with_its_last_answer() -> None:
    freed: list[bool] = []

    def steps() -> Iterator[tuple[Case | Progress, ...]]:
        try:
            yield (a, b)
            yield (done, bb)
            yield (done, done)
            yield (done, done)
        finally:
            freed.append(True)

    done = Case.__new__(Case)
    a, b, bb = (Progress({"rag": text}) for text in ("a", "b", "bb"))
    joint = Joint(steps())
    ahead, behind = joint.items(0), joint.items(1)
    assert list(ahead) == [a, done]
    assert next(behind) == bb  # the newest, not every one
    assert freed == []
    assert list(behind) == [done]
    assert freed == [True]
