"""The evidence section: reports ranked again as the controls move, and drawn as cards.

None of it runs the model: other weights re-rank vectors that were computed before. What the
cards say of influence and attention comes from the answers, as long as these were given to the
same evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from app import frame
from app.about import About
from app.backend import Backend
from app.sections.settings import Controls, settings_from, whole
from app.sections.visit import (
    CHOSEN,
    ArenaState,
    CaseState,
    EvidenceState,
    Update,
    cleared,
    of_base,
    refuse,
)
from mrrag.errors import SettingsError
from mrrag.report import answer_cards, cards
from mrrag.report.pictures import file_url

if TYPE_CHECKING:
    from mrrag.pipeline import Pipeline

TINT_OFF, TINT_RAG, TINT_MR_RAG = TINTS = ("Off", "RAG", "MR-RAG")


class EvidenceInputs(NamedTuple):
    """What the cards are drawn from: components in the layout, unchecked values in an action."""

    evidence_state: Any
    case_state: Any
    tint: Any
    layer: Any
    arena_state: Any = None


def choose_backend(about: About) -> Update:
    """Return the page of another model or knowledge base, without the results of the one before."""
    update: Update = {
        "header": frame.header(about),
        "base_facts": frame.base_facts(about),
        "status": frame.status(CHOSEN),
    }
    return cleared() | update


def no_evidence() -> Update:
    """Return the evidence without contents, for evidence of another knowledge base."""
    empty = cleared()
    return {
        "evidence_state": None,
        "evidence_cards": empty["evidence_cards"],
        "stale": empty["stale"],
    }


def rerank(
    backend: Backend, inputs: EvidenceInputs, controls: Controls, action: object = None
) -> Update:
    """Rank the reports again by the controls, without running the model.

    ``action`` is what was done to one report, ``{"do": ..., "id": ...}``: it is pinned,
    unpinned, excluded or restored first.
    """
    if not isinstance(inputs.evidence_state, EvidenceState):  # nothing was asked yet
        return {}
    state = of_base(backend.about, inputs.evidence_state, EvidenceState)
    if state is None:
        return no_evidence()
    try:
        from mrrag.evidence import find_evidence

        pipeline = backend.pipeline()
        pinned, excluded = state.settings.pinned, state.settings.excluded
        if action is not None:
            pinned, excluded = _pins_after(pipeline, pinned, excluded, action)
        settings = settings_from(backend.about, controls, pinned=pinned, excluded=excluded)
        evidence = find_evidence(pipeline, state.query, settings, known=state.evidence)
        state = replace(state, evidence=evidence, settings=settings)
        ranked: Update = {
            "evidence_state": state,
            "status": frame.status("Reports ranked again.", kind="done"),
        }
        return ranked | redraw(backend, inputs._replace(evidence_state=state))
    except Exception as error:
        return refuse(error)


def _pins_after(
    pipeline: Pipeline, pinned: tuple[str, ...], excluded: tuple[str, ...], action: object
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the pinned and the excluded ids after one more action."""
    fields = action if isinstance(action, dict) else {}
    does, identifier = fields.get("do"), fields.get("id")
    if not isinstance(identifier, str) or not pipeline.knowledge_base.positions(ids={identifier}):
        raise SettingsError("The knowledge base has no such report. Choose one of those shown.")
    pinned = tuple(i for i in pinned if i != identifier)
    excluded = tuple(i for i in excluded if i != identifier)
    if does == "pin":
        return (*pinned, identifier), excluded
    if does == "exclude":
        return pinned, (*excluded, identifier)
    if does in ("unpin", "restore"):
        return pinned, excluded
    raise SettingsError("A report can be pinned, unpinned, excluded or restored.")


def redraw(backend: Backend, inputs: EvidenceInputs) -> Update:
    """Draw the evidence again, and say whether the answers were given to it."""
    about = backend.about
    if not isinstance(inputs.evidence_state, EvidenceState):
        return {}
    state = of_base(about, inputs.evidence_state, EvidenceState)
    if state is None:
        return no_evidence()
    try:
        if inputs.tint not in TINTS:
            raise SettingsError("That tint does not exist. Choose one of those shown.")
        layer = whole("The layer", inputs.layer, 0, about.layers - 1)
        case = of_base(about, inputs.case_state, CaseState)
        reasons = changes(state, case)
        visible = case if case and not reasons and not case.reading.waits_for else None
        return {
            "evidence_cards": evidence_html(
                backend.pipeline(),
                state,
                visible,
                inputs.tint,
                layer,
                alone(about, inputs.arena_state, visible),
            ),
            "stale": answer_cards.stale(reasons),
        }
    except Exception as error:
        return refuse(error)


def changes(state: EvidenceState, case: CaseState | None) -> list[str]:
    """Return in what the evidence and settings differ from those of the answers."""
    if case is None:
        return []
    now, then = state.settings, case.result.settings
    read = [(r.document.id, r.gap) for r in state.evidence.retrieved]
    answered = [(r.document.id, r.gap) for r in case.result.retrieved]
    reasons = []
    if [i for i, _ in read] != [i for i, _ in answered]:
        reasons.append("the reports have changed")
    elif read != answered:
        reasons.append("the reports’ λ have changed")
    if (now.strength, now.layers, now.form) != (then.strength, then.layers, then.form):
        reasons.append("IFA’s settings have changed")
    return reasons


def evidence_html(
    pipeline: Pipeline,
    state: EvidenceState,
    case: CaseState | None,
    tint: str,
    layer: int,
    p_alone: Mapping[str, float] | None = None,
) -> str:
    """Return the evidence cards.

    ``case`` is given if its answers belong to this evidence, and ``p_alone``, document id →
    P(yes) by its report alone, where the arena found it.
    """
    evidence, settings = state.evidence, state.settings
    base = pipeline.knowledge_base
    learnt = learnt_ranks(pipeline, state) if settings.weights is not None else None
    influence = case.result.influence if case else None
    tokens = report_tints(pipeline, case, tint, layer) if case else None
    items = [
        cards.Card(
            item=item,
            thumbnail=file_url(base.thumbnail(item.number)),
            percentile=evidence.percentiles[n],
            learnt_rank=None if learnt is None else learnt.get(item.document.id, 0),
            pinned=item.document.id in settings.pinned,
            word=influence.word if influence else "",
            influence=(influence.before[n], influence.after[n]) if influence else None,
            tokens=tokens[n] if tokens else None,
            alone=(p_alone or {}).get(item.document.id),
        )
        for n, item in enumerate(evidence.retrieved)
    ]
    return cards.evidence(
        items,
        state.question,
        evidence.weights,
        evidence.notes,
        evidence.seconds,
        evidence.warnings,
        settings.excluded,
    )


def alone(about: About, state: object, case: CaseState | None) -> Mapping[str, float]:
    """Return P(yes) by each report alone, where the arena found it for this case; else nothing."""
    if case is None or not isinstance(state, ArenaState):
        return {}
    same = (state.question, state.base) == (case.result.question, about.base.number)
    return state.alone if same else {}


def learnt_ranks(pipeline: Pipeline, state: EvidenceState) -> dict[str, int]:
    """Return each document's rank with the learnt weights, as deep as ranks go."""
    from mrrag.retrieval.mcr import MAX_K, retrieve

    base, excluded = pipeline.knowledge_base, state.settings.excluded
    k = min(MAX_K, len(base) - len(excluded))
    weights, vectors = pipeline.learnt.weights, state.evidence.vectors
    learnt = retrieve(base, vectors, weights, k, exclude_ids=excluded)
    return {r.document.id: r.rank for r in learnt}


def report_tints(
    pipeline: Pipeline, case: CaseState, tint: str, layer: int
) -> list[cards.Tokens] | None:
    """Return each report's tokens with one layer's attention, or None for no tint.

    All reports and both runs share one scale.
    """
    traces = {TINT_RAG: case.result.before, TINT_MR_RAG: case.result.after}
    trace = traces.get(tint)
    if trace is None:
        return None
    from mrrag.explain import report_tokens

    reports = {f"report {r.rank}": r.document.report for r in case.result.retrieved}
    spans = [s for s in trace.spans if s.name in reports]
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
        words, places = report_tokens(pipeline, reports[span.name])
        share = trace.keys_LX[layer, span.start : span.stop] / (top or 1.0)
        # A report that was cut for the model has more tokens than were read.
        tints.append((words, places[: len(share)], share.tolist()))
    return tints
