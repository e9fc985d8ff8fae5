"""Checks of many files: they find wrong pictures, and survive a crash of the reader."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from tools.fuzz import MUTATIONS, fuzz, main, mutate, seeds

from mrrag.bench import conformance
from mrrag.bench.conformance import (
    CRASHED,
    FAILURES,
    LEFT,
    REFUSED,
    RIGHT,
    STUCK,
    _compare,
    conform,
    reader,
)
from mrrag.data.images import load_image


def shipped(name: str) -> Path:
    return Path(str(get_testdata_file(name)))


def write_file(name: str) -> tuple[str, str]:
    Path(name).write_text("left")
    return RIGHT, ""


def answer() -> tuple[str, str]:
    return RIGHT, "still there"


def test_files_are_right_or_refused() -> None:
    names = ("CT_small.dcm", "examples_palette.dcm", "JPEG2000.dcm", "MR_truncated.dcm")
    outcomes = list(conform(shipped(name) for name in names))
    assert [outcome.kind for outcome in outcomes] == [RIGHT, RIGHT, RIGHT, REFUSED]
    assert outcomes[0].syntax == "Explicit VR Little Endian"
    assert outcomes[0].detail == "pydicom"


def test_a_wrong_picture_is_found() -> None:
    path = shipped("CT_small.dcm")
    image, dataset = load_image(path), dcmread(path)
    pixels, grey = dataset.pixel_array, dataset.PhotometricInterpretation
    assert _compare(image, dataset, pixels, grey) == ""
    assert "display" in _compare(replace(image, display=255 - image.display), dataset, pixels, grey)
    assert image.values is not None
    assert "values" in _compare(replace(image, values=image.values + 1), dataset, pixels, grey)
    assert "shape" in _compare(replace(image, values=image.values[:9]), dataset, pixels, grey)


def test_the_reader_survives_a_crash_and_a_hang_and_reports_a_file_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with reader() as running:
        assert running.run(answer)[:2] == (RIGHT, "still there")
        assert running.run(os.abort)[0] == CRASHED
        assert running.run(answer)[0] == RIGHT
        monkeypatch.setattr(conformance, "SECONDS", 0.5)
        assert running.run(time.sleep, 600)[0] == STUCK
        monkeypatch.undo()
        assert running.run(write_file, "here")[:2] == (LEFT, "here")
        folder = Path(running.folder)
    assert not folder.exists()


def test_mutations_are_the_same_for_the_same_numbers_and_do_change_files() -> None:
    files = seeds()
    assert mutate(files, 1, 2) == mutate(files, 1, 2)
    assert mutate(files, 1, 2) != mutate(files, 1, 3)
    whole = shipped("CT_small.dcm").read_bytes()
    for change in MUTATIONS:
        rng = np.random.default_rng(0)
        tries = [bytearray(whole) for _ in range(8)]
        for data in tries:
            change(data, files, rng)
        assert any(bytes(data) != whole for data in tries), change.__name__


def test_mutated_files_are_refused_or_read() -> None:
    outcomes = list(fuzz(60, 1))
    assert len(outcomes) == 60
    assert [outcome for outcome in outcomes if outcome.kind in FAILURES] == []
    assert any(outcome.kind == REFUSED for outcome in outcomes)


def test_the_script_prints_the_totals(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--count", "3", "--seed", "1", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert sum(printed["totals"].values()) == 3
    assert printed["files"] == []
    main(["--count", "0"])
    assert capsys.readouterr().out == "; slowest 0.00 s of CPU\n"
