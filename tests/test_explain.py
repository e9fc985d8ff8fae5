"""What the picture does to an answer: measured by replacing it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from mrrag.case import Case, PictureInfluence, Settings
from mrrag.data.images import load_image, read_image
from mrrag.evidence import find_evidence
from mrrag.explain import picture_influence
from mrrag.files import ASSETS
from mrrag.loading import load_pipeline
from mrrag.pipeline import Pipeline, answer, steering_of
from mrrag.types import METHODS, Query

QUESTION = "Is an enlarged heart present in this image?"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline()


def asked(pipeline: Pipeline, query: Query, settings: Settings) -> Case:
    *_, case = answer(pipeline, query, find_evidence(pipeline, query, settings), settings)
    assert isinstance(case, Case)
    return case


@pytest.fixture(scope="module")
def query() -> Query:
    return Query(load_image(ASSETS.parent / "sample_cases" / "case-1.dcm"), QUESTION)


@pytest.fixture(scope="module")
def case(pipeline: Pipeline, query: Query) -> Case:
    return asked(pipeline, query, Settings(k=3))


def measured(pipeline: Pipeline, query: Query, case: Case) -> PictureInfluence | None:
    return picture_influence(pipeline, query, case, steering_of(pipeline, case.settings))


def test_each_probability_is_that_of_the_case_asked_with_the_other_picture(
    pipeline: Pipeline, query: Query, case: Case
) -> None:
    found = measured(pipeline, query, case)
    assert found is not None
    (number,) = pipeline.knowledge_base.positions(ids={found.other})
    other = read_image(pipeline.knowledge_base.thumbnail(number))
    for column, image in ((1, None), (3, other)):
        again = replace(query, image=image)
        # The same reports are read, with the same scores.
        evidence = replace(find_evidence(pipeline, query, Settings(k=3)))
        *_, replaced = answer(pipeline, again, evidence, Settings(k=3))
        assert isinstance(replaced, Case)
        for method in METHODS:
            expected = replaced.answers[method].p_yes
            assert found.p_yes[method][column] == pytest.approx(expected, abs=1e-4)
            assert found.p_yes[method][0] == case.answers[method].p_yes


def test_the_other_picture_is_the_least_similar_one(
    pipeline: Pipeline, query: Query, case: Case
) -> None:
    found = measured(pipeline, query, case)
    vector = find_evidence(pipeline, query, Settings(k=1)).vectors.v
    assert found is not None
    assert vector is not None
    _, v_ND = pipeline.knowledge_base.vectors(np.arange(len(pipeline.knowledge_base)))
    assert found.cosine == pytest.approx(float((v_ND @ vector).min()), abs=1e-4)


def test_nothing_is_measured_without_a_picture_or_without_yes_or_no(
    pipeline: Pipeline, query: Query, case: Case
) -> None:
    without = replace(query, image=None)
    assert measured(pipeline, without, case) is None
    described = asked(pipeline, replace(query, question="Describe the findings."), Settings(k=2))
    assert measured(pipeline, query, described) is None


def test_the_sentence_says_whose_answer_hardly_depends_on_the_picture() -> None:
    still, moved = (0.90, 0.91, 0.88, math.nan), (0.90, 0.20, 0.88, math.nan)
    none = PictureInfluence(dict.fromkeys(METHODS, still), "", math.nan, b"")
    assert none.sentence.startswith("The answers hardly depend on the picture")
    assert "at most 0.02" in none.sentence
    some = PictureInfluence({"rag_off": moved, "rag": still, "mr_rag": still}, "", math.nan, b"")
    assert "up to 0.70" in some.sentence
    assert "RAG and MR-RAG hardly depends" in some.sentence
