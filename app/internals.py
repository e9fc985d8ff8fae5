"""What the page takes from gradio's internals, since gradio has no public way to it.

Checked with gradio 6; the tests of this module fail where another version has changed them.
"""

from __future__ import annotations

import copy
from typing import Any

import gradio as gr
from gradio_client import Client

from mrrag.errors import ModelError

REST_SECONDS = 0.01


class Page(gr.Blocks):
    """Blocks that keep no more of a visit than its states, and spend nothing on what stays.

    gradio keeps what each visit was shown, in order to link to it, and adds a copy under a new
    number whenever an update leaves a component alone: without limit, and longer than the case.
    No option turns this off. It also makes each component anew that an update leaves alone: of an
    update of one line of the page, that was nearly all the work (docs/performance.md).
    """

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """Prepare an event's outputs for sending, and forget them."""
        try:
            if not (isinstance(predictions, dict) and predictions) or not all(
                isinstance(part, gr.blocks.Block) for part in predictions
            ):
                return await super().postprocess_data(block_fn, predictions, state)
            given = {part: value for part, value in predictions.items() if not _stays(value)}
            written = copy.copy(block_fn)
            written.outputs = [part for part in block_fn.outputs if part in given]
            sent = await super().postprocess_data(written, given, state) if given else []
            contents = dict(zip(written.outputs, sent, strict=True))
            return [
                contents.get(part, None if part.stateful else gr.skip())
                for part in block_fn.outputs
            ]
        finally:
            if state is not None:
                state.blocks_config.blocks = dict(self.default_config.blocks)
                state.config_values = {}


def _stays(value: object) -> bool:
    """Return whether a value is gradio's own for leaving a component as it is."""
    return isinstance(value, dict) and value == gr.skip()


def rest(page: gr.Blocks) -> None:
    """Look for new events a hundred times a second.

    gradio does so a thousand times, by which an idle page takes 8 % of a core.
    """
    page._queue.sleep_when_free = REST_SECONDS


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
