"""A case from question to explained answers; reads as the method's own steps.

    query → evidence (MCR) → three branches → answers and attention (IFA)

``rag`` and ``mr_rag`` read the same reports in the same order; they differ by IFA alone.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mrrag.backbone import (
    Backbone,
    Branch,
    Reading,
    answer_branches,
    encode_image,
    load_backbone,
    worth_keeping,
)
from mrrag.encoders import Encoder, load_encoder
from mrrag.errors import SettingsError
from mrrag.knowledge_base import KnowledgeBase
from mrrag.learnt import Learnt, learnt_for
from mrrag.prompt import build_prompt
from mrrag.retrieval import QueryVectors, effective_weights, encode_query, retrieve
from mrrag.scope import Scope, load_scope
from mrrag.types import (
    BUNDLED,
    METHODS,
    Answer,
    AttentionTrace,
    Image,
    Query,
    Retrieved,
    Weights,
)

ASSETS = Path(__file__).resolve().parent.parent / "assets"
MAX_QUESTION_CHARACTERS = 1000
PACKAGES = ("torch", "transformers", "faiss-cpu", "pydicom", "gradio", "numpy")


@dataclass(frozen=True)
class Settings:
    """Everything a person may set; None means what was learnt for this checkpoint.

    Attributes
    ----------
    k : int
        Reports retrieved.
    weights : Weights or None
        α, β, γ of MCR.
    strength : float or None
        Multiplies IFA's λ (the paper has none: 1.0).
    layers : tuple of int or None
        The critical layers, counted from 0.
    noise : int
        How many of the k are replaced by reports drawn at random.
    max_new_tokens : int
        Where an answer is cut.
    seed : int
        Of the noise.
    """

    k: int = 8
    weights: Weights | None = None
    strength: float | None = None
    layers: tuple[int, ...] | None = None
    noise: int = 0
    max_new_tokens: int = 40
    seed: int = 0


@dataclass(frozen=True)
class Pipeline:
    """The parts, loaded once and shared by every case; nothing in it changes."""

    backbone: Backbone
    encoder: Encoder
    knowledge_base: KnowledgeBase
    learnt: Learnt
    scope: Scope | None


@dataclass(frozen=True)
class Evidence:
    """What MCR found, before any answer: enough to re-rank without encoding again."""

    vectors: QueryVectors
    retrieved: tuple[Retrieved, ...]
    weights: Weights
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Progress:
    """How far the answers have come: the text so far of each method."""

    texts: dict[str, str]


@dataclass(frozen=True)
class Kept:
    """What was read of an image and its reports, for the next question about that image.

    It is handed in and handed back, and goes when its holder does.
    """

    picture: bytes
    reading: Reading = field(repr=False)


@dataclass(frozen=True)
class CaseResult:
    """One finished case. ``before`` is plain RAG's attention, ``after`` MR-RAG's."""

    question: str
    retrieved: tuple[Retrieved, ...]
    answers: dict[str, Answer]
    before: AttentionTrace | None
    after: AttentionTrace | None
    settings: Settings
    notes: tuple[str, ...]
    seconds: dict[str, float]
    versions: dict[str, str]
    kept: Kept | None = field(default=None, repr=False, compare=False)


def load_pipeline(
    assets: Path = ASSETS,
    *,
    model: str = BUNDLED,
    knowledge_base: Path | None = None,
    revision: str | None = None,
    device: str = "cpu",
    tower: str = "checkpoint",
    quantize: str | None = None,
) -> Pipeline:
    """Load a model, an encoder and a knowledge base; the bundled ones unless told otherwise.

    Parameters
    ----------
    model
        ``"bundled"``, a folder, or a name on the hub; the rest of its parameters are
        :func:`mrrag.backbone.load_backbone`'s.
    knowledge_base
        The folder of one; None for the bundled one.

    Raises
    ------
    ModelError, KnowledgeBaseError
        Where a part is absent, incomplete, or not made for the others.
    """
    encoder = load_encoder(assets / "encoder")
    return Pipeline(
        backbone=load_backbone(
            assets / "llava" if model == BUNDLED else model,
            revision=revision,
            device=device,
            tower=tower,
            quantize=quantize,
        ),
        encoder=encoder,
        knowledge_base=KnowledgeBase.load(knowledge_base or assets / "knowledge_base", encoder),
        learnt=learnt_for(model, knowledge_base, assets),
        # Only the bundled model's world is small enough to be listed.
        scope=load_scope(assets / "llava") if model == BUNDLED else None,
    )


def check(pipeline: Pipeline, query: Query, settings: Settings) -> None:
    """Raise SettingsError for a question or setting outside what is allowed."""
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
    if settings.strength is not None and not 0 <= settings.strength <= 10:
        raise SettingsError(
            f"An IFA strength of {settings.strength} was asked for; 0 to 10 is allowed."
        )
    if not 1 <= settings.max_new_tokens <= 512:
        raise SettingsError(
            f"{settings.max_new_tokens} new tokens were asked for; 1 to 512 are allowed."
        )


def find_evidence(
    pipeline: Pipeline,
    query: Query,
    settings: Settings,
    *,
    vectors: QueryVectors | None = None,
) -> Evidence:
    """Retrieve the documents of a query (MCR).

    ``vectors`` of an earlier call for the same query save the encoding: new α, β, γ or
    k cost one index scan.
    """
    check(pipeline, query, settings)
    start = time.perf_counter()
    if vectors is None:
        vectors = encode_query(query, pipeline.encoder)
    weights, notes = effective_weights(settings.weights or pipeline.learnt.weights, vectors)
    retrieved = retrieve(
        pipeline.knowledge_base,
        vectors,
        weights,
        settings.k,
        noise=settings.noise,
        seed=settings.seed,
    )
    return Evidence(vectors, retrieved, weights, tuple(notes), time.perf_counter() - start)


def answer(
    pipeline: Pipeline,
    query: Query,
    evidence: Evidence,
    settings: Settings,
    *,
    kept: Kept | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Progress | CaseResult]:
    """Answer with RAG off, RAG and MR-RAG together, streaming; the last item is the case.

    ``kept`` of an earlier case with the same image saves reading it again, and with it
    the reports that come first in both.

    Stops, with no case, as soon as ``cancelled`` says so or the generator is closed.
    """
    check(pipeline, query, settings)
    notes = list(query.image.notes if query.image else ()) + list(evidence.notes)
    if pipeline.scope is not None and not pipeline.scope.admits(query.question):
        yield declined(pipeline, query, evidence, settings, notes)
        return
    backbone, learnt = pipeline.backbone, pipeline.learnt
    start = time.perf_counter()
    picture = b"" if query.image is None else _digest(query.image)
    known = kept.reading if kept is not None and kept.picture == picture else None
    if known is not None:
        features = known.features
    else:
        features = None if query.image is None else encode_image(backbone, query.image)
    encoded = time.perf_counter()
    reports = [r.document.report for r in evidence.retrieved]
    relevance = tuple(r.relevance for r in evidence.retrieved)
    if len(set(relevance)) == 1:
        notes.append(
            "All reports have the same score, so IFA has nothing to steer by: "
            "MR-RAG equals RAG here."
        )
    layers = learnt.layers if settings.layers is None else settings.layers
    if not layers:
        notes.append(
            f"No critical layers are known for {backbone.name} or chosen, so IFA acts nowhere: "
            "MR-RAG equals RAG here. Choose layers in the settings."
        )

    def branch(method: str, texts: list[str], lam: tuple[float, ...]) -> Branch:
        prompt = build_prompt(
            backbone.tokenizer,
            query.question,
            texts,
            image_token_id=backbone.image_token_id,
            image_tokens=0 if features is None else backbone.image_tokens,
        )
        return Branch(method, prompt, lam)

    branches = (
        branch("rag_off", [], ()),
        branch("rag", reports, ()),
        branch("mr_rag", reports, relevance),
    )
    notes += branches[1].prompt.notes
    outcome = None
    for step in answer_branches(
        backbone,
        features,
        branches,
        strength=learnt.strength if settings.strength is None else settings.strength,
        layers=layers,
        rows=learnt.rows,
        max_new_tokens=settings.max_new_tokens,
        known=known,
    ):
        if cancelled():
            return
        outcome = step
        yield Progress(dict(zip(METHODS, step.texts, strict=True)))
    assert outcome is not None
    stopped = time.perf_counter()
    answers = {
        b.method: Answer(
            method=b.method,
            text=outcome.texts[i],
            p_yes=outcome.p_yes[i],
            p_no=outcome.p_no[i],
            prompt=backbone.tokenizer.decode(list(b.prompt.ids)),
            tokens=outcome.tokens[i],
            seconds=stopped - start,
        )
        for i, b in enumerate(branches)
    }
    yield CaseResult(
        question=query.question,
        retrieved=evidence.retrieved,
        answers=answers,
        before=outcome.traces[1],
        after=outcome.traces[2],
        settings=settings,
        notes=tuple(notes),
        seconds={
            "evidence": evidence.seconds,
            "image": encoded - start,
            "answers": stopped - encoded,
        },
        versions=versions(pipeline),
        kept=Kept(picture, outcome.reading) if worth_keeping(backbone, outcome.reading) else None,
    )


def _digest(image: Image) -> bytes:
    digest = hashlib.sha256(repr(image.display.shape).encode())
    digest.update(image.display.tobytes())
    return digest.digest()


def declined(
    pipeline: Pipeline, query: Query, evidence: Evidence, settings: Settings, notes: list[str]
) -> CaseResult:
    """The case of a question outside the checkpoint's scope: it says so three times."""
    assert pipeline.scope is not None
    message = pipeline.scope.message
    nothing = float("nan")
    return CaseResult(
        question=query.question,
        retrieved=evidence.retrieved,
        answers={m: Answer(m, message, nothing, nothing, "", 0, 0.0) for m in METHODS},
        before=None,
        after=None,
        settings=settings,
        notes=(*notes, "The question is outside what this model knows, so it was not asked."),
        seconds={"evidence": evidence.seconds, "image": 0.0, "answers": 0.0},
        versions=versions(pipeline),
    )


def versions(pipeline: Pipeline) -> dict[str, str]:
    """What produced a result: packages, model, encoder and knowledge base."""
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
