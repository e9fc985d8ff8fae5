"""What a data set holds, counted by study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mrrag.data.facts import Facts, facts_of, repeated_reports
from mrrag.data.records import Record
from mrrag.types import Document


def study(name: str, report: str, *views: str) -> list[Record]:
    return [
        Record(Document(f"{name}{n}", report, name, name, view=view), Path("none.png"))
        for n, view in enumerate(views)
    ]


def test_views_sections_redactions_and_repeats_are_counted_by_study() -> None:
    impression = [replace(r, impression_only=True) for r in study("e", "No change.", "")]
    records = [
        *study("a", "The lungs are clear.", "frontal", "lateral"),
        *study("b", "the lungs\nARE clear.", "frontal", "frontal", "frontal"),
        *study("c", "Clear since XXXX.", "lateral", "lateral"),
        *study("d", "Dr. ___ was told.", "lateral", ""),
        *impression,
    ]
    assert facts_of(records) == Facts(
        frontal=4,
        lateral=4,
        unknown=2,
        only_lateral=1,
        second_frontals=2,
        impression_only=1,
        redacted=2,
        repeated=1,
        commonest=2,
    )


def test_only_case_and_white_space_may_differ_between_repeated_reports() -> None:
    texts = ("Clear.", "clear. ", "Clear", "No effusion.", "", "", "CLEAR.")
    records = [study(f"s{n}", text, "frontal", "lateral") for n, text in enumerate(texts)]
    assert repeated_reports([r for pair in records for r in pair]) == (2, 3)
    assert repeated_reports([]) == (0, 0)
