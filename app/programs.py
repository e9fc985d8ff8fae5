"""Two endpoints for programs, and tools for assistants: ``ask`` and ``retrieve``.

Through gradio's own interface, so that they share the page's queue and limits. Everything else
of the page stays private.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote

import gradio as gr
from gradio.events import api
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.backend import Backend
from app.sections.programs import Call, ask_case, retrieve_evidence
from app.sections.visit import sentence_of
from app.uploads import take_upload
from app.waiting import Room
from mrrag.errors import ImageError

UPLOADED_AT = "/gradio_api/file="
CALLS_AT = "/gradio_api/call/"
TOOLS_AT = "/gradio_api/mcp"
UNREADABLE = (
    "There is no such endpoint here, or its parameters are others. Where the page is started with "
    "--api, the endpoints are ask and retrieve. They need picture and question, and also take "
    "settings, knowledge_base and frame."
)
ASK = (
    "Answer a question about a radiograph three ways: without reports, with similar past reports "
    "(RAG), and with attention steered towards the relevant ones (MR-RAG). Returns what "
    "`mrrag ask --json` prints. Research demonstration. Not a medical device."
)
RETRIEVE = (
    "Find past reports that are similar to a radiograph and a question, without asking the model. "
    "Research demonstration. Not a medical device."
)


Action = Callable[[Sequence[Backend], Call, Room, str], dict[str, Any]]


def offer(backends: Sequence[Backend], room: Room) -> None:
    """Add the two endpoints to the page that is being built; both wait in the page's room."""
    offered: dict[str, tuple[Action, str]] = {
        "ask": (ask_case, ASK),
        "retrieve": (retrieve_evidence, RETRIEVE),
    }
    for name, (action, text) in offered.items():
        api(
            endpoint(name, action, backends, room),
            api_name=name,
            api_description=text,
            concurrency_limit=None,
        )


def endpoint(
    name: str, action: Action, backends: Sequence[Backend], room: Room
) -> Callable[..., Any]:
    """Return an action as gradio documents it: by its name, its types and its docstring."""

    def called(
        picture: str,
        question: str,
        request: gr.Request,
        settings: dict[str, Any] | None = None,
        knowledge_base: str = "",
        frame: int = 0,
    ) -> dict[str, Any]:
        """Read by gradio, in the form that it understands.

        Parameters:
            picture: a DICOM, PNG, JPEG, WebP, TIFF or BMP file: base64, or an upload's address.
            question: the question, of up to 1000 characters.
            settings: any of k, weights, strength, layers, form and noise; else as learnt.
            knowledge_base: its name, where the page offers several; else the first.
            frame: which frame of a DICOM file with several, counted from 0.
        """
        try:
            call = Call(bytes_of(picture), question, settings, knowledge_base, frame)
            # All programs of one machine are one visitor.
            return action(backends, call, room, request.client.host if request.client else "")
        except Exception as error:  # the page's sentence, which gradio passes on and does not log
            raise gr.Error(sentence_of(error), print_exception=False) from None

    called.__name__ = name
    return called


def bytes_of(picture: object) -> bytes:
    """Return a picture's bytes, of an upload (which is deleted) or of base64.

    Parameters
    ----------
    picture
        gradio's description of an upload, its address here, a ``data:`` address, or base64.
        Nothing is fetched from elsewhere, and no other file is read.

    Raises
    ------
    ImageError
        If it is none of these.
    """
    if isinstance(picture, dict):
        return take_upload(picture.get("path"))
    if not isinstance(picture, str):
        return b""
    _, uploaded, path = picture.partition(UPLOADED_AT)
    if uploaded:
        return take_upload(unquote(path))
    text = picture.partition(",")[2] if picture.startswith("data:") else picture
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(
            "The picture is neither base64 nor a file that was uploaded here. Upload the file, "
            "or send its bytes in base64."
        ) from None


class ReadableCalls:
    """Middleware that refuses a call of no endpoint, or with other parameters, in a sentence.

    gradio fails there instead, and what was sent stands in the log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        try:
            await self.app(scope, receive, send)
        except (KeyError, TypeError):
            if scope["type"] != "http" or CALLS_AT not in scope["path"]:
                raise
            await JSONResponse({"detail": UNREADABLE}, 400)(scope, receive, send)


class ToolLogin:
    """Middleware that asks assistants for the page's login, which gradio does not do.

    They send it as HTTP's own (Basic) authorisation, since they cannot fill in a form.
    """

    def __init__(self, app: ASGIApp, login: tuple[str, str]) -> None:
        self.app = app
        self.allowed = b"Basic " + base64.b64encode(":".join(login).encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and TOOLS_AT in scope["path"]:
            sent = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(sent, self.allowed):
                asking = {"WWW-Authenticate": 'Basic realm="MR-RAG"'}
                sentence = "Send the page's user and password as HTTP Basic authorisation."
                await PlainTextResponse(sentence, 401, asking)(scope, receive, send)
                return
        await self.app(scope, receive, send)
