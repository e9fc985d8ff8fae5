"""The page: gradio's components, their wiring to the actions, and how it is launched.

Layout and wiring only; what a control does is in :mod:`app.actions`, what things look
like in :mod:`app.cards`, :mod:`app.plots` and ``style.css``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import plotly.graph_objects as go
from gradio.utils import get_upload_folder

from app import actions, cards, plots
from app.about import About

if TYPE_CHECKING:
    from mrrag.pipeline import Pipeline

STYLE = Path(__file__).with_name("style.css")
# How long a visit's case is kept after it was last touched, and a temporary file at most.
CASE_SECONDS = 1800
FILE_SECONDS = 300
MAX_WAITING = 32
MAX_VISITS = 64


def take_upload(path: object) -> bytes:
    """Read an upload and delete it and what gradio put beside it; empty where it is not there.

    Only a file in gradio's own upload folder is read, whatever the caller says.
    """
    folder = Path(get_upload_folder()).resolve()
    file = Path(path).resolve() if isinstance(path, str) else folder
    if folder not in file.parents:
        return b""
    try:
        return file.read_bytes()
    except OSError:
        return b""
    finally:
        file.unlink(missing_ok=True)
        # gr.File leaves an empty file of its own in the folder for each upload.
        empty = [f for f in folder.glob("tmp*") if f.is_file() and f.stat().st_size == 0]
        for leftover in empty:
            leftover.unlink(missing_ok=True)
        if file.parent != folder and not any(file.parent.iterdir()):
            file.parent.rmdir()


def theme() -> gr.themes.Base:
    """Calm greys and one teal; fonts that gradio ships, so nothing is fetched."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        text_size=gr.themes.sizes.text_sm,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_sm,
        font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"],
        font_mono=[
            gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"
        ],
    ).set(
        body_background_fill="#f1f4f6",
        body_background_fill_dark="#0b1014",
        body_text_color="#17222b",
        body_text_color_dark="#e3eaf0",
        body_text_color_subdued="#516070",
        body_text_color_subdued_dark="#9badbb",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="600",
        border_color_primary="#d5dde4",
        border_color_primary_dark="#26323c",
        input_background_fill="#ffffff",
        input_background_fill_dark="#10171d",
        input_border_width="1px",
        input_border_color="#8795a3",
        input_border_color_dark="#5b6b79",
        button_primary_background_fill="#0b656d",
        button_primary_background_fill_hover="#084f56",
        button_primary_background_fill_dark="#7fd3d6",
        button_primary_background_fill_hover_dark="#a5e3e5",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#06262a",
        slider_color="#0b656d",
        slider_color_dark="#7fd3d6",
    )  # fmt: skip


def build_page(
    about: About,
    samples: Sequence[actions.Sample],
    engine: Future[Pipeline],
    answer: actions.Answering | None = None,
) -> gr.Blocks:
    """Lay the page out and wire it; ``engine`` may still be loading.

    ``answer`` takes the place of :func:`mrrag.pipeline.answer` where a device is lent.
    """
    first = about.critical[0] if about.critical else 0
    limit = actions.max_weight(about)

    page = gr.Blocks(
        title="MR-RAG",
        analytics_enabled=False,
        delete_cache=(FILE_SECONDS, FILE_SECONDS),
        fill_width=True,
    )
    with page:
        image = gr.State(None, time_to_live=CASE_SECONDS)
        shown = gr.State(None, time_to_live=CASE_SECONDS)
        draft = gr.State(actions.Draft(), time_to_live=CASE_SECONDS)

        html(
            cards.header(about.model, about.phantoms_only, about.why), "header", cards.HEADER_SCRIPT
        )
        with gr.Row(elem_id="desk", equal_height=False):
            with gr.Column(elem_id="case", min_width=0):
                html("<h2>Case</h2>")
                picker = html(actions.samples_html(samples, None), "samples", cards.SAMPLES_SCRIPT)
                upload = gr.File(
                    label="Upload a radiograph", show_label=False, elem_id="upload", height=52
                )
                html(
                    '<p class="small under">DICOM, PNG or JPEG; read into memory, then deleted.</p>'
                )
                preview = html(cards.empty("No picture yet."), "preview")
                question = gr.Textbox(
                    label="Question",
                    placeholder="Is there a pleural effusion?",
                    lines=1,
                    max_lines=4,
                    max_length=actions.MAX_QUESTION_CHARACTERS,
                    elem_id="question",
                    submit_btn=False,
                )
                with gr.Column(elem_id="act", min_width=0):
                    with gr.Row(elem_id="go"):
                        ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=0)
                        stop = gr.Button("Stop", elem_id="stop", min_width=0)
                    status = html(cards.status("Pick a sample case or upload a picture."), "status")
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    k = gr.Slider(1, actions.MAX_K, 8, step=1, label="Reports to retrieve, K")
                    noise = gr.Slider(
                        0, actions.MAX_K, 0, step=1,
                        label="Irrelevant reports mixed in",
                        info="This many of the K, from the last rank up, are drawn at random.",
                    )  # fmt: skip
                    weights = [
                        gr.Slider(
                            -limit, limit, value, step=actions.WEIGHT_STEP,
                            label=f"{letter}: {pair}",
                        )
                        for (name, letter, pair) in cards.TERMS
                        for value in [round(getattr(about.weights, name), 2)]
                    ]  # fmt: skip
                    strength = gr.Slider(
                        0, actions.MAX_STRENGTH, about.strength, step=0.05,
                        label="IFA strength",
                        info="Multiplies λ; 1 is the paper’s, 0 is plain RAG.",
                    )  # fmt: skip
                    layers = gr.CheckboxGroup(
                        [str(i) for i in range(about.layers)],
                        value=[str(i) for i in about.critical],
                        label="Layers where IFA acts",
                        elem_id="layers",
                    )
                    reset = gr.Button("Back to the learnt values", size="sm", elem_id="reset")

            with gr.Column(elem_id="findings", min_width=0):
                html(cards.how_to_read())
                with gr.Column(elem_id="evidence-panel", min_width=0):
                    html("<h2>Evidence</h2>")
                    evidence = html(actions.cleared()["evidence"], "evidence")
                with gr.Column(elem_id="answers-panel", min_width=0):
                    html("<h2>Answers</h2>")
                    answers = html(actions.cleared()["answers"], "answers")
                with gr.Column(elem_id="attention-panel", min_width=0):
                    html(f"<h2>Attention</h2>{cards.attention_intro()}")
                    attention = html(actions.cleared()["attention"], "attention-note")
                    # Hidden by the style sheet while the note says that there is nothing.
                    with gr.Column(elem_id="attention", min_width=0):
                        view = gr.Radio(
                            list(plots.VIEWS), value=plots.REPORTS, label="Columns",
                            elem_id="view",
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
                        reading = html("", "reading")
                        html("<h3>Where on the picture</h3>")
                        layer = gr.Slider(
                            0, about.layers - 1, first, step=1, elem_id="layer",
                            label="Layer", info="Arrow keys step through the layers.",
                        )  # fmt: skip
                        overlays = html("", "overlays")

        parts: dict[str, gr.blocks.Block] = {
            "image": image, "shown": shown, "samples": picker, "preview": preview,
            "question": question, "status": status, "evidence": evidence, "answers": answers,
            "attention": attention, "view": view, "before": before, "after": after,
            "difference": difference, "reading": reading, "layer": layer, "overlays": overlays,
            "noise": noise,
        }  # fmt: skip

        def placed(update: actions.Update) -> dict[gr.blocks.Block, Any]:
            """An action's update as gradio takes it."""
            return {parts[name]: content for name, content in update.items()}

        def on_sample(event: gr.EventData) -> dict[gr.blocks.Block, Any]:
            return placed(actions.choose_sample(samples, event._data.get("sample")))

        def on_upload(path: Any) -> dict[gr.blocks.Block, Any]:
            return placed(actions.read_upload(samples, take_upload(path))) | {upload: None}

        def on_ask(
            draft: Any, image: Any, question: Any, *controls: Any
        ) -> Iterator[dict[gr.blocks.Block, Any]]:
            for update in actions.ask(engine, about, draft, image, question, controls, answer):
                yield placed(update)

        everything = list(parts.values())
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

        picker.click(on_sample, None, everything, **quiet)
        upload.upload(on_upload, upload, [*everything, upload], **quiet)
        asked = gr.on(
            [ask.click, question.submit],
            on_ask,
            [draft, image, question, k, *weights, strength, layers, noise],
            everything,
            concurrency_limit=1,
            concurrency_id="model",
            **quiet,
        )
        stop.click(
            lambda draft: placed(actions.stop(draft)),
            draft,
            [status, answers],
            cancels=[asked],
            **quiet,
        )
        view.input(
            lambda *inputs: placed(actions.heatmaps(*inputs)),
            [shown, view],
            [before, after, difference, reading, status],
            **quiet,
        )
        layer.input(
            lambda *inputs: placed(actions.overlay(*inputs)),
            [shown, layer],
            [overlays, status],
            trigger_mode="always_last",
            **quiet,
        )
        reset.click(
            lambda: (
                *(round(getattr(about.weights, name), 2) for name, _, _ in cards.TERMS),
                about.strength,
                [str(i) for i in about.critical],
            ),
            None,
            [*weights, strength, layers],
            **quiet,
        )
    page.queue(max_size=MAX_WAITING, api_open=False, default_concurrency_limit=4)
    return page


def html(content: str, name: str | None = None, script: str | None = None) -> gr.HTML:
    """A part of the page that our own markup fills."""
    return gr.HTML(
        content, elem_id=name, elem_classes="ours", apply_default_css=False, js_on_load=script
    )


def launch_options(host: str, port: int | None) -> dict[str, Any]:
    """How the page is served: to this machine alone unless told otherwise, and quietly.

    Nothing is shared, counted, recorded or documented for callers; no file of this
    machine is served but gradio's own; errors never show their cause.
    """
    return {
        "server_name": host,
        "server_port": port,
        "share": False,
        "inbrowser": False,
        "debug": False,
        "show_error": False,
        "quiet": True,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "ssr_mode": False,
        "pwa": False,
        "strict_cors": True,
        "allowed_paths": [],
        "max_file_size": actions.MAX_UPLOAD_BYTES,
        "max_threads": 8,
        "state_session_capacity": MAX_VISITS,
        "app_kwargs": {"docs_url": None, "redoc_url": None, "openapi_url": None},
        "theme": theme(),
        "css_paths": [STYLE],
    }
