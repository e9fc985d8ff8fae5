"""splits.csv: who is in which split, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrrag.data.corpus import read_corpus
from mrrag.data.records import Corpus
from mrrag.errors import CorpusError

TABLE = "image,report,study\n1.png,Clear.,a\n2.png,No effusion.,b\n3.png,Nodule.,c\n"


def read(folder: Path, splits: str, table: str = TABLE) -> Corpus:
    for n in (1, 2, 3):
        (folder / f"{n}.png").write_bytes(b"")
    (folder / "reports.csv").write_text(table)
    (folder / "splits.csv").write_text(splits)
    return read_corpus(folder)


def test_patients_and_splits_are_taken_and_unlisted_records_are_skipped(tmp_path: Path) -> None:
    splits = "comment,uid,patient,split\nby id,1.png,p9,training\nby study,b,p8,val\n,c,,test\n"
    corpus = read(tmp_path, splits)
    assert [(r.document.id, r.document.patient, r.split) for r in corpus.records] == [
        ("1.png", "p9", "train"),
        ("2.png", "p8", "validation"),
    ]
    assert corpus.skipped == {"no patient and split in splits.csv": ("3.png",)}
    assert not any("column patient" in note for note in corpus.notes)


def test_without_patients_those_of_the_data_set_stay(tmp_path: Path) -> None:
    table = "image,report,patient\n1.png,Clear.,p1\n2.png,No effusion.,p1\n"
    corpus = read(tmp_path, "uid,split\n1.png,train\n2.png,train\n", table)
    assert {r.document.patient for r in corpus.records} == {"p1"}
    assert not any("column patient" in note for note in corpus.notes)


def test_where_no_patient_is_known_each_study_is_one_and_that_is_said(tmp_path: Path) -> None:
    table = "image,report\n1.png,Clear.\n2.png,No effusion.\n"
    corpus = read(tmp_path, "uid,split\n1.png,train\n2.png,test\n", table)
    assert [(r.document.patient, r.split) for r in corpus.records] == [
        ("1.png", "train"),
        ("2.png", "test"),
    ]
    assert corpus.notes[0].startswith("splits.csv has no column patient: each study counts as")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ("study,use\n1,train\n", r"columns study, use, but no uid and no split\. It needs"),
        ("uid,split\na,trian\n", r'line 2: the split is "trian"; it must be train, validation or'),
        ("uid,split\na,train\na,test\n", "line 3: the uid a came before with another"),
        ("uid,split\n", "has no rows"),
        ("uid,split\nz,train\n", "3 with no patient and split in splits.csv"),
    ],
)
def test_unusable_splits_are_refused(tmp_path: Path, splits: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        read(tmp_path, splits)
