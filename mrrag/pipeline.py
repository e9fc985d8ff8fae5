"""A case from question to explained answers; reads as the method's own steps.

    query → evidence (MCR) → three branches → answers and attention (IFA)

``rag`` and ``mr_rag`` read the same reports in the same order; they differ by IFA alone.
"""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from mrrag.case import (
    MAX_QUESTION_CHARACTERS,
    Case,
    CaseCache,
    Evidence,
    Familiarity,
    Influence,
    Progress,
    Settings,
)
from mrrag.data.findings import contradictions
from mrrag.errors import ModelError, SettingsError
from mrrag.files import ASSETS
from mrrag.learnt import Learnt, learnt_for
from mrrag.model.backbone import (
    Backbone,
    Branch,
    Item,
    answer_batch,
    answer_branches,
    encode_image,
    load_backbone,
    same_state_trace,
    worth_keeping,
)
from mrrag.model.prompt import Prompt, build_prompt, plain_text, prompt_text
from mrrag.model.scope import Scope, load_scope
from mrrag.model.steering import FORMS, ROWS, Block
from mrrag.retrieval.calibration import (
    Calibration,
    calibrate,
    chance_scores,
    is_same_picture,
    percentile,
    unlike,
)
from mrrag.retrieval.encoders import Encoder
from mrrag.retrieval.knowledge_base import KnowledgeBase, load_encoder_of
from mrrag.retrieval.mcr import effective_weights, encode_query, lambdas, retrieve
from mrrag.types import (
    BUNDLED,
    METHODS,
    Answer,
    AttentionTrace,
    FloatArray,
    Image,
    Query,
    Retrieved,
)

PACKAGES = ("torch", "transformers", "faiss-cpu", "pydicom", "gradio", "numpy")


@dataclass(frozen=True)
class Pipeline:
    """The parts, loaded once and shared by every case; nothing in it changes."""

    backbone: Backbone
    encoder: Encoder
    knowledge_base: KnowledgeBase
    learnt: Learnt
    scope: Scope | None
    calibration: Calibration


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
    """Load a model, and a knowledge base with its encoder; the bundled ones by default.

    Parameters
    ----------
    model
        ``"bundled"``, a folder, or a name on the hub; the rest of its parameters are
        :func:`mrrag.model.backbone.load_backbone`'s.
    knowledge_base
        The folder of one; None for the bundled one.

    Raises
    ------
    ModelError, KnowledgeBaseError
        Where a part is absent, incomplete, or not made for the others.
    """
    encoder, base, learnt, calibration = _base_parts(assets, model, knowledge_base)
    return Pipeline(
        backbone=load_backbone(
            assets / "llava" if model == BUNDLED else model,
            revision=revision,
            device=device,
            tower=tower,
            quantize=quantize,
        ),
        encoder=encoder,
        knowledge_base=base,
        learnt=learnt,
        # Only the bundled model's world is small enough to be listed.
        scope=load_scope(assets / "llava") if model == BUNDLED else None,
        calibration=calibration,
    )


def with_knowledge_base(
    pipeline: Pipeline, knowledge_base: Path, *, assets: Path = ASSETS, model: str = BUNDLED
) -> Pipeline:
    """The same model over another knowledge base, with that one's encoder and weights.

    The parameters and errors are those of :func:`load_pipeline`.
    """
    encoder, base, learnt, calibration = _base_parts(assets, model, knowledge_base)
    if encoder.fingerprint == pipeline.encoder.fingerprint:
        encoder = pipeline.encoder
    return replace(
        pipeline, encoder=encoder, knowledge_base=base, learnt=learnt, calibration=calibration
    )


def _base_parts(
    assets: Path, model: str, knowledge_base: Path | None
) -> tuple[Encoder, KnowledgeBase, Learnt, Calibration]:
    directory = knowledge_base or assets / "knowledge_base"
    encoder = load_encoder_of(directory, assets / "encoder")
    base = KnowledgeBase.load(directory, encoder)
    learnt = learnt_for(model, knowledge_base, assets)
    if learnt.steering.form not in FORMS or learnt.steering.rows not in ROWS:
        raise ModelError(
            f"What was learnt for this model names the form {learnt.steering.form!r} and the rows "
            f"{learnt.steering.rows!r}; known are {', '.join(FORMS)} and {', '.join(ROWS)}. Run "
            "`python -m mrrag find-layers` again."
        )
    return encoder, base, learnt, calibrate(base, learnt.weights)


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
    if settings.form not in (None, *FORMS):
        raise SettingsError(
            f"An IFA form of {settings.form!r} was asked for. Choose one of: {', '.join(FORMS)}."
        )
    if not 1 <= settings.max_new_tokens <= 512:
        raise SettingsError(
            f"{settings.max_new_tokens} new tokens were asked for; 1 to 512 are allowed."
        )


def resolved(pipeline: Pipeline, settings: Settings) -> Settings:
    """The settings with what was learnt filled in, as a finished case keeps them."""
    learnt = pipeline.learnt
    return replace(
        settings,
        weights=settings.weights or learnt.weights,
        strength=learnt.steering.strength if settings.strength is None else settings.strength,
        layers=learnt.steering.layers if settings.layers is None else settings.layers,
        form=settings.form or learnt.steering.form,
    )


def find_evidence(
    pipeline: Pipeline,
    query: Query,
    settings: Settings,
    *,
    known: Evidence | None = None,
) -> Evidence:
    """Retrieve the documents of a query (MCR), and say what is to be doubted about them.

    ``known`` is earlier evidence of the same query, which saves the encoding: new α, β,
    γ, k, pins or noise cost one index scan.
    """
    check(pipeline, query, settings)
    start = time.perf_counter()
    knowledge_base, calibration = pipeline.knowledge_base, pipeline.calibration
    vectors = known.vectors if known else encode_query(query, pipeline.encoder)
    weights, notes = effective_weights(settings.weights or pipeline.learnt.weights, vectors)
    retrieved = retrieve(
        knowledge_base,
        vectors,
        weights,
        settings.k,
        pinned_ids=settings.pinned,
        exclude_ids=settings.excluded,
        noise=settings.noise,
        seed=settings.seed,
    )
    familiar = known.familiar if known else None
    if familiar is None and query.image is not None and vectors.v is not None:
        familiar = Familiarity(
            unlike(calibration, query.image, vectors.v),
            is_same_picture(knowledge_base, query.image, vectors),
        )
    chance = chance_scores(calibration, vectors, weights)
    percentiles = tuple(percentile([r.score for r in retrieved], chance).tolist())
    return Evidence(
        vectors,
        retrieved,
        weights,
        tuple(notes),
        time.perf_counter() - start,
        percentiles,
        warn(query.question, retrieved, percentiles, calibration.weak, familiar),
        familiar,
    )


def warn(
    question: str,
    retrieved: tuple[Retrieved, ...],
    percentiles: tuple[float, ...],
    weak: float,
    familiar: Familiarity | None,
) -> dict[str, str]:
    """What a reader must know before trusting the evidence: kind → sentence.

    "unlike"
        The image is unlike those of the knowledge base, so the answer means nothing.
    "known"
        The image is in the knowledge base, and its own report was retrieved.
    "weak"
        The best report's score stands lower among random pairs than for 99 of 100 of
        the knowledge base's own images.
    "contradiction"
        Reports affirm and deny a finding that the question names.
    """
    warnings = {}
    if familiar is not None and familiar.unlike:
        warnings["unlike"] = (
            "This picture is unlike those in the knowledge base; 99 in 100 of its own lie closer "
            "to the rest. The evidence does not apply to it, and the answer means nothing."
        )
    if familiar is not None and familiar.twin in {r.document.id for r in retrieved}:
        warnings["known"] = (
            f"This very picture is in the knowledge base, as document {familiar.twin}, and its "
            "own report is among these. Exclude it for a fair look."
        )
    if max(percentiles, default=math.nan) < weak:
        warnings["weak"] = (
            f"The evidence is weak: the best report scores higher than {max(percentiles):.1f} % of "
            f"random pairs, and the knowledge base’s own pictures nearly all reach {weak:.1f} %."
        )
    sides = contradictions(question, [r.document.report for r in retrieved])
    if sides:
        warnings["contradiction"] = (
            "The reports contradict each other: "
            + "; ".join(
                f"{finding} is affirmed by {_ranks(retrieved, yes)} and denied by "
                f"{_ranks(retrieved, no)}"
                for finding, (yes, no) in sides.items()
            )
            + "."
        )
    return warnings


def _ranks(retrieved: tuple[Retrieved, ...], places: tuple[int, ...]) -> str:
    """ "1, 2 and 5": the ranks of documents as words."""
    ranks = [str(retrieved[i].rank) for i in places]
    return " and ".join(filter(None, (", ".join(ranks[:-1]), ranks[-1])))


def answer(
    pipeline: Pipeline,
    query: Query,
    evidence: Evidence,
    settings: Settings,
    *,
    kept: CaseCache | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Progress | Case]:
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
    form = settings.form or learnt.steering.form
    relevance = lambdas(evidence.retrieved, form)
    if len(set(relevance)) == 1:
        notes.append(
            "All reports have the same score, so IFA has nothing to steer by: "
            "MR-RAG equals RAG here."
        )
    layers = learnt.steering.layers if settings.layers is None else settings.layers
    if not layers:
        notes.append(
            f"No critical layers are known for {backbone.name} or chosen, so IFA acts nowhere: "
            "MR-RAG equals RAG here. Choose layers in the settings."
        )

    plain = prompt_of(pipeline, query, [])
    prompt = prompt_of(pipeline, query, reports)
    branches = (
        Branch("rag_off", plain),
        Branch("rag", prompt),
        Branch("mr_rag", prompt, relevance),
    )
    notes += prompt.notes
    if len(prompt.ids) > backbone.tokenizer.model_max_length:
        notes.append(
            f"With its reports the prompt has {len(prompt.ids)} tokens; this model was taught on "
            f"{backbone.tokenizer.model_max_length} at most. Fewer or shorter reports may serve "
            "it better."
        )
    outcome = None
    for step in answer_branches(
        backbone,
        features,
        branches,
        strength=learnt.steering.strength if settings.strength is None else settings.strength,
        layers=layers,
        rows=learnt.steering.rows,
        transform=form,
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
            prompt=prompt_text(backbone.tokenizer.decode, b.prompt),
            tokens=outcome.tokens[i],
            seconds=stopped - start,
        )
        for i, b in enumerate(branches)
    }
    yield Case(
        question=query.question,
        retrieved=evidence.retrieved,
        answers=answers,
        before=outcome.traces[1],
        after=outcome.traces[2],
        settings=resolved(pipeline, settings),
        notes=tuple(notes),
        seconds={
            "evidence": evidence.seconds,
            "image": encoded - start,
            "answers": stopped - encoded,
        },
        versions=versions(pipeline),
        percentiles=evidence.percentiles,
        warnings=evidence.warnings,
        kept=CaseCache(picture, outcome.reading)
        if worth_keeping(backbone, outcome.reading)
        else None,
    )


def prompt_of(pipeline: Pipeline, query: Query, reports: list[str]) -> Prompt:
    """The prompt that asks a query after these reports."""
    backbone = pipeline.backbone
    return build_prompt(
        backbone.tokenizer,
        query.question,
        reports,
        image_token_id=backbone.image_token_id,
        image_tokens=0 if query.image is None else backbone.image_tokens,
        template=backbone.template,
    )


def report_places(pipeline: Pipeline, report: str) -> tuple[str, list[tuple[int, int]]]:
    """A report as the model reads it, and where in that text each of its tokens stands."""
    tokenizer = pipeline.backbone.tokenizer
    words = plain_text(report, tokenizer, pipeline.backbone.template)
    encoded = tokenizer(words, add_special_tokens=False, return_offsets_mapping=True)
    return words, [(int(a), int(b)) for a, b in encoded["offset_mapping"]]


def explain(pipeline: Pipeline, query: Query, case: Case) -> Case:
    """The case with what each report does to its answer, and IFA's direct effect."""
    return replace(
        case,
        influence=influence(pipeline, query, case),
        same_state=same_state(pipeline, query, case),
    )


def same_state(pipeline: Pipeline, query: Query, case: Case) -> AttentionTrace | None:
    """IFA's transform on the logits of plain RAG's own states; None where none was run."""
    if case.before is None:
        return None
    backbone, settings, learnt = pipeline.backbone, case.settings, pipeline.learnt
    features = None if query.image is None else encode_image(backbone, query.image)
    prompt = prompt_of(pipeline, query, [r.document.report for r in case.retrieved])
    form = settings.form or learnt.steering.form
    return same_state_trace(
        backbone,
        (features, prompt, lambdas(case.retrieved, form)),
        strength=learnt.steering.strength if settings.strength is None else settings.strength,
        layers=learnt.steering.layers if settings.layers is None else settings.layers,
        rows=learnt.steering.rows,
        transform=form,
    )


def influence(pipeline: Pipeline, query: Query, case: Case) -> Influence | None:
    """What each report of a case does to its answer, causally (attention does not tell).

    All reports are blocked in turn, with and without IFA, in one batched pass over one
    prefix. None where RAG's answer begins with neither yes nor no, since there is then
    no probability to follow.
    """
    said = case.answers["rag"]
    if not case.retrieved or not said.p_yes + said.p_no > 0.5:  # false for NaN too
        return None
    backbone, settings, learnt = pipeline.backbone, case.settings, pipeline.learnt
    features = None if query.image is None else encode_image(backbone, query.image)
    prompt = prompt_of(pipeline, query, [r.document.report for r in case.retrieved])
    form = settings.form or learnt.steering.form
    relevance = lambdas(case.retrieved, form)
    blocked: list[tuple[int, ...]] = [(), *((k,) for k in range(1, len(relevance) + 1))]
    items: list[Item] = [(features, prompt, lam) for lam in ((), relevance) for _ in blocked]
    scores = answer_batch(
        backbone,
        items,
        strength=learnt.steering.strength if settings.strength is None else settings.strength,
        layers=learnt.steering.layers if settings.layers is None else settings.layers,
        rows=learnt.steering.rows,
        transform=form,
        block=Block(range(backbone.layers), blocked * 2, rows="question+cue"),
    )
    yes = said.p_yes >= said.p_no
    p_2K: FloatArray = (scores.p_yes if yes else scores.p_no).reshape(2, -1)
    change_2K = p_2K[:, :1] - p_2K[:, 1:]
    return Influence(
        word="yes" if yes else "no",
        before=tuple(np.round(change_2K[0].astype(float), 6).tolist()),
        after=tuple(np.round(change_2K[1].astype(float), 6).tolist()),
        whole_before=float(p_2K[0, 0]),
        whole_after=float(p_2K[1, 0]),
    )


def _digest(image: Image) -> bytes:
    digest = hashlib.sha256(repr(image.display.shape).encode())
    digest.update(image.display.tobytes())
    return digest.digest()


def declined(
    pipeline: Pipeline, query: Query, evidence: Evidence, settings: Settings, notes: list[str]
) -> Case:
    """The case of a question outside the checkpoint's scope: it says so three times."""
    assert pipeline.scope is not None
    message = pipeline.scope.message
    nothing = float("nan")
    return Case(
        question=query.question,
        retrieved=evidence.retrieved,
        answers={m: Answer(m, message, nothing, nothing, "", 0, 0.0) for m in METHODS},
        before=None,
        after=None,
        settings=resolved(pipeline, settings),
        notes=(*notes, "The question is outside what this model knows, so it was not asked."),
        seconds={"evidence": evidence.seconds, "image": 0.0, "answers": 0.0},
        versions=versions(pipeline),
        percentiles=evidence.percentiles,
        warnings=evidence.warnings,
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
