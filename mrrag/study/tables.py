"""What an experiment's answers are worth: figures, intervals, tests; JSON, CSV and text.

Everything here follows from the answers in the run folder, so that tables can be made
again, and by another rule of parsing, without asking anything again.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mrrag.data.findings import FINDINGS, named, stance
from mrrag.data.yes_no import parse_yes_no
from mrrag.learnt import Learnt, study_digest
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.study.experiment import EvalItem, Questions, StoredAnswer, keys_of
from mrrag.study.metrics import Answers, bootstrap, mcnemar, scores
from mrrag.study.plan import SINGLE, Cell, Plan, ReadingPlan
from mrrag.types import Steering

NAMES = {
    "rag_off": "RAG off",
    "image_report": "RAG, image-report only",
    "image_image": "RAG, image-image only",
    "question_report": "RAG, question-report only",
    "rag": "RAG (MCR)",
    "mr_rag": "MR-RAG (MCR + IFA)",
}
TESTED = (
    ("rag_off", "rag"),
    ("rag", "mr_rag"),
    ("rag_off", "mr_rag"),
    *((name, "rag") for name in SINGLE),
)
GROUPS = {
    "similarities": "Retrieval by fewer similarities",
    "layers": "The layers in which IFA acts",
    "masking": "Hard masking against soft",
    "strength": "IFA's strength, in the critical layers",
    "form": "By what relevance steers: as in the paper (ifa), or as a prior (balanced)",
    "order": "The order in which the reports are read",
}
LEAKAGE = "A question's own study, and its patient's others, are never retrieved"


def tables(
    questions: Questions,
    cells: Sequence[Cell],
    answers: Mapping[str, StoredAnswer],
    plan: Plan,
    base: KnowledgeBase,
    learnt: Learnt,
    made_of: Mapping[str, str],
) -> tuple[dict[str, Any], list[list[Any]]]:
    """All tables, ready for JSON, and every single answer, ready for CSV."""
    posed = questions.items
    gold = np.array([p.gold for p in posed], dtype=np.int8)
    patients = np.unique([p.case.document.patient for p in posed], return_inverse=True)[1]
    given = {
        cell: [
            answers[key] for key in keys_of(questions, cell.reading, cell.steering, plan, made_of)
        ]
        for cell in cells
    }
    said = {c: np.array([parse_yes_no(g.text) for g in row], np.int8) for c, row in given.items()}
    once: dict[tuple[ReadingPlan, Steering], dict[str, Any]] = {}
    for cell in cells:
        if (way := (cell.reading, cell.steering)) not in once:
            once[way] = _figures(gold, said[cell], patients, given[cell])
    figures = {cell: once[cell.reading, cell.steering] for cell in cells}

    def find(table: str, name: str, k: int, noise: int = 0) -> Cell | None:
        for c in cells:
            if (c.table, c.name, c.k, c.reading.noise) == (table, name, k, noise):
                return c
        return None

    by_k = []
    for k in plan.ks:
        methods = [c for c in cells if c.table == "methods" and c.k == k]
        tests = []
        for a, b in TESTED:
            first, second = find("methods", a, k), find("methods", b, k)
            if first and second:
                tests.append({"first": a, "second": b, **_test(gold, said[first], said[second])})
        noise: list[dict[str, Any]] = []
        for share in plan.shares:
            drawn = round(share * k)
            pair = [find("noise", name, k, drawn) for name in ("rag", "mr_rag")]
            line: dict[str, Any] = {"share": share, "irrelevant": drawn, "k": k}
            line |= {cell.name: figures[cell] for cell in pair if cell}
            if pair[0] and pair[1]:
                line["test"] = _test(gold, said[pair[0]], said[pair[1]])
            if pair[0] or pair[1]:
                noise.append(line)
        by_k.append(
            {
                "k": k,
                "methods": [{"method": c.name, **figures[c]} for c in methods],
                "tests": tests,
                "noise": noise,
            }
        )
    ablations = []
    for cell in cells:
        if cell.table not in ("methods", "noise"):
            against = find(cell.table, cell.against, cell.k, cell.reading.noise)
            row: dict[str, Any] = {"group": cell.table, "method": cell.name, "k": cell.k}
            row |= {"irrelevant": cell.reading.noise, "against": cell.against}
            row |= {"strength": cell.steering.strength, "layers": list(cell.steering.layers)}
            row |= {"form": cell.steering.form}
            if against is not None and against is not cell:
                row["test"] = _test(gold, said[against], said[cell])
            ablations.append(row | figures[cell])
    result = {
        "n": len(posed),
        "patients": int(patients.max()) + 1,
        "split": questions.split,
        **by_k[0],
        "by_k": by_k,
        "ablations": ablations,
        "retrieval": retrieval_figures(base, posed, given),
        "skipped": dict(questions.skipped),
        "leakage": leakage(base, posed, learnt),
        "weights": asdict(learnt.weights),
        "layers": list(learnt.steering.layers),
        "strength": learnt.steering.strength,
        "rows": learnt.steering.rows,
        "form": learnt.steering.form,
        "plan": asdict(plan),
        "data_fingerprint": questions.fingerprint,
    }
    predictions: list[list[Any]] = [list(PREDICTIONS)]
    for cell, row_of in given.items():
        where = [cell.table, cell.name, cell.k, cell.reading.noise]
        for p, g, s in zip(posed, row_of, said[cell].tolist(), strict=True):
            lenient = parse_yes_no(g.text, lenient=True)
            who = [p.question.qid, p.case.document.patient, p.gold]
            predictions.append(
                [*where, *who, s, lenient, f"{g.p_yes:.6f}", g.text, " ".join(g.documents)]
            )
    return result, predictions


PREDICTIONS = (
    *("table", "method", "k", "irrelevant", "qid", "patient", "gold"),
    *("strict", "lenient", "p_yes", "text", "documents"),
)


def _figures(
    gold: Answers, said: Answers, patients: npt.NDArray[np.int64], given: Sequence[StoredAnswer]
) -> dict[str, Any]:
    """Figures by strict parsing, with intervals, and the chief ones by lenient parsing."""
    accuracy, f1 = bootstrap(gold, said, patients)
    lenient = scores(gold, np.array([parse_yes_no(g.text, lenient=True) for g in given], np.int8))
    return {
        **asdict(scores(gold, said)),
        "accuracy_interval": list(accuracy),
        "macro_f1_interval": list(f1),
        "lenient": {n: getattr(lenient, n) for n in ("accuracy", "macro_f1", "unparsed")},
    }


def _test(gold: Answers, first: Answers, second: Answers) -> dict[str, Any]:
    only_first, only_second, p = mcnemar(gold, first, second)
    return {"only_first_right": only_first, "only_second_right": only_second, "p": p}


# What was retrieved


def asked_finding(posed: EvalItem) -> str:
    """The one finding that a question asks about; empty where it names none, or several."""
    if posed.question.finding in FINDINGS:
        return posed.question.finding
    found = named(posed.question.question)
    return found[0] if len(found) == 1 else ""


_stance = lru_cache(maxsize=1 << 18)(stance)


def retrieval_figures(
    base: KnowledgeBase, posed: Sequence[EvalItem], given: Mapping[Cell, Sequence[StoredAnswer]]
) -> list[dict[str, Any]]:
    """How good each retrieval is, whatever the model makes of it.

    ``agree``, ``contradict`` and ``silent`` are mean shares of the retrieved reports by what
    they say of the finding asked about (:mod:`mrrag.data.findings`) beside the gold answer;
    doubt counts as silence. A side or a place that the question names is not looked at, and
    questions that stand in for reports (``index --vqa``) are read as if they affirmed.
    ``own_report_recall`` is how often the study's own report, which is never retrieved,
    would have been among the k; see :class:`mrrag.study.experiment.StoredAnswer`.
    """
    cells: dict[ReadingPlan, Cell] = {}
    for cell in given:
        if cell.reading.weights is not None and cell.reading.order == "ranked":
            cells.setdefault(cell.reading, cell)
    wanted = {i for cell in cells.values() for g in given[cell] for i in g.documents}
    found = (base.document(i) for i in base.positions(ids=wanted))
    reports = {document.id: document.report for document in found}
    rows = []
    for cell in cells.values():
        shares = []
        for p, g in zip(posed, given[cell], strict=True):
            finding = asked_finding(p)
            if finding:
                said = [_stance(reports[i], finding) for i in g.documents]
                yes, no = said.count("affirmed") / len(said), said.count("denied") / len(said)
                shares.append((yes, no) if p.gold else (no, yes))
        agree, contradict = np.mean(shares, axis=0).tolist() if shares else (0.0, 0.0)
        ranks = [g.own_rank for g in given[cell] if g.own_rank is not None]
        rows.append(
            {
                "method": cell.name,
                "k": cell.k,
                "irrelevant": cell.reading.noise,
                "questions_with_a_finding": len(shares),
                "agree": agree if shares else None,
                "contradict": contradict if shares else None,
                "silent": 1 - agree - contradict if shares else None,
                "agreement": agree / (agree + contradict) if agree + contradict else None,
                "own_reports": len(ranks),
                "own_report_recall": float(np.mean([r <= cell.k for r in ranks]))
                if ranks
                else None,
            }
        )
    return rows


def leakage(base: KnowledgeBase, posed: Sequence[EvalItem], learnt: Learnt) -> dict[str, Any]:
    """What was kept from being retrieved, how much there was to keep, and what was learnt from."""
    patients = {p.case.document.patient for p in posed}
    studies = {p.case.document.study for p in posed}
    held = [base.document(i) for i in base.positions(patients=patients, studies=studies)]
    both = {d.patient for d in held}, {d.study for d in held}
    return {
        "rule": LEAKAGE,
        "questions_with_documents_excluded": sum(
            p.case.document.patient in both[0] or p.case.document.study in both[1] for p in posed
        ),
        "documents_excluded": len(held),
        "questions_learnt_from": sum(
            study_digest(p.case.document.study) in learnt.studies for p in posed
        ),
    }


# On paper


def metric_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every figure of every table, a row a line; what :func:`write_csv` writes."""
    lines: list[tuple[str, str, int, int, Mapping[str, Any], Any]] = []
    for table in result["by_k"]:
        k = table["k"]
        lines += [("methods", r["method"], k, 0, r, None) for r in table["methods"]]
        for row in table["noise"]:
            for name in ("rag", "mr_rag"):
                if name in row:
                    test = row.get("test") if name == "mr_rag" else None
                    lines.append(("noise", name, k, row["irrelevant"], row[name], test))
    for row in result["ablations"]:
        lines.append(
            (row["group"], row["method"], row["k"], row["irrelevant"], row, row.get("test"))
        )
    rows = []
    for group, name, k, irrelevant, r, test in lines:
        flat: dict[str, Any] = {"table": group, "method": name, "k": k, "irrelevant": irrelevant}
        flat |= {key: r[key] for key in SCORES}
        for key in ("accuracy", "macro_f1"):
            flat[f"{key}_low"], flat[f"{key}_high"] = r[f"{key}_interval"]
        flat |= {f"lenient_{key}": value for key, value in r["lenient"].items()}
        flat |= {key: test[key] if test else "" for key in TEST}
        rows.append(flat)
    return rows


SCORES = (
    *("n", "accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1"),
    *("positive_precision", "positive_recall", "positive_f1", "unparsed"),
)
TEST = ("only_first_right", "only_second_right", "p")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]] | Sequence[Sequence[Any]]) -> None:
    """Write a table, whole or not at all; a mapping's keys are the header."""
    whole = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        if rows and isinstance(rows[0], Mapping):
            writer.writerow(rows[0].keys())
        writer.writerows(r.values() if isinstance(r, Mapping) else r for r in rows)
    whole.replace(path)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON, with a newline at its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def text(result: Mapping[str, Any]) -> str:
    """All tables, for a terminal."""
    lines = [
        f"{result['n']} yes/no questions of {result['patients']} patients, {result['split']} split",
        *(f"skipped {n:6d}  {reason}" for reason, n in result["skipped"].items()),
        leakage_text(result["leakage"]),
        steering_text(result),
    ]
    for table in result["by_k"]:
        lines += ["", *_methods_text(table)]
    for group, title in GROUPS.items():
        rows = [row for row in result["ablations"] if row["group"] == group]
        if rows:
            lines += ["", f"{title}; K = {rows[0]['k']}"]
            lines.append(f"{'':48s}{'irrelevant':>10s}{'accuracy':>26s}{'macro F1':>26s}         p")
        for row in rows:
            p = f"{row['test']['p']:10.2g}" if "test" in row else ""
            lines.append(
                f"{name_of(row['method']):48s}{row['irrelevant']:10d}{_interval(row, 'accuracy')}"
                f"{_interval(row, 'macro_f1')}{p}"
            )
    if result["retrieval"]:
        asked = result["retrieval"][0]["questions_with_a_finding"]
        lines += [
            "",
            f"what the retrieved reports say of the finding asked about ({asked} questions)",
        ]
        lines.append(
            f"{'':52s}{'K':>4s}{'irrelevant':>12s}{'agree':>8s}{'contradict':>12s}{'silent':>8s}"
            f"{'own report':>12s}"
        )
    for row in result["retrieval"]:
        agree, contradict, silent, own = (
            "-" if row[n] is None else f"{100 * row[n]:.1f}"
            for n in ("agree", "contradict", "silent", "own_report_recall")
        )
        lines.append(
            f"{name_of(row['method']):52s}{row['k']:4d}{row['irrelevant']:12d}{agree:>8s}"
            f"{contradict:>12s}{silent:>8s}{own:>12s}"
        )
    return "\n".join(lines)


def leakage_text(leak: Mapping[str, Any]) -> str:
    """The rule against leakage, with what it excluded, and what is no fair question."""
    excluded, asked = leak["documents_excluded"], leak["questions_with_documents_excluded"]
    text = f"{leak['rule']}: {excluded} documents excluded, for {asked} of the questions"
    if seen := leak["questions_learnt_from"]:
        text += (
            f". {seen} of the questions are about studies from which α, β, γ, the layers or the "
            "strength were learnt: these figures flatter MCR and IFA"
        )
    return text


def steering_text(result: Mapping[str, Any]) -> str:
    """How MR-RAG was steered, since IFA has a form here that is not the paper's."""
    where = ", ".join(map(str, result["layers"]))
    if not where or not result["strength"]:
        return "MR-RAG is not steered: no layers or no strength were learnt for this model"
    form = {"ifa": "as in the paper", "balanced": "balanced, which is not the paper's form"}
    return f"IFA in MR-RAG: {form[result['form']]}; strength {result['strength']:g}, layers {where}"


def name_of(method: str) -> str:
    """A method's name in a table."""
    return NAMES.get(method, method)


def _methods_text(table: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{'K = ' + str(table['k']):28s}{'accuracy':>26s}{'macro F1':>26s}{'F1 of yes':>11s}"
        f"{'balanced':>10s}  unparsed (lenient)"
    ]
    for row in table["methods"]:
        lines.append(
            f"{NAMES[row['method']]:28s}{_interval(row, 'accuracy')}{_interval(row, 'macro_f1')}"
            f"{100 * row['positive_f1']:11.1f}{100 * row['balanced_accuracy']:10.1f}"
            f"{row['unparsed']:10d} ({row['lenient']['unparsed']})"
        )
    if table["tests"]:
        lines += ["", "paired tests (McNemar, exact): only the first / only the second right"]
    for row in table["tests"]:
        lines.append(
            f"{NAMES[row['first']]} vs {NAMES[row['second']]}: "
            f"{row['only_first_right']} / {row['only_second_right']}, p = {row['p']:.2g}"
        )
    if table["noise"]:
        lines += ["", f"{'irrelevant reports':20s}{'RAG':>26s}{'MR-RAG':>26s}         p"]
    for row in table["noise"]:
        name = f"{row['irrelevant']} of {row['k']} ({row['share']:.0%})"
        cells = [_interval(row[n], "accuracy") if n in row else " " * 26 for n in ("rag", "mr_rag")]
        p = f"{row['test']['p']:10.2g}" if "test" in row else ""
        lines.append(f"{name:20s}{''.join(cells)}{p}")
    return lines


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_interval"]
    return f"{100 * row[name]:9.1f} ({100 * low:5.1f} to {100 * high:5.1f})"
