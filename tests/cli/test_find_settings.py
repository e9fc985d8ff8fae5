"""``find-settings`` tries what was named, and counts right answers over all shares of noise."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bitower import make_cases
from tiny_experiment import LEARNT, MADE_OF, make_questions

from mrrag.cli.find_settings import OFFERED, as_text, outcomes, plan_of
from mrrag.cli.main import parser
from mrrag.study.answer_file import StoredAnswer, append_answers, open_answers
from mrrag.study.experiment import ANSWERS, Experiment, choose_questions
from mrrag.study.plan import Plan
from mrrag.study.trials import trial_cells


def plan(*options: str) -> Plan:
    return plan_of(parser().parse_args(["find-settings", *options]))


def test_every_method_is_tried_and_chosen_heads_need_their_file() -> None:
    assert plan("--heads", "heads.safetensors").arena == OFFERED
    assert {*OFFERED} - {*plan().arena} == {"pasta_heads", "iti"}
    assert plan("--methods", "cad", "mr_rag", "cad").arena == ("cad", "mr_rag")
    assert plan("--noise-shares", "0", "0.5").shares == (0.0, 0.5)


def test_right_answers_count_over_all_shares(tmp_path: Path) -> None:
    cases = make_cases(tmp_path / "images", 2)
    questions = choose_questions(cases, make_questions(cases))
    tried = Plan((3,), (0.0, 0.67), arena=("replug",))
    cells = trial_cells(tried, LEARNT)
    every = tuple(cell for same in cells["replug"].values() for cell in same)
    experiment = Experiment(questions, tried, every, MADE_OF)
    gold = [item.gold for item in questions.items]
    with open_answers(tmp_path / ANSWERS) as stream:
        for cell in every:
            # Right where the setting is 1, and else where nothing is irrelevant.
            says = gold if "τ = 1" in cell.name or not cell.reading.noise else [0] * len(gold)
            rows = zip(experiment.keys(cell.reading, cell.steering), says, strict=True)
            append_answers(
                stream,
                (
                    (key, "q", StoredAnswer(("No", "Yes")[one], float(one), (), None))
                    for key, one in rows
                ),
            )
    found = outcomes(experiment, cells, tmp_path)["replug"]
    assert {trial.asked for trial in found.values()} == {2 * len(gold)}
    assert found["τ = 1"].right == 2 * len(gold)
    assert found["τ = 0.1"].right == 2 * len(gold) - sum(gold)
    assert found["τ = 1"].brier == 0
    assert found["τ = 0.1"].brier == pytest.approx(sum(gold) / (2 * len(gold)))
    text = as_text({"replug": found}, {"replug": "τ = 1"}, len(gold))
    (line,) = [line for line in text.splitlines() if line.endswith("*")]
    assert "τ = 1 " in line
    assert "100.0" in line
