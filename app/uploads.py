"""Uploaded files: received whole or not at all, read once, and deleted; other requests: small.

Gradio writes an upload to a folder and passes its path to the page's handler. It leaves aborted
and malformed uploads there; see :class:`WholeUploads` and :func:`sweep`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import tempfile
import time
from pathlib import Path

from gradio.utils import get_upload_folder
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# How long a file that no handler read is kept.
FILE_SECONDS = 300


def take_upload(path: object) -> bytes:
    """Read an upload and delete it; return nothing if it does not exist.

    Only a file in gradio's own upload folder is read, whatever the caller says.
    """
    folder = Path(get_upload_folder()).resolve()
    file = Path(path).resolve() if isinstance(path, str) and "\0" not in path else folder
    if folder not in file.parents:
        return b""
    try:
        return file.read_bytes()
    except OSError:
        return b""
    finally:
        remove(file, folder)


def take_uploads(sent: object) -> list[bytes]:
    """Read and delete what gradio says was uploaded together: a file, or a list of files."""
    files = sent if isinstance(sent, list) else [sent]
    return [take_upload(file.get("path")) for file in files if isinstance(file, dict)]


def sweep(folder: Path, seconds: float) -> None:
    """Delete every file in the folder that is unchanged for this many seconds."""
    until = time.time() - seconds
    for where, _, names in os.walk(folder):  # tolerates files vanishing while walking
        for file in (Path(where, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if file.lstat().st_mtime <= until:
                    remove(file, folder)


def remove(file: Path, folder: Path) -> None:
    """Delete a file, and the folder that gradio made for it."""
    with contextlib.suppress(OSError):  # a folder, or one that is not empty
        file.unlink(missing_ok=True)
        if file.parent != folder:
            file.parent.rmdir()


class BoundedBodies:
    """Middleware that refuses a request of more than ``max_bytes``, but for uploads.

    What waits in gradio's queue is held in memory.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        taken = 0

        async def receive_counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.max_bytes:
                raise HTTPException(413, "The request is too large. Upload the picture first.")
            return message

        free = scope["type"] != "http" or scope["path"].endswith("/upload")
        await self.app(scope, receive if free else receive_counted, send)


class WholeUploads:
    """Middleware that passes an upload on once it is complete, and deletes leftovers.

    Until then it is in an unnamed temporary file, which vanishes with the connection. One of
    more than ``max_bytes``, all its files together, is refused. Gradio names a file by its
    content, so that the same file from two visitors would be one file and deleted with the
    first reader: each upload gets a folder of its own.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.lock = asyncio.Lock()  # one upload at a time moves from gradio's folder to its own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or not scope["path"].endswith("/upload"):
            await self.app(scope, receive, send)
            return
        folder = Path(get_upload_folder())
        with tempfile.TemporaryFile() as whole:
            more = True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    return  # the client is gone
                whole.write(message.get("body", b""))
                more = message.get("more_body", False)
                if whole.tell() > self.max_bytes:
                    await PlainTextResponse("The upload is too large.", 413)(scope, receive, send)
                    return
            whole.seek(0)

            async def receive_whole() -> Message:
                body = whole.read(2**16)
                left = len(body) == 2**16
                return {"type": "http.request", "body": body, "more_body": left}

            async def send_own(message: Message) -> None:
                if message["type"] == "http.response.body":
                    body = to_own_folder(message.get("body", b""), folder)
                    message = {**message, "body": body}
                await send(message)

            try:
                async with self.lock:
                    await self.app(scope, receive_whole, send_own)
            finally:
                loop = asyncio.get_running_loop()
                loop.call_later(FILE_SECONDS, sweep, folder, FILE_SECONDS)


def to_own_folder(answer: bytes, folder: Path) -> bytes:
    """Move what gradio has just written to a folder with a random name.

    ``answer`` is gradio's list of paths, as JSON; it is returned with the new paths and of the
    same length. Anything else is returned unchanged.
    """
    try:
        paths = [Path(path) for path in json.loads(answer)]
    except (ValueError, TypeError):
        return answer
    for parent in {path.parent for path in paths if path.parent.parent == folder}:
        own = secrets.token_hex(len(parent.name) // 2)
        with contextlib.suppress(OSError):  # not there yet: gradio copies it later
            parent.rename(folder / own)
            answer = answer.replace(parent.name.encode(), own.encode())
    return answer
