"""The models that answer, and those that a visitor may have loaded beside them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_case import ABOUT, picture
from tiny_families import TINY

from app import serve
from app.backend import Backend
from app.choice import SMALL, Offer
from app.frame import offers
from app.models import Models
from mrrag.case import Case, Settings
from mrrag.errors import OTHERWISE, ModelError
from mrrag.evidence import find_evidence
from mrrag.pipeline import Pipeline, answer
from mrrag.types import Query

OTHER = Offer("someone/other", "Another one.")


def backend(name: str, base: int = 0) -> Backend:
    about = replace(ABOUT, model=name, base=replace(ABOUT.base, number=base))
    return Backend(about, Future())


def test_each_visitor_s_choice_selects_a_backend_and_any_other_value_the_first() -> None:
    first = [backend("first", 0), backend("first", 1)]
    further = [backend("someone/other", 2), backend("someone/other", 3)]
    models = Models(first, [OTHER], lambda offer, number: further)
    assert models.select(1, 1) is first[1]  # not loaded yet
    models.load(1).result(10)
    assert models.select(0, 1) is first[1]
    assert models.select(1, 1) is further[1]
    for model, base in ((None, None), ("1", "1"), (7, 7), ([], {})):
        assert models.select(model, base) is first[0]
    assert models.ready() == [("first", 0), ("other", 1)]


def test_a_model_is_loaded_once_and_beside_all_else() -> None:
    gate, calls = threading.Event(), []

    def load(offer: Offer, number: int) -> Sequence[Backend]:
        calls.append((offer, number))
        gate.wait(10)
        return [backend(offer.name)]

    models = Models([backend("first")], [OTHER], load)
    loading = models.load(1)
    assert models.load(1) is loading
    assert models.rows()[0].state == "loading"
    assert models.ready() == [("first", 0)]
    gate.set()
    loading.result(10)
    assert models.load(1) is loading
    assert calls == [(OTHER, 1)]
    assert models.rows()[0].state == "ready"


def test_a_model_that_cannot_be_loaded_says_why_changes_nothing_and_may_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mrrag.hub.downloaded", lambda *_: Path("there"))
    full = ModelError(f"The disk is full. {OTHERWISE}")
    outcomes: list[Any] = [full, [backend("someone/other")]]

    def load(offer: Offer, number: int) -> Sequence[Backend]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    models = Models([backend("first")], [OTHER], load)
    assert isinstance(models.load(1).exception(10), ModelError)
    (row,) = models.rows()
    assert (row.state, row.problem) == ("offered", "The disk is full.")
    assert "The disk is full." in offers([row])
    assert models.ready() == [("first", 0)]
    models.load(1).result(10)
    assert models.rows()[0].state == "ready"


@pytest.mark.parametrize("number", [0, 2, "1", None, [1]])
def test_what_is_not_offered_is_refused(number: object) -> None:
    models = Models([backend("first")], [OTHER], lambda offer, number: [])
    with pytest.raises(ModelError, match="not offered"):
        models.load(number)


def test_the_hub_is_asked_for_a_size_once_and_again_only_where_it_was_not_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[Any] = [ModelError("The hub cannot be reached."), 513_000_000]
    asked: list[str] = []

    def size(name: str, patterns: Sequence[str], *, timeout_s: float) -> int:
        asked.append(name)
        assert timeout_s <= 5
        outcome = sizes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("mrrag.hub.downloaded", lambda *_: None)
    monkeypatch.setattr("mrrag.hub.repository_bytes", size)
    models = Models([backend("first")], [SMALL[0]], lambda offer, number: [])
    assert asked == []  # the page was made, and nobody has opened the panel
    rows = models.rows()
    assert rows[0].state == "unreachable"
    assert "cannot be reached" in offers(rows)
    assert "<button" not in offers(rows)
    rows = models.rows()
    assert "Download 0.5 GB" in offers(rows)
    assert "not made for medical pictures" in offers(rows)
    models.rows()
    assert len(asked) == 2


def test_what_is_on_this_machine_is_offered_without_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mrrag.hub.repository_bytes", None)
    models = Models([backend("first")], [Offer(str(tmp_path))], lambda offer, number: [])
    (row,) = models.rows()
    assert (row.state, row.download) == ("offered", 0)
    assert "Load it" in offers([row])


def test_a_further_model_answers_over_the_same_knowledge_base_and_leaves_the_first_alone(
    backend: Backend, pipeline: Pipeline, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny-smolvlm"
    folder.mkdir()
    TINY["smolvlm"].write(folder)
    arguments = serve.parse_arguments(["--model", "bundled", "--model", str(folder)])
    load = partial(serve.load_further, [backend], arguments)
    models = Models([backend], [Offer(str(folder))], load)
    models.load(1).result(60)
    other = models.select(1, 0)
    assert models.select(0, 0).pipeline() is pipeline
    loaded = other.pipeline()
    assert loaded.knowledge_base is pipeline.knowledge_base
    assert (loaded.scope, loaded.world, loaded.learnt.steering.layers) == (None, None, ())
    assert (other.about.model, other.about.base.number) == ("tiny-smolvlm", 1)
    query, settings = Query(picture(), "Is there an effusion?"), Settings(k=2, max_new_tokens=2)
    case = [*answer(loaded, query, find_evidence(loaded, query, settings), settings)][-1]
    assert isinstance(case, Case)
    assert case.versions["model"].startswith("tiny-smolvlm@")
    assert any("No critical layers are known for tiny-smolvlm" in note for note in case.notes)
