"""What the page takes from gradio's internals, since gradio has no public way to it.

Checked with gradio 6; the tests of this module fail where another version has changed them.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio_client import Client

from mrrag.errors import ModelError


class Page(gr.Blocks):
    """Blocks that keep no more of a visit than its states.

    gradio keeps what each visit was shown, in order to link to it, and adds a copy under a new
    number whenever an update leaves a component alone: without limit, and longer than the case.
    No option turns this off.
    """

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """Prepare an event's outputs for sending, and forget them."""
        try:
            return await super().postprocess_data(block_fn, predictions, state)
        finally:
            if state is not None:
                state.blocks_config.blocks = dict(self.default_config.blocks)
                state.config_values = {}


def questions_ahead(page: gr.Blocks, session: str | None, concurrency_id: str) -> int:
    """Return how many events run before a visit's newest one; 0 once it runs itself.

    gradio tells a place in the queue only to its own progress display, of all events together.
    """
    queue = page._queue.event_queue_per_concurrency_id.get(concurrency_id)
    waiting = [event.session_hash for event in queue.queue] if queue else []
    return max((n for n, who in enumerate(waiting, 1) if who == session), default=0)


def log_tools_in(page: gr.Blocks, address: str, login: tuple[str, str] | None) -> None:
    """Give the assistants' tools a client of their own that is logged in.

    They reach the queue by a client to this same page, which gradio makes without a login.

    Raises
    ------
    ModelError
        If gradio could not set the tools up.
    """
    if page.mcp_server_obj is None or page.mcp_error:
        raise ModelError(f"The tools for assistants (--mcp) could not be set up. {page.mcp_error}")
    page.mcp_server_obj._client_instance = Client(
        address, auth=login, download_files=False, verbose=False, analytics_enabled=False
    )
