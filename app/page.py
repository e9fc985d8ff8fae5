"""The page: the events of its components, wired to the actions.

Wiring only: the components are made in :mod:`app.layout`, what a control does is in the module
of its section (:mod:`app.sections`), and how the page is served is in :mod:`app.launch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import gradio as gr

from app import frame, programs
from app.choosing import chosen, learnt_values, wire_choice, wire_offers
from app.events import LIVE, NOW, QUIET, Contents, contents, field_of
from app.internals import Page, rest
from app.layout import Parts, components, lay_out
from app.models import Models
from app.picker import offer_archive
from app.sections import arena, viewer
from app.sections.asking import AskInputs, ask, impression, stop, vote
from app.sections.attention import heatmaps, lines, overlay
from app.sections.case import Sample, choose_frame, choose_sample, model_view
from app.sections.evidence import EvidenceInputs, redraw, rerank
from app.sections.saving import save
from app.sections.settings import Controls
from app.sections.study import choose_picture, read_uploads
from app.sections.visit import Update
from app.uploads import FILE_SECONDS, take_uploads
from app.waiting import Room, step_by_step
from mrrag.data.dicomweb_request import Archive

# Events that gradio has not begun; questions are begun at once, and wait in the room.
MAX_EVENTS = 128

# A handler with its inputs and outputs, as an event takes them.
Event = tuple[Callable[..., Contents], list[gr.blocks.Block], list[gr.blocks.Block]]


def build_page(
    models: Models,
    samples: Sequence[Sample],
    *,
    api: bool = False,
    archive: Archive | None = None,
) -> gr.Blocks:
    """Lay the page out and wire it; the pipelines of the models may still be loading.

    With ``api``, programs may ask, too (:mod:`app.programs`). With an ``archive``, pictures can
    be opened from it.
    """
    room = Room()
    page = Page(
        title="MR-RAG",
        analytics_enabled=False,
        delete_cache=(FILE_SECONDS, FILE_SECONDS),
        fill_width=True,
    )
    with page:
        parts = lay_out([b.about for b in models.first], samples, offers=models.offers)

        # One function for all sections: gradio queues events of the same function together.
        def on_redraw(model: Any, base: Any, *inputs: Any) -> Contents:
            return contents(parts, redraw(models.select(model, base), EvidenceInputs(*inputs)))

        shown = [*chosen(parts), *evidence_inputs(parts)]
        redrawing = (on_redraw, shown, evidence_outputs(parts))

        # Sent once the page has wired its controls; a press before that would be lost.
        page.load(
            lambda: frame.status("Pick a sample case or upload a picture."),
            None,
            parts.case.status,
            queue=False,
            **QUIET,
        )
        wire_case(parts, samples)
        if archive is not None:
            offer_archive(parts, samples, archive)
        seen = wire_viewer(parts, models)
        wire_asking(parts, models, room, redrawing)
        wire_choice(parts, models, redrawing, seen)
        if models.offers:
            wire_offers(parts, models)
        wire_settings(parts, models, redrawing)
        wire_evidence(parts, models, redrawing)
        wire_answers(parts, models, redrawing)
        wire_arena(parts, models, room, redrawing)
        wire_attention(parts)
        wire_saving(parts, models)
        if api:
            programs.offer(models.first, room)
    page.queue(max_size=MAX_EVENTS, api_open=False, default_concurrency_limit=4)
    rest(page)
    return page


def wire_case(parts: Parts, samples: Sequence[Sample]) -> None:
    """Wire the sample cases, the upload, its pictures and their frames."""
    state, case = parts.state, parts.case
    everything = list(components(parts).values())

    def on_sample(moment: Any, visit: Any, event: gr.EventData) -> Contents:
        visit.press(moment, picture=True)
        return contents(parts, choose_sample(samples, field_of(event, "sample")))

    def on_upload(moment: Any, visit: Any, file: Any) -> Contents:
        visit.press(moment, picture=True)
        return contents(parts, read_uploads(samples, take_uploads(file))) | {case.upload: None}

    def on_picture(moment: Any, visit: Any, study: Any, event: gr.EventData) -> Contents:
        visit.press(moment, picture=True)
        return contents(parts, choose_picture(study, field_of(event, "sample")))

    def on_frame(moment: Any, visit: Any, image: Any, file: Any, event: gr.EventData) -> Contents:
        visit.press(moment, picture=True)
        return contents(parts, choose_frame(image, file, field_of(event, "frame")))

    press = [state.press_time, state.visit]
    case.samples.click(on_sample, press, everything, js=NOW, **QUIET)
    case.upload.upload(
        on_upload, [*press, case.upload], [*everything, case.upload], js=NOW, **QUIET
    )
    case.pictures.click(on_picture, [*press, state.study], everything, js=NOW, **QUIET)
    case.viewer.frame(on_frame, [*press, state.image, state.multiframe], everything, js=NOW, **LIVE)


def wire_viewer(parts: Parts, models: Models) -> Event:
    """Wire what the viewer fetches, and what the model would see of it; return the latter."""
    state, case = parts.state, parts.case
    # Not queued, and without effect: see app.sections.payload.update.
    case.viewer.fetch(lambda payload: payload, state.payload, case.viewer, queue=False, **LIVE)

    def on_seen(model: Any, base: Any, image: Any, window: Any) -> Contents:
        return contents(parts, model_view(models.select(model, base), image, window))

    inputs = [*chosen(parts), state.image, case.window]
    outputs: list[gr.blocks.Block] = [case.model_view, case.status]
    case.viewer.seen(on_seen, inputs, outputs, js=viewer.READ_VIEW, **LIVE)
    return on_seen, inputs, outputs


def wire_asking(parts: Parts, models: Models, room: Room, redrawing: Event) -> None:
    """Wire Ask and Stop."""
    state, case = parts.state, parts.case
    press = [case.ask.click, case.question.submit]

    def on_press(moment: Any, visit: Any) -> Any:
        visit.press(moment)
        return moment

    def on_ask(moment: Any, visit: Any, model: Any, base: Any, *values: Any) -> Iterator[Contents]:
        n = len(Controls._fields)
        controls, inputs = Controls(*values[:n]), AskInputs(*values[n:])
        for update in ask(models.select(model, base), room, visit, moment, inputs, controls):
            yield contents(parts, update)

    # The press is recorded before it waits for its turn, so that it supersedes earlier ones.
    gr.on(
        press,
        on_press,
        [state.ask_time, state.visit],
        state.ask_time,
        js=NOW,
        queue=False,
        trigger_mode="multiple",
        **QUIET,
    )
    gr.on(
        press,
        on_ask,
        [
            *(state.ask_time, state.visit, *chosen(parts)),
            *(*parts.settings.controls, *ask_inputs(parts)),
        ],
        list(components(parts).values()),
        js=viewer.READ_VIEW,
        concurrency_limit=None,
        trigger_mode="multiple",
        **QUIET,
    ).then(*redrawing, **QUIET)  # for controls that moved while the model answered
    # No `cancels`: it would cut a run off before its last update, which settles the page.
    case.stop.click(
        lambda moment, visit: contents(parts, stop(visit, moment)),
        [state.press_time, state.visit],
        case.status,
        js=NOW,
        trigger_mode="multiple",
        **QUIET,
    )


def wire_settings(parts: Parts, models: Models, redrawing: Event) -> None:
    """Wire the settings, which rank again as they move."""
    settings, controls = parts.settings, parts.settings.controls
    weights = [controls.alpha, controls.beta, controls.gamma]
    learnt = [*weights, controls.strength, controls.layers, controls.form]

    def on_rank(model: Any, base: Any, *values: Any) -> Contents:
        return contents(parts, rerank(models.select(model, base), *rerank_inputs(values)))

    def on_reset(model: Any, base: Any) -> Contents:
        return learnt_values(parts, models.select(model, base).about)

    ranking = (
        on_rank,
        [*chosen(parts), *evidence_inputs(parts), *controls],
        evidence_outputs(parts),
    )
    gr.on([control.input for control in controls], *ranking, **LIVE)
    settings.reset.click(on_reset, chosen(parts), learnt, **QUIET).then(*ranking, **QUIET)


def wire_evidence(parts: Parts, models: Models, redrawing: Event) -> None:
    """Wire the buttons of the cards, and the tint of their words."""
    evidence = parts.evidence

    def on_card(event: gr.EventData, model: Any, base: Any, *values: Any) -> Contents:
        backend = models.select(model, base)
        return contents(parts, rerank(backend, *rerank_inputs(values), action=event._data))

    ranked = [*chosen(parts), *evidence_inputs(parts), *parts.settings.controls]
    evidence.evidence_cards.click(on_card, ranked, evidence_outputs(parts), **QUIET)
    gr.on([evidence.tint.input, parts.attention.layer.input], *redrawing, **LIVE)


def wire_answers(parts: Parts, models: Models, redrawing: Event) -> None:
    """Wire the reader's impression and vote."""
    state, answers = parts.state.case_state, parts.answers
    everything = list(components(parts).values())

    def on_impression(model: Any, base: Any, state: Any, words: Any) -> Contents:
        update = impression(models.select(model, base).about, state, words)
        return contents(parts, update) | {answers.impression: ""}

    def on_vote(event: gr.EventData, model: Any, base: Any, state: Any) -> Contents:
        about = models.select(model, base).about
        return contents(parts, vote(about, state, field_of(event, "vote")))

    gr.on(
        [answers.reveal.click, answers.impression.submit],
        on_impression,
        [*chosen(parts), state, answers.impression],
        [*everything, answers.impression],
        **QUIET,
    ).then(*redrawing, **QUIET)
    answers.answer_columns.click(on_vote, [*chosen(parts), state], everything, **QUIET).then(
        *redrawing, **QUIET
    )


def wire_arena(parts: Parts, models: Models, room: Room, redrawing: Event) -> None:
    """Wire the two buttons of the arena, whose steps come after those who wait for answers."""
    state, panel = parts.state, parts.arena
    shared = [state.ask_time, state.visit, *chosen(parts), state.case_state]
    outputs = [
        *(panel.arena_state, panel.arena_table, panel.curve_text),
        *(panel.strength_curve, panel.weight_curve, parts.case.status),
    ]

    def on_press(moment: Any, visit: Any) -> Any:
        visit.press_beside(moment)
        return moment

    def waits(ahead: int) -> Update:
        return {"status": frame.queue_line(ahead)}

    def on_run(
        moment: Any, visit: Any, model: Any, base: Any, case: Any, *ticked: Any
    ) -> Iterator[Contents]:
        steps = arena.run(models.select(model, base), visit, moment, case, ticked)
        for update in step_by_step(room, id(visit), steps, waits):
            yield contents(parts, update)

    def on_curves(moment: Any, visit: Any, model: Any, base: Any, case: Any) -> Iterator[Contents]:
        steps = arena.draw(models.select(model, base), visit, moment, case)
        for update in step_by_step(room, id(visit), steps, waits):
            yield contents(parts, update)

    many, press = {"trigger_mode": "multiple", **QUIET}, [state.ask_time, state.visit]
    queued = {"concurrency_limit": None, **many}
    for button, work, inputs in (
        (panel.run, on_run, [*shared, *panel.ticked]),
        (panel.curves, on_curves, shared),
    ):
        button.click(on_press, press, state.ask_time, js=NOW, queue=False, **many)
        done = button.click(work, inputs, outputs, **queued)
        done.then(*redrawing, **QUIET)  # for what each report says alone


def wire_attention(parts: Parts) -> None:
    """Wire the maps to view, head and states, and the lines and the picture to the layer."""
    state, case, attention = parts.state.case_state, parts.case, parts.attention
    view, head, layer, states = attention.view, attention.head, attention.layer, attention.states

    def on_view(state: Any, view: Any, head: Any, layer: Any, states: Any) -> Contents:
        return contents(parts, heatmaps(state, view, head, layer, states))

    def on_layer(state: Any, head: Any, layer: Any) -> Contents:
        return contents(parts, overlay(state, layer) | lines(state, head, layer))

    maps = [attention.before, attention.after, attention.difference]
    gr.on(
        [view.input, head.input, states.input],
        on_view,
        [state, view, head, layer, states],
        [*maps, attention.extremes, attention.lines, case.status],
        **QUIET,
    )
    layer.input(
        on_layer,
        [state, head, layer],
        [attention.overlays, case.heat, attention.lines, case.status],
        **LIVE,
    )


def wire_saving(parts: Parts, models: Models) -> None:
    """Wire the two buttons that save a case."""
    saving = parts.saving
    inputs = [*chosen(parts), parts.state.case_state, saving.pixels]
    outputs = [saving.download, parts.case.status]

    def on_save(
        kind: Literal["html", "json"], model: Any, base: Any, state: Any, pixels: Any
    ) -> Contents:
        return contents(parts, save(models.select(model, base), state, kind, pixels))

    saving.as_html.click(partial(on_save, "html"), inputs, outputs, **QUIET)
    saving.as_json.click(partial(on_save, "json"), inputs, outputs, **QUIET)


def ask_inputs(parts: Parts) -> AskInputs:
    """Return the components of what goes with a press of Ask."""
    return AskInputs(
        evidence_state=parts.state.evidence_state,
        case_state=parts.state.case_state,
        image=parts.state.image,
        question=parts.case.question,
        reader_first=parts.settings.reader_first,
        blind=parts.settings.blind,
        window=parts.case.window,
    )


def evidence_inputs(parts: Parts) -> EvidenceInputs:
    """Return the components that the cards are drawn from."""
    return EvidenceInputs(
        evidence_state=parts.state.evidence_state,
        case_state=parts.state.case_state,
        tint=parts.evidence.tint,
        layer=parts.attention.layer,
        arena_state=parts.arena.arena_state,
    )


def rerank_inputs(values: Sequence[Any]) -> tuple[EvidenceInputs, Controls]:
    """Return an event's values as what the cards are drawn from and the controls."""
    n = len(EvidenceInputs._fields)
    return EvidenceInputs(*values[:n]), Controls(*values[n:])


def evidence_outputs(parts: Parts) -> list[gr.blocks.Block]:
    """Return the components that change with the evidence."""
    state, cards_ = parts.state.evidence_state, parts.evidence.evidence_cards
    return [state, cards_, parts.answers.stale, parts.case.status]
