"""A picture archive over DICOMweb: search (QIDO-RS) and retrieval (WADO-RS), PS3.18.

Nothing is written to disk, logged or remembered. Every answer of the archive is bounded in bytes
and seconds, and every request can be stopped. Who a patient is, is known here only to list
studies: what is fetched has passed :func:`mrrag.data.archives.read_study`, which keeps no
identity. This module knows no page and no knowledge base.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from mrrag.data.archives import MAX_PICTURES, Study, read_study
from mrrag.data.dicom_json import DAY, day_of, number_of, stated_view, text_of, texts_of, uid_of
from mrrag.data.dicomweb_request import Archive, RefusedError, Stopped, ask, wrong
from mrrag.data.images import read_image, thumbnail
from mrrag.data.limits import MAX_BYTES
from mrrag.errors import ArchiveError, ImageError, SettingsError
from mrrag.types import Image

if TYPE_CHECKING:
    from dicomweb_client import DICOMwebClient

__all__ = [
    "Criteria",
    "FoundSeries",
    "FoundStudy",
    "fetch_instance",
    "fetch_series",
    "fetch_thumbnail",
    "find_series",
    "find_studies",
    "instance_path",
    "instance_stamp",
    "load_instance",
    "patiently",
    "patients_of_studies",
]

MAX_STUDIES = 50  # listed of a search
PAGE = 500  # studies of one request, where all are listed
MAX_SERIES = 24  # listed of a study
MAX_INSTANCES = 1000  # counted of a series
MAX_LIST_BYTES = 2**23  # of one list
MAX_RENDERED_BYTES = 2**23
RENDERED_PX = 192
THUMBNAIL_PX = 96
# An instance comes with a few lines around it.
ENVELOPE = 2**12
LIST_S, FILE_S, THUMBNAIL_S = 30.0, 120.0, 10.0  # for a whole answer
PAUSES_S = (1.0, 5.0)  # before another attempt, where nobody waits

WHOLE_FILE = 'multipart/related; type="application/dicom"; transfer-syntax=*'

T = TypeVar("T")


@dataclass(frozen=True)
class Criteria:
    """What a study is searched by, as a person typed it; at least one is needed.

    ``dates`` is a day or two, such as "2024-01-31" or "2024-01-01 to 2024-01-31".
    """

    patient: str = ""
    accession: str = ""
    dates: str = ""
    modality: str = ""


@dataclass(frozen=True)
class FoundStudy:
    """A study as the archive lists it. All but ``modalities`` may identify the patient."""

    uid: str
    patient: str
    name: str
    birth: str
    date: str
    accession: str
    description: str
    modalities: str


@dataclass(frozen=True)
class FoundSeries:
    """A series of a study, with its instances' UIDs, views and SOP classes by instance number."""

    study: str
    uid: str
    modality: str
    description: str
    instances: tuple[str, ...]
    views: tuple[str, ...]
    classes: tuple[str, ...] = ()


# ---------------------------------------------------------------- search


def find_studies(
    archive: Archive, criteria: Criteria, *, stopped: Stopped = lambda: False
) -> tuple[list[FoundStudy], bool]:
    """Return the studies that fit, newest first, and whether there are more than are listed.

    Raises
    ------
    SettingsError
        If the criteria cannot be used.
    ArchiveError
        If the archive does not answer as it should, or ``stopped`` says so.
    """
    filters = _filters(criteria)
    names = ("PatientName", "StudyDescription", "ModalitiesInStudy")
    rows = _list(
        archive,
        lambda client: client.search_for_studies(
            limit=MAX_STUDIES + 1, fields=names, search_filters=filters
        ),
        stopped,
    )
    studies = [
        FoundStudy(
            uid=uid,
            patient=text_of(row, "PatientID"),
            name=text_of(row, "PatientName").replace("^", " ").strip(),
            birth=day_of(text_of(row, "PatientBirthDate")),
            date=day_of(text_of(row, "StudyDate")),
            accession=text_of(row, "AccessionNumber"),
            description=text_of(row, "StudyDescription"),
            modalities=", ".join(texts_of(row, "ModalitiesInStudy")),
        )
        for row in rows
        if (uid := uid_of(row, "StudyInstanceUID"))
    ]
    more = len(studies) > MAX_STUDIES
    listed = sorted(studies[:MAX_STUDIES], key=lambda study: study.date, reverse=True)
    return listed, more


def patients_of_studies(archive: Archive, modalities: Collection[str]) -> dict[str, set[str]]:
    """Return UID and patient ids of every study with a series of these modalities.

    A study has several patient ids where the archive lists it under each. One of which the archive
    does not say the modalities is among them.

    Raises
    ------
    ArchiveError
        As :func:`find_studies`.
    """
    patients: dict[str, set[str]] = {}
    wanted: set[str] = set()
    came = 0
    while rows := patiently(partial(_page, archive, came)):
        came += len(rows)
        known = len(patients)
        for row in rows:
            uid, stated = uid_of(row, "StudyInstanceUID"), texts_of(row, "ModalitiesInStudy")
            patients.setdefault(uid, set()).add(text_of(row, "PatientID"))
            if uid and (not stated or not set(stated).isdisjoint(modalities)):
                wanted.add(uid)
        if len(patients) == known:
            raise wrong("the same studies again when the next ones were asked for (offset)")
    return {uid: ids for uid, ids in patients.items() if uid in wanted}


def _page(archive: Archive, offset: int) -> list[Any]:
    """Return the next studies of the archive, none at its end."""
    # All of them: where modalities are searched for, Orthanc 1.10 counts the offset twice.
    return _list(
        archive,
        lambda client: client.search_for_studies(
            limit=PAGE, offset=offset, fields=("ModalitiesInStudy",)
        ),
        lambda: False,
    )


def find_series(
    archive: Archive,
    study: str,
    *,
    modalities: Sequence[str] = (),
    stopped: Stopped = lambda: False,
) -> list[FoundSeries]:
    """Return the series of a study in the order of their numbers, with their instances.

    Parameters
    ----------
    study
        Its UID.
    modalities
        Only those of these; all if empty.

    Raises
    ------
    ArchiveError
        As :func:`find_studies`.
    """
    rows = _list(
        archive,
        lambda client: client.search_for_series(
            study, limit=MAX_SERIES, fields=("SeriesDescription", "SeriesNumber")
        ),
        stopped,
    )
    rows.sort(key=lambda row: number_of(row, "SeriesNumber"))
    found = []
    for row in rows[:MAX_SERIES]:
        uid, modality = uid_of(row, "SeriesInstanceUID"), text_of(row, "Modality")
        if not uid or (modalities and modality not in modalities):
            continue
        instances = _find_instances(archive, study, uid, stopped)
        described = text_of(row, "SeriesDescription")
        found.append(FoundSeries(study, uid, modality, described, *instances))
    return found


def _find_instances(
    archive: Archive, study: str, series: str, stopped: Stopped
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return UIDs, views and SOP classes of a series' instances, by instance number."""
    rows = _list(
        archive,
        lambda client: client.search_for_instances(
            study,
            series,
            limit=MAX_INSTANCES,
            fields=("InstanceNumber", "ViewPosition", "ViewCodeSequence"),
        ),
        stopped,
    )
    rows = [row for row in rows if uid_of(row, "SOPInstanceUID")]
    rows.sort(key=lambda row: number_of(row, "InstanceNumber"))
    uids, classes = (
        tuple(uid_of(row, keyword) for row in rows) for keyword in ("SOPInstanceUID", "SOPClassUID")
    )
    return uids, tuple(map(stated_view, rows)), classes


def _list(
    archive: Archive, call: Callable[[DICOMwebClient], list[Any]], stopped: Stopped
) -> list[Any]:
    """Return what the archive lists, of whatever type: it is checked as it is read."""
    rows = ask(archive, call, stopped=stopped, most=MAX_LIST_BYTES, seconds=LIST_S)
    if not isinstance(rows, list):
        raise wrong("an answer that is no list")
    return rows


def _filters(criteria: Criteria) -> dict[str, str]:
    """Return the search as QIDO-RS attributes (PS3.18 8.3.4)."""
    typed = {
        "PatientID": ("patient id", criteria.patient.strip(), 64),
        "AccessionNumber": ("accession number", criteria.accession.strip(), 16),
        "ModalitiesInStudy": ("modality", criteria.modality.strip().upper(), 16),
    }
    for name, text, most in typed.values():
        if len(text) > most or not text.isprintable() or "\\" in text:
            raise SettingsError(
                f"The {name} has {len(text)} characters or a sign that no {name} has. It has at "
                f"most {most} characters, and no \\ or line break. Check it."
            )
    filters = {attribute: text for attribute, (_, text, _) in typed.items() if text}
    if criteria.dates.strip():
        filters["StudyDate"] = _dates(criteria.dates)
    if not filters:
        raise SettingsError(
            "There is nothing to search by. Type a patient id, accession number, date or modality."
        )
    return filters


def _dates(typed: str) -> str:
    """Return a day, or two as a range, as DICOM writes them (PS3.5 6.2, DA)."""
    try:
        days = [date(*map(int, match)) for match in DAY.findall(typed)]
    except ValueError:
        days = []
    left = DAY.sub("", typed).strip()
    if not ((len(days) == 1 and not left) or (len(days) == 2 and left in ("", "to", "-", "–"))):
        raise SettingsError(
            "The date cannot be read. Type a day such as 2024-01-31, or two: 2024-01-01 to "
            "2024-01-31."
        )
    return "-".join(day.strftime("%Y%m%d") for day in sorted(days))


# ---------------------------------------------------------------- retrieval


def fetch_series(
    archive: Archive, series: FoundSeries, *, stopped: Stopped = lambda: False
) -> Study:
    """Fetch the pictures of a series, by the same reader and limits as an upload.

    At most ``MAX_PICTURES`` instances of together ``MAX_BYTES`` are fetched, the first ones;
    the others are counted as skipped.

    Raises
    ------
    ArchiveError
        If the archive does not answer as it should, or ``stopped`` says so.
    ImageError
        If nothing of it is a picture that is read.
    """
    files: list[bytes] = []
    for instance in series.instances[:MAX_PICTURES]:
        if files and sum(map(len, files)) + len(files[-1]) > MAX_BYTES:
            break
        files.append(fetch_instance(archive, instance_path(series, instance), stopped=stopped))
    if not files:
        raise ArchiveError("The series has no pictures in the archive. Choose another series.")
    study = read_study(files)
    return replace(study, skipped=study.skipped + len(series.instances) - len(files))


def fetch_instance(
    archive: Archive,
    path: PurePosixPath,
    *,
    stopped: Stopped = lambda: False,
    most: int = MAX_BYTES,
) -> bytes:
    """Fetch the DICOM file of an instance as the archive keeps it.

    Parameters
    ----------
    path
        See :func:`instance_path`.
    most
        Its allowed bytes.

    Raises
    ------
    ArchiveError
        If the archive does not answer as it should, or ``stopped`` says so.
    """
    # As bulk data, since the client would decode an instance, and inflate it without a limit.
    parts = ask(
        archive,
        lambda client: client.retrieve_bulkdata(f"{archive.url}/{path}"),
        stopped=stopped,
        most=most + ENVELOPE,
        seconds=FILE_S,
        accept=WHOLE_FILE,
    )
    if len(parts) != 1:
        raise wrong(f"{len(parts)} files for one picture")
    return bytes(parts[0])


def load_instance(archive: Archive, path: Path) -> Image:
    """Fetch and read an instance, again after a pause where the archive is busy or away.

    Raises
    ------
    ImageError
        If it is not read, or the archive does not give it.
    ArchiveError
        If the archive does not answer.
    """
    try:
        data = patiently(partial(fetch_instance, archive, PurePosixPath(path.as_posix())))
    except RefusedError as error:
        raise ImageError(str(error)) from None
    return read_image(data)


def patiently(call: Callable[[], T]) -> T:
    """Call, and again after a pause where the archive is busy or away.

    Raises
    ------
    ArchiveError
        If the archive does not answer; at once, if it refuses what is asked.
    """
    for pause in PAUSES_S:
        try:
            return call()
        except RefusedError:
            raise
        except ArchiveError:
            time.sleep(pause)
    return call()


def instance_stamp(path: Path) -> tuple[int, int]:
    """Return two numbers that stand for an instance: its UID never stands for another picture."""
    digest = hashlib.sha256(path.as_posix().encode()).digest()
    first, second = (int.from_bytes(digest[n : n + 8], "big") >> 1 for n in (0, 8))
    return first, second


def instance_path(series: FoundSeries, instance: str) -> PurePosixPath:
    """Return where an instance is below the service's address (PS3.18 10.4.1)."""
    return PurePosixPath(f"studies/{series.study}/series/{series.uid}/instances/{instance}")


def fetch_thumbnail(
    archive: Archive, series: FoundSeries, *, stopped: Stopped = lambda: False
) -> bytes:
    """Fetch the middle picture of a series as the archive renders it, as a small grey JPEG.

    Returns
    -------
    bytes
        Its longest side ``THUMBNAIL_PX``; empty where the archive renders none.

    Raises
    ------
    ArchiveError
        If the archive cannot be reached or does not answer in time, or ``stopped`` says so.
    """
    if not series.instances:
        return b""
    instance = series.instances[len(series.instances) // 2]
    try:
        rendered = ask(
            archive,
            lambda client: client.retrieve_instance_rendered(
                series.study,
                series.uid,
                instance,
                media_types=("image/jpeg",),
                params={"viewport": f"{RENDERED_PX},{RENDERED_PX}"},
            ),
            stopped=stopped,
            most=MAX_RENDERED_BYTES,
            seconds=THUMBNAIL_S,
        )
        return thumbnail(read_image(rendered), THUMBNAIL_PX)
    except (ImageError, RefusedError):
        return b""
