"""The small JSON files of a knowledge base, kept as rows of its collection.

They lie in a partition of their own, which no search looks into: the manifest, what was learnt
(``learnt.json``), the audit (``audit.json``), and the journal of an unfinished build. A long
one is cut into rows of as many characters as Milvus holds in one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mrrag.errors import KnowledgeBaseError
from mrrag.files import MOST_JSON_BYTES
from mrrag.retrieval.address import MilvusCollection
from mrrag.retrieval.manifest import KEPT, MANIFEST, REMEDY, check_manifest
from mrrag.retrieval.milvus_client import (
    FIELDS,
    MOST_TEXT,
    NOTES,
    SECONDS,
    WRITTEN,
    asked,
    connect,
    describe,
    found,
)

__all__ = ["JOURNAL", "Notes", "keep_note", "notes_in", "read_notes", "write_note"]

JOURNAL = "journal.json"
_NAMES = (MANIFEST, *KEPT, JOURNAL)
_ROWS = -(-MOST_JSON_BYTES // MOST_TEXT)  # of one of them, at most


@dataclass(frozen=True)
class Notes:
    """The checked manifest of a collection, and its other notes as they stand there."""

    manifest: dict[str, Any]
    others: Mapping[str, Any] = field(default_factory=dict)


def read_notes(place: MilvusCollection) -> Notes:
    """Connect, and read the notes of a finished knowledge base.

    Raises
    ------
    KnowledgeBaseError
        Where there is none, or the manifest is not what it may be.
    """
    client = connect(place)
    width = describe(client, place)
    with asked(place):
        client.load_collection(place.name, timeout=10 * SECONDS)
    stored = notes_in(client, place)
    if MANIFEST not in stored:
        raise KnowledgeBaseError(
            f"The knowledge base at {place} has no manifest: it was not finished. Build it again."
        )
    manifest = check_manifest(stored[MANIFEST], place, f"the manifest of {place}")
    if width != 2 * manifest["dimension"]:
        raise KnowledgeBaseError(
            f"In the manifest of {place}, dimension is {manifest['dimension']:,}. Allowed: "
            f"{width // 2:,}, half the width of its vectors. {REMEDY}"
        )
    others = {name: stored[name] for name in KEPT if name in stored}
    return Notes(manifest, others)


def notes_in(client: Any, place: MilvusCollection) -> dict[str, Any]:
    """Return the notes of a loaded collection, by name, as JSON values."""
    numbers = range(-_ROWS * len(_NAMES), 0)
    rows = found(client, place, "", ("id", "report", "stamp_size"), NOTES, numbers, **WRITTEN)
    texts: dict[str, dict[int, str]] = {}
    parts: dict[str, int] = {}
    for row in rows:
        name, part = row["id"], (-row["number"] - 1) % _ROWS
        texts.setdefault(name, {})[part] = row["report"]
        if part == 0:
            parts[name] = row["stamp_size"]
    values = {}
    for name, count in parts.items():
        try:
            values[name] = json.loads("".join(texts[name][part] for part in range(count)))
        except (KeyError, ValueError, RecursionError):
            raise KnowledgeBaseError(f"{name} of {place} cannot be read. {REMEDY}") from None
    return values


def write_note(client: Any, place: MilvusCollection, name: str, value: object, width: int) -> None:
    """Write a note in the place of the one of that name."""
    text = json.dumps(value)  # ASCII alone, so that characters are bytes
    pieces = [text[i : i + MOST_TEXT] for i in range(0, len(text), MOST_TEXT)]
    if len(pieces) > _ROWS:
        raise KnowledgeBaseError(
            f"{name} of {place} has {len(text):,} bytes. Allowed: {MOST_JSON_BYTES:,}."
        )
    nothing = {field: "" if kind == "VARCHAR" else 0 for field, (kind, _) in FIELDS.items()}
    first = -1 - _ROWS * _NAMES.index(name)
    rows = [
        nothing
        | {"number": first - part, "vector": [0.0] * width, "first": False}
        | {"id": name, "report": piece, "stamp_size": len(pieces)}
        for part, piece in enumerate(pieces)
    ]
    with asked(place):
        client.upsert(place.name, rows, partition_name=NOTES, timeout=SECONDS)


def keep_note(place: MilvusCollection, name: str, value: object) -> None:
    """Write a note of a finished knowledge base."""
    manifest = read_notes(place).manifest
    write_note(connect(place), place, name, value, 2 * manifest["dimension"])
