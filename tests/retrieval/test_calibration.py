"""What is usual in a knowledge base, and what is not."""

import io
import json
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mrrag.data.images import load_image
from mrrag.files import ASSETS
from mrrag.pipeline import Pipeline, load_pipeline
from mrrag.retrieval.calibration import (
    Calibration,
    chance_scores,
    is_same_picture,
    percentile,
    unlike,
)
from mrrag.retrieval.mcr import effective_weights, retrieve
from mrrag.types import Image, QueryVectors, Weights

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


def test_chance_is_what_the_formula_gives_for_random_pairs(pipeline: Pipeline) -> None:
    vectors = vectors_of(pipeline, sample_images()[0], "Is there a pleural effusion?")
    weights = Weights(0.2, -0.3, 0.5)
    chance = chance_scores(pipeline.calibration, vectors, weights)
    c = pipeline.calibration
    assert np.all(np.diff(chance) >= 0)
    assert vectors.t is not None
    expected = 0.2 * c.image_report_P - 0.3 * c.image_image_P + 0.5 * (c.reports_PD @ vectors.t)
    np.testing.assert_allclose(chance, np.sort(expected), atol=1e-6)


def test_the_best_reports_stand_high_among_chance(pipeline: Pipeline) -> None:
    vectors = vectors_of(pipeline, sample_images()[0], "Is there a pleural effusion?")
    weights, _ = effective_weights(pipeline.learnt.weights, vectors)
    found = retrieve(pipeline.knowledge_base, vectors, weights, 8, noise=4)
    stand = percentile(
        [r.score for r in found], chance_scores(pipeline.calibration, vectors, weights)
    )
    assert np.all(np.diff(stand) <= 0)
    assert stand[0] > 95
    assert math.isnan(percentile([0.5], np.array([]))[0])


def test_a_small_base_warns_of_nothing_it_cannot_measure(tmp_path: Path) -> None:
    from tiny_bitower import make_cases, make_loaded_tower

    from mrrag.retrieval.build import build_knowledge_base
    from mrrag.retrieval.calibration import calibrate

    tower = make_loaded_tower(tmp_path / "tower")
    base = build_knowledge_base(tmp_path / "kb", make_cases(tmp_path, 6), tower)
    found: Calibration = calibrate(base, Weights(1, 1, 1))
    assert math.isnan(found.weak)
    for image in not_radiographs():
        assert not unlike(found, image, tower.images([image])[0])
