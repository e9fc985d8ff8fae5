"""A knowledge base on disk: whole or not at all, and searched exactly.

What is refused on loading is in test_manifest.py.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from apart import run_apart
from tiny_bitower import make_cases, make_loaded_tower, make_tower

from mrrag.data.images import load_image
from mrrag.data.records import Record
from mrrag.errors import KnowledgeBaseError
from mrrag.retrieval import folder as module
from mrrag.retrieval.bi_tower import BiTower
from mrrag.retrieval.build import build_knowledge_base, build_share
from mrrag.retrieval.encoders import load_encoder
from mrrag.retrieval.knowledge_base import KnowledgeBase


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> BiTower:
    return make_loaded_tower(tmp_path_factory.mktemp("tower"))


def test_documents_thumbnails_and_vectors_come_back(tmp_path: Path, tower: BiTower) -> None:
    cases = make_cases(tmp_path, 9)
    steps: list[tuple[int, int]] = []
    built = build_knowledge_base(
        tmp_path / "kb", cases, tower, batch=4, progress=lambda *step: steps.append(step)
    )
    assert steps == [(4, 9), (8, 9), (9, 9)]
    loaded = KnowledgeBase.load(tmp_path / "kb", tower)
    assert loaded.fingerprint == built.fingerprint
    assert len(loaded) == 9
    assert list(loaded.documents) == [case.document for case in cases]
    assert loaded.documents[2:4] == [cases[2].document, cases[3].document]
    assert loaded.documents[-1] == cases[-1].document
    t, v = loaded.vectors(range(9))
    images = [load_image(case.image_path) for case in cases]
    np.testing.assert_allclose(t, tower.texts([d.report for d in loaded.documents]), atol=5e-4)
    np.testing.assert_allclose(v, tower.images(images), atol=5e-4)
    for i in range(9):
        assert loaded.document(i) == cases[i].document
        assert loaded.thumbnail(i).startswith(b"\xff\xd8\xff")
        assert loaded.thumbnail(i).endswith(b"\xff\xd9")
    assert loaded.positions(patients={"p1"}, studies={"s0"}, ids={"d8"}) == [0, 2, 3, 8]
    assert loaded.vectors([])[0].shape == (0, tower.dimension)
    assert {(s["source"], s["count"]) for s in loaded.manifest["sources"]} == {
        ("drawn", 3),
        ("made up", 6),
    }
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".png")) == ["kb"]


def test_thumbnails_are_cut_into_files_below_the_limit(
    tmp_path: Path, tower: BiTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrrag.retrieval.draft.THUMBNAIL_FILE_BYTES", 2500)
    built = build_knowledge_base(tmp_path / "kb", make_cases(tmp_path, 9), tower, thumbnail_size=24)
    files = sorted((tmp_path / "kb").glob("thumbnails-*.bin"))
    assert len(files) > 1
    assert all(f.stat().st_size <= 2500 for f in files)
    assert all(built.thumbnail(i).startswith(b"\xff\xd8\xff") for i in range(9))


def test_search_is_exact_and_leaves_out_who_is_excluded(tmp_path: Path, tower: BiTower) -> None:
    built = build_knowledge_base(tmp_path / "kb", make_cases(tmp_path, 40), tower)
    both = np.concatenate(built.vectors(range(40)), axis=1).astype(np.float64)
    rng = np.random.default_rng(0)
    for scale in (1.0, -1.0, 1e-4, 300.0):
        query = scale * rng.normal(size=2 * tower.dimension)
        exact = (both * query).sum(axis=1)
        order = sorted(range(40), key=lambda i: (-exact[i], i))
        for k in (1, 7, 40, 60):
            ids, scores = built.search(query, k)
            assert ids.tolist() == order[:k]
            np.testing.assert_array_equal(scores, exact[ids])
        barred = set(order[:5])
        assert built.search(query, 3, barred)[0].tolist() == order[5:8]
    ids, scores = built.search(np.zeros(2 * tower.dimension), 5)
    assert ids.tolist() == [0, 1, 2, 3, 4]
    assert not scores.any()


def test_equal_documents_score_alike_in_document_order(tmp_path: Path, tower: BiTower) -> None:
    built = build_knowledge_base(tmp_path / "kb", make_cases(tmp_path, 12), tower, batch=5)
    query = np.concatenate(built.vectors([11]), axis=1)[0]
    ids, scores = built.search(query, 2)
    assert ids.tolist() == [10, 11]
    assert scores[0] == scores[1]


def test_wrong_encoder_is_refused_by_both_names(tmp_path: Path, tower: BiTower) -> None:
    build_knowledge_base(tmp_path / "kb", make_cases(tmp_path, 3), tower)
    other = make_loaded_tower(tmp_path / "other", seed=1)
    with pytest.raises(KnowledgeBaseError, match=r'"tiny tower 0".*"tiny tower 1".*build'):
        KnowledgeBase.load(tmp_path / "kb", other)
    with pytest.raises(KnowledgeBaseError, match="not read from disk"):
        build_knowledge_base(tmp_path / "kb2", make_cases(tmp_path, 3), make_tower())


@pytest.mark.parametrize("name", ["documents.jsonl", "vectors.index", "thumbnails-000.bin"])
def test_damaged_files_are_refused(tmp_path: Path, tower: BiTower, name: str) -> None:
    build_knowledge_base(tmp_path / "kb", make_cases(tmp_path, 3), tower)
    path = tmp_path / "kb" / name
    whole = path.read_bytes()
    for damaged, message in (
        (whole[:-7], f"{name} .* has {len(whole) - 7} bytes instead of {len(whole)}"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), f"{name} .* has been changed"),
        (None, f"{name} .* is absent"),
    ):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        else:
            path.unlink(missing_ok=True)
        with pytest.raises(KnowledgeBaseError, match=message):
            KnowledgeBase.load(tmp_path / "kb", tower)
        path.write_bytes(whole)
    KnowledgeBase.load(tmp_path / "kb", tower)


def test_a_build_that_stops_leaves_no_knowledge_base_and_harms_none(
    tmp_path: Path, tower: BiTower
) -> None:
    cases = make_cases(tmp_path / "images", 6)

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_knowledge_base(tmp_path / "kb", cases, tower, batch=2, progress=stop)
    with pytest.raises(KnowledgeBaseError, match="There is no knowledge base"):
        KnowledgeBase.load(tmp_path / "kb", tower)

    before = build_knowledge_base(tmp_path / "kb", cases[:3], tower)
    with pytest.raises(KeyboardInterrupt):
        build_knowledge_base(tmp_path / "kb", cases, tower, batch=2, overwrite=True, progress=stop)
    assert KnowledgeBase.load(tmp_path / "kb", tower).fingerprint == before.fingerprint


def test_what_a_killed_build_leaves_cannot_be_loaded(tmp_path: Path, tower: BiTower) -> None:
    seen: list[Path] = []

    def look(done: int, total: int) -> None:
        (partial,) = tmp_path.glob(".kb.partial")
        seen.append(partial)
        with pytest.raises(KnowledgeBaseError, match="There is no knowledge base"):
            KnowledgeBase.load(partial, tower)

    build_knowledge_base(tmp_path / "kb", make_cases(tmp_path, 4), tower, batch=2, progress=look)
    assert len(seen) == 2
    assert not seen[0].exists()


def test_only_a_knowledge_base_is_replaced_and_only_if_asked(
    tmp_path: Path, tower: BiTower
) -> None:
    cases = make_cases(tmp_path / "images", 4)
    (tmp_path / "kb").mkdir()
    build_knowledge_base(tmp_path / "kb", cases[:2], tower)
    with pytest.raises(KnowledgeBaseError, match="already"):
        build_knowledge_base(tmp_path / "kb", cases, tower)
    assert len(build_knowledge_base(tmp_path / "kb", cases, tower, overwrite=True)) == 4
    with pytest.raises(KnowledgeBaseError, match="not a knowledge base"):
        build_knowledge_base(tmp_path / "images", cases, tower, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "kb"]


def test_cases_that_cannot_be_built_in_are_listed_or_refused(
    tmp_path: Path, tower: BiTower
) -> None:
    cases = make_cases(tmp_path, 3)
    cases[1].image_path.write_bytes(b"not a picture")
    built = build_knowledge_base(tmp_path / "kb", cases, tower)
    assert [d.id for d in built.documents] == ["d0", "d2"]
    assert built.manifest["skipped"] == {"image cannot be read": ["d1"]}
    with pytest.raises(KnowledgeBaseError, match="None of 1 cases"):
        build_knowledge_base(tmp_path / "kb2", cases[1:2], tower)
    with pytest.raises(KnowledgeBaseError, match="more than once, such as d2"):
        build_knowledge_base(tmp_path / "kb2", [cases[2], cases[2]], tower)
    assert not (tmp_path / "kb2").exists()


def build_and_die(directory: Path, at: int, update: bool) -> None:
    def progress(done: int, _: int) -> None:
        if done >= at:
            os.kill(os.getpid(), signal.SIGKILL)

    build_knowledge_base(
        directory / "kb",
        make_cases(directory / "images", 12),
        load_encoder(directory / "tower"),
        batch=2,
        update=update,
        progress=progress,
    )


def kill_a_build(directory: Path, at: int, update: bool = False) -> None:
    code, error = run_apart(build_and_die, directory, at, update)
    assert code == -signal.SIGKILL, error


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def test_a_killed_build_goes_on_from_where_it_was_and_ends_alike(tmp_path: Path) -> None:
    tower = make_loaded_tower(tmp_path / "tower")
    cases = make_cases(tmp_path / "images", 12)
    cases[5].image_path.write_bytes(b"not a picture")
    whole = contents(build_knowledge_base(tmp_path / "whole", cases, tower, batch=2).directory)

    make_cases(tmp_path / "images", 12)  # as the other process makes them
    kill_a_build(tmp_path, at=8)
    partial = tmp_path / ".kb.partial"
    assert not (tmp_path / "kb").exists()
    with pytest.raises(KnowledgeBaseError, match="There is no knowledge base"):
        KnowledgeBase.load(partial, tower)
    # Killed in the midst of a batch: some of its bytes are there, and half a line.
    for name in ("documents.jsonl", "rows.f16", "thumbnails-000.bin", "journal.jsonl"):
        with (partial / name).open("ab") as stream:
            stream.write(b'{"cases": 9')
    steps: list[tuple[int, int]] = []
    again = build_knowledge_base(
        tmp_path / "kb",
        make_cases(tmp_path / "images", 12),
        tower,
        batch=2,
        progress=lambda *step: steps.append(step),
    )
    assert steps == [(8, 12), (10, 12), (12, 12)]
    undisturbed = build_knowledge_base(
        tmp_path / "other", make_cases(tmp_path / "images", 12), tower, batch=2
    )
    assert again.fingerprint == undisturbed.fingerprint
    ours, theirs = contents(again.directory), contents(undisturbed.directory)
    assert ours.keys() == theirs.keys() == whole.keys()
    assert all(ours[name] == theirs[name] for name in ours if name != "images.npy")
    assert not partial.exists()


@pytest.mark.parametrize("damage", ["plan.json", "journal.jsonl", "rows.f16"])
def test_what_a_damaged_journal_does_not_vouch_for_is_encoded_again(
    tmp_path: Path, tower: BiTower, damage: str
) -> None:
    cases = make_cases(tmp_path / "images", 8)

    def stop(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    whole = build_knowledge_base(tmp_path / "whole", cases, tower, batch=2)
    with pytest.raises(KeyboardInterrupt):
        build_knowledge_base(tmp_path / "kb", cases, tower, batch=2, progress=stop)
    path = tmp_path / ".kb.partial" / damage
    path.write_bytes(path.read_bytes()[:-60])
    steps: list[int] = []
    again = build_knowledge_base(
        tmp_path / "kb", cases, tower, batch=2, progress=lambda done, _: steps.append(done)
    )
    assert steps[0] == {"plan.json": 2, "journal.jsonl": 4, "rows.f16": 4}[damage]
    assert again.fingerprint == whole.fingerprint


def test_another_build_does_not_go_on_from_a_stopped_one(tmp_path: Path, tower: BiTower) -> None:
    cases = make_cases(tmp_path / "images", 6)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for change in ({}, {"thumbnail_size": 16}):
        with pytest.raises(KeyboardInterrupt):
            build_knowledge_base(tmp_path / "kb", cases, tower, batch=2, progress=stop)
        fewer = cases if change else cases[:5]
        steps: list[int] = []
        build_knowledge_base(
            tmp_path / "kb",
            fewer,
            tower,
            batch=2,
            overwrite=True,
            progress=lambda done, _, steps=steps: steps.append(done),
            **change,
        )
        assert steps[0] == 2
        shutil.rmtree(tmp_path / "kb")


class Counting:
    """An encoder that counts what it encodes."""

    def __init__(self, tower: BiTower) -> None:
        self.tower, self.texts_read, self.images_read = tower, 0, 0
        self.name, self.fingerprint = tower.name, tower.fingerprint
        self.origin, self.dimension, self.prepare = tower.origin, tower.dimension, tower.prepare

    def texts(self, texts: list[str]) -> np.ndarray:
        self.texts_read += len(texts)
        return self.tower.texts(texts)

    def encode_prepared(self, pixels: np.ndarray) -> np.ndarray:
        self.images_read += len(pixels)
        return self.tower.encode_prepared(pixels)


def test_an_update_adds_and_removes_and_encodes_nothing_else(
    tmp_path: Path, tower: BiTower
) -> None:
    cases = make_cases(tmp_path / "images", 14)
    build_knowledge_base(tmp_path / "kb", cases[:10], tower, batch=4)
    changed = replace(cases[3], document=replace(cases[3].document, report="no effusion"))
    cases[7].image_path.write_bytes(cases[8].image_path.read_bytes())
    wanted = [cases[0], *cases[2:3], changed, *cases[4:8], *cases[9:]]
    counting = Counting(tower)
    updated = build_knowledge_base(tmp_path / "kb", wanted, counting, batch=4, update=True)
    assert list(updated.documents) == [case.document for case in wanted]
    assert (counting.texts_read, counting.images_read) == (6, 6)  # one changed each, four new
    fresh = build_knowledge_base(tmp_path / "fresh", wanted, tower, batch=4)
    for ours, theirs in zip(
        updated.vectors(range(len(wanted))), fresh.vectors(range(len(wanted))), strict=True
    ):
        # A text in a batch of longer ones is padded: the last bit may differ.
        np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert [updated.thumbnail(i) for i in range(12)] == [fresh.thumbnail(i) for i in range(12)]
    # Once more: nothing is left to encode, and nothing changes.
    counting = Counting(tower)
    again = build_knowledge_base(tmp_path / "kb", wanted, counting, batch=4, update=True)
    assert (counting.texts_read, counting.images_read) == (0, 0)
    assert again.fingerprint == updated.fingerprint
    # Where the images' times are not known, all is encoded: nothing is taken on trust.
    (tmp_path / "kb" / "images.npy").unlink()
    counting = Counting(tower)
    build_knowledge_base(tmp_path / "kb", wanted, counting, batch=4, update=True)
    assert counting.images_read == len(wanted)
    with pytest.raises(KnowledgeBaseError, match="There is no knowledge base"):
        build_knowledge_base(tmp_path / "nowhere", wanted, tower, update=True)


def test_views_are_stored_and_an_update_changes_them_without_encoding(
    tmp_path: Path, tower: BiTower
) -> None:
    cases = make_cases(tmp_path, 3)
    build_knowledge_base(tmp_path / "kb", cases, tower)
    views = ("frontal", "lateral", "")
    viewed = [
        replace(case, document=replace(case.document, view=view))
        for case, view in zip(cases, views, strict=True)
    ]
    counting = Counting(tower)
    build_knowledge_base(tmp_path / "kb", viewed, counting, update=True)
    loaded = KnowledgeBase.load(tmp_path / "kb", tower)
    assert tuple(document.view for document in loaded.documents) == views
    assert counting.images_read == 0


def test_a_killed_update_leaves_the_old_one_and_goes_on(tmp_path: Path) -> None:
    tower = make_loaded_tower(tmp_path / "tower")
    cases = make_cases(tmp_path / "images", 12)
    before = build_knowledge_base(tmp_path / "kb", cases[4:], tower, batch=2)
    kill_a_build(tmp_path, at=6, update=True)
    assert KnowledgeBase.load(tmp_path / "kb", tower).fingerprint == before.fingerprint
    steps: list[int] = []
    after = build_knowledge_base(
        tmp_path / "kb",
        cases,
        tower,
        batch=2,
        update=True,
        progress=lambda done, _: steps.append(done),
    )
    assert steps == [6, 8, 10, 12]
    assert list(after.documents) == [case.document for case in cases]


def test_other_processes_give_what_this_one_gives(tmp_path: Path, tower: BiTower) -> None:
    cases = make_cases(tmp_path / "images", 30)
    cases[4].image_path.write_bytes(b"not a picture")
    cases[11] = replace(cases[11], document=replace(cases[11].document, report=" "))
    alone = build_knowledge_base(tmp_path / "alone", cases, tower, batch=4, workers=0)
    shared = build_knowledge_base(tmp_path / "shared", cases, tower, batch=4, workers=3)
    assert alone.fingerprint == shared.fingerprint
    assert shared.manifest["skipped"] == {"image cannot be read": ["d4"], "no report": ["d11"]}


def test_two_builds_do_not_write_to_one_place(tmp_path: Path, tower: BiTower) -> None:
    cases = make_cases(tmp_path / "images", 4)

    def another(done: int, total: int) -> None:
        with pytest.raises(KnowledgeBaseError, match="Another build is at work"):
            build_knowledge_base(tmp_path / "kb", cases, tower)

    assert len(build_knowledge_base(tmp_path / "kb", cases, tower, progress=another)) == 4


def build_within(directory: Path, cases: Sequence[Record], limit: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    build_knowledge_base(directory / "kb", cases, load_encoder(directory / "tower"), batch=2)


def test_a_full_disk_is_a_sentence_and_loses_nothing(tmp_path: Path) -> None:
    tower = make_loaded_tower(tmp_path / "tower")
    cases = make_cases(tmp_path / "images", 12)
    whole = build_knowledge_base(tmp_path / "whole", cases, tower, batch=2)
    # A limit on the size of files stands in for the disk: writing fails as it does there.
    limit = sum(len(whole.thumbnail(i)) for i in range(12)) * 3 // 4
    _, error = run_apart(build_within, tmp_path, cases, limit)
    assert "KnowledgeBaseError: There is no room left" in error
    assert not (tmp_path / "kb").exists()
    steps: list[int] = []
    again = build_knowledge_base(
        tmp_path / "kb",
        make_cases(tmp_path / "images", 12),
        tower,
        batch=2,
        progress=lambda done, _: steps.append(done),
    )
    assert steps[0] > 2
    assert again.fingerprint == whole.fingerprint


def test_a_scan_by_several_cores_is_a_scan_by_one(
    tmp_path: Path, tower: BiTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build_knowledge_base(tmp_path / "kb", make_cases(tmp_path, 41), tower)
    rng = np.random.default_rng(5)
    queries = rng.normal(size=(6, 2 * tower.dimension))
    queries[0] = 0  # all alike: document order decides
    alone = [built.search(q, k, {3, 4}) for q in queries for k in (1, 9, 39)]
    monkeypatch.setattr(module, "SHARED_SCAN", 0)
    for cores in (2, 3, 64):
        monkeypatch.setattr(module.os, "cpu_count", lambda cores=cores: cores)
        shared = [built.search(q, k, {3, 4}) for q in queries for k in (1, 9, 39)]
        for (ids, scores), (other_ids, other_scores) in zip(alone, shared, strict=True):
            assert ids.tolist() == other_ids.tolist()
            np.testing.assert_array_equal(scores, other_scores)


def test_splits_studies_and_patients_are_kept(tmp_path: Path, tower: BiTower) -> None:
    cases = [
        replace(c, document=replace(c.document, split="train" if n % 3 else "test"))
        for n, c in enumerate(make_cases(tmp_path, 6))
    ]
    built = build_knowledge_base(tmp_path / "kb", cases, tower)
    assert [d.split for d in built.documents] == [c.split for c in cases]
    assert built.manifest["splits"] == {"test": 2, "train": 4}
    assert (built.manifest["patients"], built.manifest["studies"]) == (3, 6)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_shares_are_joined_to_what_one_process_builds(
    tmp_path: Path, tower: BiTower, count: int
) -> None:
    cases = make_cases(tmp_path / "images", 21)
    cases[5].image_path.write_bytes(b"not a picture")
    build_knowledge_base(tmp_path / "one", cases, tower, batch=4)
    counting = Counting(tower)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # before they are joined
        build_share(tmp_path / "many", cases, counting, (0, count), stop, batch=4)
    for number in reversed(range(count)):  # the first joins
        built = build_share(
            tmp_path / "many", cases, counting, (number, count), lambda: None, batch=4
        )
        assert (built is None) == (number > 0)
    assert counting.images_read == 20
    assert {p.name: p.read_bytes() for p in (tmp_path / "many").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "one").iterdir()
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "many", "one"]
    with pytest.raises(KnowledgeBaseError, match="already"):
        build_share(tmp_path / "many", cases, tower, (1, 2), lambda: None)
    (tmp_path / "many" / "learnt.json").write_text("what was learnt on it")
    build_share(tmp_path / "many", cases[:9], counting, (1, 2), lambda: None, batch=4, update=True)
    build_share(tmp_path / "many", cases[:9], counting, (0, 2), lambda: None, batch=4, update=True)
    assert counting.images_read == 20
    assert len(KnowledgeBase.load(tmp_path / "many", tower)) == 8
    assert (tmp_path / "many" / "learnt.json").read_text() == "what was learnt on it"
