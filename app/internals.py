"""What the page takes from gradio's internals, since gradio has no public way to it.

Checked with gradio 6; the tests of this module fail where another version has changed them.
"""

from __future__ import annotations

from typing import Any

import gradio as gr


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
