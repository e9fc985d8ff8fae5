"""The arena on one case gives what ``evaluate`` gives, from what was read before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_experiment import make_pipeline

from mrrag.case import Case, Settings
from mrrag.data.images import load_image
from mrrag.data.records import Question, Record
from mrrag.errors import SettingsError
from mrrag.evidence import find_evidence
from mrrag.model.answering import answer_batch
from mrrag.pipeline import Pipeline, answer, steering_of
from mrrag.study.arena import ARENA, CONTROLS
from mrrag.study.arena_answers import OFFERED, ArenaAnswer
from mrrag.study.evaluation import answer_ways, branch_of, encode_questions
from mrrag.study.experiment import as_read
from mrrag.study.one_case import answer_arena, strength_curve, weight_curves
from mrrag.study.plan import ReadingPlan, reading_of, way_of
from mrrag.types import Query, Rival, Steering, Weights

SETTINGS = Settings(k=3, max_new_tokens=3, strength=1.5, layers=(0, 1))
ASKED = "Is there pleural effusion left ?"
Made = tuple[Pipeline, Record, Query, Case, dict[str, ArenaAnswer]]


def ask(pipeline: Pipeline, query: Query, settings: Settings) -> Case:
    *_, case = answer(pipeline, query, find_evidence(pipeline, query, settings), settings)
    assert isinstance(case, Case)
    return case


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llava_folder: Path) -> Made:
    pipeline, cases = make_pipeline(tmp_path_factory.mktemp("one"), tiny_llava_folder)
    image = replace(load_image(cases[0].image_path), patient=cases[0].document.patient)
    query = Query(image, ASKED)
    case = ask(pipeline, query, SETTINGS)
    answers = {a.method: a for a in answer_arena(pipeline, query, case, OFFERED)}
    return pipeline, cases[0], query, case, answers


def test_every_method_says_what_evaluate_says(made: Made) -> None:
    pipeline, record, _, case, answers = made
    assert (
        {*answers} == {*OFFERED} == {n for n in ARENA if n not in CONTROLS and not ARENA[n].heads}
    )
    items = encode_questions(pipeline, [(record, Question("q", "u", ASKED, "Yes", "closed"))])
    steering, weights = steering_of(pipeline, case.settings), pipeline.learnt.weights
    for name, found in answers.items():
        method, reading = ARENA[name], ReadingPlan()
        if method.reads:
            reading = reading_of(method, ReadingPlan(weights, 3))
        read = as_read(case.retrieved, weights, reading) if method.reads else ()
        (other,) = answer_ways(
            pipeline, items, [read], [way_of(method, steering)], max_new_tokens=3
        )
        both = found.p_yes + found.p_no
        said = found.p_yes / both if both else 0.5
        assert said == pytest.approx(float(other.p_yes[0]), abs=1e-5), name
        assert found.text == other.texts[0], name
        assert found.ranks == tuple(r.rank for r in read) or method.order == "reversed"
        assert found.seconds > 0


def test_the_three_answers_of_the_case_are_among_them(made: Made) -> None:
    *_, case, answers = made
    for name, given in case.answers.items():
        assert answers[name].p_yes == pytest.approx(given.p_yes, abs=1e-5)
        assert answers[name].text == given.text


def test_maps_are_those_of_methods_that_change_attention(made: Made) -> None:
    *_, case, answers = made
    for name, found in answers.items():
        way = ARENA[name].way
        changes = way is None or (isinstance(way, Steering) and way.strength > 0)
        if isinstance(way, Rival):
            changes = bool(way.emphases)
        if not changes:
            assert found.before is None is found.after
            continue
        assert found.before is not None
        assert found.after is not None
        for trace in (found.before, found.after):
            np.testing.assert_allclose(trace.mass_LHS.sum(-1), 1, atol=1e-4)
        assert not found.before.layers
        # A floor that is reached already changes nothing.
        if name not in ("spotlight", "spotlight_writing"):
            assert np.abs(found.after.mass_LHS - found.before.mass_LHS).max() > 1e-4, name
    # IFA's are those of the answers above.
    assert case.before is not None
    assert case.after is not None
    ours = answers["mr_rag"]
    assert ours.before is not None
    assert ours.after is not None
    np.testing.assert_allclose(ours.before.mass_LHS, case.before.mass_LHS, atol=1e-5)
    np.testing.assert_allclose(ours.after.mass_LHS, case.after.mass_LHS, atol=1e-5)
    assert ours.after.layers == case.after.layers


def test_each_report_s_own_answer_is_that_to_its_prompt_alone(made: Made) -> None:
    pipeline, record, _, case, answers = made
    (item,) = encode_questions(pipeline, [(record, Question("q", "u", ASKED, "Yes", "closed"))])
    branches = [branch_of(pipeline, item, [r.document.report]) for r in case.retrieved]
    alone = answer_batch(pipeline.backbone, branches).p_yes
    for name, found in answers.items():
        way = ARENA[name].way
        fuses = isinstance(way, Rival) and way.mixture and way.mixture.prompts == "each report"
        assert found.alone == (pytest.approx(alone.tolist(), abs=1e-5) if fuses else ())


def test_what_was_read_is_not_read_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, _, query, case, answers = made
    monkeypatch.setattr("mrrag.study.one_case.image_features", None)
    monkeypatch.setattr("mrrag.model.prefill.prefill_batch", None)
    assert case.cache is not None
    taken = replace(case, cache=None)
    again = answer_arena(pipeline, query, taken, ["rag", "cad"], cache=case.cache)
    assert [a.p_yes for a in again] == [answers[name].p_yes for name in ("rag", "cad")]


def test_a_case_that_was_not_asked_and_an_unknown_method_are_refused(made: Made) -> None:
    pipeline, _, query, case, _ = made
    for name in ("nonsense", "wrong_picture"):
        with pytest.raises(SettingsError, match="no method"):
            next(answer_arena(pipeline, query, case, [name]))
    with pytest.raises(SettingsError, match="not asked"):
        next(answer_arena(pipeline, query, replace(case, before=None), ["rag"]))


def test_a_curve_is_the_case_asked_at_each_strength(made: Made) -> None:
    pipeline, _, query, case, _ = made
    curve = strength_curve(pipeline, query, case, (0.0, 3.0))
    assert (curve.at, curve.present) == ((0.0, 1.5, 3.0), 1.5)
    expected = [case.answers["rag"].p_yes, case.answers["mr_rag"].p_yes]
    stronger = ask(pipeline, query, replace(SETTINGS, strength=3.0))
    assert curve.p_yes == pytest.approx([*expected, stronger.answers["mr_rag"].p_yes], abs=1e-5)


def test_curves_of_weights_are_the_case_asked_with_each(made: Made) -> None:
    pipeline, _, query, case, _ = made
    curves = weight_curves(pipeline, query, case, (-0.4, 0.4), limit=0.9)
    assert [c.setting for c in curves] == ["alpha", "beta", "gamma"]
    assert curves[0].at == pytest.approx((0.1, 0.5, 0.9))
    learnt = pipeline.learnt.weights
    moved = [Weights(0.1, learnt.beta, learnt.gamma), learnt, Weights(0.9, 0.2, 0.3)]
    for weights, p_yes in zip(moved, curves[0].p_yes, strict=True):
        asked = ask(pipeline, query, replace(SETTINGS, weights=weights))
        assert p_yes == pytest.approx(asked.answers["mr_rag"].p_yes, abs=1e-5)
    only = replace(case, settings=replace(case.settings, weights=Weights(0.0, 0.0, 0.5)))
    gamma = weight_curves(pipeline, query, only, (-0.5,))[2]
    assert gamma.at == (0.5,)  # without any weight nothing is ranked
