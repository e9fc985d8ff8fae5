"""What each report and the picture do to an answer, and IFA's direct effect: measured after it.

Attention shows where information is routed, not what it does. Blocking a report and
reading the probabilities again does. So does another picture in place of the case's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mrrag.case import Case, CaseCache, Influence, PictureInfluence
from mrrag.data.images import read_image
from mrrag.model.answering import answer_batch, same_state_trace
from mrrag.model.backbone import encode_each
from mrrag.model.prefill import Branch
from mrrag.model.prompt import plain_text
from mrrag.model.steering import DEFAULT_ROWS, Block
from mrrag.pipeline import Pipeline, branches_of, image_features, known_prefix, steering_of
from mrrag.retrieval.mcr import encode_query
from mrrag.types import METHODS, Answer, FloatArray, Image, Query, QueryVectors, Steering


def explain(
    pipeline: Pipeline,
    query: Query,
    case: Case,
    *,
    cache: CaseCache | None = None,
    vectors: QueryVectors | None = None,
) -> Case:
    """Return the case with what reports and picture do to its answers, and IFA's direct effect.

    ``cache`` is the case's own, where it was taken out of it; it saves reading the image.
    ``vectors`` are the query's, from its evidence; they save encoding it.
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
        picture=picture_influence(pipeline, query, case, steering, vectors),
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


def picture_influence(
    pipeline: Pipeline,
    query: Query,
    case: Case,
    steering: Steering,
    vectors: QueryVectors | None = None,
) -> PictureInfluence | None:
    """Measure what the picture does to the three answers, by replacing it.

    P(yes) with the picture is the answers' own; the other prompts are read in one batch with
    reports and one without. None without a picture, and where no answer begins with yes or
    no.
    """
    answers = case.answers
    if query.image is None or not any(a.p_yes + a.p_no > 0.5 for a in answers.values()):
        return None
    base = pipeline.knowledge_base
    v_D = (vectors or encode_query(query, pipeline.encoder)).v
    shown: list[Image | None] = [None, _mean_coloured(pipeline)]
    number, cosine = None, math.nan
    if v_D is not None and len(base):
        # The index holds (report, image): this is the smallest image-image cosine.
        numbers, scores = base.search(np.concatenate([np.zeros_like(v_D), -v_D]), 1)
        number, cosine = int(numbers[0]), -float(scores[0])
        shown.append(read_image(base.thumbnail(number)))
    p_yes = _p_yes_with(pipeline, query, case, steering, shown)
    nothing = (math.nan,) * (3 - len(shown))
    return PictureInfluence(
        {m: (answers[m].p_yes, *p_yes[m], *nothing) for m in METHODS},  # type: ignore[misc]
        "" if number is None else base.document(number).id,
        cosine,
        b"" if number is None else base.thumbnail(number),
    )


def _mean_coloured(pipeline: Pipeline) -> Image:
    """Return a picture of the colour that the vision tower's input is centred on."""
    mean = np.asarray(pipeline.backbone.image_processor.image_mean, np.float64)
    return Image(np.tile(np.rint(255 * mean).astype(np.uint8), (16, 16, 1)))


def _p_yes_with(
    pipeline: Pipeline, query: Query, case: Case, steering: Steering, shown: Sequence[Image | None]
) -> dict[str, list[float]]:
    """Return P(yes) of each method with each of these pictures in place of the query's."""
    pictures = [image for image in shown if image is not None]
    encoded = iter(encode_each(pipeline.backbone, pictures))
    branches = []
    for image in shown:
        features = None if image is None else next(encoded)
        other = replace(query, image=image)
        branches.append(branches_of(pipeline, other, case, steering, features))
    p_yes: dict[str, list[float]] = {}
    # RAG and MR-RAG share a prefix, which is read once; RAG off's is much shorter.
    for methods in (METHODS[:1], METHODS[1:]):
        batch = [branch[method] for method in methods for branch in branches]
        read = answer_batch(pipeline.backbone, batch, steering).p_yes.reshape(len(methods), -1)
        p_yes |= dict(zip(methods, read.astype(float).tolist(), strict=True))
    return p_yes


def report_tokens(pipeline: Pipeline, report: str) -> tuple[str, list[tuple[int, int]]]:
    """Return a report as the model reads it, and the (start, stop) of each token in it."""
    tokenizer = pipeline.backbone.tokenizer
    words = plain_text(report, tokenizer, pipeline.backbone.template)
    encoded = tokenizer(words, add_special_tokens=False, return_offsets_mapping=True)
    return words, [(int(a), int(b)) for a, b in encoded["offset_mapping"]]
