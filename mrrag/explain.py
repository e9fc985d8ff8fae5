"""What each report does to an answer, and IFA's direct effect: measured after the answer.

Attention shows where information is routed, not what it does. Blocking a report and
reading the probabilities again does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mrrag.case import Case, CaseCache, Influence
from mrrag.model.answering import answer_batch, same_state_trace
from mrrag.model.prefill import Branch
from mrrag.model.prompt import plain_text
from mrrag.model.steering import DEFAULT_ROWS, Block
from mrrag.pipeline import Pipeline, branches_of, image_features, known_prefix, steering_of
from mrrag.types import Answer, FloatArray, Query, Steering


def explain(
    pipeline: Pipeline, query: Query, case: Case, *, cache: CaseCache | None = None
) -> Case:
    """Return the case with what each report does to its answer, and IFA's direct effect.

    ``cache`` is the case's own, where it was taken out of it; it saves reading the image.
    """
    if case.before is None:
        return case
    steering = steering_of(pipeline, case.settings)
    known = known_prefix(query, cache or case.cache)
    features = known.features if known else image_features(pipeline, query)
    branch = branches_of(pipeline, query, case, steering, features)["mr_rag"]
    return replace(
        case,
        influence=influence(pipeline, branch, case.answers["rag"], steering),
        same_state=same_state_trace(pipeline.backbone, branch, steering),
    )


def influence(
    pipeline: Pipeline, branch: Branch, rag: Answer, steering: Steering
) -> Influence | None:
    """Measure what each report does to the answer, causally (attention does not tell).

    Each report is blocked in turn, with and without IFA, in one batched pass over one
    prefix. None where RAG's answer ``rag`` begins with neither yes nor no, since there is
    then no probability to follow.
    """
    if not branch.relevance or not rag.p_yes + rag.p_no > 0.5:  # false for NaN too
        return None
    blocked: list[tuple[int, ...]] = [(), *((k,) for k in range(1, len(branch.relevance) + 1))]
    plain = replace(branch, relevance=())
    scores = answer_batch(
        pipeline.backbone,
        [plain] * len(blocked) + [branch] * len(blocked),
        steering,
        block=Block(range(pipeline.backbone.layers), blocked * 2, DEFAULT_ROWS),
    )
    yes = rag.p_yes >= rag.p_no
    p_2K: FloatArray = (scores.p_yes if yes else scores.p_no).reshape(2, -1)
    change_2K = p_2K[:, :1] - p_2K[:, 1:]
    return Influence(
        word="yes" if yes else "no",
        before=tuple(np.round(change_2K[0].astype(float), 6).tolist()),
        after=tuple(np.round(change_2K[1].astype(float), 6).tolist()),
        whole_before=float(p_2K[0, 0]),
        whole_after=float(p_2K[1, 0]),
    )


def report_tokens(pipeline: Pipeline, report: str) -> tuple[str, list[tuple[int, int]]]:
    """Return a report as the model reads it, and the (start, stop) of each token in it."""
    tokenizer = pipeline.backbone.tokenizer
    words = plain_text(report, tokenizer, pipeline.backbone.template)
    encoded = tokenizer(words, add_special_tokens=False, return_offsets_mapping=True)
    return words, [(int(a), int(b)) for a, b in encoded["offset_mapping"]]
