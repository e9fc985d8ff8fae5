"""Answering on a ZeroGPU Space, where a GPU is lent for one call at a time.

The model is loaded before the page is served. A case's answers are one call in a process of its
own, and what each report did to them is another; both return arrays on the CPU. Nothing on the
device outlives a call, so nothing is cached for the next question and no decoding step is captured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from app.backend import Lent
from mrrag.case import Case, CaseCache, Evidence, Progress, Settings
from mrrag.errors import ModelError, MRRAGError
from mrrag.explain import explain as explain_case
from mrrag.pipeline import Pipeline
from mrrag.pipeline import answer as answer_case
from mrrag.types import Query, QueryVectors

EXPLAIN_SECONDS = 30  # to borrow the GPU for: weights, and one pass over the prompts once more


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


def lend(pipeline: Pipeline) -> Lent:
    """Return how one pipeline answers and explains, each call on a borrowed GPU."""
    import spaces

    # The pipeline is not an argument: arguments travel to the other process as bytes.
    @spaces.GPU(duration=seconds_for)  # type: ignore[untyped-decorator,unused-ignore]
    def answer_on_gpu(
        query: Query, evidence: Evidence, settings: Settings
    ) -> Iterator[Progress | Case]:
        for step in answer_case(pipeline, query, evidence, settings):
            yield replace(step, cache=None) if isinstance(step, Case) else step

    @spaces.GPU(duration=EXPLAIN_SECONDS)  # type: ignore[untyped-decorator,unused-ignore]
    def explain_on_gpu(query: Query, case: Case, vectors: QueryVectors | None) -> Case:
        return explain_case(pipeline, query, case, vectors=vectors)

    def answer(
        _: Pipeline,
        query: Query,
        evidence: Evidence,
        settings: Settings,
        *,
        cache: CaseCache | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Progress | Case]:
        steps = answer_on_gpu(query, evidence, settings)
        with said():
            for step in steps:
                if cancelled():
                    steps.close()
                    return
                yield step

    def explain(
        _: Pipeline,
        query: Query,
        case: Case,
        *,
        cache: CaseCache | None = None,
        vectors: QueryVectors | None = None,
    ) -> Case:
        if case.before is None:  # a question that was declined costs no GPU
            return case
        with said():
            explained: Case = explain_on_gpu(query, case, vectors)
            return explained

    return Lent(answer, explain)


@contextmanager
def said() -> Iterator[None]:
    """Raise ModelError with the reason where no GPU was lent."""
    try:
        yield
    except Exception as error:
        if why := refusal(error):
            raise why from None
        raise
