"""Several pictures uploaded at once: which is open, what is kept, and what the model reads."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
from tiny_case import refused
from tiny_dicom import NAME, RAMP, make_dicom, make_picture

from app.sections.case import choose_frame, choose_sample, read_upload
from app.sections.study import OpenStudy, choose_picture, read_uploads
from app.sections.viewer import through_window

FRONTAL = make_dicom(RAMP, InstanceNumber=2, ViewPosition="PA")
LATERAL = make_dicom(RAMP.T.copy(), InstanceNumber=1, ViewPosition="LL")
FRAMES = make_dicom(
    np.stack([RAMP, RAMP[::-1]]).tobytes(), NumberOfFrames=2, Rows=16, Columns=16,
    SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=8, BitsStored=8,
    HighBit=7, PixelRepresentation=0, InstanceNumber=3,
)  # fmt: skip


def test_the_frontal_view_is_opened_and_the_others_are_a_press_away() -> None:
    first = read_uploads((), [LATERAL, FRONTAL, b"a text"])
    assert "2 pictures were read" in first["status"]
    assert "1 file was left out" in first["pictures"]
    np.testing.assert_array_equal(first["image"].display, RAMP)
    assert first["pictures"].count("<button") == 2
    assert 'data-sample="1" aria-pressed="true"' in first["pictures"]
    assert "Picture 2 of 2, frontal" in first["preview"]
    second = choose_picture(first["study"], 0)
    np.testing.assert_array_equal(second["image"].display, RAMP.T)
    assert through_window(second["image"], "") is second["image"]  # what the model reads
    assert second["image"].sha256 == read_upload((), LATERAL)["image"].sha256
    assert second["viewer"] != first["viewer"]
    assert second["case_state"] is None
    assert 'data-sample="0" aria-pressed="true"' in second["pictures"]
    assert "Picture 1 of 2, lateral. Press Ask." in second["status"]


def test_frames_of_a_studys_picture_can_be_chosen() -> None:
    opened = choose_picture(read_uploads((), [FRONTAL, FRAMES])["study"], 1)
    turned = choose_frame(opened["image"], opened["multiframe"], 1)
    np.testing.assert_array_equal(turned["image"].display, RAMP[::-1])
    assert "study" not in turned  # and the picker stays


def test_one_picture_has_no_picker_and_another_upload_closes_it() -> None:
    single = read_uploads((), [b"", FRONTAL])
    assert (single["study"], single["pictures"]) == (None, "")
    alone = read_uploads((), [FRONTAL, b"a text"])
    assert alone["pictures"] == ""
    assert "One picture was read" in alone["status"]
    assert "1 file was left out" in alone["status"]
    for update in (read_uploads((), []), read_uploads((), [b"text", b"text"])):
        assert update["image"] is None
        assert (update["study"], update["pictures"]) == (None, "")
        assert 'class="status problem"' in update["preview"]
    assert "does not exist" in refused(choose_sample((), 0))


def test_what_is_kept_of_a_study_names_no_patient() -> None:
    study = read_uploads((), [LATERAL, FRONTAL])["study"]
    for picture in study.study.pictures:
        assert NAME.encode() not in picture.file
        assert b"4711" not in picture.file


@pytest.mark.parametrize("wanted", [-1, 2, 1.5, True, None, "1", {}])
def test_unknown_pictures_are_refused(wanted: object) -> None:
    study = read_uploads((), [LATERAL, make_picture(PIL.Image.fromarray(RAMP))])["study"]
    assert isinstance(study, OpenStudy)
    update = choose_picture(study, wanted)
    assert 'class="status problem"' in update["status"]
    assert "image" not in update
    assert "problem" in choose_picture(None, 0)["status"]
