"""A phantom world on disk is a data set like any other."""

import json
from pathlib import Path

import numpy as np
import pytest

from mrrag.data.corpus import read_corpus
from mrrag.data.images import load_image
from mrrag.phantom.render import render
from mrrag.phantom.report import write_report
from mrrag.phantom.world import draw_studies
from mrrag.phantom.write import LAYOUTS, split_patients, write_data_set
from mrrag.training.data import read_data_set


def test_what_was_drawn_is_read_back_by_the_reader_of_real_data(tmp_path: Path) -> None:
    studies = write_data_set(tmp_path, patients=10, seed=5, size=64, workers=1)
    data = read_data_set(tmp_path)
    assert [c.document.study for c in data.records] == [str(s.uid) for s in studies]
    for case, study in zip(data.records, studies, strict=True):
        report = write_report(study)
        assert report.findings in case.document.report
        assert case.document.patient == str(study.patient)
        assert case.document.licence == "CC0-1.0"
        shown = load_image(case.image_path).display
        assert np.array_equal(shown, (render(study, 64) >> 4).astype(np.uint8))
    assert sum(map(len, data.questions)) > len(studies)


def test_splits_go_by_patient(tmp_path: Path) -> None:
    write_data_set(tmp_path, patients=20, seed=6, size=64, workers=1)
    data = read_data_set(tmp_path)
    by_patient: dict[str, set[str]] = {}
    for case in data.records:
        by_patient.setdefault(case.document.patient, set()).add(case.split)
    assert all(len(splits) == 1 for splits in by_patient.values())
    assert {s for splits in by_patient.values() for s in splits} == {"train", "validation", "test"}


def test_split_shares_are_those_declared() -> None:
    names = split_patients(1000, seed=0)
    assert [names.count(n) for n in ("train", "validation", "test")] == [700, 100, 200]


def test_a_stopped_run_goes_on_without_drawing_again(tmp_path: Path) -> None:
    write_data_set(tmp_path, patients=3, seed=7, size=64, workers=1)
    images = sorted((tmp_path / "images" / "images_normalized").iterdir())
    before = {f.name: f.stat().st_mtime_ns for f in images}
    images[0].unlink()
    write_data_set(tmp_path, patients=3, seed=7, size=64, workers=1)
    after = {f.name: f.stat().st_mtime_ns for f in sorted(images[0].parent.iterdir())}
    assert [n for n in after if after[n] != before[n]] == [images[0].name]


def test_one_split_can_be_drawn_alone(tmp_path: Path) -> None:
    write_data_set(tmp_path, patients=20, seed=9, size=64, only="test", workers=1)
    assert {c.split for c in read_data_set(tmp_path).records} == {"test"}


def test_questions_name_their_study(tmp_path: Path) -> None:
    studies = write_data_set(tmp_path, patients=4, seed=8, size=64, workers=1)
    assert studies == draw_studies(4, 8)
    lines = (tmp_path / "questions.jsonl").read_text().splitlines()
    uids = {json.loads(line)["uid"] for line in lines}
    assert uids <= {str(s.uid) for s in studies}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_draws_one_split_and_goes_on_without_drawing_again(
    tmp_path: Path, layout: str
) -> None:
    settings = {"patients": 8, "seed": 9, "size": 64, "workers": 1}
    write_data_set(tmp_path, layout, **settings, only="test")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert {c.split for c in read_corpus(tmp_path).records} == {"test"}
    times = {p: p.stat().st_mtime_ns for p in before if p.suffix in (".png", ".jpg", ".npz")}
    write_data_set(tmp_path, layout, **settings)
    assert all(p.stat().st_mtime_ns == time for p, time in times.items())
    # What is not a picture is the same to the last byte, whatever was drawn.
    assert all(p.read_bytes() == data for p, data in before.items())
    assert len({c.split for c in read_corpus(tmp_path).records}) > 1
