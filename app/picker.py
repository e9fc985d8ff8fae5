"""The picker of the archive: its components, and their events wired to the actions.

It is made only where the page was started with an archive (``--dicomweb``). What its controls do
is in :mod:`app.sections.archive`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr

from app import frame
from app.events import NOW, QUIET, Contents, contents, field_of
from app.layout import CASE_SECONDS, Parts, components
from app.markup import html
from app.sections import archive as actions
from app.sections.archive import PickerUpdate, Press
from app.sections.case import Sample
from app.sections.visit import Visit
from mrrag.data.dicomweb_request import Archive

# Neither the browser nor its spelling service is to keep what is typed.
UNKEPT = gr.InputHTMLAttributes(autocomplete="off", autocorrect="off", spellcheck=False)

AT_ONCE = 4


class PickerParts(NamedTuple):
    """The components of the picker; ``found`` and ``picking`` are invisible."""

    found: gr.State
    picking: gr.State
    panel: gr.Accordion
    patient: gr.Textbox
    accession: gr.Textbox
    dates: gr.Textbox
    modality: gr.Textbox
    search: gr.Button
    stop: gr.Button
    note: gr.HTML
    results: gr.HTML


def lay_out_picker() -> PickerParts:
    """Make the picker in the open block, closed at first."""
    found = gr.State(None, time_to_live=CASE_SECONDS)
    picking = gr.State(Visit())
    with gr.Accordion("Open from archive", open=False, elem_id="archive") as panel:
        with gr.Row(elem_id="archive-by"):
            patient = line("Patient id")
            accession = line("Accession number")
            dates = line("Date, or two", "2024-01-01 to 2024-01-31")
            modality = line("Modality", "DX, CR, CT, …")
        with gr.Row(elem_id="archive-go"):
            search = gr.Button("Search", elem_id="archive-search", min_width=0, size="sm")
            stop = gr.Button("Stop loading", elem_id="archive-stop", min_width=0, size="sm")
        note = html("", "archive-note")
        results = html("", "archive-found", frame.script("archive"))
    return PickerParts(
        found, picking, panel, patient, accession, dates, modality, search, stop, note, results
    )


def line(label: str, placeholder: str = "") -> gr.Textbox:
    """Make a field of one line, of which the browser keeps nothing."""
    return gr.Textbox(
        label=label, placeholder=placeholder, lines=1, max_lines=1, max_length=64, min_width=0,
        html_attributes=UNKEPT,
    )  # fmt: skip


def offer_archive(parts: Parts, samples: Sequence[Sample], archive: Archive) -> None:
    """Make the picker at its place beside the upload, and wire it."""
    with parts.case.archive:
        picker = lay_out_picker()
    typed = [picker.patient, picker.accession, picker.dates, picker.modality]
    press = [parts.state.press_time, picker.picking, parts.state.visit]
    shown = shown_by(picker)
    everything = [*shown, picker.panel, *components(parts).values()]

    def pressed(moment: Any, picking: Visit, visit: Visit) -> Press:
        return Press(archive, picking, visit, picking.press(moment))

    def on_search(moment: Any, picking: Any, visit: Any, *values: Any) -> Iterator[Contents]:
        for update in actions.search(pressed(moment, picking, visit), *values):
            yield filled(picker, update)

    def on_study(
        moment: Any, picking: Any, visit: Any, found: Any, event: gr.EventData
    ) -> Iterator[Contents]:
        wanted = field_of(event, "study")
        for update in actions.open_study(pressed(moment, picking, visit), found, wanted):
            yield filled(picker, update)

    def on_series(
        moment: Any, picking: Any, visit: Any, found: Any, event: gr.EventData
    ) -> Iterator[Contents]:
        wanted, given = field_of(event, "series"), pressed(moment, picking, visit)
        for update, opened in actions.open_series(given, samples, found, wanted):
            if opened:
                yield filled(picker, update) | contents(parts, opened) | folded(picker)
            else:
                yield filled(picker, update)

    options: dict[str, Any] = {**QUIET, "js": NOW, "trigger_mode": "multiple"}
    # A slow archive keeps this many threads busy, and leaves the others to the page.
    asking: dict[str, Any] = {**options, "concurrency_id": "archive", "concurrency_limit": AT_ONCE}
    searching = [picker.search.click, *(field.submit for field in typed)]
    gr.on(searching, on_search, [*press, *typed], shown, **asking)
    picker.results.study(on_study, [*press, picker.found], shown, **asking)
    picker.results.series(on_series, [*press, picker.found], everything, **asking)
    picker.results.back(
        lambda moment, picking, visit, found: filled(picker, actions.list_studies(found)),
        [*press, picker.found],
        shown,
        **options,
    )
    picker.stop.click(
        lambda moment, picking: filled(picker, actions.stop(picking, moment)),
        press[:2],
        shown,
        queue=False,
        **options,
    )
    picker.panel.collapse(
        lambda moment, picking: filled(picker, actions.close(picking, moment)),
        press[:2],
        shown,
        queue=False,
        **options,
    )


def shown_by(picker: PickerParts) -> list[gr.blocks.Block]:
    """Return the components that a :class:`PickerUpdate` may name."""
    return [getattr(picker, name) for name in PickerUpdate.__annotations__]


def filled(picker: PickerParts, update: PickerUpdate) -> Contents:
    """Return an action's update by component; gradio does not take an empty one."""
    return {getattr(picker, name): content for name, content in update.items()} or {
        picker.note: gr.skip()
    }


def folded(picker: PickerParts) -> Contents:
    """Return the picker closed, once a series is open on the page."""
    return {picker.panel: gr.Accordion(open=False)}
