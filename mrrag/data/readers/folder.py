"""A plain folder of one's own: a table, or images with text files beside them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pydicom import dcmread

from mrrag.data.pseudonyms import pseudonym
from mrrag.data.readers.collector import ABSENT, Collector, corpus_of
from mrrag.data.readers.rows import (
    PICTURES,
    absent_image,
    find_image,
    one_line,
    split_name,
    table_rows,
)
from mrrag.data.records import Corpus, Record
from mrrag.data.views import view_of
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
    "view": ("view", "projection", "view_position", "viewposition"),
}
# Tables with another purpose.
OWN_FILES = ("questions.jsonl", "splits.csv")
DICOM = (".dcm", ".dicom")


def read_folder(directory: str | Path) -> Corpus:
    """Read a plain folder: a table of images and reports, or images with ``.txt`` files.

    The table is one CSV, JSON Lines or Parquet file. It has the columns (or keys)
    ``image``, a path below the folder, and ``report``, and may have ``id``, ``patient``,
    ``study``, ``split``, ``view`` (frontal, PA, AP, lateral, LL) and ``problems`` (separated
    by ";"). ``COLUMNS`` lists the other names that are allowed. Without a table, each
    ``NAME.txt`` is the report of the ``NAME.dcm``, ``NAME.png`` or ``NAME.jpg`` beside it.

    A record without a patient counts as a patient of its own. For a DICOM file, patient,
    study and view are taken from the header where the table does not give them. Of patient
    and study only a hash is stored, never the ID.

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
    renamed: list[str] = []
    other_views: list[str] = []
    rows = (
        table_rows(tables[0], COLUMNS, ("image", "report"), found.skip)
        if tables
        else _text_rows(directory)
    )
    for where, row in rows:
        uid = row["id"] or row["image"]
        image = find_image(directory, row["image"], renamed)
        report = "\n".join(line for t in row["report"].splitlines() if (line := one_line(t)))
        faults = {
            "no image listed": not row["image"],
            "id given before": found.repeats(uid),
            ABSENT: image is None,
            "no report": not report,
        }
        explain = {ABSENT: partial(absent_image, directory, row["image"])}
        if found.rejects(uid if row["image"] else where, faults, explain) or image is None:
            continue
        patient, study, view = row["patient"], row["study"], row["view"]
        if not (patient and study and view) and image.suffix.lower() in DICOM:
            header = _dicom_header(image)
            patient, study, view = patient or header[0], study or header[1], view or header[2]
        if view and not view_of(view):
            other_views.append(view)
        document = Document(
            id=uid,
            report=report,
            patient=patient or uid,
            study=study or uid,
            split=split_name(row["split"]),
            view=view_of(view),
        )
        problems = tuple(p for t in row["problems"].split(";") if (p := t.strip()))
        found.accepted.append(Record(document, image, problems=problems))
    notes = []
    if other_views:
        notes.append(
            f"{len(other_views)} images are of a view that is neither frontal nor lateral, such "
            f'as "{other_views[0]}". Allowed are frontal, PA, AP, lateral, LL and RL.'
        )
    return corpus_of(found, directory, renamed, notes)


def find_tables(directory: Path) -> list[Path]:
    """Return the tables in a folder, other than the questions and the splits."""
    return [
        path
        for suffix in ("csv", "jsonl", "parquet")
        for path in sorted(directory.glob(f"*.{suffix}"))
        if path.name not in OWN_FILES
    ]


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


def _dicom_header(path: Path) -> tuple[str, str, str]:
    """Return hashes of PatientID and StudyInstanceUID, and the view; "" for what is absent.

    The view is View Position (0018,5101), else the meaning of View Code Sequence (0054,0220).
    """
    tags = ("PatientID", "StudyInstanceUID", "ViewPosition", "ViewCodeSequence")
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=[*tags])
        patient, study, view = (str(header.get(tag) or "").strip() for tag in tags[:3])
        codes = header.get("ViewCodeSequence") or ()
        if not view and codes:
            view = str(codes[0].get("CodeMeaning") or "").strip()
    except Exception:  # pydicom raises many kinds on damaged files
        return "", "", ""
    return pseudonym(patient), pseudonym(study), view
