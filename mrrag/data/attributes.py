"""The values of one DICOM attribute, whatever is wrong with it."""

from __future__ import annotations

from typing import Any

from pydicom.dataset import Dataset

__all__ = ["as_list", "numbers_of"]


def as_list(value: Any) -> list[Any]:
    """Return the values of an attribute that may be absent, single or several."""
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | int | float) else list(value)


def numbers_of(dataset: Dataset, keyword: str) -> list[float]:
    """Return an attribute's numbers; NaN in place of values that are no numbers."""
    try:
        return [float(value) for value in as_list(dataset.get(keyword))]
    except Exception:  # pydicom converts an attribute when it is first asked for
        return [float("nan")]
