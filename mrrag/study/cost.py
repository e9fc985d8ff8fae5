"""What the methods of the arena cost: their seconds beside plain RAG's, measured here and now.

Seconds depend on machine and load, so they are never kept with the answers.
"""

from __future__ import annotations

import time

import numpy as np

from mrrag.pipeline import Pipeline
from mrrag.study.arena import EVERY
from mrrag.study.evaluation import answer_ways, encode_questions
from mrrag.study.experiment import Experiment, evidence_of

QUESTIONS = 8
REPEATS = 3


def seconds_each(
    pipeline: Pipeline, experiment: Experiment, *, questions: int = QUESTIONS
) -> dict[str, float]:
    """Return each method's seconds for an answer.

    The first questions are answered as one batch by each method alone, from prompts to text,
    in the plan's first block. Right before each method plain RAG answers them again, so that the
    machine's other work burdens both, and of each the fastest of :data:`REPEATS` turns counts.
    Seconds are the ratio of both, times plain RAG's at its fastest. Reading the picture and
    retrieving, the same for all, are left out.

    Returns
    -------
    dict
        Empty where the plan has no arena.
    """
    cells = [cell for cell in experiment.cells if cell.table.startswith(EVERY)]
    cells = [cell for cell in cells if (cell.table, cell.k) == (cells[0].table, cells[0].k)]
    chosen = experiment.questions.items[:questions]
    if not cells:
        return {}
    items = encode_questions(pipeline, [(item.case, item.question) for item in chosen])
    evidence = [
        [
            evidence_of(pipeline, item, cell.reading, experiment.seed(i))
            for i, item in enumerate(items)
        ]
        for cell in cells
    ]
    tokens = experiment.plan.answer_tokens
    rag = [cell.name for cell in cells].index("rag")

    def seconds(n: int) -> float:
        start = time.perf_counter()
        answer_ways(pipeline, items, evidence[n], [cells[n].steering], max_new_tokens=tokens)
        return time.perf_counter() - start

    seconds(rag)  # the first call of all is slower
    turns = [[(seconds(rag), seconds(n)) for n in range(len(cells))] for _ in range(REPEATS)]
    fastest = np.min(turns, axis=0)
    plain = float(fastest[:, 0].min()) / len(items)
    return {
        cell.name: plain * (float(own / of_rag) if cell.name != "rag" else 1.0)
        for cell, (of_rag, own) in zip(cells, fastest, strict=True)
    }
