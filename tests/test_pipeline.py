"""A case from question to answers, on the bundled model."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrrag.case import Case, CaseCache, Progress, Settings
from mrrag.data.images import load_image, read_image
from mrrag.errors import ModelError, SettingsError
from mrrag.evidence import find_evidence
from mrrag.explain import explain
from mrrag.files import ASSETS
from mrrag.learnt import load_learnt
from mrrag.loading import load_pipeline
from mrrag.model.backbone import encode_images
from mrrag.pipeline import Pipeline, Ready, answer, answer_together, get_ready
from mrrag.report.export import case_to_json
from mrrag.retrieval.doubts import warnings_of
from mrrag.types import METHODS, Document, Image, Query, Retrieved, Weights

SAMPLES = ASSETS.parent / "sample_cases"
QUESTION = "Is there a pleural effusion?"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline()


@pytest.fixture(scope="module")
def query() -> Query:
    return Query(load_image(SAMPLES / "case-1.dcm"), QUESTION)


def case_of(pipeline: Pipeline, query: Query, settings: Settings) -> Case:
    evidence = find_evidence(pipeline, query, settings)
    *_, case = answer(pipeline, query, evidence, settings)
    assert isinstance(case, Case)
    return case


def test_a_known_patients_own_reports_are_never_retrieved(pipeline: Pipeline, query: Query) -> None:
    everyones = find_evidence(pipeline, query, Settings())
    assert query.image is not None
    patient = everyones.retrieved[0].document.patient
    own = replace(query, image=replace(query.image, patient=patient))
    evidence = find_evidence(pipeline, own, Settings())
    assert patient not in {r.document.patient for r in evidence.retrieved}
    assert any("this same patient were left out" in note for note in evidence.notes)
    assert not any("same patient" in note for note in everyones.notes)


def test_three_answers_come_with_their_attention(pipeline: Pipeline, query: Query) -> None:
    case = case_of(pipeline, query, Settings())
    assert tuple(case.answers) == METHODS
    assert all(a.text and 0 <= a.p_yes + a.p_no <= 1.00001 for a in case.answers.values())
    assert case.before is not None
    assert case.after is not None
    assert np.allclose(case.before.mass_LHS.sum(-1), 1, atol=1e-5)
    assert np.allclose(case.after.mass_LHS.sum(-1), 1, atol=1e-5)
    assert case.after.layers == pipeline.learnt.steering.layers
    assert len(case.retrieved) == 8


def test_the_same_input_gives_the_same_case(pipeline: Pipeline, query: Query) -> None:
    def plain(case: Case) -> dict[str, object]:
        return {k: v for k, v in case_to_json(case).items() if k != "seconds"}

    first, second = (plain(case_of(pipeline, query, Settings())) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)


def test_without_strength_mr_rag_equals_rag(pipeline: Pipeline, query: Query) -> None:
    case = case_of(pipeline, query, Settings(strength=0.0))
    assert case.answers["mr_rag"].text == case.answers["rag"].text
    assert case.answers["mr_rag"].p_yes == pytest.approx(case.answers["rag"].p_yes, abs=1e-6)


def test_steering_moves_attention_in_the_critical_layers_first(
    pipeline: Pipeline, query: Query
) -> None:
    case = case_of(pipeline, query, Settings(strength=2.0))
    assert case.before is not None
    assert case.after is not None
    moved = np.abs(case.after.mass_LHS - case.before.mass_LHS).max((1, 2))
    first = min(pipeline.learnt.steering.layers)
    assert np.all(moved[:first] < 1e-6)
    assert moved[first] > 1e-3


def test_balanced_steering_moves_attention_between_reports_and_nowhere_else(
    pipeline: Pipeline, query: Query
) -> None:
    case = case_of(pipeline, query, Settings(form="balanced", strength=2.0, layers=(0,)))
    assert case.before is not None
    assert case.after is not None
    reports = np.array([name.startswith("report ") for name in case.before.names])
    # In the first layer both runs come with the same states.
    before, after = case.before.mass_LHS[0], case.after.mass_LHS[0]
    assert np.allclose(after[:, ~reports], before[:, ~reports], atol=1e-5)
    assert np.allclose(after[:, reports].sum(-1), before[:, reports].sum(-1), atol=1e-5)
    assert (after[:, reports] - before[:, reports])[:, 0].mean() > 1e-3  # the first is most alike
    assert case.same_state is None or case.same_state.layers == (0,)


def test_one_report_leaves_nothing_to_steer_by_and_says_so(
    pipeline: Pipeline, query: Query
) -> None:
    case = case_of(pipeline, query, Settings(k=1))
    assert case.answers["mr_rag"].text == case.answers["rag"].text
    assert any("nothing to steer by" in note for note in case.notes)


def test_a_prompt_longer_than_the_model_was_taught_on_says_so(
    pipeline: Pipeline, query: Query
) -> None:
    assert not any("was trained on" in note for note in case_of(pipeline, query, Settings()).notes)
    tokenizer = copy.copy(pipeline.backbone.tokenizer)
    tokenizer.model_max_length = 100
    short = replace(pipeline, backbone=replace(pipeline.backbone, tokenizer=tokenizer))
    case = case_of(short, query, Settings())
    assert sum("was trained on 100 at most" in note for note in case.notes) == 1


def test_the_terms_shown_sum_to_the_score(pipeline: Pipeline, query: Query) -> None:
    for r in case_of(pipeline, query, Settings(noise=3)).retrieved:
        assert sum(r.terms) == r.score


def test_other_weights_need_no_encoding(pipeline: Pipeline, query: Query) -> None:
    first = find_evidence(pipeline, query, Settings())
    blind = replace(query, image=None)  # an encoder would now see no image
    again = find_evidence(pipeline, blind, Settings(weights=Weights(0.0, 1.0, 0.0)), known=first)
    assert [r.score for r in again.retrieved] == pytest.approx(
        sorted((r.cosines[1] for r in again.retrieved), reverse=True), abs=1e-9
    )
    assert [r.document.id for r in again.retrieved] != [r.document.id for r in first.retrieved]


def test_a_question_outside_the_world_is_declined(pipeline: Pipeline, query: Query) -> None:
    case = case_of(pipeline, replace(query, question="What is the blood type?"), Settings())
    assert all("only knows" in a.text for a in case.answers.values())
    assert all(math.isnan(a.p_yes) for a in case.answers.values())
    assert case_to_json(case)["answers"]["rag"]["p_yes"] is None


def test_a_question_without_an_image_is_answered_from_reports(
    pipeline: Pipeline, query: Query
) -> None:
    case = case_of(pipeline, replace(query, image=None), Settings())
    assert any("without an image" in note for note in case.notes)
    assert all(math.isnan(r.cosines[0]) for r in case.retrieved)


def test_a_cancelled_case_stops_at_once(pipeline: Pipeline, query: Query) -> None:
    evidence = find_evidence(pipeline, query, Settings())
    steps = answer(pipeline, query, evidence, Settings(), cancelled=lambda: True)
    assert list(steps) == []


def test_two_cases_at_once_share_nothing(pipeline: Pipeline, query: Query) -> None:
    other = replace(query, question="Is there a pacemaker?")
    alone = [case_of(pipeline, q, Settings()) for q in (query, other)]
    streams = []
    for q in (query, other):
        evidence = find_evidence(pipeline, q, Settings())
        streams.append(answer(pipeline, q, evidence, Settings()))
    last: list[Progress | Case | None] = [None, None]
    running = {0, 1}
    while running:
        for i in sorted(running):
            step = next(streams[i], None)
            if step is None:
                running.discard(i)
            else:
                last[i] = step
    for mixed, single in zip(last, alone, strict=True):
        assert isinstance(mixed, Case)
        assert mixed.answers["mr_rag"].text == single.answers["mr_rag"].text
        assert mixed.answers["mr_rag"].p_yes == single.answers["mr_rag"].p_yes


def ready_of(
    pipeline: Pipeline, query: Query, settings: Settings, cache: CaseCache | None = None
) -> Ready:
    evidence = find_evidence(pipeline, query, settings)
    ready = get_ready(pipeline, query, evidence, settings, cache=cache)
    assert isinstance(ready, Ready)
    return ready


def test_cases_together_are_cases_apart(pipeline: Pipeline, query: Query) -> None:
    """In float32 the words are the same, and the numbers to float noise."""
    first = case_of(pipeline, query, Settings(k=3))
    other = Query(load_image(SAMPLES / "case-2.dcm"), "Is there a pacemaker?")
    again = replace(query, question="Is the heart enlarged?")
    ready = [
        ready_of(pipeline, query, Settings(k=3)),
        ready_of(pipeline, other, Settings(k=2, strength=4.0)),
        ready_of(pipeline, again, Settings(k=3, strength=0.0), first.cache),
    ]
    assert ready[2].known is not None
    together = zip(*answer_together(pipeline, ready), strict=True)
    for one, items in zip(ready, together, strict=True):
        apart, case = case_of(pipeline, one.query, one.settings), items[-1]
        assert isinstance(items[0], Progress)
        assert isinstance(case, Case)
        nothing = {"answers": {}, "before": None, "after": None, "seconds": {}, "cache": None}
        assert replace(case, **nothing) == replace(apart, **nothing)
        assert case.seconds.keys() == apart.seconds.keys()
        for ours, theirs in zip(case.answers.values(), apart.answers.values(), strict=True):
            numbers = {"p_yes": 0.0, "p_no": 0.0, "seconds": 0.0}
            assert replace(ours, **numbers) == replace(theirs, **numbers)
            assert (ours.p_yes, ours.p_no) == pytest.approx((theirs.p_yes, theirs.p_no), abs=1e-5)
        for mine, its in ((case.before, apart.before), (case.after, apart.after)):
            assert mine is not None
            assert its is not None
            assert (mine.spans, mine.layers) == (its.spans, its.layers)
            assert np.abs(mine.mass_LHS - its.mass_LHS).max() < 1e-4


def test_cases_of_other_layers_are_not_answered_together(pipeline: Pipeline, query: Query) -> None:
    ready = [ready_of(pipeline, query, Settings(k=1, layers=layers)) for layers in (None, (0,))]
    with pytest.raises(ValueError, match="cannot be answered together"):
        next(answer_together(pipeline, ready))


@pytest.mark.parametrize(
    ("question", "settings", "words"),
    [
        ("  ", Settings(), "empty"),
        ("x" * 1001, Settings(), "1000"),
        (QUESTION, Settings(k=0), "From 1"),
        (QUESTION, Settings(layers=(99,)), "layers 0 to"),
        (QUESTION, Settings(strength=-1.0), "0 to 10"),
        (QUESTION, Settings(strength=float("nan")), "0 to 10"),
        (QUESTION, Settings(form="additive"), "ifa, balanced"),
        (QUESTION, Settings(noise=9), "irrelevant"),
        (QUESTION, Settings(max_new_tokens=0), "1 to 512"),
        (QUESTION, Settings(weights=Weights(0.0, 0.0, 0.0)), "zero"),
    ],
)
def test_a_setting_outside_its_range_says_what_is_allowed(
    pipeline: Pipeline, query: Query, question: str, settings: Settings, words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        find_evidence(pipeline, replace(query, question=question), settings)


def test_learnt_values_that_are_absent_say_how_to_learn_them(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="train-adapter"):
        load_learnt(tmp_path / "learnt.json")


def test_the_bundle_fits_where_it_must() -> None:
    sizes = [f.stat().st_size for f in ASSETS.rglob("*") if f.is_file()]
    assert max(sizes) < 10_000_000
    assert sum(sizes) < 60_000_000


def test_pins_and_exclusions_hold(pipeline: Pipeline, query: Query) -> None:
    plain = find_evidence(pipeline, query, Settings(k=4))
    outside = find_evidence(pipeline, query, Settings(k=8)).retrieved[6].document.id
    gone = plain.retrieved[0].document.id
    settings = Settings(k=4, pinned=(outside,), excluded=(gone,))
    ids = [r.document.id for r in find_evidence(pipeline, query, settings, known=plain).retrieved]
    assert outside in ids
    assert gone not in ids
    assert len(ids) == 4


def test_the_influence_of_a_report_is_what_blocking_it_changes(
    pipeline: Pipeline, query: Query
) -> None:
    case = case_of(pipeline, query, Settings(strength=1.0))
    found = explain(pipeline, query, case).influence
    assert found is not None
    said = {m: getattr(case.answers[m], f"p_{found.word}") for m in ("rag", "mr_rag")}
    assert found.whole_before == pytest.approx(said["rag"], abs=1e-4)
    assert found.whole_after == pytest.approx(said["mr_rag"], abs=1e-4)
    assert len(found.before) == len(found.after) == len(case.retrieved)
    assert any(abs(change) > 0 for change in found.before)


def test_without_steering_influence_is_the_same_before_and_after(
    pipeline: Pipeline, query: Query
) -> None:
    case = case_of(pipeline, query, Settings(strength=0.0))
    found = explain(pipeline, query, case).influence
    assert found is not None
    assert found.before == pytest.approx(found.after, abs=1e-5)


def test_an_answer_that_is_not_yes_or_no_has_no_influence_to_follow(
    pipeline: Pipeline, query: Query
) -> None:
    case = case_of(pipeline, replace(query, question="What is the blood type?"), Settings())
    assert explain(pipeline, query, case).influence is None


def test_reports_that_contradict_each_other_are_pointed_out(pipeline: Pipeline) -> None:
    def said(rank: int, report: str) -> Retrieved:
        return Retrieved(
            Document(str(rank), report, "p", "s"), rank, 0.5, (0,) * 3, (0,) * 3, 0.5, 0.0
        )

    reports = (said(1, "No effusion."), said(2, "Clear."), said(3, "Large left effusion."))
    found = warnings_of("Is there pleural fluid?", reports, (99.0, 98.0, 97.0), 95.0, None)
    assert set(found) == {"contradiction"}
    assert "affirmed by 3 and denied by 1" in found["contradiction"]
    weak = warnings_of("Is there a nodule?", reports, (0.0, 8.0, 7.0), 95.0, None)
    assert set(weak) == {"weak"}


def test_a_lateral_view_among_frontal_ones_is_pointed_out(pipeline: Pipeline) -> None:
    film = load_image(SAMPLES / "case-1.dcm")
    assert film.tags["view position"] == "PA"
    assert "lateral" not in find_evidence(pipeline, Query(film, QUESTION), Settings()).warnings
    turned = replace(film, tags={**film.tags, "view position": "LL"})
    evidence = find_evidence(pipeline, Query(turned, QUESTION), Settings())
    assert "This is a lateral view" in evidence.warnings["lateral"]
    own = [replace(r, document=replace(r.document, view="lateral")) for r in evidence.retrieved]
    assert "lateral" not in warnings_of("", tuple(own), (), 90.0, None, "lateral")


def test_a_picture_from_elsewhere_is_pointed_out(pipeline: Pipeline) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200)).astype(np.uint8)
    evidence = find_evidence(pipeline, Query(Image(noise), QUESTION), Settings())
    assert "may not apply" in evidence.warnings["unlike"]


def test_the_picture_itself_in_the_knowledge_base_is_pointed_out(pipeline: Pipeline) -> None:
    base = pipeline.knowledge_base
    own = read_image(base.thumbnail(3))
    by_image = Weights(0.0, 1.0, 0.0)  # so that its own report is retrieved
    evidence = find_evidence(pipeline, Query(own, QUESTION), Settings(weights=by_image))
    assert base.document(3).id in evidence.warnings["known"]
    without = Settings(weights=by_image, excluded=(base.document(3).id,))
    again = find_evidence(pipeline, Query(own, QUESTION), without, known=evidence)
    assert "known" not in again.warnings


# What is kept for the next question


def tokens_read(pipeline: Pipeline, run: Callable[[], Case]) -> tuple[Case, int]:
    """The case, and how many tokens went through the text model before decoding."""
    seen: list[int] = []

    def note(_: object, args: object, kwargs: dict[str, Any]) -> None:
        given = kwargs.get("inputs_embeds")
        seen.append((kwargs["input_ids"] if given is None else given).shape[1])

    text = pipeline.backbone.model.model.language_model
    hook = text.register_forward_pre_hook(note, with_kwargs=True)
    try:
        return run(), sum(n for n in seen if n > 1)
    finally:
        hook.remove()


def asked(
    pipeline: Pipeline, query: Query, settings: Settings, cache: CaseCache | None
) -> tuple[Case, int]:
    def run() -> Case:
        evidence = find_evidence(pipeline, query, settings)
        *_, case = answer(pipeline, query, evidence, settings, cache=cache)
        assert isinstance(case, Case)
        return case

    return tokens_read(pipeline, run)


@pytest.mark.parametrize(
    ("settings", "question", "new_reports"),
    [
        (Settings(strength=2.0, layers=(0, 2)), QUESTION, False),
        (Settings(k=3), QUESTION, False),
        (Settings(), "Is the heart enlarged?", True),
        (Settings(k=12), QUESTION, True),
        (Settings(noise=2), QUESTION, True),
    ],
)
def test_the_next_question_about_an_image_does_not_read_it_again(
    pipeline: Pipeline, query: Query, settings: Settings, question: str, new_reports: bool
) -> None:
    first, _ = asked(pipeline, query, Settings(), None)
    again = Query(query.image, question)
    fresh, all_read = asked(pipeline, again, settings, None)
    saved, read = asked(pipeline, again, settings, first.cache)
    image = pipeline.backbone.image_tokens
    assert read <= all_read - image
    if not new_reports:
        # Only the end of the prompt, as one batch, behind what is known.
        assert read < 40
    for method, plain in fresh.answers.items():
        assert saved.answers[method].text == plain.text
        assert saved.answers[method].p_yes == pytest.approx(plain.p_yes, abs=1e-5)
    assert saved.cache is not None


def test_another_image_takes_nothing_from_the_one_before(pipeline: Pipeline, query: Query) -> None:
    first, _ = asked(pipeline, query, Settings(), None)
    other = Query(load_image(SAMPLES / "case-2.dcm"), QUESTION)
    fresh, all_read = asked(pipeline, other, Settings(), None)
    saved, read = asked(pipeline, other, Settings(), first.cache)
    assert read == all_read
    assert {m: a.p_yes for m, a in saved.answers.items()} == {
        m: a.p_yes for m, a in fresh.answers.items()
    }


def test_what_is_kept_is_small_and_shared_and_never_exported(
    pipeline: Pipeline, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, _ = asked(pipeline, query, Settings(), None)
    assert case.cache is not None
    length = len(case.cache.prefix.ids)
    before = [layer.keys.clone() for layer in case.cache.prefix.cache.layers]
    assert case.cache.prefix.nbytes < 10e6
    assert "cache" not in case_to_json(case)
    asked(pipeline, query, Settings(k=12), case.cache)
    assert len(case.cache.prefix.ids) == length
    assert all(
        bool((old == layer.keys).all())
        for old, layer in zip(before, case.cache.prefix.cache.layers, strict=True)
    )
    monkeypatch.setattr("mrrag.model.prefill.MAX_CACHE_BYTES", 1000)
    assert asked(pipeline, query, Settings(), None)[0].cache is None


def test_explaining_reads_the_image_once_at_most(
    pipeline: Pipeline, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, _ = asked(pipeline, query, Settings(), None)
    calls: list[int] = []
    monkeypatch.setattr(
        "mrrag.pipeline.encode_images",
        lambda backbone, images: calls.append(len(images)) or encode_images(backbone, images),
    )
    from_cache = explain(pipeline, query, case)
    assert calls == []
    alone = explain(pipeline, query, replace(case, cache=None))
    assert calls == [1]
    assert from_cache.influence == alone.influence


def test_each_answer_has_its_own_seconds(pipeline: Pipeline, query: Query) -> None:
    case = case_of(pipeline, query, Settings())
    longest = max(case.answers.values(), key=lambda answer: answer.tokens)
    for method, answered in case.answers.items():
        assert 0 < answered.seconds <= longest.seconds
        if answered.tokens < longest.tokens:
            assert answered.seconds < longest.seconds, method


def test_without_layers_mr_rag_says_that_it_is_rag(pipeline: Pipeline, query: Query) -> None:
    unlearnt = replace(
        pipeline,
        learnt=replace(pipeline.learnt, steering=replace(pipeline.learnt.steering, layers=())),
    )
    case = case_of(unlearnt, query, Settings())
    assert case.answers["mr_rag"].p_yes == case.answers["rag"].p_yes
    assert any("No critical layers are known" in note for note in case.notes)
