"""What each control of the page does, without gradio: inputs in, new contents out.

Every action takes its inputs as if they came from a stranger, since in gradio they may.
An action returns (or yields) an update: a mapping from the name of a part of the page to
its new content. It keeps nothing: what one visit holds is handed in and handed back.
Nothing about a case is logged.

The engine (torch and the model) is imported inside the functions that need it, so that
the page is served while it loads.
"""

from __future__ import annotations

import base64
import gzip
import json
import logging
import math
import random
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from app import cards, plots, viewer
from app.about import About
from app.pictures import (
    data_url,
    file_url,
    heat_pixels,
    overlay_html,
    patches_on_picture,
    shrink,
)
from mrrag.errors import CorpusError, ImageError, MRRAGError, SettingsError
from mrrag.images import MAX_BYTES, read_image, thumbnail
from mrrag.types import METHODS, AttentionTrace, FloatArray, Image, Query, Weights

if TYPE_CHECKING:
    from mrrag.pipeline import CaseResult, Evidence, Kept, Pipeline, Progress, Settings

logger = logging.getLogger(__name__)

Update = dict[str, Any]
# As mrrag.pipeline.answer.
Answering = Callable[..., "Iterator[Progress | CaseResult]"]

MAX_K = 16
MAX_STRENGTH = 4.0
WEIGHT_STEP = 0.01
MAX_QUESTION_CHARACTERS = 1000
MAX_UPLOAD_BYTES = MAX_BYTES
MAX_MOMENT = 1e12  # ms, thirty years after the page was opened
# Faster than this no one reads, and each update costs the browser a redraw.
SECONDS_BETWEEN_UPDATES = 0.04
# Seven billion parameters come from a slow disk in minutes.
LOADING_SECONDS = 600.0
OVERLAY_PX = 512
COMPARE_PX = 768
MEAN_OF_HEADS = "Mean"
AS_IT_RAN, SAME_STATES = STATES = ("As it ran", "Counterfactual: on RAG’s own states")
NO_PREFERENCE = "none"
TINT_OFF, TINT_RAG, TINT_MR_RAG = TINTS = ("Off", "RAG", "MR-RAG")
THUMBNAIL_PX = 96
UPLOADED = "Uploaded picture"
UNEXPECTED = (
    "Something went wrong on our side, and nothing of your case was kept. Try again; if it "
    "happens again with this picture or question, choose another."
)
NO_CASE = "There is no answered case yet. Choose a picture, type a question and press Ask."


@dataclass(frozen=True)
class Sample:
    """A case that ships with the project."""

    title: str
    question: str
    note: str
    noise: int
    image: Image
    thumbnail: str


@dataclass(frozen=True)
class Found:
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
class Reading:
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
class Shown:
    """The case on the page: what the layer and view controls draw from."""

    image: Image
    evidence: Evidence
    result: CaseResult
    reading: Reading = Reading()
    kept: Kept | None = field(
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


def max_weight(about: About) -> float:
    """How far the α, β and γ sliders go: twice the largest learnt weight, at least 1."""
    learnt = (about.weights.alpha, about.weights.beta, about.weights.gamma)
    return float(max(1, math.ceil(2 * max(abs(w) for w in learnt))))


# ---------------------------------------------------------------- the picture


def load_samples(folder: Path) -> tuple[Sample, ...]:
    """Read ``cases.json`` and its pictures; none where there is no such list.

    Raises
    ------
    CorpusError
        Where the list cannot be read, or names a file outside its folder.
    """
    if not (folder / "cases.json").exists():
        return ()
    try:
        entries = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
        samples = []
        for entry in entries:
            path = (folder / entry["file"]).resolve()
            if folder.resolve() not in path.parents:
                raise ValueError(f"{entry['file']} lies outside the folder")
            image = viewer.retained(read_image(path.read_bytes()))
            samples.append(
                Sample(
                    title=str(entry["title"]),
                    question=str(entry["question"]),
                    note=str(entry.get("note", "")),
                    noise=int(entry.get("noise", 0)),
                    image=image,
                    thumbnail=file_url(thumbnail(image, THUMBNAIL_PX)),
                )
            )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CorpusError(
            f"The sample cases cannot be read ({error}). {folder.name}/cases.json is a list of "
            '{"file", "title", "question", "note"}; restore it, or remove the folder.'
        ) from None
    return tuple(samples)


def samples_html(samples: Sequence[Sample], chosen: int | None) -> str:
    """The grid of sample cases."""
    return cards.samples([(s.title, s.thumbnail) for s in samples], chosen)


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


def choose_sample(samples: Sequence[Sample], index: object) -> Update:
    """Put a sample case on the page."""
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(samples):
        return refuse("That sample case does not exist. Choose one of those shown.")
    sample = samples[index]
    return cleared() | {
        "image": sample.image,
        "file": b"",
        "samples": samples_html(samples, index),
        "preview": viewer.details(sample.image, sample.title, sample.note),
        "question": sample.question,
        "noise": sample.noise,
        "status": cards.status("Ready. Press Ask."),
        **viewer.put_up(sample.image, sample.title, frames_kept=False),
    }


def read_upload(samples: Sequence[Sample], data: object) -> Update:
    """Put an uploaded file's picture on the page.

    The bytes are kept only for a file of several frames, and then without who it shows.
    """
    try:
        if not isinstance(data, bytes) or not data:
            raise ImageError("No file came. Choose a DICOM, PNG or JPEG file.")
        image = read_image(data)
        file = viewer.other_frames(data, image)
        return cleared() | {
            "image": viewer.retained(image),
            "file": file,
            "samples": samples_html(samples, None),
            "preview": viewer.details(image, UPLOADED),
            "status": cards.status("Read, and the upload was deleted. Type a question, press Ask."),
            **viewer.put_up(image, UPLOADED, frames_kept=bool(file)),
        }
    except Exception as error:
        refused = refuse(error)
        return cleared() | {
            "image": None,
            "file": b"",
            "film": "",
            "waiting": "",
            "sees": "",
            "samples": samples_html(samples, None),
            "preview": refused["status"],
            "status": cards.status("There is no picture yet."),
        }


def choose_base(about: About) -> Update:
    """Put another knowledge base under the page; nothing that another one gave stays."""
    return cleared() | {
        "facts": cards.base_facts(about),
        "status": cards.status("Another knowledge base was chosen. Press Ask."),
    }


def forgotten() -> Update:
    """The evidence with nothing in it, since what was found is of another knowledge base."""
    return {name: cleared()[name] for name in ("found", "evidence", "stale")}


def of_base(about: About, held: object) -> Any:
    """What a visit holds (Found, Shown) where it is of this knowledge base, else None."""
    return held if getattr(held, "base", None) == about.base.number else None


def choose_frame(image: object, file: object, frame: object) -> Update:
    """Put another frame of the uploaded file on the page; the model then reads that one."""
    try:
        if not isinstance(image, Image) or not isinstance(file, bytes) or not file:
            raise SettingsError("There is no file with several frames. Upload one.")
        number = _whole("The frame", frame, 0, image.frames - 1)
        read = replace(read_image(file, frame=number), sha256=image.sha256)
        return cleared() | {
            "image": viewer.retained(read),
            "preview": viewer.details(read, UPLOADED),
            "status": cards.status(f"Frame {number + 1} of {read.frames}. Press Ask."),
            **viewer.put_up(read, UPLOADED, frames_kept=True),
        }
    except Exception as error:
        return refuse(error)


def model_view(engine: Future[Pipeline], image: object, window: object) -> Update:
    """The square that the model would read now, through the person's window if it is ticked."""
    if not isinstance(image, Image):
        return {"sees": ""}
    try:
        pipeline = engine.result(timeout=120)
        from mrrag.backbone import model_input

        chosen = viewer.as_chosen(image, window)
        pixels = model_input(pipeline.backbone, chosen)
        return {"sees": viewer.model_view(pixels, by_hand=chosen is not image)}
    except Exception as error:
        return refuse(error)


# ---------------------------------------------------------------- settings


def settings_from(
    about: About,
    k: object,
    alpha: object,
    beta: object,
    gamma: object,
    strength: object,
    layers: object,
    noise: object,
    *,
    pinned: tuple[str, ...] = (),
    excluded: tuple[str, ...] = (),
) -> Settings:
    """The controls' values as settings; what stands as learnt is left to the pipeline.

    ``pinned`` and ``excluded`` come from the visit's own state and are taken as they are.

    Raises
    ------
    SettingsError
        Where a value is not what its control can give.
    """
    from mrrag.pipeline import Settings

    limit = max_weight(about)
    whole_k = _whole("The number of reports", k, 1, MAX_K)
    learnt = about.weights
    weights = Weights(
        _real("α", alpha, -limit, limit),
        _real("β", beta, -limit, limit),
        _real("γ", gamma, -limit, limit),
    )
    if not isinstance(layers, list | tuple):
        raise SettingsError("The layers are not a list. Choose them from those shown.")
    numbers = sorted({_whole("A layer", _digits(v), 0, about.layers - 1) for v in layers})
    return Settings(
        k=whole_k,
        # A slider rounds what was learnt to its step; where it was not moved, use the real value.
        weights=None if _as_learnt(weights, learnt) else weights,
        strength=_real("The IFA strength", strength, 0.0, MAX_STRENGTH),
        layers=tuple(numbers),
        noise=_whole("The number of irrelevant reports", noise, 0, whole_k),
        pinned=pinned,
        excluded=excluded,
    )


def _as_learnt(weights: Weights, learnt: Weights) -> bool:
    pairs = (
        (weights.alpha, learnt.alpha),
        (weights.beta, learnt.beta),
        (weights.gamma, learnt.gamma),
    )
    return all(abs(given - known) <= 0.51 * WEIGHT_STEP for given, known in pairs)


def _digits(value: object) -> object:
    """A checkbox says its layer in words."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def _real(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise SettingsError(f"{name} must be a number from {low:g} to {high:g}.")
    return float(value)


def _whole(name: str, value: object, low: int, high: int) -> int:
    number = _real(name, value, low, high)
    if number != int(number):
        raise SettingsError(f"{name} must be a whole number from {low} to {high}.")
    return int(number)


# ---------------------------------------------------------------- asking


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
        reading = Reading(reader_first is True, blind is True, order)
        kept = shown.kept if isinstance(shown, Shown) else None
        yield from _answer(
            engine.result(), about, visit, moment, image, question, settings, reading, kept, answer
        )
    except Exception as error:
        yield refuse(error)


def _choices(found: object, image: Image) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What was pinned and excluded by hand for this picture."""
    if not isinstance(found, Found):
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
    reading: Reading,
    kept: Kept | None,
    answer: Answering | None,
) -> Iterator[Update]:
    from mrrag import pipeline as mrrag

    def overtaken() -> bool:
        return visit.newest > moment

    clicked = time.perf_counter()
    query = Query(image, question)
    evidence = mrrag.find_evidence(pipeline, query, settings)
    if overtaken():
        yield {"status": overtaken_status(visit)}
        return
    found = Found(image, question, evidence, settings, about.base.number)
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
        steps = (answer or mrrag.answer)(
            pipeline, query, evidence, settings, kept=kept, cancelled=overtaken
        )
        for step in steps:
            if isinstance(step, mrrag.Progress):
                texts = {} if reading.waits_for else step.texts
                if time.perf_counter() - last >= SECONDS_BETWEEN_UPDATES and not overtaken():
                    last = time.perf_counter()
                    yield {"answers": _so_far(question, step.texts, evidence.warnings, reading)}
            elif not overtaken():
                taken = time.perf_counter() - clicked
                case, number = replace(step, kept=None), about.base.number
                shown = Shown(image, evidence, case, reading, step.kept, number)
                yield {
                    "shown": shown,
                    "status": cards.status("Weighing each report", kind="busy"),
                } | present(about, shown)
                if not overtaken():
                    shown = replace(shown, result=mrrag.explain(pipeline, query, shown.result))
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
    question: str, texts: dict[str, str], warnings: Mapping[str, str], reading: Reading
) -> str:
    """The answers while they come; none of them where the reader is to come first."""
    if reading.waits_for == "impression":
        return cards.waiting(question)
    if reading.waits_for:
        return cards.empty("The answers come together, once all three are there.")
    return cards.answer_columns(question, texts, warnings=warnings)


def present(about: About, shown: Shown) -> Update:
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
    if not isinstance(shown, Shown) or shown.reading.waits_for != "impression":
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
    if not isinstance(shown, Shown) or shown.reading.waits_for != "vote":
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


def remember(shown: Shown) -> Update:
    """What the browser's tab keeps of a case; nothing before the reader may see it all."""
    if shown.reading.waits_for:
        return {}
    result = shown.result
    entry = {
        "question": result.question,
        "answers": {method: result.answers[method].text for method in METHODS},
        "reports": [r.document.id for r in result.retrieved],
        "reading": reading_values(shown.reading),
    }
    return {"history": json.dumps(entry | {"nonce": random.random()})}


def reading_values(reading: Reading) -> dict[str, Any]:
    """How the answers were read, for an export."""
    return {
        "reader_first": reading.reader_first,
        "impression": reading.impression,
        "blind": reading.blind,
        "order": [METHODS[i] for i in reading.order] if reading.blind else None,
        "vote": reading.vote or None,
    }


def save(engine: Future[Pipeline], shown: object, kind: str, pixels: object) -> Update:
    """A finished case as a file that the browser writes; nothing touches this machine's disk."""
    if not isinstance(shown, Shown):
        return refuse(NO_CASE)
    if shown.reading.waits_for:
        return refuse(f"Your {shown.reading.waits_for} comes first; then the case can be saved.")
    try:
        from app.report import case_to_html
        from mrrag.export import case_to_json

        exported = case_to_json(shown.result, shown.image)
        exported["reading"] = reading_values(shown.reading)
        if kind == "json":
            content = json.dumps(exported, ensure_ascii=False, indent=1)
        else:
            base = engine.result(timeout=120).knowledge_base
            pictures = (shown.image, base) if pixels is True else None
            content = case_to_html(shown.result, exported, pictures)
        packed = base64.b64encode(gzip.compress(content.encode("utf-8"), 3)).decode("ascii")
        file = {
            "name": f"mr-rag-case.{kind}",
            "type": "application/json" if kind == "json" else "text/html",
            "gzip": packed,
            "nonce": random.random(),
        }
        return {
            "file_out": json.dumps(file),
            "status": cards.status(f"Saved as {file['name']} by your browser.", kind="done"),
        }
    except Exception as error:
        return refuse(error)


# ---------------------------------------------------------------- the evidence, live


def rerank(
    engine: Future[Pipeline],
    about: About,
    found: object,
    shown: object,
    tint: object,
    layer: object,
    controls: Sequence[object],
    deed: object = None,
) -> Update:
    """Rank again by the controls as they stand; the model is not touched.

    ``deed`` is what was done to one report, ``{"do": ..., "id": ...}``: it is pinned,
    unpinned, excluded or restored first.
    """
    if not isinstance(found, Found):  # nothing was asked yet, so nothing is to be ranked
        return {}
    if of_base(about, found) is None:
        return forgotten()
    try:
        from mrrag.pipeline import find_evidence

        pipeline = engine.result(timeout=120)
        pinned, excluded = found.settings.pinned, found.settings.excluded
        if deed is not None:
            pinned, excluded = _done(pipeline, pinned, excluded, deed)
        settings = settings_from(about, *controls, pinned=pinned, excluded=excluded)
        evidence = find_evidence(pipeline, found.query, settings, known=found.evidence)
        found = replace(found, evidence=evidence, settings=settings)
        ready = cards.status("Ranked again, in place.", kind="done")
        return {"found": found, "status": ready} | redraw(engine, about, found, shown, tint, layer)
    except Exception as error:
        return refuse(error)


def _done(
    pipeline: Pipeline, pinned: tuple[str, ...], excluded: tuple[str, ...], deed: object
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The pins and exclusions after one more."""
    does, identifier = (deed.get("do"), deed.get("id")) if isinstance(deed, dict) else (None, None)
    if not isinstance(identifier, str) or not pipeline.knowledge_base.positions(ids={identifier}):
        raise SettingsError("The knowledge base has no such report. Choose one of those shown.")
    rest = tuple(i for i in pinned if i != identifier)
    left = tuple(i for i in excluded if i != identifier)
    if does == "pin":
        return (*rest, identifier), left
    if does == "exclude":
        return rest, (*left, identifier)
    if does in ("unpin", "restore"):
        return rest, left
    raise SettingsError("A report can be pinned, unpinned, excluded or restored.")


def redraw(
    engine: Future[Pipeline],
    about: About,
    found: object,
    shown: object,
    tint: object,
    layer: object,
) -> Update:
    """Draw the evidence that is there, and say whether the answers still belong to it."""
    if not isinstance(found, Found):
        return {}
    if of_base(about, found) is None:
        return forgotten()
    try:
        if tint not in TINTS:
            raise SettingsError("That tint does not exist. Choose one of those shown.")
        wanted = _whole("The layer", layer, 0, about.layers - 1)
        case = of_base(about, shown) if isinstance(shown, Shown) else None
        reasons = changes(about, found, case)
        fresh = case if case and not reasons and not case.reading.waits_for else None
        pipeline = engine.result(timeout=120)
        return {
            "evidence": evidence_html(pipeline, found, fresh, str(tint), wanted),
            "stale": cards.stale(reasons),
        }
    except Exception as error:
        return refuse(error)


def changes(about: About, found: Found, shown: Shown | None) -> list[str]:
    """In what the evidence and settings differ from those the answers were given to."""
    if shown is None:
        return []
    now, then = found.settings, shown.result.settings
    read = [(r.document.id, r.relevance) for r in found.evidence.retrieved]
    answered = [(r.document.id, r.relevance) for r in shown.result.retrieved]
    reasons = []
    if [i for i, _ in read] != [i for i, _ in answered]:
        reasons.append("the reports have changed")
    elif read != answered:
        reasons.append("the reports’ λ have changed")
    if (now.strength, now.layers) != (then.strength, then.layers):
        reasons.append("IFA’s settings have changed")
    return reasons


def evidence_html(
    pipeline: Pipeline, found: Found, shown: Shown | None, tint: str, layer: int
) -> str:
    """The evidence cards; ``shown`` is given where its answers belong to this evidence."""
    evidence, settings = found.evidence, found.settings
    base = pipeline.knowledge_base
    learnt = learnt_ranks(pipeline, found) if settings.weights is not None else None
    influence = shown.result.influence if shown else None
    tokens = report_tints(pipeline, shown, tint, layer) if shown else None
    items = [
        cards.Card(
            item=item,
            thumbnail=file_url(base.thumbnail(base.positions(ids={item.document.id})[0])),
            percentile=evidence.percentiles[n],
            learnt_rank=None if learnt is None else learnt.get(item.document.id, 0),
            pinned=item.document.id in settings.pinned,
            word=influence.word if influence else "",
            influence=(influence.before[n], influence.after[n]) if influence else None,
            tokens=tokens[n] if tokens else None,
        )
        for n, item in enumerate(evidence.retrieved)
    ]
    return cards.evidence(
        items,
        found.question,
        evidence.weights,
        evidence.notes,
        evidence.seconds,
        evidence.warnings,
        settings.excluded,
    )


def learnt_ranks(pipeline: Pipeline, found: Found) -> dict[str, int]:
    """Rank of each document with the learnt weights, as deep as is ranked at all."""
    from mrrag.pipeline import find_evidence
    from mrrag.retrieval import MAX_K as DEEPEST

    excluded = found.settings.excluded
    deep = min(DEEPEST, len(pipeline.knowledge_base) - len(excluded))
    settings = replace(found.settings, weights=None, noise=0, pinned=(), k=deep)
    learnt = find_evidence(pipeline, found.query, settings, known=found.evidence)
    return {r.document.id: r.rank for r in learnt.retrieved}


def report_tints(
    pipeline: Pipeline, shown: Shown, tint: str, layer: int
) -> list[cards.Tokens] | None:
    """Each report's tokens with one layer's attention, on one scale for all and both runs."""
    traces = {TINT_RAG: shown.result.before, TINT_MR_RAG: shown.result.after}
    trace = traces.get(tint)
    if trace is None:
        return None
    from mrrag.pipeline import report_places

    names = {f"report {r.rank}": r.document.report for r in shown.result.retrieved}
    spans = [s for s in trace.spans if s.name in names]
    top = max(
        (
            float(t.keys_LX[layer, s.start : s.stop].max(initial=0.0))
            for t in traces.values()
            if t is not None
            for s in spans
        ),
        default=0.0,
    )
    tints: list[cards.Tokens] = []
    for span in spans:
        words, places = report_places(pipeline, names[span.name])
        share = trace.keys_LX[layer, span.start : span.stop] / (top or 1.0)
        # A report that was cut for the model has more tokens than were read.
        tints.append((words, places[: len(share)], share.tolist()))
    return tints


def settings_line(about: About, result: CaseResult) -> str:
    """The settings of a result in one line, so that it can be read on its own."""
    settings = result.settings
    layers = about.critical if settings.layers is None else settings.layers
    strength = about.strength if settings.strength is None else settings.strength
    random = f", {settings.noise} of them drawn at random" if settings.noise else ""
    where = ", ".join(map(str, layers)) or "none"
    return (
        f"{settings.k} reports{random}; IFA strength {strength:g} in layers {where}; "
        f"{result.versions.get('model', about.model)}"
    )


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


# ---------------------------------------------------------------- attention


def attention(shown: Shown, about: About) -> Update:
    """The attention section of a finished case, or none where the model was not asked."""
    result = shown.result
    if result.before is None or result.after is None:
        return {"attention": cards.empty("The model was not asked, so there is no attention.")}
    critical = result.after.layers or about.critical
    layer = critical[len(critical) // 2] if critical else about.layers // 2
    return (
        {
            "attention": "",
            "layer": layer,
            "view": plots.REPORTS,
            "head": MEAN_OF_HEADS,
            "states": AS_IT_RAN,
        }
        | heatmaps(shown, plots.REPORTS, MEAN_OF_HEADS, layer, AS_IT_RAN)
        | overlay(shown, layer)
    )


def heads(about: About) -> list[str]:
    """The choices of the heads' control."""
    return [MEAN_OF_HEADS, *map(str, range(about.heads))]


def _head(trace: AttentionTrace, head: object) -> int | None:
    if head == MEAN_OF_HEADS:
        return None
    return _whole("The head", _digits(head), 0, trace.mass_LHS.shape[1] - 1)


def heatmaps(shown: object, view: object, head: object, layer: object, states: object) -> Update:
    """The three heatmaps of a view, and the lines of both runs.

    ``states`` says whether the second map is MR-RAG as it ran, or IFA's transform on
    plain RAG's own states.
    """
    if not isinstance(shown, Shown) or shown.result.before is None or shown.result.after is None:
        return refuse(NO_CASE)
    if view not in plots.VIEWS:
        return refuse("That view does not exist. Choose one of those shown.")
    if states not in STATES:
        return refuse("Those states do not exist. Choose one of those shown.")
    traces = (shown.result.before, shown.result.after)
    if states == SAME_STATES:
        if shown.result.same_state is None:
            return refuse("That map is still on its way. Try again in a moment.")
        traces = (shown.result.before, shown.result.same_state)
    try:
        wanted = _head(traces[0], head)
    except SettingsError as error:
        return refuse(error)
    maps = plots.attention_maps(*traces, str(view), wanted)
    if maps is None:
        return refuse("This case has no reports to show attention on.")
    title = "After: MR-RAG" if states == AS_IT_RAN else "IFA on RAG’s own states"
    before, after, difference = plots.heatmaps(maps, title)
    return {
        "before": before,
        "after": after,
        "difference": difference,
        "reading": cards.extremes(plots.summary(maps)),
    } | lines(shown, head, layer)


def lines(shown: object, head: object, layer: object) -> Update:
    """Reports→Question mass by layer, with the chosen layer marked."""
    if not isinstance(shown, Shown) or shown.result.before is None or shown.result.after is None:
        return refuse(NO_CASE)
    traces = (shown.result.before, shown.result.after)
    try:
        marked = _whole("The layer", layer, 0, len(traces[0].keys_LX) - 1)
        return {"lines": plots.report_lines(*traces, marked, _head(traces[0], head))}
    except SettingsError as error:
        return refuse(error)


def overlay(shown: object, layer: object) -> Update:
    """A layer's question→image attention over the X-ray, before and after."""
    if not isinstance(shown, Shown) or shown.result.before is None or shown.result.after is None:
        return refuse(NO_CASE)
    traces = (shown.result.before, shown.result.after)
    try:
        wanted = _whole("The layer", layer, 0, len(traces[0].keys_LX) - 1)
    except SettingsError as error:
        return refuse(error)
    shape = shown.image.display.shape[:2]
    heats = [patch_attention(trace, wanted) for trace in traces]
    if any(heat.size == 0 for heat in heats):
        return refuse("This case has no picture to show attention on.")
    seen = patches_on_picture(traces[0].grid, *shape)
    top = float(max(heat[seen].max() for heat in heats))
    film = data_url(shrink(shown.image.display, OVERLAY_PX), lossless=False)
    before, after = (
        overlay_html(film, shape, heat_pixels(heat, top), f"X-ray with attention {when} IFA")
        for heat, when in zip(heats, ("before", "after"), strict=True)
    )
    return {
        "heat": viewer.heat(heats[0], heats[1], wanted, shape),
        "overlays": cards.overlays(
            wanted,
            wanted in traces[1].layers,
            before,
            after,
            shares=_pair(float(heat.sum()) for heat in heats),
            padding=_pair(float(heat[~seen].sum()) for heat in heats),
            top=top,
        ),
    }


def patch_attention(trace: AttentionTrace, layer: int) -> FloatArray:
    """Attention on each patch in one layer, float32 [rows, columns]; [0, 0] without image."""
    spans = [span for span in trace.spans if span.name == "image"]
    if not spans:
        return np.zeros((0, 0), np.float32)
    values = trace.keys_LX[layer, spans[0].start : spans[0].stop]
    rows, columns = trace.grid
    # A tower that keeps its class token puts it before the patches.
    return values[len(values) - rows * columns :].reshape(rows, columns)


def _pair(values: Iterable[float]) -> tuple[float, float]:
    first, second = values
    return first, second
