"""What answers over one knowledge base: its description, and the pipeline once it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from app.about import About
from mrrag.case import Case, Progress

if TYPE_CHECKING:  # torch takes seconds to import, and the page is served before it is there
    from mrrag.pipeline import Pipeline

# The signature of mrrag.pipeline.answer.
Answer = Callable[..., Iterator[Progress | Case]]


class Backend(NamedTuple):
    """A knowledge base that a visitor may choose, and the pipeline over it.

    Attributes
    ----------
    about : About
        What the page says of the model and the knowledge base.
    loading : Future
        Of the pipeline.
    answer : callable or None
        Takes the place of :func:`mrrag.pipeline.answer` where a device is lent per call.
    """

    about: About
    loading: Future[Pipeline]
    answer: Answer | None = None

    def pipeline(self) -> Pipeline:
        """Return the pipeline; wait for it for up to two minutes."""
        return self.loading.result(timeout=120)


def select(backends: Sequence[Backend], number: object) -> Backend:
    """Return the backend with this number, or the first where there is none."""
    for n, backend in enumerate(backends):
        if n == number:
            return backend
    return backends[0]
