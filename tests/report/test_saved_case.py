"""A saved case from elsewhere is read whole, or refused by a sentence on the field."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import pytest

from mrrag.case import Settings
from mrrag.errors import SettingsError
from mrrag.report.export import differences, read_case

WHOLE: dict[str, Any] = {
    "format": 3,
    "question": "Is there a nodule?",
    "input": {"sha256": "0", "frame": 2, "rows": 9},
    "retrieved": [{"id": "d1", "rank": 1}],
    "answers": {
        m: {"text": "No.", "p_yes": 0.1, "p_no": None} for m in ("rag_off", "rag", "mr_rag")
    },
    "settings": {
        "k": 4,
        "weights": {"alpha": 0.5, "beta": 0, "gamma": 0.5},
        "strength": 1,
        "layers": [0, 3],
        "form": "ifa",
        "noise": 0,
        "max_new_tokens": 40,
        "seed": 0,
        "pinned": [],
        "excluded": ["d2"],
    },
    "versions": {"torch": "2"},
}


def test_every_setting_of_a_saved_case_is_read() -> None:
    assert set(WHOLE["settings"]) == {field.name for field in fields(Settings)}
    saved = read_case(WHOLE)
    assert saved.frame == 2
    assert (saved.settings.layers, saved.settings.excluded) == ((0, 3), ("d2",))
    assert differences(saved, WHOLE) == ([], [])


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("question",), ["a"], "question is a list"),
        (("question",), "\ud800", "question is a text with half a character"),
        (("settings", "k"), "8", "settings.k is a text"),
        (("settings", "k"), 2.5, "settings.k is 2.5"),
        (("settings", "weights", "alpha"), float("nan"), "settings.weights.alpha is nan"),
        (("settings", "weights", "alpha"), 10**400, "settings.weights.alpha is 1000"),
        (("settings", "strength"), [1], "settings.strength is a list"),
        (("settings", "layers"), ["0"], "settings.layers[0] is a text"),
        (("settings", "noise"), None, "settings.noise is null"),
        (("settings", "seed"), -1, "settings.seed is -1"),
        (("settings", "pinned"), [["d"]], "settings.pinned[0] is a list"),
        (("settings", "excluded"), [7], "settings.excluded[0] is 7"),
        (("input", "frame"), "1", "input.frame is a text"),
        (("retrieved", 0), {}, "retrieved[0].id is absent"),
        (("retrieved", 0, "id"), 5, "retrieved[0].id is 5"),
        (("answers", "rag"), "No.", "answers.rag is a text"),
        (("answers", "rag", "p_yes"), 10**400, "answers.rag.p_yes is 1000"),
        (("versions", "torch"), {}, "versions[torch] is an object"),
    ],
)
def test_a_field_of_a_saved_case_that_is_not_allowed_is_named(
    path: tuple[Any, ...], value: object, words: str
) -> None:
    exported = inner = copy.deepcopy(WHOLE)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(SettingsError) as caught:
        read_case(exported)
    assert f"{words}" in str(caught.value)
    assert "Export it again." in str(caught.value)
