"""The values of an archive's answers in DICOM JSON (PS3.18 F.2), checked as they are read."""

from __future__ import annotations

import re

from pydicom.datadict import tag_for_keyword

__all__ = ["DAY", "day_of", "number_of", "stated_view", "text_of", "texts_of", "uid_of"]

UID = re.compile(r"[0-9]+(\.[0-9]+)*")
DAY = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)")


def texts_of(row: object, keyword: str) -> list[str]:
    """Return the values of an attribute as text that can be shown; none where it is absent."""
    tag = tag_for_keyword(keyword)
    element = row.get(f"{tag:08X}") if isinstance(row, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    shown = []
    for value in values if isinstance(values, list) else []:
        if isinstance(value, dict):  # a person's name (PN), or a code
            value = value.get("Alphabetic") or value.get("Ideographic") or _meaning(value)
        if isinstance(value, str | int | float):
            shown.append("".join(filter(str.isprintable, str(value)))[:64].strip())
    return shown


def _meaning(code: object) -> str:
    return next(iter(texts_of(code, "CodeMeaning")), "")


def text_of(row: object, keyword: str) -> str:
    """Return the first value of an attribute; "" where it is absent."""
    return next(iter(texts_of(row, keyword)), "")


def uid_of(row: object, keyword: str) -> str:
    """Return a UID, or "" for what is none: it becomes part of an address."""
    found = text_of(row, keyword)
    return found if UID.fullmatch(found) else ""


def number_of(row: object, keyword: str) -> float:
    """Return a number to sort by; infinity where there is none."""
    try:
        return float(text_of(row, keyword))
    except ValueError:
        return float("inf")


def stated_view(row: object) -> str:
    """Return View Position, else the meaning of View Code Sequence, else ""."""
    position = text_of(row, "ViewPosition")
    return position or next(iter(texts_of(row, "ViewCodeSequence")), "")


def day_of(written: str) -> str:
    """Return a DICOM date as 2024-01-31; anything else as it is."""
    match = DAY.fullmatch(written)
    return "-".join(match.groups()) if match else written
