"""Cases of several visitors that wait together, answered as one batch.

Who has the turn calls those who wait for answers and can be answered beside him, in the order of
their turns, one case of each visitor. Each then reads the items of his own case alone. A step of
all is worked out by whoever needs the next first; who stops just reads no further. All of this
happens in the room's one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from app.waiting import Room, Turn
from mrrag.case import Case, Evidence, Progress

if TYPE_CHECKING:
    from app.sections.asking import Run
    from mrrag.pipeline import Ready

logger = logging.getLogger(__name__)

MOST = 8  # cases in a batch; more make everybody wait until all their prompts are read

Item = Progress | Case


class Joint:
    """Cases that are being answered as one batch, of which each visitor reads his own."""

    def __init__(self, steps: Iterator[Sequence[Item]]) -> None:
        self._steps = steps
        self._newest: Sequence[Item] = ()
        self._count = 0

    def items(self, n: int) -> Iterator[Item]:
        """Yield the newest item of one case, until it is the answered case.

        Raises
        ------
        Exception
            What stopped the batch; RuntimeError where another reader met it.
        """
        seen = 0
        while True:
            if seen == self._count:
                self._advance()
            seen = self._count
            item = self._newest[n]
            yield item
            if isinstance(item, Case):
                return

    def _advance(self) -> None:
        newest = next(self._steps, None)
        if newest is None:
            raise RuntimeError("The batch ended before all of its cases were answered.")
        self._newest, self._count = newest, self._count + 1
        if all(isinstance(item, Case) for item in newest):
            self._steps = iter(())  # which frees what the model has read


class Share(NamedTuple):
    """One visitor's part of a batch."""

    evidence: Evidence
    joint: Joint
    number: int


def join(room: Room, turn: Turn, run: Run, evidence: Evidence) -> Share | None:
    """Call who can be answered together with this case; None where nobody can.

    A case that fails here is left out, and says why when its own turn comes.
    """
    from mrrag.model.prefill import fit_together
    from mrrag.pipeline import answer_together

    pipeline = run.backend.pipeline()
    if run.backend.lent or not pipeline.backbone.bound_by_weights:
        return None
    # Read once: who leaves meanwhile takes the case along.
    waiting = [(other, other.case) for other in room.others(turn)]
    others = [(other, case) for other, case in waiting if _may_join(case, run)]
    first = _prepared(run, evidence) if others else None
    if first is None:
        return None
    joined = {turn: first}
    for other, case in others[: MOST - 1]:
        prepared = _prepared(case)
        if prepared is None:
            continue
        read = [tuple(ready.branches.values()) for _, ready in (*joined.values(), prepared)]
        if not fit_together(pipeline.backbone, read, run.settings.max_new_tokens):
            break
        joined[other] = prepared
    joint = Joint(answer_together(pipeline, [ready for _, ready in joined.values()]))
    shares = {one: Share(known, joint, n) for n, (one, (known, _)) in enumerate(joined.items())}
    own = shares.pop(turn)
    room.call(turn, shares)
    return own


def _may_join(other: Run | None, run: Run) -> bool:
    from mrrag.pipeline import kind_of

    if other is None or other.backend is not run.backend or other.superseded:
        return False
    pipeline = run.backend.pipeline()
    return kind_of(pipeline, other.settings) == kind_of(pipeline, run.settings)


def _prepared(run: Run, evidence: Evidence | None = None) -> tuple[Evidence, Ready] | None:
    """Return a case as the model is to read it; None where it is declined or fails."""
    from mrrag.evidence import find_evidence
    from mrrag.pipeline import Ready, get_ready

    pipeline = run.backend.pipeline()
    try:
        found = evidence or find_evidence(pipeline, run.query, run.settings)
        ready = get_ready(pipeline, run.query, found, run.settings, cache=run.cache)
    except Exception:
        return None
    return (found, ready) if isinstance(ready, Ready) else None


def answers(run: Run, evidence: Evidence, share: Share | None) -> Iterator[Item]:
    """Answer a case in its batch, or alone where it has none or the batch fails."""
    if share is not None:
        try:
            for item in share.joint.items(share.number):
                if run.superseded:
                    return
                yield item
            return
        except Exception as error:
            logger.warning("Cases are answered one by one after all: %s", type(error).__name__)
    yield from run.backend.answer(
        run.backend.pipeline(),
        run.query,
        evidence,
        run.settings,
        cache=run.cache,
        cancelled=lambda: run.superseded,
    )
