"""The page: gradio's components, their wiring to the actions, and how it is launched.

Layout and wiring only; what a control does is in :mod:`app.actions`, what things look
like in :mod:`app.cards`, :mod:`app.plots` and ``style.css``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr
import plotly.graph_objects as go
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from app import actions, cards, plots, viewer
from app.about import About
from app.uploads import FILE_SECONDS, WholeUploads, take_upload

if TYPE_CHECKING:
    from mrrag.pipeline import Pipeline

logger = logging.getLogger(__name__)

STYLE = Path(__file__).with_name("style.css")
# How long a visit's case is kept after it was last touched.
CASE_SECONDS = 1800
MAX_WAITING = 32
WAIT_SECONDS = 0.5  # between two looks at the line
LOOKS = 10  # for a question that does not come to it
SAME_PRESS = 250  # ms; what one press starts does not note the very same moment
MAX_VISITS = 64


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


class Offer(NamedTuple):
    """A knowledge base to choose: what the page says of it, and what answers over it."""

    about: About
    engine: Future[Pipeline]
    answer: actions.Answering | None = None


class Page(gr.Blocks):
    """Blocks that keep no more of a visit than its states.

    gradio would keep whatever a visit was shown, to link to it, and again under a new number
    each time an update leaves that part alone: without an end, and longer than the case.
    """

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """Make an event's outputs ready to be sent, and forget them."""
        try:
            return await super().postprocess_data(block_fn, predictions, state)
        finally:
            if state is not None:
                state.blocks_config.blocks = dict(self.default_config.blocks)
                state.config_values = {}


def build_page(
    about: About,
    samples: Sequence[actions.Sample],
    engine: Future[Pipeline],
    answer: actions.Answering | None = None,
    others: Sequence[Offer] = (),
) -> gr.Blocks:
    """Lay the page out and wire it; ``engine`` may still be loading.

    ``answer`` takes the place of :func:`mrrag.pipeline.answer` where a device is lent.
    ``others`` are further knowledge bases to choose from.
    """
    offers = (Offer(about, engine, answer), *others)
    names = [(f"{n + 1}. {o.about.base.name}", n) for n, o in enumerate(offers)]
    first = about.critical[0] if about.critical else 0
    limit = actions.max_weight(about)

    page = Page(
        title="MR-RAG",
        analytics_enabled=False,
        delete_cache=(FILE_SECONDS, FILE_SECONDS),
        fill_width=True,
    )
    with page:
        image = gr.State(None, time_to_live=CASE_SECONDS)
        found = gr.State(None, time_to_live=CASE_SECONDS)
        file = gr.State(b"", time_to_live=CASE_SECONDS)  # of several frames, without identity
        waiting = gr.State("", time_to_live=CASE_SECONDS)  # a picture on its way to the viewer
        shown = gr.State(None, time_to_live=CASE_SECONDS)
        visit = gr.State(actions.Visit())
        # When Ask, and when another control, was pressed.
        asked, pressed = gr.Number(visible=False), gr.Number(visible=False)

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
                question = gr.Textbox(
                    label="Question",
                    placeholder="Is there a pleural effusion?",
                    lines=1,
                    max_lines=4,
                    max_length=actions.MAX_QUESTION_CHARACTERS,
                    elem_id="question",
                    submit_btn=False,
                )
                film = html("", "viewer", viewer.SCRIPT, viewer.frame())
                heat = html("", "heat", viewer.HEAT_SCRIPT, "<i></i>")
                window = gr.Textbox(visible=False)  # the viewer's window, read as a person asks
                with gr.Row(elem_id="about-picture", equal_height=False):
                    sees = html("", "sees")
                    preview = html(cards.empty("No picture yet."), "preview")
                with gr.Column(elem_id="act", min_width=0):
                    with gr.Row(elem_id="go"):
                        ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=0)
                        stop = gr.Button("Stop", elem_id="stop", min_width=0)
                    status = html(cards.status("Opening the page", kind="busy"), "status")
                    line = html("", "line", cards.LINE_SCRIPT)
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

            with gr.Column(elem_id="findings", min_width=0):
                html(cards.how_to_read())
                with gr.Column(elem_id="evidence-panel", min_width=0):
                    html("<h2>Evidence</h2>")
                    # Each visit has its own choice: what the browser shows is what is asked.
                    base = gr.Dropdown(
                        names, value=0, label="Knowledge base", elem_id="base", filterable=False,
                        visible=len(offers) > 1,
                    )  # fmt: skip
                    facts = html(cards.base_facts(about), "base-facts")
                    tint = gr.Radio(
                        list(actions.TINTS), value=actions.TINT_OFF, elem_id="tint",
                        label="Tint the words by attention",
                    )  # fmt: skip
                    evidence = html(
                        actions.cleared()["evidence"], "evidence", cards.EVIDENCE_SCRIPT
                    )
                    compare = html("", "compare")
                with gr.Column(elem_id="answers-panel", min_width=0):
                    html("<h2>Answers</h2>")
                    stale = html("", "stale")
                    answers = html(actions.cleared()["answers"], "answers", cards.VOTE_SCRIPT)
                    # Hidden by the style sheet unless answers are waiting for it.
                    with gr.Row(elem_id="first", equal_height=True):
                        words = gr.Textbox(
                            label="Your impression", lines=1, max_lines=4, min_width=0,
                            max_length=actions.MAX_QUESTION_CHARACTERS, elem_id="impression",
                        )  # fmt: skip
                        reveal = gr.Button("Show the answers", elem_id="reveal", min_width=0)
                with gr.Column(elem_id="attention-panel", min_width=0):
                    html(f"<h2>Attention</h2>{cards.attention_intro()}")
                    attention = html(actions.cleared()["attention"], "attention-note")
                    # Hidden by the style sheet while the note says that there is nothing.
                    with gr.Column(elem_id="attention", min_width=0):
                        with gr.Row(elem_id="look"):
                            view = gr.Radio(
                                list(plots.VIEWS), value=plots.REPORTS, label="Columns",
                                elem_id="view", min_width=0,
                            )  # fmt: skip
                            head = gr.Dropdown(
                                actions.heads(about), value=actions.MEAN_OF_HEADS,
                                label="Heads", elem_id="head", min_width=0, filterable=False,
                            )  # fmt: skip
                            states = gr.Radio(
                                list(actions.STATES), value=actions.AS_IT_RAN, label="After IFA",
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
                            0, about.layers - 1, first, step=1, elem_id="layer",
                            label="Layer", info="Chosen by arrow keys or a click on a map.",
                        )  # fmt: skip
                        overlays = html("", "overlays")
                with gr.Column(elem_id="keep-panel", min_width=0):
                    html("<h2>Keep this case</h2>")
                    with gr.Row(elem_id="keep"):
                        save_html = gr.Button("Save as HTML", size="sm", min_width=0)
                        save_json = gr.Button("Save as JSON", size="sm", min_width=0)
                        pixels = gr.Checkbox(
                            False, label="With the pictures (HTML)", elem_id="pixels", min_width=0
                        )
                    file_out = html("", "file-out", cards.SAVE_SCRIPT, "<i></i>")
                    history = html("", "history", cards.HISTORY_SCRIPT, cards.HISTORY)

        parts: dict[str, gr.blocks.Block] = {
            "image": image, "shown": shown, "samples": picker, "preview": preview,
            "question": question, "status": status, "evidence": evidence, "answers": answers,
            "attention": attention, "view": view, "before": before, "after": after,
            "difference": difference, "reading": reading, "layer": layer, "overlays": overlays,
            "noise": noise, "found": found, "stale": stale, "compare": compare,
            "head": head, "states": states, "lines": lines,
            "history": history, "file_out": file_out,
            "facts": facts,
            "film": film, "file": file, "heat": heat, "sees": sees, "waiting": waiting,
        }  # fmt: skip

        def placed(update: actions.Update) -> dict[gr.blocks.Block, Any]:
            """An action's update as gradio takes it, which does not take an empty one."""
            return {parts[name]: content for name, content in update.items()} or {status: gr.skip()}

        def on_sample(moment: Any, visit: Any, event: gr.EventData) -> dict[gr.blocks.Block, Any]:
            visit.press(moment, picture=True)
            return placed(actions.choose_sample(samples, sent(event._data, "sample")))

        def on_upload(moment: Any, visit: Any, file: Any) -> dict[gr.blocks.Block, Any]:
            visit.press(moment, picture=True)
            path = sent(file, "path")
            return placed(actions.read_upload(samples, take_upload(path))) | {upload: None}

        def on_frame(
            moment: Any, visit: Any, image: Any, file: Any, event: gr.EventData
        ) -> dict[gr.blocks.Block, Any]:
            visit.press(moment, picture=True)
            return placed(actions.choose_frame(image, file, sent(event._data, "frame")))

        def chosen(number: object) -> Offer:
            for n, offer in enumerate(offers):
                if n == number:
                    return offer
            return offers[0]

        def learnt_values(about: About) -> dict[gr.blocks.Block, Any]:
            limit = actions.max_weight(about)
            return {
                slider: gr.Slider(-limit, limit, round(getattr(about.weights, name), 2))
                for slider, (name, _, _) in zip(weights, cards.TERMS, strict=True)
            } | {strength: about.strength, layers: [str(i) for i in about.critical]}

        def on_base(moment: Any, visit: Any, base: Any) -> dict[gr.blocks.Block, Any]:
            visit.press(moment, base=True)
            about = chosen(base).about
            return placed(actions.choose_base(about)) | learnt_values(about)

        def note_ask(moment: Any, visit: Any) -> Any:
            visit.press(moment)
            return moment

        def on_ask(
            moment: Any,
            visit: Any,
            base: Any,
            found: Any,
            shown: Any,
            image: Any,
            question: Any,
            reader_first: Any,
            blind: Any,
            *rest: Any,
        ) -> Iterator[dict[gr.blocks.Block, Any]]:
            about, engine, answer = chosen(base)
            found, shown = (actions.of_base(about, held) for held in (found, shown))
            *controls, window = rest
            case = (found, image, question, controls, reader_first, blind, window, shown, answer)
            for update in actions.ask(engine, about, visit, moment, *case):
                yield placed(update)

        async def on_wait(moment: Any, visit: Any, request: gr.Request) -> AsyncIterator[str]:
            """Say how many questions are ahead, until it is this one's turn or it is overtaken."""
            until = moment + SAME_PRESS if isinstance(moment, int | float) else 0
            came = False
            for look in count():
                await asyncio.sleep(WAIT_SECONDS)
                ahead = questions_ahead(page, request.session_hash)
                # The question may come to the line after this does.
                gone = not ahead and (came or look >= LOOKS)
                if gone or visit.newest > until:
                    break
                if ahead:
                    came = True
                    yield cards.line(ahead)
            yield ""

        def on_rank(
            base: Any, found: Any, shown: Any, tint: Any, layer: Any, *controls: Any
        ) -> dict[gr.blocks.Block, Any]:
            about, engine, _ = chosen(base)
            return placed(actions.rerank(engine, about, found, shown, tint, layer, controls))

        def on_report(
            event: gr.EventData,
            base: Any,
            found: Any,
            shown: Any,
            tint: Any,
            layer: Any,
            *controls: Any,
        ) -> dict[gr.blocks.Block, Any]:
            about, engine, _ = chosen(base)
            deed = event._data
            return placed(actions.rerank(engine, about, found, shown, tint, layer, controls, deed))

        def on_vote(event: gr.EventData, shown: Any) -> dict[gr.blocks.Block, Any]:
            return placed(actions.vote(about, shown, sent(event._data, "vote")))

        def on_save(kind: str, base: Any, shown: Any, pixels: Any) -> dict[gr.blocks.Block, Any]:
            about, engine, _ = chosen(base)
            return placed(actions.save(engine, actions.of_base(about, shown), kind, pixels))

        def on_view(base: Any, *inputs: Any) -> dict[gr.blocks.Block, Any]:
            about, engine, _ = chosen(base)
            return placed(actions.redraw(engine, about, *inputs))

        everything = list(parts.values())
        controls = [k, *weights, strength, layers, noise]
        ranked = [base, found, shown, tint, layer, *controls]
        looked = [base, found, shown, tint, layer]
        redrawn = [found, evidence, stale, status]
        # Not preprocessed: the actions check what was sent, and answer in a sentence.
        quiet: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "preprocess": False,
        }
        now = "(_, ...others) => [performance.now(), ...others]"

        # Once the page has wired its controls; a press before that would be lost.
        page.load(
            lambda: cards.status("Pick a sample case or upload a picture."),
            None,
            status,
            queue=False,
            **quiet,
        )
        picker.click(on_sample, [pressed, visit], everything, js=now, **quiet)
        upload.upload(on_upload, [pressed, visit, upload], [*everything, upload], js=now, **quiet)
        # Not queued: see viewer.put_up. It hands over what waits, and does nothing else.
        film.fetch(
            lambda picture: picture, waiting, film,
            queue=False, trigger_mode="always_last", **quiet,
        )  # fmt: skip
        film.frame(
            on_frame,
            [pressed, visit, image, file],
            everything,
            js=now,
            trigger_mode="always_last",
            **quiet,
        )
        film.seen(
            lambda *inputs: placed(actions.model_view(engine, *inputs)),
            [image, window],
            [sees, status],
            js=viewer.READ_VIEW,
            trigger_mode="always_last",
            **quiet,
        )
        # Ask is noted before it waits for its turn, so that it overtakes those before it.
        asking = [ask.click, question.submit]
        gr.on(
            asking,
            note_ask,
            [asked, visit],
            asked,
            js=now,
            queue=False,
            trigger_mode="multiple",
            **quiet,
        )
        answered = gr.on(
            asking,
            on_ask,
            [
                *(asked, visit, base, found, shown, image, question, reader_first, blind),
                *(*controls, window),
            ],
            everything,
            js=viewer.READ_VIEW,
            concurrency_limit=1,
            concurrency_id="model",
            trigger_mode="multiple",
            **quiet,
        )
        # By an event of its own, since a click's events run one after the other.
        line.asked(
            on_wait,
            [pressed, visit],
            line,
            js=now,
            concurrency_limit=None,
            trigger_mode="multiple",
            **quiet,
        )
        # Drawn by what is ranked now: the sliders may have moved while the model answered.
        answered.then(on_view, looked, redrawn, **quiet)
        live: dict[str, Any] = {"trigger_mode": "always_last", **quiet}
        moves = [control.input for control in (k, noise, *weights, strength, layers)]  # type: ignore[attr-defined]
        gr.on(moves, on_rank, ranked, redrawn, **live)
        evidence.click(on_report, ranked, redrawn, **quiet)
        gr.on(
            [reveal.click, words.submit],
            lambda *inputs: placed(actions.impression(about, *inputs)) | {words: ""},
            [shown, words],
            [*everything, words],
            **quiet,
        ).then(on_view, looked, redrawn, **quiet)
        answers.click(on_vote, shown, everything, **quiet).then(on_view, looked, redrawn, **quiet)
        for button, kind in ((save_html, "html"), (save_json, "json")):
            button.click(partial(on_save, kind), [base, shown, pixels], [file_out, status], **quiet)
        gr.on([tint.input, layer.input], on_view, looked, redrawn, **live)
        # No `cancels`: it would cut a run off before its last update, which settles the page.
        stop.click(
            lambda moment, visit: placed(actions.stop(visit, moment)),
            [pressed, visit],
            status,
            js=now,
            trigger_mode="multiple",
            **quiet,
        )
        gr.on(
            [view.input, head.input, states.input],
            lambda *inputs: placed(actions.heatmaps(*inputs)),
            [shown, view, head, layer, states],
            [before, after, difference, reading, lines, status],
            **quiet,
        )
        layer.input(
            lambda shown, head, layer: placed(
                actions.overlay(shown, layer) | actions.lines(shown, head, layer)
            ),
            [shown, head, layer],
            [overlays, heat, lines, status],
            trigger_mode="always_last",
            **quiet,
        )
        learnt = [*weights, strength, layers]
        base.input(on_base, [pressed, visit, base], [*everything, *learnt], js=now, **quiet).then(
            on_view, looked, redrawn, **quiet
        )  # for what was being ranked meanwhile
        reset.click(lambda base: learnt_values(chosen(base).about), base, learnt, **quiet).then(
            on_rank, ranked, redrawn, **quiet
        )
    page.queue(max_size=MAX_WAITING, api_open=False, default_concurrency_limit=4)
    return page


def questions_ahead(page: gr.Blocks, session: str | None) -> int:
    """How many are answered before a visit's newest question; 0 once it is being answered."""
    line = page._queue.event_queue_per_concurrency_id.get("model")
    waiting = [event.session_hash for event in line.queue] if line else []
    return max((n for n, who in enumerate(waiting, 1) if who == session), default=0)


def sent(data: object, name: str) -> object:
    """One thing of what the browser sent, or nothing."""
    return data.get(name) if isinstance(data, dict) else None


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


def name_failures() -> None:
    """Have gradio log what fails before it comes to us by its type alone.

    It prints whole exceptions, and their messages hold what was sent.
    """

    def name() -> None:
        kind, _, frames = sys.exc_info()
        last = traceback.extract_tb(frames)[-1:]
        where = "".join(f" ({Path(f.filename).name}, line {f.lineno})" for f in last)
        logger.warning("A request was refused: %s%s", kind and kind.__name__, where)

    traceback.print_exc = name  # type: ignore[assignment]


def allowed_hosts(host: str, names: Sequence[str] = ()) -> list[str]:
    """Names that a request may address us by (its Host header).

    Any other name is another site's, made to point at this machine so that its scripts may
    read the page (DNS rebinding). A Space has no private network to protect, and its proxy's
    name is not ours to know.
    """
    if os.environ.get("SPACE_ID"):
        return ["*"]
    own = [socket.gethostname(), socket.getfqdn()] if host in ("0.0.0.0", "::") else []
    return list(dict.fromkeys(["127.0.0.1", "localhost", host, *own, *names]))


def launch_options(
    host: str,
    port: int | None,
    names: Sequence[str] = (),
    login: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """How the page is served: to this machine alone unless told otherwise, and quietly.

    Nothing is shared, counted, recorded or documented for callers; no file of this
    machine is served but gradio's own; errors never show their cause. ``names`` are further
    names of this machine; ``login`` is the one user and password, if any.
    """
    hosts = Middleware(
        TrustedHostMiddleware, allowed_hosts=allowed_hosts(host, names), www_redirect=False
    )
    # What a form puts around its file is less than a kilobyte.
    uploads = Middleware(WholeUploads, most=actions.MAX_UPLOAD_BYTES + 2**16)
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
        "auth": login,
        "app_kwargs": {
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
            "middleware": [hosts, uploads],
        },
        "theme": theme(),
        "css_paths": [STYLE],
    }
