"""Learnt values from elsewhere are read whole, or refused by a sentence on the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrrag.case import MAX_STRENGTH
from mrrag.errors import ModelError
from mrrag.files import ASSETS
from mrrag.learnt import (
    ALIKE,
    FILE,
    default_weights,
    learnt_for,
    load_learnt,
    write_learnt,
)
from mrrag.types import Steering, Weights

WHOLE: dict[str, Any] = {
    "weights": {"alpha": 0.5, "beta": 0.25, "gamma": -0.25},
    "layers": [3, 5],
    "strength": 2,
    "rows": "question+cue",
    "form": "balanced",
    "model": "another/model",
    "adapter": {
        "intervals": [[0, 1], [-0.5, 0.5], [0.25, 0.25]],
        "used": True,
        "studies": ["0123456789ab"],
        "loss": "is not read",
    },
    "sweep": {
        "studies": ["ba9876543210"],
        "best_of_forms": {
            "ifa": {"layers": [4], "strength": 0.5, "rows": "question", "gains": [1]},
            "a form of later": {},
        },
    },
}


def test_every_value_is_read(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(WHOLE))
    learnt = load_learnt(tmp_path / FILE)
    assert learnt.weights == Weights(0.5, 0.25, -0.25)
    assert learnt.steering == Steering(2.0, (3, 5), "question+cue", form="balanced")
    assert learnt.model == "another/model"
    assert learnt.forms == {"ifa": Steering(0.5, (4,), "question", form="ifa")}
    assert learnt.intervals == ((0, 1), (-0.5, 0.5), (0.25, 0.25))
    assert learnt.studies == {"0123456789ab", "ba9876543210"}
    (tmp_path / FILE).write_text(
        json.dumps(WHOLE | {"adapter": {**WHOLE["adapter"], "used": False}})
    )
    assert load_learnt(tmp_path / FILE).intervals == ()


NAN, INF = float("nan"), float("inf")
ABSENT = ...  # stands for a field that is taken out
INTERVALS = ("adapter", "intervals")
DAMAGES: list[tuple[tuple[str, ...], object, str]] = [
    (("weights",), ABSENT, "weights is absent"),
    (("weights",), [0.5, 0.3, 0.2], "weights is a list of 3"),
    (("weights", "alpha"), NAN, "weights.alpha is nan"),
    (("weights", "beta"), -INF, "weights.beta is -inf"),
    (("weights", "gamma"), "0.2", "weights.gamma is a text"),
    (("weights", "gamma"), True, "weights.gamma is true"),
    (("weights", "gamma"), 10**400, "weights.gamma is 1000"),
    (("weights", "gamma"), ABSENT, "weights.gamma is absent"),
    (("weights", "delta"), 0.2, "weights is an object with 1 more"),
    (("weights",), {"alpha": 0, "beta": 0, "gamma": 0}, "weights is zero throughout"),
    (("layers",), 3, "layers is 3"),
    (("layers",), {"0": 3}, "layers is an object"),
    (("layers",), [-1], "layers[0] is -1"),
    (("layers",), [0, "1"], "layers[1] is a text"),
    (("layers",), [[3]], "layers[0] is a list"),
    (("layers",), [1.5], "layers[0] is 1.5"),
    (("layers",), [10**9], "layers[0] is 1000000000"),
    (("strength",), ABSENT, "strength is absent"),
    (("strength",), "2", "strength is a text"),
    (("strength",), -0.1, "strength is -0.1"),
    (("strength",), 1.01 * MAX_STRENGTH, "strength is 10.1"),
    (("strength",), NAN, "strength is nan"),
    (("rows",), ["question"], "rows is a list"),
    (("rows",), "", "rows is a text of 0"),
    (("form",), None, "form is null"),
    (("model",), 5, "model is 5"),
    (("adapter",), [], "adapter is a list"),
    (INTERVALS, 0.3, "adapter.intervals is 0.3"),
    (INTERVALS, [[0, 1]], "adapter.intervals is a list"),
    (INTERVALS, [[0, 1], [1, 0], [0, 1]], "adapter.intervals is a list"),
    (INTERVALS, [[0, 1], [0, 1, 2], [0, 1]], "adapter.intervals[1] is a list of 3"),
    (INTERVALS, [[0, 1], [0, 1], [NAN, 1]], "adapter.intervals[2][0] is nan"),
    (INTERVALS, [[0, 1], "01", [0, 1]], "adapter.intervals[1] is a text"),
    (("adapter", "used"), "no", "adapter.used is a text"),
    (("adapter", "studies"), "0123456789ab", "adapter.studies is a text"),
    (("adapter", "studies"), ["Doe, Jane"], "adapter.studies[0] is another text"),
    (("sweep",), 1, "sweep is 1"),
    (("sweep", "studies"), [["0123456789ab"]], "sweep.studies[0] is a list"),
]


@pytest.mark.parametrize(("path", "value", "words"), DAMAGES, ids=lambda x: str(x)[:30])
def test_a_learnt_value_that_is_not_allowed_is_named(
    tmp_path: Path, path: tuple[str, ...], value: object, words: str
) -> None:
    stored = json.loads(json.dumps(WHOLE))
    inner = stored
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    if value is ABSENT:
        del inner[path[-1]]
    (tmp_path / FILE).write_text(json.dumps(stored))
    for read in (lambda: load_learnt(tmp_path / FILE), lambda: learnt_for("a/b", tmp_path, ASSETS)):
        with pytest.raises(ModelError) as caught:
            read()
        message = str(caught.value)
        assert f"In learnt.json, {words}" in message
        assert "Allowed: " in message
        assert "find-layers" in message
        assert "Doe" not in message


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"3", b"{", b"\xff{}", b"[" * 10**5, b'{"layers": ' + b"9" * 9999 + b"}"],
    ids=lambda x: str(x)[:9],
)
def test_a_file_that_holds_no_learnt_values_is_refused_and_not_written_over(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / FILE
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"learnt\.json .* restore the file"):
        load_learnt(path)
    with pytest.raises(ModelError, match=r"learnt\.json .* restore the file"):
        write_learnt(path, load_learnt(ASSETS / FILE), model="another/model")
    assert path.read_bytes() == content
    path.unlink()
    with pytest.raises(ModelError, match="train-adapter"):
        load_learnt(path)


@pytest.mark.parametrize(
    "spread",
    [None, [], {}, "abc", {"alpha": 10**400}, {"alpha": NAN}, {"alpha": -1}, {"alpha": "1"}],
)
def test_a_spread_that_means_nothing_gives_equal_weights(tmp_path: Path, spread: object) -> None:
    if isinstance(spread, dict):
        spread = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0} | spread if spread else spread
    (tmp_path / "manifest.json").write_text(json.dumps({"spread": spread}))
    assert default_weights(tmp_path) == ALIKE
    (tmp_path / "manifest.json").write_text("[" * 10**5)
    assert default_weights(tmp_path) == ALIKE


def test_a_similarity_that_does_not_spread_gets_no_weight(tmp_path: Path) -> None:
    spread = {"alpha": 0.1, "beta": 0.1, "gamma": 6e-8}
    (tmp_path / "manifest.json").write_text(json.dumps({"spread": spread}))
    assert default_weights(tmp_path) == Weights(0.5, 0.5, 0.0)
