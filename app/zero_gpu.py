"""Answering on a ZeroGPU Space, where a GPU is lent for one call at a time.

The model is loaded before the page is served. Each case is one call in a process of its own,
which returns arrays on the CPU. Nothing on the device outlives a call, so nothing is cached for
the next question and no decoding step is captured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from mrrag.case import Case, CaseCache, Evidence, Progress, Settings
from mrrag.errors import ModelError, MRRAGError
from mrrag.pipeline import Pipeline
from mrrag.pipeline import answer as answer_case
from mrrag.types import Query


def seconds_for(query: Query, evidence: Evidence, settings: Settings) -> int:
    """Return the seconds to borrow the GPU for: weights, prefill and decoding."""
    return round(20 + 0.5 * len(evidence.retrieved) + 0.1 * settings.max_new_tokens)


def refusal(error: Exception) -> MRRAGError | None:
    """Return why no GPU was lent, or None if the error is another.

    None may be free, or the visitor's quota is used up. ``spaces`` raises gradio's error for
    that, with a title of its own and sometimes a link.
    """
    if not str(getattr(error, "title", "")).startswith("ZeroGPU"):
        return None
    said = re.sub(r"<[^>]*>", "", str(getattr(error, "message", error))).strip()
    return ModelError(f"No GPU could be borrowed for this case. {said.rstrip('.')}.")


def lend(pipeline: Pipeline) -> Callable[..., Iterator[Progress | Case]]:
    """Return :func:`mrrag.pipeline.answer` for one pipeline, each call on a borrowed GPU."""
    import spaces

    # The pipeline is not an argument: arguments travel to the other process as bytes.
    @spaces.GPU(duration=seconds_for)  # type: ignore[untyped-decorator,unused-ignore]
    def on_gpu(query: Query, evidence: Evidence, settings: Settings) -> Iterator[Progress | Case]:
        for step in answer_case(pipeline, query, evidence, settings):
            yield replace(step, cache=None) if isinstance(step, Case) else step

    def answer(
        _: Pipeline,
        query: Query,
        evidence: Evidence,
        settings: Settings,
        *,
        cache: CaseCache | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Progress | Case]:
        steps = on_gpu(query, evidence, settings)
        try:
            for step in steps:
                if cancelled():
                    steps.close()
                    return
                yield step
        except Exception as error:
            if why := refusal(error):
                raise why from None
            raise

    return answer
