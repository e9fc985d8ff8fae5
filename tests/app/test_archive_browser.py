"""The archive in the browser: from a search to the answers, and that no identity stays anywhere."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import OPENED, READY, SECONDS, ask
from orthanc import PASSWORD, PATIENT, USER, Orthanc, orthanc

from app.bench.server import Server, running
from mrrag.data.pseudonyms import pseudonym

# What the page must not hold once the picker is closed, and nothing else may ever hold.
IDENTITY = (PATIENT, "Zyxwvut", "Quirin", "ACC-1", "1951-02-03", "19510203", "2.25.1.1")
SECRETS = (*IDENTITY, PASSWORD, pseudonym(PATIENT))


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as found:
        yield found


@pytest.fixture(scope="module")
def server(hospital: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served") / "files"
    options = ("--model", "bundled", "--dicomweb", hospital.archive.url)
    log_in = {"MRRAG_DICOMWEB_USER": USER, "MRRAG_DICOMWEB_PASSWORD": PASSWORD}
    with running(folder, *options, **log_in) as server:
        server.wait_for_page()
        yield server
    assert list(folder.iterdir()) == []


def search(page: Any, patient: str = PATIENT) -> None:
    """Open the picker and search by patient id, with the keyboard."""
    if not page.locator("#archive-search").is_visible():
        page.focus("#archive button.label-wrap")
        page.keyboard.press("Enter")
    page.get_by_label("Patient id").fill(patient)
    page.keyboard.press("Enter")


def open_picture(page: Any) -> None:
    """Open the only series of the newest study that is listed, with the keyboard."""
    page.focus("#archive-found [data-study='0']")
    page.keyboard.press("Enter")
    page.wait_for_selector("#archive-found [data-series] img")
    page.wait_for_function("document.activeElement.tagName == 'H3'")
    page.evaluate("document.querySelector('.viewer').dataset.state = 'before'")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function(READY)


def test_from_a_search_to_the_answers_no_identity_stays(
    page: Any, server: Server, tmp_path: Path
) -> None:
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    search(page)
    page.wait_for_selector("#archive-found [data-study]")
    assert PATIENT in page.inner_text("#archive-found")  # in the picker it is shown
    open_picture(page)
    assert not page.locator("#archive-search").is_visible()
    assert page.locator("#pictures button").count() == 2
    ask(page, "Is there a pleural effusion?")
    held = {"page": page.content(), "fields": fields(page), "address": page.url}
    for name in ("HTML", "JSON"):
        page.check("#pixels input")
        with page.expect_download() as download:
            page.click(f"text=Save as {name}")
        download.value.save_as(tmp_path / name)
        held[name] = (tmp_path / name).read_text()
    held["addresses"] = "\n".join(addresses)
    held["log"] = server.log.read_text()
    held["storage"] = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    found = [(place, word) for place, text in held.items() for word in SECRETS if word in text]
    assert found == []
    for file in (f for f in server.folder.rglob("*") if f.is_file()):
        assert not any(word.encode() in file.read_bytes() for word in SECRETS)
    assert server.uploads() == []


def fields(page: Any) -> str:
    """Return what stands in the page's fields, which its source does not show."""
    return str(page.evaluate("[...document.querySelectorAll('input,textarea')].map(e => e.value)"))


def test_closing_the_picker_takes_the_names_from_the_page(page: Any) -> None:
    search(page)
    page.wait_for_selector("#archive-found [data-study]")
    page.click("#archive button.label-wrap")
    page.wait_for_function(f"!document.body.innerHTML.includes('{PATIENT}')")
    assert not [word for word in SECRETS if word in page.content() + fields(page)]


def test_an_archive_that_does_not_answer_can_be_stopped(page: Any, hospital: Orthanc) -> None:
    hospital.process.send_signal(signal.SIGSTOP)
    try:
        search(page)
        page.wait_for_selector("#archive-note .busy")
        page.click("#archive-stop")
        page.wait_for_selector("#archive-note :text('Stopped')")
    finally:
        hospital.process.send_signal(signal.SIGCONT)
    search(page)
    page.wait_for_selector("#archive-found [data-study]")


def test_a_search_without_a_find_says_so(page: Any) -> None:
    search(page, "nobody")
    page.wait_for_selector("#archive-note :text('No study fits')")
    search(page, "")
    page.wait_for_selector("#archive-note .problem:has-text('nothing to search by')")


def test_on_a_narrow_screen_what_is_found_is_seen_whole(browser: Any, server: Server) -> None:
    above = """() => document.querySelector('#archive-found').getBoundingClientRect().bottom
        <= document.querySelector('#act').getBoundingClientRect().top"""
    context = browser.new_context(viewport={"width": 360, "height": 800})
    page = context.new_page()
    page.set_default_timeout(SECONDS * 1000)
    page.goto(server.address)
    page.wait_for_selector(OPENED)
    search(page)
    page.wait_for_selector("#archive-found [data-study]")
    page.wait_for_function(above)  # not behind the bar of Ask
    page.click("#archive-found [data-study='0']")
    page.wait_for_selector("#archive-found [data-series]")
    page.wait_for_function(above)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


# Last, since it ends the archive.
def test_an_archive_that_has_ended_is_a_sentence(page: Any, hospital: Orthanc) -> None:
    search(page)
    page.wait_for_selector("#archive-found [data-study]")
    hospital.process.kill()
    hospital.process.wait()
    page.click("#archive-found [data-study='0']")
    page.wait_for_selector("#archive-note .problem:has-text('cannot be reached')")
