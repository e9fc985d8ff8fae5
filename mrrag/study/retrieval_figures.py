"""How good retrieval is, judged by what the reports say of the finding asked about.

It knows the finding rules and the kept answers, and asks no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.study.answer_file import StoredAnswer
from mrrag.study.experiment import EvalItem
from mrrag.study.labels import cached_stance, finding_of
from mrrag.study.metrics import Answers
from mrrag.study.plan import Cell, ReadingPlan

__all__ = ["auroc_within_findings", "retrieval_table"]

Row = dict[str, Any]


def retrieval_table(
    base: KnowledgeBase, items: Sequence[EvalItem], answers: Mapping[Cell, Sequence[StoredAnswer]]
) -> list[Row]:
    """Return how good each retrieval is, whatever the model makes of it.

    ``agree``, ``contradict`` and ``silent`` are mean shares of the retrieved reports, by
    what they say of the finding asked about (:mod:`mrrag.data.findings`) compared with the
    gold answer; doubt counts as silence. They are balanced: each finding counts alike, and in
    it those who have the finding count as much as those who do not, since most reports deny
    most findings whoever is asked about. A side or place named in the question is ignored,
    and questions that stand in for reports (``index --vqa``) are read as if they affirmed.
    ``own_report_recall`` is how often the study's own report, which is never retrieved,
    would have been among the k; see :func:`mrrag.study.experiment.own_ranks`.
    """
    cells: dict[ReadingPlan, Cell] = {}
    for cell in answers:
        reading = cell.reading
        if reading.weights and reading.order == "ranked" and not reading.wrong_picture:
            cells.setdefault(reading, cell)
    ids = {i for cell in cells.values() for answer in answers[cell] for i in answer.documents}
    documents = (base.document(i) for i in base.positions(ids=ids))
    reports = {document.id: document.report for document in documents}
    return [
        {
            "method": cell.name,
            "k": cell.k,
            "irrelevant": cell.reading.noise,
            "kind": cell.reading.kind,
            "cut": cell.reading.cut,
            **_agreement(items, answers[cell], reports),
            **_own_report_recall(answers[cell], cell.k),
        }
        for cell in cells.values()
    ]


def _agreement(
    items: Sequence[EvalItem], answers: Sequence[StoredAnswer], reports: Mapping[str, str]
) -> Row:
    shares: dict[str, dict[bool, list[tuple[float, float]]]] = {}
    for item, answer in zip(items, answers, strict=True):
        finding, presence = finding_of(item.question)
        if not finding:
            continue
        stances = [cached_stance(reports[i], finding) for i in answer.documents]
        yes, no = (stances.count(s) / len(stances) for s in ("affirmed", "denied"))
        present = bool(item.gold) == presence
        of_finding = shares.setdefault(finding, {})
        of_finding.setdefault(present, []).append((yes, no) if present else (no, yes))
    each = [
        np.mean([np.mean(rows, axis=0) for rows in of_finding.values()], axis=0)
        for of_finding in shares.values()
    ]
    agree, contradict = np.mean(each, axis=0).tolist() if each else (0.0, 0.0)
    return {
        "questions_with_a_finding": sum(
            len(rows) for of_finding in shares.values() for rows in of_finding.values()
        ),
        "agree": agree if each else None,
        "contradict": contradict if each else None,
        "silent": 1 - agree - contradict if each else None,
        "agreement": agree / (agree + contradict) if agree + contradict else None,
    }


def _own_report_recall(answers: Sequence[StoredAnswer], k: int) -> Row:
    ranks = [answer.own_rank for answer in answers if answer.own_rank is not None]
    recall = float(np.mean([rank <= k for rank in ranks])) if ranks else None
    return {"own_reports": len(ranks), "own_report_recall": recall}


def auroc_within_findings(
    items: Sequence[EvalItem],
    gold: Answers,
    answers: Sequence[StoredAnswer],
    *,
    resamples: int = 200,
    seed: int = 0,
) -> Row:
    """Return how well P(yes) orders the questions about one finding, over all findings.

    A method that never sees the picture cannot tell patients apart, and reaches 0.5 where the
    questions are worded alike. If it reaches more, the words of the questions give the
    answers away. Pairs of a question whose answer is yes and one whose answer is no are
    compared within a finding; all pairs count alike.

    Returns
    -------
    dict
        ``auroc`` with its 95 % ``interval`` by patient, and the number of ``findings``; None
        and 0 where no finding has both answers.
    """
    groups: dict[tuple[str, bool], list[int]] = {}
    for i, item in enumerate(items):
        key = finding_of(item.question)
        if key[0]:
            groups.setdefault(key, []).append(i)
    score_N = np.array([answer.p_yes for answer in answers])
    patient_N = np.unique([i.case.document.patient for i in items], return_inverse=True)[1]
    both = [np.array(rows) for rows in groups.values() if 0 < gold[rows].sum() < len(rows)]
    if not both:
        return {"auroc": None, "interval": None, "findings": 0}

    count = int(patient_N.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = rng.integers(count, size=(resamples, count))
    weights = [np.ones(count), *(np.bincount(d, minlength=count).astype(float) for d in drawn)]
    whole, *resampled = (_concordance(both, gold, score_N, w_P[patient_N]) for w_P in weights)
    low, high = np.nanpercentile(resampled, (2.5, 97.5)).tolist()
    return {
        "auroc": whole,
        "interval": [low, high],
        "findings": len({key[0] for key in groups}),
    }


def _concordance(
    groups: Sequence[npt.NDArray[np.int64]],
    gold: Answers,
    score_N: npt.NDArray[np.float64],
    weight_N: npt.NDArray[np.float64],
) -> float:
    """Return the weighted share of pairs within the groups that the scores order rightly."""
    concordant = pairs = 0.0
    for rows in groups:
        yes, no = rows[gold[rows] == 1], rows[gold[rows] == 0]
        no = no[np.argsort(score_N[no])]
        below_N = np.concatenate([[0.0], np.cumsum(weight_N[no])])
        sides = (np.searchsorted(score_N[no], score_N[yes], side) for side in ("left", "right"))
        concordant += sum(float(weight_N[yes] @ below_N[at]) / 2 for at in sides)
        pairs += float(weight_N[yes].sum() * below_N[-1])
    return concordant / pairs if pairs else np.nan
