"""The manifest of a knowledge base: format, encoder, counts, and what each file must be.

Read without faiss and torch, from a folder at least, so that a page can show what it serves
before they are loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrrag.errors import KnowledgeBaseError
from mrrag.files import file_sha256, read_json
from mrrag.retrieval.address import Place
from mrrag.schema import Items, Kind, Number, Record, Table, Text, Whole, refusing_fields

FORMAT = 2  # format 1 has neither splits nor images.npy; it is read too
MANIFEST = "manifest.json"
DOCUMENTS = "documents.jsonl"
VECTORS = "vectors.index"
STAMPS = "images.npy"
# Further files that are kept with a knowledge base, and go along when it is copied.
KEPT = ("learnt.json", "audit.json")

REMEDY = "Build the knowledge base again, or get an undamaged copy."
MOST_DOCUMENTS = 10_000_000_000
_COUNT = Whole(0, MOST_DOCUMENTS)
# A folder is kept relative to the knowledge base; anything else is a name of the hub.
_PLACE = Text(
    pattern=r"\.{1,2}(/[^\0]*)?|[A-Za-z0-9][\w.-]*/[\w.-]+",
    what="a path that starts with ./ or ../, or a name of the hub (owner/name)",
)
_FILE_NAME = Text(
    pattern=r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*",
    most=100,
    what="a file's name alone, of letters, digits, dots and dashes",
)
_ENCODER = Record(
    {"name": Text(1, 500), "fingerprint": Text(1, 200)},
    {"source": _PLACE, "base": _PLACE, "revision": Text(1, 200)},
)
_FILE = Record(
    {
        "bytes": Whole(0, 2**50),
        "sha256": Text(pattern="[0-9a-f]{64}", what="64 hexadecimal digits"),
    },
    closed=True,
)
_SPREAD = Record({name: Number(0, 2) for name in ("alpha", "beta", "gamma")})
_SOURCE = Record({"source": Text(), "licence": Text()}, {"count": _COUNT})
# A field that is not described here is not read: it is left out.
_FIELDS: dict[str, Kind] = {
    "format": Whole(1, FORMAT),
    "encoder": _ENCODER,
    "dimension": Whole(1, 65_536),
    "count": Whole(1, MOST_DOCUMENTS),
    "files": Table(_FILE_NAME, _FILE, most=100_000),
}
_OPTIONAL: dict[str, Kind] = {
    "patients": _COUNT,
    "studies": _COUNT,
    "splits": Table(Text(), _COUNT),
    "vectors": Text(),
    "thumbnail_size": Whole(1, 65_535),
    "sources": Items(_SOURCE),
    "skipped": Table(Text(), Items(Text(), most=MOST_DOCUMENTS)),
    "spread": _SPREAD,
    # Of a collection of Milvus alone.
    "index": Record({"type": Text(1, 100)}, {"recall": Number(0, 1)}),
}


def manifest_of(place: Place) -> dict[str, Any]:
    """Read the manifest of a folder or a collection, and check every field."""
    if isinstance(place, Path):
        return read_manifest(place)
    from mrrag.retrieval.milvus_notes import read_notes  # pymilvus may not be installed

    return read_notes(place).manifest


def files_of(place: Place | None) -> Path | Mapping[str, Any] | None:
    """Return a folder as it is; of a collection, its JSON files as values by name."""
    if place is None or isinstance(place, Path):
        return place
    from mrrag.retrieval.milvus_notes import read_notes  # pymilvus may not be installed

    notes = read_notes(place)
    return {**notes.others, MANIFEST: notes.manifest}


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read the manifest of a knowledge base, and check every field.

    Raises
    ------
    KnowledgeBaseError
        Where there is none, it is damaged, or its format is a later one.
    """
    path = directory / MANIFEST

    def refuse(why: str) -> KnowledgeBaseError:
        if path.exists():
            return KnowledgeBaseError(
                f"{path} cannot be read ({why}). Allowed: the manifest of a knowledge base. "
                f"{REMEDY}"
            )
        return KnowledgeBaseError(
            f"There is no knowledge base in {directory}: its {MANIFEST} cannot be read "
            f"({why}). Build one, or give the directory that holds one."
        )

    _check_inside(path, directory)
    return check_manifest(read_json(path, refuse), directory, str(path))


def check_manifest(stored: object, place: Place, name: str) -> dict[str, Any]:
    """Return a manifest with every field checked.

    Parameters
    ----------
    place, name
        The knowledge base and its manifest, for the error.
    """
    later = stored.get("format") if isinstance(stored, Mapping) else None
    if type(later) is int and FORMAT < later < 1000:
        raise KnowledgeBaseError(
            f"The knowledge base in {place} has format {later}, and this version "
            f"reads up to {FORMAT}. Update MR-RAG, or build it again with this version."
        )
    with refusing_fields(name, REMEDY, KnowledgeBaseError):
        return Record(_FIELDS, _OPTIONAL).check(stored)


def check_files(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise KnowledgeBaseError where a file is missing or is not what the manifest says."""
    for name in (DOCUMENTS, VECTORS, *files):
        path = directory / name
        entry = files.get(name)
        if entry is None:
            problem = "is not declared in its manifest"
        elif not path.is_file():
            problem = "is absent, or is no file"
        elif path.stat().st_size != entry["bytes"]:
            problem = f"has {path.stat().st_size} bytes instead of {entry['bytes']}"
        else:
            _check_inside(path, directory)
            if file_sha256(path) == entry["sha256"]:
                continue
            problem = "has been changed (its SHA-256 differs)"
        raise KnowledgeBaseError(
            f"{name} of the knowledge base in {directory} {problem}. Copy it or build it again."
        )


def _check_inside(path: Path, directory: Path) -> None:
    # Path.resolve raises for a link to itself.
    if Path(os.path.realpath(path)).parent != Path(os.path.realpath(directory)):
        raise KnowledgeBaseError(
            f"{path} is a link to a file outside of the knowledge base. Its files must lie in its "
            "own folder. Copy the file itself there."
        )
