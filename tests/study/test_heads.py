"""The heads in which rivals act are the best, and their file is of one model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_experiment import make_heads

from mrrag.errors import SettingsError
from mrrag.study.heads import (
    TENSORS,
    best_heads,
    in_best_heads,
    read_heads,
    shift_along,
    write_heads,
)
from mrrag.types import Emphasis, Rival, Shift

SCORES = np.array([[0.5, 0.9, 0.5], [0.7, 0.5, 0.8]], np.float32)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.5, ((0, 1), (1, 0), (1, 2))),
        (0.01, ((0, 1),)),  # at least one
        (0.67, ((0, 0), (0, 1), (1, 0), (1, 2))),  # of equal ones the first
    ],
)
def test_the_best_heads_are_a_share(share: float, expected: tuple[tuple[int, int], ...]) -> None:
    assert best_heads(SCORES, share) == expected


def test_a_shift_is_the_direction_times_the_spread_and_a_random_one_is_as_long() -> None:
    heads = make_heads()
    (layer, head, values), *others = shift_along(Shift(2.0), heads, 0.25).vectors
    assert len(others) == 2
    assert (layer, head) in best_heads(heads.probe_LH, 0.25)
    spread = heads.spread_LH[layer, head]
    np.testing.assert_allclose(values, spread * heads.direction_LHD[layer, head], rtol=1e-6)
    random = shift_along(Shift(2.0, random=True), heads, 0.25)
    assert random == shift_along(Shift(2.0, random=True), heads, 0.25)
    for own, drawn in zip(
        shift_along(Shift(2.0), heads, 0.25).vectors, random.vectors, strict=True
    ):
        assert own[:2] == drawn[:2]
        assert np.linalg.norm(own[2]) == pytest.approx(np.linalg.norm(drawn[2]), rel=1e-5)
        assert abs(np.corrcoef(own[2], drawn[2])[0, 1]) < 0.9


def test_a_rival_acts_in_pasta_s_heads() -> None:
    heads = make_heads()
    rival = in_best_heads(Rival((Emphasis("add", "image", -1.0),)), heads, 0.5)
    assert rival.emphases[0].heads == best_heads(heads.pasta_LH, 0.5)
    assert rival.shift is None


def test_a_file_comes_back_as_it_was_and_is_of_one_model(tmp_path: Path) -> None:
    path, heads = tmp_path / "runs" / "heads.safetensors", make_heads()
    write_heads(path, heads, {"model": "abc", "questions": 5})
    back = read_heads(path, "abc")
    for name in TENSORS:
        np.testing.assert_array_equal(getattr(back, name), getattr(heads, name))
    with pytest.raises(SettingsError, match="another model"):
        read_heads(path, "def")


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not found"):
        read_heads(tmp_path / "none.safetensors", "abc")
    (tmp_path / "text").write_text("heads")
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "weights")
    write_heads(tmp_path / "nan", make_heads(), {"model": "abc"})
    broken = make_heads()
    broken.probe_LH[0, 0] = np.nan
    write_heads(tmp_path / "nan", broken, {"model": "abc"})
    for name in ("text", "weights", "nan"):
        with pytest.raises(SettingsError, match="find-heads wrote"):
            read_heads(tmp_path / name, "abc")
