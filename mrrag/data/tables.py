"""DICOM lookup tables: modality LUT, VOI LUT and palettes, checked before they are used.

Headers often describe their tables wrongly. This module says what is wrong; it does not know
what is shown instead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from mrrag.data.grey import scale
from mrrag.data.limits import EXPORT, refusal

__all__ = [
    "Table",
    "UnusableTable",
    "apply_palette",
    "level_top",
    "look_up",
    "read_table",
    "read_voi_table",
]

Array = npt.NDArray[Any]
COLOURS = ("Red", "Green", "Blue")


class UnusableTable(ValueError):
    """A table that cannot be used; the message says why, as the end of a sentence."""


class Table(NamedTuple):
    """A lookup table: uint8 or uint16 ``entries`` [n], the first one's value, and bits an entry."""

    entries: Array
    first: int
    bits: int


def read_table(
    item: Dataset, descriptor: str, data: str, little: bool, *, highest: int | None = None
) -> Table:
    """Return a table from its descriptor and data (PS3.3 C.11.1.1, C.11.2.1.1, C.7.6.3.1.5).

    Parameters
    ----------
    item
        The data set that holds both.
    descriptor, data
        The keywords of the two attributes.
    little
        Whether the file's bytes are in little-endian order.
    highest
        The highest value that is looked up; entries beyond it may be absent. None for any.

    Raises
    ------
    UnusableTable
        If one of the two is absent or damaged, or the data are cut short.
    """
    try:
        described, found = item.get(descriptor), item.get(data)
        count, first, bits = (int(number) for number in described or (0, 0, 0))
        count = count or 2**16  # PS3.3 C.11.1.1.1
        empty = found is None or (isinstance(found, bytes | str) and not found)
        entries = np.empty(0, np.uint16) if empty else _entries(found, count, bits, little)
    except Exception as error:  # pydicom converts an attribute when it is first asked for
        raise UnusableTable("it is damaged") from error
    if not described:
        raise UnusableTable("it has no descriptor")
    if not entries.size:
        raise UnusableTable("it has no data")
    needed = count if highest is None else min(count, highest - first + 1)
    if len(entries) < needed:
        raise UnusableTable(f"it has {len(entries):,} of the {count:,} entries it must have")
    return Table(entries[:count], first, bits)


def _entries(found: Any, count: int, bits: int, little: bool) -> Array:
    """Return a table's data as unsigned numbers in the machine's byte order."""
    if not isinstance(found, bytes):
        return np.atleast_1d(np.array(found)).astype(np.uint16)
    # A byte each, and perhaps one to fill a word; some headers name 16 bits for such data.
    if len(found) < 2 * count and (bits <= 8 or len(found) - count in (0, 1)):
        # Two of them are a word, whose low byte is the first (PS3.3 C.7.6.3.1.6).
        even = found + b"\0" * (len(found) % 2)
        words = np.frombuffer(even, "<u2" if little else ">u2")
        return words.astype("<u2").view(np.uint8)[: len(found)]
    words = np.frombuffer(found[: len(found) // 2 * 2], "<u2" if little else ">u2")
    return words.astype(np.uint16)


def read_voi_table(item: Dataset, little: bool) -> Table:
    """Return an item of the VOI LUT Sequence (PS3.3 C.11.2.1.1): see :func:`read_table`.

    Raises
    ------
    UnusableTable
        Also if its values do not fit the bits that its descriptor names.
    """
    table = read_table(item, "LUTDescriptor", "LUTData", little)
    if not 1 <= table.bits <= 16:
        raise UnusableTable(f"its descriptor names {table.bits} bits, which must be 8 to 16")
    top, highest = 2**table.bits - 1, int(table.entries.max())
    if highest > top:
        raise UnusableTable(
            f"its values reach {highest:,}, but {table.bits} bits, which its descriptor names,"
            f" end at {top:,}"
        )
    return table


def look_up(values: Array, table: Table) -> Array:
    """Return the entries for values of any shape; beyond the table's ends, its end entries.

    pydicom 3.0 has its own, which wraps the index of tables of more than 256 8-bit entries.
    """
    first = table.first
    if first >= 2**15 and values.min() < 0:  # a signed number that was written as unsigned
        first -= 2**16
    last = first + len(table.entries) - 1
    index = np.clip(np.rint(values), first, last).astype(np.int32) - first
    found: Array = table.entries[index]
    return found


def apply_palette(
    pixels: Array, dataset: Dataset, little: bool
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Return the RGB of palette indices (PS3.3 C.7.9), and notes; pydicom expands segments.

    Parameters
    ----------
    pixels
        [rows, columns], indices.

    Returns
    -------
    tuple
        uint8 [rows, columns, 3], and what is wrong with the palette's bits.

    Raises
    ------
    ImageError
        If the palette is absent, or lacks entries that the pixels need.
    """
    names = [f"{colour}PaletteColorLookupTable" for colour in COLOURS]
    if "RedPaletteColorLookupTableData" in dataset:
        highest = int(pixels.max())
        try:
            tables = [
                read_table(dataset, f"{n}Descriptor", f"{n}Data", little, highest=highest)
                for n in names
            ]
        except UnusableTable as error:
            raise refusal(
                f"The colour palette cannot be used: {error}.",
                "A palette picture needs a red, a green and a blue table for all its pixels.",
                EXPORT,
            ) from error
        colours = np.stack([look_up(pixels, table) for table in tables], axis=-1)
        bits = tables[0].bits
    else:
        colours = apply_color_lut(pixels, dataset)[..., :3]
        bits = int(dataset[f"{names[0]}Descriptor"].value[2])
    top, note = level_top(int(colours.max()), bits)
    return scale(colours, 0, top), [f"The palette's colours {note}"] if note else []


def level_top(highest: int, bits: int) -> tuple[int, str]:
    """Return the level that is shown as white, and a note if the header's bits are not believed.

    Parameters
    ----------
    highest
        The highest level that occurs.
    bits
        How many bits the header says a level has.
    """
    top = 2**bits - 1
    if highest > top:
        real = max(8, highest.bit_length())
        return 2**real - 1, f"reach {highest:,}, more than the {bits} bits that the header says."
    for real in (8, 12):
        if highest < 2**real and bits >= real + 4:
            return 2**real - 1, f"use {real} of the {bits} bits that the header says."
    return top, ""
