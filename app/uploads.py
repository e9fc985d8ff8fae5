"""What becomes of an uploaded file: whole or not at all, read once, and gone.

gradio writes an upload to a folder and then names it to the page's handler. What is broken
off or malformed it leaves there; see :class:`WholeUploads` and :func:`sweep`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from pathlib import Path

from gradio.utils import get_upload_folder
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# How long a file that no handler asked for lies there.
FILE_SECONDS = 300


def take_upload(path: object) -> bytes:
    """Read an upload and delete it; empty where it is not there.

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


def sweep(folder: Path, seconds: float) -> None:
    """Delete every file in the folder that has not changed for so long."""
    until = time.time() - seconds
    for where, _, names in os.walk(folder):  # which minds nothing that goes meanwhile
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


class WholeUploads:
    """Hands an upload on once all of it has come, and sweeps up after it.

    Until then it is in a file without a name, which goes with the connection. One that is
    too large is handed on as far as it came, for gradio to refuse.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or not scope["path"].endswith("/upload"):
            await self.app(scope, receive, send)
            return
        folder = Path(get_upload_folder())
        with tempfile.TemporaryFile() as whole:
            collected = more = False

            async def receive_whole() -> Message:
                nonlocal collected, more
                if not collected:
                    collected = more = True
                    while more and whole.tell() <= self.most:
                        message = await receive()
                        if message["type"] != "http.request":
                            return message
                        whole.write(message.get("body", b""))
                        more = message.get("more_body", False)
                    whole.seek(0)
                body = whole.read(2**16)
                if not body and more:
                    return await receive()
                return {
                    "type": "http.request",
                    "body": body,
                    "more_body": more or len(body) == 2**16,
                }

            try:
                await self.app(scope, receive_whole, send)
            except ClientDisconnect:
                pass  # nothing was handed on, and no one is there to be told
            finally:
                loop = asyncio.get_running_loop()
                loop.call_later(FILE_SECONDS, sweep, folder, FILE_SECONDS)
