"""Data sets on disk: what becomes a case, and what is counted instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrrag.corpus import LAYOUTS, read_indiana, read_questions
from mrrag.errors import CorpusError

HEADER = "uid,MeSH,Problems,image,indication,comparison,findings,impression\n"
REPORTS = (
    HEADER
    + '1,normal,normal,Chest,,,"The heart, as ""ever"",\nis normal.",No XXXX disease.\n'
    + "2,x,Effusion; Cardiomegaly ,Chest,,,,Left effusion.\n"
    + "3,x,x,Chest,,,,\n"
    + "4,x,x,Chest,,,Findings.,Impression.\n"
    + "5,x,x,Chest,,,Findings.,Impression.\n"
    + "1,x,x,Chest,,,Again.,Again.\n"
    + ",x,x,Chest,,,Nobody.,Nobody.\n"
    + "6,x,x,Chest,,,Escapes.,\n"
    + "7,x\n"
    + "8,x,x,Chest,,,Heart, lungs,Fine.\n"
)
PROJECTIONS = (
    "uid,filename,projection\n"
    "1,1_lateral.png,Lateral\n1,1_frontal.png,Frontal\n"
    "2,2_absent.png,Frontal\n2,2_lateral.png,Lateral\n"
    "3,1_frontal.png,Frontal\n5,5_absent.png,Frontal\n6,../secret.png,Frontal\n7,a.png,Frontal\n"
)


def write(directory: Path, folder: str = "images/images_normalized", **files: str) -> Path:
    (directory / folder).mkdir(parents=True)
    for name in ("1_lateral.png", "1_frontal.png", "2_lateral.png"):
        (directory / folder / name).write_bytes(b"")
    (directory / folder).parent.joinpath("secret.png").write_bytes(b"")
    texts = {"indiana_reports": REPORTS, "indiana_projections": PROJECTIONS, **files}
    for name, text in texts.items():
        (directory / f"{name}.csv").write_text(text, encoding="utf-8", newline="")
    return directory


def test_cases_are_read_and_dirty_rows_are_counted_by_reason(tmp_path: Path) -> None:
    corpus = read_indiana(write(tmp_path), source="made up", licence="CC0")
    first, second = corpus.cases
    assert first.document.id == first.document.patient == first.document.study == "1"
    assert first.document.report == 'The heart, as "ever", is normal.\nNo XXXX disease.'
    assert (first.document.source, first.document.licence) == ("made up", "CC0")
    assert first.image_path.name == "1_frontal.png"
    assert first.projection == "Frontal"
    assert second.document.report == "Left effusion."
    assert second.image_path.name == "2_lateral.png"
    assert second.projection == "Lateral"
    assert second.problems == ("Effusion", "Cardiomegaly")
    assert corpus.skipped == {
        "neither findings nor impression": ("3", "7"),
        "no image listed": ("4",),
        "image file absent": ("5", "6"),
        "uid given before": ("1",),
        "fields beyond the last column": ("8",),
        "no uid": ("row 7",),
    }
    assert LAYOUTS["indiana"](tmp_path).cases[0].document.report == first.document.report


@pytest.mark.parametrize("folder", ["images/images_normalized", "images_normalized", "images"])
def test_images_are_found_in_each_known_folder(tmp_path: Path, folder: str) -> None:
    case = read_indiana(write(tmp_path / "set", folder)).cases[0]
    assert case.image_path == tmp_path / "set" / folder / "1_frontal.png"


def test_byte_order_mark_and_windows_newlines_are_read(tmp_path: Path) -> None:
    write(tmp_path, indiana_reports="\ufeff" + REPORTS.replace("\n", "\r\n"))
    assert read_indiana(tmp_path).cases[0].document.report.startswith("The heart")


def test_separators_that_only_unicode_calls_a_newline_do_not_end_a_row(tmp_path: Path) -> None:
    write(tmp_path, indiana_reports=HEADER + "1,a,b,c,d,e,One\u2028two\x0cthree.,Four.\n")
    assert read_indiana(tmp_path).cases[0].document.report == "One two three.\nFour."


def test_splits_give_patients_and_leave_out_who_is_not_named(tmp_path: Path) -> None:
    write(tmp_path, splits="uid,patient,split\n1,p9,train\n2,,test\n")
    corpus = read_indiana(tmp_path)
    assert [(c.document.patient, c.split) for c in corpus.cases] == [("p9", "train")]
    assert corpus.skipped["no patient and split in splits.csv"] == ("2",)


def test_absent_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"images/images_normalized/, images_normalized/, images"):
        read_indiana(tmp_path)
    write(tmp_path)
    (tmp_path / "indiana_projections.csv").unlink()
    with pytest.raises(CorpusError, match=r"indiana_projections.csv cannot be read"):
        read_indiana(tmp_path)


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        ("uid,findings\n1,x\n", "no column impression; it has uid, findings"),
        ("", "no column uid, findings, impression; it has none"),
        (HEADER, "it has no rows"),
        (HEADER + "3,x,x,x,,,,\n", "1 with neither findings nor impression"),
        (HEADER + '1,x,x,x,,,"never closed,\n', "not CSV"),
    ],
)
def test_unusable_reports_are_refused(tmp_path: Path, reports: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        read_indiana(write(tmp_path, indiana_reports=reports))


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (write(tmp_path) / "indiana_reports.csv").write_bytes(HEADER.encode() + b"1,\xff\n")
    with pytest.raises(CorpusError, match="UTF-8"):
        read_indiana(tmp_path)


def question(**changes: object) -> str:
    fields = {"qid": "q1", "uid": "1", "question": "Is there?", "answer": "yes"}
    return json.dumps({**fields, "answer_type": "closed", "finding": "effusion", **changes})


def test_questions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(
        question(extra=1) + "\n\n" + question(qid=2, answer_type="open", finding=None) + "\n"
    )
    first, second = read_questions(path)
    assert (first.qid, first.uid, first.answer, first.finding) == ("q1", "1", "yes", "effusion")
    assert (second.qid, second.answer_type, second.finding) == ("2", "open", "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 has no qid"),
        (question(qid="q2", answer=""), "line 2 has no answer"),
        (question(qid="q2", answer_type="maybe"), '"maybe"'),
        (question(), "q1 came before"),
    ],
)
def test_damaged_questions_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(question() + "\n" + line)
    with pytest.raises(CorpusError, match=message):
        read_questions(path)
