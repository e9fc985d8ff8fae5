"""Reading data sets: which rows become records, and which are skipped and counted."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from mrrag.data.corpus import (
    LAYOUTS,
    detect_layout,
    read_corpus,
    read_questions,
    with_questions_as_reports,
)
from mrrag.data.images import load_image
from mrrag.data.readers.iu_xray import read_indiana, read_openi
from mrrag.data.readers.mimic import find_sections
from mrrag.data.readers.vqa import read_slake
from mrrag.data.records import SPLITS
from mrrag.data.yes_no import parse_yes_no
from mrrag.errors import CorpusError
from mrrag.phantom.dicom import dicom_bytes
from mrrag.phantom.fundus import draw_eyes
from mrrag.phantom.render import render
from mrrag.phantom.world import draw_studies
from mrrag.phantom.write import write_data_set
from mrrag.types import Document

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


def test_records_are_read_and_bad_rows_are_counted_by_reason(tmp_path: Path) -> None:
    corpus = read_indiana(write(tmp_path), source="made up", licence="CC0")
    first, again, second = corpus.records
    assert first.document.id == first.document.patient == first.document.study == "1"
    assert first.document.report == 'The heart, as "ever", is normal.\nNo XXXX disease.'
    assert (first.document.source, first.document.licence) == ("made up", "CC0")
    assert first.image_path.name == "1_frontal.png"
    assert (first.view, first.picture) == ("frontal", 1)
    assert again.image_path.name == "1_lateral.png"
    assert again == replace(
        first,
        document=replace(first.document, id="1-2", view="lateral"),
        image_path=again.image_path,
        picture=2,
    )
    assert second.document.report == "Left effusion."
    assert second.image_path.name == "2_lateral.png"
    assert second.view == "lateral"
    assert (first.impression_only, second.impression_only) == (False, True)
    assert second.problems == ("Effusion", "Cardiomegaly")
    assert corpus.skipped == {
        "neither findings nor impression": ("3", "7"),
        "no image listed": ("4",),
        "image file absent": ("5", "6"),
        "uid given before": ("1",),
        "fields beyond the last column": ("8",),
        "no uid": ("row 7",),
    }
    assert LAYOUTS["indiana"].read(tmp_path).records[0].document.report == first.document.report


@pytest.mark.parametrize("folder", ["images/images_normalized", "images_normalized", "images"])
def test_images_are_found_in_each_known_folder(tmp_path: Path, folder: str) -> None:
    case = read_indiana(write(tmp_path / "set", folder)).records[0]
    assert case.image_path == tmp_path / "set" / folder / "1_frontal.png"


def test_byte_order_mark_and_windows_newlines_are_read(tmp_path: Path) -> None:
    write(tmp_path, indiana_reports="\ufeff" + REPORTS.replace("\n", "\r\n"))
    assert read_indiana(tmp_path).records[0].document.report.startswith("The heart")


def test_separators_that_only_unicode_calls_a_newline_do_not_end_a_row(tmp_path: Path) -> None:
    write(tmp_path, indiana_reports=HEADER + "1,a,b,c,d,e,One\u2028two\x0cthree.,Four.\n")
    assert read_indiana(tmp_path).records[0].document.report == "One two three.\nFour."


def test_an_image_under_another_suffix_is_used_and_counted(tmp_path: Path) -> None:
    write(tmp_path)
    images = tmp_path / "images" / "images_normalized"
    (images / "1_frontal.png").rename(images / "1_frontal.JPG")
    corpus = read_corpus(tmp_path, views="all")
    assert corpus.records[0].image_path == images / "1_frontal.JPG"
    (note,) = corpus.notes
    assert note == (
        "Images found under another suffix: 1, such as 1_frontal.JPG for 1_frontal.png."
    )


def test_an_absent_image_names_the_path_and_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path)
    folder = tmp_path / "images" / "images_normalized"
    (folder / "5_absnt.png").write_bytes(b"")
    corpus = read_corpus(tmp_path, views="all")
    assert corpus.skipped["image file absent"] == ("5", "6")
    assert corpus.examples["image file absent"] == (
        f"5: looked for {folder / '5_absent.png'}; the nearest name there is 5_absnt.png"
    )


def test_where_no_image_is_there_the_error_says_where_it_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,report\npictures/a.png,Clear.\n")
    with pytest.raises(
        CorpusError, match=r"looked for .*a\.png, and there is no folder .*pictures"
    ):
        read_corpus(tmp_path)
    (tmp_path / "pictures").mkdir()
    with pytest.raises(CorpusError, match=r"a\.png; the folder is empty"):
        read_corpus(tmp_path)


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


# The other layouts: each is tested on phantom data or on files in the published form, with
# the faults of the real data sets added.


def phantom(tmp_path: Path, form: str) -> Path:
    write_data_set(tmp_path, form, patients=12, seed=5, size=64, workers=1)
    return tmp_path


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def counts(skipped: Mapping[str, Sequence[str]]) -> dict[str, int]:
    return {reason: len(rows) for reason, rows in skipped.items()}


def test_every_phantom_form_is_recognised_and_read_whole(tmp_path: Path) -> None:
    found = {}
    for form, layout in (
        ("iu-xray", "indiana"),
        ("mimic-cxr-jpg", "mimic-cxr"),
        ("fairvlmed", "fairvlmed"),
    ):
        directory = phantom(tmp_path / form, form)
        assert detect_layout(directory) == layout
        found[form] = corpus = read_corpus(directory)
        assert not corpus.skipped
        assert not corpus.skipped_questions
        assert corpus.questions
        assert {c.document.licence for c in corpus.records} == {"CC0-1.0"}
        assert {c.split for c in corpus.records} == set(SPLITS)
        by_patient: dict[str, set[str]] = {}
        for case in corpus.records:
            by_patient.setdefault(case.document.patient, set()).add(case.split)
            assert load_image(case.image_path).display.ndim == 2
        assert all(len(splits) == 1 for splits in by_patient.values())
    chests, mimic = found["iu-xray"].records, found["mimic-cxr-jpg"].records
    assert [c.document.report for c in chests] == [c.document.report for c in mimic]
    assert [c.split for c in chests] == [c.split for c in mimic]
    assert [f"s{50_000_000 + int(c.document.id)}" for c in chests] == [c.document.id for c in mimic]


def test_bad_rows_in_the_kaggle_form_are_counted(tmp_path: Path) -> None:
    directory = phantom(tmp_path, "iu-xray")
    whole = read_corpus(directory)
    first, second, third, fourth, *_ = whole.records
    rows = read_table(directory / "indiana_reports.csv")
    rows[0]["findings"] = rows[0]["impression"] = ""
    rows[1]["findings"] = "XXXX sided effusion since XXXX."
    rows.append(rows[4])
    with (directory / "indiana_reports.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    third.image_path.unlink()
    fourth.image_path.write_bytes(b"cut short")
    corpus = read_corpus(directory)
    assert corpus.skipped == {
        "neither findings nor impression": (first.document.id,),
        "image file absent": (third.document.id,),
        "uid given before": (rows[4]["uid"],),
    }
    by_id = {c.document.id: c for c in corpus.records}
    assert by_id[second.document.id].document.report.startswith("XXXX sided effusion since XXXX.")
    assert fourth.document.id in by_id  # that it cannot be decoded is found later
    gone = {first.document.id, third.document.id}
    lost = tuple(q.qid for q in whole.questions if q.uid in gone)
    assert corpus.skipped_questions == {"about a case that was not read": lost}
    assert len(corpus.questions) + len(lost) == len(whole.questions)


def test_bad_studies_in_mimic_cxr_jpg_are_counted(tmp_path: Path) -> None:
    directory = phantom(tmp_path, "mimic-cxr-jpg")
    whole = read_corpus(directory)
    cases = whole.records
    texts = [c.image_path.parent.with_suffix(".txt") for c in cases]
    texts[0].unlink()
    texts[1].write_text(" FINAL REPORT\n INDICATION:  Cough.\n")
    texts[2].write_text(" FINAL REPORT\n IMPRESSON: \n \n Clear since ___.\n")
    cases[3].image_path.unlink()
    metadata = directory / "mimic-cxr-2.0.0-metadata.csv.gz"
    table = gzip.decompress(metadata.read_bytes()).decode().splitlines()
    # A lateral view before the frontal one, and a frontal one that is not on disk.
    lateral = cases[4].image_path.with_name("lateral.jpg")
    lateral.write_bytes(b"")
    patient, study = cases[4].document.patient[1:], cases[4].document.id[1:]
    table.insert(1, f"lateral,{patient},{study},CHEST,LATERAL,48,48,20240101,120000.0")
    table.insert(1, f"absent,{patient},{study},CHEST,PA,48,48,20240101,120000.0")
    metadata.write_bytes(gzip.compress("\n".join(table).encode()))
    split = directory / "mimic-cxr-2.0.0-split.csv.gz"
    kept = gzip.decompress(split.read_bytes()).decode().splitlines()
    kept = [row for row in kept if cases[5].document.id[1:] not in row]
    split.unlink()
    (directory / "mimic-cxr-2.0.0-split.csv").write_text("\n".join(kept))  # unpacked, as some do
    corpus = read_corpus(directory)
    assert corpus.skipped == {
        "report file absent": (cases[0].document.id,),
        "neither findings nor impression": (cases[1].document.id,),
        "image file absent": (cases[3].document.id,),
        "no split": (cases[5].document.id,),
    }
    by_id = {c.document.id: c for c in corpus.records}
    assert by_id[cases[2].document.id].document.report == "Clear since ___."
    frontal = by_id[cases[4].document.id]
    assert (frontal.image_path, frontal.view) == (cases[4].image_path, "frontal")
    assert corpus.other_images == 1
    missing = cases[3].image_path
    assert f"looked for {missing}; " in corpus.examples["image file absent"]
    studies = {f"s{50_000_000 + s.uid}": s for s in draw_studies(12, 5)}
    for case in corpus.records:
        study = studies[case.document.id]
        assert ("Cardiomegaly" in case.problems) == bool(study.finding("cardiomegaly"))
        devices = study.finding("pacemaker") or study.finding("central line")
        assert ("Support Devices" in case.problems) == bool(devices)


def test_an_empty_view_position_is_decided_by_rule_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "files" / "p10" / "p10000001" / "s50000001"
    folder.mkdir(parents=True)
    folder.with_suffix(".txt").write_text(" FINDINGS: Clear.\n")
    header = (
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,"
        "ViewCodeSequence_CodeMeaning"
    )
    given = {
        "a": ("CHEST (PA AND LAT)", "LL", "lateral", "lateral"),
        "b": ("CHEST (PA AND LAT)", "", "postero-anterior", "frontal"),
        "c": ("CHEST (PORTABLE AP)", "", "", "frontal"),
        "d": ("CHEST (PA AND LAT)", "", "", ""),
        "e": ("CHEST (PA AND LAT)", "PA", "postero-anterior", "frontal"),
        "f": ("CHEST (LAT DECUB ONLY)", "AP LLD", "", ""),
        "g": ("", "", "oblique", ""),
    }
    rows = [header]
    for name, (procedure, position, code, _) in given.items():
        (folder / f"{name}.jpg").write_bytes(b"")
        rows.append(f"{name},10000001,50000001,{procedure},{position},{code}")
    (tmp_path / "mimic-cxr-2.0.0-metadata.csv").write_text("\n".join(rows))
    corpus = read_corpus(tmp_path, "mimic-cxr", views="all")
    assert {r.image_path.stem: r.view for r in corpus.records} == {
        name: view for name, (*_, view) in given.items()
    }
    assert [r.image_path.stem for r in corpus.records] == ["e", "b", "c", "d", "f", "g", "a"]
    assert [r.document.id for r in corpus.records[:2]] == ["s50000001", "s50000001-2"]
    assert corpus.notes == (
        "4 images have an empty ViewPosition: "
        "1 frontal by ViewCodeSequence_CodeMeaning, "
        "1 frontal by PerformedProcedureStepDescription, 1 unknown, 1 of another view.",
    )
    assert [r.image_path.stem for r in read_corpus(tmp_path, "mimic-cxr").records] == ["e"]


def test_mimic_cxr_without_tables_is_read_from_its_folders(tmp_path: Path) -> None:
    directory = phantom(tmp_path, "mimic-cxr-jpg")
    whole = read_corpus(directory)
    for table in directory.glob("*.csv.gz"):
        table.unlink()
    # The reports in a separate tree, as in PhysioNet's mimic-cxr-reports.zip.
    for text in list((directory / "files").rglob("*.txt")):
        there = directory / "mimic-cxr-reports" / text.relative_to(directory)
        there.parent.mkdir(parents=True, exist_ok=True)
        text.rename(there)
    corpus = read_corpus(directory)
    assert [c.document.report for c in corpus.records] == [c.document.report for c in whole.records]
    assert {c.split for c in corpus.records} == {""}
    assert [c.document.patient for c in corpus.records] == [
        c.document.patient for c in whole.records
    ]


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        (" FINDINGS:\n Clear.\n \n IMPRESSION: No\n  change.\n", "Clear.", "No\n  change."),
        ("FINDINGS AND IMPRESSION:  Clear.", "", "Clear."),
        ("CONCLUSION:\nClear.", "", "Clear."),
        ("CHEST, TWO VIEWS:  Clear.", "Clear.", ""),
        ("CHEST, PA:\n \n INDICATION: Cough.\n FINDINGS: Clear.", "Clear.", ""),
        ("FINDNGS: Clear.\r\nIMPRESSOIN: Well.\r\n", "Clear.", "Well."),
        ("WET READ: Opacity.\n FINAL REPORT\n INDICATION: x\n \n Clear.\n", "Clear.", ""),
        ("IMPRESSION: Old.\n \n IMPRESSION: New.\n NOTIFICATION: Dr. ___.", "", "New."),
        ("INDICATION: ___F with cough. Question: pneumonia\n", "", ""),
        ("", "", ""),
    ],
)
def test_sections_are_found_in_free_text(text: str, findings: str, impression: str) -> None:
    assert find_sections(text) == (findings, impression)


def test_bad_files_in_fairvlmed_are_counted_under_both_file_names(tmp_path: Path) -> None:
    directory = phantom(tmp_path, "fairvlmed")
    whole = read_corpus(directory)
    eyes = {f"{eye.uid:05d}": eye for eye in draw_eyes(12, 5)}
    for case in whole.records:
        assert case.problems == ("glaucoma" if eyes[case.document.id].glaucoma else "no glaucoma",)
    first, second, third, *_ = whole.records
    first.image_path.unlink()
    second.image_path.write_bytes(b"PK\x03\x04 cut short")
    (directory / "Test" / "data_99999.npz").write_bytes(b"")
    rows = read_table(directory / "data_summary.csv")
    for row in rows:
        if row["filename"] == third.image_path.name:
            row["gpt4_summary"] = row["note"] = ""
    rows.append(rows[5])
    with (directory / "data_summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    corpus = read_corpus(directory)
    assert corpus.skipped == {
        "file named before": (f"{int(rows[5]['filename'][5:10]):05d}",),
        "empty summary": (f"Training/{third.image_path.name}",),
        "no summary": ("Test/data_99999.npz",),
        "image file absent": (first.document.id,),
    }
    # The other file names: the table has no labels, so those of the archives are read.
    (directory / "data_summary.csv").unlink()
    other = read_corpus(directory)
    assert other.skipped["archive damaged"] == (f"Training/{second.image_path.name}",)
    by_id = {c.document.id: c for c in other.records}
    for case in whole.records[3:]:
        assert by_id[case.document.id].document == case.document
        assert by_id[case.document.id].problems == case.problems
    # Archives that hold pickles are not read.
    np.savez(third.image_path, glaucoma=np.array([{"a": 1}], dtype=object))
    third_too = read_corpus(directory).skipped["archive damaged"]
    assert f"Training/{third.image_path.name}" in third_too


OPENI = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{n}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH><major>Cardiomegaly/mild</major><automatic>x</automatic></MeSH>{images}</eCitation>
"""


def test_open_i_reports_are_read_and_dirt_is_counted(tmp_path: Path) -> None:
    reports, images = tmp_path / "ecgen-radiology", tmp_path / "NLMCXR_png"
    reports.mkdir()
    images.mkdir()

    def write(n: int, findings: str, impression: str, *ids: str, name: str = "") -> None:
        listed = "".join(f'<parentImage id="{i}"/>' for i in ids)
        text = OPENI.format(n=n, findings=findings, impression=impression, images=listed)
        (reports / (name or f"{n}.xml")).write_text(text)

    write(10, "The heart is\n XXXX.", "Clear.", "CXR10_IM-0002-1001", "CXR10_IM-0002-2001")
    write(2, "", "Clear.", "CXR2_1_IM-0001-3001", "CXR2_1_IM-0001-4001")  # a four-part name
    write(3, "", "", "CXR10_IM-0002-1001")
    write(4, "Clear.", "")
    write(5, "Clear.", "", "CXR5_IM-0001-1001")
    write(6, "Clear.", "", "../secret")
    write(2, "Again.", "", "CXR2_1_IM-0001-3001", name="999.xml")
    (reports / "7.xml").write_text("<eCitation><broken")
    for name in ("CXR10_IM-0002-1001", "CXR10_IM-0002-2001", "CXR2_1_IM-0001-4001"):
        (images / f"{name}.png").write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(b"")
    assert detect_layout(tmp_path) == "openi"
    corpus = read_openi(tmp_path)
    second, tenth, lateral = corpus.records
    assert [r.document.id for r in corpus.records] == ["2", "10", "10-2"]
    assert lateral.image_path.name == "CXR10_IM-0002-2001.png"
    assert second.document.report == "Clear."
    assert second.image_path.name == "CXR2_1_IM-0001-4001.png"
    assert tenth.document.report == "The heart is XXXX.\nClear."
    assert tenth.problems == ("Cardiomegaly/mild",)
    assert read_corpus(tmp_path).other_images == 1
    assert corpus.skipped == {
        "neither findings nor impression": ("3.xml",),
        "no image listed": ("4.xml",),
        "image file absent": ("5.xml", "6.xml"),
        "XML file damaged": ("7.xml",),
        "uid given before": ("999.xml",),
    }


def test_r2gen_annotations_are_read_and_dirt_is_counted(tmp_path: Path) -> None:
    (tmp_path / "images" / "CXR38_IM-1911").mkdir(parents=True)
    (tmp_path / "images" / "CXR38_IM-1911" / "1.png").write_bytes(b"")
    (tmp_path / "images" / "a.jpg").write_bytes(b"")
    pair = ["CXR38_IM-1911/0.png", "CXR38_IM-1911/1.png"]
    mimic = {"id": "a", "subject_id": 10000032, "study_id": 50414267, "image_path": ["a.jpg"]}
    annotation = {
        "train": [
            {"id": "CXR38_IM-1911", "report": "Clear .", "image_path": pair, "split": "train"},
            {"id": "CXR38_IM-1911", "report": "Again.", "image_path": pair},
            {"id": "CXR5_IM-1-0001", "report": "", "image_path": pair},
            {"id": "CXR6_IM-1", "report": "Clear.", "image_path": []},
            {"id": "CXR7_IM-1", "report": "Clear.", "image_path": ["../../etc/passwd"]},
            {"report": "Nobody's."},
        ],
        "val": [{**mimic, "report": "Clear."}],
    }
    (tmp_path / "annotation.json").write_text(json.dumps(annotation))
    corpus = read_corpus(tmp_path)
    iu, chest = corpus.records
    assert (iu.document.study, iu.split, iu.image_path.name) == ("38", "train", "1.png")
    assert (chest.document.patient, chest.document.study) == ("p10000032", "s50414267")
    assert chest.split == "validation"
    assert len(corpus.notes) == 1
    (tmp_path / "images" / "CXR38_IM-1911" / "0.png").write_bytes(b"")
    every = read_corpus(tmp_path, views="all").records
    assert [(r.document.id, r.image_path.name) for r in every] == [
        ("CXR38_IM-1911", "0.png"),
        ("CXR38_IM-1911-2", "1.png"),
        ("a", "a.jpg"),
    ]
    assert [r.document.id for r in read_corpus(tmp_path).records] == ["CXR38_IM-1911", "a"]
    assert counts(corpus.skipped) == {
        "id given before": 1,
        "no report": 1,
        "no image listed": 1,
        "image file absent": 1,
        "no id": 1,
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_plain_table_is_read(tmp_path: Path, kind: str) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    rows = [
        {"Image_Path": "a.png", "Report": "Clear.", "patient_id": "7", "split": "val"},
        {"Image_Path": "b.png", "Report": "", "patient_id": "8", "split": "test"},
        {"Image_Path": "absent.png", "Report": "Clear.", "patient_id": "", "split": ""},
        {"Image_Path": "/etc/passwd", "Report": "Clear.", "patient_id": "", "split": ""},
        {"Image_Path": "a.png", "Report": "Again.", "patient_id": "", "split": ""},
    ]
    if kind == "csv":
        with (tmp_path / "t.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        (tmp_path / "t.jsonl").write_text("\n".join([*map(json.dumps, rows), "{broken"]))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert detect_layout(tmp_path) == "folder"
    corpus = read_corpus(tmp_path)
    (case,) = corpus.records
    assert case.document == Document("a.png", "Clear.", "7", "a.png", split="validation")
    expected = {"no report": 1, "image file absent": 2, "id given before": 1}
    if kind == "jsonl":
        expected["not a JSON object"] = 1
    assert counts(corpus.skipped) == expected


def test_a_table_without_its_columns_or_beside_another_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("picture,words\na.png,Clear.\n")
    with pytest.raises(CorpusError, match=r"has the columns picture, words\. It needs"):
        read_corpus(tmp_path)
    (tmp_path / "u.parquet").write_bytes(b"not parquet")
    with pytest.raises(CorpusError, match=r"more than one table \(t.csv, u.parquet\)"):
        read_corpus(tmp_path)
    (tmp_path / "t.csv").unlink()
    with pytest.raises(CorpusError, match="not a whole Parquet file"):
        read_corpus(tmp_path)


def test_texts_beside_dicom_files_are_read_and_patients_are_hashed(tmp_path: Path) -> None:
    studies = draw_studies(3, 4)
    for n, study in enumerate((studies[0], studies[0], studies[1])):
        folder = tmp_path / f"exam.{n}"
        folder.mkdir()
        data = dicom_bytes(study, render(study, 64))
        (folder / f"1.2.{n}.dcm").write_bytes(data)
        (folder / f"1.2.{n}.txt").write_text("Clear.\n\nNo effusion.")
    (tmp_path / "README.txt").write_text("About this folder.")
    corpus = read_corpus(tmp_path, views="all")
    first, again, other = (c.document for c in corpus.records)
    assert first.id == "exam.0/1.2.0"
    assert first.report == "Clear.\nNo effusion."
    assert first.patient == again.patient != other.patient
    assert first.study == again.study
    assert first.view == "frontal"  # the header's View Position
    assert [r.document.id for r in read_corpus(tmp_path).records] == [first.id, other.id]
    assert "PHANTOM" not in first.patient
    assert corpus.skipped == {"image file absent": ("README",)}


RULE = [
    {"image": "CXR38_IM-1911/0.png", "answer": "No.", "report": "Lungs are clear."},
    {"image": "CXR38_IM-1911/0.png", "answer": "- No"},
    {"image": "CXR38_IM-1911/0.png", "answer": "Yes (since the heart is large)."},
    {"image": "CXR38_IM-1911/0.png", "answer": "The summary does not provide this information."},
    {"image": "CXR38_IM-1911/0.png", "answer": "No information on bones is provided."},
    {"image": "CXR38_IM-1911/0.png", "answer": ""},
    {"image": "CXR9_IM-1/0.png", "answer": "No."},
    {"image": "p15/p15518538/s53078789/a-b.jpg", "answer": "yes, mild"},
    {"image": "slo_fundus_08003.jpg", "answer": "Yes."},
    {"answer": "Yes."},
]


def test_rule_questions_are_read_and_unusable_answers_are_counted(tmp_path: Path) -> None:
    for name in (
        "images/CXR38_IM-1911/0.png",
        "files/p15/p15518538/s53078789/a-b.jpg",
        "Test/data_08003.npz",
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    question = "Is there an effusion? \n<image>"
    rows = [{"question": question, "question_id": n, **row} for n, row in enumerate(RULE, start=1)]
    path = tmp_path / "iuxray_test.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\nnot json\n")
    corpus = read_corpus(path)
    assert [q.qid for q in corpus.questions] == [f"iuxray_test-{n}" for n in (1, 2, 3, 8, 9)]
    assert {q.question for q in corpus.questions} == {"Is there an effusion?"}
    assert [parse_yes_no(q.answer) for q in corpus.questions] == [0, 0, 1, 1, 1]
    assert {q.split for q in corpus.questions} == {"test"}
    assert corpus.skipped_questions == {
        "not a JSON object": ("iuxray_test.jsonl line 11",),
        "the answer begins with neither yes nor no": ("iuxray_test-4", "iuxray_test-5"),
        "no answer": ("iuxray_test-6",),
        "image file absent": ("iuxray_test-7",),
        "no image named": ("iuxray_test-10",),
    }
    ids = {c.document.id: (c.document.patient, c.document.study) for c in corpus.records}
    assert ids == {
        "CXR38_IM-1911/0.png": ("38", "38"),
        "p15/p15518538/s53078789/a-b.jpg": ("p15518538", "s53078789"),
        "slo_fundus_08003.jpg": ("08003", "08003"),
    }
    assert corpus.records[0].document.report == "Lungs are clear."
    assert corpus.records[2].image_path == tmp_path / "Test" / "data_08003.npz"


def test_vqa_rad_questions_are_read_with_integers_and_absent_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images" / name).write_bytes(b"")
    url = "https://medpix.nlm.nih.gov/case?id=48e1"

    def row(qid: object, answer: object, kind: str, image: str = "a.jpg", phrase: str = "freeform"):
        return {
            **{"qid": qid, "phrase_type": phrase, "image_case_url": url, "image_name": image},
            **{"question": "Is it  large?", "answer": answer, "answer_type": kind},
        }

    rows = [
        row("0", "Yes", "CLOSED "),
        row(1, 4, "OPEN"),
        row(2, "Left", "CLOSED"),
        row(3, "no", "CLOSED", "b.jpg", "test_para"),
        row(4, "No", "CLOSED", "absent.jpg"),
        row(5, "", "OPEN"),
        row("0", "Yes", "CLOSED"),
        "not an object",
    ]
    (tmp_path / "vqa_rad_public.json").write_text(json.dumps(rows))
    corpus = read_corpus(tmp_path)
    assert [(q.answer, q.answer_type, q.split) for q in corpus.questions] == [
        ("Yes", "closed", "train"),
        ("4", "open", "train"),
        ("Left", "open", "train"),
        ("no", "closed", "test"),
    ]
    assert counts(corpus.skipped_questions) == {
        "not an object": 1,
        "image file absent": 1,
        "no answer": 1,
        "qid given before": 1,
    }
    assert corpus.skipped == {"image file absent": ("absent.jpg",)}
    assert corpus.examples["image file absent"].startswith(
        f"absent.jpg: looked for {tmp_path / 'images' / 'absent.jpg'}; "
    )
    assert {c.document.patient for c in corpus.records} == {"48e1"}
    assert [c.document.study for c in corpus.records] == ["a", "b"]
    # Questions and answers as the searched text, without those of the test split.
    with_texts = with_questions_as_reports(corpus)
    assert [c.document.report for c in with_texts.records] == [
        "Is it large? Yes\nIs it large? 4\nIs it large? Left",
        "",
    ]


def test_slake_questions_are_read_in_english_by_split(tmp_path: Path) -> None:
    (tmp_path / "imgs" / "xmlab1").mkdir(parents=True)
    (tmp_path / "imgs" / "xmlab1" / "source.jpg").write_bytes(b"")

    def row(qid: int, answer: str, language: str = "en") -> dict[str, object]:
        return {
            **{"qid": qid, "img_name": "xmlab1/source.jpg", "question": "What is it?"},
            **{"answer": answer, "answer_type": "CLOSED", "q_lang": language},
            **{"content_type": "Organ", "triple": ["vhead", "_", "_"]},
        }

    (tmp_path / "train.json").write_text(json.dumps([row(1, "Yes"), row(2, "是", "zh")]))
    (tmp_path / "validate.json").write_text(json.dumps([row(3, "MRI")]))
    assert detect_layout(tmp_path) == "slake"
    corpus = read_slake(tmp_path)
    assert [(q.qid, q.answer_type, q.finding, q.split) for q in corpus.questions] == [
        ("1", "closed", "Organ", "train"),
        ("3", "open", "Organ", "validation"),
    ]
    assert corpus.skipped_questions == {"not in English": ("2",)}
    assert corpus.records[0].document.study == "xmlab1"


def test_images_of_a_vqa_file_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").write_bytes(b"")
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"question": "Clear?", "answer": "Yes", "image": "a.jpg"}))
    with pytest.raises(CorpusError, match="1 with image file absent"):
        read_corpus(path)
    assert len(read_corpus(path, images=tmp_path / "elsewhere").questions) == 1
    with pytest.raises(CorpusError, match="it is for rule, vqa-rad, slake"):
        read_corpus(phantom(tmp_path / "p", "iu-xray"), images=tmp_path)


def test_a_layout_error_lists_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="does not exist"):
        read_corpus(tmp_path / "nowhere")
    with pytest.raises(CorpusError) as raised:
        read_corpus(tmp_path)
    assert all(f"{name}: " in str(raised.value) for name in LAYOUTS)
    with pytest.raises(CorpusError, match=r'no layout "kaggle"\. The layouts are indiana, openi'):
        read_corpus(tmp_path, "kaggle")
    (tmp_path / "annotation.json").write_text("[]")
    (tmp_path / "indiana_reports.csv").write_text("")
    with pytest.raises(CorpusError, match="more than one layout: indiana, r2gen"):
        read_corpus(tmp_path)
    with pytest.raises(CorpusError, match="must be an object of lists"):
        read_corpus(tmp_path, "r2gen")


def test_a_damaged_table_is_one_clear_error(tmp_path: Path) -> None:
    directory = phantom(tmp_path, "mimic-cxr-jpg")
    table = directory / "mimic-cxr-2.0.0-metadata.csv.gz"
    table.write_bytes(table.read_bytes()[:40])
    with pytest.raises(CorpusError, match=r"metadata.csv.gz cannot be read"):
        read_corpus(directory)
