"""The waiting room: in which order cases reach the model, and how many may wait.

One turn is taken at a time, unless who has it calls others to share it. Who still waits for
answers comes before who has them and waits for what each report adds. Within both, visitors take
turns, so that nobody waits behind another visitor's ten cases. All work in turns is done by one
thread, since memory that a thread has freed stays with it. It knows no case, and a visitor by a
key alone.
"""

from __future__ import annotations

import itertools
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

from mrrag.errors import MRRAGError

PLACES = 32  # cases in the room, of all visitors
OWN = 8  # of one visitor
REMEMBERED = 20  # how many past turns tell how long the next ones take
POLL_SECONDS = 0.25  # between two looks at whether a waiting case was superseded
LINE_SECONDS = 1.0  # between two words on how many are ahead; each costs the server work

Result = TypeVar("Result")
Step = TypeVar("Step")


class RoomFullError(MRRAGError):
    """No more cases may wait; the text says when to come back."""


@dataclass(eq=False)
class Turn:
    """A case that waits for the model or, once it ``runs``, has it.

    Attributes
    ----------
    case : object
        What may be answered together with others, for who shares a turn; None for nothing.
    share : object
        What :meth:`Room.call` gave it.
    sharing : int
        How many have this turn together.
    """

    visitor: Hashable
    number: int
    later: bool
    case: Any = None
    runs: bool = False
    began: float = 0.0
    share: Any = None
    sharing: int = 1


class Room:
    """Who waits; shared by all threads that serve the page."""

    def __init__(self, places: int = PLACES, own: int = OWN) -> None:
        self._places, self._own = places, own
        self._thread = ThreadPoolExecutor(1, "model")
        self._changed = threading.Condition()
        self._turns: list[Turn] = []
        self._count = itertools.count(1)
        self._last: dict[Hashable, int] = {}  # when a visitor's turn ended, by the same count
        self._seconds = {later: deque[float](maxlen=REMEMBERED) for later in (False, True)}

    @contextmanager
    def turn(
        self, visitor: Hashable, *, later: bool = False, case: object = None
    ) -> Iterator[Turn]:
        """Enter the room and leave it at the end; the turn comes when :meth:`wait` says so.

        Parameters
        ----------
        later
            For a case that has its answers. It is never refused.
        case
            See :class:`Turn`.

        Raises
        ------
        RoomFullError
            If there is no place, or the visitor has too many cases here.
        """
        turn = self._enter(visitor, later, case)
        try:
            yield turn
        finally:
            self._leave(turn)

    def wait(self, turn: Turn, seconds: float | None = None) -> bool:
        """Wait until it is this turn, for a while or for ever; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: turn.runs, seconds)

    def ahead(self, turn: Turn) -> int:
        """Return how many cases have the model before this one; 0 once it has it itself."""
        with self._changed:
            if turn.runs:
                return 0
            own = self._order(turn)
            return sum(other.runs or self._order(other) < own for other in self._turns)

    def waiting(self, turn: Turn, gone: Callable[[], bool]) -> Iterator[int]:
        """Yield how many are ahead as that changes, until it is this turn or ``gone`` is true."""
        told, at = 0, -math.inf
        while not (turn.runs or gone()):
            ahead = self.ahead(turn)
            if ahead not in (told, 0) and time.monotonic() - at >= LINE_SECONDS:
                told, at = ahead, time.monotonic()
                yield ahead
            self.wait(turn, POLL_SECONDS)

    def others(self, turn: Turn) -> list[Turn]:
        """Return who waits for answers: the next turn of each other visitor, in their order."""
        with self._changed:
            first: dict[Hashable, Turn] = {}
            for other in sorted(self._turns, key=self._order):
                if not (other.runs or other.later or other.visitor == turn.visitor):
                    first.setdefault(other.visitor, other)
            return list(first.values())

    def call(self, turn: Turn, shares: Mapping[Turn, object]) -> None:
        """Share a turn with those of ``shares`` who still wait; the next comes after all of them.

        Each finds its own object as ``share``.
        """
        with self._changed:
            called = [other for other in shares if other in self._turns and not other.runs]
            for other in called:
                other.runs, other.began, other.share = True, time.monotonic(), shares[other]
            for one in (turn, *called):
                one.sharing = 1 + len(called)
            self._changed.notify_all()

    def work(self, work: Callable[[], Result]) -> Result:
        """Do a turn's work in the room's thread, and return or raise what comes of it.

        The caller's context goes with it: by it, ZeroGPU knows who asks.
        """
        return self._thread.submit(copy_context().run, work).result()

    def steps(self, steps: Generator[Step, None, Result]) -> Generator[Step, None, Result]:
        """Yield a turn's steps, each of them worked out in the room's thread."""
        try:
            while True:
                try:
                    step = self.work(lambda: next(steps))
                except StopIteration as ended:
                    result: Result = ended.value
                    return result
                yield step
        finally:
            steps.close()

    def _enter(self, visitor: Hashable, later: bool, case: object) -> Turn:
        with self._changed:
            own = sum(turn.visitor == visitor for turn in self._turns)
            if not later and max(own - self._own, len(self._turns) - self._places) >= 0:
                whose = f"{own} of your questions" if own >= self._own else "Many questions"
                raise RoomFullError(
                    f"{whose} wait already, and yours was not taken. "
                    f"Ask again in {in_words(self._seconds_left())}."
                )
            turn = Turn(visitor, next(self._count), later, case)
            self._turns.append(turn)
            self._call_next()
            return turn

    def _leave(self, turn: Turn) -> None:
        with self._changed:
            self._turns.remove(turn)
            turn.case = turn.share = None
            if turn.runs:
                seconds = (time.monotonic() - turn.began) / turn.sharing
                self._seconds[turn.later].append(seconds)
            if not any(other.visitor == turn.visitor for other in self._turns):
                self._last.pop(turn.visitor, None)
            elif turn.runs:
                self._last[turn.visitor] = next(self._count)
            self._call_next()

    def _call_next(self) -> None:
        """Give the model to who is first, if nobody has it."""
        if not self._turns or any(turn.runs for turn in self._turns):
            return
        first = min(self._turns, key=self._order)
        first.runs, first.began = True, time.monotonic()
        self._changed.notify_all()

    def _order(self, turn: Turn) -> tuple[bool, int, int]:
        """Return by what turns are sorted: who had a turn since then stands behind others."""
        return turn.later, max(turn.number, self._last.get(turn.visitor, 0)), turn.number

    def _seconds_left(self) -> float:
        """Return how long all who are here still take, from past turns; NaN if there are none."""
        mean = {later: statistics.fmean(past or [0.0]) for later, past in self._seconds.items()}
        if not self._seconds[False]:
            return math.nan
        return sum(mean[True] + (not turn.later) * mean[False] for turn in self._turns)


def in_words(seconds: float) -> str:
    """Return a time to come back, rounded up; NaN is unknown."""
    if math.isnan(seconds):
        return "a minute"
    if seconds <= 55:
        return f"about {max(1, math.ceil(seconds / 5)) * 5} seconds"
    minutes = math.ceil(seconds / 60)
    return f"about {minutes} minute{'s' * (minutes > 1)}"


def step_by_step(
    room: Room, visitor: Hashable, steps: Iterator[Step], line: Callable[[int], Step]
) -> Iterator[Step]:
    """Yield long work's steps, each in a turn of its own, so that others' answers come between.

    Before the first one, ``line`` says how many are ahead.
    """
    begun = False
    while True:
        with room.turn(visitor, later=True) as turn:
            for ahead in room.waiting(turn, lambda: False):
                if not begun:
                    yield line(ahead)
            try:
                step = room.work(lambda: next(steps))
            except StopIteration:
                return
        begun = True
        yield step
