"""The page: its sections' events wired to the actions.

Wiring only: the components are laid out in :mod:`app.layout`, what a control does is in the
module of its section (:mod:`app.sections.case`, :mod:`app.sections.asking`, :mod:`app.sections.evidence`,
:mod:`app.sections.attention`, :mod:`app.sections.saving`), and how the page is served is in :mod:`app.launch`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from app.about import About
from app.layout import Parts, lay_out, named
from app.sections import viewer
from app.sections.asking import Answering, ask, impression, stop, vote
from app.sections.attention import heatmaps, lines, overlay
from app.sections.case import Sample, choose_frame, choose_sample, model_view, read_upload
from app.sections.evidence import choose_base, redraw, rerank
from app.sections.saving import save
from app.sections.settings import max_weight
from app.sections.visit import Update, of_base
from app.uploads import FILE_SECONDS, take_upload
from mrrag.report import cards

if TYPE_CHECKING:
    from mrrag.pipeline import Pipeline

MAX_WAITING = 32
WAIT_SECONDS = 0.5  # between two looks at the line
LOOKS = 10  # for a question that does not come to it
SAME_PRESS = 250  # ms; what one press starts does not note the very same moment

# Not preprocessed: the actions check what was sent, and answer in a sentence.
QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "preprocess": False,
}
LIVE: dict[str, Any] = {"trigger_mode": "always_last", **QUIET}
NOW = "(_, ...others) => [performance.now(), ...others]"

# The new contents of some components, as gradio takes them.
Contents = dict[gr.blocks.Block, Any]


class Offer(NamedTuple):
    """A knowledge base to choose: what the page says of it, and what answers over it."""

    about: About
    engine: Future[Pipeline]
    answer: Answering | None = None


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
    samples: Sequence[Sample],
    engine: Future[Pipeline],
    answer: Answering | None = None,
    others: Sequence[Offer] = (),
) -> gr.Blocks:
    """Lay the page out and wire it; ``engine`` may still be loading.

    ``answer`` takes the place of :func:`mrrag.pipeline.answer` where a device is lent.
    ``others`` are further knowledge bases to choose from.
    """
    offers = (Offer(about, engine, answer), *others)
    page = Page(
        title="MR-RAG",
        analytics_enabled=False,
        delete_cache=(FILE_SECONDS, FILE_SECONDS),
        fill_width=True,
    )
    with page:
        parts = lay_out([offer.about for offer in offers], samples)

        # One function for every section: gradio queues together what calls the same one.
        def on_view(base: Any, *inputs: Any) -> Contents:
            about, engine, _ = chosen(offers, base)
            return placed(parts, redraw(engine, about, *inputs))

        # Once the page has wired its controls; a press before that would be lost.
        page.load(
            lambda: cards.status("Pick a sample case or upload a picture."),
            None,
            parts.case.status,
            queue=False,
            **QUIET,
        )
        wire_case(parts, samples, engine)
        wire_asking(page, parts, offers, on_view)
        wire_settings(parts, offers, on_view)
        wire_evidence(parts, offers, on_view)
        wire_answers(parts, offers, on_view)
        wire_attention(parts)
        wire_saving(parts, offers)
    page.queue(max_size=MAX_WAITING, api_open=False, default_concurrency_limit=4)
    return page


def wire_case(parts: Parts, samples: Sequence[Sample], engine: Future[Pipeline]) -> None:
    """Samples, uploads and their frames, and what the model would see."""
    held, case = parts.held, parts.case
    everything = list(named(parts).values())

    def on_sample(moment: Any, visit: Any, event: gr.EventData) -> Contents:
        visit.press(moment, picture=True)
        return placed(parts, choose_sample(samples, sent(event._data, "sample")))

    def on_upload(moment: Any, visit: Any, file: Any) -> Contents:
        visit.press(moment, picture=True)
        path = sent(file, "path")
        return placed(parts, read_upload(samples, take_upload(path))) | {case.upload: None}

    def on_frame(moment: Any, visit: Any, image: Any, file: Any, event: gr.EventData) -> Contents:
        visit.press(moment, picture=True)
        return placed(parts, choose_frame(image, file, sent(event._data, "frame")))

    case.samples.click(on_sample, [held.pressed, held.visit], everything, js=NOW, **QUIET)
    case.upload.upload(
        on_upload,
        [held.pressed, held.visit, case.upload],
        [*everything, case.upload],
        js=NOW,
        **QUIET,
    )
    # Not queued: see viewer.put_up. It hands over what waits, and does nothing else.
    case.film.fetch(lambda picture: picture, held.waiting, case.film, queue=False, **LIVE)
    case.film.frame(
        on_frame, [held.pressed, held.visit, held.image, held.file], everything, js=NOW, **LIVE
    )
    case.film.seen(
        lambda *inputs: placed(parts, model_view(engine, *inputs)),
        [held.image, case.window],
        [case.sees, case.status],
        js=viewer.READ_VIEW,
        **LIVE,
    )


def wire_asking(
    page: gr.Blocks, parts: Parts, offers: Sequence[Offer], on_view: Callable[..., Contents]
) -> None:
    """Ask and Stop, and the line of those who wait."""
    held, case, settings = parts.held, parts.case, parts.settings

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
    ) -> Iterator[Contents]:
        about, engine, answer = chosen(offers, base)
        found, shown = (of_base(about, given) for given in (found, shown))
        *values, window = rest
        given = (found, image, question, values, reader_first, blind, window, shown, answer)
        for update in ask(engine, about, visit, moment, *given):
            yield placed(parts, update)

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

    # Ask is noted before it waits for its turn, so that it overtakes those before it.
    asking = [case.ask.click, case.question.submit]
    gr.on(
        asking,
        note_ask,
        [held.asked, held.visit],
        held.asked,
        js=NOW,
        queue=False,
        trigger_mode="multiple",
        **QUIET,
    )
    answered = gr.on(
        asking,
        on_ask,
        [
            *(held.asked, held.visit, parts.evidence.base, held.found, held.shown, held.image),
            *(case.question, settings.reader_first, settings.blind),
            *(*controls(parts), case.window),
        ],
        list(named(parts).values()),
        js=viewer.READ_VIEW,
        concurrency_limit=1,
        concurrency_id="model",
        trigger_mode="multiple",
        **QUIET,
    )
    # By an event of its own, since a click's events run one after the other.
    case.line.asked(
        on_wait,
        [held.pressed, held.visit],
        case.line,
        js=NOW,
        concurrency_limit=None,
        trigger_mode="multiple",
        **QUIET,
    )
    # Drawn by what is ranked now: the sliders may have moved while the model answered.
    answered.then(on_view, looked(parts), redrawn(parts), **QUIET)
    # No `cancels`: it would cut a run off before its last update, which settles the page.
    case.stop.click(
        lambda moment, visit: placed(parts, stop(visit, moment)),
        [held.pressed, held.visit],
        case.status,
        js=NOW,
        trigger_mode="multiple",
        **QUIET,
    )


def wire_settings(parts: Parts, offers: Sequence[Offer], on_view: Callable[..., Contents]) -> None:
    """The settings rank again as they move; another knowledge base brings its own."""
    held, settings, base = parts.held, parts.settings, parts.evidence.base
    ranked = [*looked(parts), *controls(parts)]
    learnt = [*settings.weights, settings.strength, settings.layers, settings.form]

    def on_rank(base: Any, found: Any, shown: Any, tint: Any, layer: Any, *values: Any) -> Contents:
        about, engine, _ = chosen(offers, base)
        return placed(parts, rerank(engine, about, found, shown, tint, layer, values))

    def on_base(moment: Any, visit: Any, base: Any) -> Contents:
        visit.press(moment, base=True)
        about = chosen(offers, base).about
        return placed(parts, choose_base(about)) | learnt_values(parts, about)

    moves = [control.input for control in controls(parts)]  # type: ignore[attr-defined]
    gr.on(moves, on_rank, ranked, redrawn(parts), **LIVE)
    base.input(
        on_base,
        [held.pressed, held.visit, base],
        [*named(parts).values(), *learnt],
        js=NOW,
        **QUIET,
    ).then(on_view, looked(parts), redrawn(parts), **QUIET)  # for what was being ranked meanwhile
    settings.reset.click(
        lambda base: learnt_values(parts, chosen(offers, base).about), base, learnt, **QUIET
    ).then(on_rank, ranked, redrawn(parts), **QUIET)


def wire_evidence(parts: Parts, offers: Sequence[Offer], on_view: Callable[..., Contents]) -> None:
    """Reports pinned and excluded, and the tint of their words."""

    def on_report(
        event: gr.EventData,
        base: Any,
        found: Any,
        shown: Any,
        tint: Any,
        layer: Any,
        *values: Any,
    ) -> Contents:
        about, engine, _ = chosen(offers, base)
        deed = event._data
        return placed(parts, rerank(engine, about, found, shown, tint, layer, values, deed))

    ranked = [*looked(parts), *controls(parts)]
    parts.evidence.cards.click(on_report, ranked, redrawn(parts), **QUIET)
    tinted = [parts.evidence.tint.input, parts.attention.layer.input]
    gr.on(tinted, on_view, looked(parts), redrawn(parts), **LIVE)


def wire_answers(parts: Parts, offers: Sequence[Offer], on_view: Callable[..., Contents]) -> None:
    """The reader's impression and vote."""
    base, shown, answers = parts.evidence.base, parts.held.shown, parts.answers
    everything = list(named(parts).values())

    def on_words(base: Any, shown: Any, words: Any) -> Contents:
        about = chosen(offers, base).about
        return placed(parts, impression(about, of_base(about, shown), words)) | {answers.words: ""}

    def on_vote(event: gr.EventData, base: Any, shown: Any) -> Contents:
        about = chosen(offers, base).about
        return placed(parts, vote(about, of_base(about, shown), sent(event._data, "vote")))

    gr.on(
        [answers.reveal.click, answers.words.submit],
        on_words,
        [base, shown, answers.words],
        [*everything, answers.words],
        **QUIET,
    ).then(on_view, looked(parts), redrawn(parts), **QUIET)
    answers.columns.click(on_vote, [base, shown], everything, **QUIET).then(
        on_view, looked(parts), redrawn(parts), **QUIET
    )


def wire_attention(parts: Parts) -> None:
    """The maps by view, head and states; the lines and the picture by layer."""
    shown, case, attention = parts.held.shown, parts.case, parts.attention
    view, head, layer, states = attention.view, attention.head, attention.layer, attention.states
    maps = [attention.before, attention.after, attention.difference]
    gr.on(
        [view.input, head.input, states.input],
        lambda *inputs: placed(parts, heatmaps(*inputs)),
        [shown, view, head, layer, states],
        [*maps, attention.reading, attention.lines, case.status],
        **QUIET,
    )
    layer.input(
        lambda shown, head, layer: placed(parts, overlay(shown, layer) | lines(shown, head, layer)),
        [shown, head, layer],
        [attention.overlays, case.heat, attention.lines, case.status],
        **LIVE,
    )


def wire_saving(parts: Parts, offers: Sequence[Offer]) -> None:
    """The two buttons that save a case."""
    saving = parts.saving

    def on_save(kind: str, base: Any, shown: Any, pixels: Any) -> Contents:
        about, engine, _ = chosen(offers, base)
        return placed(parts, save(engine, of_base(about, shown), kind, pixels))

    for button, kind in ((saving.as_html, "html"), (saving.as_json, "json")):
        button.click(
            partial(on_save, kind),
            [parts.evidence.base, parts.held.shown, saving.pixels],
            [saving.file_out, parts.case.status],
            **QUIET,
        )


def placed(parts: Parts, update: Update) -> Contents:
    """An action's update as gradio takes it, which does not take an empty one."""
    names = named(parts)
    contents = {names[name]: content for name, content in update.items()}
    return contents or {parts.case.status: gr.skip()}


def chosen(offers: Sequence[Offer], number: object) -> Offer:
    """The knowledge base of that number; the first where there is none."""
    for n, offer in enumerate(offers):
        if n == number:
            return offer
    return offers[0]


def learnt_values(parts: Parts, about: About) -> Contents:
    """The settings as they were learnt for a knowledge base."""
    settings, limit = parts.settings, max_weight(about)
    return {
        slider: gr.Slider(-limit, limit, round(getattr(about.weights, name), 2))
        for slider, (name, _, _) in zip(settings.weights, cards.TERMS, strict=True)
    } | {
        settings.strength: about.strength,
        settings.layers: [str(i) for i in about.critical],
        settings.form: about.form,
    }


def controls(parts: Parts) -> list[gr.blocks.Block]:
    """The settings that :func:`app.sections.settings.settings_from` takes, in its order."""
    settings = parts.settings
    ifa = (settings.strength, settings.layers, settings.form)
    return [settings.k, *settings.weights, *ifa, settings.noise]


def looked(parts: Parts) -> list[gr.blocks.Block]:
    """What the evidence is drawn from."""
    held, evidence = parts.held, parts.evidence
    return [evidence.base, held.found, held.shown, evidence.tint, parts.attention.layer]


def redrawn(parts: Parts) -> list[gr.blocks.Block]:
    """What is drawn again with the evidence."""
    return [parts.held.found, parts.evidence.cards, parts.answers.stale, parts.case.status]


def questions_ahead(page: gr.Blocks, session: str | None) -> int:
    """How many are answered before a visit's newest question; 0 once it is being answered."""
    line = page._queue.event_queue_per_concurrency_id.get("model")
    waiting = [event.session_hash for event in line.queue] if line else []
    return max((n for n, who in enumerate(waiting, 1) if who == session), default=0)


def sent(data: object, name: str) -> object:
    """One thing of what the browser sent, or nothing."""
    return data.get(name) if isinstance(data, dict) else None
