"""The tables of an experiment: figures, intervals and tests, ready for JSON and CSV.

Everything follows from the stored answers, so that tables can be made again, and by other
rules, without asking anything again. How tables look in print is not known here
(:mod:`mrrag.study.text`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mrrag.data.yes_no import parse_yes_no
from mrrag.files import write_atomic
from mrrag.learnt import Learnt, study_digest
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.study.answer_file import StoredAnswer
from mrrag.study.arena import EVERY, prompts_of
from mrrag.study.experiment import EvalItem, Experiment
from mrrag.study.metrics import Answers, bootstrap, brier, holm, log_loss, mcnemar, scores
from mrrag.study.plan import (
    RANDOM,
    SINGLE,
    Cell,
    Plan,
    ReadingPlan,
    arena_block,
    noisy_readings,
)
from mrrag.study.retrieval_figures import auroc_within_findings, retrieval_table
from mrrag.types import METHODS, Steering, Way

# The pairs of methods that are compared by McNemar's test.
TESTED = (
    ("rag_off", "rag"),
    ("rag", "mr_rag"),
    ("rag_off", "mr_rag"),
    *((name, "rag") for name in (RANDOM, *SINGLE)),
)
LEAKAGE = "A question's own study, and its patient's others, are never retrieved"
# The header of predictions.csv, and what metrics.csv takes from a row and from its test.
PREDICTIONS = (
    *("table", "method", "k", "irrelevant", "qid", "patient", "gold"),
    *("strict", "lenient", "p_yes", "text", "documents"),
)
SCORES = (
    *("n", "accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1"),
    *("positive_precision", "positive_recall", "positive_f1", "unparsed"),
)
TEST = ("only_first_right", "only_second_right", "p")

Row = dict[str, Any]  # of a table, ready for JSON


def tables(
    experiment: Experiment,
    answers: Mapping[str, StoredAnswer],
    base: KnowledgeBase,
    learnt: Learnt,
) -> tuple[Row, list[list[Any]]]:
    """Return all tables, ready for JSON, and every single answer, ready for CSV."""
    questions, plan = experiment.questions, experiment.plan
    scored = score_cells(experiment, answers)
    by_k = [
        {
            "k": k,
            "methods": methods_table(scored, k),
            "tests": paired_tests(scored, k),
            "noise": noise_table(scored, plan, k),
        }
        for k in plan.ks
    ]
    result = {
        "n": len(questions.items),
        "patients": len({item.case.document.patient for item in questions.items}),
        "split": questions.split,
        **by_k[0],
        "by_k": by_k,
        "wrong_picture": [row for k in plan.ks for row in wrong_picture_table(scored, k)],
        "ablations": ablations_table(scored),
        "arena": [row for k in plan.ks for row in arena_table(scored, plan, learnt, k)],
        "retrieval": retrieval_table(
            base,
            questions.items,
            {r.cell: r.answers for r in scored.rows if not r.cell.table.startswith(EVERY)},
        ),
        "skipped": dict(questions.skipped),
        "leakage": leakage(base, questions.items, learnt),
        "weights": asdict(learnt.weights),
        "layers": list(learnt.steering.layers),
        "strength": learnt.steering.strength,
        "rows": learnt.steering.rows,
        "form": learnt.steering.form,
        "plan": asdict(plan),
        "data_fingerprint": questions.fingerprint,
    }
    return result, prediction_rows(questions.items, scored)


# Scores


@dataclass(frozen=True)
class ScoredCell:
    """One row of a table with its answers; ``predicted`` is by strict parsing."""

    cell: Cell
    answers: Sequence[StoredAnswer]
    predicted: Answers
    figures: Row


@dataclass(frozen=True)
class ScoredCells:
    """Every row of every table, and the gold answers."""

    gold: Answers
    rows: tuple[ScoredCell, ...]

    def find(
        self, table: str, name: str, k: int, noise: int | None = None, kind: str = "random"
    ) -> ScoredCell | None:
        """Return a row by its table, name, K, and number and kind of irrelevant reports."""
        for row in self.rows:
            cell, reading = row.cell, row.cell.reading
            if (cell.table, cell.name, cell.k, reading.kind) == (table, name, k, kind) and (
                noise is None or reading.noise == noise
            ):
                return row
        return None

    def test(self, first: ScoredCell, second: ScoredCell) -> Row:
        """Return McNemar's test of two rows."""
        values = mcnemar(self.gold, first.predicted, second.predicted)
        return dict(zip(TEST, values, strict=True))


def score_cells(experiment: Experiment, answers: Mapping[str, StoredAnswer]) -> ScoredCells:
    """Score the answers of every cell; equal ways of answering are scored once."""
    items = experiment.questions.items
    gold: Answers = np.array([item.gold for item in items], dtype=np.int8)
    patients = np.unique([item.case.document.patient for item in items], return_inverse=True)[1]
    once: dict[tuple[ReadingPlan, Way], ScoredCell] = {}
    rows = []
    for cell in experiment.cells:
        way = cell.reading, cell.steering
        if way not in once:
            row = [answers[key] for key in experiment.keys(*way)]
            predicted: Answers = np.array([parse_yes_no(a.text) for a in row], dtype=np.int8)
            figures = _figures(gold, predicted, patients, row)
            figures["within_finding"] = auroc_within_findings(items, gold, row)
            once[way] = ScoredCell(cell, row, predicted, figures)
        rows.append(replace(once[way], cell=cell))
    return ScoredCells(gold, tuple(rows))


def _figures(
    gold: Answers,
    predicted: Answers,
    patients: npt.NDArray[np.int64],
    answers: Sequence[StoredAnswer],
) -> Row:
    """Return scores by strict parsing with intervals, and the main ones by lenient parsing."""
    accuracy, f1 = bootstrap(gold, predicted, patients)
    lenient = scores(gold, np.array([parse_yes_no(a.text, lenient=True) for a in answers], np.int8))
    return {
        **asdict(scores(gold, predicted)),
        "accuracy_interval": list(accuracy),
        "macro_f1_interval": list(f1),
        "lenient": {n: getattr(lenient, n) for n in ("accuracy", "macro_f1", "unparsed")},
    }


# Tables


def methods_table(scored: ScoredCells, k: int) -> list[Row]:
    """Return each method's scores at one K, without irrelevant reports."""
    return [
        {"method": row.cell.name, **row.figures}
        for row in scored.rows
        if row.cell.table == "methods" and row.cell.k == k
    ]


def paired_tests(scored: ScoredCells, k: int) -> list[Row]:
    """Return the tests of the pairs of methods in :data:`TESTED` that were both asked."""
    tests = []
    for a, b in TESTED:
        first, second = scored.find("methods", a, k), scored.find("methods", b, k)
        if first and second:
            tests.append({"first": a, "second": b, **scored.test(first, second)})
    return tests


def wrong_picture_table(scored: ScoredCells, k: int) -> list[Row]:
    """Return, for each method, what its answers owe to the picture and to the reports.

    ``unchanged`` is the share of answers that stay the same when another patient's picture is
    shown with the same reports. ``over_reliance`` is the share of questions that are answered
    rightly without reports and wrongly with them, and ``rescued`` the reverse.
    """
    table = []
    off = scored.find("methods", "rag_off", k)
    for name in METHODS:
        own, wrong = (scored.find(t, name, k) for t in ("methods", "wrong picture"))
        if own is None or wrong is None:
            continue
        line: Row = {
            "method": name,
            "k": k,
            "unchanged": float(np.mean(own.predicted == wrong.predicted)),
            "accuracy": own.figures["accuracy"],
            "accuracy_wrong_picture": wrong.figures["accuracy"],
            "test": scored.test(wrong, own),
        }
        if off is not None and name != "rag_off":
            right, before = own.predicted == scored.gold, off.predicted == scored.gold
            line |= {
                "over_reliance": float(np.mean(before & ~right)),
                "rescued": float(np.mean(~before & right)),
            }
        table.append(line)
    return table


def noise_table(scored: ScoredCells, plan: Plan, k: int) -> list[Row]:
    """Return RAG and MR-RAG side by side for each kind and share of irrelevant reports."""
    table = []
    for kind in plan.kinds:
        for share in plan.shares:
            noise = round(share * k)
            named = kind if noise else "random"
            rag, mr_rag = (
                scored.find("noise", name, k, noise, named) for name in ("rag", "mr_rag")
            )
            line: Row = {"kind": kind, "share": share, "irrelevant": noise, "k": k}
            line |= {row.cell.name: row.figures for row in (rag, mr_rag) if row}
            if rag and mr_rag:
                line["test"] = scored.test(rag, mr_rag)
            if rag or mr_rag:
                table.append(line)
    return table


def ablations_table(scored: ScoredCells) -> list[Row]:
    """Return every row of every ablation, tested against its control."""
    table = []
    for row in scored.rows:
        cell = row.cell
        if cell.table in ("methods", "noise", "wrong picture") or cell.table.startswith(EVERY):
            continue
        if not isinstance(cell.steering, Steering):  # for the type checker: rivals are above
            continue
        line: Row = {
            "group": cell.table,
            "method": cell.name,
            "k": cell.k,
            "irrelevant": cell.reading.noise,
            "against": cell.against,
            "strength": cell.steering.strength,
            "layers": list(cell.steering.layers),
            "form": cell.steering.form,
        }
        control = scored.find(cell.table, cell.against, cell.k, cell.reading.noise)
        if control and control is not row:
            line["test"] = scored.test(control, row)
        table.append(line | row.figures)
    return table


def arena_table(scored: ScoredCells, plan: Plan, learnt: Learnt, k: int) -> list[Row]:
    """Return every rival beside plain RAG, which comes first in each block.

    A block is one kind and number of irrelevant reports, and p is corrected for the number of
    tests in it (Holm). ``reports`` is how many were read on average, and ``prompts`` how many
    prompts the model reads for an answer.
    """
    table: list[Row] = []
    for reading in noisy_readings(plan, learnt.weights, k):
        block = arena_block(reading)
        rows = [r for r in scored.rows if (r.cell.table, r.cell.k) == (block, k)]
        tests = [scored.test(rows[0], row) for row in rows[1:]]
        corrected = holm([test["p"] for test in tests])
        for n, row in enumerate(rows):
            reports = float(np.mean([len(answer.documents) for answer in row.answers]))
            p_yes = np.array([answer.p_yes for answer in row.answers])
            line: Row = {
                "method": row.cell.name,
                "k": k,
                "kind": reading.kind,
                "irrelevant": reading.noise,
                "reports": reports,
                "prompts": prompts_of(row.cell.steering, round(reports)),
                "log_loss": log_loss(scored.gold, p_yes),
                "brier": brier(scored.gold, p_yes),
            }
            if n:
                line["test"] = tests[n - 1] | {"p_holm": corrected[n - 1]}
            table.append(line | row.figures)
    return table


def prediction_rows(items: Sequence[EvalItem], scored: ScoredCells) -> list[list[Any]]:
    """Return a header and every answer of every cell."""
    rows: list[list[Any]] = [list(PREDICTIONS)]
    for row in scored.rows:
        cell = row.cell
        where = (cell.table, cell.name, cell.k, cell.reading.noise)
        for item, answer, strict in zip(items, row.answers, row.predicted.tolist(), strict=True):
            what = (item.question.qid, item.case.document.patient, item.gold)
            parsed = (strict, parse_yes_no(answer.text, lenient=True))
            read = " ".join(answer.documents)
            rows.append([*where, *what, *parsed, f"{answer.p_yes:.6f}", answer.text, read])
    return rows


# Leakage


def leakage(base: KnowledgeBase, items: Sequence[EvalItem], learnt: Learnt) -> Row:
    """Return how much was excluded from retrieval, and how many questions were learnt from."""
    own = [item.case.document for item in items]
    excluded = [
        base.document(i)
        for i in base.positions(patients={d.patient for d in own}, studies={d.study for d in own})
    ]
    patients, studies = {d.patient for d in excluded}, {d.study for d in excluded}
    return {
        "rule": LEAKAGE,
        "questions_with_documents_excluded": sum(
            d.patient in patients or d.study in studies for d in own
        ),
        "documents_excluded": len(excluded),
        "questions_learnt_from": sum(study_digest(d.study) in learnt.studies for d in own),
    }


# Files


def metric_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return every row of every table with its figures in columns, for :func:`write_csv`."""
    rows = []
    for table in result["by_k"]:
        k = table["k"]
        rows += [_metric_row("methods", row["method"], k, 0, row) for row in table["methods"]]
        for row in table["noise"]:
            tests = {"rag": None, "mr_rag": row.get("test")}
            rows += [
                _metric_row(_noise_name(row), name, k, row["irrelevant"], row[name], test)
                for name, test in tests.items()
                if name in row
            ]
    for row in result["arena"]:
        name = "arena" if row["kind"] == "random" else f"arena, {row['kind']}"
        test = row.get("test")
        rows.append(_metric_row(name, row["method"], row["k"], row["irrelevant"], row, test))
    return rows + [
        _metric_row(r["group"], r["method"], r["k"], r["irrelevant"], r, r.get("test"))
        for r in result["ablations"]
    ]


def _noise_name(row: Row) -> str:
    return "noise" if row["kind"] == "random" else f"noise, {row['kind']}"


def _metric_row(
    table: str, name: str, k: int, irrelevant: int, figures: Row, test: Row | None = None
) -> Row:
    row: Row = {"table": table, "method": name, "k": k, "irrelevant": irrelevant}
    row |= {key: figures[key] for key in SCORES}
    for key in ("accuracy", "macro_f1"):
        row[f"{key}_low"], row[f"{key}_high"] = figures[f"{key}_interval"]
    row |= {f"lenient_{key}": value for key, value in figures["lenient"].items()}
    return row | {key: test[key] if test else "" for key in TEST}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]] | Sequence[Sequence[Any]]) -> None:
    """Write a table; the keys of a mapping are the header."""
    text = io.StringIO()
    writer = csv.writer(text)
    if rows and isinstance(rows[0], Mapping):
        writer.writerow(rows[0].keys())
    writer.writerows(r.values() if isinstance(r, Mapping) else r for r in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue())


def write_json(path: Path, value: object) -> None:
    """Write indented JSON with a newline at its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
