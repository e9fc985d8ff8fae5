"""The picker of the archive: search it, list studies and series, open a series.

Who a patient is, is shown here alone. What was found is kept in the state of the visit until the
picker is closed or a series is opened; the page gets indices, never UIDs.

A later press supersedes a search or a fetch (see :class:`app.sections.visit.Visit`): Stop, another
search, or closing the picker. These presses are the picker's own, so that a search leaves a running
answer alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypedDict

from app import frame
from app.sections.case import Sample, samples_html
from app.sections.settings import whole
from app.sections.study import open_picture, skipped
from app.sections.visit import Update, Visit, sentence_of
from mrrag.data.dicomweb import (
    Criteria,
    FoundSeries,
    FoundStudy,
    fetch_series,
    fetch_thumbnail,
    find_series,
    find_studies,
)
from mrrag.data.dicomweb_request import Archive
from mrrag.data.pseudonyms import pseudonym
from mrrag.errors import ArchiveError, SettingsError
from mrrag.report.pictures import file_url

THUMBNAILS_S = 10.0  # for all of a study's; then its series are listed without the others
STOPPED = "Stopped. Nothing is being fetched from the archive."


@dataclass(frozen=True)
class Found:
    """What the picker lists: studies, and the series of the one that was pressed, if any."""

    studies: tuple[FoundStudy, ...]
    study: FoundStudy | None = None
    series: tuple[FoundSeries, ...] = ()


class PickerUpdate(TypedDict, total=False):
    """New contents of the picker's components."""

    found: Found | None
    note: str
    results: str
    patient: str
    accession: str
    dates: str
    modality: str


class Press(NamedTuple):
    """A press in the picker; ``visit`` is that of the page, ``picking`` the picker's own."""

    archive: Archive
    picking: Visit
    visit: Visit
    moment: float

    def superseded(self) -> bool:
        """Return whether there was a later press in the picker."""
        return self.picking.newest > self.moment


def search(press: Press, *typed: Any) -> Iterator[PickerUpdate]:
    """List the studies that fit what was typed: the fields of :class:`Criteria`, in order."""
    try:
        if not all(isinstance(text, str) or text is None for text in typed):
            raise SettingsError("The search is not valid. Type it again.")
        yield {"found": None, "results": "", "note": busy("Searching the archive")}
        criteria = Criteria(*(text or "" for text in typed))
        studies, more = find_studies(press.archive, criteria, stopped=press.superseded)
        if press.superseded():
            return
        found = Found(tuple(studies))
        yield {"found": found, "results": listed(found), "note": counted(len(studies), more)}
    except Exception as error:
        yield refused(press, error)


def open_study(press: Press, found: object, wanted: object) -> Iterator[PickerUpdate]:
    """List the series of a study, each with a picture that the archive renders."""
    try:
        if not isinstance(found, Found) or not found.studies:
            raise SettingsError("There is no list of studies. Search again.")
        study = found.studies[whole("The study", wanted, 0, len(found.studies) - 1)]
        yield {"note": busy("Reading the study’s series")}
        series = find_series(press.archive, study.uid, stopped=press.superseded)
        series = [one for one in series if one.instances]
        pictures = thumbnails(press, series)
        if press.superseded():
            return
        found = replace(found, study=study, series=tuple(series))
        what = "Press a series to open it." if series else "The study has no series to open."
        yield {"found": found, "results": listed(found, pictures), "note": frame.status(what)}
    except Exception as error:
        yield refused(press, error)


def list_studies(found: object) -> PickerUpdate:
    """List the studies again."""
    if not isinstance(found, Found):
        return closed()
    found = replace(found, study=None, series=())
    return {"found": found, "results": listed(found), "note": counted(len(found.studies), False)}


def open_series(
    press: Press, samples: Sequence[Sample], found: object, wanted: object
) -> Iterator[tuple[PickerUpdate, Update]]:
    """Fetch a series and open it on the page, as an upload would be; the picker is cleared."""
    try:
        if not isinstance(found, Found) or found.study is None or not found.series:
            raise SettingsError("There is no list of series. Search again.")
        series = found.series[whole("The series", wanted, 0, len(found.series) - 1)]
        yield {"note": busy("Fetching the series")}, {}
        study = fetch_series(press.archive, series, stopped=press.superseded)
        study = replace(study, patient=pseudonym(found.study.patient))
        if press.superseded():
            return
        if press.visit.press(press.moment, picture=True) < press.visit.newest:
            raise ArchiveError("Something else was pressed meanwhile. Press the series again.")
        said = f"{len(study.pictures)} pictures were fetched from the archive."
        if len(study.pictures) == 1:  # there is no picker to say the rest
            said = f"One picture was fetched from the archive.{skipped(study)}"
        status = f"{said} Type a question, press Ask."
        opened = open_picture(study, study.first, status)
        yield closed(), opened | {"samples": samples_html(samples, None)}
    except Exception as error:
        yield refused(press, error), {}


def stop(picking: Visit, moment: object) -> PickerUpdate:
    """Stop what the picker is doing."""
    picking.press(moment)
    return {"note": frame.status(STOPPED)}


def close(picking: Visit, moment: object) -> PickerUpdate:
    """Stop what the picker is doing, and forget what it found and what was typed."""
    picking.press(moment)
    return closed()


def closed() -> PickerUpdate:
    """Return the picker without contents."""
    typed: PickerUpdate = {"patient": "", "accession": "", "dates": "", "modality": ""}
    return typed | {"found": None, "note": "", "results": ""}


def thumbnails(press: Press, series: Sequence[FoundSeries]) -> list[str]:
    """Return a picture of each series as a data URL, or "" where there is none in time."""
    until = time.monotonic() + THUMBNAILS_S
    urls = [""] * len(series)

    def enough() -> bool:
        return press.superseded() or time.monotonic() > until

    for n, one in enumerate(series):
        try:
            picture = b"" if enough() else fetch_thumbnail(press.archive, one, stopped=enough)
        except ArchiveError:
            break  # the series can be opened without
        urls[n] = file_url(picture) if picture else ""
    return urls


def listed(found: Found, pictures: Sequence[str] = ()) -> str:
    """Return the studies as buttons, or the series of the one that was pressed."""
    series = list(zip(found.series, pictures, strict=False))
    return frame.render("archive.html", studies=found.studies, study=found.study, series=series)


def counted(count: int, more: bool) -> str:
    """Return how many studies were found."""
    if not count:
        return frame.status("No study fits. Check what you typed, or search by less.")
    if more:
        return frame.status(f"There are more: the first {count} are listed. Search by more.")
    return frame.status("1 study." if count == 1 else f"{count} studies.")


def busy(what: str) -> str:
    """Return what the picker is doing."""
    return frame.status(what, kind="busy")


def refused(press: Press, error: Exception) -> PickerUpdate:
    """Return why nothing came; nothing where a later press says more."""
    if press.superseded():
        return {}
    return {"note": frame.status(sentence_of(error), kind="problem")}
