"""Every method gets as many trials, and other questions are asked with the best of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_experiment import make_heads

from mrrag.errors import SettingsError
from mrrag.learnt import Learnt
from mrrag.study.arena import ARENA, CONTROLS, WRITING, Method
from mrrag.study.plan import Plan, ReadingPlan, cells_of, reading_of, way_of
from mrrag.study.trials import (
    BUDGET,
    FOLLOWS,
    TRIALS,
    Trial,
    best_trial,
    read_settings,
    settings_of,
    trial_cells,
    with_settings,
    write_settings,
)
from mrrag.types import PLAIN, Steering, Way, Weights

LEARNT = Learnt(Weights(0.5, 0.2, 0.3), Steering(2.0, (0, 5), "question+cue", form="balanced"))
TRIED = {
    "cad": {"α = -0.5": Trial(7, 10, 0.2), "α = 1": Trial(7, 10, 0.1)},
    "mr_rag": {"as learnt": Trial(5, 10, 0.2), "strength = 4": Trial(6, 10, 0.3)},
}


@pytest.mark.parametrize("name", TRIALS)
def test_every_method_has_as_many_trials_and_its_published_setting_among_them(name: str) -> None:
    plan = ReadingPlan(LEARNT.weights, 8, 4)

    def answered(method: Method) -> tuple[ReadingPlan, Way]:
        return reading_of(method, plan), way_of(method, LEARNT.steering, make_heads(6))

    tried = {answered(method) for method in TRIALS[name].values()}
    assert len(tried) == len(TRIALS[name]) == BUDGET
    assert answered(ARENA[name]) in tried


def test_a_trial_changes_how_a_method_is_set_and_nothing_else() -> None:
    for name, tried in TRIALS.items():
        for method in tried.values():
            same = replace(method, way=ARENA[name].way, strength=0.0, cut_at=ARENA[name].cut_at)
            assert same == ARENA[name]
            assert type(method.way) is type(ARENA[name].way)


def test_a_control_gets_the_setting_of_the_row_that_it_explains() -> None:
    assert {*FOLLOWS} <= {*CONTROLS, *WRITING}
    chosen = with_settings({"mr_rag": "strength = 4", "iti": "α = 10"})
    for name in ("mr_rag", "lambda_shuffled", "mr_rag_wrong_picture"):
        assert chosen[name] == replace(ARENA[name], strength=4)
    assert chosen["iti_random"].way != ARENA["iti_random"].way
    assert chosen["cad"] == ARENA["cad"]
    shown = settings_of(("rag", "iti_random", "lambda_equal", "cad"), {"iti": "α = 10"})
    assert shown == {"iti_random": "α = 10"}


def test_trials_are_answered_with_the_same_reports_at_every_share_and_kind_of_noise() -> None:
    plan = Plan(methods=(), arena=tuple(ARENA), shares=(0.5, 0.75), kinds=("random", "distant"))
    cells = trial_cells(plan, LEARNT, make_heads(6))
    assert {*cells} == {*TRIALS} - {*FOLLOWS}
    for tried in cells.values():
        for same in tried.values():
            read = [(c.reading.noise, c.reading.kind) for c in same]
            assert read == [(4, "random"), (6, "random"), (4, "distant"), (6, "distant")]
    strengths = [same[0].steering for same in cells["mr_rag"].values()]
    assert strengths == [replace(LEARNT.steering, strength=s) for s in (2.0, 0.5, 1, 4, 8)]


def test_chosen_settings_take_the_place_of_the_published_ones_and_no_other_row_changes() -> None:
    plan = Plan(methods=(), arena=tuple(ARENA), shares=(0.5,))
    published = cells_of(plan, LEARNT, 6, make_heads(6))
    chosen = {"cad": "α = 0.5", "mmed_gap": "threshold = 0.2", "mr_rag": "strength = 4"}
    rows = cells_of(plan, LEARNT, 6, make_heads(6), with_settings(chosen))
    changed = {a.name for a, b in zip(published, rows, strict=True) if a != b}
    followers = {name for name, leader in FOLLOWS.items() if leader == "mr_rag"}
    assert changed == {*chosen, *followers}
    assert cells_of(plan, LEARNT, 6, make_heads(6), with_settings({})) == published


def test_a_model_without_learnt_strength_is_not_steered_as_learnt() -> None:
    plain = replace(LEARNT, steering=replace(LEARNT.steering, strength=0.0))
    tried = trial_cells(Plan(arena=("mr_rag",), shares=(0.5,)), plain)["mr_rag"]
    steered = {setting: same[0].steering for setting, same in tried.items()}
    assert steered["as learnt"] == PLAIN
    assert steered["strength = 4"] == replace(LEARNT.steering, strength=4)


def test_the_most_right_answers_win_then_the_lowest_brier_score() -> None:
    assert best_trial(TRIED["cad"]) == "α = 1"
    assert best_trial(TRIED["mr_rag"]) == "strength = 4"
    assert best_trial({"a": Trial(1, 2, 0.1), "b": Trial(1, 2, 0.1)}) == "a"


def written(path: Path, trials: Mapping[str, Mapping[str, Trial]] = TRIED) -> Path:
    about = {"model": "abc", "knowledge_base": "kb", "questions": 10}
    write_settings(path, trials, about, {"0123456789abcdef", "fedcba9876543210"})
    return path


def test_a_file_records_all_trials_and_gives_back_what_was_chosen(tmp_path: Path) -> None:
    path = written(tmp_path / "runs" / "settings.json")
    read = read_settings(path, model="abc", knowledge_base="kb", pictures={"00000000000000"})
    assert read == {"cad": "α = 1", "mr_rag": "strength = 4"}
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["questions"] == 10
    assert stored["methods"]["cad"]["trials"]["α = -0.5"] == {"right": 7, "asked": 10, "brier": 0.2}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"model": "other"}, "another model"),
        ({"knowledge_base": "other"}, "another knowledge base"),
        ({"pictures": {"0123456789abcdef", "1"}}, "on 1 of these pictures"),
    ],
)
def test_settings_of_another_model_or_of_the_same_pictures_are_refused(
    tmp_path: Path, asked: dict[str, Any], says: str
) -> None:
    present: dict[str, Any] = {"model": "abc", "knowledge_base": "kb", "pictures": ()}
    with pytest.raises(SettingsError, match=says):
        read_settings(written(tmp_path / "settings.json"), **(present | asked))


@pytest.mark.parametrize(
    "broken",
    [
        {"format": "other"},
        {"methods": {"cad": {"chosen": "α = 7"}}},
        {"methods": {"magic": {"chosen": "α = 1"}}},
    ],
)
def test_another_file_is_refused(tmp_path: Path, broken: dict[str, Any]) -> None:
    path = written(tmp_path / "settings.json")
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | broken))
    with pytest.raises(SettingsError, match="find-settings"):
        read_settings(path, model="abc", knowledge_base="kb", pictures=())
