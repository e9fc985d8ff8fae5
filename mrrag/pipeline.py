"""One case, from a question to explained answers, in the method's own steps.

    query → evidence (MCR) → three branches → answers and attention (IFA)

``rag`` and ``mr_rag`` read the same reports in the same order; they differ by IFA alone.
The evidence is found in :mod:`mrrag.evidence`. Here alone it meets the language model.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version

from torch import Tensor

from mrrag.case import (
    MAX_NEW_TOKENS,
    MAX_QUESTION_CHARACTERS,
    MAX_STRENGTH,
    Case,
    CaseCache,
    Evidence,
    Progress,
    Settings,
)
from mrrag.errors import SettingsError
from mrrag.forms import FORMS, lambdas
from mrrag.learnt import Learnt
from mrrag.model.answering import Asked, Step, answer_questions
from mrrag.model.backbone import Backbone, encode_images
from mrrag.model.prefill import Branch, PrefixCache, fits_in_memory
from mrrag.model.prompt import prompt_text
from mrrag.model.scope import Scope
from mrrag.model.world import World
from mrrag.retrieval.calibration import (
    Calibration,
)
from mrrag.retrieval.encoders import Encoder
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.retrieval.votes import BaseRates
from mrrag.types import (
    METHODS,
    Answer,
    Query,
    Steering,
)

PACKAGES = ("torch", "transformers", "faiss-cpu", "pydicom", "gradio", "numpy")


@dataclass(frozen=True)
class Pipeline:
    """The loaded parts, shared by every case; nothing in it changes.

    Attributes
    ----------
    world : World or None
        The pictures that the model was trained on, where known.
    rates : BaseRates
        Of the findings in the knowledge base.
    """

    backbone: Backbone
    encoder: Encoder
    knowledge_base: KnowledgeBase
    learnt: Learnt
    scope: Scope | None
    calibration: Calibration
    world: World | None = None
    rates: BaseRates = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates", BaseRates(self.knowledge_base))


def check(pipeline: Pipeline, query: Query, settings: Settings) -> None:
    """Raise SettingsError for a question or a setting outside what is allowed."""
    if not query.question.strip():
        raise SettingsError("The question is empty. Type a question about the image.")
    if len(query.question) > MAX_QUESTION_CHARACTERS:
        raise SettingsError(
            f"The question has {len(query.question)} characters; {MAX_QUESTION_CHARACTERS} are "
            "allowed. Shorten it."
        )
    layers = pipeline.backbone.layers
    for layer in settings.layers or ():
        if not 0 <= layer < layers:
            raise SettingsError(
                f"Layer {layer} was asked for; this model has layers 0 to {layers - 1}."
            )
    if settings.strength is not None and not 0 <= settings.strength <= MAX_STRENGTH:
        raise SettingsError(
            f"An IFA strength of {settings.strength} was asked for; 0 to {MAX_STRENGTH:g} is "
            "allowed."
        )
    if settings.form not in (None, *FORMS):
        raise SettingsError(
            f"An IFA form of {settings.form!r} was asked for. Choose one of: {', '.join(FORMS)}."
        )
    if not 1 <= settings.max_new_tokens <= MAX_NEW_TOKENS:
        raise SettingsError(
            f"{settings.max_new_tokens} new tokens were asked for; 1 to {MAX_NEW_TOKENS} are "
            "allowed."
        )


def steering_of(pipeline: Pipeline, settings: Settings) -> Steering:
    """Return how MR-RAG is steered: the settings', and where they say nothing the learnt."""
    learnt = pipeline.learnt.steering
    return replace(
        learnt,
        strength=learnt.strength if settings.strength is None else settings.strength,
        layers=learnt.layers if settings.layers is None else settings.layers,
        form=settings.form or learnt.form,
    )


def resolved(pipeline: Pipeline, settings: Settings) -> Settings:
    """Return the settings with learnt values filled in, as a finished case keeps them."""
    steering = steering_of(pipeline, settings)
    return replace(
        settings,
        weights=settings.weights or pipeline.learnt.weights,
        strength=steering.strength,
        layers=steering.layers,
        form=steering.form,
    )


@dataclass(frozen=True)
class Ready:
    """A case that the model can answer: its picture is encoded, and its prompts are built.

    Attributes
    ----------
    branches : dict
        By method.
    known : PrefixCache or None
        What was read of its image before.
    seconds : float
        For encoding the picture.
    """

    query: Query
    evidence: Evidence
    settings: Settings
    branches: dict[str, Branch]
    known: PrefixCache | None
    seconds: float


def answer(
    pipeline: Pipeline,
    query: Query,
    evidence: Evidence,
    settings: Settings,
    *,
    cache: CaseCache | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Progress | Case]:
    """Answer with RAG off, RAG and MR-RAG together, streaming; the last item is the case.

    Parameters
    ----------
    cache
        Of an earlier case about the same image, which is then not read again, nor are the
        reports that come first in both.
    cancelled
        Asked at every token; once it returns True the generator ends, with no case.
    """
    ready = get_ready(pipeline, query, evidence, settings, cache=cache)
    if isinstance(ready, Case):
        yield ready
        return
    for (step,) in answer_together(pipeline, [ready]):
        if cancelled():
            return
        yield step


def get_ready(
    pipeline: Pipeline,
    query: Query,
    evidence: Evidence,
    settings: Settings,
    *,
    cache: CaseCache | None = None,
) -> Ready | Case:
    """Return a case ready to be answered, or the case itself where it is :func:`declined`.

    ``cache`` is as of :func:`answer`.
    """
    check(pipeline, query, settings)
    if pipeline.scope is not None and not pipeline.scope.admits(query.question):
        return declined(pipeline, query, evidence, settings)
    start = time.perf_counter()
    known = known_prefix(query, cache)
    features = known.features if known else image_features(pipeline, query)
    seconds = time.perf_counter() - start
    steering = steering_of(pipeline, settings)
    branches = branches_of(pipeline, query, evidence, steering, features)
    return Ready(query, evidence, settings, branches, known, seconds)


def kind_of(pipeline: Pipeline, settings: Settings) -> tuple[Steering, int]:
    """Return what cases that are answered together must have in common.

    That is the steering but for its strength, and the most tokens of an answer.
    """
    return replace(steering_of(pipeline, settings), strength=1.0), settings.max_new_tokens


def answer_together(
    pipeline: Pipeline, cases: Sequence[Ready]
) -> Iterator[tuple[Progress | Case, ...]]:
    """Answer several cases as one batch, each as :func:`answer` does; they share nothing.

    Every element has an item for each case. A case comes as soon as its answers are complete,
    and is repeated until those of the others are.

    Raises
    ------
    ValueError
        If they are of more than one :func:`kind_of`.
    """
    kinds = {kind_of(pipeline, case.settings) for case in cases}
    if len(kinds) != 1:
        raise ValueError("Cases of other form, layers or length cannot be answered together.")
    ((steering, max_new_tokens),) = kinds
    strengths = [steering_of(pipeline, case.settings).strength for case in cases]
    asked = [
        Asked(tuple(case.branches.values()), strength, case.known)
        for case, strength in zip(cases, strengths, strict=True)
    ]
    start = time.perf_counter()
    items: list[Progress | Case] = []
    for steps in answer_questions(
        pipeline.backbone, asked, steering, max_new_tokens=max_new_tokens
    ):
        items = items or [Progress({})] * len(cases)
        for n, step in enumerate(steps):
            if step.done and not isinstance(items[n], Case):
                items[n] = _case_of(pipeline, cases[n], step, time.perf_counter() - start)
            elif not step.done:
                items[n] = Progress(dict(zip(cases[n].branches, step.texts, strict=True)))
        yield tuple(items)


def known_prefix(query: Query, cache: CaseCache | None) -> PrefixCache | None:
    """Return what a cache holds of this query's image; None where it is of another."""
    if cache is None or cache.image_sha256 != _image_sha256(query):
        return None
    return cache.prefix


def _image_sha256(query: Query) -> bytes:
    if query.image is None:
        return b""
    digest = hashlib.sha256(repr(query.image.display.shape).encode())
    digest.update(query.image.display.tobytes())
    return digest.digest()


def image_features(pipeline: Pipeline, query: Query) -> Tensor | None:
    """Encode the query's image for the language model; None without an image."""
    return None if query.image is None else encode_images(pipeline.backbone, [query.image])


def branches_of(
    pipeline: Pipeline,
    query: Query,
    evidence: Evidence | Case,
    steering: Steering,
    features: Tensor | None,
) -> dict[str, Branch]:
    """Build the three branches of a query, by method."""
    backbone = pipeline.backbone
    image = backbone.grid_of(query.image) if query.image is not None else False
    plain = backbone.prompt(query.question, (), image=image)
    reports = [r.document.report for r in evidence.retrieved]
    prompt = backbone.prompt(query.question, reports, image=image)
    relevance = lambdas(evidence.retrieved, steering.form)
    return {
        "rag_off": Branch(plain, features),
        "rag": Branch(prompt, features),
        "mr_rag": Branch(prompt, features, relevance),
    }


def notes_on(pipeline: Pipeline, branch: Branch, steering: Steering) -> tuple[str, ...]:
    """Return what to know of MR-RAG's branch: where IFA has no effect, and long prompts."""
    backbone, notes = pipeline.backbone, []
    if len(set(branch.relevance)) == 1:
        notes.append(
            "All reports have the same score, so IFA has nothing to steer by: "
            "MR-RAG equals RAG here."
        )
    if not steering.layers:
        notes.append(
            f"No critical layers are known for {backbone.name} or chosen, so IFA acts nowhere: "
            "MR-RAG equals RAG here. Choose layers in the settings."
        )
    notes += branch.prompt.notes
    tokens, longest = len(branch.prompt.ids), backbone.tokenizer.model_max_length
    if tokens > longest:
        notes.append(
            f"With its reports the prompt has {tokens} tokens; this model was trained on "
            f"{longest} at most. Fewer or shorter reports may serve it better."
        )
    return tuple(notes)


def _case_of(pipeline: Pipeline, ready: Ready, step: Step, seconds: float) -> Case:
    """Return the case of a last step, which came after so many seconds."""
    backbone, evidence = pipeline.backbone, ready.evidence
    answers = {
        method: Answer(
            method=method,
            text=step.texts[i],
            p_yes=step.p_yes[i],
            p_no=step.p_no[i],
            prompt=prompt_text(backbone.tokenizer.decode, branch.prompt),
            tokens=step.tokens[i],
            seconds=ready.seconds + step.seconds[i],
        )
        for i, (method, branch) in enumerate(ready.branches.items())
    }
    steering = steering_of(pipeline, ready.settings)
    kept = CaseCache(_image_sha256(ready.query), step.prefix)
    return Case(
        question=ready.query.question,
        retrieved=evidence.retrieved,
        answers=answers,
        before=step.traces[1],
        after=step.traces[2],
        settings=resolved(pipeline, ready.settings),
        notes=(
            *_known_notes(ready.query, evidence),
            *notes_on(pipeline, ready.branches["mr_rag"], steering),
        ),
        seconds={"evidence": evidence.seconds, "image": ready.seconds, "answers": seconds},
        versions=versions(pipeline),
        percentiles=evidence.percentiles,
        warnings=evidence.warnings,
        votes=evidence.votes,
        cache=kept if fits_in_memory(backbone, step.prefix) else None,
    )


def _known_notes(query: Query, evidence: Evidence) -> tuple[str, ...]:
    return (*(query.image.notes if query.image else ()), *evidence.notes)


def declined(
    pipeline: Pipeline,
    query: Query,
    evidence: Evidence,
    settings: Settings,
) -> Case:
    """Return the case of a question outside the checkpoint's scope, which was not asked."""
    message = pipeline.scope.message if pipeline.scope else ""
    nothing = float("nan")
    return Case(
        question=query.question,
        retrieved=evidence.retrieved,
        answers={m: Answer(m, message, nothing, nothing, "", 0, 0.0) for m in METHODS},
        before=None,
        after=None,
        settings=resolved(pipeline, settings),
        notes=(
            *_known_notes(query, evidence),
            "The question is outside what this model knows, so it was not asked.",
        ),
        seconds={"evidence": evidence.seconds, "image": 0.0, "answers": 0.0},
        versions=versions(pipeline),
        percentiles=evidence.percentiles,
        warnings=evidence.warnings,
        votes=evidence.votes,
    )


def versions(pipeline: Pipeline) -> dict[str, str]:
    """Return what produced a result: packages, model, encoder and knowledge base."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {
        "model": f"{pipeline.backbone.name}@{pipeline.backbone.fingerprint[:12]}",
        "encoder": f"{pipeline.encoder.name}@{pipeline.encoder.fingerprint[:12]}",
        "knowledge_base": pipeline.knowledge_base.fingerprint[:12],
    }
