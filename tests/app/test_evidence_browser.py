"""The evidence, the answers and what is kept of them, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from browsing import ask, have_answers, pick

from app.bench.page import MOUNTED_MS
from app.bench.server import Server

IDS = "[...document.querySelectorAll('.evidence-card')].map(c => c.dataset.id)"


def ready(page: Any, sample: int = 0) -> None:
    page.click(f"button.sample >> nth={sample}")
    page.wait_for_function("/Ready/.test(document.querySelector('#status').innerText)")


def settings(page: Any) -> None:
    page.click("#settings .label-wrap")
    page.wait_for_selector("#settings input[type=range]")
    page.wait_for_timeout(MOUNTED_MS)


def slide(page: Any, label: str, value: float) -> None:
    """Move a slider as a drag does: its value and an input event."""
    page.evaluate(
        """([label, value]) => {
          const block = [...document.querySelectorAll('#settings .block')].find(
            (b) => b.innerText.trim().startsWith(label) && b.querySelector('input[type=range]'));
          const slider = block.querySelector('input[type=range]');
          Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set
            .call(slider, value);
          slider.dispatchEvent(new Event('input', {bubbles: true}));
        }""",
        [label, value],
    )


def changed(page: Any, before: list[str]) -> list[str]:
    page.wait_for_function(f"before => String({IDS}) !== before", arg=",".join(before))
    return list(page.evaluate(IDS))


def test_settings_rank_again_in_place_and_turn_the_answers_stale(fresh: Any) -> None:
    page = fresh
    have_answers(page)
    learnt = page.evaluate(IDS)
    said = page.inner_text(".answer.rag .says")
    answers = page.locator("#answers-panel")
    assert "IFA (balanced) strength" in answers.inner_text()
    settings(page)
    slide(page, "Reports to", 3)
    few = changed(page, learnt)
    assert few == learnt[:3]
    page.wait_for_selector("#stale .stale")
    assert page.inner_text(".answer.rag .says") == said
    slide(page, "γ", 1.0)
    slide(page, "α", 0.0)
    slide(page, "β", 0.0)
    page.wait_for_selector(".moved")
    page.click("#reset")
    page.wait_for_function(f"wanted => String({IDS}) === wanted", arg=",".join(few))
    page.wait_for_function("document.querySelectorAll('.moved').length === 0")
    slide(page, "Reports to", 8)
    page.wait_for_function("document.querySelector('#stale .stale') === null")
    # The form of IFA is chosen and said.
    page.get_by_label("As in the paper").check()
    page.wait_for_selector("#stale .stale")
    page.click("#ask")
    page.wait_for_function("document.querySelector('#stale .stale') === null")
    page.wait_for_selector("#status .done")
    assert "IFA strength" in answers.inner_text()
    page.click("#reset")
    page.wait_for_selector("#stale .stale")
    assert page.get_by_label("Balanced").is_checked()


def test_a_report_is_excluded_and_restored_by_keyboard_and_a_pinned_one_stays(fresh: Any) -> None:
    page = fresh
    have_answers(page)
    before = page.evaluate(IDS)
    button = page.locator(".evidence-card button[data-do=exclude]").first
    button.focus()
    page.keyboard.press("Enter")
    after = changed(page, before)
    assert before[0] not in after
    page.wait_for_selector("#stale .stale")
    page.locator("button[data-do=restore]").focus()
    page.keyboard.press("Enter")
    assert changed(page, after) == before
    page.wait_for_function("document.querySelector('#stale .stale') === null")
    page.locator("details.more summary").click()
    last = page.evaluate(IDS)[-1]
    page.locator(".evidence-card button[data-do=pin]").last.click()
    page.wait_for_selector(".badge.pinned")
    settings(page)
    slide(page, "Reports to", 2)
    page.wait_for_function("document.querySelectorAll('.evidence-card').length === 2")
    assert last in page.evaluate(IDS)


def test_what_was_open_stays_open_when_the_cards_are_drawn_again(page: Any) -> None:
    have_answers(page)
    page.locator("details.more summary").click()
    page.get_by_label("MR-RAG", exact=True).click()
    page.wait_for_selector(".tok")
    assert page.evaluate("document.querySelector('details.more').open")
    assert page.locator(".report .tok").first.get_attribute("title")


def test_a_thumbnail_opens_beside_the_picture_and_closes_by_escape(page: Any) -> None:
    have_answers(page)
    page.locator(".enlarge").first.click()
    dialog = page.locator("dialog.compare[open]")
    dialog.wait_for()
    assert dialog.locator("img").count() == 2
    page.wait_for_function(
        "[...document.querySelectorAll('dialog.compare img')].every(i => i.naturalWidth > 0)"
    )
    page.keyboard.press("Escape")
    page.wait_for_function("document.querySelector('dialog.compare[open]') === null")


def test_a_click_on_a_map_chooses_the_layer(page: Any) -> None:
    have_answers(page)
    page.wait_for_selector("#map-before .heatmaplayer image", state="attached")
    page.locator("#map-before").scroll_into_view_if_needed()
    last = page.locator("#layer input[type=range]").get_attribute("max")
    for share, wanted in ((0.05, "0"), (0.95, last)):  # the first and the last row
        box = page.locator("#map-before .nsewdrag").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_function(
            "document.querySelector('#map-before .js-plotly-plot').choosesLayer === true"
        )
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] * share
        page.mouse.move(x, y)
        # Plotly knows the cell under the pointer once it has drawn its label.
        page.wait_for_function(
            "n => document.querySelector('#map-before .hoverlayer').textContent"
            ".includes(` ${n}, report`)",
            arg=wanted,
        )
        page.mouse.click(x, y)
        page.wait_for_function(
            "n => document.querySelector('#overlays').innerText.startsWith(`Layer ${n},`)",
            arg=wanted,
        )


def test_one_head_can_be_shown(page: Any) -> None:
    have_answers(page)
    page.wait_for_selector("#map-before .heatmaplayer image", state="attached")
    text = "document.querySelector('#map-before').textContent"
    before = page.evaluate(text)
    page.click("#head input")
    page.locator("[role=option]").last.click()
    page.wait_for_function(f"before => {text} !== before", arg=before)


def test_a_case_is_saved_by_the_browser(
    page: Any, browser: Any, server: Server, tmp_path: Path
) -> None:
    have_answers(page)
    for kind in ("HTML", "JSON"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=f"Save as {kind}").click()
        waiting.value.save_as(tmp_path / kind)
    assert server.uploads() == []
    exported = json.loads((tmp_path / "JSON").read_text(encoding="utf-8"))
    assert exported["question"] == page.input_value("#question textarea")
    assert "pixels" not in (tmp_path / "JSON").read_text(encoding="utf-8")
    (tmp_path / "HTML").rename(tmp_path / "case.html")
    alone = browser.new_context(offline=True)
    reader = alone.new_page()
    broken: list[str] = []
    reader.on("pageerror", lambda error: broken.append(str(error)))
    reader.goto((tmp_path / "case.html").as_uri())
    assert reader.locator(".answer").count() == 3
    assert reader.locator("img:visible").count() == 0
    reader.wait_for_selector(".map .heatmaplayer image", state="attached")
    assert broken == []
    alone.close()


def test_answers_wait_for_the_readers_impression(fresh: Any) -> None:
    page = fresh
    ready(page)
    settings(page)
    page.get_by_label("Reader first").check()
    ask(page)
    assert page.locator(".answer").count() == 0
    assert page.locator(".influence").count() == 0
    page.fill("#impression textarea", "<img src=x onerror='window.hurt=1'> No effusion.")
    page.click("#reveal")
    page.wait_for_selector(".answer[data-done=true]")
    assert "<img src=x" in page.inner_text(".read")
    assert page.evaluate("window.hurt") is None
    page.wait_for_selector(".influence")
    page.locator(".visit summary").click()
    assert "No effusion." in page.inner_text(".visit")


def test_blind_answers_are_unlabelled_until_the_vote(fresh: Any) -> None:
    page = fresh
    ready(page)
    settings(page)
    page.get_by_label("Blind").check()
    ask(page)
    page.wait_for_selector(".answer.blind")
    assert "RAG" not in page.inner_text("#answers")
    assert "P(yes)" not in page.inner_text("#answers")
    texts = page.locator(".answer.blind .says").all_inner_texts()
    page.click("button[data-vote=B]")
    page.wait_for_selector(".answer[data-done=true]")
    assert sorted(page.locator(".answer .says").all_inner_texts()) == sorted(texts)
    assert "B was" in page.inner_text(".read")
    page.locator(".visit summary").click()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save questions, answers and votes").click()
    (kept,) = json.loads(Path(waiting.value.path()).read_text(encoding="utf-8"))
    assert kept["reading"]["vote"] in ("rag_off", "rag", "mr_rag")
    assert kept["reading"]["order"]


def test_a_picture_from_elsewhere_is_warned_about_at_the_answers(
    page: Any,
    tmp_path: Path,
) -> None:
    import numpy as np
    import PIL.Image

    noise = np.random.default_rng(0).integers(0, 256, (256, 256)).astype(np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "noise.png")
    page.set_input_files("#upload input[type=file]", tmp_path / "noise.png")
    page.wait_for_function("/Read,/.test(document.querySelector('#status').innerText)")
    ask(page, "Is there a pleural effusion?")
    assert "mean nothing" in page.inner_text("#evidence .warning.unlike")
    assert "mean nothing" in page.inner_text("#answers .warning.unlike")


def test_nothing_is_wider_than_a_phone(fresh: Any) -> None:
    page = fresh
    page.set_viewport_size({"width": 390, "height": 844})
    pick(page, 1)
    ask(page)
    page.wait_for_selector(".influence")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tops = page.evaluate("[...document.querySelectorAll('.answer')].map(a => a.offsetTop)")
    assert tops == sorted(set(tops))
