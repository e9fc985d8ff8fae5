"""The rule that every reader follows: accept a row, or skip it for its first fault."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from mrrag.data.readers.collector import Collector
from mrrag.errors import CorpusError


def test_a_row_is_skipped_for_its_first_fault_only() -> None:
    found = Collector[str]()
    assert not found.rejects("a", {"no id": False, "no report": False})
    assert found.rejects("b", {"no id": False, "no report": True, "no image": True})
    assert found.rejects("c", {"no id": True, "no report": True, "no image": True})
    assert found.skipped == {"no report": ("b",), "no id": ("c",)}
    assert list(found.skipped) == ["no report", "no id"]


def test_an_id_repeats_from_its_second_time_on() -> None:
    found = Collector[str]()
    assert [found.repeats(key) for key in ("1", "2", "1", "1")] == [False, False, True, True]


def test_only_the_first_row_of_a_reason_is_explained() -> None:
    found = Collector[str]()
    asked: list[str] = []

    def explained(row: str) -> str:
        asked.append(row)
        return f"looked for {row}.png"

    for row in ("a", "b", "c"):
        faults = {"no id": row == "a", "no image": True}
        assert found.rejects(row, faults, {"no image": partial(explained, row)})
    assert asked == ["b"]
    assert found.examples == {"no image": "b: looked for b.png"}
    with pytest.raises(
        CorpusError, match=r"2 with no image\)\. For example b: looked for b\.png\."
    ):
        found.require(Path("x"), "case")


def test_nothing_accepted_is_an_error_with_the_reasons() -> None:
    found = Collector[str]()
    with pytest.raises(CorpusError, match=r"No case could be read from x \(it has no rows\)"):
        found.require(Path("x"), "case")
    found.skip("no id", "a")
    found.skip("no id", "b")
    with pytest.raises(CorpusError, match=r"\(2 with no id\)"):
        found.require(Path("x"), "case")
    found.accepted.append("c")
    found.require(Path("x"), "case")
