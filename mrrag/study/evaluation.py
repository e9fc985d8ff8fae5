"""Answer many questions in many ways, in batches.

Every answer comes from the model code that serves the page. A batch reads its images and
reports once, however many ways differ only in steering. What is compared with what is
decided elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrrag.data.images import load_image, read_image
from mrrag.data.records import Question, Record
from mrrag.data.yes_no import UNPARSED, parse_yes_no
from mrrag.forms import lambdas
from mrrag.model.answering import AnswerBatch, answer_batch
from mrrag.model.backbone import encode_all, encode_each
from mrrag.model.mixing import Group, answer_mixtures
from mrrag.model.opera import answer_beams
from mrrag.model.prefill import Branch, PrefixCache, read_batch
from mrrag.model.world import is_outside
from mrrag.pipeline import Pipeline
from mrrag.retrieval.mcr import retrieve
from mrrag.study.metrics import Answers
from mrrag.types import (
    Opera,
    QueryVectors,
    Retrieved,
    Rival,
    Steering,
    Way,
    Weights,
)

BATCH = 32

Ticker = Callable[[Iterable[Any], int, str], Iterable[Any]]


def no_ticker(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    """Return the items without a progress bar."""
    return items


class Asked(Protocol):
    """What prompts are made of: a question, and its picture as the language model reads it."""

    @property
    def question(self) -> Question: ...

    @property
    def features(self) -> Tensor | None: ...

    @property
    def grid(self) -> tuple[int, int] | None: ...


@dataclass(frozen=True)
class EncodedItem:
    """A yes/no question about a case, encoded once to be answered in many ways.

    Attributes
    ----------
    features : float [1, image tokens, hidden]
        Of the image, as the language model reads it. Questions about one image share the
        tensor, by which a batch knows the prefixes that it may read once.
    vectors : QueryVectors
        Of the image and the question, for retrieval.
    grid : (rows, columns) or None
        The image's patches, for models that need to know; None for the model's own.
    """

    question: Question
    case: Record
    features: Tensor
    vectors: QueryVectors
    gold: int
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Outcome:
    """The answers to N questions in one way.

    Attributes
    ----------
    predicted : int8 [N]
        1 (yes), 0 (no) or -1 (neither could be parsed).
    p_yes : float32 [N]
        P(yes) / (P(yes) + P(no)) at the first token; one half where both are zero.
    texts : tuple of str
        Empty strings where no text was generated.
    """

    predicted: Answers
    p_yes: npt.NDArray[np.float32]
    texts: tuple[str, ...]


def noise_seed(seed: int, i: int) -> int:
    """Return the seed of the i-th question's random draws."""
    return seed * 1_000_003 + i


def encode_items(
    pipeline: Pipeline,
    cases: Sequence[Record],
    questions: Sequence[Sequence[Question]],
    *,
    limit: int | None = None,
    ticker: Ticker = no_ticker,
) -> list[EncodedItem]:
    """Encode cases and their yes/no questions, at most ``limit`` questions in case order."""
    chosen: list[tuple[Record, list[Question]]] = []
    count = 0
    for case, row in zip(cases, questions, strict=True):
        closed = [q for q in row if q.answer_type == "closed"]
        if closed and (limit is None or count < limit):
            chosen.append((case, closed))
            count += len(closed)
    items: list[EncodedItem] = []
    chunks = [chosen[i : i + BATCH] for i in range(0, len(chosen), BATCH)]
    for chunk in ticker(chunks, len(chunks), "reading images"):
        items += encode_questions(pipeline, [(case, q) for case, row in chunk for q in row])
    return items[:limit]


def encode_questions(
    pipeline: Pipeline, questions: Sequence[tuple[Record, Question]]
) -> list[EncodedItem]:
    """Encode questions, and each image once however many questions are about it."""
    paths = list(dict.fromkeys(case.image_path for case, _ in questions))
    images = [load_image(path) for path in paths]
    features = encode_each(pipeline.backbone, images)
    grids = dict(zip(paths, map(pipeline.backbone.grid_of, images), strict=True))
    v_ND = pipeline.encoder.images(images)
    t_MD = pipeline.encoder.texts([q.question for _, q in questions])
    by_path = {path: (features[n], v_ND[n]) for n, path in enumerate(paths)}
    items = []
    for (case, question), t_D in zip(questions, t_MD, strict=True):
        of_image, v_D = by_path[case.image_path]
        gold = parse_yes_no(question.answer)
        vectors, grid = QueryVectors(v_D, t_D), grids[case.image_path]
        items.append(EncodedItem(question, case, of_image, vectors, gold, grid))
    return items


def count_outside(
    pipeline: Pipeline, cases: Sequence[Record], sample: int = 100
) -> tuple[int, int] | None:
    """Return how many pictures of a sample are unlike those the model was trained on.

    As (unlike, sampled); None where nothing is known of the model's training pictures. Answers
    about such pictures mean nothing, however many of them are counted.
    """
    if pipeline.world is None:
        return None
    paths = list(dict.fromkeys(case.image_path for case in cases))
    step = max(1, len(paths) // sample)
    images = (load_image(path) for path in paths[::step][:sample])
    unlike = [is_outside(pipeline.backbone, pipeline.world, image) for image in images]
    return sum(unlike), len(unlike)


def evidence_for(
    pipeline: Pipeline, item: EncodedItem, weights: Weights, k: int, noise: int = 0, seed: int = 0
) -> tuple[Retrieved, ...]:
    """Retrieve reports for a question, never any of its own study or patient."""
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


def branch_of(pipeline: Pipeline, item: Asked, reports: Sequence[str]) -> Branch:
    """Return the branch that the page would run for this question and these reports."""
    image = item.grid or item.features is not None
    prompt = pipeline.backbone.prompt(item.question.question, reports, image=image)
    return Branch(prompt, item.features)


# The prompts that a mixture makes one answer of


def _weighed(pipeline: Pipeline, item: Asked, found: Sequence[Retrieved]) -> Branch:
    branch = branch_of(pipeline, item, [r.document.report for r in found])
    return replace(branch, relevance=lambdas(found, "ifa"))


def without_reports(pipeline: Pipeline, item: Asked, found: Sequence[Retrieved]) -> Group:
    """Return the prompt with all reports, and the one without any."""
    return Group([_weighed(pipeline, item, found), branch_of(pipeline, item, ())], (0.0, 0.0))


def without_image(pipeline: Pipeline, item: Asked, found: Sequence[Retrieved]) -> Group:
    """Return the prompt with the image, and the one without it."""
    reports = [r.document.report for r in found]
    blind = pipeline.backbone.prompt(item.question.question, reports, image=False)
    return Group([_weighed(pipeline, item, found), Branch(blind)], (0.0, 0.0))


def each_report(pipeline: Pipeline, item: Asked, found: Sequence[Retrieved]) -> Group:
    """Return a prompt for each report, with its score in cosine; without reports one prompt.

    ``gap`` is the score less a constant, which a softmax does not notice.
    """
    if not found:
        return Group([branch_of(pipeline, item, ())], (0.0,))
    branches = [branch_of(pipeline, item, [r.document.report]) for r in found]
    return Group(branches, [r.gap for r in found])


def question_twice(pipeline: Pipeline, item: Asked, found: Sequence[Retrieved]) -> Group:
    """Return one prompt, with the question before the reports and after them (MAD-RAG)."""
    reports = [r.document.report for r in found]
    asked, grid = item.question.question, item.grid or item.features is not None
    prompt = pipeline.backbone.prompt(asked, reports, image=grid, twice=True)
    return Group([Branch(prompt, item.features)], (0.0,))


def with_pictures(pipeline: Pipeline, item: Asked, found: Sequence[Retrieved]) -> Group:
    """Return one prompt, with each report after its own picture (few-shot, as Med-Flamingo).

    The pictures are those that the knowledge base shows.
    """
    backbone = pipeline.backbone
    files = pipeline.knowledge_base.thumbnails([r.number for r in found])
    images = [read_image(file) for file in files]
    prompt = backbone.prompt(
        item.question.question,
        [r.document.report for r in found],
        image=item.grid or item.features is not None,
        pictures=[backbone.grid_of(image) for image in images],
    )
    own = [] if item.features is None else [item.features]
    shown = [encode_all(backbone, images)] if images else []
    features = torch.cat(own + shown, dim=1) if own or shown else None
    return Group([Branch(prompt, features)], (0.0,))


PROMPTS: dict[str, Callable[[Pipeline, Asked, Sequence[Retrieved]], Group]] = {
    "no reports": without_reports,
    "no image": without_image,
    "each report": each_report,
    "question twice": question_twice,
    "pictures": with_pictures,
}


def answer_ways(
    pipeline: Pipeline,
    items: Sequence[EncodedItem],
    evidence: Sequence[Sequence[Retrieved]],
    ways: Sequence[Way],
    *,
    max_new_tokens: int = 0,
) -> list[Outcome]:
    """Answer a batch in several ways, reading images and reports once for all that can share.

    Parameters
    ----------
    max_new_tokens
        Maximum number of answer tokens. With 0 no text is generated, and the most probable
        first token counts as the answer, which is all that a sweep needs.
    """
    each = answer_each_way(pipeline, items, evidence, ways, max_new_tokens=max_new_tokens)
    answers = {way: answer for way, answer, _ in each}
    return [outcome_of(pipeline, answers[way], written=max_new_tokens > 0) for way in ways]


def answer_each_way(
    pipeline: Pipeline,
    items: Sequence[Asked],
    evidence: Sequence[Sequence[Retrieved]],
    ways: Sequence[Way],
    *,
    known: PrefixCache | None = None,
    max_new_tokens: int = 0,
) -> Iterator[tuple[Way, AnswerBatch, float]]:
    """Answer a batch in several ways; yield each way once, with its answers and its seconds.

    Ways that read the same prompts share one read, which counts in the seconds of each. A
    mixture reads its own prompts.

    Parameters
    ----------
    known
        What was read of the items' one image before, which is then not read again.
    """
    backbone = pipeline.backbone
    ways = [*dict.fromkeys(ways)]
    # Mixtures of the same prompts are read together.
    mixed: dict[str, list[Rival]] = {}
    for way in ways:
        if isinstance(way, Rival) and way.mixture:
            mixed.setdefault(way.mixture.prompts, []).append(way)
    others = [way for way in ways if not (isinstance(way, Rival) and way.mixture)]
    if others:
        start = time.perf_counter()
        branches = [
            branch_of(pipeline, item, [r.document.report for r in found])
            for item, found in zip(items, evidence, strict=True)
        ]
        cache = read_batch(backbone, branches, known)
        if backbone.device.type == "cuda":
            torch.cuda.synchronize()  # so that reading and writing are timed apart
        reading = time.perf_counter() - start
    for way in others:
        start = time.perf_counter()
        form = way.form if isinstance(way, Steering) else "ifa"
        weighed = [
            replace(branch, relevance=lambdas(found, form))
            for branch, found in zip(branches, evidence, strict=True)
        ]
        shared: dict[str, Any] = {"cache": cache, "max_new_tokens": max_new_tokens}
        if isinstance(way, Opera):
            answer = answer_beams(backbone, weighed, way, **shared)
        elif isinstance(way, Rival):
            answer = answer_batch(
                backbone, weighed, emphases=way.emphases, shift=way.shift, **shared
            )
        else:
            answer = answer_batch(backbone, weighed, way, **shared)
        yield way, answer, reading + time.perf_counter() - start
    for prompts, same in mixed.items():
        groups = [PROMPTS[prompts](pipeline, i, f) for i, f in zip(items, evidence, strict=True)]
        batches = answer_mixtures(
            backbone, groups, same, known=known, max_new_tokens=max_new_tokens
        )
        for rival, mixed_batch in zip(same, batches, strict=True):
            yield rival, mixed_batch, mixed_batch.seconds


def outcome_of(pipeline: Pipeline, answer: AnswerBatch, *, written: bool) -> Outcome:
    """Return what a batch of answers says; ``written`` is whether texts were generated."""
    yes = np.isin(answer.next_id, pipeline.backbone.yes_ids)
    no = np.isin(answer.next_id, pipeline.backbone.no_ids)
    said = np.where(yes, 1, np.where(no, 0, UNPARSED))
    if written:
        said = np.array([parse_yes_no(text) for text in answer.texts])
    both = answer.p_yes + answer.p_no
    p_yes = np.divide(answer.p_yes, both, out=np.full_like(both, 0.5), where=both > 0)
    return Outcome(said.astype(np.int8), p_yes, answer.texts)


def answer_items(
    pipeline: Pipeline,
    items: Sequence[EncodedItem],
    weights: Weights | None,
    steerings: Sequence[Steering],
    *,
    k: int,
    noise: int = 0,
    seed: int = 0,
    max_new_tokens: int = 0,
    label: str = "",
    ticker: Ticker = no_ticker,
) -> list[Outcome]:
    """Answer all questions under each steering.

    Parameters
    ----------
    weights
        Weights of retrieval; None means no reports.
    k, noise, seed
        Number of reports, how many of them are drawn at random, and the seed of the draw.
    label
        Of the progress bar.
    """
    chunks = [range(i, min(i + BATCH, len(items))) for i in range(0, len(items), BATCH)]
    parts: list[list[Outcome]] = []
    for chunk in ticker(chunks, len(chunks), label):
        rows = [items[i] for i in chunk]
        evidence: list[Sequence[Retrieved]] = [
            ()
            if weights is None
            else evidence_for(pipeline, item, weights, k, noise, noise_seed(seed, i))
            for i, item in zip(chunk, rows, strict=True)
        ]
        parts.append(
            answer_ways(pipeline, rows, evidence, steerings, max_new_tokens=max_new_tokens)
        )
    return [
        Outcome(
            np.concatenate([outcome.predicted for outcome in outcomes]),
            np.concatenate([outcome.p_yes for outcome in outcomes]),
            tuple(text for outcome in outcomes for text in outcome.texts),
        )
        for outcomes in zip(*parts, strict=True)
    ]
