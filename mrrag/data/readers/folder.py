"""A plain folder of one's own: a table, or images with text files beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydicom import dcmread

from mrrag.data.readers.collector import Collector, corpus_of
from mrrag.data.readers.rows import (
    BEYOND,
    PICTURES,
    Skip,
    cell_text,
    csv_rows,
    file_inside,
    json_lines,
    one_line,
    parquet_rows,
    split_name,
)
from mrrag.data.records import Corpus, Record
from mrrag.errors import CorpusError
from mrrag.types import Document

__all__ = ["find_tables", "read_folder"]

# Field → the column names that it may have.
COLUMNS = {
    "image": ("image", "image_path", "path", "filename", "file_name", "file", "img"),
    "report": ("report", "text", "caption", "findings", "report_text"),
    "id": ("id", "uid", "image_id"),
    "patient": ("patient", "patient_id", "subject_id", "subject"),
    "study": ("study", "study_id", "accession"),
    "split": ("split", "use", "subset"),
    "problems": ("problems", "labels", "label"),
}
# Tables with another purpose.
OWN_FILES = ("questions.jsonl", "splits.csv")
DICOM = (".dcm", ".dicom")


def read_folder(directory: str | Path) -> Corpus:
    """Read a plain folder: a table of images and reports, or images with ``.txt`` files.

    The table is one CSV, JSON Lines or Parquet file. It has the columns (or keys)
    ``image``, a path below the folder, and ``report``, and may have ``id``, ``patient``,
    ``study``, ``split`` and ``problems`` (separated by ";"). ``COLUMNS`` lists the other
    names that are allowed. Without a table, each ``NAME.txt`` is the report of the
    ``NAME.dcm``, ``NAME.png`` or ``NAME.jpg`` beside it.

    A record without a patient counts as a patient of its own. For a DICOM file, patient
    and study are taken from the header, of which only a hash is stored, never the ID.

    Raises
    ------
    CorpusError
        If there is neither a table nor a text, more than one table, a table without an
        image or report column, or no record is left.
    """
    directory = Path(directory)
    tables = find_tables(directory)
    if len(tables) > 1:
        raise CorpusError(
            f"{directory} has more than one table ({', '.join(p.name for p in tables)}). "
            "Leave one of them there."
        )
    found = Collector[Record]()
    for where, row in _table_rows(tables[0], found.skip) if tables else _text_rows(directory):
        uid = row["id"] or row["image"]
        image = file_inside(directory, row["image"]) if row["image"] else None
        report = "\n".join(line for t in row["report"].splitlines() if (line := one_line(t)))
        faults = {
            "no image listed": not row["image"],
            "id given before": found.repeats(uid),
            "image file absent": image is None,
            "no report": not report,
        }
        if found.rejects(uid if row["image"] else where, faults) or image is None:
            continue
        patient, study = row["patient"], row["study"]
        if not (patient and study) and image.suffix.lower() in DICOM:
            hashes = _dicom_hashes(image)
            patient, study = patient or hashes[0], study or hashes[1]
        document = Document(
            id=uid,
            report=report,
            patient=patient or uid,
            study=study or uid,
            split=split_name(row["split"]),
        )
        problems = tuple(p for t in row["problems"].split(";") if (p := t.strip()))
        found.accepted.append(Record(document, image, problems=problems))
    return corpus_of(found, directory)


def find_tables(directory: Path) -> list[Path]:
    """Return the tables in a folder, other than the questions and the splits."""
    return [
        path
        for suffix in ("csv", "jsonl", "parquet")
        for path in sorted(directory.glob(f"*.{suffix}"))
        if path.name not in OWN_FILES
    ]


def _table_rows(path: Path, skip: Skip) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a table with the keys of ``COLUMNS``, each with its place."""
    raw: Iterable[tuple[str, Mapping[str, Any]]]
    if path.suffix == ".jsonl":
        raw = json_lines(path, skip)
    else:
        names = {name for names in COLUMNS.values() for name in names}
        rows = csv_rows(path) if path.suffix == ".csv" else parquet_rows(path, names)
        raw = ((f"row {n}", row) for n, row in enumerate(rows, start=1))
    for where, values in raw:
        if BEYOND in values:
            skip(BEYOND, where)
            continue
        given = {name.strip().lower(): name for name in values}
        chosen = {
            field: next((given[name] for name in names if name in given), None)
            for field, names in COLUMNS.items()
        }
        # The rows of JSON Lines need not all have the same keys.
        if path.suffix != ".jsonl" and not (chosen["image"] and chosen["report"]):
            raise CorpusError(
                f"{path} has the columns {', '.join(values) or 'none'}. It needs one for the "
                f"image ({', '.join(COLUMNS['image'])}) and one for the report "
                f"({', '.join(COLUMNS['report'])})."
            )
        yield where, {f: cell_text(values[name]) if name else "" for f, name in chosen.items()}


def _text_rows(directory: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the text files below a folder, each with the image beside it."""
    for text in sorted(directory.rglob("*.txt")):
        files = (text.with_suffix(suffix) for suffix in (*DICOM, *PICTURES, ""))
        image = next((f for f in files if f.is_file()), None)
        name = str(text.relative_to(directory).with_suffix(""))
        try:
            report = text.read_text("utf-8-sig", errors="replace")
        except OSError:
            report = ""
        row = dict.fromkeys(COLUMNS, "")
        row |= {"id": name, "image": f"{name}.dcm", "report": report}
        if image is not None:
            row["image"] = str(image.relative_to(directory))
        yield name, row


def _dicom_hashes(path: Path) -> tuple[str, str]:
    """Return hashes of PatientID and StudyInstanceUID, "" for what the header lacks."""
    tags = ("PatientID", "StudyInstanceUID")
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=[*tags])
        patient, study = (str(header.get(tag) or "").strip() for tag in tags)
    except Exception:  # pydicom raises many kinds on damaged files
        return "", ""
    return _hash(patient), _hash(study)


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:16] if value else ""
