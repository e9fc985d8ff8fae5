"""What one visit holds, and what every action says in the same way; without gradio.

An action is what a control of the page does: inputs in, new contents out. It takes its inputs
as if they came from a stranger, since in gradio they may, and returns (or yields) an
:data:`Update`. It keeps nothing: what one visit holds is handed in and handed back. Nothing
about a case is logged. The engine (torch and the model) is imported inside the actions that
need it, so that the page is served while it loads.
"""

from __future__ import annotations

import logging
import math
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.about import About
from mrrag.errors import MRRAGError
from mrrag.report import cards
from mrrag.types import Image, Query

if TYPE_CHECKING:
    from mrrag.case import Case, CaseCache, Evidence, Settings

logger = logging.getLogger(__name__)

Update = dict[str, Any]
MAX_MOMENT = 1e12  # ms, thirty years after the page was opened
NO_PREFERENCE = "none"
UNEXPECTED = (
    "Something went wrong on our side, and nothing of your case was kept. Try again; if it "
    "happens again with this picture or question, choose another."
)
NO_CASE = "There is no answered case yet. Choose a picture, type a question and press Ask."


@dataclass(frozen=True)
class EvidenceState:
    """The evidence on the page, which other weights re-rank without encoding again."""

    image: Image
    question: str
    evidence: Evidence
    settings: Settings
    base: int = 0  # the number of the knowledge base that it is from

    @property
    def query(self) -> Query:
        """What was asked."""
        return Query(self.image, self.question)


@dataclass(frozen=True)
class ReaderState:
    """How a person reads the answers: at once, after an impression, or blind and by vote.

    ``order`` is the order of the three columns while they are blind, as places in
    METHODS. ``vote`` is a method, :data:`NO_PREFERENCE`, or empty.
    """

    reader_first: bool = False
    blind: bool = False
    order: tuple[int, ...] = (0, 1, 2)
    impression: str = ""
    vote: str = ""

    @property
    def waits_for(self) -> str:
        """What must come before the answers are shown in full; empty where nothing must."""
        if self.reader_first and not self.impression:
            return "impression"
        return "vote" if self.blind and not self.vote else ""


@dataclass(frozen=True)
class CaseState:
    """The case on the page: what the layer and view controls draw from."""

    image: Image
    evidence: Evidence
    result: Case
    reading: ReaderState = ReaderState()
    cache: CaseCache | None = field(
        default=None, repr=False
    )  # what the model read, for the next question
    base: int = 0  # as of Found


@dataclass
class Visit:
    """The newest press of a visit, by its page's own clock; the one thing here that changes.

    A press of Ask, of Stop or of another picture or knowledge base overtakes every Ask before
    it, whichever request comes first to the server and whether that Ask runs or still waits.
    So a run alone writes its answers, and its last update leaves the page settled. No case is
    kept here.
    """

    newest: float = -math.inf  # ms
    picture: bool = False  # the newest press put another picture on the page
    base: bool = False  # or another knowledge base under it

    def press(self, moment: object, *, picture: bool = False, base: bool = False) -> float:
        """Note a press at ``moment`` in ms and return it; what is no moment was before all."""
        if isinstance(moment, bool) or not isinstance(moment, int | float) or not moment >= 0:
            return -math.inf
        if moment >= self.newest:
            self.newest = min(float(moment), MAX_MOMENT)
            self.picture, self.base = picture, base
        return float(moment)


def cleared() -> Update:
    """The results' parts with nothing in them, since another picture is on the page."""
    return {
        "shown": None,
        "found": None,
        "stale": "",
        "heat": "",
        "evidence": cards.empty("The most similar reports appear here, before any answer."),
        "answers": cards.empty("Three answers appear here, side by side."),
        "attention": cards.empty("Where the question read from appears here, layer by layer."),
    }


def of_base(about: About, held: object) -> Any:
    """What a visit holds (Found, Shown) where it is of this knowledge base, else None."""
    return held if getattr(held, "base", None) == about.base.number else None


def refuse(error: Exception | str) -> Update:
    """The status line that says why; only errors meant for a person are quoted."""
    if isinstance(error, str):
        sentence = error
    elif isinstance(error, MRRAGError):
        sentence = str(error)
    else:
        # The frames say where it broke; the message might hold something of the case.
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("Unexpected %s\n%s", type(error).__name__, frames)
        sentence = UNEXPECTED
    return {"status": cards.status(sentence, kind="problem")}
