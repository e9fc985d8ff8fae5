"""The findings of studies, as labels: from their reports by rule, or from the data set's own.

Words in, booleans out; it knows no vector and no score.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mrrag.data.findings import FINDINGS, affirmed_in, asked, stance
from mrrag.data.records import Question, Record

__all__ = [
    "Labels",
    "cached_stance",
    "finding_of",
    "labels_of_problems",
    "labels_of_reports",
    "neutral_question",
]

BoolArray = npt.NDArray[np.bool_]

# Labels that say that there is nothing, or where something is but not what.
_NO_FINDING = frozenset({"normal", "no finding", "no indexing"})
_PLACES = re.compile(
    r"(?:lungs?|(?:thoracic |lumbar |cervical )?(?:vertebrae|spine)|diaphragm|(?:thoracic )?aorta"
    r"|costophrenic angle|cardiac shadow|heart|mediastinum|shoulder|thorax|ribs|humerus|clavicle"
    r"|abdomen|neck|trachea|sternum|bronchi|hilum|epicardial fat|technical quality.*)"
)
# Words that are not counted ("Is there pneumonia?"), by how they end.
_UNCOUNTED = re.compile(r"(?:aly|ema|ening|ia|ing|is|osity|ation|congestion|disease|fluid|air)$")
_COUNTED = re.compile(r"(?:hernia|infiltration|eventration)$")


@dataclass(frozen=True)
class Labels:
    """Which labels queries and documents have.

    Attributes
    ----------
    names : tuple of str
        Of the L labels.
    has_QL, holds_NL : bool [Q, L], [N, L]
        Of the queries, and of the documents.
    origin : str
        Where they come from, in words.
    """

    names: tuple[str, ...]
    has_QL: BoolArray
    holds_NL: BoolArray
    origin: str


# Of a report on a finding; experiments ask the same of the same reports again and again.
cached_stance = lru_cache(maxsize=1 << 18)(stance)


def neutral_question(finding: str) -> str:
    """Return "Is there a …?", with the article that the finding takes, or "Are there …?"."""
    words = finding.lower()
    if not _COUNTED.search(words) and _UNCOUNTED.search(words):
        return f"Is there {words}?"
    if re.search(r"[^s]s$", words) and not words.endswith(("us", "ax")):
        return f"Are there {words}?"
    return f"Is there {'an' if words[0] in 'aeiou' else 'a'} {words}?"


def finding_of(question: Question) -> tuple[str, bool]:
    """Return the one finding that a question is about, and whether "yes" means it is present.

    Empty where none or several are named. "Is the heart size normal?" asks for absence.
    """
    found = {a.finding: a.polarity == "presence" for a in asked(question.question)}
    if question.finding in FINDINGS:
        return question.finding, found.get(question.finding, True)
    return next(iter(found.items())) if len(found) == 1 else ("", True)


def labels_of_reports(queries: Sequence[str], documents: Sequence[str]) -> Labels:
    """Label reports with the findings that they affirm, by the rules of `mrrag.data.findings`."""
    names = tuple(FINDINGS)
    return Labels(names, _affirmed(queries, names), _affirmed(documents, names), "finding rules")


def _affirmed(reports: Sequence[str], names: Sequence[str]) -> BoolArray:
    said: dict[str, list[bool]] = {}  # boilerplate reports come again and again
    for report in reports:
        if report not in said:
            affirmed = affirmed_in(report, names)
            said[report] = [name in affirmed for name in names]
    return np.array([said[report] for report in reports], dtype=bool).reshape(-1, len(names))


def labels_of_problems(
    queries: Sequence[str], documents: Sequence[str], records: Sequence[Record]
) -> Labels | None:
    """Label studies with the data set's own labels; None where a study has none there.

    Parameters
    ----------
    queries, documents
        IDs of their documents.
    records
        Of the data set. "Pulmonary Disease, Chronic Obstructive" is read as "chronic
        obstructive pulmonary disease". "normal", and places without a finding ("lung"), are
        no labels.
    """
    of_id = {r.document.id: r.problems for r in records if r.problems}
    if not queries or any(key not in of_id for key in (*queries, *documents)):
        return None
    sets = {key: _findings_in(of_id[key]) for key in {*queries, *documents}}
    names = tuple(sorted(set().union(*sets.values())))
    return Labels(names, _table(queries, sets, names), _table(documents, sets, names), "data set")


def _findings_in(problems: Sequence[str]) -> frozenset[str]:
    plain = (" ".join(reversed(problem.lower().split(", "))).strip() for problem in problems)
    return frozenset(
        name for name in plain if name and name not in _NO_FINDING and not _PLACES.fullmatch(name)
    )


def _table(
    keys: Sequence[str], sets: Mapping[str, frozenset[str]], names: Sequence[str]
) -> BoolArray:
    rows = [[name in sets[key] for name in names] for key in keys]
    return np.array(rows, dtype=bool).reshape(len(keys), len(names))
