"""The page without a browser: what it draws, what it refuses, how it is served."""

from __future__ import annotations

import asyncio
import json
import math
import re
import socket
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gradio.state_holder import SessionState

from app.about import About, read_about
from app.launch import allowed_hosts, launch_options
from app.page import build_page, questions_ahead
from app.sections import viewer
from app.sections.asking import ask, stop
from app.sections.attention import AS_IT_RAN, heatmaps, lines, overlay, patch_attention
from app.sections.case import Sample, choose_sample, load_samples, read_upload, samples_html
from app.sections.settings import FORM_NAMES, settings_from
from app.sections.visit import CaseState, Update, Visit
from app.theme import theme
from mrrag.errors import CorpusError, ModelError, SettingsError
from mrrag.model.steering import FORMS
from mrrag.report import cards, plots
from mrrag.report.pictures import (
    data_url,
    heat_pixels,
    overlay_html,
    padded_square,
    patch_box,
    shrink,
)
from mrrag.types import (
    METHODS,
    Answer,
    AttentionTrace,
    Document,
    Image,
    Retrieved,
    Span,
    Weights,
)

HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(2)> \"'& {{constructor}} ${alert(3)}"
ABOUT = About(
    model="a model",
    layers=4,
    weights=Weights(0.351, 0.504, 0.298),
    critical=(1, 2),
    strength=1.0,
    phantoms_only=True,
)
LEARNT_CONTROLS: tuple[Any, ...] = (3, 0.35, 0.5, 0.3, 1.0, ["1", "2"], "ifa", 0)
K = 3


def retrieved(
    rank: int, terms: tuple[float, float, float], report: str = "No effusion."
) -> Retrieved:
    return Retrieved(
        document=Document(f"d{rank}", report, "p", "s"),
        rank=rank,
        score=math.fsum(terms),
        cosines=(0.1, 0.2, 0.3),
        terms=terms,
        relevance=0.5,
        gap=0.05,
    )


def picture(rows: int = 40, columns: int = 60) -> Image:
    grey = np.linspace(0, 255, rows * columns).reshape(rows, columns).astype(np.uint8)
    return Image(display=grey, notes=("Shown as stored.",), tags={"Modality": "DX"})


def trace(seed: int, steered: tuple[int, ...] = ()) -> AttentionTrace:
    """Attention over BOS, a 2 × 2 image, three reports, a question and its cue."""
    names = ["other", "image", "report 1", "report 2", "report 3", "question", "cue"]
    lengths = [1, 4, 5, 5, 5, 3, 1]
    ends = np.cumsum(lengths).tolist()
    spans = tuple(
        Span(name, end - length, end)
        for name, length, end in zip(names, lengths, ends, strict=True)
    )
    keys = np.random.default_rng(seed).random((4, ends[-1])).astype(np.float32)
    keys /= keys.sum(axis=1, keepdims=True)
    columns = (*names[1:], names[0])
    mass = np.stack(
        [
            np.stack([k[s.start : s.stop].sum() for n in columns for s in spans if s.name == n])
            for k in keys
        ]
    )
    return AttentionTrace(
        spans=spans,
        names=columns,
        mass_LHS=np.repeat(mass[:, None], 2, axis=1).astype(np.float32),
        keys_LX=keys,
        grid=(2, 2),
        layers=steered,
    )


def shown_case(image: Image | None = None) -> CaseState:
    from mrrag.case import Case, Evidence, Settings

    found = tuple(retrieved(rank, (0.3, 0.2, 0.1 / rank)) for rank in range(1, K + 1))
    answers = {
        m: Answer(m, f"Yes, {m}.", 0.6, 0.3, f"<s>{'<image>' * 4} question", 4, 0.5)
        for m in METHODS
    }
    result = Case(
        question="Is there an effusion?",
        retrieved=found,
        answers=answers,
        before=trace(0),
        after=trace(1, (1, 2)),
        settings=Settings(k=K),
        notes=(),
        seconds={},
        versions={},
    )
    evidence = Evidence(None, found, ABOUT.weights, (), 0.1)  # type: ignore[arg-type]
    return CaseState(image or picture(), evidence, result)


# ---------------------------------------------------------------- evidence


def shown_numbers(markup: str) -> list[float]:
    line = re.search(r'<p class="sum">(.*?)</p>', markup)
    assert line is not None
    plain = re.sub(r"<[^>]+>", " ", line.group(1)).replace("−", "-")
    return [float(n) for n in re.findall(r"[-+]?\d+\.\d+", plain)]


@pytest.mark.parametrize("seed", range(40))
def test_terms_shown_sum_to_the_score_shown(seed: int) -> None:
    a, b, c = (float(x) for x in np.random.default_rng(seed).uniform(-1, 1, 3))
    item = retrieved(1, (a, b, c))
    *terms, score = shown_numbers(cards.term_bar(item, -3.0, 3.0))
    assert len(terms) == 3
    assert round(sum(terms), 3) == score
    assert score == pytest.approx(item.score, abs=5.01e-4)
    assert terms == pytest.approx(list(item.terms), abs=1e-3)


def test_negative_terms_grow_to_the_left_of_zero() -> None:
    markup = cards.term_bar(retrieved(1, (-0.5, 0.25, 0.25)), -0.5, 0.5)
    places = re.findall(r"left:([\d.]+)%;width:([\d.]+)%", markup)
    assert [(float(x), float(w)) for x, w in places] == [(0, 50), (50, 25), (75, 25)]


def test_all_cards_share_one_scale() -> None:
    items = [retrieved(1, (0.5, 0.3, 0.2)), retrieved(2, (0.1, 0.1, -0.1))]
    markup = cards.evidence([cards.Card(i) for i in items], "?", ABOUT.weights, (), 0.1)
    zeros = re.findall(r'class="zero" style="left:([\d.]+)%', markup)
    assert len(set(zeros)) == 1
    assert len(zeros) == 2


def test_an_absent_pair_is_said_to_be_absent() -> None:
    item = replace(retrieved(1, (0.3, 0.2, 0.0)), cosines=(0.6, 0.4, math.nan))
    markup = cards.evidence_card(cards.Card(item), "?", 0.0, 1.0, 0.0)
    assert "γ absent" in markup
    assert "nan" not in markup


@pytest.mark.parametrize("where", ["report", "id", "source", "question", "answer", "tag", "note"])
def test_hostile_text_is_escaped(where: str) -> None:
    item = retrieved(1, (0.3, 0.2, 0.1))
    document = item.document
    shown = shown_case()
    if where in ("report", "id", "source"):
        item = replace(item, document=replace(document, **{where: HOSTILE}))
        card = cards.Card(item, thumbnail="data:,", pinned=True)
        markup = cards.evidence(
            [card], HOSTILE, ABOUT.weights, (), 0.1, {"weak": HOSTILE}, [HOSTILE]
        )
    elif where == "question":
        markup = cards.answer_columns(HOSTILE, {}, shown.result.answers)
    elif where == "answer":
        answers = {
            m: replace(a, text=HOSTILE, prompt=HOSTILE) for m, a in shown.result.answers.items()
        }
        markup = cards.answer_columns("?", {}, answers)
        markup += cards.answer_columns("?", dict.fromkeys(METHODS, HOSTILE))
    elif where == "tag":
        markup = viewer.details(replace(picture(), tags={"modality": HOSTILE}), HOSTILE, HOSTILE)
    else:
        markup = cards.note_list([HOSTILE]) + cards.status(HOSTILE) + cards.empty(HOSTILE)
    assert "<script" not in markup
    assert "<img src=x" not in markup
    assert "&lt;script&gt;" in markup


def test_a_very_long_report_is_cut_and_says_so() -> None:
    markup = cards.report_html("x" * 1_000_000)
    assert len(markup) < 5000
    assert "cut here" in markup


def test_the_fixed_sentences_are_on_the_page() -> None:
    frame = cards.header("a model", phantoms_only=True)
    assert "Research demonstration. Not a medical device." in frame
    assert "phantoms (synthetic chest radiographs) only" in frame
    assert "question tokens reading from report tokens" in cards.attention_intro()
    assert "not why" in cards.attention_intro()


# ---------------------------------------------------------------- answers


def test_badges_say_what_changed_the_words() -> None:
    texts = {"rag_off": "No.", "rag": "Yes.", "mr_rag": " Yes. "}
    answers = {m: Answer(m, t, 0.5, 0.5, "", 2, 0.1) for m, t in texts.items()}
    assert "changed by retrieval" in cards.badge("rag", answers)
    assert "identical to RAG" in cards.badge("mr_rag", answers)
    answers["mr_rag"] = replace(answers["mr_rag"], text="No.")
    assert "changed by IFA" in cards.badge("mr_rag", answers)


def test_probabilities_are_labelled_as_what_they_are() -> None:
    markup = cards.answer_columns("?", {}, shown_case().result.answers)
    assert markup.count("model token probability, not clinical confidence") == 3


def test_an_answer_that_was_not_asked_has_no_probability() -> None:
    answer = Answer("rag", "This demo model only knows …", math.nan, math.nan, "", 0, 0.0)
    markup = cards.probabilities(answer, None)
    assert "nan" not in markup
    assert "not asked" in markup


def test_image_placeholders_are_counted_in_the_prompt() -> None:
    assert "&lt;image&gt; × 576" in cards.prompt_html("<s>" + "<image>" * 576 + "\nquestion")


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("view", plots.VIEWS)
def test_before_and_after_share_a_scale_and_the_difference_is_centred(view: str) -> None:
    maps = plots.attention_maps(trace(0), trace(1, (1, 2)), view)
    assert maps is not None
    before, after, difference = (figure.data[0] for figure in plots.heatmaps(maps))
    assert (before.zmin, before.zmax) == (after.zmin, after.zmax)
    assert before.zmin == 0.0
    assert before.zmax == pytest.approx(max(maps.before.max(), maps.after.max()))
    assert difference.zmin == -difference.zmax < 0
    assert np.abs(maps.difference).max() <= difference.zmax
    np.testing.assert_allclose(np.array(difference.z), maps.after - maps.before, atol=1e-7)


def test_the_difference_scale_is_symmetric_where_nothing_changed() -> None:
    maps = plots.attention_maps(trace(0), trace(0), plots.REPORTS)
    assert maps is not None
    difference = plots.heatmaps(maps)[2].data[0]
    assert difference.zmin == -difference.zmax < 0
    assert "changed nothing" in plots.summary(maps)


def test_whole_prompt_columns_sum_to_one() -> None:
    maps = plots.attention_maps(trace(0), trace(1), plots.WHOLE_PROMPT)
    assert maps is not None
    assert maps.columns == ("image", "reports", "question", "cue", "other")
    np.testing.assert_allclose(maps.before.sum(axis=1), 1.0, atol=1e-5)


def test_reports_column_is_the_mass_of_that_report() -> None:
    before = trace(0)
    maps = plots.attention_maps(before, trace(1), plots.REPORTS)
    assert maps is not None
    assert maps.columns == ("1", "2", "3")
    span = next(s for s in before.spans if s.name == "report 2")
    expected = before.keys_LX[:, span.start : span.stop].sum(axis=1)
    np.testing.assert_allclose(maps.before[:, 1], expected, rtol=1e-5)


def test_critical_layers_are_marked() -> None:
    assert plots.layer_labels(4, (1, 2)) == ["0", "▶ 1", "▶ 2", "3"]
    maps = plots.attention_maps(trace(0), trace(1, (1, 2)), plots.REPORTS)
    assert maps is not None
    frames = plots.heatmaps(maps)[0].layout.shapes
    assert [(s.y0 + s.y1) / 2 for s in frames] == [1, 2]


def test_cell_labels_contrast_with_their_cell() -> None:
    values = np.linspace(0, 1, 41, dtype=np.float32)[None]
    for trace_ in plots.cell_labels(values, (0.0, 1.0), plots.SEQUENTIAL, signed=False):
        assert trace_.textfont.color in ("#ffffff", "#000000")
    assert (
        sum(len(t.x) for t in plots.cell_labels(values, (0.0, 1.0), plots.SEQUENTIAL, signed=False))
        == values.size
    )


def test_patches_tile_a_square_picture() -> None:
    boxes = [patch_box(y, x, (3, 3), 90, 90) for y in range(3) for x in range(3)]
    assert boxes[0] == (0, 0, 30, 30)
    assert boxes[-1] == (60, 60, 90, 90)


def test_patches_of_the_padding_are_cropped_from_a_wide_picture() -> None:
    # 40 rows in a square of 80: the padding takes 20 rows above and below.
    assert padded_square(40, 80) == (-20, 0, 80)
    assert patch_box(0, 0, (4, 4), 40, 80) is None
    assert patch_box(3, 0, (4, 4), 40, 80) is None
    assert patch_box(1, 0, (4, 4), 40, 80) == (0, 0, 20, 20)
    assert patch_box(2, 3, (4, 4), 40, 80) == (20, 60, 40, 80)


def test_patches_half_on_the_padding_are_cut_at_the_edge_of_a_tall_picture() -> None:
    assert padded_square(80, 60) == (0, -10, 80)
    assert patch_box(0, 0, (4, 4), 80, 60) == (0, 0, 20, 10)
    assert patch_box(0, 3, (4, 4), 80, 60) == (0, 50, 20, 60)


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (40, 80), (81, 60), (33, 50)])
def test_visible_patches_cover_the_picture_once(rows: int, columns: int) -> None:
    grid = (6, 6)
    boxes = [patch_box(y, x, grid, rows, columns) for y in range(6) for x in range(6)]
    area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in boxes if b)
    assert area == pytest.approx(rows * columns)


def test_the_heat_is_laid_over_the_padded_square() -> None:
    markup = overlay_html("data:,", (40, 80), np.zeros((4, 4, 4), np.uint8), "X-ray")
    assert "top:-50.0000%;left:0.0000%;height:200.0000%;width:100.0000%" in markup


def test_heat_grows_with_the_value_and_survives_zero() -> None:
    alpha = heat_pixels(np.array([0.0, 0.5, 1.0]), 1.0)[:, 3]
    assert alpha[0] < alpha[1] < alpha[2]
    assert heat_pixels(np.zeros(2), 0.0).shape == (2, 4)


def test_overlay_reads_the_patches_of_the_layer() -> None:
    one = trace(0)
    image = next(s for s in one.spans if s.name == "image")
    np.testing.assert_array_equal(
        patch_attention(one, 2).ravel(), one.keys_LX[2, image.start : image.stop]
    )
    markup = overlay(shown_case(), 2)["overlays"]
    assert "Before: RAG" in markup
    assert "After: MR-RAG" in markup
    assert "Layer 2" in markup


def test_a_class_token_is_left_out_of_the_patches() -> None:
    one = trace(0)
    spans = tuple(replace(s, stop=s.stop) if s.name != "image" else s for s in one.spans)
    with_class = replace(one, spans=spans, grid=(1, 3))
    np.testing.assert_array_equal(patch_attention(with_class, 0)[0], one.keys_LX[0, 2:5])


# ---------------------------------------------------------------- refusals


def refused(update: Update) -> str:
    assert 'class="status problem"' in update["status"]
    return str(update["status"])


@pytest.mark.parametrize("index", [-1, 99, True, None, "0", 1.5, {}])
def test_unknown_samples_are_refused(index: object) -> None:
    sample = Sample("t", "q?", "", 0, picture(), "data:,")
    assert "does not exist" in refused(choose_sample([sample], index))


@pytest.mark.parametrize("data", [b"", b"not a picture", None, "a path", 7])
def test_uploads_that_are_no_picture_are_refused(data: object) -> None:
    update = read_upload((), data)
    assert update["image"] is None
    assert 'class="status problem"' in update["preview"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 0), (0, 999), (0, 2.5), (0, None), (0, "3"), (0, True), (0, math.nan),
        (1, 99.0), (1, math.inf), (2, math.nan), (3, "0.3"),
        (4, -0.1), (4, 100.0), (4, None),
        (5, ["4"]), (5, ["-1"]), (5, "1"), (5, [None]), (5, ["1; drop"]), (5, ["²"]),
        (6, "block"), (6, None), (6, 0), (6, []),
        (7, -1), (7, 4),
    ],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(place: int, value: object) -> None:
    controls = list(LEARNT_CONTROLS)
    controls[place] = value
    with pytest.raises(SettingsError):
        settings_from(ABOUT, *controls)


def test_every_form_of_ifa_can_be_chosen() -> None:
    assert tuple(FORM_NAMES.values()) == tuple(FORMS)


def test_untouched_sliders_mean_the_learnt_weights_exactly() -> None:
    assert settings_from(ABOUT, *LEARNT_CONTROLS).weights is None
    moved = list(LEARNT_CONTROLS)
    moved[2] = 0.4
    assert settings_from(ABOUT, *moved).weights == Weights(0.35, 0.4, 0.3)


@pytest.mark.parametrize(
    ("image", "question", "words"),
    [
        (None, "Is there an effusion?", "no picture"),
        ("a path", "Is there an effusion?", "no picture"),
        (picture(), "  ", "question is empty"),
        (picture(), None, "question is empty"),
        (picture(), "x" * 1001, "1001 characters"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(
    image: object, question: object, words: str
) -> None:
    engine: Future[Any] = Future()  # never ready: a refusal does not wait for it
    updates = list(ask(engine, ABOUT, Visit(), 1.0, None, image, question, LEARNT_CONTROLS))
    assert words in refused(updates[-1])


def test_an_unexpected_error_shows_no_cause(caplog: pytest.LogCaptureFixture) -> None:
    engine: Future[Any] = Future()
    engine.set_exception(RuntimeError("secret of the case"))
    question = "Is there an effusion in Mr Smith?"
    (update,) = ask(engine, ABOUT, Visit(), 1.0, None, picture(), question, LEARNT_CONTROLS)
    assert "secret" not in refused(update)
    assert "Traceback" not in update["status"]
    assert "secret" not in caplog.text
    assert "Smith" not in caplog.text
    assert "RuntimeError" in caplog.text


@pytest.mark.parametrize("layer", [-1, 4, 1.5, None, "1", True])
def test_unknown_layers_are_refused(layer: object) -> None:
    refused(overlay(shown_case(), layer))


def test_controls_of_a_case_that_is_not_there_are_refused() -> None:
    refused(overlay(None, 1))
    refused(heatmaps("a case", plots.REPORTS, "Mean", 0, AS_IT_RAN))
    refused(heatmaps(shown_case(), "<script>", "Mean", 0, AS_IT_RAN))
    refused(lines(None, "Mean", 0))


@pytest.mark.parametrize("head", [-1, 2, "2", "x", None, [0], 0.5, True])
def test_unknown_heads_are_refused(head: object) -> None:
    refused(heatmaps(shown_case(), plots.REPORTS, head, 0, AS_IT_RAN))
    refused(lines(shown_case(), head, 0))


def test_one_head_is_shown_alone() -> None:
    shown = shown_case()
    before = shown.result.before
    assert before is not None
    apart = np.array(before.mass_LHS)
    apart[:, 1] = apart[:, 1, ::-1]
    other = replace(before, mass_LHS=apart)
    maps = plots.attention_maps(other, other, plots.REPORTS, 1)
    assert maps is not None
    np.testing.assert_array_equal(maps.before, apart[:, 1, 1:4])


def test_the_lines_are_the_mass_on_all_reports() -> None:
    figure = plots.report_lines(trace(0), trace(1, (1, 2)), 3)
    for line, one in zip(figure.data, (trace(0), trace(1)), strict=True):
        np.testing.assert_allclose(line.y, one.mass_LHS[:, 0, 1:4].sum(1), rtol=1e-5)
    assert [s.x0 for s in figure.layout.shapes] == [0.5, 1.5, 3]


def test_a_press_overtakes_those_before_it_and_none_after_it() -> None:
    visit = Visit()
    assert visit.press(20.0) == 20.0
    visit.press(10.0, picture=True)  # its request came late
    assert (visit.newest, visit.picture) == (20.0, False)
    visit.press(30.0, picture=True)
    assert (visit.newest, visit.picture) == (30.0, True)


@pytest.mark.parametrize("moment", [None, "1", True, -1, math.nan, [1]])
def test_what_is_no_moment_was_before_all_presses(moment: object) -> None:
    visit = Visit()
    assert visit.press(moment) == -math.inf
    assert visit.newest == -math.inf


def test_a_question_stopped_before_its_turn_is_not_answered() -> None:
    visit = Visit()
    assert "Stopped" in stop(visit, 2.0)["status"]
    engine: Future[Any] = Future()
    asked = (None, picture(), "Is there an effusion?", LEARNT_CONTROLS)
    (update,) = ask(engine, ABOUT, visit, 1.0, *asked)
    assert set(update) == {"status"}
    assert "Stopped" in update["status"]


def test_stop_ends_the_wait_for_the_model() -> None:
    visit = Visit()
    engine: Future[Any] = Future()
    asked = (None, picture(), "Is there an effusion?", LEARNT_CONTROLS)
    updates = ask(engine, ABOUT, visit, 1.0, *asked)
    assert "Loading" in next(updates)["status"]
    stop(visit, 2.0)
    assert "Stopped" in next(updates)["status"]
    assert list(updates) == []


# ---------------------------------------------------------------- files and launch


def write_samples(folder: Path, **changes: str) -> None:
    from base64 import b64decode

    url = data_url(picture().display)
    (folder / "a.png").write_bytes(b64decode(url.split(",")[1]))
    entry = {
        "file": "a.png",
        "title": HOSTILE,
        "question": "Is it?",
        "note": "",
        "noise": 3,
    } | changes
    (folder / "cases.json").write_text(json.dumps([entry]))


def test_sample_cases_are_read_from_their_list(tmp_path: Path) -> None:
    write_samples(tmp_path)
    (sample,) = load_samples(tmp_path)
    np.testing.assert_array_equal(sample.image.display, picture().display)
    assert "<script" not in samples_html([sample], 0)
    assert choose_sample([sample], 0)["noise"] == 3


def test_a_sample_outside_its_folder_is_refused(tmp_path: Path) -> None:
    write_samples(tmp_path, file="../a.png")
    with pytest.raises(CorpusError, match="outside"):
        load_samples(tmp_path)


def test_missing_assets_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"learnt\.json"):
        read_about(tmp_path)


def test_the_page_is_served_to_this_machine_alone_and_quietly() -> None:
    options = launch_options("127.0.0.1", None)
    assert options["server_name"] == "127.0.0.1"
    off = ("share", "show_error", "run_history", "enable_monitoring", "mcp_server", "pwa", "debug")
    assert not any(options[name] for name in off)
    assert options["footer_links"] == []
    assert options["allowed_paths"] == []
    assert options["app_kwargs"]["openapi_url"] is None  # without it there are no docs either
    assert options["auth"] is None
    assert 0 < options["max_file_size"] <= 128 * 2**20
    assert options["strict_cors"]
    assert options["state_session_capacity"] <= 1000


def test_only_own_names_may_address_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert allowed_hosts("127.0.0.1") == ["127.0.0.1", "localhost"]
    assert allowed_hosts("10.0.0.5", ["reading-room.example"])[2:] == [
        "10.0.0.5",
        "reading-room.example",
    ]
    assert socket.gethostname() in allowed_hosts("0.0.0.0")
    assert "*" not in allowed_hosts("0.0.0.0")
    monkeypatch.setenv("SPACE_ID", "someone/space")
    assert allowed_hosts("0.0.0.0") == ["*"]


def test_no_handler_is_documented_and_the_queue_is_bounded() -> None:
    async def build() -> Any:
        return build_page(ABOUT, (), Future())

    page = asyncio.run(build())  # outside a loop gradio makes several and closes none
    assert all(fn.api_visibility == "private" for fn in page.fns.values())
    assert page.delete_cache is not None
    assert page.analytics_enabled is False
    assert page._queue.max_size == 32


def test_nothing_of_what_a_visit_was_shown_is_kept_beside_its_states() -> None:
    async def show() -> str:
        page = build_page(ABOUT, (), Future())
        state = SessionState(page)
        on_ask = next(fn for fn in page.fns.values() if fn.name == "on_ask")
        status = next(part for part in on_ask.outputs if part.elem_id == "status")
        for _ in range(3):
            shown = await page.postprocess_data(on_ask, {status: "Zebedee"}, state)
            assert "Zebedee" in shown
        assert set(state.blocks_config.blocks) == set(page.blocks)
        return str(list(state.components))

    assert "Zebedee" not in asyncio.run(show())


def test_a_visit_counts_who_is_ahead_of_its_newest_question() -> None:
    line = SimpleNamespace(queue=[SimpleNamespace(session_hash=who) for who in "abac"])
    page: Any = SimpleNamespace(
        _queue=SimpleNamespace(event_queue_per_concurrency_id={"model": line})
    )
    # One more is being answered, and no longer in the line.
    assert [questions_ahead(page, who) for who in ("a", "b", "c", "d", None)] == [3, 2, 4, 0, 0]
    assert "1 question is ahead" in cards.line(1)
    assert "2 questions are ahead" in cards.line(2)


def test_fonts_and_styles_come_from_this_machine() -> None:
    style = (Path(cards.__file__).parent / "static" / "style.css").read_text(encoding="utf-8")
    assert "http" not in style
    assert "@import" not in style
    assert theme()._stylesheets == []


def test_a_small_picture_is_shown_pixel_for_pixel() -> None:
    pixels = picture().display
    assert shrink(pixels, 1024) is pixels
    assert max(shrink(pixels, 30).shape) == 30


def test_the_page_does_not_wait_for_torch() -> None:
    """Importing torch takes seconds, in which the page is already served."""
    check = "import sys, app.page; sys.exit('torch' in sys.modules)"
    root = Path(cards.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", check], cwd=root, check=False).returncode == 0


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two hex colours (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("selector", [":root", ".dark"])
def test_text_contrasts_with_its_ground(selector: str) -> None:
    style = (Path(cards.__file__).parent / "static" / "style.css").read_text(encoding="utf-8")
    block = re.search(rf"^{re.escape(selector)} {{(.*?)^}}", style, re.S | re.M)
    assert block is not None
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block.group(1)))
    pairs = [
        ("ink", "panel"), ("ink", "sunk"), ("quiet", "panel"), ("quiet", "sunk"),
        ("accent", "panel"), ("accent", "sunk"), ("on-accent", "accent"), ("on-alpha", "alpha"),
        ("on-beta", "beta"), ("on-gamma", "gamma"), ("changed", "changed-ground"),
        ("quiet", "same-ground"), ("warn", "warn-ground"),
    ]  # fmt: skip
    for text, ground in pairs:
        assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
