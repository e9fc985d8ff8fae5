"""What each control of the page does, without gradio: inputs in, new contents out.

Every action takes its inputs as if they came from a stranger, since in gradio they may.
An action returns (or yields) an update: a mapping from the name of a part of the page to
its new content. It keeps nothing: what one visit holds is handed in and handed back.
Nothing about a case is logged.

The engine (torch and the model) is imported inside the functions that need it, so that
the page is served while it loads.
"""

from __future__ import annotations

import json
import logging
import math
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
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
from mrrag.types import AttentionTrace, FloatArray, Image, Query, Weights

if TYPE_CHECKING:
    from mrrag.pipeline import CaseResult, Evidence, Pipeline, Settings

logger = logging.getLogger(__name__)

Update = dict[str, Any]

MAX_K = 16
MAX_STRENGTH = 4.0
WEIGHT_STEP = 0.01
MAX_QUESTION_CHARACTERS = 1000
MAX_UPLOAD_BYTES = MAX_BYTES
# Faster than this no one reads, and each update costs the browser a redraw.
SECONDS_BETWEEN_UPDATES = 0.04
OVERLAY_PX = 512
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
class Shown:
    """The case on the page: what the layer and view controls draw from."""

    image: Image
    evidence: Evidence
    result: CaseResult


@dataclass
class Draft:
    """The answers so far, so that Stop can show them; the one thing of a visit that changes.

    It is empty unless a case is running or was stopped.
    """

    question: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    stopped: bool = False

    def start(self, question: str = "") -> None:
        """Forget the case before."""
        self.question, self.texts, self.stopped = question, {}, False


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
) -> Settings:
    """The controls' values as settings; what stands as learnt is left to the pipeline.

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
    draft: Draft,
    image: object,
    question: object,
    controls: Sequence[object],
    window: object = "",
) -> Iterator[Update]:
    """Evidence first, then three answers as they come, then the attention."""
    draft.start()
    try:
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
        pipeline = engine.result(timeout=120)
        settings = settings_from(about, *controls)
        for update in _answer(pipeline, about, draft, image, question, settings):
            if draft.stopped:  # what Stop put on the page stays there
                return
            yield update
        draft.start()
    except Exception as error:
        draft.start()
        yield refuse(error)


def _answer(
    pipeline: Pipeline,
    about: About,
    draft: Draft,
    image: Image,
    question: str,
    settings: Settings,
) -> Iterator[Update]:
    from mrrag import pipeline as mrrag

    clicked = time.perf_counter()
    query = Query(image, question)
    draft.start(question)
    evidence = mrrag.find_evidence(pipeline, query, settings)
    yield cleared() | {
        "evidence": evidence_html(pipeline, query, evidence, settings),
        "answers": cards.answer_columns(question, {}),
        "status": cards.status("Answering, three ways at once", kind="busy"),
    }
    last = -math.inf
    for step in mrrag.answer(pipeline, query, evidence, settings, cancelled=lambda: draft.stopped):
        if isinstance(step, mrrag.Progress):
            draft.texts = step.texts
            if time.perf_counter() - last >= SECONDS_BETWEEN_UPDATES:
                last = time.perf_counter()
                yield {"answers": cards.answer_columns(question, step.texts)}
            continue
        shown = Shown(image, evidence, step)
        taken = time.perf_counter() - clicked
        yield {
            "shown": shown,
            "answers": cards.answer_columns(
                question, {}, step.answers, step.notes, settings_line(about, step)
            ),
            "status": cards.status(f"Done in {taken:.1f} s.", kind="done"),
        } | attention(shown, about)


def evidence_html(pipeline: Pipeline, query: Query, evidence: Evidence, settings: Settings) -> str:
    """The evidence cards, with those drawn at random marked as such."""
    from mrrag.pipeline import find_evidence

    knowledge_base = pipeline.knowledge_base
    ids = [r.document.id for r in evidence.retrieved]
    thumbnails = {}
    for identifier in ids:
        position = knowledge_base.positions(ids={identifier})[0]
        thumbnails[identifier] = file_url(knowledge_base.thumbnail(position))
    random_ids: set[str] = set()
    if settings.noise:
        clean = find_evidence(pipeline, query, replace(settings, noise=0), vectors=evidence.vectors)
        random_ids = set(ids) - {r.document.id for r in clean.retrieved}
    return cards.evidence(
        evidence.retrieved,
        thumbnails,
        evidence.weights,
        evidence.notes,
        evidence.seconds,
        random_ids,
    )


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


def stop(draft: object) -> Update:
    """End the running case; the answers stay as far as they came."""
    if not isinstance(draft, Draft) or not draft.question:
        return {"status": cards.status("Stopped. Nothing is being answered.")}
    draft.stopped = True
    return {
        "status": cards.status("Stopped. The answers are not complete."),
        "answers": cards.answer_columns(draft.question, draft.texts, stopped=True),
    }


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
        {"attention": "", "layer": layer, "view": plots.REPORTS}
        | heatmaps(shown, plots.REPORTS)
        | overlay(shown, layer)
    )


def heatmaps(shown: object, view: object) -> Update:
    """The three heatmaps of a view."""
    if not isinstance(shown, Shown) or shown.result.before is None or shown.result.after is None:
        return refuse(NO_CASE)
    if view not in plots.VIEWS:
        return refuse("That view does not exist. Choose one of those shown.")
    maps = plots.attention_maps(shown.result.before, shown.result.after, str(view))
    if maps is None:
        return refuse("This case has no reports to show attention on.")
    before, after, difference = plots.heatmaps(maps)
    return {
        "before": before,
        "after": after,
        "difference": difference,
        "reading": cards.extremes(plots.summary(maps)),
    }


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
        "heat": viewer.heat(heats[0], heats[1], wanted, (shape[0], shape[1])),
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
