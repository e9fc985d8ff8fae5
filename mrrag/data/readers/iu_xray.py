"""IU-Xray in its three published forms: Kaggle's, Open-i's and R2Gen's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mrrag.data.readers.collector import ABSENT, Collector, corpus_of, pictures_of
from mrrag.data.readers.mimic import MIMIC_SOURCE
from mrrag.data.readers.rows import (
    BEYOND,
    Skip,
    absent_image,
    csv_rows,
    find_image,
    first_folder_with,
    join_sections,
    one_line,
    read_json,
    split_name,
)
from mrrag.data.records import Corpus, Record
from mrrag.data.views import view_of
from mrrag.errors import CorpusError
from mrrag.types import Document

__all__ = ["OPENI_REPORTS", "iu_number", "read_indiana", "read_openi", "read_r2gen"]

IU_SOURCE = {
    "source": "IU-Xray (Open-i)",
    "licence": "as stated by Open-i (National Library of Medicine)",
}
INDIANA_FOLDERS = ("images/images_normalized", "images_normalized", "images")
OPENI_REPORTS = ("ecgen-radiology", "NLMCXR_reports/ecgen-radiology", "NLMCXR_reports", "reports")
OPENI_IMAGES = ("NLMCXR_png", "images", "png")
MAX_XML_BYTES = 2**20


def iu_number(name: str) -> str:
    """Return 38 of "CXR38", "CXR38_IM-1911" and "CXR38_1_IM-1911-1001", else ""."""
    found = re.match(r"(?:.*/)?CXR(\d+)(?=_|/|$)", name)
    return found[1] if found else ""


# Kaggle


def read_indiana(
    directory: str | Path,
    *,
    source: str = IU_SOURCE["source"],
    licence: str = IU_SOURCE["licence"],
) -> Corpus:
    """Read IU-Xray in Kaggle's form: two CSV files and a folder of images.

    ``indiana_reports.csv`` has ``uid``, ``findings`` and ``impression`` (and
    ``Problems``), ``indiana_projections.csv`` has ``uid``, ``filename`` and
    ``projection``. The report is the findings and the impression, one line each. "XXXX",
    which marks redacted words, is kept, so that a reader sees that words are missing. Each
    image on disk is a record; frontal ones come first, and the first one's ID is the uid.

    IU-Xray does not identify patients, so each study counts as a patient of its own, unless
    there is a ``splits.csv`` (:mod:`mrrag.data.splits`).

    Raises
    ------
    CorpusError
        If a file, a column or the folder of images is absent, a file is not CSV in
        UTF-8, or no record is left.
    """
    directory = Path(directory)
    images = _image_folder(directory)
    projections: dict[str, list[tuple[str, str]]] = {}
    for row in csv_rows(directory / "indiana_projections.csv", ("uid", "filename", "projection")):
        projections.setdefault(row["uid"], []).append((row["filename"], row["projection"]))
    found = Collector[Record]()
    renamed: list[str] = []
    reports = csv_rows(directory / "indiana_reports.csv", ("uid", "findings", "impression"))
    for number, row in enumerate(reports, start=1):
        uid = row["uid"]
        report = join_sections(row["findings"], row["impression"])
        listed = projections.get(uid, [])
        views = _views_on_disk(images, listed, renamed)
        faults = {
            "no uid": not uid,
            "uid given before": found.repeats(uid),
            BEYOND: BEYOND in row,  # an unquoted comma: fields may be in the wrong columns
            "neither findings nor impression": not report,
            "no image listed": uid not in projections,
            ABSENT: not views,
        }
        explain = {ABSENT: partial(_absent, images, [name for name, _ in listed])}
        if found.rejects(uid or f"row {number}", faults, explain):
            continue
        document = Document(
            id=uid,
            report=report,
            patient=uid,
            study=uid,
            source=source,
            licence=licence,
        )
        problems = tuple(p for t in row.get("Problems", "").split(";") if (p := t.strip()))
        record = Record(document, images, problems, impression_only=not row["findings"])
        found.accepted += pictures_of(record, views)
    return corpus_of(found, directory, renamed)


def _image_folder(directory: Path) -> Path:
    for name in INDIANA_FOLDERS:
        folder = directory / name
        # A folder that only holds another folder is not the one with the images.
        if folder.is_dir() and any(entry.is_file() for entry in folder.iterdir()):
            return folder
    raise CorpusError(
        f"No images were found in {directory}: looked for files in "
        f"{', '.join(name + '/' for name in INDIANA_FOLDERS)}. "
        "Unpack the data set so that one of them holds its images."
    )


def _views_on_disk(
    folder: Path, listed: list[tuple[str, str]], renamed: list[str]
) -> list[tuple[Path, str]]:
    """Return the image files that exist with their views: frontal, unknown, then lateral."""
    viewed = [(filename, view_of(projection)) for filename, projection in listed]
    return [
        (path, view)
        for filename, view in sorted(
            viewed, key=lambda one: ("frontal", "", "lateral").index(one[1])
        )
        if (path := find_image(folder, filename, renamed)) is not None
    ]


def _absent(folder: Path, names: Sequence[str]) -> str:
    return absent_image(folder, names[0])


# Open-i


def read_openi(directory: str | Path) -> Corpus:
    """Read IU-Xray in Open-i's form: one XML file per report, and a folder of PNG files.

    ``ecgen-radiology/*.xml`` holds ``AbstractText`` labelled FINDINGS and IMPRESSION,
    the ``major`` MeSH terms, and a ``parentImage`` for each image, whose ID is the name
    of the file in ``NLMCXR_png/`` without its suffix (``CXR1_1_IM-0001-3001``). Each image on
    disk is a record, the first with the study's ID; the views are not given. The number in
    ``uId`` is the ID of the study and, because Open-i does not identify patients, of the
    patient.

    Raises
    ------
    CorpusError
        If no reports or images are found, or no record is left.
    """
    directory = Path(directory)
    reports = first_folder_with(directory, OPENI_REPORTS, "*.xml")
    images = first_folder_with(directory, OPENI_IMAGES, "*.png")
    found = Collector[Record]()
    renamed: list[str] = []
    for path in sorted(reports.glob("*.xml"), key=lambda p: (len(p.stem), p.stem)):
        root = _parse_xml(path, found.skip)
        if root is None:
            continue
        node = root.find(".//uId")
        uid = iu_number((node.get("id") or "") if node is not None else "") or path.stem
        sections = _openi_sections(root)
        report = join_sections(*sections)
        names = [f"{i}.png" for node in root.iter("parentImage") if (i := node.get("id"))]
        files = [f for n in names if (f := find_image(images, n, renamed)) is not None]
        faults = {
            "uid given before": found.repeats(uid),
            "neither findings nor impression": not report,
            "no image listed": not names,
            ABSENT: not files,
        }
        if found.rejects(path.name, faults, {ABSENT: partial(_absent, images, names)}):
            continue
        document = Document(id=uid, report=report, patient=uid, study=uid, **IU_SOURCE)
        terms = (" ".join((node.text or "").split()) for node in root.iter("major"))
        problems = tuple(dict.fromkeys(term for term in terms if term))
        record = Record(document, images, problems, impression_only=not sections[0].strip())
        found.accepted += pictures_of(record, [(file, "") for file in files])
    return corpus_of(found, directory, renamed)


def _parse_xml(path: Path, skip: Skip) -> ElementTree.Element | None:
    try:
        if path.stat().st_size <= MAX_XML_BYTES:
            return ElementTree.fromstring(path.read_bytes())
        reason = "XML file too large"
    except (ElementTree.ParseError, ValueError):
        reason = "XML file damaged"
    except OSError:
        reason = "XML file cannot be read"
    skip(reason, path.name)
    return None


def _openi_sections(root: ElementTree.Element) -> tuple[str, str]:
    sections = {
        (node.get("Label") or "").upper(): "".join(node.itertext())
        for node in root.iter("AbstractText")
    }
    return sections.get("FINDINGS", ""), sections.get("IMPRESSION", "")


# R2Gen


def read_r2gen(directory: str | Path) -> Corpus:
    """Read IU-Xray or MIMIC-CXR in R2Gen's form: ``annotation.json`` and ``images/``.

    ``annotation.json`` has lists "train", "val" and "test" of objects with ``id``,
    ``report`` and ``image_path``, a list. Each file on disk is a record, the first with the
    ID; the views are not given. Those of MIMIC-CXR also have ``subject_id`` and ``study_id``.

    Raises
    ------
    CorpusError
        If the file has another form, or no record is left.
    """
    directory = Path(directory)
    path = directory / "annotation.json"
    splits = read_json(path)
    if not isinstance(splits, dict) or not all(isinstance(rows, list) for rows in splits.values()):
        raise CorpusError(f'{path} must be an object of lists, "train", "val" and "test".')
    images = directory / "images" if (directory / "images").is_dir() else directory
    found = Collector[Record]()
    renamed: list[str] = []
    rows = ((name, n, row) for name in splits for n, row in enumerate(splits[name], start=1))
    for name, number, row in rows:
        row = row if isinstance(row, dict) else {}
        uid = str(row.get("id") or "")
        listed = row.get("image_path") or []
        names = [str(n) for n in listed] if isinstance(listed, list) else [str(listed)]
        files = [f for n in names if (f := find_image(images, n, renamed)) is not None]
        report = one_line(row.get("report"))
        faults = {
            "no id": not uid,
            "id given before": found.repeats(uid),
            "no report": not report,
            "no image listed": not names,
            ABSENT: not files,
        }
        explain = {ABSENT: partial(_absent, images, names)}
        if found.rejects(uid or f"{name} {number}", faults, explain):
            continue
        document = Document(
            id=uid, report=report, split=split_name(name), **_r2gen_origin(uid, row)
        )
        found.accepted += pictures_of(Record(document, images), [(file, "") for file in files])
    return corpus_of(found, directory, renamed)


def _r2gen_origin(uid: str, row: dict[str, Any]) -> dict[str, str]:
    """Return patient, study, source and licence: of MIMIC-CXR if the row has its IDs."""
    if row.get("subject_id") and row.get("study_id"):
        return {"patient": f"p{row['subject_id']}", "study": f"s{row['study_id']}"} | MIMIC_SOURCE
    number = iu_number(uid) or uid
    return {"patient": number, "study": number} | IU_SOURCE
