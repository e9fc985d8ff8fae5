"""Many questions, answered in many ways, in batches.

All ways go through the engine that serves the page, and a batch reads its images and
reports once however many ways differ only in steering. What is compared with what is
not decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mrrag.data.corpus import Question, Record
from mrrag.data.images import load_image
from mrrag.data.yes_no import UNPARSED, parse_yes_no
from mrrag.model.answering import answer_batch
from mrrag.model.backbone import encode_images
from mrrag.model.prefill import Branch, prefill_batch
from mrrag.model.steering import lambdas
from mrrag.pipeline import Pipeline
from mrrag.retrieval.mcr import retrieve
from mrrag.study.metrics import Answers
from mrrag.types import QueryVectors, Retrieved, Steering, Weights

BATCH = 32

Ticker = Callable[[Iterable[Any], int, str], Iterable[Any]]


def no_ticker(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    """Progress to nobody."""
    return items


@dataclass(frozen=True)
class EncodedItem:
    """A yes/no question about a case, read once, to be answered in many ways."""

    question: Question
    case: Record
    features: Tensor
    vectors: QueryVectors
    gold: int


@dataclass(frozen=True)
class Outcome:
    """One way's answers to many questions.

    Attributes
    ----------
    said : int8 [N]
        As parsed.
    p_yes : float32 [N]
        P(yes) / (P(yes) + P(no)) at the first token; one half where both are zero.
    texts : tuple of str
        Empty strings where none were asked for.
    """

    said: Answers
    p_yes: npt.NDArray[np.float32]
    texts: tuple[str, ...]


def read_questions_of(
    pipeline: Pipeline,
    cases: Sequence[Record],
    questions: Sequence[Sequence[Question]],
    *,
    limit: int | None = None,
    ticker: Ticker = no_ticker,
) -> list[EncodedItem]:
    """Encode the cases and their yes/no questions, up to ``limit`` questions in case order."""
    closed = [
        (case, [q for q in row if q.answer_type == "closed"])
        for case, row in zip(cases, questions, strict=True)
    ]
    kept: list[tuple[Record, list[Question]]] = []
    count = 0
    for case, row in closed:
        if row and (limit is None or count < limit):
            kept.append((case, row))
            count += len(row)
    asked: list[EncodedItem] = []
    chunks = [kept[i : i + BATCH] for i in range(0, len(kept), BATCH)]
    for chunk in ticker(chunks, len(chunks), "reading images"):
        asked += encode_questions(pipeline, [(case, q) for case, row in chunk for q in row])
    return asked[:limit]


def encode_questions(
    pipeline: Pipeline, questions: Sequence[tuple[Record, Question]]
) -> list[EncodedItem]:
    """Read each image once, however many questions are about it, and encode all."""
    paths = list(dict.fromkeys(case.image_path for case, _ in questions))
    images = [load_image(path) for path in paths]
    features = encode_images(pipeline.backbone, images)
    v_ND = pipeline.encoder.images(images)
    t_MD = pipeline.encoder.texts([q.question for _, q in questions])
    # One tensor an image, by which a batch knows prefixes that it may read once.
    rows = {path: (features[n : n + 1], v_ND[n]) for n, path in enumerate(paths)}
    asked = []
    for (case, question), t_D in zip(questions, t_MD, strict=True):
        of_image, v_D = rows[case.image_path]
        gold = parse_yes_no(question.answer)
        asked.append(EncodedItem(question, case, of_image, QueryVectors(v_D, t_D), gold))
    return asked


def evidence_for(
    pipeline: Pipeline, item: EncodedItem, weights: Weights, k: int, noise: int = 0, seed: int = 0
) -> tuple[Retrieved, ...]:
    """Retrieve for a question; its own study and patient are never candidates."""
    document = item.case.document
    return retrieve(
        pipeline.knowledge_base,
        item.vectors,
        weights,
        k,
        exclude_patients={document.patient},
        exclude_studies={document.study},
        noise=noise,
        seed=seed,
    )


def branch_of(pipeline: Pipeline, item: EncodedItem, reports: Sequence[str]) -> Branch:
    """Return the branch that the page would run for this question and these reports."""
    return Branch(pipeline.backbone.prompt(item.question.question, reports), item.features)


def answer_ways(
    pipeline: Pipeline,
    items: Sequence[EncodedItem],
    evidence: Sequence[Sequence[Retrieved]],
    steers: Sequence[Steering],
    *,
    max_new_tokens: int = 0,
) -> list[Outcome]:
    """Answer a batch under several steerings, reading images and reports once.

    Parameters
    ----------
    max_new_tokens
        Where the answers are cut. With none, nothing is written, and the most probable
        first token is taken for the answer's first word, which is all that a sweep needs.
    """
    backbone = pipeline.backbone
    branches = [
        branch_of(pipeline, item, [r.document.report for r in found])
        for item, found in zip(items, evidence, strict=True)
    ]
    cache = prefill_batch(backbone, branches)
    outcomes = []
    for steering in steers:
        steered = [
            replace(branch, relevance=lambdas(found, steering.form))
            for branch, found in zip(branches, evidence, strict=True)
        ]
        first = answer_batch(
            backbone, steered, steering, cache=cache, max_new_tokens=max_new_tokens
        )
        yes = np.isin(first.next_id, backbone.yes_ids)
        no = np.isin(first.next_id, backbone.no_ids)
        said = np.where(yes, 1, np.where(no, 0, UNPARSED))
        if max_new_tokens:
            said = np.array([parse_yes_no(text) for text in first.texts])
        both = first.p_yes + first.p_no
        p_yes = np.divide(first.p_yes, both, out=np.full_like(both, 0.5), where=both > 0)
        outcomes.append(Outcome(said.astype(np.int8), p_yes, first.texts))
    return outcomes


def run(
    pipeline: Pipeline,
    items: Sequence[EncodedItem],
    weights: Weights | None,
    steers: Sequence[Steering],
    *,
    k: int,
    noise: int = 0,
    seed: int = 0,
    max_new_tokens: int = 0,
    label: str = "",
    ticker: Ticker = no_ticker,
) -> list[Outcome]:
    """Answer all questions with the reports that ``weights`` retrieve (None: no reports)."""
    chunks = [range(i, min(i + BATCH, len(items))) for i in range(0, len(items), BATCH)]
    parts: list[list[Outcome]] = []
    for chunk in ticker(chunks, len(chunks), label):
        rows = [items[i] for i in chunk]
        evidence: list[Sequence[Retrieved]] = [
            ()
            if weights is None
            else evidence_for(pipeline, item, weights, k, noise, seed * 1_000_003 + i)
            for i, item in zip(chunk, rows, strict=True)
        ]
        parts.append(answer_ways(pipeline, rows, evidence, steers, max_new_tokens=max_new_tokens))
    return [
        Outcome(
            np.concatenate([outcome.said for outcome in outcomes]),
            np.concatenate([outcome.p_yes for outcome in outcomes]),
            tuple(text for outcome in outcomes for text in outcome.texts),
        )
        for outcomes in zip(*parts, strict=True)
    ]
