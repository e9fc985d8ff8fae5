"""The arena on one case: chosen methods, and curves, over what its answers have read.

Every answer comes from the code that ``evaluate --methods arena`` runs on many questions.
What stays the same is read once: the picture, and the reports as far as they come first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from mrrag.case import Case, CaseCache, Evidence
from mrrag.data.records import Question
from mrrag.errors import SettingsError
from mrrag.evidence import find_evidence
from mrrag.forms import lambdas
from mrrag.model.answering import AnswerBatch, answer_batch
from mrrag.model.backbone import embed
from mrrag.model.mixing import MixedBatch
from mrrag.model.prefill import Branch, PrefixCache, read_batch, read_prefixes
from mrrag.model.tracing import trace_pair
from mrrag.pipeline import Pipeline, image_features, known_prefix, steering_of
from mrrag.study.arena import ARENA
from mrrag.study.arena_answers import OFFERED, ArenaAnswer, Curve
from mrrag.study.evaluation import PROMPTS, Asked, answer_each_way, branch_of
from mrrag.study.experiment import as_read
from mrrag.study.plan import ReadingPlan, reading_of, way_of
from mrrag.types import AttentionTrace, Query, Retrieved, Rival, Steering, Way

EACH = "each report"  # the prompts of a fusion
NOT_ASKED = "The model was not asked this question, so there is nothing to compare."


@dataclass(frozen=True)
class _Question:
    """A case's question, from which the prompts of the arena are made."""

    question: Question
    features: Tensor | None = field(repr=False)
    grid: tuple[int, int] | None


def answer_arena(
    pipeline: Pipeline,
    query: Query,
    case: Case,
    methods: Sequence[str],
    *,
    cache: CaseCache | None = None,
) -> Iterator[ArenaAnswer]:
    """Answer a finished case by methods of the arena, with its reports and its settings.

    Methods come one by one, in an order that lets them share what they read. Closing the
    generator stops it.

    Parameters
    ----------
    methods
        Of :data:`mrrag.study.arena_answers.OFFERED`; a control makes no sense on one case.
    cache
        The case's own, where it was taken out of it; it saves reading the image.

    Raises
    ------
    SettingsError
        For an unknown method, or a case whose question the model was not asked.
    """
    for name in methods:
        if name not in OFFERED:
            raise SettingsError(
                f"The arena has no method {name!r}. Choose among: {', '.join(OFFERED)}."
            )
    asked, known = _read(pipeline, query, case, cache)
    steering = steering_of(pipeline, case.settings)
    weights = case.settings.weights or pipeline.learnt.weights
    plain = ReadingPlan(weights, len(case.retrieved))
    chosen: dict[ReadingPlan, dict[Way, list[str]]] = {}
    for name in dict.fromkeys(methods):
        method = ARENA[name]
        reading = reading_of(method, plain) if method.reads else ReadingPlan()
        chosen.setdefault(reading, {}).setdefault(way_of(method, steering), []).append(name)
    for reading, ways in chosen.items():
        read: tuple[Retrieved, ...] = ()
        if reading.weights is not None:
            pinned = case.settings.pinned
            read = as_read(case.retrieved, weights, reading, case.settings.seed, pinned)
        for way, batch, seconds in answer_each_way(
            pipeline,
            [asked],
            [read],
            [*ways],
            known=known,
            max_new_tokens=case.settings.max_new_tokens,
        ):
            before, after = _maps(pipeline, asked, read, way, known) or (None, None)
            answer = ArenaAnswer(
                method="",
                text=batch.texts[0],
                p_yes=float(batch.p_yes[0]),
                p_no=float(batch.p_no[0]),
                seconds=seconds,
                ranks=_ranks(case, read),
                before=before,
                after=after,
                alone=_alone(batch, way) if read else (),
            )
            for name in ways[way]:
                yield replace(answer, method=name)


def _alone(batch: AnswerBatch, way: Way) -> tuple[float, ...]:
    """Return P(yes) of each prompt of a fusion; empty for all else."""
    fuses = isinstance(way, Rival) and way.mixture and way.mixture.prompts == EACH
    if not fuses or not isinstance(batch, MixedBatch):
        return ()
    return tuple(map(float, batch.prompts_p_yes[0]))


def _read(
    pipeline: Pipeline, query: Query, case: Case, cache: CaseCache | None
) -> tuple[_Question, PrefixCache]:
    """Return the case's question with its picture's features, and what was read before it.

    Raises
    ------
    SettingsError
        Where the model was not asked the question.
    """
    if case.before is None:
        raise SettingsError(NOT_ASKED)
    backbone = pipeline.backbone
    known = known_prefix(query, cache or case.cache)
    features = known.features if known else image_features(pipeline, query)
    grid = backbone.grid_of(query.image) if query.image is not None else None
    asked = _Question(Question("", "", case.question, "", ""), features, grid)
    if known is None:
        branch = branch_of(pipeline, asked, [r.document.report for r in case.retrieved])
        embeds = embed(backbone, branch.prompt, branch.features)
        (known,) = read_prefixes(backbone, [branch], [embeds])
    return asked, known


def _ranks(case: Case, read: Sequence[Retrieved]) -> tuple[int, ...]:
    """Return the ranks that the reports have in the case; a cut-off counts its own."""
    rank = {r.document.id: r.rank for r in case.retrieved}
    return tuple(rank[r.document.id] for r in read)


def _maps(
    pipeline: Pipeline,
    asked: Asked,
    read: Sequence[Retrieved],
    way: Way,
    known: PrefixCache,
) -> tuple[AttentionTrace, AttentionTrace] | None:
    """Return the attention without and with a way's changes; None where it has none."""
    if not isinstance(way, Steering | Rival):
        return None
    form = way.form if isinstance(way, Steering) else "ifa"
    if isinstance(way, Rival) and way.mixture:
        if way.mixture.prompts == EACH:  # as many maps as reports
            return None
        branch = PROMPTS[way.mixture.prompts](pipeline, asked, read).branches[0]
    else:
        branch = branch_of(pipeline, asked, [r.document.report for r in read])
        branch = replace(branch, relevance=lambdas(read, form))
    return trace_pair(pipeline.backbone, branch, way, known)


# Curves


def strength_curve(
    pipeline: Pipeline,
    query: Query,
    case: Case,
    strengths: Sequence[float],
    *,
    cache: CaseCache | None = None,
) -> Curve:
    """Return P(yes) of MR-RAG at each of these strengths and the case's own, in one batch.

    The parameters and errors are those of :func:`answer_arena`.
    """
    asked, known = _read(pipeline, query, case, cache)
    steering = steering_of(pipeline, case.settings)
    branch = branch_of(pipeline, asked, [r.document.report for r in case.retrieved])
    lam = lambdas(case.retrieved, steering.form)
    at = tuple(sorted({*map(float, strengths), steering.strength}))
    # One pass has one strength: the rows differ in λ, which it multiplies.
    rows = [replace(branch, relevance=tuple(s * x for x in lam)) for s in at]
    return Curve("strength", at, _p_yes(pipeline, rows, steering, known), steering.strength)


def weight_curves(
    pipeline: Pipeline,
    query: Query,
    case: Case,
    steps: Sequence[float],
    *,
    limit: float = np.inf,
    known_evidence: Evidence | None = None,
    cache: CaseCache | None = None,
) -> tuple[Curve, Curve, Curve]:
    """Return P(yes) of MR-RAG as α, β and γ each move around the case's own, in one batch.

    Reports are retrieved again for every point, and read as far as they differ.

    Parameters
    ----------
    steps
        By how much a weight is changed.
    limit
        Weights beyond −limit to limit are left out, and those by which nothing can be ranked.
    known_evidence
        Of the case's query, which saves encoding it.

    The other parameters and the errors are those of :func:`answer_arena`.
    """
    asked, known = _read(pipeline, query, case, cache)
    steering = steering_of(pipeline, case.settings)
    weights = case.settings.weights or pipeline.learnt.weights
    evidence = known_evidence or find_evidence(pipeline, query, case.settings)
    points: list[tuple[str, float, Branch]] = []
    for name in ("alpha", "beta", "gamma"):
        present = getattr(weights, name)
        values = {present, *(present + step for step in steps if abs(present + step) <= limit)}
        for value in sorted(values):
            moved = replace(case.settings, weights=replace(weights, **{name: value}))
            try:
                found = find_evidence(pipeline, query, moved, known=evidence).retrieved
            except SettingsError:  # no weight is left to rank by
                continue
            branch = branch_of(pipeline, asked, [r.document.report for r in found])
            relevance = lambdas(found, steering.form)
            scaled = tuple(steering.strength * lam for lam in relevance)
            points.append((name, value, replace(branch, relevance=scaled)))
    p_yes = _p_yes(pipeline, [branch for _, _, branch in points], steering, known)

    def curve(name: str) -> Curve:
        mine = [(value, p) for (n, value, _), p in zip(points, p_yes, strict=True) if n == name]
        at, ps = zip(*mine, strict=True)
        return Curve(name, at, ps, getattr(weights, name))

    return curve("alpha"), curve("beta"), curve("gamma")


def _p_yes(
    pipeline: Pipeline, rows: Sequence[Branch], steering: Steering, known: PrefixCache
) -> tuple[float, ...]:
    """Return P(yes) of rows whose λ holds the strength, as one batch."""
    backbone = pipeline.backbone
    cache = read_batch(backbone, rows, known)
    answer = answer_batch(backbone, rows, replace(steering, strength=1.0), cache=cache)
    return tuple(map(float, answer.p_yes))
