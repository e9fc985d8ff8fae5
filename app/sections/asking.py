"""Ask, Stop and the answers section: three answers as they come, and how they are read.

A run is overtaken by a newer press (see :class:`app.sections.visit.Visit`), and then writes no more than
the page needs to be settled.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from app.about import About
from app.sections import viewer
from app.sections.attention import attention
from app.sections.evidence import TINT_OFF, evidence_html
from app.sections.saving import remember
from app.sections.settings import settings_from, settings_line
from app.sections.visit import (
    NO_PREFERENCE,
    CaseState,
    EvidenceState,
    ReaderState,
    Update,
    Visit,
    cleared,
    refuse,
)
from mrrag.case import MAX_QUESTION_CHARACTERS, Progress
from mrrag.errors import SettingsError
from mrrag.report import cards
from mrrag.report.pictures import data_url, shrink
from mrrag.types import METHODS, Image, Query

if TYPE_CHECKING:
    from mrrag.case import Case, CaseCache, Settings
    from mrrag.pipeline import Pipeline

# As mrrag.pipeline.answer.
Answering = Callable[..., "Iterator[Progress | Case]"]
# Faster than this no one reads, and each update costs the browser a redraw.
SECONDS_BETWEEN_UPDATES = 0.04
# Seven billion parameters come from a slow disk in minutes.
LOADING_SECONDS = 600.0
COMPARE_PX = 768


def ask(
    engine: Future[Pipeline],
    about: About,
    visit: Visit,
    asked: object,
    found: object,
    image: object,
    question: object,
    controls: Sequence[object],
    reader_first: object = False,
    blind: object = False,
    window: object = "",
    shown: object = None,
    answer: Answering | None = None,
) -> Iterator[Update]:
    """Evidence first, then three answers as they come, then the attention.

    ``asked`` is the moment of the press (see :class:`Visit`). An overtaken run leaves the
    answers as far as they came. It always yields: of a generator that does not, gradio makes
    an empty page. With ``reader_first`` the answers wait until the reader has typed an
    impression; with ``blind`` they come unlabelled and shuffled, until the reader has voted.
    """
    try:
        moment = visit.press(asked)
        if visit.newest > moment:
            yield {"status": overtaken_status(visit)}
            return
        if not isinstance(image, Image):
            raise SettingsError("There is no picture yet. Upload one, or pick a sample case.")
        if not isinstance(question, str) or not question.strip():
            raise SettingsError("The question is empty. Type a question about the image.")
        if len(question) > MAX_QUESTION_CHARACTERS:
            raise SettingsError(
                f"The question has {len(question)} characters; {MAX_QUESTION_CHARACTERS} are "
                "allowed. Shorten it."
            )
        image = viewer.as_chosen(image, window)
        if not engine.done():
            yield {"status": cards.status("Loading the model", kind="busy")}
        waited = time.monotonic()
        while not engine.done() and visit.newest <= moment:
            if time.monotonic() - waited > LOADING_SECONDS:
                raise SettingsError("The model is still loading. Ask again in a minute.")
            time.sleep(0.05)
        if visit.newest > moment:
            yield {"status": overtaken_status(visit)}
            return
        pinned, excluded = _choices(found, image)
        settings = settings_from(about, *controls, pinned=pinned, excluded=excluded)
        order = tuple(random.SystemRandom().sample(range(len(METHODS)), len(METHODS)))
        reading = ReaderState(reader_first is True, blind is True, order)
        cache = shown.cache if isinstance(shown, CaseState) else None
        yield from _answer(
            engine.result(), about, visit, moment, image, question, settings, reading, cache, answer
        )
    except Exception as error:
        yield refuse(error)


def _choices(found: object, image: Image) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What was pinned and excluded by hand for this picture."""
    if not isinstance(found, EvidenceState):
        return (), ()
    # By what it shows: through another window the same picture is another object.
    if (found.image.sha256, found.image.frame) != (image.sha256, image.frame):
        return (), ()
    return found.settings.pinned, found.settings.excluded


def _answer(
    pipeline: Pipeline,
    about: About,
    visit: Visit,
    moment: float,
    image: Image,
    question: str,
    settings: Settings,
    reading: ReaderState,
    cache: CaseCache | None,
    answer: Answering | None,
) -> Iterator[Update]:
    from mrrag.pipeline import answer as answer_case
    from mrrag.pipeline import explain, find_evidence

    def overtaken() -> bool:
        return visit.newest > moment

    clicked = time.perf_counter()
    query = Query(image, question)
    evidence = find_evidence(pipeline, query, settings)
    if overtaken():
        yield {"status": overtaken_status(visit)}
        return
    found = EvidenceState(image, question, evidence, settings, about.base.number)
    yield cleared() | {
        "found": found,
        "evidence": evidence_html(pipeline, found, None, TINT_OFF, 0),
        "compare": cards.compare(data_url(shrink(image.display, COMPARE_PX), lossless=False)),
        "answers": _so_far(question, {}, evidence.warnings, reading),
        "status": cards.status("Answering, three ways at once", kind="busy"),
    }
    texts: dict[str, str] = {}
    try:
        last = -math.inf
        steps = (answer or answer_case)(
            pipeline, query, evidence, settings, cache=cache, cancelled=overtaken
        )
        for step in steps:
            if isinstance(step, Progress):
                texts = {} if reading.waits_for else step.texts
                if time.perf_counter() - last >= SECONDS_BETWEEN_UPDATES and not overtaken():
                    last = time.perf_counter()
                    yield {"answers": _so_far(question, step.texts, evidence.warnings, reading)}
            elif not overtaken():
                taken = time.perf_counter() - clicked
                case, number = replace(step, cache=None), about.base.number
                shown = CaseState(image, evidence, case, reading, step.cache, number)
                yield {
                    "shown": shown,
                    "status": cards.status("Weighing each report", kind="busy"),
                } | present(about, shown)
                if not overtaken():
                    shown = replace(shown, result=explain(pipeline, query, shown.result, cache=shown.cache))
                yield {
                    "shown": shown,
                    "status": cards.status(f"Done in {taken:.1f} s.", kind="done"),
                } | remember(shown)
                # Only another picture or knowledge base takes back answers that are complete.
                if not (overtaken() and (visit.picture or visit.base)):
                    return
        ended = {"status": cards.status("Stopped. The answers are not complete.")}
    except Exception as error:
        ended = refuse(error)
    if overtaken() and (visit.picture or visit.base):
        yield cleared() | {"status": overtaken_status(visit)}
    else:
        yield ended | {"answers": cards.answer_columns(question, texts, stopped=True)}


def _so_far(
    question: str, texts: dict[str, str], warnings: Mapping[str, str], reading: ReaderState
) -> str:
    """The answers while they come; none of them where the reader is to come first."""
    if reading.waits_for == "impression":
        return cards.waiting(question)
    if reading.waits_for:
        return cards.empty("The answers come together, once all three are there.")
    return cards.answer_columns(question, texts, warnings=warnings)


def present(about: About, shown: CaseState) -> Update:
    """The answers and their attention, as far as the reader may see them by now."""
    result, reading = shown.result, shown.reading
    doubt = cards.meaningless(result.warnings)
    hidden = {"attention": cards.empty("Shown with the labelled answers.")}
    if reading.waits_for == "impression":
        return {"answers": doubt + cards.waiting(result.question)} | hidden
    if reading.waits_for == "vote":
        texts = [result.answers[METHODS[i]].text for i in reading.order]
        return {"answers": doubt + cards.blind_columns(result.question, texts)} | hidden
    columns = cards.answer_columns(
        result.question,
        {},
        result.answers,
        result.notes,
        settings_line(about, result),
        warnings=result.warnings,
    )
    letters = {METHODS[i]: cards.LETTERS[n] for n, i in enumerate(reading.order)}
    read = cards.reading_line(reading.impression, reading.vote, letters if reading.blind else {})
    return {"answers": read + columns} | attention(shown, about)


def impression(about: About, shown: object, words: object) -> Update:
    """Keep the reader's own impression, and show the answers."""
    if not isinstance(shown, CaseState) or shown.reading.waits_for != "impression":
        return refuse("No answers are waiting for your impression.")
    if not isinstance(words, str) or not words.strip():
        return refuse("Type your impression first; a word will do.")
    if len(words) > MAX_QUESTION_CHARACTERS:
        return refuse(f"The impression is too long; {MAX_QUESTION_CHARACTERS} characters fit.")
    read = replace(shown, reading=replace(shown.reading, impression=words.strip()))
    told = {"shown": read, "status": cards.status("Your impression is noted.", kind="done")}
    return told | present(about, read) | remember(read)


def vote(about: About, shown: object, choice: object) -> Update:
    """Keep the reader's vote, and say which answer is whose."""
    if not isinstance(shown, CaseState) or shown.reading.waits_for != "vote":
        return refuse("No answers are waiting for your vote.")
    if choice not in (*cards.LETTERS, NO_PREFERENCE):
        return refuse("That answer cannot be voted for. Choose one of those shown.")
    method = (
        NO_PREFERENCE
        if choice == NO_PREFERENCE
        else METHODS[shown.reading.order[cards.LETTERS.index(str(choice))]]
    )
    read = replace(shown, reading=replace(shown.reading, vote=method))
    told = {"shown": read, "status": cards.status("Your vote is noted.", kind="done")}
    return told | present(about, read) | remember(read)


def stop(visit: Visit, moment: object) -> Update:
    """End what was asked before ``moment``; a run that has begun says how far it came."""
    visit.press(moment)
    return {"status": overtaken_status(visit)}


def overtaken_status(visit: Visit) -> str:
    """The status line of a question that was overtaken before its answers began."""
    if visit.picture:
        return cards.status("Another picture was chosen. Press Ask.")
    if visit.base:
        return cards.status("Another knowledge base was chosen. Press Ask.")
    return cards.status("Stopped. Nothing is being answered.")
