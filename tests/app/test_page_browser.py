"""The page in a real browser, served by ``python app.py`` as a person would start it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import HOSTILE, ask, have_answers, pick

from app.bench.load import Visitor, picture
from app.bench.server import Server


def test_a_sample_case_is_answered_with_evidence_and_heatmaps(page: Any) -> None:
    assert page.locator("button.sample").count() >= 8
    pick(page)
    assert page.input_value("#question textarea").strip()
    page.click("#ask")
    page.wait_for_selector(".evidence-card")
    assert page.locator(".evidence-card").count() == 8
    card = page.locator(".evidence-card").first.inner_text()
    assert "α" in card and "β" in card and "γ" in card and "λ" in card  # noqa: PT018
    page.wait_for_selector("#status .done")
    assert page.locator(".answer[data-done=true]").count() == 3
    for method in ("rag_off", "rag", "mr_rag"):
        answer = page.locator(f".answer.{method}")
        assert answer.locator(".says").inner_text().strip()
        assert "model token probability, not clinical confidence" in answer.inner_text()
    for name in ("before", "after", "difference"):
        page.wait_for_selector(f"#map-{name} .heatmaplayer image", state="attached")
    assert page.locator(".overlay .heat").count() == 2
    assert "question tokens reading from report tokens" in page.inner_text("#attention-panel")


def test_the_standing_line_stays_in_view(page: Any) -> None:
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    line = page.locator(".standing")
    assert "Research demonstration. Not a medical device." in line.inner_text()
    assert "phantoms" in line.inner_text()
    box = line.bounding_box()
    assert box is not None
    assert 0 <= box["y"] < 200


def test_the_layer_is_chosen_by_keyboard(page: Any) -> None:
    have_answers(page)
    slider = page.locator("#layer input[type=range]")
    slider.focus()
    page.keyboard.press("Home")
    page.wait_for_function("document.querySelector('#overlays').innerText.startsWith('Layer 0,')")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#overlays').innerText.startsWith('Layer 1,')")


def test_the_whole_prompt_can_be_shown_instead_of_the_reports(page: Any) -> None:
    have_answers(page)
    page.get_by_label("Whole prompt").click()
    page.wait_for_function("document.querySelector('#map-before').textContent.includes('image')")


def test_a_hostile_question_is_shown_as_text(page: Any) -> None:
    pick(page)
    ask(page, HOSTILE)
    assert HOSTILE in page.inner_text(".asked")
    assert page.evaluate("window.hurt") is None
    assert page.locator(".asked script, .asked img").count() == 0


def test_a_dicom_upload_is_read_and_leaves_no_file(
    page: Any, server: Server, tmp_path: Path
) -> None:
    from pydicom.data import get_testdata_file

    upload = tmp_path / "a file without a suffix"
    shutil.copy(str(get_testdata_file("CT_small.dcm")), upload)
    page.set_input_files("#upload input[type=file]", upload)
    page.wait_for_selector(".film-tags:has-text('CT')")
    assert "CT" in page.inner_text(".film-tags")
    assert "CompressedSamples" not in page.content()  # the patient's name in that file
    assert server.uploads() == []
    ask(page, "Is there a pleural effusion?")
    assert page.locator(".answer[data-done=true]").count() == 3


def test_a_file_that_is_no_picture_is_refused_and_the_page_goes_on(
    fresh: Any, server: Server, tmp_path: Path
) -> None:
    page = fresh
    upload = tmp_path / "notes.dcm"
    upload.write_text("not a picture")
    page.set_input_files("#upload input[type=file]", upload)
    page.wait_for_selector("#preview .status.problem")
    assert "Traceback" not in page.content()
    assert server.uploads() == []
    page.click("#ask")
    page.wait_for_selector("#status .problem")
    assert "no picture" in page.inner_text("#status")
    pick(page, 1)


def test_a_question_that_waits_says_how_many_are_ahead(page: Any, server: Server) -> None:
    pick(page)
    others = [Visitor(server.address) for _ in range(5)]
    for n, other in enumerate(others):
        other.upload(picture(n))
    for n, other in enumerate(others):
        _, answering = other.handlers["ask", "click"]
        asked = other.inputs(answering, number=1e9, question=f"Is there an effusion, {n}?")
        other.join(answering, asked)
    page.click("#ask")
    page.wait_for_function("/ahead of yours/.test(document.querySelector('#status').innerText)")
    page.wait_for_selector("#status .done")
    for other in others:
        other.http.close()


SETTLED = """() => /Stopped|Done|Ready|Another/.test(document.querySelector('#status').innerText)
    && document.querySelectorAll('.caret').length === 0"""
PRESS = """([first, second, after]) => {
    document.querySelector(first).click();
    setTimeout(() => document.querySelector(second).click(), after);
}"""


@pytest.fixture
def busy() -> Iterator[None]:
    """A machine with other things to do."""
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    spinning.kill()
    spinning.wait()


def wait_until_settled(page: Any) -> None:
    """Wait for a page that nothing writes to any more."""
    page.wait_for_function(SETTLED)
    page.wait_for_timeout(500)  # what is on its way
    page.wait_for_function(SETTLED)


def test_stop_settles_the_page_whenever_it_is_pressed(page: Any, busy: None) -> None:
    pick(page)
    for after in (0, 5, 20, 60, 150, 400):  # ms
        page.evaluate(PRESS, ["#ask", "#stop", after])
        page.wait_for_timeout(after)
        wait_until_settled(page)
    # Pressed at once, while the run that is stopped may still be ending.
    page.evaluate(PRESS, ["#ask", "#stop", 100])
    page.wait_for_timeout(100)
    question = "Is there a pleural effusion, after all?"
    page.fill("#question textarea", question)
    page.click("#ask")
    page.wait_for_function(
        "text => document.querySelector('.asked')?.innerText.includes(text)", arg=question
    )
    page.wait_for_selector("#status .done")
    wait_until_settled(page)
    assert page.locator(".answer[data-done=true]").count() == 3


def test_another_picture_takes_the_answers_to_the_one_before_away(page: Any) -> None:
    pick(page)
    for after in (0, 50, 300):  # ms
        page.evaluate(PRESS, ["#ask", "button.sample[data-sample='1']", after])
        page.wait_for_timeout(after)
        wait_until_settled(page)
        page.wait_for_function("document.querySelectorAll('.answer, .evidence-card').length === 0")
