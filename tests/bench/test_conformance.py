"""Checks of many files: they find wrong pictures, and survive a crash of the reader."""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian
from tiny_dicom import make_dicom, make_table
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
    check_folders,
    compare_path,
    conform,
    reader,
)
from mrrag.cli.bench import run_conformance
from mrrag.data.images import load_image
from mrrag.errors import MRRAGError


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


RAMP16 = np.tile(np.arange(0, 4080, 34, dtype=np.uint16), (40, 1))
SHUFFLED = np.random.default_rng(0).integers(0, 256, 256).astype(">u2")
PALETTES = {
    f"{colour}PaletteColorLookupTable{part}": value
    for colour in ("Red", "Green", "Blue")
    for part, value in (("Descriptor", [256, 0, 8]), ("Data", SHUFFLED.astype("u1").tobytes()))
}
ODD = {
    "padding": {"PixelPaddingValue": 3000, "PixelPaddingRangeLimit": 4079},
    "padding and a window": {"PixelPaddingValue": 0, "WindowCenter": 900, "WindowWidth": 900},
    "stretched": {"PixelSpacing": [1, 2], "PixelPaddingValue": 340},
    "a window beside the values": {"WindowCenter": -900, "WindowWidth": 100},
    "two windows": {"WindowCenter": [-900, 900], "WindowWidth": [100, 2000]},
    "half a rescale": {"RescaleSlope": 2, "PhotometricInterpretation": "MONOCHROME1"},
    "a VOI LUT beyond its bits": {"VOILUTSequence": make_table(list(range(4096)), bits=8)},
    "a palette of bytes": {"PhotometricInterpretation": "PALETTE COLOR", **PALETTES},
}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("kind", ODD)
def test_the_reference_knows_odd_headers(kind: str, syntax: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.dcm"
    path.write_bytes(make_dicom(RAMP16 % 256 if "palette" in kind else RAMP16, syntax, **ODD[kind]))
    assert compare_path(str(path)) == (RIGHT, "pydicom")
    image, dataset = load_image(path), dcmread(path)
    stored, photometric = dataset.pixel_array, dataset.PhotometricInterpretation
    wrong = image.display.copy()
    wrong[20, 30] ^= 128
    assert "display" in _compare(replace(image, display=wrong), dataset, stored, photometric)
    if image.padding is not None:
        unpadded = replace(image, padding=None)
        assert "padding" in _compare(unpadded, dataset, stored, photometric)


def test_a_folder_that_is_absent_or_holds_no_dicom_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MRRAGError, match="There is no folder"):
        check_folders([tmp_path / "absent"])
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "notes.txt").write_text("no picture")
    with pytest.raises(MRRAGError, match="There is no DICOM file in"):
        run_conformance(Namespace(folders=[tmp_path], json=False))
    (tmp_path / "deep" / "film").write_bytes(make_dicom(RAMP16))
    check_folders([tmp_path, tmp_path / "deep" / "film"])


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
