"""A knowledge base in Milvus: the same as its folder, whole or not at all, and not trusted."""

from __future__ import annotations

import ast
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apart import run_apart
from tiny_bitower import make_cases, make_loaded_tower
from tiny_milvus import need_milvus

from mrrag.errors import KnowledgeBaseError, SettingsError
from mrrag.retrieval import milvus_build, milvus_client
from mrrag.retrieval.address import MilvusCollection, place_of
from mrrag.retrieval.bi_tower import BiTower
from mrrag.retrieval.build import build_knowledge_base
from mrrag.retrieval.calibration import calibrate, usual_scores
from mrrag.retrieval.copy import copy_knowledge_base
from mrrag.retrieval.encoders import load_encoder
from mrrag.retrieval.knowledge_base import KnowledgeBase, load_encoder_of
from mrrag.retrieval.mcr import retrieve
from mrrag.retrieval.milvus import MilvusBase
from mrrag.retrieval.recall import recall_of
from mrrag.retrieval.votes import BaseRates
from mrrag.types import QueryVectors, Weights

COUNT = 60
LEARNT = {"weights": {"alpha": 0.5, "beta": 0.3, "gamma": 0.2}}


@pytest.fixture(scope="module", autouse=True)
def _milvus() -> None:
    need_milvus()


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> BiTower:
    return make_loaded_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tower: BiTower) -> KnowledgeBase:
    path = tmp_path_factory.mktemp("folder")
    base = build_knowledge_base(path / "kb", make_cases(path, COUNT), tower, thumbnail_size=24)
    (path / "kb" / "learnt.json").write_text(json.dumps(LEARNT))
    return base


@pytest.fixture(scope="module")
def copied(
    tmp_path_factory: pytest.TempPathFactory, folder: KnowledgeBase, tower: BiTower
) -> MilvusBase:
    place = MilvusCollection(str(tmp_path_factory.mktemp("milvus") / "base.db"), "chest")
    base = copy_knowledge_base(folder, place, tower)
    assert isinstance(base, MilvusBase)
    return base


def queries(base: KnowledgeBase, count: int) -> list[QueryVectors]:
    rng = np.random.default_rng(4)
    drawn = rng.normal(size=(count, 2, base.dimension))
    drawn /= np.linalg.norm(drawn, axis=2, keepdims=True)
    return [QueryVectors(*pair) for pair in drawn.astype(np.float32)]


def test_a_collection_holds_what_its_folder_holds(
    folder: KnowledgeBase, copied: MilvusBase
) -> None:
    assert copied.fingerprint == folder.fingerprint
    assert len(copied) == len(folder) == COUNT
    assert list(copied.documents) == list(folder.documents)
    assert copied.documents[3:5] == folder.documents[3:5]
    assert copied.documents[-1] == folder.documents[-1]
    assert copied.notes.others == {"learnt.json": LEARNT}
    numbers = [7, 0, 59, 7]
    assert copied.thumbnails(numbers) == folder.thumbnails(numbers)
    for ours, theirs in zip(copied.vectors(numbers), folder.vectors(numbers), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert copied.vectors([])[0].shape == (0, folder.dimension)
    keys: dict[str, Any] = {"patients": {"p1", "p2"}, "studies": {"s0"}, "ids": {"d8", "none"}}
    assert copied.positions(**keys) == folder.positions(**keys) != []
    assert copied.positions() == []
    assert copied.with_reports_of([0, 3]) == folder.with_reports_of([0, 3])
    every = range(COUNT)
    assert copied.studies_with_reports_of(every) == folder.studies_with_reports_of(every)
    np.testing.assert_array_equal(copied.stamps(), folder.stamps())
    np.testing.assert_array_equal(
        np.asarray(copied.documents.patients), np.asarray(folder.documents.patients)
    )


def test_searches_find_the_same_documents_with_the_same_scores(
    folder: KnowledgeBase, copied: MilvusBase
) -> None:
    rng = np.random.default_rng(0)
    for query in rng.normal(size=(20, 2 * folder.dimension)):
        for k, barred in ((1, ()), (15, range(7)), (COUNT + 9, ())):
            ours, theirs = copied.search(query, k, barred), folder.search(query, k, barred)
            assert ours[0].tolist() == theirs[0].tolist()
            np.testing.assert_array_equal(ours[1], theirs[1])
    ids, scores = copied.search(np.zeros(2 * folder.dimension), 5)
    assert (ids.tolist(), scores.any()) == ([0, 1, 2, 3, 4], False)
    assert recall_of(copied) == recall_of(folder) == 1.0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"exclude_patients": {"p1", "p4"}, "exclude_ids": {"d20"}},
        {"pinned_ids": {"d30", "d3"}, "noise": 2, "seed": 5},
    ],
)
def test_evidence_from_milvus_is_that_from_the_folder(
    folder: KnowledgeBase, copied: MilvusBase, settings: dict[str, Any]
) -> None:
    for n, vectors in enumerate(queries(folder, 8)):
        weights = Weights(*np.random.default_rng(n).uniform(-1, 1, 3).tolist())
        assert retrieve(copied, vectors, weights, 8, **settings) == retrieve(
            folder, vectors, weights, 8, **settings
        )


def test_what_is_usual_is_the_same(folder: KnowledgeBase, copied: MilvusBase) -> None:
    ours, theirs = calibrate(copied), calibrate(folder)
    for field in fields(ours):
        np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name))
    asked = ["pleural effusion"]
    assert BaseRates(copied).of(asked) == BaseRates(folder).of(asked)
    sampled = replace(ours, sample_M=np.arange(20))
    weights, vectors = Weights(0.4, 0.3, 0.3), queries(folder, 1)[0]
    usual = [usual_scores(base, sampled, vectors, weights, 5) for base in (copied, folder)]
    np.testing.assert_allclose(*usual, atol=1e-6)


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.name != "manifest.json"}


def test_a_copy_back_is_the_folder_to_the_byte(
    tmp_path: Path, folder: KnowledgeBase, copied: MilvusBase, tower: BiTower
) -> None:
    back = copy_knowledge_base(copied, tmp_path / "back", tower)
    assert back.fingerprint == folder.fingerprint
    assert isinstance(folder.place, Path)
    ours, theirs = contents(tmp_path / "back"), contents(folder.place)
    assert json.loads(ours.pop("learnt.json")) == json.loads(theirs.pop("learnt.json"))
    assert ours == theirs
    assert load_encoder_of(tmp_path / "back", Path(tower.origin["source"])).name == tower.name
    assert not (tmp_path / ".back.partial").exists()


def test_a_built_collection_is_replaced_and_updated_only_if_asked(
    tmp_path: Path, tower: BiTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = make_cases(tmp_path / "images", 12)
    cases[5].image_path.write_bytes(b"not a picture")
    wanted = build_knowledge_base(tmp_path / "kb", cases, tower)
    place = place_of(f"milvus:{tmp_path}/base.db/chest")
    first = build_knowledge_base(place, cases[:6], tower)
    assert len(first) == 5
    with pytest.raises(KnowledgeBaseError, match="already"):
        build_knowledge_base(place, cases, tower)
    assert KnowledgeBase.load(place, tower).fingerprint == first.fingerprint
    encoded: list[int] = []
    texts = BiTower.texts
    monkeypatch.setattr(BiTower, "texts", lambda self, t: encoded.append(len(t)) or texts(self, t))
    updated = build_knowledge_base(place, cases, tower, update=True)
    assert sum(encoded) == 6  # what was there is taken over
    assert updated.fingerprint == wanted.fingerprint
    assert updated.manifest["skipped"] == {"image cannot be read": ["d5"]}
    again = build_knowledge_base(place, cases[:4], tower, overwrite=True)
    assert [d.id for d in again.documents] == ["d0", "d1", "d2", "d3"]
    client = milvus_client.connect(place)
    assert client.list_collections() == ["chest"]


def build_and_die(directory: Path) -> None:
    milvus_build.INSERTED = 3  # in a process of its own

    def progress(done: int, _: int) -> None:
        if done == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    build_knowledge_base(
        MilvusCollection(str(directory / "base.db"), "chest"),
        make_cases(directory / "images", 12),
        load_encoder(directory / "tower"),
        batch=2,
        progress=progress,
    )


def test_a_killed_build_goes_on_from_where_it_was_and_ends_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = make_loaded_tower(tmp_path / "tower")
    code, error = run_apart(build_and_die, tmp_path)
    assert code == -signal.SIGKILL, error
    cases = make_cases(tmp_path / "images", 12)
    place = MilvusCollection(str(tmp_path / "base.db"), "chest")
    with pytest.raises(KnowledgeBaseError, match="There is no knowledge base"):
        KnowledgeBase.load(place, tower)
    # Killed in the midst of a batch: a row that the journal does not cover.
    partial = milvus_build.partial_of(place)
    client = milvus_client.connect(place)
    client.load_collection(partial.name)
    (row,) = client.query(partial.name, filter="number == 0", output_fields=["*"])
    left_over = row | {"number": 9, "id": "left over"}
    client.insert(partial.name, [left_over], partition_name="documents")
    steps: list[int] = []
    monkeypatch.setattr(milvus_build, "INSERTED", 3)
    built = build_knowledge_base(
        place, cases, tower, batch=2, progress=lambda done, total: steps.append(done)
    )
    assert steps == [8, 10, 12]
    whole = build_knowledge_base(tmp_path / "kb", cases, tower, batch=2)
    assert built.fingerprint == whole.fingerprint
    every = range(len(whole))
    assert built.studies_with_reports_of(every) == whole.studies_with_reports_of(every)


def test_another_index_says_how_much_of_the_best_it_finds(
    tmp_path: Path, folder: KnowledgeBase, tower: BiTower
) -> None:
    place = MilvusCollection(str(tmp_path / "base.db"), "chest")
    for kind in ("IVF_FLAT", "HNSW"):
        base = copy_knowledge_base(folder, place, tower, index=kind, overwrite=True)
        stored = base.manifest["index"]
        assert stored == {"type": kind, "recall": recall_of(base)}
        assert stored["recall"] > 0.9


def changed(base: MilvusBase, number: int, **values: object) -> Callable[[], None]:
    """Change a row behind the knowledge base's back; return what undoes it."""
    client, name = milvus_client.connect(base.place), base.place.name
    part = "documents" if number >= 0 else "notes"
    (row,) = client.query(name, filter=f"number == {number}", output_fields=["*"])
    client.upsert(name, [row | values], partition_name=part)
    return lambda: client.upsert(name, [row], partition_name=part) and None


@pytest.mark.parametrize(
    ("values", "read", "message"),
    [
        ({"patient": ""}, "documents", "document 4 of .* patient is a text of 0 characters"),
        ({"thumbnail": "!"}, "thumbnails", "thumbnail of document 4 .* is not base64"),
        ({"thumbnail": "QUJD"}, "thumbnails", "thumbnail of document 4 .* is no JPEG file"),
        ({"vector": [0.5] * 24}, "vectors", "report vector of document 4 has norm 1.732"),
        ({"vector": [float("nan")] * 24}, "vectors", "report vector of document 4 has norm nan"),
    ],
)
def test_a_row_that_is_not_what_it_may_be_is_refused_when_it_is_read(
    copied: MilvusBase, values: dict[str, object], read: str, message: str
) -> None:
    readers: dict[str, Callable[[], object]] = {
        "documents": lambda: copied.documents.read([3, 4]),
        "thumbnails": lambda: copied.thumbnails([4]),
        "vectors": lambda: copied.vectors([3, 4]),
    }
    undo = changed(copied, 4, **values)
    try:
        with pytest.raises(KnowledgeBaseError, match=message):
            readers[read]()
    finally:
        undo()
    readers[read]()


def test_a_changed_document_is_found_when_it_is_copied(
    tmp_path: Path, copied: MilvusBase, tower: BiTower
) -> None:
    undo = changed(copied, 4, report="Another report.")
    try:
        with pytest.raises(KnowledgeBaseError, match="they have been changed"):
            copy_knowledge_base(copied, tmp_path / "back", tower)
    finally:
        undo()
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "manifest.json of .* cannot be read"),
        ('{"format": 3}', "has format 3, and this version reads up to 2"),
        ('{"format": 2}', "encoder is absent"),
    ],
)
def test_a_damaged_manifest_is_refused(
    copied: MilvusBase, tower: BiTower, text: str, message: str
) -> None:
    undo = changed(copied, -1, report=text)
    try:
        with pytest.raises(KnowledgeBaseError, match=message):
            KnowledgeBase.load(copied.place, tower)
    finally:
        undo()
    KnowledgeBase.load(copied.place, tower)


def test_a_manifest_that_counts_otherwise_or_another_encoder_is_refused(
    tmp_path: Path, copied: MilvusBase, tower: BiTower
) -> None:
    text = json.dumps(dict(copied.manifest) | {"count": COUNT - 1})
    undo = changed(copied, -1, report=text)
    try:
        with pytest.raises(KnowledgeBaseError, match=r"count is 59\. Allowed: 60"):
            KnowledgeBase.load(copied.place, tower)
    finally:
        undo()
    other = make_loaded_tower(tmp_path / "other", seed=1)
    with pytest.raises(KnowledgeBaseError, match=r'"tiny tower 0".*"tiny tower 1".*build'):
        KnowledgeBase.load(copied.place, other)


def test_a_foreign_or_absent_collection_is_refused_and_never_replaced(
    copied: MilvusBase, folder: KnowledgeBase, tower: BiTower
) -> None:
    place = replace(copied.place, name="other")
    client = milvus_client.connect(place)
    with pytest.raises(KnowledgeBaseError, match=r"There is no knowledge base at .*other"):
        KnowledgeBase.load(place, tower)
    client.create_collection("other", dimension=4)
    for attempt in (
        lambda: KnowledgeBase.load(place, tower),
        lambda: copy_knowledge_base(folder, place, tower, overwrite=True),
    ):
        with pytest.raises(KnowledgeBaseError, match="not one of a knowledge base"):
            attempt()
    assert client.has_collection("other")
    client.drop_collection("other")


def test_a_long_note_is_kept_in_pieces(copied: MilvusBase, tower: BiTower) -> None:
    from mrrag.retrieval.milvus_notes import keep_note

    audit = {"words": ["é" * 70_000, "end"]}
    keep_note(copied.place, "audit.json", audit)
    base = KnowledgeBase.load(copied.place, tower)
    assert isinstance(base, MilvusBase)
    assert base.notes.others["audit.json"] == audit
    keep_note(copied.place, "audit.json", {"short": 1})
    again = KnowledgeBase.load(copied.place, tower)
    assert isinstance(again, MilvusBase)
    assert again.notes.others["audit.json"] == {"short": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("milvus:chest", "no address of a collection"),
        ("milvus:base.db/", "no address of a collection"),
        ("milvus:base/chest", "no address of a collection"),
        ("milvus:base.db/1chest", "no address of a collection"),
        ("milvus:http://host:1/a b", "no address of a collection"),
        ("milvus:http://root:secret@host:1/chest", "MRRAG_MILVUS_TOKEN"),
    ],
)
def test_what_is_no_address_of_a_collection_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        place_of(text)
    assert "secret" not in str(error.value)


def test_addresses_of_collections_and_folders_are_told_apart() -> None:
    assert place_of("runs/kb") == Path("runs/kb")
    assert place_of("milvus:a/base.db/chest") == MilvusCollection("a/base.db", "chest")
    server = MilvusCollection("http://host:19530", "chest")
    assert place_of("milvus:http://host:19530/chest") == server
    assert place_of(str(server)) == server
    assert (server.is_file, server.near) == (False, Path())


def test_a_server_that_does_not_answer_is_said(
    tower: BiTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_client, "SECONDS", 1)
    with pytest.raises(KnowledgeBaseError, match="Is the server running"):
        KnowledgeBase.load("milvus:http://127.0.0.1:9/chest", tower)


def test_without_pymilvus_a_sentence_says_what_to_install(
    tower: BiTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(KnowledgeBaseError, match=r"needs the package pymilvus\. Install it: pip"):
        KnowledgeBase.load("milvus:base.db/chest", tower)


def test_pymilvus_is_imported_for_a_collection_only() -> None:
    for path in (Path(__file__).parents[2] / "mrrag").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = ast.unparse(node)
                assert "pymilvus" not in named, path
                assert "grpc" not in named, path
