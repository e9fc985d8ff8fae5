"""What the figures of a knowledge base are taken from is the real thing."""

from __future__ import annotations

from pathlib import Path

from tiny_bitower import make_cases, make_loaded_tower
from tiny_milvus import need_milvus

from mrrag.bench.search import bench_index, bench_search, bench_search_text
from mrrag.retrieval.milvus_client import INDEXES


def test_all_ways_find_the_same_documents() -> None:
    small, large = bench_search((300, 2000), dimension=16, queries=4)
    for row in (small, large):
        assert row["mr-rag"]["recall"] >= 0.95
        assert row["faiss flat"]["recall"] == row["brute force"]["recall"] == 1
        assert row["index_bytes"] < 0.6 * row["float32_bytes"]
    assert large["float32_bytes"] == 2000 * 32 * 4
    assert len(bench_search_text((small, large)).splitlines()) == 4


def test_milvus_finds_the_same_documents(tmp_path: Path) -> None:
    need_milvus()
    (row,) = bench_search((300,), dimension=16, queries=4, milvus=str(tmp_path / "bench.db"))
    assert row["milvus"]["FLAT"]["recall"] == row["mr-rag"]["recall"]
    assert row["milvus"].keys() == INDEXES.keys()
    assert len(bench_search_text((row,)).splitlines()) == 3 + len(INDEXES)


def test_building_is_timed_against_the_encoder(tmp_path: Path) -> None:
    tower = make_loaded_tower(tmp_path / "tower")
    result = bench_index(make_cases(tmp_path / "images", 9), tower, batch=4)
    assert result["cases"] == 9
    assert result["share"] == result["index_per_s"] / result["encoder_alone_per_s"]
