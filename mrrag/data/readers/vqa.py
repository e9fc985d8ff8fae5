"""VQA files, whose records are images with questions: RULE, VQA-RAD and SLAKE."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mrrag.data.readers.collector import ABSENT, Collector, renamed_note
from mrrag.data.readers.fairvlmed import SPLIT_FOLDERS
from mrrag.data.readers.iu_xray import iu_number
from mrrag.data.readers.rows import (
    SPLIT_NAMES,
    Skip,
    absent_image,
    cell_text,
    file_inside,
    find_image,
    json_lines,
    json_objects,
    one_line,
)
from mrrag.data.records import Corpus, Question, Record
from mrrag.data.yes_no import UNPARSED, parse_yes_no
from mrrag.errors import CorpusError
from mrrag.types import Document

__all__ = ["is_rule", "is_slake", "is_vqa_rad", "read_rule", "read_slake", "read_vqa_rad"]

RULE_SOURCE = {
    "source": "VQA file in the form of RULE",
    "licence": "as stated by the data set it was made from",
}
VQA_RAD_SOURCE = {"source": "VQA-RAD (OSF 89kps)", "licence": "CC0 1.0"}
SLAKE_SOURCE = {"source": "SLAKE", "licence": "CC BY 4.0"}
IMAGE_FOLDERS = ("images", "imgs", "files")

# "No information is provided." is not a no.
_UNKNOWN = re.compile(
    r"no (specific |further |additional |such )?(information|details?|data)\b", re.I
)


class Row(NamedTuple):
    """A row of a VQA file, which may still be unusable.

    ``answer_type`` is "closed", "open", or the reason for which the row is skipped.
    """

    qid: str
    image: str
    question: str
    answer: str
    answer_type: str
    patient: str = ""
    study: str = ""
    report: str = ""
    finding: str = ""
    split: str = ""


def read_rule(path: str | Path, *, images: Path | None = None) -> Corpus:
    """Read VQA files of RULE and MMed-RAG: JSON Lines of ``question``, ``answer``, ``image``.

    ``question`` holds an ``<image>``, which is removed. ``answer`` is free text ("No
    (since the heart is normal)."). It is used if it begins with yes or no, after any
    dash; rows such as "The summary does not provide this information." are skipped and
    counted. ``report`` is the report of the image. Study and patient are taken from the
    image's name in the three data sets (``CXR38_IM-1911/0.png``,
    ``p15/p15518538/s53078789/...jpg``, ``slo_fundus_08003.jpg``); for the last, the
    ``data_08003.npz`` of Harvard-FairVLMed is used too.

    Parameters
    ----------
    path
        A file, or a folder of such files.
    images
        Folder of the images; None: beside the file, or in ``images/``, ``imgs/`` or
        ``files/`` there.

    Raises
    ------
    CorpusError
        If no question is left.
    """
    path = Path(path)
    found = Collector[Question]()
    rows: list[Row] = []
    for file in _files(path, "*.jsonl", is_rule):
        words = re.split(r"[\W_]+", file.stem)
        split = next((split for name, split in SPLIT_NAMES.items() if name in words), "")
        for where, row in json_lines(file, found.skip):
            answer = cell_text(row.get("answer")).lstrip("-*•– ")
            usable = not _UNKNOWN.match(answer) and parse_yes_no(answer) != UNPARSED
            image = str(row.get("image") or "")
            patient, study = _ids_in_name(image)
            number = row.get("question_id", row.get("qid", where.split()[-1]))
            rows.append(
                Row(
                    qid=f"{file.stem}-{number}",
                    image=image,
                    question=one_line(str(row.get("question") or "").replace("<image>", " ")),
                    answer=answer,
                    answer_type="closed" if usable else "the answer begins with neither yes nor no",
                    patient=patient,
                    study=study,
                    report=one_line(row.get("report")),
                    split=split,
                )
            )
    return _corpus(path, rows, images, found, RULE_SOURCE)


def read_vqa_rad(path: str | Path, *, images: Path | None = None) -> Corpus:
    """Read VQA-RAD: a JSON list of ``image_name``, ``question``, ``answer``, ``answer_type``.

    A question marked CLOSED whose answer is neither yes nor no ("Left", "Maybe") counts
    as open. Answers may be integers. The split is that of ``phrase_type`` (test_freeform
    and test_para are the test questions). The patient is the MedPix case in
    ``image_case_url``: two images of one MedPix case are of one patient.

    Raises
    ------
    CorpusError
        If no question is left.
    """
    path = Path(path)
    found = Collector[Question]()
    rows: list[Row] = []
    for _, where, values, row in _json_rows(path, is_vqa_rad, "image_name", found.skip):
        stem = Path(row.image).stem
        url = cell_text(values.get("image_case_url"))
        test = cell_text(values.get("phrase_type")).lower().startswith("test")
        rows.append(
            row._replace(
                qid=row.qid or where,
                patient=url.rpartition("id=")[2] or stem,
                study=stem,
                split="test" if test else "train",
            )
        )
    return _corpus(path, rows, images, found, VQA_RAD_SOURCE)


def read_slake(path: str | Path, *, images: Path | None = None) -> Corpus:
    """Read SLAKE: ``train.json``, ``validate.json`` and ``test.json`` with ``imgs/``.

    Rows have ``qid``, ``img_name`` (``xmlab1/source.jpg``), ``question``, ``answer``,
    ``answer_type`` and ``q_lang``. Questions that are not in English are skipped and
    counted. The image's folder is the ID of study and patient.

    Raises
    ------
    CorpusError
        If no question is left.
    """
    path = Path(path)
    found = Collector[Question]()
    rows: list[Row] = []
    for file, where, values, row in _json_rows(path, is_slake, "img_name", found.skip):
        english = cell_text(values.get("q_lang") or "en") == "en"
        study = row.image.split("/")[0]
        rows.append(
            row._replace(
                qid=row.qid or f"{file.stem}-{where.split()[-1]}",
                answer_type=row.answer_type if english else "not in English",
                patient=study,
                study=study,
                finding=cell_text(values.get("content_type")),
                split=SPLIT_NAMES.get(file.stem.lower(), ""),
            )
        )
    return _corpus(path, rows, images, found, SLAKE_SOURCE)


def is_rule(path: Path) -> bool:
    """Return whether a file looks like RULE's."""
    return path.suffix == ".jsonl" and _has_keys(path, "question", "answer", "image")


def is_vqa_rad(path: Path) -> bool:
    """Return whether a file looks like VQA-RAD's."""
    return path.suffix == ".json" and _has_keys(path, "image_name", "question", "answer_type")


def is_slake(path: Path) -> bool:
    """Return whether a file looks like one of SLAKE's."""
    return path.suffix == ".json" and _has_keys(path, "img_name", "question", "answer_type")


def _has_keys(path: Path, *keys: str) -> bool:
    """Return whether the first object of a JSON file, within its first 64 KiB, has these keys."""
    try:
        with path.open("rb") as stream:
            head = stream.read(1 << 16).decode("utf-8", errors="replace")
    except OSError:
        return False
    first = head[: head.find("}") + 1]
    return all(f'"{key}"' in first for key in keys)


def _files(path: Path, pattern: str, fits: Callable[[Path], bool]) -> list[Path]:
    files = [path] if path.is_file() else [p for p in sorted(path.glob(pattern)) if fits(p)]
    if not files:
        raise CorpusError(f"{path} has no file of this layout: looked for {pattern}.")
    return files


def _json_rows(
    path: Path, fits: Callable[[Path], bool], image_key: str, skip: Skip
) -> Iterator[tuple[Path, str, Mapping[str, Any], Row]]:
    """Yield the rows of JSON lists: file, place, values, and what VQA-RAD and SLAKE share."""
    for file in _files(path, "*.json", fits):
        for where, values in json_objects(file, skip):
            answer = cell_text(values.get("answer"))
            closed = cell_text(values.get("answer_type")).upper() == "CLOSED"
            row = Row(
                qid=cell_text(values.get("qid")),
                image=cell_text(values.get(image_key)),
                question=one_line(values.get("question")),
                answer=answer,
                answer_type="closed" if closed and parse_yes_no(answer) != UNPARSED else "open",
            )
            yield file, where, values, row


def _ids_in_name(name: str) -> tuple[str, str]:
    """Return patient and study of an image's name, as the data set's own reader has them."""
    mimic = re.search(r"\b(p\d{8})/(s\d{8})\b", name)
    if mimic:
        return mimic[1], mimic[2]
    fundus = re.search(r"(?:slo_fundus|data)_(\d+)", name)
    number = (fundus[1] if fundus else iu_number(name)) or name
    return number, number


def _corpus(
    path: Path,
    rows: Sequence[Row],
    images: Path | None,
    found: Collector[Question],
    source: Mapping[str, str],
) -> Corpus:
    """Return the questions, and the images that they are about as records."""
    beside = path if path.is_dir() else path.parent
    roots = [images] if images else [beside, *(beside / name for name in IMAGE_FOLDERS)]
    renamed: list[str] = []
    names = dict.fromkeys(row.image for row in rows)
    files = {name: _image_file(roots, name, renamed) for name in names}
    records: dict[str, Record] = {}
    qids: set[str] = set()
    for row in rows:
        file = files[row.image]
        if file is not None and row.image not in records:
            # Without a split: an image may have questions of several splits.
            document = Document(
                id=row.image, report=row.report, patient=row.patient, study=row.study, **source
            )
            records[row.image] = Record(document, file)
        faults = {
            "no image named": not row.image,
            ABSENT: file is None,
            "no question": not row.question,
            "no answer": not row.answer,
            row.answer_type: row.answer_type not in ("closed", "open"),
            "qid given before": row.qid in qids,
        }
        if found.rejects(row.qid, faults, {ABSENT: partial(_absent, roots, row.image)}):
            continue
        qids.add(row.qid)
        found.accepted.append(
            Question(
                qid=row.qid,
                uid=row.image,
                question=row.question,
                answer=row.answer,
                answer_type=row.answer_type,
                finding=row.finding,
                split=row.split,
            )
        )
    found.require(path, "question")
    absent = tuple(name for name, file in files.items() if name and file is None)
    return Corpus(
        records=tuple(records.values()),
        skipped={ABSENT: absent} if absent else {},
        questions=tuple(found.accepted),
        skipped_questions=found.skipped,
        examples={ABSENT: f"{absent[0]}: {_absent(roots, absent[0])}"} if absent else {},
        notes=renamed_note(renamed),
    )


def _absent(roots: Sequence[Path], name: str) -> str:
    """Return in words where an absent image was looked for: the first folder that exists."""
    folders = [root for root in roots if (root / name).parent.is_dir()]
    # Beside the file comes first, and is the place only if there is no other.
    return absent_image(folders[-1] if folders else roots[0], name)


def _image_file(roots: Sequence[Path], name: str, renamed: list[str]) -> Path | None:
    """Return an image below one of the folders, or the FairVLMed archive that holds it."""
    fundus = re.fullmatch(r"slo_fundus_(\d+)\.\w+", name)
    archives = [f"{folder}/data_{fundus[1]}.npz" for folder in SPLIT_FOLDERS] if fundus else []
    names = [name, *archives] if name else []
    files = (file_inside(root, name) for root in roots for name in names)
    found = next((file for file in files if file is not None), None)
    if found is not None:
        return found
    others = (find_image(root, name, renamed) for root in roots)
    return next((file for file in others if file is not None), None)
