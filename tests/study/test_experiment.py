"""An experiment goes on where it was stopped, and ends as an undisturbed one does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apart import run_apart
from tiny_experiment import (
    LEARNT,
    answer,
    answer_and_die,
    make_experiment,
    make_pipeline,
    make_questions,
)

from mrrag.data.records import Question, Record
from mrrag.errors import SettingsError
from mrrag.pipeline import Pipeline
from mrrag.study import experiment as module
from mrrag.study.answer_file import read_answers
from mrrag.study.arena import ARENA
from mrrag.study.experiment import (
    ANSWERS,
    EvalItem,
    Experiment,
    Questions,
    choose_questions,
    one_each,
)
from mrrag.study.plan import Plan, ReadingPlan
from mrrag.types import PLAIN, Document, Retrieved, Steering, Weights

Made = tuple[Pipeline, list[Record], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llava_folder: Path) -> Made:
    folder = tmp_path_factory.mktemp("experiment")
    return *make_pipeline(folder, tiny_llava_folder), folder


@pytest.fixture(scope="module")
def undisturbed(made: Made) -> Path:
    run = made[2] / "undisturbed"
    answer(made[0], made[1], run)
    return run / ANSWERS


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_a_killed_experiment_ends_as_an_undisturbed_one(
    made: Made, undisturbed: Path, tiny_llava_folder: Path, tmp_path: Path
) -> None:
    code, error = run_apart(answer_and_die, made[2], tiny_llava_folder, tmp_path)
    assert code == -signal.SIGKILL, error
    half = lines(tmp_path / ANSWERS)
    assert 1 < len(half) < len(lines(undisturbed))
    answer(made[0], made[1], tmp_path)
    assert lines(tmp_path / ANSWERS)[: len(half)] == half
    assert (tmp_path / ANSWERS).read_bytes() == undisturbed.read_bytes()


@pytest.mark.parametrize("cut", [3, 4000])
def test_a_file_cut_off_anywhere_is_made_whole(
    made: Made, undisturbed: Path, tmp_path: Path, cut: int
) -> None:
    (tmp_path / ANSWERS).write_bytes(undisturbed.read_bytes()[:cut])
    answer(made[0], made[1], tmp_path)
    assert sorted(lines(tmp_path / ANSWERS)) == sorted(lines(undisturbed))
    assert read_answers(tmp_path) == read_answers(undisturbed.parent)


def test_what_is_answered_is_not_asked_again(
    made: Made, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("asked again")

    monkeypatch.setattr(module, "encode_questions", never)
    before = undisturbed.read_bytes()
    answer(made[0], made[1], undisturbed.parent)
    assert undisturbed.read_bytes() == before


def test_two_processes_share_the_questions_and_give_the_same_answers(
    made: Made, undisturbed: Path, tmp_path: Path
) -> None:
    for part in range(2):
        answer(made[0], made[1], tmp_path, part=part, parts=2)
    assert len(list(tmp_path.glob("answers*.csv"))) == 2
    assert read_answers(tmp_path) == read_answers(undisturbed.parent)


def test_a_second_experiment_in_the_same_folder_is_refused(made: Made, tmp_path: Path) -> None:
    def within(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
        with pytest.raises(SettingsError, match="Another experiment"):
            answer(made[0], made[1], tmp_path)
        return iter(())

    answer(made[0], made[1], tmp_path, ticker=within)


def test_a_full_disk_is_said_and_loses_nothing(
    made: Made, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SettingsError, match="no room left"):
        answer(made[0], made[1], tmp_path)
    answer(made[0], made[1], tmp_path)
    assert read_answers(tmp_path) == read_answers(undisturbed.parent)


def test_the_own_study_and_patient_are_never_read(made: Made, undisturbed: Path) -> None:
    experiment = make_experiment(made[0], made[1])
    answers = read_answers(undisturbed.parent)
    patients = {c.document.id: c.document.patient for c in made[1]}
    keys = experiment.keys(ReadingPlan(LEARNT.weights, 3), PLAIN)
    for key, item in zip(keys, experiment.questions.items, strict=True):
        read = answers[key].documents
        assert len(read) == 3
        assert item.case.document.patient not in {patients[i] for i in read}
        assert answers[key].own_rank is not None


def test_every_cell_has_an_answer_to_every_question(made: Made, undisturbed: Path) -> None:
    experiment = make_experiment(made[0], made[1])
    answers = read_answers(undisturbed.parent)
    for cell in experiment.cells:
        for key in experiment.keys(cell.reading, cell.steering):
            assert len(answers[key].documents) == cell.reading.k


def ranked(score: float) -> Retrieved:
    nothing = (0.0, 0.0, 0.0)
    return Retrieved(Document("d", "", "p", "s"), 1, score, nothing, nothing, 0.0, 0.0)


def test_the_order_of_reading_is_the_ranking_turned_round_or_shuffled() -> None:
    found = tuple(ranked(1.0 - n / 9) for n in range(8))
    assert module._in_order(found, "ranked", 3) == found
    assert module._in_order(found, "reversed", 3) == found[::-1]
    shuffled = module._in_order(found, "shuffled", 3)
    assert shuffled != found
    assert sorted(shuffled, key=lambda r: -r.score) == list(found)
    assert module._in_order(found, "shuffled", 3) == shuffled


def test_relevance_is_shuffled_or_made_equal_and_nothing_else_changes() -> None:
    found = tuple(replace(ranked(1.0 - n / 9), relevance=n / 7, gap=n / 70) for n in range(8))
    given = {w: module._with_relevance(found, w, 3) for w in ("own", "shuffled", "equal")}
    assert given["own"] == found
    assert given["shuffled"] == module._with_relevance(found, "shuffled", 3) != found
    pairs = [(r.relevance, r.gap) for r in given["shuffled"]]
    assert sorted(pairs) == [(r.relevance, r.gap) for r in found]
    assert [(r.relevance, r.gap) for r in given["equal"]] == [pytest.approx((0.5, 0.05))] * 8
    for after in given.values():
        assert [replace(r, relevance=0.0, gap=0.0) for r in after] == [
            replace(r, relevance=0.0, gap=0.0) for r in found
        ]


def test_a_key_depends_on_all_that_decides_the_answer(made: Made) -> None:
    usual = make_experiment(made[0], made[1])
    other = replace(usual, made_of={"model": "other"})
    longer = replace(usual, plan=Plan(answer_tokens=9))
    reseeded = replace(usual, plan=Plan(seed=1))
    reading, noisy = ReadingPlan(LEARNT.weights, 3), ReadingPlan(LEARNT.weights, 3, 2)
    seen = [
        usual.keys(reading, PLAIN),
        other.keys(reading, PLAIN),
        longer.keys(reading, PLAIN),
        usual.keys(ReadingPlan(LEARNT.weights, 4), PLAIN),
        usual.keys(reading, Steering(1.0, (1,))),
        usual.keys(noisy, PLAIN),
        reseeded.keys(noisy, PLAIN),
    ]
    assert len({key for keys in seen for key in keys}) == 7 * len(usual.questions.items)
    # A seed that plays no part does not count.
    assert reseeded.keys(reading, PLAIN) == seen[0]


def test_the_wrong_picture_is_another_patient_s_and_all_else_is_the_same(
    made: Made, undisturbed: Path
) -> None:
    experiment = make_experiment(*made[:2])
    answers = read_answers(undisturbed.parent)
    weights = LEARNT.weights
    for i, item in enumerate(experiment.questions.items):
        shown = experiment.shown(i)
        assert shown.case.document.patient != item.case.document.patient
        assert shown.image != item.image
    own, wrong = (
        experiment.keys(ReadingPlan(weights, 3, wrong_picture=wrong), PLAIN)
        for wrong in (False, True)
    )
    assert not set(own) & set(wrong)
    # The same reports are read, and P(yes) differs, since the model looks at the picture.
    pairs = [(answers[a], answers[b]) for a, b in zip(own, wrong, strict=True)]
    assert all(a.documents == b.documents for a, b in pairs)
    assert any(a.p_yes != b.p_yes for a, b in pairs)


def test_keys_stay_as_they_are_so_that_older_run_folders_are_read() -> None:
    case = Record(Document("d7", "The heart is enlarged.", "p7", "s7"), Path("none.png"))
    question = Question("q7", "d7", "Is the heart enlarged?", "Yes", "closed")
    questions = Questions((EvalItem(question, case, 1, "ab" * 32),), "test", {}, "")
    experiment = Experiment(questions, Plan(seed=2), (), {"model": "m", "encoder": "e"})
    weights = Weights(0.5, 0.2, 0.3)
    noisy, shuffled = ReadingPlan(weights, 8, 2), ReadingPlan(weights, 8, order="shuffled")
    ifa = Steering(0.1, (0, 5), "question+cue", form="balanced")
    assert experiment.keys(ReadingPlan(), PLAIN) == ["16699d4cdfba06e7c06604e12c29f416"]
    assert experiment.keys(noisy, ifa) == ["14b0df6fcccb50107c4eeefac2b18c00"]
    assert experiment.keys(shuffled, PLAIN) == ["50e0e5ce5add68f2684ce649a15479b2"]
    eight, (pai, cad) = ReadingPlan(weights, 8), (ARENA[name].way for name in ("pai", "cad"))
    assert pai is not None
    assert cad is not None
    assert experiment.keys(eight, pai) == ["4b61dde25e91f9547bd5ecb36ef35b37"]
    assert experiment.keys(eight, cad) == ["26d18f1d3ae4b421444b148346f26be1"]


def test_questions_are_chosen_by_split_and_the_rest_counted(made: Made) -> None:
    questions = make_questions(made[1])
    odd = Question("odd", "d0", "Is it large ?", "Perhaps", "closed")
    other = Question("other", "d0", "Is it large ?", "No", "closed", split="train")
    posed = choose_questions(
        made[1], [*questions, odd, other], "", 10, {"image file absent": ["a", "b"]}
    )
    assert len(posed.items) == 10
    assert posed.split == "all"
    assert posed.skipped["image file absent"] == 2
    assert posed.skipped["open: the answer is not yes or no"] == 4
    assert posed.skipped["closed, but the answer begins with neither yes nor no"] == 1
    assert len(choose_questions(made[1], [*questions, other], "train").items) == 1
    with pytest.raises(SettingsError, match="no yes/no question in the split test"):
        choose_questions(made[1], questions, "test")


def test_the_data_are_known_by_their_content(made: Made) -> None:
    questions = make_questions(made[1])
    first = choose_questions(made[1], questions).fingerprint
    assert choose_questions(made[1], list(questions)).fingerprint == first
    assert choose_questions(made[1], questions[1:]).fingerprint != first


def test_one_question_of_each_patient_is_drawn_and_always_the_same(made: Made) -> None:
    questions = make_questions(made[1])
    drawn = one_each(made[1], questions)
    patient_of = {case.document.id: case.document.patient for case in made[1]}
    patients = [patient_of[q.uid] for q in drawn]
    assert sorted(patients) == sorted(set(patient_of.values()))
    assert all(q.answer_type == "closed" for q in drawn)
    assert drawn == one_each(made[1], questions)
    assert drawn != [next(q for q in questions if patient_of[q.uid] == p) for p in patients]
