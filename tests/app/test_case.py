"""The case section: sample cases and uploads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_case import HOSTILE, picture, refused

from app.sections.case import Sample, choose_sample, load_samples, read_upload, samples_html
from mrrag.errors import CorpusError
from mrrag.report.pictures import data_url


def write_samples(folder: Path, **changes: str) -> None:
    from base64 import b64decode

    url = data_url(picture().display)
    (folder / "a.png").write_bytes(b64decode(url.split(",")[1]))
    entry = {
        "file": "a.png",
        "title": HOSTILE,
        "question": "Is it?",
        "note": "",
        "noise": 3,
    } | changes
    (folder / "cases.json").write_text(json.dumps([entry]))


def test_sample_cases_are_read_from_their_list(tmp_path: Path) -> None:
    write_samples(tmp_path)
    (sample,) = load_samples(tmp_path)
    np.testing.assert_array_equal(sample.image.display, picture().display)
    assert "<script" not in samples_html([sample], 0)
    assert choose_sample([sample], 0)["noise"] == 3


def test_a_sample_outside_its_folder_is_refused(tmp_path: Path) -> None:
    write_samples(tmp_path, file="../a.png")
    with pytest.raises(CorpusError, match="outside"):
        load_samples(tmp_path)


@pytest.mark.parametrize("index", [-1, 99, True, None, "0", 1.5, {}])
def test_unknown_samples_are_refused(index: object) -> None:
    sample = Sample("t", "q?", "", 0, picture(), "data:,")
    assert "does not exist" in refused(choose_sample([sample], index))


@pytest.mark.parametrize("data", [b"", b"not a picture", None, "a path", 7])
def test_uploads_that_are_no_picture_are_refused(data: object) -> None:
    update = read_upload((), data)
    assert update["image"] is None
    assert 'class="status problem"' in update["preview"]
