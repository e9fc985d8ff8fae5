"""The picker of the archive: what it lists, what it opens, and what it forgets."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from orthanc import NAME, PATIENT, Orthanc, orthanc

import app.sections.archive as actions
from app.sections.archive import Found, Press
from app.sections.case import choose_frame
from app.sections.study import choose_picture
from app.sections.visit import Visit
from app.serve import parse_arguments
from mrrag.data.images import read_image
from mrrag.data.pseudonyms import pseudonym

URL = "https://pacs.example.org/dicom-web"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


def press(hospital: Orthanc, moment: float = 1.0, picking: Visit | None = None) -> Press:
    picking = picking or Visit()
    return Press(hospital.archive, picking, Visit(), picking.press(moment))


def listed(hospital: Orthanc, study: int = 0) -> Found:
    """Search for the patient and open a study."""
    *_, found = actions.search(press(hospital), PATIENT, "", "", "")
    *_, opened = actions.open_study(press(hospital), found["found"], study)
    assert opened["found"] is not None
    return opened["found"]


def test_a_search_says_that_it_runs_and_then_lists_the_studies(hospital: Orthanc) -> None:
    first, last = actions.search(press(hospital), PATIENT, None, "", "")
    assert "Searching the archive" in first["note"]
    assert (first["found"], first["results"]) == (None, "")
    assert "2 studies." in last["note"]
    assert last["results"].count("data-study") == 2
    assert "Zyxwvut Quirin" in last["results"]
    assert "2.25." not in last["results"]  # UIDs stay on the server


def test_a_study_lists_its_series_with_rendered_pictures(hospital: Orthanc) -> None:
    *_, found = actions.search(press(hospital), PATIENT, "", "", "")
    first, last = actions.open_study(press(hospital), found["found"], 0)
    assert "Reading the study" in first["note"]
    assert last["results"].count("data-series") == 1
    assert "data:image/jpeg;base64," in last["results"]
    assert "2.25." not in last["results"]
    back = actions.list_studies(last["found"])
    assert back["results"].count("data-study") == 2


def test_a_series_is_opened_as_an_upload_is_and_the_picker_forgets(hospital: Orthanc) -> None:
    given = press(hospital)
    (busy, nothing), (picker, page) = actions.open_series(given, (), listed(hospital), 0)
    assert "Fetching" in busy["note"]
    assert nothing == {}
    assert picker == actions.closed()
    shown = read_image(hospital.files[0])
    np.testing.assert_array_equal(page["image"].display, shown.display)
    assert "2 pictures were fetched from the archive." in page["status"]
    assert (given.visit.newest, given.visit.picture) == (1.0, True)
    told = "".join(str(value) for name, value in page.items() if name not in ("image", "study"))
    for identity in (PATIENT, "Zyxwvut", NAME, "ACC-1", "2.25.", "1951"):
        assert identity not in told


def test_every_picture_and_frame_keeps_whose_reports_are_left_out(hospital: Orthanc) -> None:
    *_, (_, page) = actions.open_series(press(hospital), (), listed(hospital), 0)
    assert page["image"].patient == pseudonym(PATIENT) != ""
    other = choose_picture(page["study"], 1)
    assert other["image"].patient == pseudonym(PATIENT)
    again = choose_frame(other["image"], hospital.files[1], 0)
    assert again["image"].patient == pseudonym(PATIENT)


def test_a_press_elsewhere_meanwhile_is_not_overtaken_by_the_picture(hospital: Orthanc) -> None:
    given = press(hospital)
    given.visit.press(2.0)  # Ask, on the picture of before
    *_, (picker, page) = actions.open_series(given, (), listed(hospital), 0)
    assert "Something else was pressed" in picker["note"]
    assert page == {}


def test_a_search_that_was_stopped_or_closed_lists_nothing(hospital: Orthanc) -> None:
    hospital.process.send_signal(signal.SIGSTOP)
    try:
        for after in (actions.stop, actions.close):
            given = press(hospital)
            running = actions.search(given, PATIENT, "", "", "")
            next(running)
            said = after(given.picking, 2.0)
            assert list(running) == [{}]
            assert ("Stopped" in said["note"]) == (after is actions.stop)
    finally:
        hospital.process.send_signal(signal.SIGCONT)


def test_what_the_archive_refuses_is_a_sentence_in_the_picker(hospital: Orthanc) -> None:
    found = listed(hospital)
    wrong = replace(hospital, archive=replace(hospital.archive, password="no"))
    *_, said = actions.search(press(wrong), PATIENT, "", "", "")
    assert "does not let MR-RAG in" in said["note"]
    assert 'class="status problem"' in said["note"]
    *_, said = actions.open_study(press(wrong), found, 0)
    assert "does not let MR-RAG in" in said["note"]
    *_, (said, page) = actions.open_series(press(wrong), (), found, 0)
    assert "does not let MR-RAG in" in said["note"]
    assert page == {}


def test_a_study_without_pictures_in_time_is_listed_without(
    hospital: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "THUMBNAILS_S", -1.0)
    *_, found = actions.search(press(hospital), PATIENT, "", "", "")
    *_, last = actions.open_study(press(hospital), found["found"], 0)
    assert last["results"].count("data-series") == 1
    assert "<img" not in last["results"]


@pytest.mark.parametrize("wanted", [None, -1, 9, "0", True, 0.5])
def test_no_request_can_open_what_is_not_listed(hospital: Orthanc, wanted: Any) -> None:
    found = listed(hospital)
    (*_, said), (*_, (opened, page)) = (
        actions.open_study(press(hospital), found, wanted),
        actions.open_series(press(hospital), (), found, wanted),
    )
    assert 'class="status problem"' in said["note"]
    assert 'class="status problem"' in opened["note"]
    assert page == {}


def test_without_a_list_nothing_opens_and_a_search_is_checked(hospital: Orthanc) -> None:
    given = press(hospital)
    assert "Search again" in next(actions.open_study(given, None, 0))["note"]
    assert "Search again" in next(actions.open_series(given, (), None, 0))[0]["note"]
    assert actions.list_studies("no") == actions.closed()
    assert "not valid" in next(actions.search(given, 5, "", "", ""))["note"]
    *_, said = actions.search(given, "", "", "", "")
    assert "nothing to search by" in said["note"]


# ---------------------------------------------------------------- who may see it


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("MRRAG_USER", "MRRAG_PASSWORD", "GRADIO_SERVER_NAME", "GRADIO_ROOT_PATH"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "others",
    [
        ["--host", "0.0.0.0"],
        ["--host", "192.0.2.1"],
        ["--host", "pacs-page"],
        ["--allow-host", "xray.example.org"],
        ["--root-path", "/xray"],
    ],
)
def test_the_archive_is_offered_to_others_only_with_a_login(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], others: list[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--dicomweb", URL, *others])
    assert "must log in" in capsys.readouterr().err
    environment.setenv("MRRAG_USER", "reader")
    environment.setenv("MRRAG_PASSWORD", "secret")
    assert parse_arguments(["--dicomweb", URL, *others]).archive.url == URL


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_this_machine_alone_no_login_is_needed(
    environment: pytest.MonkeyPatch, host: str
) -> None:
    assert parse_arguments(["--dicomweb", URL, "--host", host]).archive.url == URL
    assert parse_arguments([]).archive is None


def test_an_address_that_cannot_be_used_ends_with_a_sentence(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--dicomweb", "pacs"])
    assert "'pacs' cannot be used" in capsys.readouterr().err
