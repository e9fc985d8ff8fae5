"""The evidence section: reports ranked again as the controls move, and drawn as cards.

None of it touches the model: other weights rank vectors that are there, and what the cards say
of influence and attention is from the answers, as long as these belong to the evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from app.about import About
from app.sections.settings import settings_from, whole
from app.sections.visit import CaseState, EvidenceState, Update, cleared, of_base, refuse
from mrrag.errors import SettingsError
from mrrag.report import cards
from mrrag.report.pictures import file_url

if TYPE_CHECKING:
    from mrrag.pipeline import Pipeline

TINT_OFF, TINT_RAG, TINT_MR_RAG = TINTS = ("Off", "RAG", "MR-RAG")


def choose_base(about: About) -> Update:
    """Put another knowledge base under the page; nothing that another one gave stays."""
    return cleared() | {
        "facts": cards.base_facts(about),
        "status": cards.status("Another knowledge base was chosen. Press Ask."),
    }


def forgotten() -> Update:
    """The evidence with nothing in it, since what was found is of another knowledge base."""
    return {name: cleared()[name] for name in ("found", "evidence", "stale")}


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
    if not isinstance(found, EvidenceState):  # nothing was asked yet, so nothing is to be ranked
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
    if not isinstance(found, EvidenceState):
        return {}
    if of_base(about, found) is None:
        return forgotten()
    try:
        if tint not in TINTS:
            raise SettingsError("That tint does not exist. Choose one of those shown.")
        wanted = whole("The layer", layer, 0, about.layers - 1)
        case = of_base(about, shown) if isinstance(shown, CaseState) else None
        reasons = changes(about, found, case)
        fresh = case if case and not reasons and not case.reading.waits_for else None
        pipeline = engine.result(timeout=120)
        return {
            "evidence": evidence_html(pipeline, found, fresh, str(tint), wanted),
            "stale": cards.stale(reasons),
        }
    except Exception as error:
        return refuse(error)


def changes(about: About, found: EvidenceState, shown: CaseState | None) -> list[str]:
    """In what the evidence and settings differ from those the answers were given to."""
    if shown is None:
        return []
    now, then = found.settings, shown.result.settings
    read = [(r.document.id, r.gap) for r in found.evidence.retrieved]
    answered = [(r.document.id, r.gap) for r in shown.result.retrieved]
    reasons = []
    if [i for i, _ in read] != [i for i, _ in answered]:
        reasons.append("the reports have changed")
    elif read != answered:
        reasons.append("the reports’ λ have changed")
    if (now.strength, now.layers, now.form) != (then.strength, then.layers, then.form):
        reasons.append("IFA’s settings have changed")
    return reasons


def evidence_html(
    pipeline: Pipeline, found: EvidenceState, shown: CaseState | None, tint: str, layer: int
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


def learnt_ranks(pipeline: Pipeline, found: EvidenceState) -> dict[str, int]:
    """Rank of each document with the learnt weights, as deep as is ranked at all."""
    from mrrag.pipeline import find_evidence
    from mrrag.retrieval.mcr import MAX_K as DEEPEST

    excluded = found.settings.excluded
    deep = min(DEEPEST, len(pipeline.knowledge_base) - len(excluded))
    settings = replace(found.settings, weights=None, noise=0, pinned=(), k=deep)
    learnt = find_evidence(pipeline, found.query, settings, known=found.evidence)
    return {r.document.id: r.rank for r in learnt.retrieved}


def report_tints(
    pipeline: Pipeline, shown: CaseState, tint: str, layer: int
) -> list[cards.Tokens] | None:
    """Each report's tokens with one layer's attention, on one scale for all and both runs."""
    traces = {TINT_RAG: shown.result.before, TINT_MR_RAG: shown.result.after}
    trace = traces.get(tint)
    if trace is None:
        return None
    from mrrag.pipeline import report_tokens

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
        words, places = report_tokens(pipeline, names[span.name])
        share = trace.keys_LX[layer, span.start : span.stop] / (top or 1.0)
        # A report that was cut for the model has more tokens than were read.
        tints.append((words, places[: len(share)], share.tolist()))
    return tints
