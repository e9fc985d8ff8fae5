"""Retrieval is judged by what reports say of the finding asked about, balanced by finding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mrrag.data.records import Question, Record
from mrrag.learnt import Learnt
from mrrag.study.answer_file import StoredAnswer
from mrrag.study.experiment import EvalItem
from mrrag.study.labels import finding_of
from mrrag.study.plan import Plan, cells_of
from mrrag.study.retrieval_figures import auroc_within_findings, retrieval_table
from mrrag.types import Document, Steering, Weights

LEARNT = Learnt(Weights(0.5, 0.2, 0.3), Steering(0.5, (1,), "question+cue"))
REPORTS = {
    "a": "There is a large pleural effusion.",
    "b": "No pleural effusion.",
    "c": "The heart is enlarged.",
    "d": "A pleural effusion cannot be excluded.",
}


class Base:
    """As much of a knowledge base as the table asks for."""

    def positions(self, *, ids: Any = ()) -> list[int]:
        return [i for i, name in enumerate(REPORTS) if name in ids]

    def document(self, i: int) -> Document:
        name = list(REPORTS)[i]
        return Document(name, REPORTS[name], f"p-{name}", f"s-{name}")


def posed(n: int, gold: int, question: str = "Is there a pleural effusion?") -> EvalItem:
    case = Record(Document(f"q{n}", "", f"patient-{n}", f"study-{n}"), Path("none.png"))
    return EvalItem(Question(f"{n}", f"q{n}", question, "Yes", "closed"), case, gold, f"image {n}")


def table_of(items: list[EvalItem], read: list[tuple[str, ...]]) -> dict[str, Any]:
    cells = cells_of(Plan((2,), (), ("rag_off", "rag")), LEARNT, 4)
    given = {
        cell: [StoredAnswer("Yes", 0.5, r if cell.reading.k else (), 2) for r in read]
        for cell in cells
    }
    base: Any = Base()
    (row,) = retrieval_table(base, items, given)
    return row


def test_what_reports_say_is_laid_beside_the_gold_answer() -> None:
    asked = [posed(0, 1), posed(1, 0), posed(2, 1, "Is it normal?")]
    row = table_of(asked, [tuple(REPORTS)] * 3)
    assert row["method"] == "rag"
    assert row["questions_with_a_finding"] == 2
    # One report affirms, one denies, one is silent and one in doubt.
    assert (row["agree"], row["contradict"], row["silent"]) == (0.25, 0.25, 0.5)
    assert row["agreement"] == 0.5
    assert (row["own_reports"], row["own_report_recall"]) == (3, 1.0)


def test_findings_and_their_absence_count_alike() -> None:
    """Nine who lack an effusion and one who has it; all are given a denial."""
    asked = [posed(n, int(n == 0)) for n in range(10)]
    row = table_of(asked, [("b",)] * 10)
    assert (row["agree"], row["contradict"]) == (0.5, 0.5)
    # "Normal?" answered yes is the absence of the finding.
    normal = [posed(0, 1, "Is the heart size normal?"), posed(1, 0, "Is the heart size normal?")]
    row = table_of(normal, [("c",), ("c",)])
    assert (row["agree"], row["contradict"]) == (0.5, 0.5)
    assert table_of(normal[1:], [("c",)])["agree"] == 1


def test_a_question_asks_about_one_finding_or_none() -> None:
    assert finding_of(posed(0, 1).question) == ("pleural effusion", True)
    assert finding_of(posed(0, 1, "Is the heart size normal?").question) == ("cardiomegaly", False)
    assert finding_of(posed(0, 1, "Is there an effusion or a pneumothorax?").question) == ("", True)
    assert finding_of(posed(0, 1, "Is this normal?").question) == ("", True)


def test_within_a_finding_the_order_of_findings_earns_nothing() -> None:
    rng = np.random.default_rng(0)
    texts = ("Is there a pleural effusion?", "Is there a nodule?")
    items = [
        posed(n, int(rng.random() < (0.9 if n % 2 else 0.1)), texts[n % 2]) for n in range(200)
    ]
    gold = np.array([item.gold for item in items], np.int8)

    def score(p_yes: np.ndarray[Any, Any]) -> dict[str, Any]:
        answers = [StoredAnswer("Yes", float(p), (), None) for p in p_yes]
        return auroc_within_findings(items, gold, answers)

    by_name = np.where(np.arange(200) % 2, 0.9, 0.1)
    assert roc_auc_score(gold, by_name) > 0.85
    assert score(by_name)["auroc"] == 0.5
    guess = rng.random(200)
    pairs = [
        (roc_auc_score(gold[rows], guess[rows]), gold[rows].sum() * (1 - gold[rows]).sum())
        for rows in (slice(0, None, 2), slice(1, None, 2))
    ]
    weights = [n for _, n in pairs]
    found = score(guess)
    assert found["auroc"] == pytest.approx(np.average([a for a, _ in pairs], weights=weights))
    assert found["interval"][0] < found["auroc"] < found["interval"][1]
    assert score(gold + rng.random(200))["auroc"] == 1
    lone = auroc_within_findings(items[:1], gold[:1], [StoredAnswer("Yes", 0.5, (), None)])
    assert lone == {"auroc": None, "interval": None, "findings": 0}
