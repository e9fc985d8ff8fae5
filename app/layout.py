"""Which components the page has, section by section, in the order in which they stand.

Layout only: what the components do is wired in :mod:`app.page`, and what fills them looks as
:mod:`mrrag.report.cards`, :mod:`mrrag.report.plots` and ``style.css`` say. Each section is a function that makes
its components and returns those that events read or write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import gradio as gr
import plotly.graph_objects as go

from app.about import About
from app.sections import viewer
from app.sections.attention import AS_IT_RAN, MEAN_OF_HEADS, STATES, heads
from app.sections.case import Sample, samples_html
from app.sections.evidence import TINT_OFF, TINTS
from app.sections.settings import FORM_NAMES, MAX_K, MAX_STRENGTH, WEIGHT_STEP, max_weight
from app.sections.visit import Visit, cleared
from mrrag.case import MAX_QUESTION_CHARACTERS
from mrrag.report import cards, plots

# How long a visit's case is kept after it was last touched.
CASE_SECONDS = 1800


class HeldParts(NamedTuple):
    """What is kept of one visit, and when its controls were pressed; none of it is seen."""

    image: gr.State
    found: gr.State
    file: gr.State  # of several frames, without identity
    waiting: gr.State  # a picture on its way to the viewer
    shown: gr.State
    visit: gr.State
    asked: gr.Number  # when Ask was pressed
    pressed: gr.Number  # when another control was


class CaseParts(NamedTuple):
    """The picture and the question."""

    samples: gr.HTML
    upload: gr.File
    question: gr.Textbox
    film: gr.HTML
    heat: gr.HTML
    window: gr.Textbox  # the viewer's, read as a person asks
    sees: gr.HTML
    preview: gr.HTML
    ask: gr.Button
    stop: gr.Button
    status: gr.HTML
    line: gr.HTML


class SettingsParts(NamedTuple):
    """The settings; ``weights`` are those of α, β and γ."""

    k: gr.Slider
    noise: gr.Slider
    weights: list[gr.Slider]
    strength: gr.Slider
    layers: gr.CheckboxGroup
    form: gr.Radio
    reader_first: gr.Checkbox
    blind: gr.Checkbox
    reset: gr.Button


class EvidenceParts(NamedTuple):
    """The reports that were found, and over which knowledge base."""

    base: gr.Dropdown
    facts: gr.HTML
    tint: gr.Radio
    cards: gr.HTML
    compare: gr.HTML


class AnswerParts(NamedTuple):
    """The three answers, and what the reader says of them first."""

    stale: gr.HTML
    columns: gr.HTML
    words: gr.Textbox
    reveal: gr.Button


class AttentionParts(NamedTuple):
    """The heatmaps, the lines, and one layer over the picture."""

    note: gr.HTML
    view: gr.Radio
    head: gr.Dropdown
    states: gr.Radio
    before: gr.Plot
    after: gr.Plot
    difference: gr.Plot
    reading: gr.HTML
    lines: gr.Plot
    layer: gr.Slider
    overlays: gr.HTML


class SavingParts(NamedTuple):
    """What keeps a case."""

    as_html: gr.Button
    as_json: gr.Button
    pixels: gr.Checkbox
    file_out: gr.HTML
    history: gr.HTML


class Parts(NamedTuple):
    """The components of the page that events read or write, by section."""

    held: HeldParts
    case: CaseParts
    settings: SettingsParts
    evidence: EvidenceParts
    answers: AnswerParts
    attention: AttentionParts
    saving: SavingParts


def lay_out(abouts: Sequence[About], samples: Sequence[Sample]) -> Parts:
    """Lay the page out, in the Blocks that are open; it shows the first of ``abouts``."""
    about = abouts[0]
    held = lay_out_held()
    html(cards.header(about.model, about.phantoms_only, about.why), "header", cards.HEADER_SCRIPT)
    with gr.Row(elem_id="desk", equal_height=False):
        with gr.Column(elem_id="case", min_width=0):
            case = lay_out_case(samples)
            settings = lay_out_settings(about)
        with gr.Column(elem_id="findings", min_width=0):
            html(cards.how_to_read())
            evidence = lay_out_evidence(abouts)
            answers = lay_out_answers()
            attention = lay_out_attention(about)
            saving = lay_out_saving()
    return Parts(held, case, settings, evidence, answers, attention, saving)


def lay_out_held() -> HeldParts:
    """What is not seen."""
    return HeldParts(
        image=gr.State(None, time_to_live=CASE_SECONDS),
        found=gr.State(None, time_to_live=CASE_SECONDS),
        file=gr.State(b"", time_to_live=CASE_SECONDS),
        waiting=gr.State("", time_to_live=CASE_SECONDS),
        shown=gr.State(None, time_to_live=CASE_SECONDS),
        visit=gr.State(Visit()),
        asked=gr.Number(visible=False),
        pressed=gr.Number(visible=False),
    )


def lay_out_case(samples: Sequence[Sample]) -> CaseParts:
    """The picture, the question, Ask and Stop."""
    html("<h2>Case</h2>")
    picker = html(samples_html(samples, None), "samples", cards.SAMPLES_SCRIPT)
    upload = gr.File(label="Upload a radiograph", show_label=False, elem_id="upload", height=52)
    html('<p class="small under">DICOM, PNG or JPEG; read into memory, then deleted.</p>')
    question = gr.Textbox(
        label="Question",
        placeholder="Is there a pleural effusion?",
        lines=1,
        max_lines=4,
        max_length=MAX_QUESTION_CHARACTERS,
        elem_id="question",
        submit_btn=False,
    )
    film = html("", "viewer", viewer.SCRIPT, viewer.frame())
    heat = html("", "heat", viewer.HEAT_SCRIPT, "<i></i>")
    window = gr.Textbox(visible=False)
    with gr.Row(elem_id="about-picture", equal_height=False):
        sees = html("", "sees")
        preview = html(cards.empty("No picture yet."), "preview")
    with gr.Column(elem_id="act", min_width=0):
        with gr.Row(elem_id="go"):
            ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=0)
            stop = gr.Button("Stop", elem_id="stop", min_width=0)
        status = html(cards.status("Opening the page", kind="busy"), "status")
        line = html("", "line", cards.LINE_SCRIPT)
    return CaseParts(
        samples=picker,
        upload=upload,
        question=question,
        film=film,
        heat=heat,
        window=window,
        sees=sees,
        preview=preview,
        ask=ask,
        stop=stop,
        status=status,
        line=line,
    )


def lay_out_settings(about: About) -> SettingsParts:
    """The settings, closed until they are wanted."""
    limit = max_weight(about)
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        k = gr.Slider(1, MAX_K, 8, step=1, label="Reports to retrieve, K")
        noise = gr.Slider(
            0, MAX_K, 0, step=1,
            label="Irrelevant reports mixed in",
            info="This many of the K, from the last rank up, are drawn at random.",
        )  # fmt: skip
        weights = [
            gr.Slider(-limit, limit, value, step=WEIGHT_STEP, label=f"{letter}: {pair}")
            for (name, letter, pair) in cards.TERMS
            for value in [round(getattr(about.weights, name), 2)]
        ]
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
            info="As in the paper, λ·|logit| is added on each report. Balanced, a report is read "
            "e^strength times as much for each 0.1 of score, and all together as much as before.",
            elem_id="form",
        )
        with gr.Row(elem_id="reading-modes"):
            reader_first = gr.Checkbox(
                False, label="Reader first", min_width=0,
                info="The answers wait for your own impression.",
            )  # fmt: skip
            blind = gr.Checkbox(
                False, label="Blind", min_width=0,
                info="Unlabelled and shuffled until you vote.",
            )  # fmt: skip
        reset = gr.Button("Back to the learnt values", size="sm", elem_id="reset")
    return SettingsParts(k, noise, weights, strength, layers, form, reader_first, blind, reset)


def lay_out_evidence(abouts: Sequence[About]) -> EvidenceParts:
    """The knowledge base, and a card a report."""
    names = [(f"{n + 1}. {about.base.name}", n) for n, about in enumerate(abouts)]
    with gr.Column(elem_id="evidence-panel", min_width=0):
        html("<h2>Evidence</h2>")
        # Each visit has its own choice: what the browser shows is what is asked.
        base = gr.Dropdown(
            names, value=0, label="Knowledge base", elem_id="base", filterable=False,
            visible=len(abouts) > 1,
        )  # fmt: skip
        facts = html(cards.base_facts(abouts[0]), "base-facts")
        tint = gr.Radio(
            list(TINTS), value=TINT_OFF, elem_id="tint", label="Tint the words by attention"
        )
        evidence = html(cleared()["evidence"], "evidence", cards.EVIDENCE_SCRIPT)
        compare = html("", "compare")
    return EvidenceParts(base, facts, tint, evidence, compare)


def lay_out_answers() -> AnswerParts:
    """The answers side by side, and the reader's own impression."""
    with gr.Column(elem_id="answers-panel", min_width=0):
        html("<h2>Answers</h2>")
        stale = html("", "stale")
        columns = html(cleared()["answers"], "answers", cards.VOTE_SCRIPT)
        # Hidden by the style sheet unless answers are waiting for it.
        with gr.Row(elem_id="first", equal_height=True):
            words = gr.Textbox(
                label="Your impression", lines=1, max_lines=4, min_width=0,
                max_length=MAX_QUESTION_CHARACTERS, elem_id="impression",
            )  # fmt: skip
            reveal = gr.Button("Show the answers", elem_id="reveal", min_width=0)
    return AnswerParts(stale, columns, words, reveal)


def lay_out_attention(about: About) -> AttentionParts:
    """The maps, the lines, and one layer over the picture."""
    with gr.Column(elem_id="attention-panel", min_width=0):
        html(f"<h2>Attention</h2>{cards.attention_intro()}")
        note = html(cleared()["attention"], "attention-note")
        # Hidden by the style sheet while the note says that there is nothing.
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
                # Empty figures make the browser fetch its plotting code early.
                before, after, difference = (
                    gr.Plot(
                        go.Figure(), show_label=False, label=label, container=False,
                        elem_classes="map", elem_id=name, min_width=0,
                    )
                    for name, label in (
                        ("map-before", "Attention before IFA"),
                        ("map-after", "Attention after IFA"),
                        ("map-difference", "Attention, after minus before"),
                    )
                )  # fmt: skip
            reading = html("", "reading", cards.LAYER_SCRIPT)
            lines = gr.Plot(
                go.Figure(), show_label=False, container=False, elem_id="lines",
                label="Attention on all reports by layer, both runs",
                elem_classes="map", min_width=0,
            )  # fmt: skip
            html("<h3>Where on the picture</h3>")
            layer = gr.Slider(
                0, about.layers - 1, about.critical[0] if about.critical else 0, step=1,
                elem_id="layer", label="Layer",
                info="Chosen by arrow keys or a click on a map.",
            )  # fmt: skip
            overlays = html("", "overlays")
    return AttentionParts(
        note=note,
        view=view,
        head=head,
        states=states,
        before=before,
        after=after,
        difference=difference,
        reading=reading,
        lines=lines,
        layer=layer,
        overlays=overlays,
    )


def lay_out_saving() -> SavingParts:
    """What keeps a case: a file, and the list of this tab."""
    with gr.Column(elem_id="keep-panel", min_width=0):
        html("<h2>Keep this case</h2>")
        with gr.Row(elem_id="keep"):
            as_html = gr.Button("Save as HTML", size="sm", min_width=0)
            as_json = gr.Button("Save as JSON", size="sm", min_width=0)
            pixels = gr.Checkbox(
                False, label="With the pictures (HTML)", elem_id="pixels", min_width=0
            )
        file_out = html("", "file-out", cards.SAVE_SCRIPT, "<i></i>")
        history = html("", "history", cards.HISTORY_SCRIPT, cards.HISTORY)
    return SavingParts(as_html, as_json, pixels, file_out, history)


def named(parts: Parts) -> dict[str, gr.blocks.Block]:
    """The parts of the page by the names that an update gives them."""
    held, case, settings, evidence, answers, attention, saving = parts
    return {
        "image": held.image, "shown": held.shown, "samples": case.samples,
        "preview": case.preview, "question": case.question, "status": case.status,
        "evidence": evidence.cards, "answers": answers.columns, "attention": attention.note,
        "view": attention.view, "before": attention.before, "after": attention.after,
        "difference": attention.difference, "reading": attention.reading,
        "layer": attention.layer, "overlays": attention.overlays, "noise": settings.noise,
        "found": held.found, "stale": answers.stale, "compare": evidence.compare,
        "head": attention.head, "states": attention.states, "lines": attention.lines,
        "history": saving.history, "file_out": saving.file_out, "facts": evidence.facts,
        "film": case.film, "file": held.file, "heat": case.heat, "sees": case.sees,
        "waiting": held.waiting,
    }  # fmt: skip


def html(
    content: str,
    name: str | None = None,
    script: str | None = None,
    template: str = "${value}",
) -> gr.HTML:
    """A part of the page that our own markup fills; a fixed ``template`` leaves it to a script."""
    return gr.HTML(
        content,
        html_template=template,
        elem_id=name,
        elem_classes="ours",
        apply_default_css=False,
        js_on_load=script,
    )
