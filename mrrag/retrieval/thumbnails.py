"""Thumbnails of a knowledge base: that each is a JPEG file of a small picture.

The size is read from the header of each file when a knowledge base is loaded, so that no picture
of a thousand times its file's size is ever decoded or shown.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image

from mrrag.errors import KnowledgeBaseError
from mrrag.retrieval.manifest import REMEDY

__all__ = ["MOST_SIDE", "check_thumbnails", "fault_of", "jpeg_size", "open_thumbnail"]

MOST_SIDE = 4096  # px
# ITU-T T.81, table B.1: markers of a frame header, which holds the size.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HEAD = 2048  # bytes in which the frame header is looked for; those of an index have 200


def jpeg_size(data: bytes | mmap.mmap, start: int, stop: int) -> tuple[int, int] | None:
    """Return width and height, in px, of the JPEG file at ``data[start:stop]``.

    Its segments are followed to the frame header (ITU-T T.81, B.1.1.3 and B.2.2). None where
    there is no frame header, or it does not begin as a JPEG file does.
    """
    head = data[start : min(stop, start + _HEAD)]
    if not head.startswith(b"\xff\xd8\xff"):
        return None
    place = 2
    while place + 9 <= len(head) and head[place] == 0xFF:
        if head[place + 1] in _FRAMES:
            return head[place + 7] << 8 | head[place + 8], head[place + 5] << 8 | head[place + 6]
        place += 2 + (head[place + 2] << 8 | head[place + 3])
    return None


def check_thumbnails(
    directory: Path,
    names: Sequence[str],
    places_N3: npt.NDArray[np.int64],
    sizes: Mapping[str, int],
) -> None:
    """Check that every document has a thumbnail in a declared file.

    Parameters
    ----------
    names
        The files that documents name.
    places_N3
        Of each document: the number of its file in ``names``, offset and length in bytes.
    sizes
        Name of each declared file → its size in bytes.

    Raises
    ------
    KnowledgeBaseError
        Where a thumbnail is outside of the declared files, is not a JPEG file, or has a side
        above :data:`MOST_SIDE`.
    """
    for number, name in enumerate(names):
        chosen = np.flatnonzero(places_N3[:, 0] == number)
        ends = places_N3[chosen, 1] + places_N3[chosen, 2]
        size = sizes.get(name, -1)
        if (ends > size).any():
            line = int(chosen[np.argmax(ends > size)]) + 1
            raise _refused(
                directory,
                line,
                "outside of the files that the manifest declares",
                "a place inside one of them",
            )
        with (
            (directory / name).open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            for row, (start, stop) in enumerate(
                zip(places_N3[chosen, 1].tolist(), ends.tolist(), strict=True)
            ):
                found = jpeg_size(data, start, stop)
                if found is None or not 1 <= min(found) <= max(found) <= MOST_SIDE:
                    came = "no JPEG file" if found is None else f"{found[0]} × {found[1]} px"
                    allowed = f"a JPEG file of 1 to {MOST_SIDE:,} px a side"
                    raise _refused(directory, int(chosen[row]) + 1, came, allowed)


def fault_of(jpeg: bytes) -> str:
    """Return what is wrong with a thumbnail, to be read from its header; empty where nothing."""
    found = jpeg_size(jpeg, 0, len(jpeg))
    if found is None:
        return "no JPEG file"
    return "" if 1 <= min(found) <= max(found) <= MOST_SIDE else f"{found[0]} × {found[1]} px"


def open_thumbnail(jpeg: bytes, whose: str) -> PIL.Image.Image:
    """Decode a thumbnail that :func:`check_thumbnails` has seen.

    Parameters
    ----------
    whose
        The document, for the error.

    Raises
    ------
    KnowledgeBaseError
        Where it is damaged.
    """
    try:
        with PIL.Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
            picture.load()
            return picture
    except (OSError, ValueError, SyntaxError) as error:
        raise KnowledgeBaseError(
            f"The thumbnail {whose} cannot be decoded ({error}). Allowed: a whole JPEG file. "
            f"{REMEDY}"
        ) from None


def _refused(directory: Path, line: int, came: str, allowed: str) -> KnowledgeBaseError:
    return KnowledgeBaseError(
        f"The thumbnail of the document in line {line} of the knowledge base in {directory} is "
        f"{came}. Allowed: {allowed}. {REMEDY}"
    )
