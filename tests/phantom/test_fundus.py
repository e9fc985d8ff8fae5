"""Phantom eyes: the picture shows what the note says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mrrag.phantom.fundus import ask_about, draw_eyes, render_eye, write_note


def test_the_same_eye_always_gives_the_same_picture_and_note() -> None:
    eye = draw_eyes(3, 1)[2]
    again = draw_eyes(5, 1)[2]
    assert eye == again
    np.testing.assert_array_equal(render_eye(eye, 96), render_eye(again, 96))
    assert write_note(eye) == write_note(again)


def test_a_picture_has_the_published_shape() -> None:
    picture = render_eye(draw_eyes(1, 2)[0])
    assert picture.shape == (664, 512)
    assert picture.dtype == np.uint8


def test_a_larger_cup_is_more_bright_area_in_the_disc() -> None:
    for eye in draw_eyes(4, 3):
        bright = [
            int((render_eye(replace(eye, ratio=ratio, glaucoma=False), 256) > 190).sum())
            for ratio in (0.3, 0.5, 0.7, 0.9)
        ]
        assert bright == sorted(bright)
        assert bright[-1] > 3 * bright[0]


def test_the_disc_is_towards_the_nose() -> None:
    for eye in draw_eyes(6, 4):
        columns = np.argwhere(render_eye(eye, 128) > 190)[:, 1]
        assert (columns.mean() > 64) == (eye.side == "right")


def test_sick_and_well_eyes_differ_in_ratio_note_and_answers() -> None:
    eyes = draw_eyes(400, 5)
    sick = [e.ratio for e in eyes if e.glaucoma]
    well = [e.ratio for e in eyes if not e.glaucoma]
    assert 0.4 < len(sick) / len(eyes) < 0.6
    assert np.mean(sick) - np.mean(well) > 0.3
    for eye in eyes:
        note, summary = write_note(eye)
        assert ("no glaucoma" in note) == ("no glaucoma" in summary) == (not eye.glaucoma)
        assert f"{eye.ratio:.2f}" in note
        answers = {qa.finding: qa.answer for qa in ask_about(eye)}
        assert answers["glaucoma"] == ("Yes." if eye.glaucoma else "No.")
