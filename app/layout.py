"""The page's components, section by section, in the order in which they appear.

Layout only: what the components do is wired in :mod:`app.page`, and how their contents look is
in :mod:`mrrag.report.cards`, :mod:`mrrag.report.plots` and the style sheets. Each section is a
function that makes its components and returns those that events read or write.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import gradio as gr

from app import frame
from app.about import About
from app.arena_panel import ArenaParts, lay_out_arena
from app.markup import html, plot
from app.sections import viewer
from app.sections.attention import AS_IT_RAN, MEAN_OF_HEADS, STATES, heads
from app.sections.case import Sample, samples_html
from app.sections.evidence import TINT_OFF, TINTS
from app.sections.settings import (
    FORM_NAMES,
    MAX_K,
    MAX_STRENGTH,
    WEIGHT_STEP,
    Controls,
    max_weight,
)
from app.sections.visit import Update, Visit, cleared
from mrrag.case import MAX_QUESTION_CHARACTERS
from mrrag.report import answer_cards, cards, plots

# How long a visit's case is kept after it was last touched.
CASE_SECONDS = 1800


class StateParts(NamedTuple):
    """The state of one visit, and when its controls were pressed; all of it invisible."""

    image: gr.State
    evidence_state: gr.State
    case_state: gr.State
    multiframe: gr.State  # an uploaded file of several frames, without identity
    study: gr.State  # the pictures of an upload, of which one is open
    payload: gr.State  # a picture for the viewer to fetch
    visit: gr.State
    ask_time: gr.Number  # when Ask was pressed, in ms
    press_time: gr.Number  # when another control was


class CaseParts(NamedTuple):
    """The picture and the question."""

    samples: gr.HTML
    upload: gr.File
    archive: gr.Column  # where app.picker puts its components, if there is an archive
    pictures: gr.HTML
    question: gr.Textbox
    viewer: gr.HTML
    heat: gr.HTML
    window: gr.Textbox  # the viewer's, filled in as an event is sent
    model_view: gr.HTML
    preview: gr.HTML
    ask: gr.Button
    stop: gr.Button
    status: gr.HTML


class ModelParts(NamedTuple):
    """The header, which names the model that answers, and the panel of other models."""

    header: gr.HTML
    panel: gr.Accordion
    model: gr.Dropdown
    offers: gr.HTML


class SettingsParts(NamedTuple):
    """The settings."""

    controls: Controls
    reader_first: gr.Checkbox
    blind: gr.Checkbox
    reset: gr.Button


class EvidenceParts(NamedTuple):
    """The knowledge base and the retrieved reports."""

    base: gr.Dropdown
    base_facts: gr.HTML
    tint: gr.Radio
    evidence_cards: gr.HTML
    compare: gr.HTML


class AnswerParts(NamedTuple):
    """The three answers, and the reader's own impression."""

    stale: gr.HTML
    answer_columns: gr.HTML
    impression: gr.Textbox
    reveal: gr.Button


class AttentionParts(NamedTuple):
    """The heatmaps, the lines, and one layer over the picture."""

    attention_note: gr.HTML
    view: gr.Radio
    head: gr.Dropdown
    states: gr.Radio
    before: gr.Plot
    after: gr.Plot
    difference: gr.Plot
    extremes: gr.HTML
    lines: gr.Plot
    layer: gr.Slider
    overlays: gr.HTML


class SavingParts(NamedTuple):
    """The buttons that save a case, and the list of this tab's cases."""

    as_html: gr.Button
    as_json: gr.Button
    pixels: gr.Checkbox
    download: gr.HTML
    history: gr.HTML


class Parts(NamedTuple):
    """The components of the page that events read or write, by section."""

    state: StateParts
    case: CaseParts
    models: ModelParts
    settings: SettingsParts
    evidence: EvidenceParts
    answers: AnswerParts
    arena: ArenaParts
    attention: AttentionParts
    saving: SavingParts


def lay_out(abouts: Sequence[About], samples: Sequence[Sample], *, offers: bool = False) -> Parts:
    """Make the page's components in the open Blocks; the page shows the first of ``abouts``.

    With ``offers``, other models may be chosen.
    """
    about = abouts[0]
    state = lay_out_state()
    header = html(frame.header(about), "header", frame.script("theme"))
    with gr.Row(elem_id="desk", equal_height=False):
        with gr.Column(elem_id="case", min_width=0):
            case = lay_out_case(samples)
            models = lay_out_models(header, about, offers=offers)
            settings = lay_out_settings(about)
        with gr.Column(elem_id="findings", min_width=0):
            html(frame.how_to_read())
            evidence = lay_out_evidence(abouts)
            answers = lay_out_answers()
            arena = lay_out_arena(CASE_SECONDS)
            attention = lay_out_attention(about)
            saving = lay_out_saving()
    return Parts(state, case, models, settings, evidence, answers, arena, attention, saving)


def lay_out_state() -> StateParts:
    """Make the invisible components."""
    return StateParts(
        image=gr.State(None, time_to_live=CASE_SECONDS),
        evidence_state=gr.State(None, time_to_live=CASE_SECONDS),
        multiframe=gr.State(b"", time_to_live=CASE_SECONDS),
        study=gr.State(None, time_to_live=CASE_SECONDS),
        payload=gr.State("", time_to_live=CASE_SECONDS),
        case_state=gr.State(None, time_to_live=CASE_SECONDS),
        visit=gr.State(Visit()),
        ask_time=gr.Number(visible=False),
        press_time=gr.Number(visible=False),
    )


def lay_out_case(samples: Sequence[Sample]) -> CaseParts:
    """Make the picture, the question, Ask and Stop."""
    html("<h2>Case</h2>")
    picker = html(samples_html(samples, None), "samples", frame.script("samples"))
    upload = gr.File(
        label="Upload a radiograph, or a study’s files", show_label=False, elem_id="upload",
        height=52, file_count="multiple",
    )  # fmt: skip
    html(
        '<p class="small under">DICOM, PNG, JPEG, WebP, TIFF or BMP; several files or a ZIP of one '
        "study. Read into memory, then deleted.</p>"
    )
    with gr.Column(elem_id="archive-place", min_width=0) as archive:
        pass
    pictures = html("", "pictures", frame.script("samples"))
    question = gr.Textbox(
        label="Question",
        placeholder="Is there a pleural effusion?",
        lines=1,
        max_lines=4,
        max_length=MAX_QUESTION_CHARACTERS,
        elem_id="question",
        submit_btn=False,
    )
    picture = html("", "viewer", viewer.SCRIPT, viewer.frame())
    heat = html("", "heat", viewer.HEAT_SCRIPT, "<i></i>")
    window = gr.Textbox(visible=False)
    with gr.Row(elem_id="about-picture", equal_height=False):
        model_view = html("", "sees")
        preview = html(frame.empty("No picture yet."), "preview")
    with gr.Column(elem_id="act", min_width=0):
        with gr.Row(elem_id="go"):
            ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=0)
            stop = gr.Button("Stop", elem_id="stop", min_width=0)
        status = html(frame.status("Opening the page", kind="busy"), "status")
    return CaseParts(
        samples=picker,
        upload=upload,
        archive=archive,
        pictures=pictures,
        question=question,
        viewer=picture,
        heat=heat,
        window=window,
        model_view=model_view,
        preview=preview,
        ask=ask,
        stop=stop,
        status=status,
    )


def lay_out_models(header: gr.HTML, about: About, *, offers: bool) -> ModelParts:
    """Make the choice of another model, closed until it is opened; hidden where there is none."""
    with gr.Accordion("Another model", open=False, elem_id="models", visible=offers) as panel:
        model = gr.Dropdown(
            [(Path(about.model).name, 0)], value=0, label="Model that answers you", elem_id="model",
            filterable=False, visible=False,
        )  # fmt: skip
        rows = html(
            frame.empty("Looking what can be loaded here."), "offers", frame.script("samples")
        )
    return ModelParts(header, panel, model, rows)


def lay_out_settings(about: About) -> SettingsParts:
    """Make the settings, closed until they are opened."""
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        controls = lay_out_controls(about)
        with gr.Row(elem_id="reading-modes"):
            reader_first = gr.Checkbox(
                False, label="Reader first", min_width=0,
                info="The answers wait for your own impression.",
            )  # fmt: skip
            blind = gr.Checkbox(
                False, label="Blind", min_width=0,
                info="Unlabelled and shuffled until you vote.",
            )  # fmt: skip
        reset = gr.Button("Reset to the learnt values", size="sm", elem_id="reset")
    return SettingsParts(controls, reader_first, blind, reset)


def lay_out_controls(about: About) -> Controls:
    """Make the controls of retrieval and of IFA."""
    limit = max_weight(about)
    k = gr.Slider(1, MAX_K, 8, step=1, label="Reports to retrieve, K")
    noise = gr.Slider(
        0, MAX_K, 0, step=1,
        label="Irrelevant reports mixed in",
        info="This many of the K, from the last rank up, are replaced by random reports.",
    )  # fmt: skip
    alpha, beta, gamma = (
        gr.Slider(
            -limit, limit, round(getattr(about.weights, name), 2), step=WEIGHT_STEP,
            label=f"{letter}: {pair}",
        )
        for name, letter, pair in cards.TERMS
    )  # fmt: skip
    strength = gr.Slider(
        0, MAX_STRENGTH, about.strength, step=0.05,
        label="IFA strength",
        info="Multiplies λ; 0 is plain RAG. The paper has no such factor.",
    )  # fmt: skip
    layers = gr.CheckboxGroup(
        [str(i) for i in range(about.layers)],
        value=[str(i) for i in about.critical],
        label="Layers where IFA acts",
        elem_id="layers",
    )
    form = gr.Radio(
        list(FORM_NAMES.items()),
        value=about.form,
        label="Form of IFA",
        info="As in the paper: λ·|logit| is added to each report’s logits. Balanced: a report’s "
        "attention is multiplied by e^strength for each 0.1 of score; the total stays the same.",
        elem_id="form",
    )
    return Controls(
        k=k, alpha=alpha, beta=beta, gamma=gamma,
        strength=strength, layers=layers, form=form, noise=noise,
    )  # fmt: skip


def lay_out_evidence(abouts: Sequence[About]) -> EvidenceParts:
    """Make the knowledge base, and the cards of the reports."""
    names = [(f"{n + 1}. {about.base.name}", n) for n, about in enumerate(abouts)]
    with gr.Column(elem_id="evidence-panel", min_width=0):
        html("<h2>Evidence</h2>")
        base = gr.Dropdown(
            names, value=0, label="Knowledge base", elem_id="base", filterable=False,
            visible=len(abouts) > 1,
        )  # fmt: skip
        facts = html(frame.base_facts(abouts[0]), "base-facts")
        tint = gr.Radio(
            list(TINTS), value=TINT_OFF, elem_id="tint", label="Tint the words by attention"
        )
        evidence = html(cleared()["evidence_cards"], "evidence", frame.script("evidence"))
        compare = html("", "compare")
    return EvidenceParts(base, facts, tint, evidence, compare)


def lay_out_answers() -> AnswerParts:
    """Make the answers side by side, and the reader's own impression."""
    with gr.Column(elem_id="answers-panel", min_width=0):
        html("<h2>Answers</h2>")
        stale = html("", "stale")
        columns = html(cleared()["answer_columns"], "answers", frame.script("vote"))
        # Hidden by the style sheet unless answers wait for the impression.
        with gr.Row(elem_id="first", equal_height=True):
            impression = gr.Textbox(
                label="Your impression", lines=1, max_lines=4, min_width=0,
                max_length=MAX_QUESTION_CHARACTERS, elem_id="impression",
            )  # fmt: skip
            reveal = gr.Button("Show the answers", elem_id="reveal", min_width=0)
    return AnswerParts(stale, columns, impression, reveal)


def lay_out_attention(about: About) -> AttentionParts:
    """Make the maps, the lines, and one layer over the picture."""
    with gr.Column(elem_id="attention-panel", min_width=0):
        html(f"<h2>Attention</h2>{answer_cards.attention_intro()}")
        note = html(cleared()["attention_note"], "attention-note")
        # Hidden by the style sheet while there is a note in its place.
        with gr.Column(elem_id="attention", min_width=0):
            with gr.Row(elem_id="look"):
                view = gr.Radio(
                    list(plots.VIEWS), value=plots.REPORTS, label="Columns",
                    elem_id="view", min_width=0,
                )  # fmt: skip
                head = gr.Dropdown(
                    heads(about), value=MEAN_OF_HEADS, label="Heads",
                    elem_id="head", min_width=0, filterable=False,
                )  # fmt: skip
                states = gr.Radio(
                    list(STATES), value=AS_IT_RAN, label="After IFA",
                    elem_id="states", min_width=0,
                )  # fmt: skip
            with gr.Row(elem_id="maps", equal_height=True):
                before = plot("Attention before IFA", "map-before")
                after = plot("Attention after IFA", "map-after")
                difference = plot("Attention, after minus before", "map-difference")
            extremes = html("", "reading", frame.script("layer"))
            lines = plot("Attention on all reports by layer, both runs", "lines")
            html("<h3>Where on the picture</h3>")
            layer = gr.Slider(
                0, about.layers - 1, about.critical[0] if about.critical else 0, step=1,
                elem_id="layer", label="Layer",
                info="Choose by arrow keys or a click on a map.",
            )  # fmt: skip
            overlays = html("", "overlays")
    return AttentionParts(
        attention_note=note, view=view, head=head, states=states,
        before=before, after=after, difference=difference,
        extremes=extremes, lines=lines, layer=layer, overlays=overlays,
    )  # fmt: skip


def lay_out_saving() -> SavingParts:
    """Make the buttons that save a case, and the list of this tab."""
    with gr.Column(elem_id="keep-panel", min_width=0):
        html("<h2>Save this case</h2>")
        with gr.Row(elem_id="keep"):
            as_html = gr.Button("Save as HTML", size="sm", min_width=0)
            as_json = gr.Button("Save as JSON", size="sm", min_width=0)
            pixels = gr.Checkbox(
                False, label="Include the pictures (HTML)", elem_id="pixels", min_width=0
            )
        download = html("", "file-out", frame.script("save"), "<i></i>")
        history = html("", "history", frame.script("history"), frame.history())
    return SavingParts(as_html, as_json, pixels, download, history)


def components(parts: Parts) -> dict[str, gr.blocks.Block]:
    """Return the components that an :class:`Update` may name, in its order."""
    sections = (*parts, parts.settings.controls)
    fields = {name: part for section in sections for name, part in section._asdict().items()}
    return {name: fields[name] for name in Update.__annotations__}
