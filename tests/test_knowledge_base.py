"""A knowledge base on disk: whole or not at all, and searched exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_bitower import make_cases, make_loaded_tower, make_tower

from mrrag import knowledge_base as module
from mrrag.encoders import BiTower
from mrrag.errors import KnowledgeBaseError
from mrrag.images import load_image
from mrrag.knowledge_base import KnowledgeBase, build_knowledge_base


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
    assert loaded.documents == tuple(case.document for case in cases)
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
    calibration = loaded.manifest["calibration"]
    for name in ("image_report", "image_image"):
        assert len(calibration[name]) == len(calibration["percentiles"])
        assert calibration[name] == sorted(calibration[name])
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".png")) == ["kb"]


def test_thumbnails_are_cut_into_files_below_the_limit(
    tmp_path: Path, tower: BiTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "THUMBNAIL_FILE_BYTES", 2500)
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


def test_damaged_manifest_is_refused(tmp_path: Path, tower: BiTower) -> None:
    build_knowledge_base(tmp_path / "kb", make_cases(tmp_path, 3), tower)
    path = tmp_path / "kb" / "manifest.json"
    manifest = json.loads(path.read_text())
    files = manifest["files"]
    undeclared = {name: entry for name, entry in files.items() if name != "documents.jsonl"}
    outside = {**files, "../0.png": {"bytes": 1, "sha256": ""}}
    for damage, message in (
        ("{", "not the manifest"),
        ("[]", "not the manifest"),
        (json.dumps({"format": 1}), "not the manifest"),
        (json.dumps({**manifest, "format": 2}), "has format 2.*Update MR-RAG"),
        (json.dumps({**manifest, "count": 4}), "do not fit"),
        (json.dumps({**manifest, "dimension": 5}), "do not fit"),
        (json.dumps({**manifest, "files": undeclared}), "documents.jsonl .* not declared"),
        (json.dumps({**manifest, "files": outside}), r"\.\./0.png .* not declared"),
    ):
        path.write_text(damage)
        with pytest.raises(KnowledgeBaseError, match=message):
            KnowledgeBase.load(tmp_path / "kb", tower)
    with pytest.raises(KnowledgeBaseError, match="There is no knowledge base"):
        KnowledgeBase.load(tmp_path / "nowhere", tower)


def test_a_build_that_stops_leaves_nothing_and_harms_nothing(
    tmp_path: Path, tower: BiTower
) -> None:
    cases = make_cases(tmp_path / "images", 6)

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_knowledge_base(tmp_path / "kb", cases, tower, batch=2, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["images"]

    before = build_knowledge_base(tmp_path / "kb", cases[:3], tower)
    with pytest.raises(KeyboardInterrupt):
        build_knowledge_base(tmp_path / "kb", cases, tower, batch=2, overwrite=True, progress=stop)
    assert KnowledgeBase.load(tmp_path / "kb", tower).fingerprint == before.fingerprint


def test_what_a_killed_build_leaves_cannot_be_loaded(tmp_path: Path, tower: BiTower) -> None:
    seen: list[Path] = []

    def look(done: int, total: int) -> None:
        (partial,) = tmp_path.glob(".kb.*.partial")
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
    with pytest.raises(KnowledgeBaseError, match="more than once, d2"):
        build_knowledge_base(tmp_path / "kb2", [cases[2], cases[2]], tower)
    assert not (tmp_path / "kb2").exists()
