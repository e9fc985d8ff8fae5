"""What is learnt for a knowledge base comes from no patient who is held out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_experiment import make_pipeline, make_questions

from mrrag.data.records import Corpus, Record
from mrrag.errors import CorpusError, SettingsError
from mrrag.files import ASSETS
from mrrag.learnt import ALIKE, FILE, learnt_for, learnt_path, study_digest
from mrrag.pipeline import Pipeline
from mrrag.retrieval.build import build_knowledge_base
from mrrag.study.evaluation import encode_items, no_ticker
from mrrag.training.adapter import train_adapter
from mrrag.training.data import DataSet
from mrrag.training.layers import Sweep, sweep_layers
from mrrag.training.learn import learn_layers, learn_weights, split_questions
from mrrag.types import BUNDLED, Weights

MODEL = "tiny"
Made = tuple[Pipeline, list[Record], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llava_folder: Path) -> Made:
    folder = tmp_path_factory.mktemp("learning")
    return *make_pipeline(folder, tiny_llava_folder), folder


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bootstrap of a hundred takes most of the time, and none of these tests looks at it."""
    quick = partial(train_adapter, resamples=3)
    monkeypatch.setattr("mrrag.training.learn.train_adapter", quick)


def corpus(cases: list[Record], **splits: str) -> Corpus:
    """The cases, asked three yes/no questions each, with the splits of some."""
    records = [
        replace(c, document=replace(c.document, split=splits.get(c.document.id, ""))) for c in cases
    ]
    return Corpus(tuple(records), {}, questions=tuple(make_questions(cases)))


def patients(data: DataSet) -> set[str]:
    return set(data.patients.tolist())


def test_a_patient_with_one_held_out_question_is_held_out_whole(made: Made) -> None:
    pipeline, cases, _ = made
    read = corpus(cases)  # two cases a patient; the split is a question's alone
    questions = tuple(replace(q, split="test") if q.qid == "d2-0" else q for q in read.questions)
    split = split_questions(replace(read, questions=questions), pipeline.knowledge_base)
    assert "p1" not in patients(split.train) | patients(split.validation)
    assert split.left_out["of a patient who is held out"] == 6
    assert split.left_out["not answered by yes or no"] == 4
    by_case = split_questions(corpus(cases, d3="test"), pipeline.knowledge_base)
    assert (by_case.train, by_case.validation) == (split.train, split.validation)


def test_nobody_is_learnt_from_and_chosen_by(made: Made) -> None:
    pipeline, cases, _ = made
    drawn = split_questions(corpus(cases), pipeline.knowledge_base, validation_share=0.3)
    assert not patients(drawn.train) & patients(drawn.validation)
    assert len(patients(drawn.validation)) == 2
    # One image of a patient in the validation split is enough for both.
    given = split_questions(
        corpus(cases, d0="validation", d5="validation"), pipeline.knowledge_base
    )
    assert patients(given.validation) == {"p0", "p2"}
    assert patients(given.train) == {"p1", "p3"}


def test_cases_that_the_knowledge_base_does_not_hold_are_asked_about_first(
    made: Made, tmp_path: Path
) -> None:
    pipeline, cases, _ = made
    held = [cases[n] for n in (0, 1, 4, 7)]
    base = build_knowledge_base(tmp_path / "kb", held, pipeline.encoder, workers=1)
    split = split_questions(corpus(cases, d6="validation", d7="validation"), base)
    # d7's twin d6 is of the same patient; all are kept, in the order of the data but for this.
    asked = [record.document.id for record in split.train.records]
    assert asked == ["d2", "d3", "d5", "d0", "d1", "d4"]


def test_too_few_questions_are_refused_with_what_was_left_out(made: Made) -> None:
    pipeline, cases, _ = made
    splits = {f"d{n}": "test" for n in range(6)}
    with pytest.raises(CorpusError, match="18 of a patient who is held out"):
        split_questions(corpus(cases, **splits), pipeline.knowledge_base)


class Stopped(Exception):
    """As a kill would, between two writes."""


def learn(
    made: Made, run: Path, ticker: Any = no_ticker, *, questions: int = 100
) -> dict[str, Any]:
    pipeline, cases, _ = made
    split = split_questions(corpus(cases), pipeline.knowledge_base, validation_share=0.4)
    said = learn_weights(
        pipeline, split, run, run / FILE, model=MODEL, questions=questions, k=3, ticker=ticker
    )
    assert "95 % bootstrap intervals" in said
    stored: dict[str, Any] = json.loads((run / FILE).read_text(encoding="utf-8"))
    return stored


def test_learning_goes_on_where_it_was_stopped(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrrag.training.adapter.QUESTIONS_PER_FILE", 5)

    def stopping(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
        for n, item in enumerate(items):
            if label == "D_train" and n == 2:
                raise Stopped
            yield item

    uninterrupted = learn(made, tmp_path / "whole")
    with pytest.raises(Stopped):
        learn(made, tmp_path / "broken", stopping)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "broken").rglob("*.safetensors")}
    assert len(kept) == 2
    assert learn(made, tmp_path / "broken") == uninterrupted
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert (tmp_path / "broken" / "plot.html").exists()
    assert (tmp_path / "broken" / "config.json").exists()


def test_more_questions_than_before_are_all_asked(made: Made, tmp_path: Path) -> None:
    few = learn(made, tmp_path / "run", questions=7)
    more = learn(made, tmp_path / "run")
    assert few["adapter"]["questions"] < more["adapter"]["questions"]
    assert more == learn(made, tmp_path / "whole")


def test_the_search_for_layers_goes_on_where_it_was_stopped(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, cases, _ = made
    monkeypatch.setattr("mrrag.training.layers.BATCH", 4)
    split = split_questions(corpus(cases), pipeline.knowledge_base, validation_share=0.4)

    def search(run: Path, stop_at: tuple[str, int] = ("", -1)) -> bytes:
        def stopping(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
            for n, item in enumerate(items):
                if label.startswith(stop_at[0]) and n == stop_at[1]:
                    raise Stopped
                yield item

        options: dict[str, Any] = {"model": MODEL, "questions": 100, "k": 3, "ticker": stopping}
        learn_layers(pipeline, split, run, run / FILE, **options)
        return (run / FILE).read_bytes()

    uninterrupted = search(tmp_path / "whole")
    for stop_at in (("blocking", 1), ("steering, 2", 0)):
        with pytest.raises(Stopped):
            search(tmp_path / "broken", stop_at)
        assert list((tmp_path / "broken").rglob("*.safetensors"))
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "broken").rglob("*.safetensors")}
    assert search(tmp_path / "broken") == uninterrupted
    assert {p: p.stat().st_mtime_ns for p in done} == done


def test_what_was_learnt_serves_its_model_and_only_the_weights_another(
    made: Made, tmp_path: Path
) -> None:
    pipeline, cases, _ = made
    split = split_questions(corpus(cases), pipeline.knowledge_base, validation_share=0.4)
    path = learnt_path(MODEL, tmp_path, ASSETS)
    assert path == tmp_path / FILE
    options: dict[str, Any] = {"model": MODEL, "questions": 100, "k": 3, "ticker": no_ticker}
    learn_weights(pipeline, split, tmp_path / "adapter", path, **options)
    weights = learnt_for(MODEL, tmp_path, ASSETS)
    assert sum(map(abs, vars(weights.weights).values())) == pytest.approx(1.0)
    said = learn_layers(pipeline, split, tmp_path / "layers", path, **options)
    assert "optimistic" in said
    learnt = learnt_for(MODEL, tmp_path, ASSETS)
    seen = patients(split.train) | patients(split.validation)
    studies = {c.document.study for c in cases if c.document.patient in seen}
    assert learnt.studies == {study_digest(s) for s in studies}
    other = learnt_for("another/model", tmp_path, ASSETS)
    assert (other.weights, other.steering.layers) == (learnt.weights, ())
    bundled = learnt_for(BUNDLED, tmp_path, ASSETS)
    assert bundled.steering == learnt_for(BUNDLED, None, ASSETS).steering


@pytest.mark.parametrize("settled", [True, False])
def test_only_what_beats_the_default_by_its_interval_is_used(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: bool
) -> None:
    """The interval is set here; what it decides is not."""
    interval = (0.1, 0.01, 0.2) if settled else (0.1, -0.01, 0.2)
    monkeypatch.setattr("mrrag.training.learn.paired_gain", lambda *_: interval)
    monkeypatch.setattr("mrrag.training.layers.paired_gain", lambda *_: interval)
    pipeline, cases, _ = made
    split = split_questions(corpus(cases), pipeline.knowledge_base, validation_share=0.4)
    path = learnt_path(MODEL, tmp_path, ASSETS)
    options: dict[str, Any] = {"model": MODEL, "questions": 100, "k": 3, "ticker": no_ticker}
    weighed = learn_weights(pipeline, split, tmp_path / "adapter", path, **options)
    pipeline = replace(pipeline, learnt=learnt_for(MODEL, tmp_path, ASSETS))
    steered = learn_layers(pipeline, split, tmp_path / "layers", path, **options)
    stored, learnt = json.loads(path.read_text()), learnt_for(MODEL, tmp_path, ASSETS)
    assert stored["adapter"]["used"] is stored["sweep"]["used"] is settled
    assert ("not settled" in weighed) is ("not settled" in steered) is not settled
    assert len(learnt.intervals) == (3 if settled else 0)
    if settled:
        assert stored["weights"] == stored["adapter"]["weights"]
        assert list(learnt.steering.layers) == stored["sweep"]["best"]["layers"]
    else:
        assert learnt.weights == ALIKE  # of a base whose spreads were not measured
        assert learnt.steering == pipeline.learnt.steering
        assert len(stored["sweep"]["trials"]) > 1


def test_another_model_learns_on_a_knowledge_base_of_its_own() -> None:
    assert learnt_path(BUNDLED, None, ASSETS) == ASSETS / FILE
    assert learnt_path(BUNDLED, ASSETS / "knowledge_base", ASSETS) == ASSETS / FILE
    with pytest.raises(SettingsError, match="--kb"):
        learnt_path(MODEL, None, ASSETS)


def test_an_update_keeps_what_was_learnt_and_a_new_knowledge_base_does_not(
    made: Made, tmp_path: Path
) -> None:
    pipeline, cases, _ = made
    kb = tmp_path / "kb"
    build_knowledge_base(kb, cases, pipeline.encoder, workers=1)
    (kb / FILE).write_text("{}")
    build_knowledge_base(kb, cases[:5], pipeline.encoder, workers=1, update=True)
    assert (kb / FILE).read_text() == "{}"
    build_knowledge_base(kb, cases, pipeline.encoder, workers=1, overwrite=True)
    assert not (kb / FILE).exists()


def test_a_window_blocks_so_many_layers_around_its_centre() -> None:
    sweep = Sweep((0, 3, 6), (0.4, 0.1, 0.3), (0.01, 0.01, 0.2), window=3, layers=8, questions=9)
    assert [list(sweep.blocked(n)) for n in range(3)] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    # The third drop is large, but within two of its errors.
    assert sweep.critical() == (0, 1)
    assert sweep.within((1, 0)) == (0, 1, 2, 3, 4)


def test_a_stride_measures_fewer_windows_alike(made: Made, tmp_path: Path) -> None:
    pipeline, cases, _ = made
    read = split_questions(corpus(cases), pipeline.knowledge_base, validation_share=0.4)
    items = encode_items(pipeline, read.train.records, read.train.questions)
    layers = pipeline.backbone.layers
    weights = Weights(1.0, 1.0, 1.0)
    strided = sweep_layers(pipeline, items, weights, tmp_path / "two", k=3, stride=2)
    single = sweep_layers(pipeline, items, weights, tmp_path / "one", k=3)
    assert strided.drops == single.drops[::2]
    for window, stride in ((0, 1), (1, layers + 1)):
        with pytest.raises(SettingsError, match="Choose from 1"):
            sweep_layers(pipeline, items, weights, tmp_path, k=3, window=window, stride=stride)
