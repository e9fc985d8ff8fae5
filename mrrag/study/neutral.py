"""Questions in neutral words, a control against questions that give their answer away.

Public question files were written from the very reports, by people or by models, and their
wording can tell the answer without the picture. "Is there X?" cannot.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from mrrag.data.findings import asked
from mrrag.data.records import Question
from mrrag.data.yes_no import UNPARSED, parse_yes_no
from mrrag.study.labels import neutral_question

__all__ = ["OMITTED", "neutral"]

OMITTED = "not to be said neutrally: no single finding, or a side is named"
_SIDE = re.compile(r"\b(?:left|right|bilateral\w*|both|unilateral\w*|upper|lower|apical)\b", re.I)


def neutral(questions: Sequence[Question]) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    """Reword yes/no questions as "Is there X?", for the one finding that each names.

    "Is the heart size normal?" becomes "Is there cardiomegaly?", and its answer is exchanged.
    Of questions that become the same one about a case, the first is kept.

    Returns
    -------
    questions, omitted
        The reworded questions, and the ``qid`` of those that cannot be said so: open ones,
        those that name no or several findings, and those that ask about a side or place.
    """
    kept: dict[tuple[str, str], Question] = {}
    omitted = []
    for question in questions:
        found, gold = asked(question.question), parse_yes_no(question.answer)
        closed = question.answer_type == "closed" and gold != UNPARSED
        if not closed or len(found) != 1 or _SIDE.search(question.question):
            omitted.append(question.qid)
            continue
        (about,) = found
        present = bool(gold) == (about.polarity == "presence")
        reworded = replace(
            question,
            question=neutral_question(about.finding),
            answer="Yes" if present else "No",
            finding=about.finding,
        )
        kept.setdefault((question.uid, about.finding), reworded)
    return tuple(kept.values()), tuple(omitted)
