"""How the page is served: host names, limits, and what is logged of an error."""

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

from app.programs import ReadableCalls, ToolLogin
from app.sections.case import MAX_UPLOAD_BYTES
from app.theme import theme
from app.uploads import BoundedBodies, WholeUploads
from app.waiting import PLACES
from mrrag.report.templating import STATIC

logger = logging.getLogger(__name__)

# In the order of the cascade: colours and text, the page around the cards, the cards.
STYLES = [STATIC / "base.css", Path(__file__).parent / "static" / "page.css", STATIC / "case.css"]

MAX_VISITS = 64
# What waits in the room waits in a thread; the others are for all else that the page does.
MAX_THREADS = PLACES + 16
MAX_BODY_BYTES = 2**24


def log_error_types_only() -> None:
    """Log an error that gradio meets outside our actions by its type and place alone.

    Gradio prints whole exceptions with :func:`traceback.print_exc`, and their messages hold what
    the client sent. It prints to stderr, so that no logging filter sees it, and from several
    of its modules and outside of what :class:`gr.Blocks` can override; so the function itself
    is replaced, for the whole process. Nothing else here calls it.
    """

    def log_type() -> None:
        kind, _, frames = sys.exc_info()
        last = traceback.extract_tb(frames)[-1:]
        place = "".join(f" ({Path(f.filename).name}, line {f.lineno})" for f in last)
        logger.warning("A request was refused: %s%s", kind and kind.__name__, place)

    traceback.print_exc = log_type  # type: ignore[assignment]


def allowed_hosts(host: str, names: Sequence[str] = ()) -> list[str]:
    """Return the names that a request may have in its Host header.

    Any other name belongs to another site that was made to resolve to this machine, so that
    its scripts can read the page (DNS rebinding). A Space has no private network to protect,
    and the name of its proxy is unknown here.
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
    *,
    root_path: str = "",
    mcp: bool = False,
) -> dict[str, Any]:
    """Return gradio's options: served to this machine only by default, and private.

    Nothing is shared, counted, recorded or documented as an API; no file of this machine is
    served but gradio's own; errors never show their cause. ``names`` are further host names;
    ``login`` is the one user and password, if any. ``root_path`` is where a proxy serves the
    page, such as ``/xray``. With ``mcp``, what programs may do is offered to assistants, too.
    """
    hosts = Middleware(
        TrustedHostMiddleware, allowed_hosts=allowed_hosts(host, names), www_redirect=False
    )
    # A form adds less than a kilobyte to its file.
    uploads = Middleware(WholeUploads, max_bytes=MAX_UPLOAD_BYTES + 2**16)
    bodies = Middleware(BoundedBodies, max_bytes=MAX_BODY_BYTES)
    tools = [Middleware(ToolLogin, login=login)] if mcp and login else []
    return {
        "server_name": host,
        "server_port": port,
        "root_path": root_path,
        "share": False,
        "inbrowser": False,
        "debug": False,
        "show_error": False,
        "quiet": True,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "mcp_server": mcp,
        "ssr_mode": False,
        "pwa": False,
        "strict_cors": True,
        "allowed_paths": [],
        "max_file_size": MAX_UPLOAD_BYTES,
        "max_threads": MAX_THREADS,
        "state_session_capacity": MAX_VISITS,
        "auth": login,
        "app_kwargs": {
            "openapi_url": None,  # and so no pages of documentation
            "middleware": [hosts, uploads, bodies, *tools, Middleware(ReadableCalls)],
        },
        "theme": theme(),
        "css_paths": STYLES,
    }
