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


def relative_seconds(
    pipeline: Pipeline, experiment: Experiment, *, questions: int = QUESTIONS
) -> dict[str, float]:
    """Return each method's seconds for an answer, divided by plain RAG's.

    The first questions are answered as one batch by each method alone, from prompts to text,
    without irrelevant reports if the plan has such a block. The median of :data:`REPEATS` turns,
    in each of which every method comes once, counts. Reading the picture and retrieving, the same
    for all, are left out.

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
    seconds = np.zeros((REPEATS, len(cells)))
    for turn in range(REPEATS):
        for n, cell in enumerate(cells):
            start = time.perf_counter()
            answer_ways(pipeline, items, evidence[n], [cell.steering], max_new_tokens=tokens)
            seconds[turn, n] = time.perf_counter() - start
    median = np.median(seconds, axis=0)
    rag = median[[cell.name for cell in cells].index("rag")]
    return {cell.name: float(s / rag) for cell, s in zip(cells, median, strict=True)}
