"""IU-Xray in its three published forms: Kaggle's, Open-i's and R2Gen's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mrrag.data.readers.collector import Collector, corpus_of
from mrrag.data.readers.mimic import MIMIC_SOURCE
from mrrag.data.readers.rows import (
    BEYOND,
    Skip,
    csv_rows,
    file_inside,
    first_folder_with,
    join_sections,
    one_line,
    read_json,
    split_name,
)
from mrrag.data.records import Corpus, Record
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
    which marks redacted words, is kept, so that a reader sees that words are missing. The
    image is the first frontal one on disk, else the first one.

    IU-Xray does not identify patients, so each record counts as a patient of its own. If
    there is a ``splits.csv`` (``uid``, ``patient``, ``split``), it is used, and records
    that it does not list are skipped, because their patient may be in another split.

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
    splits = _indiana_splits(directory / "splits.csv")

    found = Collector[Record]()
    other_images = 0
    reports = csv_rows(directory / "indiana_reports.csv", ("uid", "findings", "impression"))
    for number, row in enumerate(reports, start=1):
        uid = row["uid"]
        report = join_sections(row["findings"], row["impression"])
        views = _views_on_disk(images, projections.get(uid, []))
        patient, split = (uid, "") if splits is None else splits.get(uid, ("", ""))
        faults = {
            "no uid": not uid,
            "uid given before": found.repeats(uid),
            BEYOND: BEYOND in row,  # an unquoted comma: fields may be in the wrong columns
            "neither findings nor impression": not report,
            "no image listed": uid not in projections,
            "image file absent": not views,
            "no patient and split in splits.csv": splits is not None and not (patient and split),
        }
        if found.rejects(uid or f"row {number}", faults):
            continue
        document = Document(
            id=uid,
            report=report,
            patient=patient,
            study=uid,
            source=source,
            licence=licence,
            split=split,
        )
        problems = tuple(p for t in row.get("Problems", "").split(";") if (p := t.strip()))
        found.accepted.append(Record(document, *views[0], problems))
        other_images += len(views) - 1
    return corpus_of(found, directory, other_images)


def _indiana_splits(path: Path) -> dict[str, tuple[str, str]] | None:
    """Return patient and split by uid, or None if there is no such file."""
    if not path.is_file():
        return None
    rows = csv_rows(path, ("uid", "patient", "split"))
    return {row["uid"]: (row["patient"], split_name(row["split"])) for row in rows}


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


def _views_on_disk(folder: Path, listed: list[tuple[str, str]]) -> list[tuple[Path, str]]:
    """Return the image files that exist with their projections, frontal ones first."""
    return [
        (folder / filename, projection)
        for filename, projection in sorted(listed, key=lambda item: item[1].lower() != "frontal")
        # A name with a path in it could lead outside the folder.
        if filename and Path(filename).name == filename and (folder / filename).is_file()
    ]


# Open-i


def read_openi(directory: str | Path) -> Corpus:
    """Read IU-Xray in Open-i's form: one XML file per report, and a folder of PNG files.

    ``ecgen-radiology/*.xml`` holds ``AbstractText`` labelled FINDINGS and IMPRESSION,
    the ``major`` MeSH terms, and a ``parentImage`` for each image, whose ID is the name
    of the file in ``NLMCXR_png/`` without its suffix (``CXR1_1_IM-0001-3001``). The views
    are not given: the first image on disk is used. The number in ``uId`` is the ID of
    record and study and, because Open-i does not identify patients, of the patient.

    Raises
    ------
    CorpusError
        If no reports or images are found, or no record is left.
    """
    directory = Path(directory)
    reports = first_folder_with(directory, OPENI_REPORTS, "*.xml")
    images = first_folder_with(directory, OPENI_IMAGES, "*.png")
    found = Collector[Record]()
    other_images = 0
    for path in sorted(reports.glob("*.xml"), key=lambda p: (len(p.stem), p.stem)):
        root = _parse_xml(path, found.skip)
        if root is None:
            continue
        node = root.find(".//uId")
        uid = iu_number((node.get("id") or "") if node is not None else "") or path.stem
        report = _openi_report(root)
        names = [node.get("id") or "" for node in root.iter("parentImage")]
        files = [f for n in names if n and (f := file_inside(images, f"{n}.png")) is not None]
        faults = {
            "uid given before": found.repeats(uid),
            "neither findings nor impression": not report,
            "no image listed": not names,
            "image file absent": not files,
        }
        if found.rejects(path.name, faults):
            continue
        document = Document(id=uid, report=report, patient=uid, study=uid, **IU_SOURCE)
        terms = (" ".join((node.text or "").split()) for node in root.iter("major"))
        problems = tuple(dict.fromkeys(term for term in terms if term))
        found.accepted.append(Record(document, files[0], problems=problems))
        other_images += len(files) - 1
    return corpus_of(found, directory, other_images)


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


def _openi_report(root: ElementTree.Element) -> str:
    sections = {
        (node.get("Label") or "").upper(): "".join(node.itertext())
        for node in root.iter("AbstractText")
    }
    return join_sections(sections.get("FINDINGS", ""), sections.get("IMPRESSION", ""))


# R2Gen


def read_r2gen(directory: str | Path) -> Corpus:
    """Read IU-Xray or MIMIC-CXR in R2Gen's form: ``annotation.json`` and ``images/``.

    ``annotation.json`` has lists "train", "val" and "test" of objects with ``id``,
    ``report`` and ``image_path`` (a list; the first file on disk is used). Those of
    MIMIC-CXR also have ``subject_id`` and ``study_id``.

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
    other_images = 0
    rows = ((name, n, row) for name in splits for n, row in enumerate(splits[name], start=1))
    for name, number, row in rows:
        row = row if isinstance(row, dict) else {}
        uid = str(row.get("id") or "")
        listed = row.get("image_path") or []
        names = [str(n) for n in listed] if isinstance(listed, list) else [str(listed)]
        files = [f for n in names if (f := file_inside(images, n)) is not None]
        report = one_line(row.get("report"))
        faults = {
            "no id": not uid,
            "id given before": found.repeats(uid),
            "no report": not report,
            "no image listed": not names,
            "image file absent": not files,
        }
        if found.rejects(uid or f"{name} {number}", faults):
            continue
        document = Document(
            id=uid, report=report, split=split_name(name), **_r2gen_origin(uid, row)
        )
        found.accepted.append(Record(document, files[0]))
        other_images += len(files) - 1
    return corpus_of(found, directory, other_images)


def _r2gen_origin(uid: str, row: dict[str, Any]) -> dict[str, str]:
    """Return patient, study, source and licence: of MIMIC-CXR if the row has its IDs."""
    if row.get("subject_id") and row.get("study_id"):
        return {"patient": f"p{row['subject_id']}", "study": f"s{row['study_id']}"} | MIMIC_SOURCE
    number = iu_number(uid) or uid
    return {"patient": number, "study": number} | IU_SOURCE
