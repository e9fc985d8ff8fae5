"""Many questions, answered in many ways, and compared: the paper's tables.

All methods answer the same held-out questions through the engine that serves the page.
What is compared differs in one thing only: the weights of retrieval, or IFA, or how
many of the reports are irrelevant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mrrag.backbone import encode_images, generate_batch, prefill_batch, score_batch
from mrrag.corpus import Case, Question
from mrrag.images import load_image
from mrrag.metrics import UNPARSED, Answers, bootstrap, mcnemar, parse_yes_no, scores
from mrrag.pipeline import Pipeline
from mrrag.prompt import Prompt, build_prompt
from mrrag.retrieval import QueryVectors, retrieve
from mrrag.types import Retrieved, Weights

BATCH = 32
# Enough for the first word, which is what is parsed; the rest of an answer changes nothing.
ANSWER_TOKENS = 3
SINGLE: dict[str, Weights] = {
    "image_report": Weights(1.0, 0.0, 0.0),
    "image_image": Weights(0.0, 1.0, 0.0),
    "question_report": Weights(0.0, 0.0, 1.0),
}
NOISE_SHARES = (0.0, 0.25, 0.5, 0.75)

Ticker = Callable[[Iterable[Any], int, str], Iterable[Any]]


def no_ticker(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    """Progress to nobody."""
    return items


@dataclass(frozen=True)
class Asked:
    """A yes/no question about a case, read once, to be answered in many ways."""

    question: Question
    case: Case
    features: Tensor
    vectors: QueryVectors
    gold: int


@dataclass(frozen=True)
class Outcome:
    """One method's answers: as parsed, and P(yes) / (P(yes) + P(no)) at the first token."""

    said: Answers
    p_yes: npt.NDArray[np.float32]


def read_questions_of(
    pipeline: Pipeline,
    cases: Sequence[Case],
    questions: Sequence[Sequence[Question]],
    *,
    limit: int | None = None,
    ticker: Ticker = no_ticker,
) -> list[Asked]:
    """Encode the cases and their yes/no questions, up to ``limit`` questions in case order."""
    closed = [
        (case, [q for q in row if q.answer_type == "closed"])
        for case, row in zip(cases, questions, strict=True)
    ]
    kept: list[tuple[Case, list[Question]]] = []
    count = 0
    for case, row in closed:
        if row and (limit is None or count < limit):
            kept.append((case, row))
            count += len(row)
    asked: list[Asked] = []
    chunks = [kept[i : i + BATCH] for i in range(0, len(kept), BATCH)]
    for chunk in ticker(chunks, len(chunks), "reading images"):
        images = [load_image(case.image_path) for case, _ in chunk]
        features = encode_images(pipeline.backbone, images)
        v_ND = pipeline.encoder.images(images)
        t_MD = pipeline.encoder.texts([q.question for _, row in chunk for q in row])
        m = 0
        for n, (case, row) in enumerate(chunk):
            for question in row:
                gold = parse_yes_no(question.answer)
                asked.append(
                    Asked(question, case, features[n : n + 1], QueryVectors(v_ND[n], t_MD[m]), gold)
                )
                m += 1
    return asked[:limit]


def evidence_for(
    pipeline: Pipeline, item: Asked, weights: Weights, k: int, noise: int = 0, seed: int = 0
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


def prompt_for(pipeline: Pipeline, item: Asked, reports: Sequence[str]) -> Prompt:
    """The prompt that the page would build for this question and these reports."""
    backbone = pipeline.backbone
    return build_prompt(
        backbone.tokenizer,
        item.question.question,
        reports,
        image_token_id=backbone.image_token_id,
        image_tokens=backbone.image_tokens,
    )


def answer_batch(
    pipeline: Pipeline,
    items: Sequence[Asked],
    evidence: Sequence[Sequence[Retrieved]],
    settings: Sequence[tuple[float, tuple[int, ...], str]],
    *,
    write: bool = True,
) -> list[Outcome]:
    """Answer a batch under several steerings, reading image and reports once.

    Parameters
    ----------
    settings
        (strength, layers, rows) each; strength 0 is plain RAG.
    write
        Whether answers are written and parsed. Without it the most probable first token
        is taken for the answer's first word, which is all that a sweep needs.
    """
    backbone = pipeline.backbone
    batch = [
        (
            item.features,
            prompt_for(pipeline, item, [r.document.report for r in found]),
            tuple(r.relevance for r in found),
        )
        for item, found in zip(items, evidence, strict=True)
    ]
    cache = prefill_batch(backbone, batch)
    outcomes = []
    for strength, layers, rows in settings:
        first = score_batch(
            backbone, batch, strength=strength, layers=layers, rows=rows, cache=cache
        )
        if write:
            texts = generate_batch(
                backbone,
                batch,
                strength=strength,
                layers=layers,
                rows=rows,
                cache=cache,
                max_new_tokens=ANSWER_TOKENS,
            )
            said = np.array([parse_yes_no(t) for t in texts], dtype=np.int8)
        else:
            yes, no = (
                np.isin(first.next_id, backbone.yes_ids),
                np.isin(first.next_id, backbone.no_ids),
            )
            said = np.where(yes, 1, np.where(no, 0, UNPARSED)).astype(np.int8)
        both = first.p_yes + first.p_no
        p_yes = np.divide(first.p_yes, both, out=np.full_like(both, 0.5), where=both > 0)
        outcomes.append(Outcome(said, p_yes))
    return outcomes


def run(
    pipeline: Pipeline,
    items: Sequence[Asked],
    weights: Weights | None,
    settings: Sequence[tuple[float, tuple[int, ...], str]],
    *,
    k: int,
    noise: int = 0,
    seed: int = 0,
    write: bool = True,
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
        parts.append(answer_batch(pipeline, rows, evidence, settings, write=write))
    return [
        Outcome(
            np.concatenate([part[s].said for part in parts]),
            np.concatenate([part[s].p_yes for part in parts]),
        )
        for s in range(len(settings))
    ]


def evaluate(
    pipeline: Pipeline,
    items: Sequence[Asked],
    *,
    k: int = 8,
    noise_shares: Sequence[float] = NOISE_SHARES,
    seed: int = 0,
    ticker: Ticker = no_ticker,
) -> dict[str, Any]:
    """The main table and the noise table, with intervals and paired tests, ready for JSON."""
    learnt = pipeline.learnt
    plain = (0.0, learnt.layers, learnt.rows)
    steered = (learnt.strength, learnt.layers, learnt.rows)
    gold = np.array([item.gold for item in items], dtype=np.int8)
    patients = np.unique([item.case.document.patient for item in items], return_inverse=True)[1]

    said: dict[str, Outcome] = {}
    (said["rag_off"],) = run(pipeline, items, None, [plain], k=k, label="rag_off", ticker=ticker)
    for name, weights in SINGLE.items():
        (said[name],) = run(pipeline, items, weights, [plain], k=k, label=name, ticker=ticker)
    noise: list[dict[str, Any]] = []
    for share in noise_shares:
        drawn = round(share * k)
        plain_out, steered_out = run(
            pipeline,
            items,
            learnt.weights,
            [plain, steered],
            k=k,
            noise=drawn,
            seed=seed,
            label=f"rag, mr_rag, {drawn} of {k} irrelevant",
            ticker=ticker,
        )
        if drawn == 0:
            said["rag"], said["mr_rag"] = plain_out, steered_out
        noise.append(
            {
                "share": share,
                "irrelevant": drawn,
                "k": k,
                "rag": _figures(gold, plain_out, patients),
                "mr_rag": _figures(gold, steered_out, patients),
                "test": _test(gold, plain_out, steered_out),
            }
        )
    pairs = [("rag_off", "rag"), ("rag", "mr_rag"), *((name, "rag") for name in SINGLE)]
    return {
        "n": len(items),
        "k": k,
        "methods": [{"method": name, **_figures(gold, o, patients)} for name, o in said.items()],
        "tests": [
            {"first": a, "second": b, **_test(gold, said[a], said[b])}
            for a, b in pairs
            if a in said and b in said
        ],
        "noise": noise,
        "weights": asdict(learnt.weights),
        "layers": list(learnt.layers),
        "strength": learnt.strength,
        "rows": learnt.rows,
    }


def _figures(gold: Answers, outcome: Outcome, patients: npt.NDArray[np.int64]) -> dict[str, Any]:
    accuracy, f1 = bootstrap(gold, outcome.said, patients)
    return {
        **asdict(scores(gold, outcome.said)),
        "accuracy_interval": list(accuracy),
        "macro_f1_interval": list(f1),
    }


def _test(gold: Answers, first: Outcome, second: Outcome) -> dict[str, Any]:
    only_first, only_second, p = mcnemar(gold, first.said, second.said)
    return {"only_first_right": only_first, "only_second_right": only_second, "p": p}
