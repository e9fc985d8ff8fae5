"""One pass over the documents of a knowledge base, for its manifest.

It gives the counts, and size and SHA-256 of the files that a folder of the same documents has.
So a knowledge base has one fingerprint wherever it is, and a copy is known to be whole.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from mrrag.retrieval.documents import ReadDocument, key_digest
from mrrag.retrieval.draft import line_of, not_in, thumbnail_name
from mrrag.retrieval.manifest import DOCUMENTS, VECTORS
from mrrag.retrieval.vector_index import index_header
from mrrag.types import FloatArray

__all__ = ["survey"]

BLOCK = 512  # documents that are held at a time


class _File:
    """Size and SHA-256 of a file that is not written."""

    def __init__(self) -> None:
        self.bytes, self.sha256 = 0, hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.bytes += len(data)
        self.sha256.update(data)


def survey(
    rows: Callable[[int, int], tuple[list[ReadDocument], FloatArray]],
    count: int,
    width: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Return the manifest's counts and files.

    Parameters
    ----------
    rows
        Returns the documents from one number to another, with their vectors, float32 [N, 2D]
        (:meth:`mrrag.retrieval.knowledge_base.KnowledgeBase.rows`).
    count, width
        Documents, and numbers of a vector.
    """
    files = {DOCUMENTS: _File(), VECTORS: _File()}
    files[VECTORS].write(index_header(count, width))
    patients, studies = np.empty(count, np.int64), np.empty(count, np.int64)
    splits: Counter[str] = Counter()
    sources: Counter[tuple[str, str]] = Counter()
    file, offset = -1, 0
    for start in range(0, count, BLOCK):
        read, vectors_ND = rows(start, min(count, start + BLOCK))
        for i, item in enumerate(read, start):
            if not_in(file, offset, item.jpeg):
                file, offset = file + 1, 0
            files.setdefault(thumbnail_name(file), _File()).write(item.jpeg)
            files[DOCUMENTS].write(line_of(item, file, offset))
            offset += len(item.jpeg)
            document = item.document
            patients[i], studies[i] = key_digest(document.patient), key_digest(document.study)
            splits[document.split] += 1
            sources[document.source, document.licence] += 1
        files[VECTORS].write(vectors_ND.astype("<f2").tobytes())
        progress(start + len(read), count)
    return {
        "count": count,
        "patients": len(np.unique(patients)),
        "studies": len(np.unique(studies)),
        "splits": dict(splits),
        "sources": [{"source": s, "licence": b, "count": n} for (s, b), n in sources.items()],
        "files": {
            name: {"bytes": file.bytes, "sha256": file.sha256.hexdigest()}
            for name, file in files.items()
        },
    }
