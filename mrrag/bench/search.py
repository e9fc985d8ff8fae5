"""What a knowledge base costs: a fused search at several sizes, and the building of one.

The search is :meth:`KnowledgeBase.search`, memory-mapped, on vectors drawn at random:
reports and images in clusters, as those of a hospital are. It is held against FAISS's
flat index and a matrix product, both over float32; with an address, Milvus answers too, with
each of its indexes. The building is held against the
encoder alone, fed with what has been decoded and tokenised beforehand.
"""

from __future__ import annotations

import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import PIL.Image
from transformers import BertConfig, PreTrainedTokenizerFast, ResNetConfig

from mrrag.data.images import load_image
from mrrag.data.records import Record
from mrrag.files import file_sha256
from mrrag.retrieval.address import MILVUS, MilvusCollection, place_of
from mrrag.retrieval.bi_tower import BiTower
from mrrag.retrieval.build import build_knowledge_base
from mrrag.retrieval.copy import copy_knowledge_base
from mrrag.retrieval.encoders import Encoder, load_encoder
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.retrieval.manifest import FORMAT
from mrrag.retrieval.mcr import fused_query
from mrrag.retrieval.vector_index import empty_index
from mrrag.types import FloatArray, QueryVectors, Weights

K = 15
SIZES = (10_000, 100_000, 377_110)  # the last is MIMIC-CXR's
CLUSTERS = 200
Way = Callable[[npt.NDArray[np.float64]], list[int]]
BLOCK = 8192


@dataclass(frozen=True)
class _Named:
    """What :meth:`KnowledgeBase.load` asks of an encoder, where nothing is encoded."""

    dimension: int
    name: str = "random vectors"
    fingerprint: str = "random vectors"
    origin: Mapping[str, str] = field(default_factory=dict)


def bench_search(
    sizes: Sequence[int] = SIZES,
    *,
    dimension: int = 128,
    queries: int = 20,
    milvus: str | None = None,
) -> list[dict[str, Any]]:
    """Milliseconds for one query, recall of the 15 best, and bytes, at each size.

    Recall is against the exact ranking of the float32 vectors that were stored, so that
    what float16 changes counts too.

    Parameters
    ----------
    milvus
        Also measure Milvus there: a file that ends in ``.db`` for Milvus Lite, or the address of a
        server. A collection ``bench_search`` is made for each index, and dropped.
    """
    return [_bench_size(n, dimension, queries, milvus) for n in sizes]


def _bench_size(count: int, dimension: int, queries: int, milvus: str | None) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    documents_ND = _draw(rng, count, dimension)
    chosen = rng.integers(0, count, queries)
    noise = rng.normal(size=(queries, 2 * dimension)).astype(np.float32) / np.sqrt(dimension)
    near = documents_ND[chosen] + 0.7 * noise
    weights = Weights(0.4, 0.3, 0.3)
    fused = [
        fused_query(QueryVectors(_unit(row[dimension:]), _unit(row[:dimension])), weights)
        for row in near
    ]
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), documents_ND, dimension)
        before = _resident()
        start = time.perf_counter()
        kb = KnowledgeBase.load(folder, _Named(dimension))  # type: ignore[arg-type]
        load_s = time.perf_counter() - start
        held = _resident() - before
        flat = faiss.IndexFlatIP(2 * dimension)
        flat.add(documents_ND)

        def brute(query: npt.NDArray[np.float64]) -> list[int]:
            scores = documents_ND @ query.astype(np.float32)
            best = np.argpartition(-scores, K)[:K]
            return [int(i) for i in best[np.argsort(-scores[best])]]

        ways: dict[str, Way] = {
            "mr-rag": lambda q: [int(i) for i in kb.search(q, K)[0]],
            "faiss flat": lambda q: flat.search(q.astype(np.float32)[None], K)[1][0].tolist(),
            "brute force": brute,
        }
        truth = [set(brute(q)) for q in fused]
        result: dict[str, Any] = {
            "documents": count,
            "width": 2 * dimension,
            "load_s": load_s,
            "held_bytes": held,
            "index_bytes": (Path(folder) / "vectors.index").stat().st_size,
            "float32_bytes": documents_ND.nbytes,
        }
        for name, way in ways.items():
            result[name] = _timed(way, fused, truth)
        if milvus is not None:
            result["milvus"] = _bench_milvus(milvus, kb, fused, truth)
    return result


def _timed(
    way: Way, fused: Sequence[npt.NDArray[np.float64]], truth: Sequence[set[int]]
) -> dict[str, float]:
    way(fused[0])
    times, hits = [], 0
    for query, best in zip(fused, truth, strict=True):
        start = time.perf_counter()
        found = way(query)
        times.append(time.perf_counter() - start)
        hits += len(best & set(found))
    return {
        "median_ms": 1e3 * statistics.median(times),
        "fastest_ms": 1e3 * min(times),
        "recall": hits / (K * len(fused)),
    }


def _bench_milvus(
    uri: str,
    kb: KnowledgeBase,
    fused: Sequence[npt.NDArray[np.float64]],
    truth: Sequence[set[int]],
) -> dict[str, dict[str, float]]:
    """Copy the knowledge base to Milvus with each index, and measure its search."""
    from mrrag.retrieval.milvus_client import INDEXES, connect  # pymilvus may not be installed

    place = place_of(f"{MILVUS}{uri}/bench_search")
    if not isinstance(place, MilvusCollection):  # for the type checker: it begins as one
        return {}
    named: Any = _Named(kb.dimension)
    rows = {}
    for kind in INDEXES:
        start = time.perf_counter()
        base = copy_knowledge_base(kb, place, named, index=kind, overwrite=True)
        seconds = time.perf_counter() - start
        search = base.search

        def way(query: npt.NDArray[np.float64], search: Any = search) -> list[int]:
            return [int(i) for i in search(query, K)[0]]

        rows[kind] = {**_timed(way, fused, truth), "copy_s": seconds}
    connect(place).drop_collection(place.name)
    return rows


def _draw(rng: np.random.Generator, count: int, dimension: int) -> FloatArray:
    """Draw [t_d ; v_d] of documents in clusters, float32 [N, 2D]."""
    centres = rng.normal(size=(CLUSTERS, 2, dimension)).astype(np.float32)
    documents_ND = np.empty((count, 2 * dimension), dtype=np.float32)
    for start in range(0, count, BLOCK):
        n = min(BLOCK, count - start)
        pairs = centres[rng.integers(0, CLUSTERS, n)]
        pairs = pairs + rng.standard_normal((n, 2, dimension), dtype=np.float32)
        pairs /= np.linalg.norm(pairs, axis=2, keepdims=True)
        documents_ND[start : start + n] = pairs.reshape(n, -1)
    return documents_ND


def _unit(vector: FloatArray) -> FloatArray:
    return vector / np.float32(np.linalg.norm(vector))


def _write(folder: Path, documents_ND: FloatArray, dimension: int) -> None:
    """Write a knowledge base of vectors alone: reports are a word, and all share a thumbnail."""
    count = len(documents_ND)
    jpeg = io.BytesIO()
    PIL.Image.new("L", (1, 1)).save(jpeg, "JPEG")
    index = empty_index(2 * dimension)
    for start in range(0, count, BLOCK):
        index.add(documents_ND[start : start + BLOCK])
    faiss.write_index(index, str(folder / "vectors.index"))
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as lines:
        for i in range(count):
            row = {"id": f"d{i}", "report": "random", "patient": f"p{i // 2}", "study": f"s{i}"}
            place = ["thumbnails-000.bin", 0, len(jpeg.getvalue())]
            lines.write(json.dumps({**row, "thumbnail": place}) + "\n")
    (folder / "thumbnails-000.bin").write_bytes(jpeg.getvalue())
    names = ("documents.jsonl", "vectors.index", "thumbnails-000.bin")
    manifest = {
        "format": FORMAT,
        "encoder": {"name": _Named.name, "fingerprint": _Named.fingerprint},
        "dimension": dimension,
        "count": count,
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
            for name in names
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def _resident() -> int:
    """Bytes of this process's own memory, without what is only mapped from files."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(x.split()[1]) for x in lines if x.startswith("RssAnon"))
    except (OSError, StopIteration):
        return 0


def random_paper_tower(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """Build ResNet-50 and BERT-base, as in the paper's tower, with random weights."""
    tower = BiTower(
        ResNetConfig(),
        BertConfig(),
        tokenizer,
        dimension=512,
        image_size=224,
        max_text_tokens=256,
        name="ResNet-50 and BERT, random",
    )
    with tempfile.TemporaryDirectory() as folder:
        tower.save(Path(folder) / "tower")
        return load_encoder(Path(folder) / "tower")


def bench_index(cases: Sequence[Record], encoder: Encoder, *, batch: int = 32) -> dict[str, Any]:
    """Cases a second: the encoder alone, and the whole way from files to a knowledge base."""
    pixels = [
        encoder.prepare([load_image(c.image_path) for c in cases[i : i + batch]])
        for i in range(0, len(cases), batch)
    ]
    reports = [
        [c.document.report for c in cases[i : i + batch]] for i in range(0, len(cases), batch)
    ]

    def encode() -> None:
        for pixels_NCYX, texts in zip(pixels, reports, strict=True):
            encoder.texts(texts)
            encoder.encode_prepared(pixels_NCYX)

    encode()
    start = time.perf_counter()
    encode()
    bare = len(cases) / (time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        build_knowledge_base(Path(folder) / "kb", cases, encoder, batch=batch)
        whole = len(cases) / (time.perf_counter() - start)
    return {
        "cases": len(cases),
        "encoder": encoder.name,
        "encoder_alone_per_s": bare,
        "index_per_s": whole,
        "share": whole / bare,
    }


def bench_search_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the figures as a table."""
    lines = [
        f"one query, {rows[0]['width']} numbers a document, the {K} best; median (fastest) ms, "
        "recall against float32",
        f"{'documents':>10s}{'mr-rag':>27s}{'faiss flat':>27s}{'brute force':>27s}"
        f"{'index':>9s}{'float32':>9s}{'held':>8s}{'load':>8s}",
    ]
    for row in rows:
        cells = "".join(
            f"{w['median_ms']:10.1f} ({w['fastest_ms']:6.1f}) {w['recall']:.3f}  "
            for w in (row[name] for name in ("mr-rag", "faiss flat", "brute force"))
        )
        sizes = "".join(f"{row[n] / 2**20:6.0f} MB" for n in ("index_bytes", "float32_bytes"))
        lines.append(
            f"{row['documents']:10d}{cells}{sizes}{row['held_bytes'] / 2**20:5.0f} MB"
            f"{row['load_s']:6.1f} s"
        )
        lines += [
            f"{'milvus ' + kind:>16s}{w['median_ms']:10.1f} ({w['fastest_ms']:6.1f}) "
            f"{w['recall']:.3f}, copied in {w['copy_s']:.1f} s"
            for kind, w in row.get("milvus", {}).items()
        ]
    return "\n".join(lines)
