"""MIMIC-CXR and MIMIC-CXR-JPG, and the sections of their free-text reports."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mrrag.data.readers.collector import ABSENT, Collector, corpus_of, pictures_of
from mrrag.data.readers.rows import absent_image, csv_rows, file_inside, join_sections, split_name
from mrrag.data.records import Corpus, Record
from mrrag.data.views import view_of
from mrrag.types import Document

__all__ = ["MIMIC_SOURCE", "find_sections", "read_mimic"]

MIMIC_SOURCE = {
    "source": "MIMIC-CXR (PhysioNet)",
    "licence": "PhysioNet Credentialed Health Data License 1.5.0",
}
REPORT_FOLDERS = ("", "mimic-cxr-reports", "reports")
SUFFIXES = (".jpg", ".dcm", ".png", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
# Columns of the metadata that say the view where ViewPosition is empty, by the rule of
# _view_of_row.
CODE, PROCEDURE = "ViewCodeSequence_CodeMeaning", "PerformedProcedureStepDescription"


class Picture(NamedTuple):
    """An image's DICOM ID and view; a PA film has order 0, and any other image 1."""

    dicom_id: str
    view: str = ""
    order: int = 1


class Study(NamedTuple):
    """A patient's ID, and the images of one study."""

    patient: str
    images: list[Picture]


def read_mimic(directory: str | Path) -> Corpus:
    """Read MIMIC-CXR (DICOM) or MIMIC-CXR-JPG in PhysioNet's form.

    Images are ``files/p10/p1XXXXXXX/s5XXXXXXX/<dicom_id>.jpg`` or ``.dcm``, reports
    ``files/p10/p1XXXXXXX/s5XXXXXXX.txt``, there or below ``mimic-cxr-reports/``. The
    tables ``mimic-cxr-2.0.0-metadata.csv.gz`` (views), ``-split`` and ``-chexpert`` (or
    ``-negbio``; labels) are used if they exist, compressed or not.

    Each image on disk is a record with its study's sections FINDINGS and IMPRESSION (see
    :func:`find_sections`). PA comes first, then other frontal views, unknown ones and lateral
    ones; the first has the study's ID. "___", which marks redacted words, is kept.

    The view is that of ``ViewPosition``. Where this is empty, ``ViewCodeSequence_CodeMeaning``
    decides; where that is empty too, ``PerformedProcedureStepDescription`` if it names AP or PA
    and nothing else, such as "CHEST (PORTABLE AP)". Otherwise the view is unknown. A note has
    the counts.

    Raises
    ------
    CorpusError
        If a table lacks a column, or no record is left.
    """
    directory = Path(directory)
    files = directory / "files" if (directory / "files").is_dir() else directory
    decided: Counter[str] = Counter()
    studies, splits = _studies(directory, files, decided), _splits(directory)
    labels = _labels(directory)
    found = Collector[Record]()
    for study, (patient, images) in studies.items():
        folder = f"{patient[:3]}/{patient}/{study}"
        report_file = _report_file(directory, files, f"{folder}.txt")
        text = _report_text(report_file)
        sections = find_sections(text or "")
        report = join_sections(*sections)
        views = _views_on_disk(files, folder, images)
        faults = {
            "report file cannot be read": text is None,
            "no image listed": not images,
            ABSENT: not views,
            "report file absent": report_file is None,
            "neither findings nor impression": not report,
            "no split": bool(splits) and study not in splits,
        }
        names = [f"{folder}/{image.dicom_id}{SUFFIXES[0]}" for image in images]
        explain = {
            ABSENT: partial(_absent, files, names),
            "report file absent": partial("looked for {}".format, files / f"{folder}.txt"),
        }
        if found.rejects(study, faults, explain):
            continue
        document = Document(
            id=study,
            report=report,
            patient=patient,
            study=study,
            split=splits.get(study, ""),
            **MIMIC_SOURCE,
        )
        record = Record(
            document, files, labels.get(study, ()), impression_only=not sections[0].strip()
        )
        found.accepted += pictures_of(record, views)
    return corpus_of(found, directory, notes=_view_note(decided))


def _absent(files: Path, names: Sequence[str]) -> str:
    return absent_image(files, names[0])


def _view_note(decided: Mapping[str, int]) -> tuple[str, ...]:
    """Return a sentence about the images whose ViewPosition is empty, if there are any."""
    total = sum(decided.values())
    if not total:
        return ()
    parts = ", ".join(f"{n} {how}" for how, n in decided.items())
    return (f"{total} images have an empty ViewPosition: {parts}.",)


def _table(directory: Path, name: str) -> Path | None:
    """Return a table of any version, ``mimic-cxr-2.0.0-<name>.csv(.gz)``."""
    found = sorted(directory.glob(f"mimic-cxr-*-{name}.csv*"))
    return found[-1] if found else None


def _studies(directory: Path, files: Path, decided: Counter[str]) -> dict[str, Study]:
    """Return the studies by ID: of the metadata table, else of the folders.

    ``decided`` counts how the empty ViewPositions were decided.
    """
    metadata = _table(directory, "metadata")
    if metadata is None:
        return _scan_folders(files)
    studies: dict[str, Study] = {}
    for row in csv_rows(metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition")):
        study = studies.setdefault(f"s{row['study_id']}", Study(f"p{row['subject_id']}", []))
        position = row["ViewPosition"].upper()
        view, how = _view_of_row(row)
        if how:
            decided[how] += 1
        study.images.append(Picture(row["dicom_id"], view, int(position != "PA")))
    return studies


def _view_of_row(row: Mapping[str, str]) -> tuple[str, str]:
    """Return the view of a row of the metadata, and how an empty ViewPosition was decided."""
    if row["ViewPosition"]:
        return view_of(row["ViewPosition"]), ""
    if row.get(CODE):
        view = view_of(row[CODE])
        return view, f"{view} by {CODE}" if view else "of another view"
    words = set(re.findall(r"[A-Z]+", row.get(PROCEDURE, "").upper()))
    if words & {"AP", "PA"} and words <= {
        "AP",
        "PA",
        "CHEST",
        "PORTABLE",
        "PORT",
        "SINGLE",
        "VIEW",
    }:
        return "frontal", f"frontal by {PROCEDURE}"
    return "", "unknown"


def _scan_folders(files: Path) -> dict[str, Study]:
    """Return the studies of which there is a folder or a report; the views are unknown."""
    studies: dict[str, Study] = {}
    for patient in sorted(files.glob("p[0-9][0-9]/p*")):
        for entry in sorted(patient.iterdir()):
            if entry.is_dir() and re.fullmatch(r"s\d+", entry.name):
                images = sorted({p.stem for p in entry.iterdir() if p.suffix in SUFFIXES})
                studies[entry.name] = Study(patient.name, [Picture(i) for i in images])
            elif entry.suffix == ".txt" and re.fullmatch(r"s\d+", entry.stem):
                studies.setdefault(entry.stem, Study(patient.name, []))
    return studies


def _splits(directory: Path) -> dict[str, str]:
    table = _table(directory, "split")
    rows = csv_rows(table, ("study_id", "split")) if table else ()
    return {f"s{row['study_id']}": split_name(row["split"]) for row in rows}


def _labels(directory: Path) -> dict[str, tuple[str, ...]]:
    """Return the positive labels by study; uncertain ones (-1) do not count."""
    table = _table(directory, "chexpert") or _table(directory, "negbio")
    rows = csv_rows(table, ("subject_id", "study_id")) if table else ()
    return {
        f"s{row['study_id']}": tuple(
            name for name, v in row.items() if v in ("1", "1.0") and not name.endswith("_id")
        )
        for row in rows
    }


def _report_file(directory: Path, files: Path, name: str) -> Path | None:
    bases = (b for n in REPORT_FOLDERS for b in (directory / n / "files", directory / n, files))
    return next((f for base in bases if (f := file_inside(base, name)) is not None), None)


def _report_text(path: Path | None) -> str | None:
    """Return the text of a report, "" if there is no file, None if it cannot be read."""
    try:
        return path.read_text("utf-8", errors="replace") if path else ""
    except OSError:
        return None


def _views_on_disk(files: Path, folder: str, images: Sequence[Picture]) -> list[tuple[Path, str]]:
    """Return the image files that exist with their views: PA, frontal, unknown, lateral."""
    if not (files / folder).is_dir():  # a part of the data set: many studies are not there
        return []
    order = ("frontal", "", "lateral")
    found = []
    for image in sorted(images, key=lambda image: (order.index(image.view), image.order)):
        paths = (file_inside(files, f"{folder}/{image.dicom_id}{suffix}") for suffix in SUFFIXES)
        path = next((path for path in paths if path is not None), None)
        if path is not None:
            found.append((path, image.view))
    return found


# Sections of a report


# Capitals with their usual punctuation at the start of a line, and a colon.
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z0-9 ()/,&.-]{2,60}):", re.MULTILINE)
_VIEW = re.compile(r"\b(CHEST|PORTABLE|VIEWS?|PA AND LAT|AP AND LAT|RIBS|FRONTAL)\b")


def find_sections(text: str) -> tuple[str, str]:
    """Return findings and impression of a free-text report; "" where a section is missing.

    A section begins with a heading in capitals and a colon at the start of a line.
    "CONCLUSION" and "FINDINGS AND IMPRESSION" count as impression, and a heading that only
    names the view ("CHEST, TWO VIEWS:") begins the findings. Some headings are misspelt
    ("IMPRESSON"), so close matches count too. If a section occurs more than once, the last
    one that is not empty counts: earlier ones belong to a wet read. If there is neither
    section, the last paragraph is taken as the findings, unless it is the only one.
    """
    text = text.replace("\r\n", "\n")
    found = {"findings": "", "impression": ""}
    headings = list(_HEADING.finditer(text))
    for number, heading in enumerate(headings):
        stop = headings[number + 1].start() if number + 1 < len(headings) else len(text)
        kind = _section_kind(heading[1])
        body = text[heading.end() : stop].strip()
        if kind in found and body:
            found[kind] = body
    if not any(found.values()):
        body = text[headings[-1].end() :] if headings else text
        paragraphs = [p for p in re.split(r"\n\s*\n", body.strip()) if p.strip()]
        if len(paragraphs) > 1:
            found["findings"] = paragraphs[-1].strip()
    return found["findings"], found["impression"]


def _section_kind(heading: str) -> str:
    name = " ".join(heading.split())
    if "IMPRESSION" in name or name.startswith("CONCLUSION"):
        return "impression"
    if "FINDING" in name:
        return "findings"
    near = difflib.get_close_matches(name, ("FINDINGS", "IMPRESSION", "INDICATION"), 1, 0.8)
    if near:
        return near[0].lower()
    if any(word in name for word in ("EXAM", "HISTORY", "COMPARISON", "TECHNIQUE", "REASON")):
        return "other"
    return "findings" if _VIEW.search(name) else "other"
