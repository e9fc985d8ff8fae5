"""The evidence as it is ranked again in place, on the bundled model, without a browser."""

from __future__ import annotations

import base64
import gzip
import json
import re
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.about import About, read_about
from app.sections.asking import ask, impression, vote
from app.sections.attention import STATES, heatmaps
from app.sections.evidence import choose_base, redraw, report_tints, rerank
from app.sections.saving import save
from app.sections.visit import Visit, of_base
from mrrag.data.images import load_image
from mrrag.errors import KnowledgeBaseError
from mrrag.files import ASSETS
from mrrag.pipeline import Pipeline, load_pipeline
from mrrag.report import cards
from mrrag.report.export import read_case
from mrrag.types import METHODS, Document, Image, Retrieved, Weights

SAMPLES = ASSETS.parent / "sample_cases"
QUESTION = "Is there a pleural effusion?"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def engine() -> Future[Pipeline]:
    ready: Future[Pipeline] = Future()
    ready.set_result(load_pipeline())
    return ready


@pytest.fixture(scope="module")
def about() -> About:
    return read_about(ASSETS)


@pytest.fixture(scope="module")
def image() -> Image:
    first = json.loads((SAMPLES / "cases.json").read_text())[0]
    return load_image(SAMPLES / first["file"])


def controls(about: About, **changes: Any) -> list[Any]:
    values: dict[str, Any] = {
        "k": 5,
        "alpha": round(about.weights.alpha, 2),
        "beta": round(about.weights.beta, 2),
        "gamma": round(about.weights.gamma, 2),
        "strength": about.strength,
        "layers": [str(i) for i in about.critical],
        "form": about.form,
        "noise": 0,
    }
    return list((values | changes).values())


@pytest.fixture(scope="module")
def asked(engine: Future[Pipeline], about: About, image: Image) -> dict[str, Any]:
    """All that a question put on the page."""
    page: dict[str, Any] = {}
    visit = Visit()
    for update in ask(engine, about, visit, 1.0, None, image, QUESTION, controls(about)):
        page |= update
    assert "Done" in page["status"]
    return page


def rank(
    engine: Future[Pipeline],
    about: About,
    page: dict[str, Any],
    deed: object = None,
    tint: object = "Off",
    layer: object = 0,
    **changes: Any,
) -> dict[str, Any]:
    given = controls(about, **changes)
    return rerank(engine, about, page["found"], page["shown"], tint, layer, given, deed=deed)


def ids(markup: str) -> list[str]:
    return re.findall(r'<li class="evidence-card" data-id="([^"]+)"', markup)


def test_other_weights_rank_again_and_mark_the_answers_stale(
    engine: Future[Pipeline], about: About, asked: dict[str, Any]
) -> None:
    moved = rank(engine, about, asked, alpha=0.0, beta=0.0, gamma=1.0)
    assert ids(moved["evidence"]) != ids(asked["evidence"])
    assert "the reports have changed" in moved["stale"]
    assert 'class="moved' in moved["evidence"]
    assert "influence on" not in moved["evidence"]
    back = rank(engine, about, asked | moved)
    assert ids(back["evidence"]) == ids(asked["evidence"])
    assert back["stale"] == ""
    assert 'class="moved' not in back["evidence"]
    assert "influence on" in back["evidence"]


def test_ranking_again_touches_no_model(
    engine: Future[Pipeline], about: About, asked: dict[str, Any]
) -> None:
    # No encoder, and of the model no weights: only how many layers it has is asked for.
    whole = engine.result()
    backbone = replace(whole.backbone, model=SimpleNamespace(config=whole.backbone.model.config))
    blind: Future[Pipeline] = Future()
    blind.set_result(replace(whole, backbone=backbone, encoder=None))  # type: ignore[arg-type]
    assert "evidence" in rank(blind, about, asked, alpha=0.9)


def test_other_settings_of_ifa_mark_the_answers_stale(
    engine: Future[Pipeline], about: About, asked: dict[str, Any]
) -> None:
    other = "ifa" if about.form == "balanced" else "balanced"
    for change in ({"strength": about.strength + 0.5}, {"layers": ["1"]}, {"form": other}):
        moved = rank(engine, about, asked, **change)
        assert "IFA’s settings have changed" in moved["stale"]
        assert ids(moved["evidence"]) == ids(asked["evidence"])


def test_k_and_noise_act_at_once(
    engine: Future[Pipeline], about: About, asked: dict[str, Any]
) -> None:
    more = rank(engine, about, asked, k=9)
    assert len(ids(more["evidence"])) == 9
    noisy = rank(engine, about, asked, noise=2)
    assert noisy["evidence"].count("drawn at random") == 2


def test_a_report_is_pinned_excluded_and_restored(
    engine: Future[Pipeline], about: About, asked: dict[str, Any]
) -> None:
    first, *_, last = ids(asked["evidence"])
    gone = rank(engine, about, asked, {"do": "exclude", "id": first})
    assert first not in ids(gone["evidence"])
    assert f'data-do="restore" data-id="{first}"' in gone["evidence"]
    page = asked | gone
    kept = rank(engine, about, page, {"do": "pin", "id": last}, alpha=-0.5, beta=-0.5)
    assert last in ids(kept["evidence"])
    assert first not in ids(kept["evidence"])
    page |= kept
    page |= rank(engine, about, page, {"do": "unpin", "id": last})
    page |= rank(engine, about, page, {"do": "restore", "id": first})
    assert ids(page["evidence"]) == ids(asked["evidence"])


def test_pins_hold_when_the_question_is_asked_again(
    engine: Future[Pipeline], about: About, asked: dict[str, Any], image: Image
) -> None:
    first = ids(asked["evidence"])[0]
    found = (asked | rank(engine, about, asked, {"do": "exclude", "id": first}))["found"]
    again: dict[str, Any] = {}
    visit = Visit()
    for update in ask(engine, about, visit, 1.0, found, image, QUESTION, controls(about)):
        again |= update
    assert first not in ids(again["evidence"])
    other = replace(image, sha256="of another file")
    run = ask(engine, about, visit, 2.0, found, other, QUESTION, controls(about))
    update = next(u for u in run if "evidence" in u)
    assert first in ids(update["evidence"])


@pytest.mark.parametrize(
    "deed",
    [
        {"do": "pin", "id": "no such document"},
        {"do": "burn", "id": None},
        {"do": "pin"},
        {"id": ["x"]},
        "pin",
        7,
        {},
    ],
)
def test_deeds_that_no_button_offers_are_refused(
    engine: Future[Pipeline], about: About, asked: dict[str, Any], deed: object
) -> None:
    update = rank(engine, about, asked, deed)
    assert 'class="status problem"' in update["status"]
    assert "evidence" not in update


@pytest.mark.parametrize(
    ("tint", "layer"), [("<b>", 0), (None, 0), ("RAG", -1), ("RAG", "1"), ("RAG", 10**9)]
)
def test_views_that_do_not_exist_are_refused(
    engine: Future[Pipeline], about: About, asked: dict[str, Any], tint: object, layer: object
) -> None:
    update = redraw(engine, about, asked["found"], asked["shown"], tint, layer)
    assert 'class="status problem"' in update["status"]


def test_nothing_happens_before_a_question(engine: Future[Pipeline], about: About) -> None:
    assert rerank(engine, about, None, None, "Off", 0, controls(about)) == {}
    assert rerank(engine, about, "a case", 3, "Off", 0, controls(about)) == {}


def test_settings_out_of_range_are_refused_in_place(
    engine: Future[Pipeline], about: About, asked: dict[str, Any]
) -> None:
    update = rank(engine, about, asked, alpha=1e9)
    assert 'class="status problem"' in update["status"]
    assert "found" not in update


@pytest.mark.parametrize("tint", ["RAG", "MR-RAG"])
def test_the_tint_covers_every_word_as_the_model_read_it(
    engine: Future[Pipeline], about: About, asked: dict[str, Any], tint: str
) -> None:
    shown = asked["shown"]
    tokens = report_tints(engine.result(), shown, tint, about.critical[0])
    assert tokens is not None
    trace = shown.result.before if tint == "RAG" else shown.result.after
    for item, (words, places, shares) in zip(shown.result.retrieved, tokens, strict=True):
        span = next(s for s in trace.spans if s.name == f"report {item.rank}")
        assert len(places) == len(shares) == span.stop - span.start
        assert " ".join(item.document.report.split()) == words
        assert "".join(words[a:b] for a, b in places).replace(" ", "") == words.replace(" ", "")
        assert max(shares) <= 1.0 + 1e-6
    update = redraw(engine, about, asked["found"], shown, tint, about.critical[0])
    assert 'class="tok"' in update["evidence"]


def test_marks_say_what_the_report_says_of_the_finding() -> None:
    markup = cards.report_html(f"No effusion. {HOSTILE} Large nodule.", "Effusion or a nodule?")
    assert '<mark class="denied" title="pleural effusion: denied">effusion</mark>' in markup
    assert '<mark class="affirmed" title="nodule: affirmed">nodule</mark>' in markup
    assert "<script" not in markup


def test_the_text_of_a_report_is_unchanged_by_marks_and_tint() -> None:
    report = "FINDINGS: The left effusion is & remains <large>. No nodule."
    places = [(i, i + 3) for i in range(0, len(report) - 3, 3)]
    tinted = cards.report_html(report, "effusion", (report, places, [0.5] * len(places)))
    for markup in (cards.report_html(report, "effusion"), tinted):
        plain = re.sub(r"<[^>]+>", "", markup)
        assert plain == "Findings The left effusion is &amp; remains &lt;large&gt;. No nodule."


def test_influence_is_drawn_to_its_side_and_in_figures() -> None:
    item = Retrieved(Document("d", "Text.", "p", "s"), 1, 0.6, (0.1,) * 3, (0.2,) * 3, 1.0, 0.1)
    card = cards.Card(item, word="yes", influence=(0.2, -0.1))
    markup = cards.influence_bars(card, 0.2)
    assert "+0.200" in markup and "−0.100" in markup  # noqa: PT018
    assert 'class="for" style="left:50.00%;width:50.00%"' in markup
    assert 'class="against" style="left:25.00%;width:25.00%"' in markup


def test_next_to_no_influence_is_next_to_no_bar() -> None:
    item = Retrieved(Document("d", "Text.", "p", "s"), 1, 0.6, (0.1,) * 3, (0.2,) * 3, 1.0, 0.1)
    card = cards.Card(item, word="yes", influence=(0.0004, -0.0002))
    markup = cards.evidence([card], "?", Weights(0.4, 0.2, 0.4), (), 0.1)
    widths = [float(w) for w in re.findall(r'left:[\d.]+%;width:([\d.]+)%"></i></span><b>', markup)]
    assert widths == [1.0, 0.5]


def test_word_differences_are_said_plainly() -> None:
    assert "Word for word" in cards.word_difference("No  effusion.", "No effusion.")
    changed = cards.word_difference("Yes, <b> effusion.", "No effusion.")
    assert "<del>No</del> <ins>Yes, &lt;b&gt;</ins> effusion." in changed


def test_an_impression_comes_before_the_answers(
    engine: Future[Pipeline], about: About, image: Image
) -> None:
    page: dict[str, Any] = {}
    case = (None, image, QUESTION, controls(about))
    for update in ask(engine, about, Visit(), 1.0, *case, reader_first=True, blind=True):
        page |= update
        assert 'class="answer' not in update.get("answers", "")
    shown = page["shown"]
    assert "history" not in page
    assert 'class="status problem"' in save(engine, shown, "json", False)["status"]
    assert 'class="status problem"' in vote(about, shown, "A")["status"]
    redrawn = redraw(engine, about, page["found"], shown, "RAG", 0)
    assert "influence on" not in redrawn["evidence"]
    assert 'class="tok"' not in redrawn["evidence"]

    for words in ("", "  ", None, 3, "x" * 1001):
        assert 'class="status problem"' in impression(about, shown, words)["status"]
    page |= impression(about, shown, HOSTILE)
    assert "Answer A" in page["answers"]
    assert "RAG" not in page["answers"]
    for choice in ("D", "", None, 0, ["A"], "rag"):
        assert 'class="status problem"' in vote(about, page["shown"], choice)["status"]
    page |= vote(about, page["shown"], "B")
    order = page["shown"].reading.order
    assert page["shown"].reading.vote == METHODS[order[1]]
    assert "<script" not in page["answers"]
    entry = json.loads(page["history"])
    assert entry["reading"]["vote"] == METHODS[order[1]]
    assert entry["reading"]["impression"] == HOSTILE
    assert 'class="status problem"' in vote(about, page["shown"], "A")["status"]


@pytest.mark.parametrize("kind", ["json", "html"])
def test_a_case_is_saved_whole(engine: Future[Pipeline], asked: dict[str, Any], kind: str) -> None:
    file = json.loads(save(engine, asked["shown"], kind, True)["file_out"])
    content = gzip.decompress(base64.b64decode(file["gzip"])).decode("utf-8")
    assert file["name"] == f"mr-rag-case.{kind}"
    if kind == "json":
        saved = read_case(json.loads(content))
        assert saved.question == QUESTION
        assert json.loads(content)["reading"]["vote"] is None
    else:
        assert content.count('alt="The picture that was asked about"') == 1
    without = json.loads(save(engine, asked["shown"], kind, "yes")["file_out"])
    plain = gzip.decompress(base64.b64decode(without["gzip"])).decode("utf-8")
    assert "The picture that was asked about" not in plain


def test_nothing_is_saved_where_nothing_was_answered(engine: Future[Pipeline]) -> None:
    assert 'class="status problem"' in save(engine, None, "json", False)["status"]


def test_the_counterfactual_equals_the_plain_run_outside_the_critical_layers(
    about: About, asked: dict[str, Any]
) -> None:
    result = asked["shown"].result
    for layer in range(about.layers):
        change = abs(result.same_state.mass_LHS[layer] - result.before.mass_LHS[layer]).max()
        assert (change < 1e-5) == (layer not in result.settings.layers)
    for states in STATES:
        update = heatmaps(asked["shown"], "Each report", "Mean", 0, states)
        assert "after" in update
    refused = heatmaps(asked["shown"], "Each report", "Mean", 0, "<b>")
    assert 'class="status problem"' in refused["status"]


def test_what_another_knowledge_base_gave_is_forgotten(
    engine: Future[Pipeline], about: About, asked: dict[str, Any]
) -> None:
    other = replace(about, base=replace(about.base, number=1))
    forgotten = rank(engine, other, asked)
    assert forgotten["found"] is None
    assert ids(forgotten["evidence"]) == []
    assert of_base(other, asked["shown"]) is None
    assert of_base(about, asked["shown"]) is asked["shown"]
    chosen = choose_base(other)
    assert chosen["found"] is chosen["shown"] is None
    assert "2,400 reports" in chosen["facts"]


def test_the_facts_of_a_knowledge_base_name_its_sources_and_what_was_learnt(
    about: About, tmp_path: Path
) -> None:
    facts = cards.base_facts(about)
    assert "MR-RAG phantom world, seed 2026 (CC0-1.0)" in facts
    assert "phantom-bitower" in facts
    assert re.search(r"α 0\.\d\d \(0\.\d\d to 0\.\d\d\)", facts)
    assert "95 % intervals" in facts
    manifest = json.loads((ASSETS / "knowledge_base" / "manifest.json").read_text())
    manifest["sources"] = [{"source": HOSTILE, "licence": "", "count": 1}]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    facts = cards.base_facts(read_about(ASSETS, knowledge_base=tmp_path))
    assert "<script" not in facts
    assert "licence not stated" in facts
    assert "not learnt for it" in facts
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(KnowledgeBaseError, match=r"manifest.json is absent or damaged"):
        read_about(ASSETS, knowledge_base=tmp_path)
