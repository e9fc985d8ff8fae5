"""A value is clean, or the field at fault is named, never with its text."""

from __future__ import annotations

import pytest

from mrrag.schema import (
    Choice,
    FieldError,
    Flag,
    Items,
    Kind,
    Number,
    Record,
    Row,
    Table,
    Text,
    Whole,
    refusing_fields,
)

SHAPE = Record(
    {"name": Text(1, 5), "pairs": Items(Row((Whole(0, 9), Number(-1, 1))), 1, 3)},
    {"used": Flag(), "sizes": Table(Text(most=3), Whole(0, 9), most=2)},
    closed=True,
)


def test_a_clean_value_comes_back_without_what_is_not_described() -> None:
    value = {"name": "é", "pairs": [[3, 1]], "used": False, "sizes": {"a": 1}}
    assert SHAPE.check(value) == {**value, "pairs": [(3, 1.0)]}
    assert Record({"name": Text()}).check(value) == {"name": "é"}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ([], ""),
        ({"pairs": [[1, 0]]}, "name"),
        ({"name": "secret", "pairs": [[1, 0]]}, "name"),
        ({"name": "a", "pairs": []}, "pairs"),
        ({"name": "a", "pairs": [[1, 0], [1]]}, "pairs[1]"),
        ({"name": "a", "pairs": [[1, float("nan")]]}, "pairs[0][1]"),
        ({"name": "a", "pairs": [[1, 10**400]]}, "pairs[0][1]"),
        ({"name": "a", "pairs": [[True, 0]]}, "pairs[0][0]"),
        ({"name": "a", "pairs": [[1.0, 0]]}, "pairs[0][0]"),
        ({"name": "a", "pairs": [[1, 0]], "used": 1}, "used"),
        ({"name": "a", "pairs": [[1, 0]], "sizes": {"b": -1}}, "sizes[b]"),
        ({"name": "a", "pairs": [[1, 0]], "sizes": {"secret": 1}}, "sizes[name 1]"),
        ({"name": "a", "pairs": [[1, 0]], "secret": 1}, ""),
    ],
)
def test_the_field_at_fault_is_named_and_its_text_is_not(value: object, path: str) -> None:
    with pytest.raises(FieldError) as caught:
        SHAPE.check(value)
    assert caught.value.path == path
    assert "secret" not in str(caught.value)
    with (
        pytest.raises(KeyError, match=r"case\.json.* Allowed: .* Export it again"),
        refusing_fields("case.json", "Export it again.", KeyError),
    ):
        SHAPE.check(value)


@pytest.mark.parametrize(
    ("kind", "value", "came"),
    [
        (Text(most=3), "\ud800", "half a character"),
        (Text(pattern="[a-f]*", what="letters"), "abc\n", "another text"),
        (Choice(("ifa", "balanced")), "other", "'other'"),
        (Choice(("ifa",)), ["ifa"], "a list of 1"),
        (Whole(0, 9), -(10**500), r"-10+\.\.\. \(502 digits\)"),
        (Number(0, 1), float("inf"), "inf"),
        (Flag(), None, "null"),
        (Items(Flag(), most=1), "ab", "a text of 2"),
    ],
)
def test_what_came_is_said_in_a_few_words(kind: Kind, value: object, came: str) -> None:
    with pytest.raises(FieldError, match=came):
        kind.check(value)
