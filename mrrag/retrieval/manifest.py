"""The manifest of a knowledge base: format, encoder, counts, and what each file must be.

Read without faiss and torch, so that a page can show what it serves before they are loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrrag.errors import KnowledgeBaseError
from mrrag.files import file_sha256

FORMAT = 2  # format 1 has neither splits nor images.npy; it is read too
MANIFEST = "manifest.json"
DOCUMENTS = "documents.jsonl"
VECTORS = "vectors.index"
STAMPS = "images.npy"

# Top-level keys that must be there, and their types.
_KEYS: dict[str, type] = {"encoder": dict, "files": dict, "dimension": int, "count": int}


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read and check the manifest of a knowledge base.

    Raises
    ------
    KnowledgeBaseError
        Where there is none, it is damaged, or its format is a later one.
    """
    path = directory / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        later = manifest["format"] > FORMAT
        if not later:
            _check_keys(manifest)
    except OSError as error:
        raise KnowledgeBaseError(
            f"There is no knowledge base in {directory}: its {MANIFEST} cannot be read "
            f"({error.strerror}). Build one, or give the directory that holds one."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise KnowledgeBaseError(
            f"{path} is not the manifest of a knowledge base ({error!r}). Build it again."
        ) from error
    if later:
        raise KnowledgeBaseError(
            f"The knowledge base in {directory} has format {manifest['format']}, and this version "
            f"reads up to {FORMAT}. Update MR-RAG, or build it again with this version."
        )
    return manifest


def _check_keys(manifest: Mapping[str, Any]) -> None:
    for key, kind in _KEYS.items():
        if not isinstance(manifest[key], kind):
            raise TypeError(f"{key} is not of type {kind.__name__}")
    for key in ("name", "fingerprint"):
        if not isinstance(manifest["encoder"][key], str):
            raise TypeError(f"the encoder's {key} is not of type str")


def check_files(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise KnowledgeBaseError where a file is missing or is not what the manifest says."""
    for name in (DOCUMENTS, VECTORS, *files):
        path = directory / name
        entry = files.get(name)
        if entry is None or Path(name).name != name:
            problem = "is not declared as it should be"
        elif not path.is_file():
            problem = "is absent"
        elif path.stat().st_size != entry.get("bytes"):
            problem = f"has {path.stat().st_size} bytes instead of {entry.get('bytes')}"
        elif file_sha256(path) != entry.get("sha256"):
            problem = "has been changed (its SHA-256 differs)"
        else:
            continue
        raise KnowledgeBaseError(
            f"{name} of the knowledge base in {directory} {problem}. Copy it or build it again."
        )
