"""A data set on disk → documents and questions; one function per layout.

Rows that cannot become a document are skipped and counted by reason, never repaired.
This module opens no image and knows no encoder: it only says which file goes with which
report. Another layout is one more function that returns a :class:`Corpus`, and one more
line in ``LAYOUTS``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mrrag.errors import CorpusError
from mrrag.types import Document

__all__ = ["LAYOUTS", "Case", "Corpus", "Question", "read_indiana", "read_questions"]

IMAGE_FOLDERS = ("images/images_normalized", "images_normalized", "images")
BEYOND = "fields beyond the last column"


@dataclass(frozen=True)
class Case:
    """A document with the file of its image.

    ``projection`` is "Frontal", "Lateral" or what the data set says; ``problems`` are
    its own labels; ``split`` is empty where the data set has none.
    """

    document: Document
    image_path: Path
    projection: str = ""
    problems: tuple[str, ...] = ()
    split: str = ""


@dataclass(frozen=True)
class Corpus:
    """What was read, and the row identifiers that were not, by reason."""

    cases: tuple[Case, ...]
    skipped: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Question:
    """A question about a case, with its reference answer.

    ``answer_type`` is "closed" (yes or no) or "open"; ``finding`` is what it asks about,
    or empty.
    """

    qid: str
    uid: str
    question: str
    answer: str
    answer_type: str
    finding: str = ""


def read_indiana(
    directory: str | Path,
    *,
    source: str = "IU-Xray (Open-i)",
    licence: str = "as stated by Open-i (National Library of Medicine)",
) -> Corpus:
    """IU-Xray as Kaggle lays it out: two CSV files and a folder of images.

    ``indiana_reports.csv`` gives ``uid``, ``findings`` and ``impression`` (and
    ``Problems``), ``indiana_projections.csv`` gives ``uid``, ``filename`` and
    ``projection``. The report is the findings and the impression, a line each. "XXXX",
    which stands where something was redacted, is kept: a reader should see that words
    are missing. The first frontal image of a case that is on disk is taken, else its
    first other one.

    IU-Xray names no patients, so that each case counts as a patient of its own. Where a
    ``splits.csv`` (``uid``, ``patient``, ``split``) lies beside, it is used, and a case
    that it does not name is skipped: it might be another part's patient.

    Raises
    ------
    CorpusError
        Where a file, a column or the folder of images is absent, a file is not CSV in
        UTF-8, or no case is left.
    """
    directory = Path(directory)
    images = _image_folder(directory)
    projections: dict[str, list[tuple[str, str]]] = {}
    for row in _rows(directory / "indiana_projections.csv", ("uid", "filename", "projection")):
        projections.setdefault(row["uid"], []).append((row["filename"], row["projection"]))
    splits: dict[str, tuple[str, str]] | None = None
    if (directory / "splits.csv").is_file():
        rows = _rows(directory / "splits.csv", ("uid", "patient", "split"))
        splits = {row["uid"]: (row["patient"], row["split"]) for row in rows}

    cases: list[Case] = []
    skipped: dict[str, list[str]] = {}
    seen: set[str] = set()
    reports = directory / "indiana_reports.csv"
    for number, row in enumerate(_rows(reports, ("uid", "findings", "impression")), start=1):
        uid = row["uid"]
        parts = [" ".join(row[column].split()) for column in ("findings", "impression")]
        image = _choose_image(images, projections.get(uid, []))
        reason = ""
        if not uid:
            reason = "no uid"
        elif uid in seen:
            reason = "uid given before"
        elif BEYOND in row:  # an unquoted comma, so that fields are not where they seem
            reason = BEYOND
        elif not any(parts):
            reason = "neither findings nor impression"
        elif uid not in projections:
            reason = "no image listed"
        elif image is None:
            reason = "image file absent"
        elif splits is not None and not all(splits.get(uid, ("", ""))):
            reason = "no patient and split in splits.csv"
        seen.add(uid)
        if reason or image is None:
            skipped.setdefault(reason, []).append(uid or f"row {number}")
            continue
        patient, split = (uid, "") if splits is None else splits[uid]
        report = "\n".join(part for part in parts if part)
        problems = (problem.strip() for problem in row.get("Problems", "").split(";"))
        cases.append(
            Case(
                Document(uid, report, patient, uid, source, licence),
                image[0],
                image[1],
                tuple(problem for problem in problems if problem),
                split,
            )
        )
    if not cases:
        counts = ", ".join(f"{len(ids)} with {reason}" for reason, ids in skipped.items())
        raise CorpusError(f"No case could be read from {directory} ({counts or 'it has no rows'}).")
    return Corpus(tuple(cases), {reason: tuple(ids) for reason, ids in skipped.items()})


LAYOUTS: dict[str, Callable[[str | Path], Corpus]] = {"indiana": read_indiana}


def read_questions(path: str | Path) -> list[Question]:
    """Questions of a JSON Lines file, an object per line with :class:`Question`'s fields.

    Other fields are ignored, and blank lines too.

    Raises
    ------
    CorpusError
        With the number of the first line that is not such an object, or whose ``qid``
        came before.
    """
    path = Path(path)
    questions: list[Question] = []
    seen: set[str] = set()
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise CorpusError(f"{where} is not JSON ({error}). Write an object a line.") from error
        fields = ("qid", "uid", "question", "answer", "answer_type")
        absent = [f for f in fields if not isinstance(values, dict) or not values.get(f)]
        if absent:
            raise CorpusError(f"{where} has no {', '.join(absent)}. Required: {', '.join(fields)}.")
        question = Question(
            **{f: str(values[f]) for f in fields}, finding=str(values.get("finding") or "")
        )
        if question.answer_type not in ("closed", "open"):
            raise CorpusError(
                f'{where}: the answer_type is "{question.answer_type}"; '
                'it must be "closed" or "open".'
            )
        if question.qid in seen:
            raise CorpusError(f"{where}: the qid {question.qid} came before. Give each its own.")
        seen.add(question.qid)
        questions.append(question)
    return questions


def _image_folder(directory: Path) -> Path:
    for name in IMAGE_FOLDERS:
        folder = directory / name
        # A folder that only holds another one is not yet where the images are.
        if folder.is_dir() and any(entry.is_file() for entry in folder.iterdir()):
            return folder
    raise CorpusError(
        f"No images were found in {directory}: looked for files in "
        f"{', '.join(name + '/' for name in IMAGE_FOLDERS)}. "
        "Unpack the data set so that one of them holds its images."
    )


def _choose_image(folder: Path, listed: list[tuple[str, str]]) -> tuple[Path, str] | None:
    """The first frontal image on disk, else the first other one, else None."""
    for filename, projection in sorted(listed, key=lambda item: item[1].lower() != "frontal"):
        # A name with a path in it could reach outside the folder.
        if filename and Path(filename).name == filename and (folder / filename).is_file():
            return folder / filename, projection
    return None


def _text(path: Path) -> str:
    try:
        # Newlines as they are: those inside quoted fields belong to the CSV reader.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return stream.read()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text ({error}). Convert it to UTF-8.") from error


def _rows(path: Path, required: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Rows of a CSV file as stripped strings by column; a short row's rest is empty.

    A long row has the key ``BEYOND`` too.
    """
    # strict: a quote that never closes is an error, rather than a field with the rest
    # of the file in it.
    text = io.StringIO(_text(path), newline="")
    reader = csv.DictReader(text, restkey=BEYOND, restval="", strict=True)
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        absent = [name for name in required if name not in header]
        if absent:
            raise CorpusError(
                f"{path} has no column {', '.join(absent)}; it has {', '.join(header) or 'none'}."
            )
        for row in reader:
            beyond = {BEYOND: ""} if BEYOND in row else {}
            yield {name: row[name].strip() for name in header} | beyond
    except csv.Error as error:
        raise CorpusError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error
