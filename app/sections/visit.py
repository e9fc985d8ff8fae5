"""The state of one visit, and what all actions have in common; without gradio.

An action is what a control of the page does: it takes the control's inputs and returns, or
yields, an :class:`Update` of the page. Inputs are checked as untrusted, since gradio passes on
whatever a client sends. An action keeps nothing: the state of a visit is passed in and returned.
Nothing about a case is logged. The engine (torch and the model) is imported inside the actions
that need it, so that the page is served while it loads.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar

from app import frame
from app.about import About
from mrrag.case import Case, CaseCache, Evidence, Settings
from mrrag.errors import MRRAGError
from mrrag.types import Image, Query

logger = logging.getLogger(__name__)

MAX_MOMENT = 1e12  # ms, thirty years after the page was opened
NO_PREFERENCE = "none"
CHOSEN = "Another model or knowledge base was chosen. Press Ask."
UNEXPECTED = (
    "Something went wrong on the server, and nothing of your case was kept. Try again; if it "
    "happens again with this picture or question, choose another."
)
NO_CASE = "There is no answered case yet. Choose a picture, type a question and press Ask."


@dataclass(frozen=True)
class EvidenceState:
    """The evidence on the page, which other weights re-rank without encoding again.

    ``base`` is the number of the knowledge base that it is from.
    """

    image: Image
    question: str
    evidence: Evidence
    settings: Settings
    base: int = 0

    @property
    def query(self) -> Query:
        """The question and its picture."""
        return Query(self.image, self.question)


@dataclass(frozen=True)
class ReaderState:
    """How the reader sees the answers: at once, after an impression, or blind until a vote.

    ``order`` is the order of the three columns while they are blind, as indices into
    METHODS. ``vote`` is a method, :data:`NO_PREFERENCE`, or empty.
    """

    reader_first: bool = False
    blind: bool = False
    order: tuple[int, ...] = (0, 1, 2)
    impression: str = ""
    vote: str = ""

    @property
    def waits_for(self) -> str:
        """What the reader must give before the answers are shown in full, or empty."""
        if self.reader_first and not self.impression:
            return "impression"
        return "vote" if self.blind and not self.vote else ""


@dataclass(frozen=True)
class CaseState:
    """The answered case on the page, from which the layer and view controls draw.

    ``cache`` is what the model read, for the next question. ``base`` is as of
    :class:`EvidenceState`.
    """

    image: Image
    evidence: Evidence
    result: Case
    reading: ReaderState = ReaderState()
    cache: CaseCache | None = field(default=None, repr=False)
    base: int = 0


@dataclass(frozen=True)
class ArenaState:
    """What a run of the arena found that the cards show.

    Attributes
    ----------
    alone : mapping
        Document id → P(yes) where the model reads its report and no other.
    question, base
        Of the case.
    """

    question: str
    alone: Mapping[str, float]
    base: int = 0


def moment_of(moment: object) -> float:
    """Return the moment of a press in ms; −∞ for what is none."""
    if isinstance(moment, bool) or not isinstance(moment, int | float) or not moment >= 0:
        return -math.inf
    return float(moment)


@dataclass
class Visit:
    """The newest press in a visit, by the clock of its page; the only mutable value here.

    A press of Ask, of Stop or of another picture, model or knowledge base supersedes every earlier
    Ask, whichever request reaches the server first and whether that Ask runs or still waits.
    So one run at a time writes its answers, and its last update leaves the page settled. No
    case is kept here.
    """

    newest: float = -math.inf  # ms
    picture: bool = False  # the newest press chose another picture
    base: bool = False  # or another model or knowledge base
    renewed: float = -math.inf  # the newest press that takes results away: any but Stop
    beside: float = -math.inf  # the newest press in the arena, which supersedes no answers

    def press(
        self, moment: object, *, picture: bool = False, base: bool = False, keeps: bool = False
    ) -> float:
        """Record a press and return its moment in ms; an invalid one counts as −∞.

        ``keeps`` is for Stop, which leaves the results on the page.
        """
        pressed = moment_of(moment)
        if pressed >= self.newest and pressed >= 0:
            self.newest = min(pressed, MAX_MOMENT)
            self.picture, self.base = picture, base
        if not keeps:
            self.renewed = max(self.renewed, min(pressed, MAX_MOMENT))
        return pressed

    def press_beside(self, moment: object) -> float:
        """Record a press in the arena, as :meth:`press` does all others."""
        pressed = moment_of(moment)
        self.beside = max(self.beside, min(pressed, MAX_MOMENT))
        return pressed

    @property
    def cleared(self) -> bool:
        """Whether the newest press cleared the page, by another picture or what answers."""
        return self.picture or self.base


class Update(TypedDict, total=False):
    """New contents of the page's components; each name is a field of :mod:`app.layout`'s parts."""

    # The state of the visit.
    image: Image | None
    multiframe: bytes
    study: Any  # an OpenStudy of app.sections.study, or None
    payload: str
    evidence_state: EvidenceState | None
    case_state: CaseState | None
    # The case.
    header: str
    samples: str
    pictures: str
    viewer: str
    heat: str
    model_view: str
    preview: str
    question: str
    status: str
    noise: int
    # The evidence.
    base_facts: str
    evidence_cards: str
    compare: str
    # The answers.
    stale: str
    answer_columns: str
    # The attention; the maps and the lines are plotly figures.
    attention_note: str
    view: str
    head: str
    states: str
    before: Any
    after: Any
    difference: Any
    extremes: str
    lines: Any
    layer: int
    overlays: str
    # The arena; the curves are plotly figures.
    arena_state: ArenaState | None
    arena_table: str
    strength_curve: Any
    weight_curve: Any
    curve_text: str
    # Saving.
    download: str
    history: str


def cleared() -> Update:
    """Return the results' components without contents, for another picture."""
    return {
        "case_state": None,
        "evidence_state": None,
        "stale": "",
        "heat": "",
        "evidence_cards": frame.empty("The most similar reports appear here, before any answer."),
        "answer_columns": frame.empty("Three answers appear here, side by side."),
        "attention_note": frame.empty("The question’s attention appears here, layer by layer."),
        "arena_state": None,
        "arena_table": "",
        "curve_text": "",
    }


State = TypeVar("State", EvidenceState, CaseState)


def of_base(about: About, state: object, kind: type[State]) -> State | None:
    """Return a visit's state if it is of this kind, model and knowledge base, else None."""
    return state if isinstance(state, kind) and state.base == about.base.number else None


def refuse(error: Exception | str) -> Update:
    """Return the status line with the reason; see :func:`sentence_of`."""
    sentence = error if isinstance(error, str) else sentence_of(error)
    return {"status": frame.status(sentence, kind="problem")}


def sentence_of(error: Exception) -> str:
    """Return the reason in a sentence; only errors meant for a person are quoted."""
    if isinstance(error, MRRAGError):
        return str(error)
    # The frames say where it broke; the message might hold something of the case.
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("Unexpected %s\n%s", type(error).__name__, frames)
    return UNEXPECTED
