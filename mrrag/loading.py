"""Load the parts of a pipeline: a model, and a knowledge base with its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mrrag.errors import ModelError
from mrrag.files import ASSETS
from mrrag.forms import FORMS
from mrrag.learnt import Learnt, learnt_for
from mrrag.model.backbone import load_backbone
from mrrag.model.scope import load_scope
from mrrag.model.steering import ROWS
from mrrag.model.weights import best_device
from mrrag.model.world import load_world
from mrrag.pipeline import Pipeline
from mrrag.retrieval.address import Place
from mrrag.retrieval.calibration import Calibration, calibrate
from mrrag.retrieval.encoders import Encoder
from mrrag.retrieval.knowledge_base import KnowledgeBase, load_encoder_of
from mrrag.retrieval.manifest import files_of
from mrrag.types import BUNDLED


def load_pipeline(
    assets: Path = ASSETS,
    *,
    model: str = BUNDLED,
    knowledge_base: Place | None = None,
    revision: str | None = None,
    device: str | None = None,
    vision_tower: str = "checkpoint",
    quantize: str | None = None,
    adapter: str | Path | None = None,
) -> Pipeline:
    """Load a model, and a knowledge base with its encoder; the bundled ones by default.

    Parameters
    ----------
    model
        ``"bundled"``, a folder, or a name on the hub. ``revision``, ``vision_tower``, ``quantize``
        and ``adapter`` are those of :func:`mrrag.model.backbone.load_backbone`.
    device
        As there; None for :func:`best_device`.
    knowledge_base
        A folder or a collection of Milvus; None for the bundled one.

    Raises
    ------
    ModelError, KnowledgeBaseError
        Where a part is missing, incomplete, or was made for other parts.
    """
    encoder, base, learnt, calibration = _base_parts(assets, model, knowledge_base)
    parts = _model_parts(
        assets,
        model,
        revision=revision,
        device=device or best_device(model),
        vision_tower=vision_tower,
        quantize=quantize,
        adapter=adapter,
    )
    pipeline = Pipeline(
        encoder=encoder, knowledge_base=base, learnt=learnt, calibration=calibration, **parts
    )
    _check_layers(pipeline)
    return pipeline


def _model_parts(assets: Path, model: str, *, vision_tower: str, **options: Any) -> dict[str, Any]:
    """Load the parts of a pipeline that belong to its model, by their names."""
    checkpoint = assets / "llava" if model == BUNDLED else model
    backbone = load_backbone(checkpoint, vision_tower=vision_tower, **options)
    return {
        "backbone": backbone,
        # Only the bundled model's topics are few enough to be listed.
        "scope": load_scope(assets / "llava") if model == BUNDLED else None,
        "world": load_world(checkpoint, backbone) if vision_tower == "checkpoint" else None,
    }


def with_model(
    pipelines: Sequence[Pipeline],
    knowledge_bases: Sequence[Place | None],
    *,
    assets: Path = ASSETS,
    model: str,
    device: str | None = None,
    quantize: str | None = None,
) -> list[Pipeline]:
    """Return pipelines over the same knowledge bases with another model, which is loaded once.

    ``knowledge_bases`` are where those of the pipelines are. The other parameters and the errors
    are those of :func:`load_pipeline`.
    """
    parts = _model_parts(
        assets,
        model,
        device=device or best_device(model),
        vision_tower="checkpoint",
        quantize=quantize,
    )
    found = []
    for pipeline, base in zip(pipelines, knowledge_bases, strict=True):
        learnt = _learnt_for(assets, model, base)
        found.append(replace(pipeline, learnt=learnt, **parts))
        _check_layers(found[-1])
    return found


def with_knowledge_base(
    pipeline: Pipeline, knowledge_base: Place, *, assets: Path = ASSETS, model: str = BUNDLED
) -> Pipeline:
    """Return the same model over another knowledge base, with its encoder and weights.

    The parameters and errors are those of :func:`load_pipeline`.
    """
    encoder, base, learnt, calibration = _base_parts(assets, model, knowledge_base)
    if encoder.fingerprint == pipeline.encoder.fingerprint:
        encoder = pipeline.encoder
    pipeline = replace(
        pipeline, encoder=encoder, knowledge_base=base, learnt=learnt, calibration=calibration
    )
    _check_layers(pipeline)
    return pipeline


def _check_layers(pipeline: Pipeline) -> None:
    """Raise ModelError where a learnt layer is none of the model's."""
    layers, learnt = pipeline.backbone.layers, pipeline.learnt.steering.layers
    if learnt and max(learnt) >= layers:
        raise ModelError(
            f"learnt.json names layer {max(learnt)}. This model has layers 0 to {layers - 1}. Run "
            "`python -m mrrag find-layers` again."
        )


def _base_parts(
    assets: Path, model: str, knowledge_base: Place | None
) -> tuple[Encoder, KnowledgeBase, Learnt, Calibration]:
    place = knowledge_base or assets / "knowledge_base"
    encoder = load_encoder_of(place, assets / "encoder")
    base = KnowledgeBase.load(place, encoder)
    return encoder, base, _learnt_for(assets, model, knowledge_base), calibrate(base)


def _learnt_for(assets: Path, model: str, knowledge_base: Place | None) -> Learnt:
    learnt = learnt_for(model, files_of(knowledge_base), assets)
    if learnt.steering.form not in FORMS or learnt.steering.rows not in ROWS:
        raise ModelError(
            f"learnt.json names the form {learnt.steering.form!r} and the rows "
            f"{learnt.steering.rows!r}. Known are {', '.join(FORMS)} and {', '.join(ROWS)}. Run "
            "`python -m mrrag find-layers` again."
        )
    return learnt
