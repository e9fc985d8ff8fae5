"""Reads a data set in any layout: detects the layout, and adds questions and origin.

Rows that cannot become a record or a question are skipped and counted by reason, never
repaired. This module opens no image and knows no encoder; it only states which file
belongs to which report, and who the patient is.

A study has the same ID in every layout (``CXR38`` of Open-i is 38 in all three forms of
IU-Xray; MIMIC-CXR has ``p10000032`` and ``s50414267``). So a question of one file never
retrieves its own study from a knowledge base that was built from another.

To add a layout, write a function that returns a :class:`~mrrag.data.records.Corpus`, and
add a line to ``LAYOUTS``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mrrag.data.readers.collector import Collector
from mrrag.data.readers.fairvlmed import SPLIT_FOLDERS, read_fairvlmed
from mrrag.data.readers.folder import find_tables, read_folder
from mrrag.data.readers.iu_xray import OPENI_REPORTS, read_indiana, read_openi, read_r2gen
from mrrag.data.readers.mimic import read_mimic
from mrrag.data.readers.rows import read_json, read_text
from mrrag.data.readers.vqa import (
    is_rule,
    is_slake,
    is_vqa_rad,
    read_rule,
    read_slake,
    read_vqa_rad,
)
from mrrag.data.records import Corpus, Question
from mrrag.data.splits import with_splits
from mrrag.data.views import choose_views
from mrrag.errors import CorpusError

__all__ = [
    "LAYOUTS",
    "Layout",
    "detect_layout",
    "read_corpus",
    "read_questions",
    "with_questions",
    "with_questions_as_reports",
]

QUESTION_FIELDS = ("qid", "uid", "question", "answer", "answer_type")


class Layout(NamedTuple):
    """A reader of a layout, and how the layout is recognised.

    ``fits`` looks at a path quickly, and ``wanted`` says in words what it looks for. With
    ``is_vqa`` the layout has questions of its own, and its reader takes ``images``; with
    ``takes_splits`` it has no splits of its own, and those of a ``splits.csv`` are used.
    """

    read: Callable[..., Corpus]
    fits: Callable[[Path], bool]
    wanted: str
    is_vqa: bool = False
    takes_splits: bool = False


def _has_file(name: str) -> Callable[[Path], bool]:
    return lambda path: (path / name).is_file()


def _has_match(*patterns: str) -> Callable[[Path], bool]:
    return lambda path: path.is_dir() and any(any(path.glob(p)) for p in patterns)


def _has_vqa(pattern: str, fits: Callable[[Path], bool]) -> Callable[[Path], bool]:
    return lambda path: fits(path) if path.is_file() else any(map(fits, path.glob(pattern)))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and (bool(find_tables(path)) or any(path.rglob("*.txt")))


LAYOUTS: dict[str, Layout] = {
    "indiana": Layout(
        read_indiana, _has_file("indiana_reports.csv"), "indiana_reports.csv", takes_splits=True
    ),
    "openi": Layout(
        read_openi,
        _has_match("*.xml", *(f"{name}/*.xml" for name in OPENI_REPORTS)),
        "ecgen-radiology/*.xml with NLMCXR_png/",
        takes_splits=True,
    ),
    "r2gen": Layout(read_r2gen, _has_file("annotation.json"), "annotation.json with images/"),
    "mimic-cxr": Layout(
        read_mimic,
        _has_match("files/p[0-9][0-9]", "p[0-9][0-9]/p[0-9]*", "mimic-cxr-*-metadata.csv*"),
        "files/p10/p1XXXXXXX/s5XXXXXXX",
    ),
    "fairvlmed": Layout(
        read_fairvlmed,
        _has_match(*(f"{f}/*_[0-9]*.{suffix}" for f in SPLIT_FOLDERS for suffix in ("npz", "jpg"))),
        "Training|Validation|Test/data_xxxxx.npz with data_summary.csv",
    ),
    "rule": Layout(
        read_rule, _has_vqa("*.jsonl", is_rule), "*.jsonl with question and image", is_vqa=True
    ),
    "vqa-rad": Layout(
        read_vqa_rad, _has_vqa("*.json", is_vqa_rad), "*.json with image_name", is_vqa=True
    ),
    "slake": Layout(read_slake, _has_vqa("*.json", is_slake), "*.json with img_name", is_vqa=True),
    "folder": Layout(
        read_folder,
        _is_folder,
        "a CSV, JSON Lines or Parquet table of image and report, or images with .txt beside them",
        takes_splits=True,
    ),
}


def read_corpus(
    path: str | Path,
    layout: str | None = None,
    *,
    images: str | Path | None = None,
    views: str = "frontal",
) -> Corpus:
    """Read a data set in any layout, with the project's own files beside it.

    A ``source.json`` (``source``, ``licence``) in the folder gives the origin of the
    data, a ``splits.csv`` (see :mod:`mrrag.data.splits`) splits and patients, and a
    ``questions.jsonl`` (see :func:`read_questions`) questions about its records.

    Parameters
    ----------
    path
        The folder of the data set, or a VQA file.
    layout
        A key of ``LAYOUTS``; None detects it.
    images
        The folder of a VQA file's images, if they are not beside it.
    views
        "frontal" for one frontal picture of each study, "all" for every picture; see
        :func:`mrrag.data.views.choose_views`.

    Raises
    ------
    CorpusError
        If no layout fits, or more than one, nothing is left, or the data set cannot be read.
    """
    path = Path(path)
    name = detect_layout(path) if layout is None else layout
    if name not in LAYOUTS:
        raise CorpusError(f'There is no layout "{name}". The layouts are {", ".join(LAYOUTS)}.')
    is_vqa = LAYOUTS[name].is_vqa
    if images is None:
        corpus = LAYOUTS[name].read(path)
    elif is_vqa:
        corpus = LAYOUTS[name].read(path, images=Path(images))
    else:
        raise CorpusError(
            f'A folder of images was given, but the layout "{name}" has its own. Leave it out; '
            f"it is for {', '.join(n for n, layout in LAYOUTS.items() if layout.is_vqa)}."
        )
    if LAYOUTS[name].takes_splits and (path / "splits.csv").is_file():
        corpus = with_splits(corpus, path / "splits.csv")
    if path.is_dir() and (path / "source.json").is_file():
        corpus = _with_origin(corpus, path / "source.json")
    if path.is_dir() and (path / "questions.jsonl").is_file() and not is_vqa:
        corpus = with_questions(corpus, path / "questions.jsonl")
    return choose_views(corpus, views)


def detect_layout(path: Path) -> str:
    """Return the one layout that fits what is on disk.

    Raises
    ------
    CorpusError
        If none or more than one fits; the message lists what was looked for.
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
    """Use questions and answers as reports where there are none (VQA-RAD, SLAKE).

    A record without a report gets its questions with their answers, one line each. Those
    of the test split are left out, because the text that is searched must not hold the
    expected answers; a record that has no others keeps its empty report.
    """
    # A dict's keys, to keep each line once and in order.
    lines: dict[str, dict[str, None]] = {}
    for question in corpus.questions:
        if question.split != "test":
            line = f"{question.question} {question.answer}"
            lines.setdefault(question.uid, {})[line] = None
    records = []
    for record in corpus.records:
        document = record.document
        if not document.report:
            document = replace(document, report="\n".join(lines.get(document.id, ())))
        records.append(replace(record, document=document))
    return replace(corpus, records=tuple(records))


def _with_origin(corpus: Corpus, path: Path) -> Corpus:
    """Set source and licence of every document to those of a ``source.json``."""
    about = read_json(path)
    if not isinstance(about, dict):
        raise CorpusError(f"{path} is not an object with source and licence.")
    origin = {k: str(about[k]) for k in ("source", "licence") if k in about}
    records = (replace(r, document=replace(r.document, **origin)) for r in corpus.records)
    return replace(corpus, records=tuple(records))


def with_questions(corpus: Corpus, path: Path) -> Corpus:
    """Return the corpus with a file's questions (:func:`read_questions`) in place of its own.

    Those about records that were not read are skipped.
    """
    ids = {record.document.id for record in corpus.records}
    found = Collector[Question]()
    for question in read_questions(path):
        if not found.rejects(
            question.qid, {"about a case that was not read": question.uid not in ids}
        ):
            found.accepted.append(question)
    return replace(corpus, questions=tuple(found.accepted), skipped_questions=found.skipped)


def read_questions(path: str | Path) -> list[Question]:
    """Return the questions of a JSON Lines file of objects with :class:`Question`'s fields.

    Other fields and blank lines are ignored.

    Raises
    ------
    CorpusError
        With the number of the first line that is not such an object, or repeats a ``qid``.
    """
    path = Path(path)
    questions: dict[str, Question] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        question = _parse_question(line, where)
        if question.qid in questions:
            raise CorpusError(f"{where}: the qid {question.qid} came before. Make it unique.")
        questions[question.qid] = question
    return list(questions.values())


def _parse_question(line: str, where: str) -> Question:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise CorpusError(
            f"{where} is not JSON ({error}). Write one object on each line."
        ) from error
    if not isinstance(values, dict):
        values = {}
    absent = [name for name in QUESTION_FIELDS if not values.get(name)]
    if absent:
        raise CorpusError(
            f"{where} has no {', '.join(absent)}. Required: {', '.join(QUESTION_FIELDS)}."
        )
    fields = {name: str(values[name]) for name in QUESTION_FIELDS}
    question = Question(**fields, finding=str(values.get("finding") or ""))
    if question.answer_type not in ("closed", "open"):
        raise CorpusError(
            f'{where}: the answer_type is "{question.answer_type}"; it must be "closed" or "open".'
        )
    return question
