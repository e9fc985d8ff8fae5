"""Probes against the running page, as an attacker on the network would send them."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.data import get_testdata_file

from app.bench.load import API, Visitor, picture
from app.bench.server import ROOT, Server, running
from app.sections.visit import UNEXPECTED

PATIENT = "Zebedee^Planted"
QUESTION = "Is there an effusion in Zebedee Planted?"
# What gradio refuses before it comes to a handler of ours.
REFUSALS = (RuntimeError, httpx.HTTPStatusError)
HOSTILE = "<script>hurt()</script>{{7*7}}${7*7}"


@pytest.fixture
def address(server: Server) -> str:
    server.wait_for()
    return server.address


@pytest.fixture
def folder(server: Server) -> Path:
    """Where the server keeps its temporary files."""
    return server.folder


@pytest.fixture
def visitor(address: str) -> Iterator[Visitor]:
    visiting = Visitor(address)
    yield visiting
    visiting.http.close()


def dicom(**tags: Any) -> bytes:
    """A DICOM file in implicit VR, whose texts may be as long as one likes."""
    dataset = dcmread(str(get_testdata_file("MR_small_implicit.dcm")))
    file = BytesIO()
    with disable_value_validation():  # nor does an attacker heed it
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        dataset.save_as(file)
    return file.getvalue()


def refused(visitor: Visitor, path: object) -> bool:
    """Hand a path in as if it had been uploaded; whether no picture came of it."""
    try:
        shown = visitor.hand_in(path)
    except REFUSALS:
        return True
    return "film-title" not in shown["preview"]


def test_no_other_name_may_address_the_page(address: str) -> None:
    for path in ("/", "/config", f"/{API}/queue/data?session_hash=a"):
        answer = httpx.get(address + path, headers={"Host": "evil.example"})
        assert answer.status_code == 400
    assert httpx.get(address, headers={"Host": "localhost"}).status_code == 200
    foreign = httpx.get(f"{address}/config", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in foreign.headers


@pytest.mark.parametrize(
    "path",
    [
        f"/{API}/file=/etc/passwd",
        f"/{API}/file=../../../../etc/passwd",
        f"/{API}/file=..%2f..%2f..%2fetc%2fpasswd",
        f"/{API}/file=app.py",
        f"/{API}/file={ROOT}/app.py",
        f"/{API}/file=http://127.0.0.1/",
        f"/{API}/proxy=http://127.0.0.1/",
        "/static/..%2f..%2f..%2fapp.py",
        "/assets/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/file=/etc/passwd",
    ],
)
def test_no_file_of_this_machine_is_served(address: str, path: str) -> None:
    answer = httpx.get(address + path)
    assert answer.status_code >= 400 or "root:" not in answer.text
    assert "Serve the MR-RAG page" not in answer.text
    assert answer.status_code >= 400 or "text/html" in answer.headers["content-type"]


def test_a_path_that_was_not_uploaded_is_not_read(visitor: Visitor, folder: Path) -> None:
    secret = folder.parent / "secret.png"
    secret.write_bytes(picture(5))
    (private,) = folder.glob("mr-rag-*")
    for path in (str(secret), f"{private}/../../secret.png", "../../etc/passwd", "a\0b", 3, [], {}):
        assert refused(visitor, path)
    assert secret.exists()


def test_an_upload_cannot_leave_its_folder_by_its_name(address: str, folder: Path) -> None:
    before = {path.name for path in folder.parent.iterdir()}
    name = "../../../escaped.png"
    answer = httpx.post(f"{address}/{API}/upload", files={"files": (name, picture(1))})
    assert {path.name for path in folder.parent.iterdir()} == before
    if answer.status_code == 200:
        path = Path(answer.json()[0]).resolve()
        assert folder.resolve() in path.parents
        assert httpx.get(f"{address}/{API}/file=/{path}").status_code >= 400
        path.unlink()


def test_the_folder_of_uploads_is_private_and_they_are_deleted_as_read(
    visitor: Visitor, server: Server
) -> None:
    (private,) = server.folder.glob("mr-rag-*")
    assert private.stat().st_mode & 0o777 == 0o700
    shown = visitor.upload(picture(7))
    assert "135 px" in shown["preview"]
    assert server.uploads() == []


def test_an_upload_is_not_read_by_another_visit_once_it_was_read(
    address: str, visitor: Visitor
) -> None:
    sent = visitor.http.post(f"/{API}/upload", files={"files": ("a.png", picture(9))})
    path = sent.json()[0]
    assert not refused(visitor, path)
    other = Visitor(address)
    assert refused(other, path)
    assert other.http.get(f"/{API}/file={path}").status_code >= 400
    other.http.close()


def test_an_upload_that_is_broken_off_never_reaches_the_disk(address: str, server: Server) -> None:
    begun = (
        f"POST /{API}/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10000000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="files"; filename="a.dcm"\r\n\r\n'
    )
    port = int(address.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(begun.encode() + 20_000 * b"patient")
        # Another request, through and through, so that what was sent has been read.
        httpx.get(f"{address}/config")
        assert server.uploads() == []
    httpx.get(f"{address}/config")
    assert server.uploads() == []
    assert "Traceback" not in server.log.read_text()


def test_a_file_over_the_limit_is_refused(address: str, server: Server) -> None:
    from app.sections.case import MAX_UPLOAD_BYTES

    files = {"files": ("big.dcm", b"\0" * (MAX_UPLOAD_BYTES + 2**20))}
    answer = httpx.post(f"{address}/{API}/upload", files=files, timeout=120)
    assert answer.status_code == 413
    assert server.uploads() == []


def png_bomb() -> bytes:
    """A PNG of 60,000 by 60,000 pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        code = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + code

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 2**22, 9)
    ends = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + ends


def test_a_decompression_bomb_is_refused_in_a_sentence(visitor: Visitor, server: Server) -> None:
    assert "far too many pixels" in visitor.upload(png_bomb())["preview"]
    bomb = BytesIO()
    PIL.Image.fromarray(np.zeros((9000, 9000), np.uint8)).save(bomb, "PNG")
    assert "film-title" not in visitor.upload(bomb.getvalue())["preview"]
    assert server.uploads() == []


FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
BAD = [None, "<script>", -1, 1e308, [], {}, [[]], True, FILE]


def test_every_handler_called_with_anything_says_a_sentence_and_goes_on(
    visitor: Visitor, server: Server
) -> None:
    visitor.upload(picture(7))
    visitor.do("ask", "click", question="Is there an effusion?")
    (upload,) = visitor.handlers["upload", "upload"]
    for handler in visitor.config["dependencies"]:
        for bad in BAD:
            # What is no file, and what is one of this machine, gradio refuses by itself.
            theirs = () if handler is not upload and bad != FILE else REFUSALS
            with contextlib.suppress(*theirs):
                said = str(list(visitor.send(handler, [bad] * len(handler["inputs"]), bad)))
                assert "root:" not in said
                assert UNEXPECTED not in said
    assert "Traceback" not in server.log.read_text()
    assert "Unexpected" not in server.log.read_text()
    assert "135 px" in visitor.upload(picture(7))["preview"]


def test_another_visits_case_is_not_reached_by_a_handler(address: str, visitor: Visitor) -> None:
    visitor.upload(dicom(PatientName=PATIENT))
    other = Visitor(address)
    assert "no picture" in other.do("ask", "click", question=QUESTION)["status"]
    other.http.close()


def test_nothing_is_documented_monitored_or_kept(address: str) -> None:
    for path in ("/docs", "/redoc", "/openapi.json", "/monitoring", "/monitoring/summary"):
        assert httpx.get(address + path).status_code >= 400, path
    described = httpx.get(f"{address}/{API}/info")
    assert described.status_code >= 400 or described.json()["named_endpoints"] == {}
    config = httpx.get(f"{address}/config").json()
    assert not config.get("analytics_enabled")
    assert not config.get("show_error")
    assert all(d["api_visibility"] == "private" for d in config["dependencies"])


def test_tags_that_are_markup_or_a_megabyte_are_shown_as_text_or_not_at_all(
    visitor: Visitor,
) -> None:
    data = dicom(
        PatientName=HOSTILE, StudyDescription="x" * 2**20, ViewPosition="<script>", Modality="{{7}}"
    )
    shown = str(visitor.upload(data))
    assert "film-title" in shown
    for text in ("<script>hurt", "{{7*7}}", "${7*7}", "x" * 100, "{{7}}"):
        assert text not in shown
    window = dicom(WindowCenterWidthExplanation=HOSTILE, WindowCenter="40", WindowWidth="400")
    shown = str(visitor.upload(window)["preview"])
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_nothing_of_a_case_is_in_the_log(visitor: Visitor, server: Server) -> None:
    visitor.upload(dicom(PatientName=PATIENT, PatientID="PLANTED-77"), "planted-name.dcm")
    assert "status done" in visitor.do("ask", "click", question=QUESTION)["status"]
    assert PATIENT not in str(visitor.shown)
    visitor.upload(b"DICM" + PATIENT.encode(), "planted-name.dcm")
    assert server.uploads() == []
    # gradio's links to a case as it stands, which the page does not offer.
    visitor.http.get(f"/{API}/deep_link", params={"session_hash": visitor.session})
    kept = server.uploads()
    written = server.log.read_text().lower() + "".join(file.read_text().lower() for file in kept)
    for secret in ("zebedee", "planted", "effusion"):
        assert secret not in written
    for file in kept:
        file.unlink()


def test_a_login_is_asked_for_where_one_is_set(tmp_path: Path) -> None:
    login = {"MRRAG_USER": "reader", "MRRAG_PASSWORD": "a long secret"}
    # Ended while the model loads, too, it leaves nothing.
    with running(tmp_path / "served", **login) as server:
        server.wait_for("MR-RAG is at")
        url = server.address
        for path in ("/config", f"/{API}/queue/data?session_hash=a", f"/{API}/info"):
            assert httpx.get(url + path).status_code == 401
        data = {"fn_index": 0, "data": [], "session_hash": "a"}
        assert httpx.post(f"{url}/{API}/queue/join", json=data).status_code == 401
        files = {"files": ("a.png", b"a")}
        assert httpx.post(f"{url}/{API}/upload", files=files).status_code == 401
        with httpx.Client(base_url=url) as browser:
            wrong = {"username": "reader", "password": "guess"}
            assert browser.post("/login", data=wrong).status_code == 400
            right = {"username": "reader", "password": "a long secret"}
            assert browser.post("/login", data=right).status_code == 200
            assert "components" in browser.get("/config").json()
    assert list(server.folder.iterdir()) == []


def test_half_a_login_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "app.py"],
        cwd=ROOT,
        env=os.environ | {"MRRAG_USER": "reader"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "MRRAG_PASSWORD" in done.stderr
