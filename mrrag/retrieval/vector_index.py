"""The index file of a knowledge base, checked before FAISS reads it, and its vectors.

FAISS reads any of its index types from a file, and trusts the sizes in it. A knowledge base has
one type only, so the whole header is known beforehand from count and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import faiss
import numpy as np

from mrrag.errors import KnowledgeBaseError
from mrrag.retrieval.manifest import REMEDY
from mrrag.types import FloatArray

__all__ = ["check_norms", "empty_index", "index_header", "read_index"]

# The builder allows norms within 1e-3 of 1, and float16 adds at most 5e-4.
NORM_TOLERANCE = 2e-3
CHUNK = 4096  # vectors, so that a check needs a few MB whatever the size of the index
# Header: type, width, count (8 bytes), two numbers that FAISS ignores (16), ..., bytes of codes.
_COUNT, _IGNORED, _CODES = slice(8, 16), slice(16, 32), slice(-8, None)


def empty_index(width: int) -> faiss.Index:
    """Return the index of a knowledge base, without vectors: float16, inner product."""
    return faiss.IndexScalarQuantizer(
        width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )


def read_index(path: Path, count: int, dimension: int) -> faiss.Index:
    """Check an index, and open it memory-mapped.

    Parameters
    ----------
    count, dimension
        N and D of the vectors [t_d ; v_d] that it must hold, float16 [N, 2D].

    Raises
    ------
    KnowledgeBaseError
        Where it is of another type, count or width, or a vector is not finite or not of
        norm 1, up to rounding.
    """
    with path.open("rb") as stream:
        _check_header(stream, path, count, 2 * dimension)
        _check_vectors(stream, path, count, dimension)
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise KnowledgeBaseError(f"{path} cannot be read ({error}). {REMEDY}") from None


def index_header(count: int, width: int) -> bytes:
    """Return what stands before the vectors, float16 [N, 2D], in the file of an index."""
    header = bytearray(faiss.serialize_index(empty_index(width)).tobytes())
    header[_COUNT] = count.to_bytes(8, "little")
    header[_CODES] = (2 * count * width).to_bytes(8, "little")
    return bytes(header)


def _check_header(stream: BinaryIO, path: Path, count: int, width: int) -> None:
    wanted = index_header(count, width)
    found = bytearray(stream.read(len(wanted)))
    found[_IGNORED] = wanted[_IGNORED]
    size = len(wanted) + 2 * count * width
    if found != wanted or path.stat().st_size != size:
        kind = bytes(found[:4])
        named = kind.decode("ascii") if kind.isalnum() and kind.isascii() else "unknown"
        raise KnowledgeBaseError(
            f"{path} is not the index that the manifest declares (its type is {named}). "
            f"Allowed: inner product, float16, {count:,} vectors of {width:,} numbers "
            f"(type {wanted[:4].decode()}, {size:,} bytes). {REMEDY}"
        )


def _check_vectors(stream: BinaryIO, path: Path, count: int, dimension: int) -> None:
    for start in range(0, count, CHUNK):
        n = min(CHUNK, count - start)
        halves = np.frombuffer(stream.read(4 * n * dimension), "<f2")
        check_norms(halves.astype(np.float32).reshape(n, -1), str(path), range(start, start + n))


def check_norms(vectors_ND: FloatArray, where: str, numbers: Sequence[int]) -> None:
    """Raise KnowledgeBaseError where one of [t_d ; v_d], float32 [N, 2D], is not of norm 1."""
    halves_N2D = vectors_ND.reshape(len(vectors_ND), 2, vectors_ND.shape[1] // 2)
    # The square, since the root of a sum that overflows is a warning more.
    squares_N2 = np.einsum("nkd,nkd->nk", halves_N2D, halves_N2D)
    bad_N2 = ~(np.abs(squares_N2 - 1) <= 2 * NORM_TOLERANCE)  # true for NaN too
    if bad_N2.any():
        row, half = np.argwhere(bad_N2)[0].tolist()
        norm = float(np.sqrt(squares_N2[row, half]))
        raise KnowledgeBaseError(
            f"In {where}, the {('report', 'image')[half]} vector of document {numbers[row]} "
            f"has norm {norm:.4g}. Allowed: finite vectors of norm 1. {REMEDY}"
        )
