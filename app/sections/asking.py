"""Ask, Stop and the answers section: three answers as they come, and how they are read.

A later press supersedes a run (see :class:`app.sections.visit.Visit`), which then only writes
what leaves the page settled.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from app import frame
from app.about import About
from app.backend import Backend
from app.joining import Share, answers, join
from app.sections import viewer
from app.sections.attention import attention
from app.sections.evidence import TINT_OFF, evidence_html
from app.sections.saving import remember
from app.sections.settings import Controls, settings_from, settings_line
from app.sections.visit import (
    CHOSEN,
    NO_PREFERENCE,
    CaseState,
    EvidenceState,
    ReaderState,
    Update,
    Visit,
    cleared,
    of_base,
    refuse,
)
from app.waiting import Room, Turn
from mrrag.case import MAX_QUESTION_CHARACTERS, Case, CaseCache, Evidence, Progress, Settings
from mrrag.errors import SettingsError
from mrrag.report import answer_cards, cards
from mrrag.report.pictures import data_url, shrink
from mrrag.types import METHODS, Image, Query

# Nobody reads faster than this, and each update costs the browser a redraw.
SECONDS_BETWEEN_UPDATES = 0.04
# Seven billion parameters take minutes to read from a slow disk.
LOADING_SECONDS = 600.0
STILL_LOADING = "The model is still loading. Ask again in a minute."
COMPARE_PX = 768


class AskInputs(NamedTuple):
    """What goes with a press of Ask: components in the layout, unchecked values in an action.

    ``window`` is last: a script reads it from the viewer (see ``static/read_view.js``).
    """

    evidence_state: Any
    case_state: Any
    image: Any
    question: Any
    reader_first: Any = False
    blind: Any = False
    window: Any = ""


@dataclass(frozen=True)
class Run:
    """One press of Ask, checked; ``case`` is the one answered before, if any."""

    backend: Backend
    visit: Visit
    moment: float
    image: Image
    question: str
    settings: Settings
    reading: ReaderState
    case: CaseState | None

    @property
    def query(self) -> Query:
        """The question and its picture."""
        return Query(self.image, self.question)

    @property
    def cache(self) -> CaseCache | None:
        """What the model read for the case before."""
        return self.case.cache if self.case else None

    @property
    def superseded(self) -> bool:
        """Whether there was a later press."""
        return self.visit.newest > self.moment


def ask(
    backend: Backend,
    room: Room,
    visit: Visit,
    pressed: object,
    inputs: AskInputs,
    controls: Controls,
) -> Iterator[Update]:
    """Yield the evidence first, then three answers as they come, then the attention.

    A superseded run leaves the answers as far as they came. It always yields: gradio makes an
    empty page of a generator that does not.

    Parameters
    ----------
    room
        Where the run waits for its turn. What it writes of a case, it writes in a turn.
    pressed
        The moment of the press; see :class:`Visit`.
    inputs
        With ``reader_first`` the answers wait until the reader has typed an impression; with
        ``blind`` they come unlabelled and shuffled, until the reader has voted.
    """
    try:
        moment = visit.press(pressed)
        if visit.newest > moment:
            yield {"status": superseded_status(visit)}
            return
        run = _checked(backend, visit, moment, inputs, controls)
        with room.turn(id(visit), case=run) as turn:
            for ahead in room.waiting(turn, lambda: run.superseded):
                yield {"status": frame.queue_line(ahead)}
            if not turn.runs:
                yield {}  # what superseded it has said so, or answers by now
                return
            if not backend.loading.done():
                yield {"status": frame.status("Loading the model", kind="busy")}
                _wait_for_model(run)
            if run.superseded:
                yield {"status": superseded_status(visit)}
                return
            state = yield from room.steps(_answer(run, room, turn))
        if state is not None:
            yield from _explained(run, room, state)
    except Exception as error:
        yield refuse(error)


def _checked(
    backend: Backend, visit: Visit, moment: float, inputs: AskInputs, controls: Controls
) -> Run:
    """Return a press of Ask, checked.

    Raises
    ------
    SettingsError, ImageError
        If it cannot be asked.
    """
    image, question = _image_and_question(inputs)
    about = backend.about
    pinned, excluded = _choices(about, inputs.evidence_state, image)
    order = tuple(random.SystemRandom().sample(range(len(METHODS)), len(METHODS)))
    return Run(
        backend=backend,
        visit=visit,
        moment=moment,
        image=image,
        question=question,
        settings=settings_from(about, controls, pinned=pinned, excluded=excluded),
        reading=ReaderState(inputs.reader_first is True, inputs.blind is True, order),
        case=of_base(about, inputs.case_state, CaseState),
    )


def _image_and_question(inputs: AskInputs) -> tuple[Image, str]:
    """Return the checked picture, as the model is to read it, and the question.

    Raises
    ------
    SettingsError, ImageError
        If there is no picture or question, or the picture cannot be read through the window.
    """
    if not isinstance(inputs.image, Image):
        raise SettingsError("There is no picture yet. Upload one, or choose a sample case.")
    question = checked_question(inputs.question)
    return viewer.through_window(inputs.image, inputs.window), question


def checked_question(question: object) -> str:
    """Return the question if it is one.

    Raises
    ------
    SettingsError
        If it is empty, too long, or no text.
    """
    if not isinstance(question, str) or not question.strip():
        raise SettingsError("The question is empty. Type a question about the picture.")
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise SettingsError(
            f"The question has {len(question)} characters; {MAX_QUESTION_CHARACTERS} are "
            "allowed. Shorten it."
        )
    return question


def _wait_for_model(run: Run) -> None:
    """Wait until the model is loaded or a later press supersedes this one.

    Raises
    ------
    SettingsError
        If it takes longer than ``LOADING_SECONDS``.
    """
    start = time.monotonic()
    while not (run.backend.loading.done() or run.superseded):
        if time.monotonic() - start > LOADING_SECONDS:
            raise SettingsError(STILL_LOADING)
        time.sleep(0.05)


def _choices(about: About, state: object, image: Image) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the ids that were pinned and excluded by hand for this picture."""
    evidence = of_base(about, state, EvidenceState)
    if evidence is None:
        return (), ()
    # Compared by file and frame: through another window the same picture is another object.
    if (evidence.image.sha256, evidence.image.frame) != (image.sha256, image.frame):
        return (), ()
    return evidence.settings.pinned, evidence.settings.excluded


def _answer(run: Run, room: Room, turn: Turn) -> Generator[Update, None, CaseState | None]:
    """Retrieve, then answer; the last update says how far it came. Return the answered case."""
    from mrrag.evidence import find_evidence

    share: Share | None = turn.share
    if share is not None:
        evidence = share.evidence
    else:
        evidence = find_evidence(run.backend.pipeline(), run.query, run.settings)
    if run.superseded:
        yield {"status": superseded_status(run.visit)}
        return None
    yield _retrieved(run, evidence)
    if share is None:
        share = join(room, turn, run, evidence)
        if share is not None:
            yield {}  # so that those who joined show their evidence before all prompts are read
    texts: dict[str, str] = {}
    try:
        last = -math.inf
        for step in answers(run, evidence, share):
            if isinstance(step, Progress):
                texts = {} if run.reading.waits_for else step.texts
                if time.perf_counter() - last >= SECONDS_BETWEEN_UPDATES and not run.superseded:
                    last = time.perf_counter()
                    yield {"answer_columns": _so_far(run, step.texts, evidence)}
            elif not run.superseded:
                state = _state_of(run, evidence, step)
                yield _answered(run, state)
                # Only another picture or knowledge base takes complete answers away.
                if not (run.superseded and run.visit.cleared):
                    return state
        ended: Update = {"status": frame.status("Stopped. The answers are not complete.")}
    except Exception as error:
        ended = refuse(error)
    if run.superseded and run.visit.cleared:
        yield _taken_away(run)
    else:
        columns = answer_cards.answer_columns(
            run.question, texts, stopped=True, warnings=evidence.warnings, votes=evidence.votes
        )
        yield {**ended, "answer_columns": columns}
    return None


def _taken_away(run: Run) -> Update:
    """Return the page of a run whose picture or knowledge base is no longer the chosen one."""
    gone: Update = {"status": superseded_status(run.visit)}
    return cleared() | gone


def _retrieved(run: Run, evidence: Evidence) -> Update:
    """Return the page once the reports are retrieved and nothing is answered."""
    base = run.backend.about.base.number
    state = EvidenceState(run.image, run.question, evidence, run.settings, base)
    update: Update = {
        "evidence_state": state,
        "evidence_cards": evidence_html(run.backend.pipeline(), state, None, TINT_OFF, 0),
        "compare": frame.compare(data_url(shrink(run.image.display, COMPARE_PX), lossless=False)),
        "answer_columns": _so_far(run, {}, evidence),
        "status": frame.status("Answering, three ways at once", kind="busy"),
    }
    return cleared() | update


def _state_of(run: Run, evidence: Evidence, case: Case) -> CaseState:
    """Return what is kept of an answered case."""
    return CaseState(
        image=run.image,
        evidence=evidence,
        result=replace(case, cache=None),
        reading=run.reading,
        cache=case.cache,
        base=run.backend.about.base.number,
    )


def _answered(run: Run, state: CaseState) -> Update:
    """Return the page with the complete answers."""
    answered: Update = {
        "case_state": state,
        "status": frame.status("Measuring what each report adds", kind="busy"),
    }
    return answered | present(run.backend.about, state)


def _explained(run: Run, room: Room, state: CaseState) -> Iterator[Update]:
    """Yield the answered case with what each report did to it, after those who wait for answers."""
    with room.turn(id(run.visit), later=True) as turn:
        for _ in room.waiting(turn, lambda: run.superseded):
            pass
        if not run.superseded:
            work = partial(
                run.backend.explain,
                run.backend.pipeline(),
                run.query,
                state.result,
                cache=state.cache,
                vectors=state.evidence.vectors,
            )
            state = replace(state, result=room.work(work))
        elif not turn.runs:  # a later run may be writing its answers
            yield remember(state) | (_taken_away(run) if run.visit.cleared else {})
            return
        seconds = sum(state.result.seconds.values())
        done: Update = {
            "case_state": state,
            "status": frame.status(f"Done in {seconds:.1f} s.", kind="done"),
        }
        if state.result.picture and not (state.reading.waits_for or run.superseded):
            done["answer_columns"] = present_answers(run.backend.about, state)
        yield done | remember(state)
        if run.superseded and run.visit.cleared:
            yield _taken_away(run)


def _so_far(run: Run, texts: dict[str, str], evidence: Evidence) -> str:
    """Return the answers while they come; none of them where the reader comes first."""
    if run.reading.waits_for == "impression":
        return answer_cards.waiting(run.question)
    if run.reading.waits_for:
        return frame.empty("The answers appear together, once all three are complete.")
    return answer_cards.answer_columns(
        run.question, texts, warnings=evidence.warnings, votes=evidence.votes
    )


def present(about: About, state: CaseState) -> Update:
    """Return the answers and their attention, as far as the reader may see them by now."""
    result, reading = state.result, state.reading
    doubt = cards.meaningless(result.warnings)
    if reading.waits_for:
        if reading.waits_for == "impression":
            columns = answer_cards.waiting(result.question)
        else:
            texts = [result.answers[METHODS[i]].text for i in reading.order]
            columns = answer_cards.blind_columns(result.question, texts)
        return {
            "answer_columns": doubt + columns,
            "attention_note": frame.empty("Shown with the labelled answers."),
        }
    labelled: Update = {"answer_columns": present_answers(about, state)}
    return labelled | attention(state, about)


def present_answers(about: About, state: CaseState) -> str:
    """Return the labelled answers, with what the picture does to them once it is known."""
    result, reading = state.result, state.reading
    columns = answer_cards.answer_columns(
        result.question,
        {},
        result.answers,
        result.notes,
        settings_line(about, result),
        warnings=result.warnings,
        picture=answer_cards.picture_table(result.picture) if result.picture else "",
        votes=result.votes,
    )
    letters = {METHODS[i]: answer_cards.LETTERS[n] for n, i in enumerate(reading.order)}
    read = answer_cards.reading_line(
        reading.impression, reading.vote, letters if reading.blind else {}
    )
    return read + columns


def impression(about: About, state: object, words: object) -> Update:
    """Record the reader's own impression, and show the answers."""
    case = of_base(about, state, CaseState)
    if case is None or case.reading.waits_for != "impression":
        return refuse("No answers are waiting for your impression.")
    if not isinstance(words, str) or not words.strip():
        return refuse("Type your impression first; one word is enough.")
    if len(words) > MAX_QUESTION_CHARACTERS:
        return refuse(
            f"The impression has {len(words)} characters; {MAX_QUESTION_CHARACTERS} are allowed. "
            "Shorten it."
        )
    reading = replace(case.reading, impression=words.strip())
    return _read(about, replace(case, reading=reading), "Your impression is recorded.")


def vote(about: About, state: object, choice: object) -> Update:
    """Record the reader's vote, and label the answers."""
    case = of_base(about, state, CaseState)
    if case is None or case.reading.waits_for != "vote":
        return refuse("No answers are waiting for your vote.")
    if choice not in (*answer_cards.LETTERS, NO_PREFERENCE):
        return refuse("That answer cannot be voted for. Choose one of those shown.")
    method = (
        NO_PREFERENCE
        if choice == NO_PREFERENCE
        else METHODS[case.reading.order[answer_cards.LETTERS.index(str(choice))]]
    )
    return _read(
        about,
        replace(case, reading=replace(case.reading, vote=method)),
        "Your vote is recorded.",
    )


def _read(about: About, case: CaseState, sentence: str) -> Update:
    """Return the page after the reader's impression or vote."""
    recorded: Update = {"case_state": case, "status": frame.status(sentence, kind="done")}
    return recorded | present(about, case) | remember(case)


def stop(visit: Visit, moment: object) -> Update:
    """Stop what was asked before ``moment``; a run that has begun says how far it came."""
    visit.press(moment, keeps=True)
    return {"status": superseded_status(visit)}


def superseded_status(visit: Visit) -> str:
    """Return the status line of a question that was superseded before its answers began."""
    if visit.picture:
        return frame.status("Another picture was chosen. Press Ask.")
    if visit.base:
        return frame.status(CHOSEN)
    return frame.status("Stopped. Nothing is being answered.")
