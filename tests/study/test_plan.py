"""What is compared differs in one thing only, and equal ways are answered once."""

from dataclasses import replace

import pytest
from tiny_experiment import make_heads

from mrrag.errors import SettingsError
from mrrag.learnt import Learnt
from mrrag.study.arena import ARENA, CONTROLS, RIVALS
from mrrag.study.heads import best_heads, shift_along
from mrrag.study.plan import (
    ABLATIONS,
    Plan,
    ReadingPlan,
    candidate_cells,
    cells_of,
    random_layers,
)
from mrrag.types import PLAIN, Rival, Shift, Steering, Weights

LEARNT = Learnt(Weights(0.5, 0.2, 0.3), Steering(0.1, (0, 5), "question+cue"))


def test_the_plain_plan_is_seven_methods_and_four_shares_of_noise_and_a_wrong_picture() -> None:
    cells = cells_of(Plan(), LEARNT, 6)
    assert [c.name for c in cells if c.table == "methods"] == [
        *("rag_off", "random_reports", "image_report", "image_image", "question_report"),
        *("rag", "mr_rag"),
    ]
    assert [c.reading.noise for c in cells if c.table == "noise"] == [0, 0, 2, 2, 4, 4, 6, 6]
    wrong = [c for c in cells if c.reading.wrong_picture]
    assert [c.name for c in wrong] == ["rag_off", "rag", "mr_rag"]
    assert len({(c.reading, c.steering) for c in cells}) == 16
    without = cells_of(Plan(wrong_picture=False), LEARNT, 6)
    assert [c for c in cells if not c.reading.wrong_picture] == without


def test_every_k_is_planned_and_rag_off_is_asked_once() -> None:
    cells = cells_of(Plan(ks=(8, 15), shares=()), LEARNT, 6)
    assert {c.k for c in cells} == {8, 15}
    assert len({c.reading for c in cells if c.name == "rag_off"}) == 2  # with either picture


def test_an_ablation_is_tested_against_its_own_plain_line() -> None:
    for cell in (cells := cells_of(Plan(ablations=ABLATIONS), LEARNT, 6)):
        if cell.table in ABLATIONS:
            same = [
                c
                for c in cells
                if (c.table, c.name, c.k, c.reading.noise)
                == (cell.table, cell.against, cell.k, cell.reading.noise)
            ]
            assert len(same) == 1


def test_the_learnt_form_steers_everywhere_but_where_forms_are_compared() -> None:
    learnt = replace(LEARNT, steering=replace(LEARNT.steering, form="balanced"))
    for cell in cells_of(Plan(ablations=ABLATIONS), learnt, 6):
        if cell.table != "form" and cell.steering.strength:
            assert cell.steering.form == "balanced"
    forms = {c.steering.form for c in cells_of(Plan(ablations=("form",)), learnt, 6)}
    assert forms == {"ifa", "balanced"}


def test_forms_are_also_compared_at_their_best() -> None:
    paper = Steering(0.5, (4, 2), "question", form="ifa")
    learnt = replace(LEARNT, forms={"ifa": paper})
    plan = Plan(ablations=("form",))
    cells = [cell for cell in cells_of(plan, learnt, 6) if cell.name == "ifa, its best"]
    assert [cell.steering for cell in cells] == [replace(paper, layers=(2, 4))] * 2
    assert all(cell.against == "none" for cell in cells)


def test_a_pair_keeps_the_learnt_ratio() -> None:
    cells = cells_of(Plan(ablations=("similarities",)), LEARNT, 6)
    pair = next(c for c in cells if c.name == "image_report + question_report")
    assert pair.reading.weights == Weights(0.5, 0.0, 0.3)


def test_without_critical_layers_ifa_is_plain_rag() -> None:
    nowhere = Learnt(LEARNT.weights, Steering(1.0, (), "question"))
    cells = cells_of(Plan(ablations=ABLATIONS), nowhere, 6)
    assert all(c.steering == PLAIN for c in cells if c.name in ("mr_rag", "critical"))
    assert not any(c.name.startswith("random:") for c in cells)


def test_random_layers_are_as_many_others_and_drawn_by_the_seed() -> None:
    drawn = random_layers((0, 5), 6, seed=3)
    assert drawn == random_layers((0, 5), 6, seed=3)
    assert len(drawn) == len(set(drawn)) == 3
    assert all(len(layers) == 2 and layers != (0, 5) for layers in drawn)
    assert random_layers((0, 1), 2, seed=0) == []


def test_no_seed_gives_fewer_random_sets_than_there_are() -> None:
    assert len(random_layers((0, 1, 2, 3), 5, seed=30)) == 3  # found after more than 20 draws
    assert all(random_layers((1,), 2, seed) == [(0,)] for seed in range(20))


@pytest.mark.parametrize(
    "plan", [Plan(methods=("magic",)), Plan(ablations=("magic",)), Plan(shares=(2.0,)), Plan(ks=())]
)
def test_a_plan_that_cannot_be_is_refused(plan: Plan) -> None:
    with pytest.raises(SettingsError):
        cells_of(plan, LEARNT, 6)


def test_candidates_differ_by_reports_cut_off_or_steering_and_none_comes_twice() -> None:
    cells = candidate_cells(LEARNT, (1, 8))
    assert len({(c.reading, c.steering) for c in cells}) == len({c.name for c in cells}) == 10
    assert cells[0].reading == ReadingPlan()
    assert [c.name for c in cells if c.k == 1] == ["RAG, K = 1"]  # one report has nothing to steer


def test_the_arena_is_a_block_for_each_kind_of_noise_with_plain_rag_first() -> None:
    plan = Plan(methods=(), arena=tuple(ARENA), shares=(0.0, 0.5), kinds=("random", "distant"))
    cells = cells_of(plan, LEARNT, 6, make_heads(6))
    blocks = {table: [c for c in cells if c.table == table] for table in {c.table for c in cells}}
    assert {*blocks} == {"arena", "arena, 4 random", "arena, 4 distant"}
    for block in blocks.values():
        assert block[0].name == "rag"
        assert {c.name for c in block} == {*ARENA}
        readings = [c.reading for c in block if c.reading.weights and c.name not in CONTROLS]
        # Every method gets the same retrieved reports.
        assert len({replace(r, order="ranked", cut="", cut_at=None) for r in readings}) == 1
    assert len({c.reading for c in cells if c.name == "rag_off"}) == 1
    steered = {c.name: c.steering for c in blocks["arena"]}
    assert steered["mr_rag"] == steered["mmed_gap_ifa"] == LEARNT.steering
    assert steered["ifa"] == replace(LEARNT.steering, strength=1.0)


def test_a_control_differs_from_its_row_in_one_thing() -> None:
    plan = Plan(methods=(), arena=tuple(ARENA), shares=(0.5,), kinds=("distant",))
    cells = {c.name: c for c in cells_of(plan, LEARNT, 6, make_heads(6))}
    mr_rag, rag = cells["mr_rag"], cells["rag"]
    for name, read in {
        "lambda_shuffled": replace(mr_rag.reading, relevance="shuffled"),
        "lambda_equal": replace(mr_rag.reading, relevance="equal"),
        "mr_rag_best_last": replace(mr_rag.reading, order="reversed"),
        "mr_rag_wrong_picture": replace(mr_rag.reading, wrong_picture=True),
    }.items():
        assert cells[name] == replace(mr_rag, name=name, reading=read)
    wrong = replace(rag.reading, wrong_picture=True)
    assert cells["wrong_picture"] == replace(rag, name="wrong_picture", reading=wrong)
    drawn = replace(rag.reading, noise=8, kind="random")
    assert cells["all_irrelevant"] == replace(rag, name="all_irrelevant", reading=drawn)
    assert {*CONTROLS} <= {*cells}


def test_a_rival_in_chosen_heads_needs_them_and_acts_in_the_best() -> None:
    plan = Plan(methods=(), arena=("pasta_heads", "iti", "iti_random"), shares=(0.0,))
    with pytest.raises(SettingsError, match="find-heads"):
        cells_of(plan, LEARNT, 6)
    heads = make_heads(6)
    pasta, iti, random = (c.steering for c in cells_of(plan, LEARNT, 6, heads)[1:])
    assert isinstance(pasta, Rival)
    assert isinstance(iti, Rival)
    assert isinstance(random, Rival)
    assert pasta.emphases[0].heads == best_heads(heads.pasta_LH, 0.25)
    assert iti.shift == shift_along(Shift(5.0), heads, 0.1)
    assert iti.shift != random.shift


def test_the_arena_has_plain_rag_even_where_it_was_not_named() -> None:
    cells = cells_of(Plan(methods=(), arena=("cad",), shares=(0.0,)), LEARNT, 6)
    assert [c.name for c in cells] == ["rag", "cad"]
    with pytest.raises(SettingsError, match="cat"):
        cells_of(Plan(arena=("cat",)), LEARNT, 6)


def test_no_two_rivals_are_the_same_way() -> None:
    cells = cells_of(Plan(methods=(), arena=RIVALS, shares=(0.0,)), LEARNT, 6, make_heads(6))
    assert len({(c.reading, c.steering) for c in cells}) == len(cells)
