"""What is usual in a knowledge base, and what is not."""

import io
import json
import math
from dataclasses import astuple
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from tiny_bitower import make_cases, make_loaded_tower

from mrrag.data.images import load_image
from mrrag.files import ASSETS
from mrrag.learnt import ALIKE, default_weights
from mrrag.loading import load_pipeline
from mrrag.pipeline import Pipeline
from mrrag.retrieval.build import build_knowledge_base
from mrrag.retrieval.calibration import (
    AT_CHANCE,
    USUAL,
    calibrate,
    is_same_picture,
    percentiles,
    unlike,
    usual_scores,
)
from mrrag.retrieval.doubts import warnings_of
from mrrag.retrieval.mcr import effective_weights, retrieve
from mrrag.types import FloatArray, Image, QueryVectors, Weights

SAMPLES = ASSETS.parent / "sample_cases"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline()


def sample_images() -> list[Image]:
    cases = json.loads((SAMPLES / "cases.json").read_text())
    return [load_image(SAMPLES / case["file"]) for case in cases]


def vectors_of(pipeline: Pipeline, image: Image, question: str = "") -> QueryVectors:
    return QueryVectors(
        pipeline.encoder.images([image])[0],
        pipeline.encoder.texts([question])[0] if question else None,
    )


def not_radiographs() -> list[Image]:
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[:300, :300]
    return [
        Image(rng.integers(0, 256, (300, 300)).astype(np.uint8)),
        Image(np.zeros((200, 300), np.uint8)),
        Image(np.tile(np.linspace(0, 255, 300), (300, 1)).astype(np.uint8)),
        Image((255 * ((xx // 30 + yy // 30) % 2)).astype(np.uint8)),
        Image((255 * (np.hypot(xx - 150, yy - 150) < 90)).astype(np.uint8)),
    ]


def test_pictures_from_elsewhere_are_called_unlike(pipeline: Pipeline) -> None:
    for image in not_radiographs():
        v = vectors_of(pipeline, image).v
        assert v is not None
        assert unlike(pipeline.calibration, image, v)


def test_few_pictures_of_its_own_kind_are_called_unlike(pipeline: Pipeline) -> None:
    base = pipeline.knowledge_base
    numbers = np.random.default_rng(1).choice(len(base), 120, replace=False)
    images = [
        Image(np.asarray(PIL.Image.open(io.BytesIO(base.thumbnail(int(i)))))) for i in numbers
    ]
    called = [unlike(pipeline.calibration, i, vectors_of(pipeline, i).v) for i in images]  # type: ignore[arg-type]
    assert np.mean(called) <= 0.06
    assert not all(
        unlike(pipeline.calibration, i, vectors_of(pipeline, i).v)  # type: ignore[arg-type]
        for i in sample_images()
    )


def test_a_picture_of_the_base_is_recognised_and_its_neighbours_are_not(
    pipeline: Pipeline,
) -> None:
    base = pipeline.knowledge_base
    for i in (0, len(base) // 2, len(base) - 1):
        own = Image(np.asarray(PIL.Image.open(io.BytesIO(base.thumbnail(i)))))
        assert is_same_picture(base, own, vectors_of(pipeline, own)) == base.document(i).id
    for image in sample_images():  # held out from the knowledge base
        assert is_same_picture(base, image, vectors_of(pipeline, image)) is None


def test_percentiles_compare_with_the_same_rank_of_other_pictures(pipeline: Pipeline) -> None:
    base, calibration = pipeline.knowledge_base, pipeline.calibration
    vectors = vectors_of(pipeline, sample_images()[0], "Is there a pleural effusion?")
    weights, _ = effective_weights(Weights(0.2, -0.3, 0.5), vectors)
    usual = usual_scores(base, calibration, vectors, weights, 5)
    assert usual.shape == (USUAL, 5)
    for m, number in list(enumerate(calibration.sample_M[:USUAL].tolist()))[::32]:
        _, v = base.vectors([number])
        found = retrieve(
            base,
            QueryVectors(v[0], vectors.t),
            weights,
            5,
            exclude_patients=[base.document(number).patient],
        )
        np.testing.assert_allclose(usual[m], [r.score for r in found], atol=1e-5)
    assert percentiles([usual[:, 0].max() + 1, usual[:, 1].min() - 1], usual) == (100, 0)


def test_a_picture_like_others_stands_in_the_middle_and_random_vectors_below(
    pipeline: Pipeline,
) -> None:
    """Best of many random pairs once counted as high; it must not."""
    base, rng = pipeline.knowledge_base, np.random.default_rng(5)
    weights = pipeline.learnt.weights
    own = [vectors_of(pipeline, image).v for image in sample_images()]
    drawn = rng.normal(size=(9, base.dimension)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)

    def stand(v: FloatArray | None) -> float:
        vectors = QueryVectors(v, None)
        usable, _ = effective_weights(weights, vectors)
        best = retrieve(base, vectors, usable, 1)[0].score
        return percentiles([best], usual_scores(base, pipeline.calibration, vectors, usable, 1))[0]

    assert 20 < np.median([stand(v) for v in own]) < 80
    assert np.median([stand(v) for v in drawn]) < 5


def test_an_encoder_that_cannot_relate_pictures_to_reports_is_weak_evidence(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    assert pipeline.calibration.own_report > 85
    tower = make_loaded_tower(tmp_path / "tower")  # random weights
    base = build_knowledge_base(tmp_path / "kb", make_cases(tmp_path, 240), tower)
    chance = calibrate(base).own_report
    assert 40 < chance < AT_CHANCE
    assert "50 % is chance" in warnings_of("", (), (), chance, None)["weak"]
    assert "weak" not in warnings_of("", (), (50.0,), pipeline.calibration.own_report, None)
    assert "weak" in warnings_of("", (), (0.0,), pipeline.calibration.own_report, None)


def test_default_weights_let_no_similarity_decide_by_its_spread(tmp_path: Path) -> None:
    """γ's cosines often spread twice as wide as α's; the default undoes it."""
    tower = make_loaded_tower(tmp_path / "tower")
    base = build_knowledge_base(tmp_path / "kb", make_cases(tmp_path, 120), tower)
    _, v = base.vectors(range(120))
    measured = Weights(**base.manifest["spread"])
    alone = [np.std(np.delete(v @ v[n], n)) for n in range(120)]
    assert measured.beta == pytest.approx(np.mean(alone), rel=1e-5)
    weights = default_weights(tmp_path / "kb")
    shares = np.array(astuple(weights)) * np.array(astuple(measured))
    np.testing.assert_allclose(shares / shares.sum(), (0.4, 0.4, 0.2), rtol=1e-6)
    assert sum(astuple(weights)) == pytest.approx(1)
    (tmp_path / "kb" / "manifest.json").write_text("{}")  # built before spreads were measured
    assert default_weights(tmp_path / "kb") == ALIKE


def test_a_small_base_warns_of_nothing_it_cannot_measure(tmp_path: Path) -> None:
    tower = make_loaded_tower(tmp_path / "tower")
    base = build_knowledge_base(tmp_path / "kb", make_cases(tmp_path, 6), tower)
    found = calibrate(base)
    assert math.isnan(found.own_report)
    for image in not_radiographs():
        v = tower.images([image])[0]
        assert not unlike(found, image, v)
        usual = usual_scores(base, found, QueryVectors(v, None), Weights(1, 1, 0), 3)
        assert all(map(math.isnan, percentiles([0.5, 0.4, 0.3], usual)))
