"""Uploads: whole or not at all, read once, and gone."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from app.uploads import WholeUploads, sweep, take_upload, take_uploads, to_own_folder

SCOPE: Scope = {"type": "http", "path": "/gradio_api/upload", "method": "POST", "headers": []}


def test_an_upload_is_deleted_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    folder = tmp_path / "abc123"
    folder.mkdir()
    (folder / "chest.dcm").write_bytes(b"pixels")
    (tmp_path / "tmpothers").touch()  # another visit's, on its way
    assert take_upload(str(folder / "chest.dcm")) == b"pixels"
    assert [path.name for path in tmp_path.iterdir()] == ["tmpothers"]


def test_files_uploaded_together_are_all_read_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chest.dcm").write_bytes(name.encode())
    sent = [{"path": str(tmp_path / name / "chest.dcm")} for name in ("a", "b", "a")]
    assert take_uploads([*sent, "no file", {"path": 3}, None]) == [b"a", b"b", b"", b""]
    assert list(tmp_path.iterdir()) == []
    assert take_uploads(None) == take_uploads("x") == []


def test_no_file_outside_the_upload_folder_is_read_or_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (uploads / "link").symlink_to(secret)
    for path in (
        str(secret),
        str(uploads / ".." / "secret"),
        str(uploads / "link"),
        "a\0b",
        "",
        None,
        3,
    ):
        assert take_upload(path) == b""
    assert secret.read_bytes() == b"secret"


def test_what_was_left_is_swept_up_once_it_is_old(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chest.dcm").write_bytes(b"pixels")
    (tmp_path / "tmpold").touch()
    past = time.time() - 1000
    for file in (tmp_path / "old" / "chest.dcm", tmp_path / "tmpold"):
        os.utime(file, (past, past))
    sweep(tmp_path, 300)
    assert [path.name for path in tmp_path.glob("**/*")] == ["new", "chest.dcm"]


def received(messages: list[Message], most: int) -> list[bytes] | None:
    """What gradio would be handed, piece by piece; None where nothing was."""
    pieces: list[bytes] | None = None

    async def gradio(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal pieces
        async for piece in Request(scope, receive).stream():
            pieces = [*(pieces or []), piece]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    asyncio.run(WholeUploads(gradio, most)(SCOPE, receive, send))
    return pieces


def body(data: bytes, more: bool) -> Message:
    return {"type": "http.request", "body": data, "more_body": more}


@pytest.mark.parametrize("size", [0, 1, 2**16, 2**16 + 1, 2**18])
def test_an_upload_comes_through_as_it_was_sent(size: int) -> None:
    data = os.urandom(size)
    pieces = received([body(data[: size // 2], True), body(data[size // 2 :], False)], 2**20)
    assert pieces is not None
    assert b"".join(pieces) == data


def test_nothing_is_handed_on_of_an_upload_that_is_broken_off() -> None:
    assert received([body(b"patient", True), {"type": "http.disconnect"}], 2**20) is None


@pytest.mark.parametrize("more", [True, False])
def test_an_upload_that_is_too_large_is_refused_and_not_collected_to_its_end(more: bool) -> None:
    messages = [body(b"a" * 60, True), body(b"b" * 60, more), body(b"c", False)]
    answers: list[Message] = []

    async def unused(*_: object) -> None:
        raise AssertionError("gradio is not reached")

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        answers.append(message)

    asyncio.run(WholeUploads(unused, 100)(SCOPE, receive, send))
    assert answers[0]["status"] == 413
    assert messages == [body(b"c", False)]


def test_other_requests_pass_as_they_are() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ClientDisconnect

    async def unused(*_: Message) -> Message:
        raise AssertionError

    with pytest.raises(ClientDisconnect):
        asyncio.run(WholeUploads(broken, 1)(SCOPE | {"path": "/config"}, unused, unused))


def test_the_same_file_of_two_visitors_is_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    written = tmp_path / ("ab" * 32) / "chest.dcm"

    async def gradio(scope: Scope, receive: Receive, send: Send) -> None:
        written.parent.mkdir(exist_ok=True)
        written.write_bytes(await Request(scope, receive).body())
        await asyncio.sleep(0)  # here another upload could come between
        answer = json.dumps([str(written)]).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    uploads = WholeUploads(gradio, 100)
    answers: list[bytes] = []

    async def upload() -> None:
        async def receive() -> Message:
            return body(b"pixels", False)

        async def send(message: Message) -> None:
            answers.append(message.get("body", b""))

        await uploads(SCOPE, receive, send)

    async def both() -> None:
        await asyncio.gather(upload(), upload())

    asyncio.run(both())
    paths = [json.loads(answer)[0] for answer in answers if answer]
    assert len(set(paths)) == 2
    assert all(len(path) == len(str(written)) for path in paths)
    assert [take_upload(path) for path in paths] == [b"pixels", b"pixels"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", [b"", b"Too large", b"{}", b"[3]", b'["/etc/passwd"]'])
def test_an_answer_that_names_no_upload_is_passed_on_as_it_is(
    tmp_path: Path, answer: bytes
) -> None:
    assert to_own_folder(answer, tmp_path) == answer
