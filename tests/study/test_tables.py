"""Tables follow from the kept answers alone, and say what retrieval was worth."""

from __future__ import annotations

import csv
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score
from statsmodels.stats.contingency_tables import mcnemar

from mrrag.data.records import Question, Record
from mrrag.data.yes_no import UNPARSED, parse_yes_no
from mrrag.learnt import Learnt, study_digest
from mrrag.report.experiment_page import experiment_to_html
from mrrag.study.answer_file import StoredAnswer
from mrrag.study.experiment import EvalItem, Experiment, Questions
from mrrag.study.plan import ABLATIONS, Plan, cells_of
from mrrag.study.tables import leakage, metric_rows, tables, write_csv
from mrrag.study.text import leakage_text, steering_text, tables_text
from mrrag.types import Document, Steering, Weights

LEARNT = Learnt(Weights(0.5, 0.2, 0.3), Steering(0.5, (1,), "question+cue"))
PLAN = Plan((4, 2), (0.0, 0.5), ablations=ABLATIONS)
REPORTS = {
    "a": "There is a large pleural effusion.",
    "b": "No pleural effusion.",
    "c": "The heart is enlarged.",
    "d": "A pleural effusion cannot be excluded.",
}
TEXTS = ("Yes.", "No.", "There is none, no.", "I see a <b>chest</b>")


class Base:
    """As much of a knowledge base as tables ask for."""

    names = tuple(REPORTS)

    def positions(self, *, patients: Any = (), studies: Any = (), ids: Any = ()) -> list[int]:
        return [
            i
            for i, n in enumerate(self.names)
            if n in ids or f"p-{n}" in patients or f"s-{n}" in studies
        ]

    def document(self, i: int) -> Document:
        name = self.names[i]
        return Document(name, REPORTS[name], f"p-{name}", f"s-{name}")


def posed(n: int, gold: int, question: str = "Is there a pleural effusion?") -> EvalItem:
    patient = "p-a" if n == 0 else f"other-{n // 2}"
    case = Record(Document(f"q{n}", "", patient, f"study-{n}"), Path("none.png"))
    return EvalItem(Question(f"{n}", f"q{n}", question, "Yes", "closed"), case, gold, f"image {n}")


@pytest.fixture(scope="module")
def made() -> tuple[dict[str, Any], list[list[Any]], dict[str, list[str]]]:
    """The tables of made-up answers, and those answers by the name of the method."""
    rng = np.random.default_rng(0)
    questions = Questions(
        tuple(posed(n, int(rng.integers(2))) for n in range(60)), "test", {"open": 3}, "f" * 64
    )
    experiment = Experiment(questions, PLAN, tuple(cells_of(PLAN, LEARNT, 4)), {})
    answers: dict[str, StoredAnswer] = {}
    said: dict[str, list[str]] = {}
    for cell in experiment.cells:
        keys = experiment.keys(cell.reading, cell.steering)
        for key in keys:
            read = tuple(rng.choice(list(REPORTS), cell.reading.k, replace=False).tolist())
            answer = TEXTS[int(rng.choice(4, p=[0.5, 0.35, 0.1, 0.05]))]
            answers.setdefault(key, StoredAnswer(answer, 0.5, read, int(rng.integers(1, 6))))
        if cell.table == "methods" and cell.k == 4:
            said[cell.name] = [answers[key].text for key in keys]
    base: Any = Base()
    result, predictions = tables(experiment, answers, base, LEARNT)
    said["gold"] = [str(p.gold) for p in questions.items]
    return result, predictions, said


def test_figures_equal_those_of_scikit_learn_and_tests_those_of_statsmodels(made: Any) -> None:
    result, _, said = made
    gold = np.array([int(g) for g in said["gold"]])
    parsed = {name: np.array([parse_yes_no(t) for t in row]) for name, row in said.items()}
    for row in result["methods"]:
        answers = parsed[row["method"]]
        assert row["accuracy"] == pytest.approx(accuracy_score(gold, answers))
        macro = f1_score(gold, answers, labels=[0, 1], average="macro")
        assert row["macro_f1"] == pytest.approx(macro)
        assert row["unparsed"] == np.sum(answers == UNPARSED)
        lenient = np.array([parse_yes_no(t, lenient=True) for t in said[row["method"]]])
        assert row["lenient"]["accuracy"] == pytest.approx(accuracy_score(gold, lenient))
        low, high = row["accuracy_interval"]
        assert low <= row["accuracy"] <= high
    for row in result["tests"]:
        first, second = (parsed[row[n]] == gold for n in ("first", "second"))
        table = [[0, np.sum(first & ~second)], [np.sum(~first & second), 0]]
        assert row["p"] == pytest.approx(mcnemar(table, exact=True).pvalue)


def test_the_first_k_keeps_the_shape_that_others_read(made: Any) -> None:
    result = made[0]
    assert {"n", "k", "split", "methods", "tests", "noise", "weights", "layers"} <= result.keys()
    assert [row["method"] for row in result["methods"]] == [
        *("rag_off", "random_reports", "image_report", "image_image", "question_report"),
        *("rag", "mr_rag"),
    ]
    assert [t["k"] for t in result["by_k"]] == [4, 2]
    assert result["by_k"][0]["methods"] == result["methods"]
    assert [row["irrelevant"] for row in result["noise"]] == [0, 2]
    assert json.loads(json.dumps(result, allow_nan=False)) == json.loads(json.dumps(result))


def test_every_line_is_in_the_csv_and_every_answer_in_the_predictions(
    made: Any, tmp_path: Path
) -> None:
    result, predictions, _ = made
    write_csv(tmp_path / "metrics.csv", metric_rows(result))
    with (tmp_path / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 7 + 2 * 2 * 2 + len(result["ablations"])
    assert float(rows[0]["accuracy"]) == result["methods"][0]["accuracy"]
    assert len(predictions) == 1 + 60 * (len(rows) + 2 * 3)  # the wrong picture's too
    assert {len(row) for row in predictions} == {len(predictions[0])}


def test_what_answers_owe_to_the_picture_and_to_the_reports_is_counted(made: Any) -> None:
    result, predictions, said = made
    gold = np.array([int(g) for g in said["gold"]])
    answers: dict[tuple[str, str], list[int]] = {}
    for row in predictions[1:]:
        if row[2] == 4 and row[3] == 0:
            answers.setdefault((row[0], row[1]), []).append(row[7])
    rows = {row["method"]: row for row in result["wrong_picture"] if row["k"] == 4}
    assert list(rows) == ["rag_off", "rag", "mr_rag"]
    for name, row in rows.items():
        own, wrong = (np.array(answers[table, name]) for table in ("methods", "wrong picture"))
        assert row["unchanged"] == np.mean(own == wrong)
        if name != "rag_off":
            before = np.array(answers["methods", "rag_off"]) == gold
            assert row["over_reliance"] == np.mean(before & (own != gold))
            assert row["rescued"] == np.mean(~before & (own == gold))
    assert "over_reliance" not in rows["rag_off"]


def test_what_was_kept_from_leaking_is_said(made: Any) -> None:
    result = made[0]
    assert result["leakage"]["documents_excluded"] == 1
    assert result["leakage"]["questions_with_documents_excluded"] == 1
    assert "never retrieved: 1 documents excluded, for 1 of the questions" in tables_text(result)
    assert "flatter" not in tables_text(result)


def test_questions_about_studies_that_were_learnt_from_are_counted_aloud() -> None:
    base: Any = Base()
    asked = [posed(0, 1), posed(1, 0), posed(2, 1)]
    seen = study_digest(asked[1].case.document.study)
    said = leakage(base, asked, replace(LEARNT, studies=frozenset({seen})))
    assert said["questions_learnt_from"] == 1
    assert "1 of the questions are about studies from which" in leakage_text(said)


def test_how_mr_rag_was_steered_is_said_in_every_output(made: Any) -> None:
    result, _, _ = made
    told = steering_text(result | {"form": "balanced", "layers": [0, 5], "strength": 2.0})
    assert "not the paper's form; strength 2, layers 0, 5" in told
    assert "not steered" in steering_text(result | {"layers": []})
    assert steering_text(result) in tables_text(result)
    assert html.escape(steering_text(result)) in experiment_to_html(result)


def test_a_model_that_knows_no_such_pictures_makes_every_output_say_so(made: Any) -> None:
    result, _, _ = made
    told = result | {"outside": (98, 100)}
    assert "WARNING: 98 of 100 sampled pictures are unlike" in tables_text(told)
    assert "98 of 100 sampled pictures are unlike" in experiment_to_html(told)
    for known in (result, result | {"outside": (3, 100)}, result | {"outside": None}):
        assert "unlike" not in tables_text(known)


def test_the_text_holds_every_table(made: Any) -> None:
    said = tables_text(made[0])
    for part in ("K = 4", "K = 2", "skipped", "McNemar", "2 of 4 (50%)", "hard, all layers"):
        assert part in said


def test_the_report_is_one_file_that_asks_nobody(made: Any) -> None:
    page = experiment_to_html(made[0])
    # What plotly itself holds are the names of map servers, which it never asks here.
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert "http" not in own
    assert "src=" not in own
    embedded = re.search(r'<script type="application/json" id="result">(.*?)</script>', page, re.S)
    assert embedded is not None
    assert json.loads(embedded[1])["n"] == 60
    assert page.count("Plotly.newPlot(") >= 2 + 2 + len(ABLATIONS)


def test_the_report_lays_the_paper_beside_and_invents_nothing(made: Any) -> None:
    page = experiment_to_html(made[0])
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    for figure in ("85.64 / 82.62", "88.13 / 85.19", "79.35 / 78.61", "84.47 / 66.78"):
        assert figure in shown
    assert "from 77.9 to 68.1 %" in shown
    assert shown.count('class="paper"') == 2 + 2 + len(ABLATIONS) + 1
    assert shown.count("not known here") == 5  # noise twice, similarities, layers, masking


def test_what_a_data_set_says_cannot_break_the_report(made: Any) -> None:
    page = experiment_to_html(made[0] | {"data": "</script><script>alert(1)</script>"})
    assert "<script>alert" not in page
    assert page.count("&lt;/script&gt;&lt;script&gt;alert(1)") == 1
