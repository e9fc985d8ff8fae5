"""A data set on disk → cases and questions; one function per layout.

Rows that cannot become a case or a question are skipped and counted by reason, never
repaired: nothing is dropped without a name. This module opens no picture and knows no
encoder; it only says which file goes with which report, and who the patient is.

The same study has the same number in every layout (``CXR38`` of Open-i is 38 in all three
forms of IU-Xray; MIMIC-CXR's are ``p10000032`` and ``s50414267``), so that a question of
one file never retrieves its own study from a knowledge base that was made of another.

Another layout is one more function that returns a :class:`Corpus`, and one more line in
``LAYOUTS``.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from pydicom import dcmread

from mrrag.data.yes_no import UNPARSED, parse_yes_no
from mrrag.errors import CorpusError
from mrrag.types import Document

__all__ = [
    "LAYOUTS",
    "SPLITS",
    "Corpus",
    "Question",
    "Record",
    "detect_layout",
    "find_sections",
    "read_corpus",
    "read_fairvlmed",
    "read_folder",
    "read_indiana",
    "read_mimic",
    "read_openi",
    "read_questions",
    "read_r2gen",
    "read_rule",
    "read_slake",
    "read_vqa_rad",
    "with_questions_as_reports",
]

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    **{"training": "train", "val": "validation", "validate": "validation", "testing": "test"},
}
INDIANA_FOLDERS = ("images/images_normalized", "images_normalized", "images")
OPENI_REPORTS = ("ecgen-radiology", "NLMCXR_reports/ecgen-radiology", "NLMCXR_reports", "reports")
OPENI_IMAGES = ("NLMCXR_png", "images", "png")
MIMIC_REPORTS = ("", "mimic-cxr-reports", "reports")
FAIRVLMED_FOLDERS = {"Training": "train", "Validation": "validation", "Test": "test"}
FAIRVLMED_TABLES = ("data_summary.csv", "gpt-4_summarized_notes.csv")
PICTURES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
BEYOND = "fields beyond the last column"
OWN_FILES = ("questions.jsonl", "splits.csv")
MAX_XML_BYTES = 2**20

IU_SOURCE = ("IU-Xray (Open-i)", "as stated by Open-i (National Library of Medicine)")
MIMIC_SOURCE = ("MIMIC-CXR (PhysioNet)", "PhysioNet Credentialed Health Data License 1.5.0")
FAIRVLMED_SOURCE = ("Harvard-FairVLMed", "CC BY-NC-ND 4.0")


@dataclass(frozen=True)
class Record:
    """A document with the file of its image.

    ``projection`` is "Frontal", "Lateral" or what the data set says; ``problems`` are
    its own labels. The report is empty where the data set has none (a VQA file).
    """

    document: Document
    image_path: Path
    projection: str = ""
    problems: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        """The document's split."""
        return self.document.split


@dataclass(frozen=True)
class Question:
    """A question about a case, with its reference answer.

    ``uid`` is the id of the case's document. ``answer_type`` is "closed" (yes or no) or
    "open"; ``finding`` is what it asks about, or empty. ``split`` is the question's own,
    where its file gives one.
    """

    qid: str
    uid: str
    question: str
    answer: str
    answer_type: str
    finding: str = ""
    split: str = ""


@dataclass(frozen=True)
class Corpus:
    """What was read, and the identifiers of the rows that were not, by reason.

    ``other_images`` counts further images of cases, lateral views most of them: a case
    is shown by one.
    """

    records: tuple[Record, ...]
    skipped: Mapping[str, tuple[str, ...]]
    questions: tuple[Question, ...] = ()
    skipped_questions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    other_images: int = 0


class _Skipped:
    """Row identifiers by reason, in order of the first of each."""

    def __init__(self) -> None:
        self.rows: dict[str, list[str]] = {}

    def add(self, reason: str, row: str) -> None:
        self.rows.setdefault(reason, []).append(row)

    def frozen(self) -> dict[str, tuple[str, ...]]:
        return {reason: tuple(rows) for reason, rows in self.rows.items()}


def read_corpus(
    path: str | Path, layout: str | None = None, *, images: str | Path | None = None
) -> Corpus:
    """Read a data set in any layout, with what lies beside it in our own form.

    Parameters
    ----------
    path
        The folder of the data set, or a VQA file.
    layout
        A key of ``LAYOUTS``; None finds it from what is on disk.
    images
        Where a VQA file's images lie, if not beside it.

    A ``source.json`` (``source``, ``licence``) in the folder says where the data come
    from, and a ``questions.jsonl`` (see :func:`read_questions`) asks about its cases.

    Raises
    ------
    CorpusError
        Where no layout, or more than one, is found, or it cannot be read.
    """
    path = Path(path)
    name = detect_layout(path) if layout is None else layout
    if name not in LAYOUTS:
        raise CorpusError(f'There is no layout "{name}". The layouts are {", ".join(LAYOUTS)}.')
    if images is None:
        corpus = LAYOUTS[name].read(path)
    elif name in VQA_LAYOUTS:
        corpus = VQA_LAYOUTS[name](path, images=Path(images))
    else:
        raise CorpusError(
            f'A folder of images was given, and the layout "{name}" has its own. '
            f"Leave it out; it is for {', '.join(VQA_LAYOUTS)}."
        )
    if path.is_dir() and (path / "source.json").is_file():
        about = _json(path / "source.json")
        if not isinstance(about, dict):
            raise CorpusError(f"{path / 'source.json'} is not an object with source and licence.")
        origin = {k: str(about[k]) for k in ("source", "licence") if k in about}
        cases = (replace(c, document=replace(c.document, **origin)) for c in corpus.records)
        corpus = replace(corpus, records=tuple(cases))
    if path.is_dir() and (path / "questions.jsonl").is_file() and name not in VQA_LAYOUTS:
        known = {case.document.id for case in corpus.records}
        skipped = _Skipped()
        questions = []
        for question in read_questions(path / "questions.jsonl"):
            if question.uid in known:
                questions.append(question)
            else:
                skipped.add("about a case that was not read", question.qid)
        corpus = replace(corpus, questions=tuple(questions), skipped_questions=skipped.frozen())
    return corpus


def detect_layout(path: Path) -> str:
    """The one layout that fits what is on disk.

    Raises
    ------
    CorpusError
        With what was looked for, where none fits or more than one does.
    """
    if not path.exists():
        raise CorpusError(f"{path} does not exist. Give the folder of a data set or a VQA file.")
    found = [name for name, layout in LAYOUTS.items() if name != "folder" and layout.fits(path)]
    if not found and LAYOUTS["folder"].fits(path):
        found = ["folder"]
    if len(found) == 1:
        return found[0]
    if found:
        raise CorpusError(
            f"{path} fits more than one layout: {', '.join(found)}. Name one with --layout."
        )
    wanted = "; ".join(f"{name}: {layout.wanted}" for name, layout in LAYOUTS.items())
    raise CorpusError(f"No data set was recognised in {path}. Looked for {wanted}.")


def with_questions_as_reports(corpus: Corpus) -> Corpus:
    """Let question and answer stand in for reports that do not exist (VQA-RAD, SLAKE).

    A case without a report gets its questions and answers, a line each. Questions of the
    test split are left out, since an answer that is to be found must not be a text that
    is searched; a case that has no others keeps its empty report.
    """
    texts: dict[str, list[str]] = {}
    for question in corpus.questions:
        if question.split != "test":
            line = f"{question.question} {question.answer}"
            lines = texts.setdefault(question.uid, [])
            if line not in lines:
                lines.append(line)
    cases = (
        case
        if case.document.report
        else replace(
            case,
            document=replace(case.document, report="\n".join(texts.get(case.document.id, ()))),
        )
        for case in corpus.records
    )
    return replace(corpus, records=tuple(cases))


# IU-Xray, in its three forms


def read_indiana(
    directory: str | Path, *, source: str = IU_SOURCE[0], licence: str = IU_SOURCE[1]
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
        splits = {row["uid"]: (row["patient"], _split(row["split"])) for row in rows}

    cases: list[Record] = []
    skipped = _Skipped()
    seen: set[str] = set()
    others = 0
    reports = directory / "indiana_reports.csv"
    for number, row in enumerate(_rows(reports, ("uid", "findings", "impression")), start=1):
        uid = row["uid"]
        report = _report(row["findings"], row["impression"])
        image, further = _choose_image(images, projections.get(uid, []))
        reason = ""
        if not uid:
            reason = "no uid"
        elif uid in seen:
            reason = "uid given before"
        elif BEYOND in row:  # an unquoted comma, so that fields are not where they seem
            reason = BEYOND
        elif not report:
            reason = "neither findings nor impression"
        elif uid not in projections:
            reason = "no image listed"
        elif image is None:
            reason = "image file absent"
        elif splits is not None and not all(splits.get(uid, ("", ""))):
            reason = "no patient and split in splits.csv"
        seen.add(uid)
        if reason or image is None:
            skipped.add(reason, uid or f"row {number}")
            continue
        others += further
        patient, split = (uid, "") if splits is None else splits[uid]
        problems = (problem.strip() for problem in row.get("Problems", "").split(";"))
        cases.append(
            Record(
                Document(uid, report, patient, uid, source, licence, split),
                image[0],
                image[1],
                tuple(problem for problem in problems if problem),
            )
        )
    return _corpus(directory, cases, skipped, others)


def read_openi(directory: str | Path) -> Corpus:
    """IU-Xray as Open-i publishes it: an XML file a report, and a folder of PNG files.

    ``ecgen-radiology/*.xml`` holds ``AbstractText`` labelled FINDINGS and IMPRESSION,
    the ``major`` MeSH terms, and a ``parentImage`` an image, whose id is the file's name
    in ``NLMCXR_png/`` without its suffix (``CXR1_1_IM-0001-3001``). The views are not
    named: the first image on disk is taken. The number of ``uId`` is the case, the study
    and, as Open-i names none, the patient.

    Raises
    ------
    CorpusError
        Where no reports or images are found, or no case is left.
    """
    directory = Path(directory)
    reports = _first_with(directory, OPENI_REPORTS, "*.xml")
    images = _first_with(directory, OPENI_IMAGES, "*.png")
    cases: list[Record] = []
    skipped = _Skipped()
    seen: set[str] = set()
    others = 0
    for path in sorted(reports.glob("*.xml"), key=lambda p: (len(p.stem), p.stem)):
        try:
            if path.stat().st_size > MAX_XML_BYTES:
                skipped.add("XML file too large", path.name)
                continue
            root = ElementTree.fromstring(path.read_bytes())
        except (ElementTree.ParseError, ValueError):
            skipped.add("XML file damaged", path.name)
            continue
        except OSError:
            skipped.add("XML file cannot be read", path.name)
            continue
        named = root.find(".//uId")
        uid = _iu_number((named.get("id") or "") if named is not None else "") or path.stem
        sections: dict[str, str] = {}
        for node in root.iter("AbstractText"):
            sections[(node.get("Label") or "").upper()] = "".join(node.itertext())
        report = _report(sections.get("FINDINGS", ""), sections.get("IMPRESSION", ""))
        ids = [node.get("id") or "" for node in root.iter("parentImage")]
        files = [f for i in ids if i and (f := _inside(images, f"{i}.png")) is not None]
        if uid in seen:
            skipped.add("uid given before", path.name)
        elif not report:
            skipped.add("neither findings nor impression", path.name)
        elif not ids:
            skipped.add("no image listed", path.name)
        elif not files:
            skipped.add("image file absent", path.name)
        else:
            terms = (" ".join((node.text or "").split()) for node in root.iter("major"))
            problems = tuple(dict.fromkeys(term for term in terms if term))
            cases.append(
                Record(Document(uid, report, uid, uid, *IU_SOURCE), files[0], "", problems)
            )
            others += len(files) - 1
        seen.add(uid)
    return _corpus(directory, cases, skipped, others)


def read_r2gen(directory: str | Path) -> Corpus:
    """IU-Xray or MIMIC-CXR as R2Gen lays it out: ``annotation.json`` and ``images/``.

    ``annotation.json`` has lists "train", "val" and "test" of objects with ``id``,
    ``report`` and ``image_path`` (a list; the first that is on disk is taken), in
    MIMIC-CXR's case ``subject_id`` and ``study_id`` too.

    Raises
    ------
    CorpusError
        Where the file is not such a one, or no case is left.
    """
    directory = Path(directory)
    path = directory / "annotation.json"
    splits = _json(path)
    if not isinstance(splits, dict) or not all(isinstance(rows, list) for rows in splits.values()):
        raise CorpusError(f'{path} must be an object of lists, "train", "val" and "test".')
    images = directory / "images" if (directory / "images").is_dir() else directory
    cases: list[Record] = []
    skipped = _Skipped()
    seen: set[str] = set()
    others = 0
    for name, rows in splits.items():
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict) or not str(row.get("id") or ""):
                skipped.add("no id", f"{name} {number}")
                continue
            uid = str(row["id"])
            listed = row.get("image_path") or []
            names = [listed] if isinstance(listed, str) else [str(n) for n in listed]
            files = [f for n in names if (f := _inside(images, n)) is not None]
            report = _text_of(row.get("report"))
            if uid in seen:
                skipped.add("id given before", uid)
            elif not report:
                skipped.add("no report", uid)
            elif not names:
                skipped.add("no image listed", uid)
            elif not files:
                skipped.add("image file absent", uid)
            else:
                if row.get("subject_id") and row.get("study_id"):
                    patient, study = f"p{row['subject_id']}", f"s{row['study_id']}"
                    origin = MIMIC_SOURCE
                else:
                    patient = study = _iu_number(uid) or uid
                    origin = IU_SOURCE
                document = Document(uid, report, patient, study, *origin, _split(name))
                cases.append(Record(document, files[0]))
                others += len(files) - 1
            seen.add(uid)
    return _corpus(directory, cases, skipped, others)


# MIMIC-CXR


def read_mimic(directory: str | Path) -> Corpus:
    """MIMIC-CXR (DICOM) and MIMIC-CXR-JPG, as PhysioNet lays them out.

    Images are ``files/p10/p1XXXXXXX/s5XXXXXXX/<dicom_id>.jpg`` or ``.dcm``, reports
    ``files/p10/p1XXXXXXX/s5XXXXXXX.txt``, there or below ``mimic-cxr-reports/``. The
    tables ``mimic-cxr-2.0.0-metadata.csv.gz`` (views), ``-split`` and ``-chexpert`` (or
    ``-negbio``; labels) are used where they are there, compressed or not.

    A case is a study: its sections FINDINGS and IMPRESSION (see :func:`find_sections`)
    with one image, PA before AP before any other view. "___", which stands where
    something was redacted, is kept.

    Raises
    ------
    CorpusError
        Where there is no ``files/`` folder, a table lacks a column, or no case is left.
    """
    directory = Path(directory)
    files = directory / "files" if (directory / "files").is_dir() else directory
    studies: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    metadata = _table(directory, "metadata")
    if metadata is not None:
        columns = ("dicom_id", "subject_id", "study_id", "ViewPosition")
        for row in _rows(metadata, columns):
            _, images = studies.setdefault(f"s{row['study_id']}", (f"p{row['subject_id']}", []))
            images.append((row["dicom_id"], row["ViewPosition"].upper()))
    else:
        studies = _scan_mimic(files)
    splits: dict[str, str] = {}
    table = _table(directory, "split")
    if table is not None:
        for row in _rows(table, ("study_id", "split")):
            splits[f"s{row['study_id']}"] = _split(row["split"])
    labels: dict[str, tuple[str, ...]] = {}
    table = _table(directory, "chexpert") or _table(directory, "negbio")
    if table is not None:
        for row in _rows(table, ("subject_id", "study_id")):
            present = (n for n, v in row.items() if v in ("1", "1.0") and not n.endswith("_id"))
            labels[f"s{row['study_id']}"] = tuple(present)

    cases: list[Record] = []
    skipped = _Skipped()
    others = 0
    for study, (patient, images) in studies.items():
        folder = f"{patient[:3]}/{patient}/{study}"
        report_file = next(
            (
                f
                for n in MIMIC_REPORTS
                for base in (directory / n / "files", directory / n, files)
                if (f := _inside(base, f"{folder}.txt")) is not None
            ),
            None,
        )
        ordered = sorted(images, key=lambda i: ("PA", "AP", i[1]).index(i[1]))
        found = [
            (path, view)
            for dicom, view in ordered
            for suffix in (".jpg", ".dcm", ".png")
            if (path := _inside(files, f"{folder}/{dicom}{suffix}")) is not None
        ]
        report = ""
        if report_file is not None:
            try:
                report = _report(*find_sections(report_file.read_text("utf-8", errors="replace")))
            except OSError:
                skipped.add("report file cannot be read", study)
                continue
        if not images:
            skipped.add("no image listed", study)
        elif not found:
            skipped.add("image file absent", study)
        elif report_file is None:
            skipped.add("report file absent", study)
        elif not report:
            skipped.add("neither findings nor impression", study)
        elif splits and study not in splits:
            skipped.add("no split", study)
        else:
            path, view = found[0]
            kind = "Frontal" if view in ("PA", "AP") else "Lateral" if view == "LATERAL" else view
            document = Document(study, report, patient, study, *MIMIC_SOURCE, splits.get(study, ""))
            cases.append(Record(document, path, kind, labels.get(study, ())))
            others += len(found) - 1
    return _corpus(directory, cases, skipped, others)


def find_sections(text: str) -> tuple[str, str]:
    """Findings and impression of a report in free text; "" for what it has not.

    A section begins with a heading in capitals and a colon at the start of a line.
    "CONCLUSION" is an impression, "FINDINGS AND IMPRESSION" too, and a heading that only
    names the view ("CHEST, TWO VIEWS:") begins the findings. Headings are misspelt now
    and then ("IMPRESSON"), so that near ones count. Of two sections of a kind the last
    that is not empty is taken: an earlier one belongs to a wet read. A report with
    neither is its last paragraph, where that is not all there is.
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


# A line's start, capitals with their usual punctuation, a colon.
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z0-9 ()/,&.-]{2,60}):", re.MULTILINE)
_VIEW = re.compile(r"\b(CHEST|PORTABLE|VIEWS?|PA AND LAT|AP AND LAT|RIBS|FRONTAL)\b")


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


def _scan_mimic(files: Path) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Studies with their images where no metadata table names them; the views are unknown."""
    studies: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for patient in sorted(files.glob("p[0-9][0-9]/p*")):
        for entry in sorted(patient.iterdir()):
            if entry.is_dir() and re.fullmatch(r"s\d+", entry.name):
                images = sorted(
                    {p.stem for p in entry.iterdir() if p.suffix in (".jpg", ".dcm", ".png")}
                )
                studies[entry.name] = (patient.name, [(i, "") for i in images])
            elif entry.suffix == ".txt" and re.fullmatch(r"s\d+", entry.stem):
                studies.setdefault(entry.stem, (patient.name, []))
    return studies


def _table(directory: Path, name: str) -> Path | None:
    """A table of MIMIC-CXR of any version, ``mimic-cxr-2.0.0-<name>.csv(.gz)``."""
    found = sorted(directory.glob(f"mimic-cxr-*-{name}.csv*"))
    return found[-1] if found else None


# Harvard-FairVLMed


def read_fairvlmed(directory: str | Path) -> Corpus:
    """Harvard-FairVLMed: NumPy archives by split, and the table of summaries.

    ``Training``, ``Validation`` and ``Test`` hold ``data_xxxxx.npz`` (or, as others
    distribute them, ``slo_fundus_xxxxx.jpg``). The texts are in ``data_summary.csv``
    (``filename``, ``gpt4_summary``, ``note``, ``glaucoma``) or in
    ``gpt-4_summarized_notes.csv`` (file name, note, summary), both as published; the
    summary is the report, and the note where it is empty. The five digits are the case,
    the study and the patient. The label is the table's, else the archive's own.

    Raises
    ------
    CorpusError
        Where there is no table, or no case is left.
    """
    directory = Path(directory)
    table = next((p for n in FAIRVLMED_TABLES if (p := directory / n).is_file()), None)
    if table is None:
        raise CorpusError(
            f"{directory} has no summaries: looked for {' and '.join(FAIRVLMED_TABLES)}."
        )
    texts: dict[str, tuple[str, str]] = {}
    skipped = _Skipped()
    for number, row in enumerate(_rows(table, ()), start=2):
        columns = {name.lower().replace("_", " "): value for name, value in row.items()}
        values = list(row.values())
        name = columns.get("filename") or columns.get("file name") or values[0]
        uid = _digits(name)
        summary = columns.get("gpt4 summary") or columns.get("summarized note") or ""
        if not summary and "gpt4 summary" not in columns and len(values) > 2:
            summary = values[2]  # the columns of this table have had several names
        note = columns.get("note") or columns.get("original note") or ""
        if not uid:
            skipped.add("no file name", f"{table.name} line {number}")
        elif uid in texts:
            skipped.add("file named before", uid)
        else:
            texts[uid] = (" ".join((summary or note).split()), columns.get("glaucoma", "").lower())

    cases: list[Record] = []
    seen: set[str] = set()
    for folder, split in FAIRVLMED_FOLDERS.items():
        if not (directory / folder).is_dir():
            continue
        for path in sorted((directory / folder).iterdir()):
            if path.suffix not in (".npz", *PICTURES):
                continue
            uid = _digits(path.stem)
            report, label = texts.get(uid, ("", ""))
            if not label and path.suffix == ".npz" and report:
                label = _npz_label(path)
            if uid in seen:
                skipped.add("file given before", f"{folder}/{path.name}")
            elif uid not in texts:
                skipped.add("no summary", f"{folder}/{path.name}")
            elif not report:
                skipped.add("empty summary", f"{folder}/{path.name}")
            elif label == "damaged":
                skipped.add("archive damaged", f"{folder}/{path.name}")
            else:
                sick = label in ("1", "1.0", "yes", "true", "glaucoma")
                problems = ("glaucoma" if sick else "no glaucoma",) if label else ()
                document = Document(uid, report, uid, uid, *FAIRVLMED_SOURCE, split)
                cases.append(Record(document, path, "SLO fundus", problems))
            seen.add(uid)
    for uid in sorted(texts.keys() - seen):
        skipped.add("image file absent", uid)
    return _corpus(directory, cases, skipped)


def _npz_label(path: Path) -> str:
    """The archive's ``glaucoma`` as "0" or "1"; "damaged" where it cannot be read."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return str(int(archive["glaucoma"].item())) if "glaucoma" in archive else ""
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile):
        return "damaged"


# A plain folder

COLUMNS = {
    "image": ("image", "image_path", "path", "filename", "file_name", "file", "img"),
    "report": ("report", "text", "caption", "findings", "report_text"),
    "id": ("id", "uid", "image_id"),
    "patient": ("patient", "patient_id", "subject_id", "subject"),
    "study": ("study", "study_id", "accession"),
    "split": ("split", "use", "subset"),
    "problems": ("problems", "labels", "label"),
}


def read_folder(directory: str | Path) -> Corpus:
    """A plain folder: a table of images and reports, or images with ``.txt`` beside them.

    The table is one CSV, JSON Lines or Parquet file. Its columns (or keys) are
    ``image``, a path below the folder, and ``report``, and where it has them ``id``,
    ``patient``, ``study``, ``split`` and ``problems`` (apart by ";"); other usual names
    of these are known too. Without a table, each ``NAME.txt`` is the report of
    ``NAME.dcm``, ``NAME.png`` or ``NAME.jpg`` beside it.

    A case without a patient counts as a patient of its own. Of a DICOM file, patient and
    study are taken from its header as digests: they tell cases apart, and nobody's
    number is kept.

    Raises
    ------
    CorpusError
        Where there is no table and no text, more than one table, a table without an
        image and a report column, or no case is left.
    """
    directory = Path(directory)
    tables = _folder_tables(directory)
    if len(tables) > 1:
        raise CorpusError(
            f"{directory} has more than one table ({', '.join(p.name for p in tables)}). "
            "Leave one of them there."
        )
    skipped = _Skipped()
    rows = _table_rows(tables[0], skipped) if tables else _text_rows(directory)
    cases: list[Record] = []
    seen: set[str] = set()
    for where, row in rows:
        image = _inside(directory, row["image"]) if row["image"] else None
        uid = row["id"] or row["image"]
        report = "\n".join(line for t in row["report"].splitlines() if (line := _text_of(t)))
        if not row["image"]:
            skipped.add("no image listed", where)
        elif uid in seen:
            skipped.add("id given before", uid)
        elif image is None:
            skipped.add("image file absent", uid)
        elif not report:
            skipped.add("no report", uid)
        else:
            patient, study = row["patient"], row["study"]
            if not (patient and study) and image.suffix.lower() in (".dcm", ".dicom"):
                theirs = _dicom_ids(image)
                patient, study = patient or theirs[0], study or theirs[1]
            problems = tuple(p for t in row["problems"].split(";") if (p := t.strip()))
            split = _split(row["split"]) if row["split"] else ""
            document = Document(uid, report, patient or uid, study or uid, split=split)
            cases.append(Record(document, image, "", problems))
        seen.add(uid)
    return _corpus(directory, cases, skipped)


def _folder_tables(directory: Path) -> list[Path]:
    return [
        path
        for suffix in ("csv", "jsonl", "parquet")
        for path in sorted(directory.glob(f"*.{suffix}"))
        if path.name not in OWN_FILES
    ]


def _table_rows(path: Path, skipped: _Skipped) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a table of a plain folder by the keys of ``COLUMNS``, each with where it is."""
    raw: Iterable[tuple[str, Mapping[str, Any]]]
    if path.suffix == ".csv":
        raw = ((f"row {n}", row) for n, row in enumerate(_rows(path, ()), start=1))
    elif path.suffix == ".jsonl":
        raw = _json_lines(path, skipped)
    else:
        raw = _parquet_rows(path)
    for where, values in raw:
        if BEYOND in values:
            skipped.add(BEYOND, where)
            continue
        keys = {name.strip().lower(): name for name in values}
        chosen = {
            key: next((keys[name] for name in names if name in keys), None)
            for key, names in COLUMNS.items()
        }
        if path.suffix != ".jsonl" and not (chosen["image"] and chosen["report"]):
            raise CorpusError(
                f"{path} has the columns {', '.join(values) or 'none'}. It needs one of the "
                f"image ({', '.join(COLUMNS['image'])}) and one of the report "
                f"({', '.join(COLUMNS['report'])})."
            )
        yield where, {k: _cell(values[name]) if name else "" for k, name in chosen.items()}


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ";".join(_cell(v) for v in value)
    return "" if value is None or value != value else str(value).strip()


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise CorpusError(
            f"{path} is a Parquet file, and pyarrow, which reads them, is not installed. "
            "Run pip install pyarrow, or save the table as CSV."
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            known = {name for names in COLUMNS.values() for name in names}
            columns = [c for c in file.schema_arrow.names if c.strip().lower() in known]
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (ArrowException, OSError) as error:
        raise CorpusError(f"{path} is not a whole Parquet file ({error}).") from error


def _text_rows(directory: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Texts below a folder with the image beside each."""
    for text in sorted(directory.rglob("*.txt")):
        files = (text.with_suffix(suffix) for suffix in (".dcm", ".dicom", *PICTURES, ""))
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


def _dicom_ids(path: Path) -> tuple[str, str]:
    """Digests of PatientID and StudyInstanceUID, or "" for what the header lacks."""
    tags = ["PatientID", "StudyInstanceUID"]
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=[*tags])
        patient, study = (str(header.get(tag) or "").strip() for tag in tags)
    except Exception:  # pydicom raises many kinds on damaged files
        return "", ""
    return _digest(patient), _digest(study)


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:16] if value else ""


# VQA files


class _Asked(NamedTuple):
    """A row of a VQA file, before it is known to be usable."""

    where: str
    qid: str
    image: str
    question: str
    answer: str
    kind: str  # "closed", "open", or the reason why the row is skipped
    patient: str
    study: str
    report: str = ""
    finding: str = ""
    split: str = ""


def read_rule(path: str | Path, *, images: Path | None = None) -> Corpus:
    """VQA files of RULE and MMed-RAG: JSON Lines with ``question``, ``answer``, ``image``.

    ``question`` holds an ``<image>``, which is taken out. ``answer`` is free text ("No
    (since the heart is normal)."): it counts where it begins with yes or no, after any
    dash; rows such as "The summary does not provide this information." are skipped and
    counted. ``report`` is the report of the image. The three data sets' image names tell
    study and patient (``CXR38_IM-1911/0.png``, ``p15/p15518538/s53078789/...jpg``,
    ``slo_fundus_08003.jpg``; for the last, ``data_08003.npz`` of Harvard-FairVLMed will
    do).

    Parameters
    ----------
    path
        A file, or a folder of such files.
    images
        Where the images lie; beside the file, in ``images/`` or ``files/``, if None.

    Raises
    ------
    CorpusError
        Where no question is left.
    """
    path = Path(path)
    skipped = _Skipped()
    rows: list[_Asked] = []
    files = _vqa_files(path, "*.jsonl", _is_rule)
    for file in files:
        split = next((s for k, s in SPLIT_NAMES.items() if k in re.split(r"[\W_]+", file.stem)), "")
        for where, row in _json_lines(file, skipped):
            image = str(row.get("image") or "")
            question = " ".join(str(row.get("question") or "").replace("<image>", " ").split())
            answer = _cell(row.get("answer")).lstrip("-*•– ")
            gold = UNPARSED if _UNKNOWN.match(answer) else parse_yes_no(answer)
            kind = "closed" if gold != UNPARSED else "the answer begins with neither yes nor no"
            number = row.get("question_id", row.get("qid", where.split()[-1]))
            patient, study = _ids_of_image(image)
            rows.append(
                _Asked(
                    where if len(files) == 1 else f"{file.name} {where}",
                    f"{file.stem}-{number}",
                    image,
                    question,
                    answer,
                    kind,
                    patient,
                    study,
                    _text_of(row.get("report")),
                    split=split,
                )
            )
    source = ("VQA file in the form of RULE", "as stated by the data set it was made from")
    return _vqa_corpus(path, rows, images, skipped, source)


# "No information is provided." is not a no.
_UNKNOWN = re.compile(
    r"no (specific |further |additional |such )?(information|details?|data)\b", re.I
)


def read_vqa_rad(path: str | Path, *, images: Path | None = None) -> Corpus:
    """VQA-RAD: a JSON list with ``image_name``, ``question``, ``answer``, ``answer_type``.

    A question marked CLOSED whose answer is not yes or no ("Left", "Maybe") is open
    here. Answers may be integers. The split is that of ``phrase_type`` (test_freeform and
    test_para are the test questions). The patient is the MedPix case of
    ``image_case_url``: two images of a case are one patient's.

    Raises
    ------
    CorpusError
        Where no question is left.
    """
    path = Path(path)
    rows: list[_Asked] = []
    skipped = _Skipped()
    for file in _vqa_files(path, "*.json", _is_vqa_rad):
        for where, row in _json_list(file, skipped):
            image = _cell(row.get("image_name"))
            answer = _cell(row.get("answer"))
            closed = _cell(row.get("answer_type")).upper() == "CLOSED"
            kind = "closed" if closed and parse_yes_no(answer) != UNPARSED else "open"
            url = _cell(row.get("image_case_url"))
            stem = Path(image).stem
            test = _cell(row.get("phrase_type")).lower().startswith("test")
            rows.append(
                _Asked(
                    where,
                    _cell(row.get("qid")) or where,
                    image,
                    _text_of(row.get("question")),
                    answer,
                    kind,
                    url.rpartition("id=")[2] or stem,
                    stem,
                    split="test" if test else "train",
                )
            )
    return _vqa_corpus(path, rows, images, skipped, ("VQA-RAD (OSF 89kps)", "CC0 1.0"))


def read_slake(path: str | Path, *, images: Path | None = None) -> Corpus:
    """SLAKE: ``train.json``, ``validate.json`` and ``test.json`` with ``imgs/``.

    Rows give ``qid``, ``img_name`` (``xmlab1/source.jpg``), ``question``, ``answer``,
    ``answer_type`` and ``q_lang``; questions in another language than English are
    skipped and counted. The images' own folder is case, study and patient.

    Raises
    ------
    CorpusError
        Where no question is left.
    """
    path = Path(path)
    rows: list[_Asked] = []
    skipped = _Skipped()
    for file in _vqa_files(path, "*.json", _is_slake):
        split = SPLIT_NAMES.get(file.stem.lower(), "")
        for where, row in _json_list(file, skipped):
            image = _cell(row.get("img_name"))
            answer = _cell(row.get("answer"))
            closed = _cell(row.get("answer_type")).upper() == "CLOSED"
            kind = "closed" if closed and parse_yes_no(answer) != UNPARSED else "open"
            if _cell(row.get("q_lang") or "en") != "en":
                kind = "not in English"
            study = image.split("/")[0]
            rows.append(
                _Asked(
                    f"{file.name} {where}",
                    _cell(row.get("qid")) or f"{file.stem}-{where.split()[-1]}",
                    image,
                    _text_of(row.get("question")),
                    answer,
                    kind,
                    study,
                    study,
                    finding=_cell(row.get("content_type")),
                    split=split,
                )
            )
    return _vqa_corpus(path, rows, images, skipped, ("SLAKE", "CC BY 4.0"))


def _vqa_corpus(
    path: Path,
    rows: Sequence[_Asked],
    images: Path | None,
    skipped: _Skipped,
    source: tuple[str, str],
) -> Corpus:
    """Questions, and the images that they are about as cases."""
    beside = path if path.is_dir() else path.parent
    roots = [images] if images else [beside, *(beside / n for n in ("images", "imgs", "files"))]
    found: dict[str, Path | None] = {}
    cases: dict[str, Record] = {}
    absent: dict[str, None] = {}
    questions: list[Question] = []
    seen: set[str] = set()
    for row in rows:
        if row.image not in found:
            found[row.image] = _vqa_image(roots, row.image)
        file = found[row.image]
        reason = ""
        if not row.image:
            reason = "no image named"
        elif file is None:
            reason = "image file absent"
            absent[row.image] = None
        elif not row.question:
            reason = "no question"
        elif not row.answer:
            reason = "no answer"
        elif row.kind not in ("closed", "open"):
            reason = row.kind
        elif row.qid in seen:
            reason = "qid given before"
        if file is not None and row.image not in cases:
            # The split is the question's: an image may be asked about in both.
            document = Document(row.image, row.report, row.patient, row.study, *source)
            cases[row.image] = Record(document, file)
        if reason:
            skipped.add(reason, row.qid)
            continue
        seen.add(row.qid)
        questions.append(
            Question(row.qid, row.image, row.question, row.answer, row.kind, row.finding, row.split)
        )
    if not questions:
        counts = _counts(skipped)
        raise CorpusError(f"No question could be read from {path} ({counts or 'it has no rows'}).")
    not_cases = {"image file absent": tuple(absent)} if absent else {}
    return Corpus(tuple(cases.values()), not_cases, tuple(questions), skipped.frozen())


def _vqa_image(roots: Sequence[Path], name: str) -> Path | None:
    if not name:
        return None
    for root in roots:
        found = _inside(root, name)
        if found is None and (number := re.fullmatch(r"slo_fundus_(\d+)\.\w+", name)):
            archives = (f"{f}/data_{number[1]}.npz" for f in FAIRVLMED_FOLDERS)
            found = next((f for a in archives if (f := _inside(root, a)) is not None), None)
        if found is not None:
            return found
    return None


def _ids_of_image(name: str) -> tuple[str, str]:
    """Patient and study that an image's name tells, as the data set's own reader has them."""
    mimic = re.search(r"\b(p\d{8})/(s\d{8})\b", name)
    if mimic:
        return mimic[1], mimic[2]
    fundus = re.search(r"(?:slo_fundus|data)_(\d+)", name)
    number = (fundus[1] if fundus else _iu_number(name)) or name
    return number, number


def _vqa_files(path: Path, pattern: str, fits: Callable[[Path], bool]) -> list[Path]:
    files = [path] if path.is_file() else [p for p in sorted(path.glob(pattern)) if fits(p)]
    if not files:
        raise CorpusError(f"{path} has no file of this layout: looked for {pattern}.")
    return files


def _has_keys(path: Path, *keys: str) -> bool:
    """Whether the first object of a JSON file has these keys, by its first bytes."""
    try:
        with path.open("rb") as stream:
            head = stream.read(1 << 16).decode("utf-8", errors="replace")
    except OSError:
        return False
    first = head[: head.find("}") + 1]
    return all(f'"{key}"' in first for key in keys)


def _is_rule(path: Path) -> bool:
    return path.suffix == ".jsonl" and _has_keys(path, "question", "answer", "image")


def _is_vqa_rad(path: Path) -> bool:
    return path.suffix == ".json" and _has_keys(path, "image_name", "question", "answer_type")


def _is_slake(path: Path) -> bool:
    return path.suffix == ".json" and _has_keys(path, "img_name", "question", "answer_type")


# The layouts


class Layout(NamedTuple):
    """A reader, a quick look whether it fits, and what that looks for, in words."""

    read: Callable[[str | Path], Corpus]
    fits: Callable[[Path], bool]
    wanted: str


VQA_LAYOUTS: dict[str, Callable[..., Corpus]] = {
    "rule": read_rule,
    "vqa-rad": read_vqa_rad,
    "slake": read_slake,
}


def _has_file(*names: str) -> Callable[[Path], bool]:
    return lambda path: any((path / name).is_file() for name in names)


def _has_match(*patterns: str) -> Callable[[Path], bool]:
    return lambda path: path.is_dir() and any(any(path.glob(p)) for p in patterns)


def _has_vqa(pattern: str, fits: Callable[[Path], bool]) -> Callable[[Path], bool]:
    return lambda path: fits(path) if path.is_file() else any(map(fits, path.glob(pattern)))


LAYOUTS: dict[str, Layout] = {
    "indiana": Layout(read_indiana, _has_file("indiana_reports.csv"), "indiana_reports.csv"),
    "openi": Layout(
        read_openi,
        _has_match("*.xml", *(f"{name}/*.xml" for name in OPENI_REPORTS)),
        "ecgen-radiology/*.xml with NLMCXR_png/",
    ),
    "r2gen": Layout(read_r2gen, _has_file("annotation.json"), "annotation.json with images/"),
    "mimic-cxr": Layout(
        read_mimic,
        _has_match("files/p[0-9][0-9]", "p[0-9][0-9]/p[0-9]*", "mimic-cxr-*-metadata.csv*"),
        "files/p10/p1XXXXXXX/s5XXXXXXX",
    ),
    "fairvlmed": Layout(
        read_fairvlmed,
        _has_match(
            *(f"{f}/*_[0-9]*.{suffix}" for f in FAIRVLMED_FOLDERS for suffix in ("npz", "jpg"))
        ),
        "Training|Validation|Test/data_xxxxx.npz with data_summary.csv",
    ),
    "rule": Layout(read_rule, _has_vqa("*.jsonl", _is_rule), "*.jsonl with question and image"),
    "vqa-rad": Layout(read_vqa_rad, _has_vqa("*.json", _is_vqa_rad), "*.json with image_name"),
    "slake": Layout(read_slake, _has_vqa("*.json", _is_slake), "*.json with img_name"),
    "folder": Layout(
        read_folder,
        lambda path: path.is_dir() and (bool(_folder_tables(path)) or any(path.rglob("*.txt"))),
        "a CSV, JSON Lines or Parquet table of image and report, or images with .txt beside them",
    ),
}


# Our own questions


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


# What the readers share


def _corpus(path: Path, cases: Sequence[Record], skipped: _Skipped, others: int = 0) -> Corpus:
    if not cases:
        counts = _counts(skipped)
        raise CorpusError(f"No case could be read from {path} ({counts or 'it has no rows'}).")
    return Corpus(tuple(cases), skipped.frozen(), other_images=others)


def _counts(skipped: _Skipped) -> str:
    return ", ".join(f"{len(rows)} with {reason}" for reason, rows in skipped.rows.items())


def _split(name: str) -> str:
    """Our name of a split, or the data set's own where it is no usual one."""
    return SPLIT_NAMES.get(name.strip().lower(), name.strip())


def _report(findings: str, impression: str) -> str:
    """Findings and impression, a line each."""
    return "\n".join(part for text in (findings, impression) if (part := " ".join(text.split())))


def _text_of(value: object) -> str:
    return " ".join(_cell(value).split())


def _iu_number(name: str) -> str:
    """38 of "CXR38", "CXR38_IM-1911" and "CXR38_1_IM-1911-1001"; else ""."""
    found = re.match(r"(?:.*/)?CXR(\d+)(?=_|/|$)", name)
    return found[1] if found else ""


def _digits(name: str) -> str:
    """08003 of "data_08003.npz" and "slo_fundus_08003.jpg"; else ""."""
    found = re.search(r"(\d+)(?:\.\w+)?$", name.strip())
    return found[1] if found else ""


def _inside(folder: Path, name: str) -> Path | None:
    """A file below a folder, or None: a name must not lead outside."""
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        return None
    path = folder / relative
    return path if path.is_file() else None


def _first_with(directory: Path, names: Sequence[str], pattern: str) -> Path:
    """The first of these folders that holds such files, else the directory itself."""
    folders = (directory / name for name in names)
    return next((folder for folder in folders if any(folder.glob(pattern))), directory)


def _image_folder(directory: Path) -> Path:
    for name in INDIANA_FOLDERS:
        folder = directory / name
        # A folder that only holds another one is not yet where the images are.
        if folder.is_dir() and any(entry.is_file() for entry in folder.iterdir()):
            return folder
    raise CorpusError(
        f"No images were found in {directory}: looked for files in "
        f"{', '.join(name + '/' for name in INDIANA_FOLDERS)}. "
        "Unpack the data set so that one of them holds its images."
    )


def _choose_image(
    folder: Path, listed: list[tuple[str, str]]
) -> tuple[tuple[Path, str] | None, int]:
    """The first frontal image on disk, else the first other one; and how many more there are."""
    found = [
        (folder / filename, projection)
        for filename, projection in sorted(listed, key=lambda item: item[1].lower() != "frontal")
        # A name with a path in it could reach outside the folder.
        if filename and Path(filename).name == filename and (folder / filename).is_file()
    ]
    return (found[0], len(found) - 1) if found else (None, 0)


def _text(path: Path) -> str:
    try:
        # Newlines as they are: those inside quoted fields belong to the CSV reader.
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as stream:
                return stream.read()
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return stream.read()
    except (OSError, EOFError) as error:  # gzip's own errors are OSErrors
        reason = getattr(error, "strerror", None) or error
        raise CorpusError(f"{path} cannot be read ({reason}).") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text ({error}). Convert it to UTF-8.") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise CorpusError(f"{path} is not JSON ({error}).") from error


def _json_list(path: Path, skipped: _Skipped) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSON list, each with where it is."""
    rows = _json(path)
    if not isinstance(rows, list):
        raise CorpusError(f"{path} must be a list of objects, one a question.")
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            yield f"row {number}", row
        else:
            skipped.add("not an object", f"{path.name} row {number}")


def _json_lines(path: Path, skipped: _Skipped) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSON Lines file, each with where it is; blank lines are nothing."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield f"line {number}", row
        else:
            skipped.add("not a JSON object", f"{path.name} line {number}")


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
