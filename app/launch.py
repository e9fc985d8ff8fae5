"""How the page is served: by which names, with which limits, and what of a failure is logged."""

from __future__ import annotations

import logging
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from app.sections.case import MAX_UPLOAD_BYTES
from app.theme import theme
from app.uploads import WholeUploads
from mrrag.report.cards import STYLE

logger = logging.getLogger(__name__)


MAX_VISITS = 64


def name_failures() -> None:
    """Have gradio log what fails before it comes to us by its type alone.

    It prints whole exceptions, and their messages hold what was sent.
    """

    def name() -> None:
        kind, _, frames = sys.exc_info()
        last = traceback.extract_tb(frames)[-1:]
        where = "".join(f" ({Path(f.filename).name}, line {f.lineno})" for f in last)
        logger.warning("A request was refused: %s%s", kind and kind.__name__, where)

    traceback.print_exc = name  # type: ignore[assignment]


def allowed_hosts(host: str, names: Sequence[str] = ()) -> list[str]:
    """Names that a request may address us by (its Host header).

    Any other name is another site's, made to point at this machine so that its scripts may
    read the page (DNS rebinding). A Space has no private network to protect, and its proxy's
    name is not ours to know.
    """
    if os.environ.get("SPACE_ID"):
        return ["*"]
    own = [socket.gethostname(), socket.getfqdn()] if host in ("0.0.0.0", "::") else []
    return list(dict.fromkeys(["127.0.0.1", "localhost", host, *own, *names]))


def launch_options(
    host: str,
    port: int | None,
    names: Sequence[str] = (),
    login: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """How the page is served: to this machine alone unless told otherwise, and quietly.

    Nothing is shared, counted, recorded or documented for callers; no file of this
    machine is served but gradio's own; errors never show their cause. ``names`` are further
    names of this machine; ``login`` is the one user and password, if any.
    """
    hosts = Middleware(
        TrustedHostMiddleware, allowed_hosts=allowed_hosts(host, names), www_redirect=False
    )
    # What a form puts around its file is less than a kilobyte.
    uploads = Middleware(WholeUploads, most=MAX_UPLOAD_BYTES + 2**16)
    return {
        "server_name": host,
        "server_port": port,
        "share": False,
        "inbrowser": False,
        "debug": False,
        "show_error": False,
        "quiet": True,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "ssr_mode": False,
        "pwa": False,
        "strict_cors": True,
        "allowed_paths": [],
        "max_file_size": MAX_UPLOAD_BYTES,
        "max_threads": 8,
        "state_session_capacity": MAX_VISITS,
        "auth": login,
        "app_kwargs": {
            "openapi_url": None,  # and so no pages that show it
            "middleware": [hosts, uploads],
        },
        "theme": theme(),
        "css_paths": [STYLE],
    }
