"""Copy a knowledge base from a folder to a collection of Milvus, back, or among either.

A copy that was stopped resumes. It ends with the same documents, numbers and fingerprint; a
source that is not what its manifest declares is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mrrag.errors import KnowledgeBaseError
from mrrag.files import read_json, write_atomic
from mrrag.retrieval import place as folder_place
from mrrag.retrieval.address import MilvusCollection, Place
from mrrag.retrieval.build import clear_draft, digests_of, write_index, write_manifest
from mrrag.retrieval.draft import Draft
from mrrag.retrieval.encoders import Encoder, describe_encoder
from mrrag.retrieval.knowledge_base import KnowledgeBase, fingerprint_of
from mrrag.retrieval.manifest import FORMAT, KEPT, REMEDY

__all__ = ["copy_knowledge_base", "note_of"]

BLOCK = 512  # documents that are held at a time

OnProgress = Callable[[int, int], None]


def copy_knowledge_base(
    source: KnowledgeBase,
    place: Place,
    encoder: Encoder,
    *,
    index: str = "FLAT",
    overwrite: bool = False,
    progress: OnProgress = lambda done, total: None,
) -> KnowledgeBase:
    """Write a knowledge base to another place, all or nothing; return the copy.

    Parameters
    ----------
    encoder
        With which it was built.
    index
        Of a collection of Milvus: a key of :data:`mrrag.retrieval.milvus_client.INDEXES`.
    overwrite
        Replace an existing knowledge base; anything else is never replaced.
    progress
        Called with (done, total) as documents are copied, and once more as they are checked.

    Raises
    ------
    KnowledgeBaseError
        Where ``place`` is taken, or the source is not what its manifest declares.
    """
    if isinstance(place, Path):
        return _to_folder(source, place, encoder, overwrite, progress)
    return _to_collection(source, place, encoder, index, overwrite, progress)


def note_of(place: Place, name: str) -> Any:
    """Return a note of a knowledge base as a JSON value, or None; ``name`` is one of KEPT."""
    if isinstance(place, MilvusCollection):
        from mrrag.retrieval.milvus_notes import read_notes

        return read_notes(place).others.get(name)
    if not (place / name).is_file():
        return None
    return read_json(
        place / name, lambda why: KnowledgeBaseError(f"{place / name} cannot be read ({why}).")
    )


def _kept(source: KnowledgeBase) -> dict[str, Any]:
    notes = {name: note_of(source.place, name) for name in KEPT}
    return {name: value for name, value in notes.items() if value is not None}


def _manifest_of(source: KnowledgeBase) -> dict[str, Any]:
    """Return what a copy's manifest takes over."""
    own = ("index", "encoder", "files", "format")
    taken = {name: value for name, value in source.manifest.items() if name not in own}
    return {"format": FORMAT, **taken}


def _to_folder(
    source: KnowledgeBase, place: Path, encoder: Encoder, overwrite: bool, progress: OnProgress
) -> KnowledgeBase:
    folder_place.check_free(place, overwrite)
    hidden = place.with_name(f".{place.name}.partial")
    hidden.mkdir(parents=True, exist_ok=True)
    with folder_place.one_build(place), folder_place.stopped_in_words(hidden):
        draft = Draft(hidden, f"copy of {source.fingerprint}", 2 * source.dimension)
        try:
            for start in range(draft.step.documents, len(source), BLOCK):
                stop = min(len(source), start + BLOCK)
                draft.add(*source.rows(start, stop))
                draft.commit(stop, {})
                progress(stop, len(source))
            draft.close()
            write_index(draft)
            files = digests_of(draft)
            _check_same(source, {"files": files})
            write_manifest(
                draft,
                _manifest_of(source)
                | {"encoder": describe_encoder(encoder, hidden), "files": files},
            )
        except KnowledgeBaseError:
            shutil.rmtree(hidden)
            raise
        finally:
            draft.abandon()
        for name, value in _kept(source).items():
            write_atomic(hidden / name, json.dumps(value, indent=2) + "\n")
        folder_place.put_in_place(hidden, place)
    clear_draft(place)
    return KnowledgeBase.load(place, encoder)


def _check_same(source: KnowledgeBase, copied: Mapping[str, Any]) -> None:
    """Raise KnowledgeBaseError where a collection does not hold what its manifest declares.

    The files of a folder are checked when it is loaded.
    """
    if not isinstance(source.place, Path) and fingerprint_of(copied) != source.fingerprint:
        raise KnowledgeBaseError(
            f"The documents of {source.place} are not those that its manifest declares: they have "
            f"been changed. {REMEDY}"
        )


def _to_collection(
    source: KnowledgeBase,
    place: MilvusCollection,
    encoder: Encoder,
    index: str,
    overwrite: bool,
    progress: OnProgress,
) -> KnowledgeBase:
    from mrrag.retrieval.milvus_build import (  # pymilvus may not be installed
        CollectionDraft,
        check_free,
        finish,
        partial_of,
    )

    check_free(place, overwrite)
    plan = f"copy of {source.fingerprint} {index}"
    draft = CollectionDraft(partial_of(place), plan, 2 * source.dimension, index, len(source))
    for start in range(draft.step.documents, len(source), BLOCK):
        stop = min(len(source), start + BLOCK)
        draft.add(*source.rows(start, stop))
        draft.commit(stop, {})
        progress(stop, len(source))
    draft.flush()
    return finish(draft, place, _manifest_of(source), _kept(source), encoder, progress)
