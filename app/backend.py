"""What answers over one knowledge base: its description, and the pipeline once it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from app.about import About
from mrrag.case import Case, Progress

if TYPE_CHECKING:  # torch takes seconds to import, and the page is served before it is there
    from mrrag.pipeline import Pipeline


class Lent(NamedTuple):
    """What takes the place of the pipeline's own functions where a device is lent per call.

    Attributes
    ----------
    answer : callable
        As :func:`mrrag.pipeline.answer`.
    explain : callable
        As :func:`mrrag.explain.explain`.
    """

    answer: Callable[..., Iterator[Progress | Case]]
    explain: Callable[..., Case]


class Backend(NamedTuple):
    """A knowledge base that a visitor may choose, and the pipeline over it.

    Attributes
    ----------
    about : About
        What the page says of the model and the knowledge base.
    loading : Future
        Of the pipeline.
    lent : Lent or None
        Where a device is lent per call.
    """

    about: About
    loading: Future[Pipeline]
    lent: Lent | None = None

    def pipeline(self) -> Pipeline:
        """Return the pipeline; wait for it for up to two minutes."""
        return self.loading.result(timeout=120)

    def answer(self, *given: Any, **options: Any) -> Iterator[Progress | Case]:
        """Answer as :func:`mrrag.pipeline.answer`, on a lent device where there is one."""
        from mrrag.pipeline import answer

        return (self.lent.answer if self.lent else answer)(*given, **options)

    def explain(self, *given: Any, **options: Any) -> Case:
        """Explain as :func:`mrrag.explain.explain`, on a lent device where there is one."""
        from mrrag.explain import explain

        return (self.lent.explain if self.lent else explain)(*given, **options)
