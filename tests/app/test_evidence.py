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

from app import frame
from app.about import About, read_about
from app.backend import Backend
from app.sections.asking import AskInputs, ask, impression, vote
from app.sections.attention import STATES, heatmaps
from app.sections.evidence import EvidenceInputs, choose_backend, redraw, report_tints, rerank
from app.sections.saving import save
from app.sections.settings import Controls
from app.sections.visit import CaseState, Visit, of_base
from app.waiting import Room
from mrrag.data.images import load_image
from mrrag.errors import KnowledgeBaseError
from mrrag.files import ASSETS
from mrrag.pipeline import Pipeline
from mrrag.report import answer_cards, cards
from mrrag.report.export import read_case
from mrrag.types import METHODS, Answer, Document, Image, Retrieved, Weights

SAMPLES = ASSETS.parent / "sample_cases"
QUESTION = "Is there a pleural effusion?"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def image() -> Image:
    first = json.loads((SAMPLES / "cases.json").read_text())[0]
    return load_image(SAMPLES / first["file"])


@pytest.fixture(scope="module")
def about(backend: Backend) -> About:
    return backend.about


def controls(about: About, **changes: Any) -> Controls:
    learnt = Controls(
        k=5,
        alpha=round(about.weights.alpha, 2),
        beta=round(about.weights.beta, 2),
        gamma=round(about.weights.gamma, 2),
        strength=about.strength,
        layers=[str(i) for i in about.critical],
        form=about.form,
        noise=0,
    )
    return learnt._replace(**changes)


@pytest.fixture(scope="module")
def asked(backend: Backend, image: Image) -> dict[str, Any]:
    """All that a question put on the page."""
    page: dict[str, Any] = {}
    visit = Visit()
    inputs = AskInputs(None, None, image, QUESTION)
    for update in ask(backend, Room(), visit, 1.0, inputs, controls(backend.about)):
        page |= update
    assert "Done" in page["status"]
    return page


def rank(
    backend: Backend,
    page: dict[str, Any],
    action: object = None,
    tint: object = "Off",
    layer: object = 0,
    **changes: Any,
) -> dict[str, Any]:
    inputs = EvidenceInputs(page["evidence_state"], page["case_state"], tint, layer)
    return dict(rerank(backend, inputs, controls(backend.about, **changes), action))


def ids(markup: str) -> list[str]:
    return re.findall(r'<li class="evidence-card" data-id="([^"]+)"', markup)


def test_other_weights_rank_again_and_mark_the_answers_stale(
    backend: Backend, asked: dict[str, Any]
) -> None:
    moved = rank(backend, asked, alpha=0.0, beta=0.0, gamma=1.0)
    assert ids(moved["evidence_cards"]) != ids(asked["evidence_cards"])
    assert "the reports have changed" in moved["stale"]
    assert 'class="moved' in moved["evidence_cards"]
    assert "influence on" not in moved["evidence_cards"]
    back = rank(backend, asked | moved)
    assert ids(back["evidence_cards"]) == ids(asked["evidence_cards"])
    assert back["stale"] == ""
    assert 'class="moved' not in back["evidence_cards"]
    assert "influence on" in back["evidence_cards"]


def test_ranking_again_touches_no_model(backend: Backend, asked: dict[str, Any]) -> None:
    # No encoder, and of the model no weights: only how many layers it has is asked for.
    whole = backend.pipeline()
    backbone = replace(whole.backbone, model=SimpleNamespace(config=whole.backbone.model.config))
    blind: Future[Pipeline] = Future()
    blind.set_result(replace(whole, backbone=backbone, encoder=None))  # type: ignore[arg-type]
    assert "evidence_cards" in rank(Backend(backend.about, blind), asked, alpha=0.9)


def test_other_settings_of_ifa_mark_the_answers_stale(
    backend: Backend, asked: dict[str, Any]
) -> None:
    other = "ifa" if backend.about.form == "balanced" else "balanced"
    for change in ({"strength": backend.about.strength + 0.5}, {"layers": ["1"]}, {"form": other}):
        moved = rank(backend, asked, **change)
        assert "IFA’s settings have changed" in moved["stale"]
        assert ids(moved["evidence_cards"]) == ids(asked["evidence_cards"])


def test_k_and_noise_act_at_once(backend: Backend, asked: dict[str, Any]) -> None:
    more = rank(backend, asked, k=9)
    assert len(ids(more["evidence_cards"])) == 9
    noisy = rank(backend, asked, noise=2)
    assert noisy["evidence_cards"].count("drawn at random") == 2


def test_a_report_is_pinned_excluded_and_restored(backend: Backend, asked: dict[str, Any]) -> None:
    first, *_, last = ids(asked["evidence_cards"])
    gone = rank(backend, asked, {"do": "exclude", "id": first})
    assert first not in ids(gone["evidence_cards"])
    assert f'data-do="restore" data-id="{first}"' in gone["evidence_cards"]
    page = asked | gone
    kept = rank(backend, page, {"do": "pin", "id": last}, alpha=-0.5, beta=-0.5)
    assert last in ids(kept["evidence_cards"])
    assert first not in ids(kept["evidence_cards"])
    page |= kept
    page |= rank(backend, page, {"do": "unpin", "id": last})
    page |= rank(backend, page, {"do": "restore", "id": first})
    assert ids(page["evidence_cards"]) == ids(asked["evidence_cards"])


def test_pins_hold_when_the_question_is_asked_again(
    backend: Backend, asked: dict[str, Any], image: Image
) -> None:
    first = ids(asked["evidence_cards"])[0]
    found = (asked | rank(backend, asked, {"do": "exclude", "id": first}))["evidence_state"]
    again: dict[str, Any] = {}
    visit = Visit()
    inputs = AskInputs(found, None, image, QUESTION)
    for update in ask(backend, Room(), visit, 1.0, inputs, controls(backend.about)):
        again |= update
    assert first not in ids(again["evidence_cards"])
    other = replace(image, sha256="of another file")
    run = ask(backend, Room(), visit, 2.0, inputs._replace(image=other), controls(backend.about))
    update = next(u for u in run if "evidence_cards" in u)
    assert first in ids(update["evidence_cards"])


@pytest.mark.parametrize(
    "action",
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
def test_actions_that_no_button_offers_are_refused(
    backend: Backend, asked: dict[str, Any], action: object
) -> None:
    update = rank(backend, asked, action)
    assert 'class="status problem"' in update["status"]
    assert "evidence_cards" not in update


@pytest.mark.parametrize(
    ("tint", "layer"), [("<b>", 0), (None, 0), ("RAG", -1), ("RAG", "1"), ("RAG", 10**9)]
)
def test_views_that_do_not_exist_are_refused(
    backend: Backend, asked: dict[str, Any], tint: object, layer: object
) -> None:
    inputs = EvidenceInputs(asked["evidence_state"], asked["case_state"], tint, layer)
    update = redraw(backend, inputs)
    assert 'class="status problem"' in update["status"]


def test_nothing_happens_before_a_question(backend: Backend) -> None:
    for held in ((None, None), ("a case", 3)):
        inputs = EvidenceInputs(*held, tint="Off", layer=0)
        assert rerank(backend, inputs, controls(backend.about)) == {}


def test_settings_out_of_range_are_refused_in_place(
    backend: Backend, asked: dict[str, Any]
) -> None:
    update = rank(backend, asked, alpha=1e9)
    assert 'class="status problem"' in update["status"]
    assert "evidence_state" not in update


@pytest.mark.parametrize("tint", ["RAG", "MR-RAG"])
def test_the_tint_covers_every_word_as_the_model_read_it(
    backend: Backend, asked: dict[str, Any], tint: str
) -> None:
    shown = asked["case_state"]
    tokens = report_tints(backend.pipeline(), shown, tint, backend.about.critical[0])
    assert tokens is not None
    trace = shown.result.before if tint == "RAG" else shown.result.after
    for item, (words, places, shares) in zip(shown.result.retrieved, tokens, strict=True):
        span = next(s for s in trace.spans if s.name == f"report {item.rank}")
        assert len(places) == len(shares) == span.stop - span.start
        assert " ".join(item.document.report.split()) == words
        assert "".join(words[a:b] for a, b in places).replace(" ", "") == words.replace(" ", "")
        assert max(shares) <= 1.0 + 1e-6
    update = redraw(
        backend, EvidenceInputs(asked["evidence_state"], shown, tint, backend.about.critical[0])
    )
    assert 'class="tok"' in update["evidence_cards"]


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
    markup = cards.evidence([card], "?", Weights(0.4, 0.2, 0.4), (), 0.1)
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
    def shown(off: str, rag: str) -> str:
        texts = {"rag_off": off, "rag": rag, "mr_rag": rag}
        answers = {m: Answer(m, t, 0.5, 0.5, "", 2, 0.1) for m, t in texts.items()}
        return answer_cards.answer_columns("?", {}, answers)

    assert "Word for word" in shown("No  effusion.", "No effusion.")
    changed = shown("No effusion.", "Yes, <b> effusion.")
    assert "<del>No</del> <ins>Yes, &lt;b&gt;</ins> effusion." in changed


def test_an_impression_comes_before_the_answers(backend: Backend, image: Image) -> None:
    page: dict[str, Any] = {}
    about = backend.about
    inputs = AskInputs(None, None, image, QUESTION, reader_first=True, blind=True)
    for update in ask(backend, Room(), Visit(), 1.0, inputs, controls(about)):
        page |= update
        assert 'class="answer' not in update.get("answer_columns", "")
    shown = page["case_state"]
    assert "history" not in page
    assert 'class="status problem"' in save(backend, shown, "json", False)["status"]
    assert 'class="status problem"' in vote(about, shown, "A")["status"]
    redrawn = redraw(backend, EvidenceInputs(page["evidence_state"], shown, "RAG", 0))
    assert "influence on" not in redrawn["evidence_cards"]
    assert 'class="tok"' not in redrawn["evidence_cards"]

    for words in ("", "  ", None, 3, "x" * 1001):
        assert 'class="status problem"' in impression(about, shown, words)["status"]
    page |= impression(about, shown, HOSTILE)
    assert "Answer A" in page["answer_columns"]
    assert "RAG" not in page["answer_columns"]
    for choice in ("D", "", None, 0, ["A"], "rag"):
        assert 'class="status problem"' in vote(about, page["case_state"], choice)["status"]
    page |= vote(about, page["case_state"], "B")
    order = page["case_state"].reading.order
    assert page["case_state"].reading.vote == METHODS[order[1]]
    assert "<script" not in page["answer_columns"]
    entry = json.loads(page["history"])
    assert entry["reading"]["vote"] == METHODS[order[1]]
    assert entry["reading"]["impression"] == HOSTILE
    assert 'class="status problem"' in vote(about, page["case_state"], "A")["status"]


@pytest.mark.parametrize("kind", ["json", "html"])
def test_a_case_is_saved_whole(backend: Backend, asked: dict[str, Any], kind: str) -> None:
    file = json.loads(save(backend, asked["case_state"], kind, True)["download"])
    content = gzip.decompress(base64.b64decode(file["gzip"])).decode("utf-8")
    assert file["name"] == f"mr-rag-case.{kind}"
    if kind == "json":
        saved = read_case(json.loads(content))
        assert saved.question == QUESTION
        assert json.loads(content)["reading"]["vote"] is None
    else:
        assert content.count('alt="The picture that was asked about"') == 1
    without = json.loads(save(backend, asked["case_state"], kind, "yes")["download"])
    plain = gzip.decompress(base64.b64decode(without["gzip"])).decode("utf-8")
    assert "The picture that was asked about" not in plain


def test_nothing_is_saved_where_nothing_was_answered(backend: Backend) -> None:
    assert 'class="status problem"' in save(backend, None, "json", False)["status"]


def test_the_counterfactual_equals_the_plain_run_outside_the_critical_layers(
    about: About, asked: dict[str, Any]
) -> None:
    result = asked["case_state"].result
    for layer in range(about.layers):
        change = abs(result.same_state.mass_LHS[layer] - result.before.mass_LHS[layer]).max()
        assert (change < 1e-5) == (layer not in result.settings.layers)
    for states in STATES:
        update = heatmaps(asked["case_state"], "Each report", "Mean", 0, states)
        assert "after" in update
    refused = heatmaps(asked["case_state"], "Each report", "Mean", 0, "<b>")
    assert 'class="status problem"' in refused["status"]


def test_what_another_knowledge_base_gave_is_forgotten(
    backend: Backend, about: About, asked: dict[str, Any]
) -> None:
    other = replace(about, base=replace(about.base, number=1))
    forgotten = rank(backend._replace(about=other), asked)
    assert forgotten["evidence_state"] is None
    assert ids(forgotten["evidence_cards"]) == []
    assert of_base(other, asked["case_state"], CaseState) is None
    assert of_base(about, asked["case_state"], CaseState) is asked["case_state"]
    chosen = choose_backend(other)
    assert chosen["evidence_state"] is chosen["case_state"] is None
    assert "2,400 reports" in chosen["base_facts"]


def test_the_facts_of_a_knowledge_base_name_its_sources_and_what_was_learnt(
    about: About, tmp_path: Path
) -> None:
    facts = frame.base_facts(about)
    assert "MR-RAG phantom world, seed 2026 (CC0-1.0)" in facts
    assert "phantom-bitower" in facts
    assert "α 0.33, β 0.33, γ 0.33" in facts
    assert "intervals in brackets" not in facts
    learnt = replace(about.base, intervals=((0.1, 0.4), (0.2, 0.4), (0.3, 0.4)))
    facts = frame.base_facts(replace(about, base=learnt))
    assert "α 0.33 (0.10 to 0.40)" in facts
    assert "intervals in brackets" in facts
    manifest = json.loads((ASSETS / "knowledge_base" / "manifest.json").read_text())
    manifest["sources"] = [{"source": HOSTILE, "licence": "", "count": 1}]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    facts = frame.base_facts(read_about(ASSETS, knowledge_base=tmp_path))
    assert "<script" not in facts
    assert "licence not stated" in facts
    assert "not learnt for it" in facts
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(KnowledgeBaseError, match=r"manifest\.json cannot be read"):
        read_about(ASSETS, knowledge_base=tmp_path)
