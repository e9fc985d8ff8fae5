"""MCR: what is retrieved is what the formula says, and what is shown is what was used."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_bitower import make_cases, make_images, make_loaded_tower

from mrrag.errors import SettingsError
from mrrag.forms import lambdas
from mrrag.retrieval.bi_tower import BiTower
from mrrag.retrieval.build import build_knowledge_base
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.retrieval.mcr import (
    effective_weights,
    encode_query,
    fused_query,
    gaps,
    relevance,
    retrieve,
)
from mrrag.types import Query, QueryVectors, Retrieved, Weights

COUNT = 60
EQUAL = Weights(1, 1, 1)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> BiTower:
    return make_loaded_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory, tower: BiTower) -> KnowledgeBase:
    directory = tmp_path_factory.mktemp("base")
    return build_knowledge_base(directory / "kb", make_cases(directory, COUNT), tower)


@pytest.fixture(scope="module")
def vectors(tower: BiTower) -> QueryVectors:
    return encode_query(Query(make_images(1, seed=9)[0], "is there left effusion"), tower)


def brute_force(
    kb: KnowledgeBase, vectors: QueryVectors, weights: Weights
) -> list[tuple[int, float]]:
    """f of every document from its three cosines, best first; of equal reports the first."""
    t, v = (x.astype(np.float64) for x in kb.vectors(range(len(kb))))
    score = np.zeros(len(kb))
    if vectors.v is not None:
        score += weights.alpha * (t * vectors.v).sum(1) + weights.beta * (v * vectors.v).sum(1)
    if vectors.t is not None:
        score += weights.gamma * (t * vectors.t).sum(1)
    ranked = sorted(((i, float(s)) for i, s in enumerate(score)), key=lambda p: (-p[1], p[0]))
    first = {kb.document(i).report: i for i, _ in reversed(ranked)}
    return [(i, s) for i, s in ranked if i in first.values()]


def ids(retrieved: tuple[Retrieved, ...]) -> list[str]:
    return [r.document.id for r in retrieved]


def many_weights() -> list[Weights]:
    rng = np.random.default_rng(4)
    drawn = [Weights(*(float(x) for x in rng.normal(size=3))) for _ in range(20)]
    corners = [Weights(1, 0, 0), Weights(0, -2, 0), Weights(0, 0, 1e-6), Weights(1000, -1000, 999)]
    return [*drawn, *corners]


@pytest.mark.parametrize("missing", ["nothing", "image", "question"])
def test_fused_search_is_brute_force_over_all_three_cosines(
    kb: KnowledgeBase, vectors: QueryVectors, missing: str
) -> None:
    vectors = QueryVectors(
        None if missing == "image" else vectors.v, None if missing == "question" else vectors.t
    )
    for weights in many_weights():
        try:
            usable, _ = effective_weights(weights, vectors)
        except SettingsError:
            assert missing != "nothing"
            continue
        for k in (1, 5, 50):
            expected = brute_force(kb, vectors, usable)[:k]
            found = retrieve(kb, vectors, weights, k)
            scores = [s for _, s in expected]
            np.testing.assert_allclose([r.score for r in found], scores, atol=1e-10)
            # With a weight of 1e-6, documents may be closer than the grid of the terms.
            if weights.gamma != 1e-6:
                assert ids(found) == [f"d{i}" for i, _ in expected]
            assert [r.rank for r in found] == list(range(1, k + 1))


def test_fused_query_scores_as_the_formula(kb: KnowledgeBase, vectors: QueryVectors) -> None:
    weights = Weights(0.3, -0.5, 0.8)
    both = np.concatenate(kb.vectors(range(COUNT)), axis=1)
    fused = both @ fused_query(vectors, weights)
    for i, score in brute_force(kb, vectors, weights):
        assert abs(fused[i] - score) < 1e-6


def test_terms_sum_to_the_score_exactly_in_any_order(
    kb: KnowledgeBase, vectors: QueryVectors
) -> None:
    for weights in many_weights():
        for r in retrieve(kb, vectors, weights, 20):
            a, b, c = r.terms
            assert a + b + c == c + b + a == b + c + a == math.fsum(r.terms) == r.score
            for term, cosine, weight in zip(
                r.terms, r.cosines, (weights.alpha, weights.beta, weights.gamma), strict=True
            ):
                assert abs(term - weight * cosine) < 1e-12


def test_weights_change_no_document_vector(kb: KnowledgeBase, vectors: QueryVectors) -> None:
    before = kb.vectors(range(COUNT))
    first = {r.document.id: r.cosines for r in retrieve(kb, vectors, EQUAL, 50)}
    second = {r.document.id: r.cosines for r in retrieve(kb, vectors, Weights(-1, 3, 0), 50)}
    shared = first.keys() & second.keys()
    assert shared
    assert all(first[d] == second[d] for d in shared)
    for old, new in zip(before, kb.vectors(range(COUNT)), strict=True):
        np.testing.assert_array_equal(old, new)


def test_equal_documents_come_in_document_order(kb: KnowledgeBase) -> None:
    """Asked for nearly all, so that there are too few other reports."""
    t, v = kb.vectors([COUNT - 1])
    others = [f"d{i}" for i in range(COUNT - 3)]
    query = QueryVectors(v[0], t[0])
    found = retrieve(kb, query, Weights(0, 1, 1), 3, exclude_ids=others)
    assert ids(found)[:2] == [f"d{COUNT - 2}", f"d{COUNT - 1}"]
    assert found[0].score == found[1].score


def test_a_report_is_retrieved_once_by_its_best_document(
    tower: BiTower, tmp_path: Path, vectors: QueryVectors
) -> None:
    """The same words for other patients, and every view of one study."""
    cases = make_cases(tmp_path, 30)
    said = ["No effusion." if n % 2 else "no  EFFUSION" for n in range(20)]
    said += ["Two views of one study."] * 4 + [case.document.report for case in cases[24:]]
    studies = [case.document.study for case in cases]
    studies[20:24] = ["one study"] * 4
    rewritten = [
        replace(case, document=replace(case.document, report=report, study=study))
        for case, report, study in zip(cases, said, studies, strict=True)
    ]
    base = build_knowledge_base(tmp_path / "kb", rewritten, tower)
    found = retrieve(base, vectors, EQUAL, 7)  # as many as there are different reports
    copies = {" ".join(r.document.report.lower().strip(".").split()): r.copies for r in found}
    assert len(copies) == 7
    assert (copies["no effusion"], copies["two views of one study"]) == (20, 1)
    best = max(retrieve(base, vectors, EQUAL, 1, pinned_ids=[f"d{n}"])[0].score for n in range(20))
    assert best in [r.score for r in found]
    for seed in range(5):  # nor is a retrieved report drawn as an irrelevant one
        best = retrieve(base, vectors, EQUAL, 4)
        drawn = [r for r in retrieve(base, vectors, EQUAL, 4, noise=2, seed=seed) if r.drawn]
        words = [" ".join(r.document.report.lower().strip(".").split()) for r in (*best, *drawn)]
        assert not set(words[:4]) & set(words[4:])


def test_own_study_and_patient_never_come(kb: KnowledgeBase, vectors: QueryVectors) -> None:
    best = retrieve(kb, vectors, EQUAL, 6)
    patient, study, one = best[0].document.patient, best[1].document.study, best[2].document.id
    found = retrieve(
        kb,
        vectors,
        EQUAL,
        50,
        exclude_patients=[patient],
        exclude_studies=[study],
        exclude_ids=[one],
    )
    assert len(found) == 50
    for r in found:
        assert (r.document.patient, r.document.study) != (patient, study)
        assert r.document.patient != patient
        assert r.document.study != study
        assert r.document.id != one
    expected = [f"d{i}" for i, _ in brute_force(kb, vectors, EQUAL)]
    barred = {d.id for d in kb.documents if d.patient == patient or d.study == study} | {one}
    assert ids(found) == [d for d in expected if d not in barred][:50]


def test_pinned_documents_always_come_with_their_own_score(
    kb: KnowledgeBase, vectors: QueryVectors
) -> None:
    ranked = brute_force(kb, vectors, EQUAL)
    worst, score = ranked[-1]
    found = retrieve(kb, vectors, EQUAL, 4, pinned_ids=[f"d{worst}"])
    assert ids(found) == [f"d{i}" for i, _ in [*ranked[:3], (worst, 0)]]
    assert abs(found[-1].score - score) < 1e-10
    top = [f"d{i}" for i, _ in ranked[:2]]
    assert ids(retrieve(kb, vectors, EQUAL, 2, pinned_ids=top)) == top


def test_noise_replaces_the_lowest_by_documents_not_retrieved(
    kb: KnowledgeBase, vectors: QueryVectors
) -> None:
    ranked = dict(brute_force(kb, vectors, EQUAL))
    plain = ids(retrieve(kb, vectors, EQUAL, 10))
    pin = plain[-1]
    for noise in (1, 4, 9):
        found = retrieve(kb, vectors, EQUAL, 10, noise=noise, seed=1, pinned_ids=[pin])
        kept = [d for d in ids(found) if d in plain]
        assert kept == [*plain[: 9 - noise], pin]
        assert len(set(ids(found))) == 10
        assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
        assert found[0].relevance == 1
        assert found[-1].relevance == 0
        for r in found:
            assert abs(r.score - ranked[int(r.document.id[1:])]) < 1e-10
    again = retrieve(kb, vectors, EQUAL, 10, noise=5, seed=1)
    assert again == retrieve(kb, vectors, EQUAL, 10, noise=5, seed=1)
    assert ids(again) != ids(retrieve(kb, vectors, EQUAL, 10, noise=5, seed=2))
    barred = [d.patient for d in kb.documents if d.id not in plain][::2]
    for seed in range(5):
        noisy = retrieve(kb, vectors, EQUAL, 5, noise=5, seed=seed, exclude_patients=barred)
        assert not {r.document.patient for r in noisy} & set(barred)


def test_relevance_is_min_max_and_zero_where_it_has_no_value(
    kb: KnowledgeBase, vectors: QueryVectors
) -> None:
    assert relevance([3.0, 2.0, 1.0]) == (1.0, 0.5, 0.0)
    assert relevance([2.0, 2.0]) == (0.0, 0.0)
    assert relevance([]) == ()
    assert retrieve(kb, vectors, EQUAL, 1)[0].relevance == 0
    found = retrieve(kb, vectors, EQUAL, 7)
    assert tuple(r.relevance for r in found) == relevance([r.score for r in found])


def test_balanced_lambda_is_how_far_scores_lie_apart_at_any_scale_of_the_weights(
    kb: KnowledgeBase, vectors: QueryVectors
) -> None:
    assert gaps([3.0, 2.0, 1.0], Weights(1.0, -0.5, 0.5)) == (1.0, 0.5, 0.0)
    assert gaps([2.0, 2.0], EQUAL) == (0.0, 0.0)
    assert gaps([], EQUAL) == ()
    found = retrieve(kb, vectors, Weights(0.5, 0.3, 0.2), 7)
    scores = np.array([r.score for r in found])
    assert lambdas(found, "balanced") == pytest.approx((scores - scores.min()) / 0.1)
    assert lambdas(found, "ifa") == relevance(scores.tolist())
    scaled = retrieve(kb, vectors, Weights(5.0, 3.0, 2.0), 7)
    assert lambdas(scaled, "balanced") == pytest.approx(lambdas(found, "balanced"))


def test_missing_pair_is_left_out_renormalised_and_noted(
    kb: KnowledgeBase, vectors: QueryVectors
) -> None:
    no_image, no_question = QueryVectors(None, vectors.t), QueryVectors(vectors.v, None)
    assert effective_weights(Weights(1, 2, 3), vectors) == (Weights(1, 2, 3), ())
    weights, (note,) = effective_weights(Weights(1, -2, 3), no_question)
    assert weights == Weights(2, -4, 0)
    assert "without a question: γ = 3 took no part" in note
    assert "multiplied by 2" in note
    weights, (note,) = effective_weights(Weights(1, 2, 3), no_image)
    assert weights == Weights(0, 0, 6)
    assert "without an image: α = 1 and β = 2" in note
    assert effective_weights(weights, no_image) == (weights, ())
    for r in retrieve(kb, no_question, EQUAL, 3):
        assert math.isnan(r.cosines[2])
        assert r.terms[2] == 0
    for r in retrieve(kb, no_image, EQUAL, 3):
        assert math.isnan(r.cosines[0])
        assert math.isnan(r.cosines[1])
        assert r.terms == (0, 0, r.score)
    with pytest.raises(SettingsError, match="left are zero"):
        effective_weights(Weights(1, 1, 0), no_image)


def test_query_is_encoded_as_far_as_it_goes(tower: BiTower) -> None:
    image = make_images(1)[0]
    both = encode_query(Query(image, "heart"), tower)
    np.testing.assert_array_equal(both.v, tower.images([image])[0])
    np.testing.assert_array_equal(both.t, tower.texts(["heart"])[0])
    assert encode_query(Query(None, "heart"), tower).v is None
    assert encode_query(Query(image, " \n"), tower).t is None
    with pytest.raises(SettingsError, match="nothing to search"):
        encode_query(Query(None, ""), tower)
    with pytest.raises(SettingsError, match="nothing to search"):
        fused_query(QueryVectors(None, None), EQUAL)


@pytest.mark.parametrize(
    "weights", [Weights(0, 0, 0), Weights(math.nan, 1, 1), Weights(1, math.inf, 1)]
)
def test_unusable_weights_are_refused(
    kb: KnowledgeBase, vectors: QueryVectors, weights: Weights
) -> None:
    with pytest.raises(SettingsError, match="α"):
        retrieve(kb, vectors, weights, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "From 1 to 50"),
        ({"k": 51}, "From 1 to 50"),
        ({"k": 45, "exclude_patients": [f"p{n}" for n in range(20)]}, "From 1 to 20"),
        ({"k": 5, "noise": 6}, "From 0 to 5"),
        ({"k": 5, "noise": -1}, "From 0 to 5"),
        ({"k": 50, "noise": 20}, "From 0 to 10"),
        ({"k": 2, "pinned_ids": ["d1", "d2", "d3"]}, "3 documents are pinned"),
        ({"k": 2, "pinned_ids": ["nobody"]}, "no document nobody"),
        ({"k": 2, "pinned_ids": ["d1"], "exclude_studies": ["s1"]}, "both pinned and excluded"),
    ],
)
def test_settings_out_of_range_are_refused(
    kb: KnowledgeBase, vectors: QueryVectors, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        retrieve(kb, vectors, EQUAL, **settings)  # type: ignore[arg-type]


def test_what_was_drawn_at_random_is_marked(kb: KnowledgeBase, vectors: QueryVectors) -> None:
    clean = retrieve(kb, vectors, EQUAL, 8)
    mixed = retrieve(kb, vectors, EQUAL, 8, noise=3)
    assert not any(r.drawn for r in clean)
    assert {r.document.id for r in mixed if not r.drawn} == set(ids(clean[:5]))
    assert sum(r.drawn for r in mixed) == 3
