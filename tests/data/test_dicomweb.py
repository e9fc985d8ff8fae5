"""The archive: a real Orthanc is searched and read, and whatever it does is told in a sentence."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from orthanc import NAME, PATIENT, Orthanc, film, orthanc, store, whole
from tiny_dicom import make_dicom

import mrrag.data.dicomweb as dicomweb
from mrrag.data.dicomweb import (
    Criteria,
    FoundSeries,
    fetch_instance,
    fetch_series,
    fetch_thumbnail,
    find_series,
    find_studies,
    instance_path,
    load_instance,
)
from mrrag.data.dicomweb_request import Archive, archive_at, ask, log_no_addresses
from mrrag.data.images import read_image
from mrrag.errors import ArchiveError, SettingsError


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    report = whole(
        make_dicom(
            b"",
            SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11",
            SOPInstanceUID="2.25.4.1.1",
            SeriesInstanceUID="2.25.4.1",
            StudyInstanceUID="2.25.4",
            PatientID="MRN-4",
            Modality="SR",
            AccessionNumber="ACC-4",
            PixelData=None,
        )
    )
    stack = [film(n, study=5, Modality="CT", InstanceNumber=100 - n) for n in range(50, 80)]
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        store(running, [report, *stack])
        yield running


# ---------------------------------------------------------------- a real archive


def test_a_patients_studies_are_found_newest_first(hospital: Orthanc) -> None:
    studies, more = find_studies(hospital.archive, Criteria(patient=f" {PATIENT} "))
    first = studies[0]
    assert [s.date for s in studies] == ["2024-01-31", "2024-01-31", "2020-05-17"]
    assert not more
    assert (first.patient, first.name) == (PATIENT, "Zyxwvut Quirin")
    assert (first.birth, first.date) == ("1951-02-03", "2024-01-31")


@pytest.mark.parametrize(
    ("criteria", "found"),
    [
        (Criteria(accession="ACC-3"), {"ACC-3"}),
        (Criteria(patient=PATIENT, modality="dx"), {"ACC-1", "ACC-2"}),
        (Criteria(patient=PATIENT, dates="2020-05-17"), {"ACC-2"}),
        (Criteria(dates="2020-01-01 to 2020-12-31"), {"ACC-2"}),
        (Criteria(accession="ACC-1", dates="20200101"), set()),
        (Criteria(patient="nobody"), set()),
    ],
)
def test_every_criterion_narrows_the_search(
    hospital: Orthanc, criteria: Criteria, found: set[str]
) -> None:
    assert {s.accession for s in find_studies(hospital.archive, criteria)[0]} == found


def test_a_series_is_read_as_an_upload_is(hospital: Orthanc) -> None:
    (series,) = find_series(hospital.archive, "2.25.1")
    assert (series.modality, series.views) == ("DX", ("PA", "LL"))
    study = fetch_series(hospital.archive, series)
    assert [p.label for p in study.pictures] == [
        "Picture 1 of 2, frontal",
        "Picture 2 of 2, lateral",
    ]
    shown = read_image(study.pictures[0].file).display
    np.testing.assert_array_equal(shown, read_image(hospital.files[0]).display)
    for picture in study.pictures:
        assert NAME.encode() not in picture.file
        assert PATIENT.encode() not in picture.file


def test_an_instance_is_fetched_as_the_archive_keeps_it(hospital: Orthanc) -> None:
    (series,) = find_series(hospital.archive, "2.25.2")
    path = instance_path(series, series.instances[0])
    assert fetch_instance(hospital.archive, path) == hospital.files[2]
    image = load_instance(hospital.archive, Path(path))
    assert image.sha256 == read_image(hospital.files[2]).sha256


def test_a_thumbnail_is_rendered_by_the_archive_and_small(hospital: Orthanc) -> None:
    (series,) = find_series(hospital.archive, "2.25.1")
    small = read_image(fetch_thumbnail(hospital.archive, series))
    assert max(small.display.shape) == dicomweb.THUMBNAIL_PX


def test_a_document_has_no_thumbnail_and_is_refused_as_an_upload_is(hospital: Orthanc) -> None:
    (series,) = find_series(hospital.archive, "2.25.4")
    assert fetch_thumbnail(hospital.archive, series) == b""
    with pytest.raises(Exception, match="no pixel data"):
        fetch_series(hospital.archive, series)


def test_of_a_long_series_the_first_pictures_are_fetched_and_the_rest_counted(
    hospital: Orthanc,
) -> None:
    (series,) = find_series(hospital.archive, "2.25.5", modalities=("CT",))
    assert find_series(hospital.archive, "2.25.5", modalities=("DX",)) == []
    assert series.instances[0] == "2.25.5.1.79"  # of the lowest number
    study = fetch_series(hospital.archive, series)
    assert (len(study.pictures), study.skipped) == (24, 6)


def test_a_list_that_is_too_long_says_so(
    hospital: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicomweb, "MAX_STUDIES", 2)
    studies, more = find_studies(hospital.archive, Criteria(patient=PATIENT))
    assert (len(studies), more) == (2, True)


@pytest.mark.parametrize("changes", [{"password": "wrong"}, {"user": "", "password": ""}])
def test_a_wrong_password_is_a_sentence_without_it(
    hospital: Orthanc, changes: dict[str, str]
) -> None:
    with pytest.raises(ArchiveError, match=r"not let MR-RAG in .*MRRAG_DICOMWEB_USER") as e:
        find_studies(replace(hospital.archive, **changes), Criteria(patient=PATIENT))
    assert PATIENT not in str(e.value)
    assert "wrong" not in str(e.value)


def test_an_address_that_is_not_dicomweb_is_a_sentence(hospital: Orthanc) -> None:
    elsewhere = replace(hospital.archive, url=hospital.archive.url + "/nowhere")
    with pytest.raises(ArchiveError, match="refused the request"):
        find_studies(elsewhere, Criteria(patient=PATIENT))
    with pytest.raises(ArchiveError, match=r"not DICOMweb|refused"):
        find_studies(
            replace(hospital.archive, url=hospital.archive.url.rpartition("/")[0] + "/app"),
            Criteria(patient=PATIENT),
        )


def test_nothing_of_the_patient_is_logged(
    hospital: Orthanc, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    find_studies(hospital.archive, Criteria(patient=PATIENT))
    (series,) = find_series(hospital.archive, "2.25.1")
    fetch_series(hospital.archive, series)
    with pytest.raises(ArchiveError):
        find_studies(replace(hospital.archive, password="no"), Criteria(patient=PATIENT))
    assert not caplog.records


def test_an_archive_that_ends_half_way_is_a_sentence(tmp_path: Path) -> None:
    with orthanc(tmp_path) as running:
        (series,) = find_series(running.archive, "2.25.1")
        running.process.kill()
        running.process.wait()
        for call in (
            lambda: find_studies(running.archive, Criteria(patient=PATIENT)),
            lambda: fetch_series(running.archive, series),
            lambda: fetch_thumbnail(running.archive, series),
        ):
            with pytest.raises(ArchiveError, match="cannot be reached"):
                call()


# ---------------------------------------------------------------- archives that misbehave


@pytest.fixture
def served() -> Iterator[Callable[[Callable[[BaseHTTPRequestHandler], None]], Archive]]:
    """Serve every request by a function of the test's own; return how to ask it."""
    servers = []
    ended = threading.Event()

    def serve(answer: Callable[[BaseHTTPRequestHandler], None]) -> Archive:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.ended = ended  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return Archive(f"http://127.0.0.1:{server.server_port}/dicom-web", read_s=0.5)

    yield serve
    ended.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def says(text: bytes, status: int = 200, kind: str = "application/dicom+json") -> Callable:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    return answer


def silent(handler: BaseHTTPRequestHandler) -> None:
    handler.server.ended.wait(30)  # type: ignore[attr-defined]


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "multipart/related; boundary=b")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"0" * 2**16)
    except OSError:
        pass


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/dicom+json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"[{")


SERIES = FoundSeries("1.2", "1.3", "DX", "", ("1.4",), ("PA",))


def test_a_slow_archive_is_given_up(served: Callable) -> None:
    start = time.monotonic()
    with pytest.raises(ArchiveError, match="did not answer within"):
        find_studies(served(silent), Criteria(patient="1"))
    assert time.monotonic() - start < 10


def test_one_that_drips_is_given_up_when_its_time_is_over(
    served: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drips(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while not handler.server.ended.wait(0.1):  # type: ignore[attr-defined]
                handler.wfile.write(b" ")
        except OSError:
            pass

    monkeypatch.setattr(dicomweb, "LIST_S", 1.0)
    with pytest.raises(ArchiveError, match="within 1 seconds"):
        find_studies(served(drips), Criteria(patient="1"))


def test_stop_stops_at_once(served: Callable) -> None:
    archive = replace(served(silent), read_s=30.0)
    until = time.monotonic() + 0.3
    with pytest.raises(ArchiveError, match="Stopped"):
        find_studies(archive, Criteria(patient="1"), stopped=lambda: time.monotonic() > until)
    assert time.monotonic() - until < 5


def test_no_more_is_read_than_allowed(served: Callable) -> None:
    archive = served(endless)
    with pytest.raises(ArchiveError, match="more than 8,388,608 bytes"):
        find_studies(archive, Criteria(patient="1"))
    with pytest.raises(ArchiveError, match="more than 67,112,960 bytes"):
        fetch_series(archive, SERIES)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (says(b"<html>log in</html>", kind="text/html"), "not DICOMweb"),
        (says(b'["no", 1, {"0020000D": 5}, {"0020000D": {"Value": [{}]}}]'), ""),
        (says(b"7"), "no list"),
        (says(b"", status=204), ""),
        (says(b"", status=503), "too busy"),
        (says(b"", status=500), "refused the request"),
        (cut_short, "broke off|cannot be reached"),
    ],
)
def test_any_answer_is_a_list_or_a_sentence(
    served: Callable, answer: Callable, sentence: str
) -> None:
    archive = served(answer)
    if not sentence:
        assert find_studies(archive, Criteria(patient="1")) == ([], False)
        return
    with pytest.raises(ArchiveError, match=sentence):
        find_studies(archive, Criteria(patient="1"))


def test_an_address_in_a_uid_is_not_followed(served: Callable) -> None:
    rows = b'[{"0020000D": {"vr": "UI", "Value": ["../../secret"]}}]'
    assert find_studies(served(says(rows)), Criteria(patient="1"))[0] == []


def test_a_token_and_a_user_are_sent_as_http_asks(served: Callable) -> None:
    seen: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["Authorization"])
        says(b"[]")(handler)

    archive = served(answer)
    find_studies(replace(archive, token="abc"), Criteria(patient="1"))
    find_studies(replace(archive, user="u", password="p"), Criteria(patient="1"))
    find_studies(archive, Criteria(patient="1"))
    assert seen == ["Bearer abc", "Basic dTpw", None]


def test_no_warning_of_the_libraries_tells_what_was_asked(
    served: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    def warns(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(
            b'HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\nWarning: 299 - "more"\r\n'
            b"no header\r\nContent-Length: 2\r\n\r\n[]"
        )

    log_no_addresses()
    caplog.set_level(logging.DEBUG)
    find_studies(served(warns), Criteria(patient=PATIENT))
    assert PATIENT not in caplog.text
    assert not caplog.records


def test_an_error_of_our_own_is_told_without_the_request(served: Callable) -> None:
    def fails(client: object) -> None:
        raise ValueError(f"PatientID={PATIENT}")

    with pytest.raises(ArchiveError) as raised:
        ask(served(silent), fails, stopped=lambda: False, most=1, seconds=1)
    assert PATIENT not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


# ---------------------------------------------------------------- what a person gives


@pytest.mark.parametrize(
    ("criteria", "sentence"),
    [
        (Criteria(), "nothing to search by"),
        (Criteria(patient=" ", dates=" "), "nothing to search by"),
        (Criteria(patient="1" * 65), "at most 64 characters"),
        (Criteria(accession="1" * 17), "at most 16 characters"),
        (Criteria(patient="a\nb"), "patient id"),
        (Criteria(patient="a\\b"), "patient id"),
        (Criteria(dates="yesterday"), "2024-01-31"),
        (Criteria(dates="2024-02-31"), "2024-01-31"),
        (Criteria(dates="2024-01-01 2024-01-02 2024-01-03"), "2024-01-31"),
    ],
)
def test_criteria_that_cannot_be_used_are_refused_before_any_request(
    criteria: Criteria, sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        find_studies(Archive("http://127.0.0.1:9/x"), criteria)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "pacs",
        "ftp://pacs",
        "http://",
        "http://u:secret@pacs/x",
        "http://pacs/x?y=1",
        "http://[::",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match="address") as raised:
        archive_at(url, {})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"MRRAG_DICOMWEB_USER": "u"}, "go together"),
        ({"MRRAG_DICOMWEB_PASSWORD": "secret"}, "go together"),
        (
            {
                "MRRAG_DICOMWEB_USER": "u",
                "MRRAG_DICOMWEB_PASSWORD": "secret",
                "MRRAG_DICOMWEB_TOKEN": "secret",
            },
            "not both",
        ),
        ({"MRRAG_DICOMWEB_CA": "/nowhere/ca.pem"}, "MRRAG_DICOMWEB_CA is /nowhere/ca.pem"),
        ({"MRRAG_DICOMWEB_CERT": "/nowhere/c.pem"}, "MRRAG_DICOMWEB_CERT"),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused(
    environment: dict[str, str], sentence: str
) -> None:
    with pytest.raises(SettingsError, match=re.escape(sentence)) as raised:
        archive_at("https://pacs/dicom-web/", environment)
    assert "secret" not in str(raised.value)


def test_an_archive_never_shows_its_password() -> None:
    archive = archive_at(
        "https://pacs/dicom-web/",
        {"MRRAG_DICOMWEB_USER": "reader", "MRRAG_DICOMWEB_PASSWORD": "secret"},
    )
    assert archive.url == "https://pacs/dicom-web"
    assert archive.password == "secret"
    assert "secret" not in repr(archive)
