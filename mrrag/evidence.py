"""The evidence for a question: the documents that MCR finds, and the doubts about them."""

from __future__ import annotations

import time

from mrrag.case import Evidence, Settings
from mrrag.data.views import view_of
from mrrag.model.world import is_outside
from mrrag.pipeline import Pipeline, check
from mrrag.retrieval.calibration import is_same_picture, percentiles, unlike, usual_scores
from mrrag.retrieval.doubts import warnings_of
from mrrag.retrieval.mcr import effective_weights, encode_query, retrieve
from mrrag.retrieval.votes import votes_of
from mrrag.types import Familiarity, Image, Query


def find_evidence(
    pipeline: Pipeline,
    query: Query,
    settings: Settings,
    *,
    known: Evidence | None = None,
) -> Evidence:
    """Retrieve the documents of a query (MCR), with the doubts about them.

    ``known`` is earlier evidence of the same query and saves its encoding: new α, β, γ, k,
    pins or noise then cost one scan of the index.
    """
    check(pipeline, query, settings)
    start = time.perf_counter()
    calibration = pipeline.calibration
    vectors = known.vectors if known else encode_query(query, pipeline.encoder)
    weights, notes = effective_weights(settings.weights or pipeline.learnt.weights, vectors)
    own = [query.image.patient] if query.image and query.image.patient else []
    if of_patient := len(pipeline.knowledge_base.positions(patients=own)):
        notes = (*notes, f"Reports of this same patient were left out: {of_patient}.")
    retrieved = retrieve(
        pipeline.knowledge_base,
        vectors,
        weights,
        settings.k,
        exclude_patients=own,
        pinned_ids=settings.pinned,
        exclude_ids=settings.excluded,
        noise=settings.noise,
        seed=settings.seed,
    )
    familiarity = known.familiarity if known else None
    if familiarity is None and query.image is not None and vectors.v is not None:
        familiarity = Familiarity(
            unlike(calibration, query.image, vectors.v),
            is_same_picture(pipeline.knowledge_base, query.image, vectors),
            _is_outside(pipeline, query.image),
        )
    usual_MK = usual_scores(pipeline.knowledge_base, calibration, vectors, weights, len(retrieved))
    stand = percentiles([r.score for r in retrieved], usual_MK)
    return Evidence(
        vectors,
        retrieved,
        weights,
        tuple(notes),
        time.perf_counter() - start,
        stand,
        _outside_warning(pipeline, familiarity)
        | warnings_of(
            query.question,
            retrieved,
            stand,
            calibration.own_report,
            familiarity,
            view_of(query.image.tags.get("view position", "")) if query.image else "",
        ),
        familiarity,
        votes_of(pipeline.rates, query.question, retrieved),
    )


def _is_outside(pipeline: Pipeline, image: Image) -> bool:
    return pipeline.world is not None and is_outside(pipeline.backbone, pipeline.world, image)


def _outside_warning(pipeline: Pipeline, familiarity: Familiarity | None) -> dict[str, str]:
    """Return the warning that the model does not know such pictures, if so: it comes first."""
    if pipeline.world is None or familiarity is None or not familiarity.outside:
        return {}
    return {"outside": pipeline.world.warning}
