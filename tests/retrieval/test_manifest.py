"""A knowledge base from elsewhere, damaged or hostile, is refused by a sentence on the field."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import PIL.Image
import pytest
from tiny_bitower import make_cases, make_loaded_tower

from mrrag.errors import KnowledgeBaseError
from mrrag.files import file_sha256
from mrrag.retrieval.bi_tower import BiTower
from mrrag.retrieval.build import build_knowledge_base
from mrrag.retrieval.calibration import calibrate
from mrrag.retrieval.knowledge_base import KnowledgeBase, load_encoder_of
from mrrag.retrieval.manifest import DOCUMENTS, MANIFEST, VECTORS, read_manifest

COUNT, DIMENSION = 5, 12
THUMBNAILS = "thumbnails-000.bin"
DEEP = "[" * 100_000 + "]" * 100_000
ABSENT = ...  # stands for a field that is taken out
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> BiTower:
    return make_loaded_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tower: BiTower) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    cases = make_cases(folder / "images", COUNT)
    return build_knowledge_base(folder / "kb", cases, tower, workers=0).directory


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "kb"))


def sign(folder: Path) -> None:
    """Declare the files as they are, as whoever made them would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, entry in manifest["files"].items():
        entry["bytes"] = (folder / name).stat().st_size
        entry["sha256"] = file_sha256(folder / name)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def put(values: Any, path: Sequence[Any], value: object) -> None:
    """Set what stands at a path in nested objects and lists, or remove it."""
    for key in path[:-1]:
        values = values[key]
    if value is ABSENT:
        del values[path[-1]]
    else:
        values[path[-1]] = value


def refused(folder: Path, tower: BiTower, *words: str) -> None:
    with pytest.raises(KnowledgeBaseError) as caught:
        KnowledgeBase.load(folder, tower)
    message = str(caught.value)
    assert not [word for word in words if word not in message], message
    assert len(message) < 1000


IN_MANIFEST: list[tuple[tuple[Any, ...], object, str]] = [
    (("format",), "2", "format is a text of 1 char"),
    (("format",), True, "format is true"),
    (("format",), 0, "format is 0"),
    (("format",), -(10**400), "format is -1000"),
    (("encoder",), ABSENT, "encoder is absent"),
    (("encoder",), [], "encoder is a list of 0"),
    (("encoder", "name"), None, "encoder.name is null"),
    (("encoder", "name"), "x" * 10_000, "encoder.name is a text of 10,000"),
    (("encoder", "name"), "\ud800", "encoder.name is a text with half a character"),
    (("encoder", "fingerprint"), {}, "encoder.fingerprint is an object"),
    (("encoder", "source"), 5, "encoder.source is 5"),
    (("encoder", "source"), "/etc/encoder", "encoder.source is another text"),
    (("encoder", "source"), ".\0", "encoder.source is another text"),
    (("encoder", "base"), "https://x.org/a", "encoder.base is another text"),
    (("encoder", "revision"), 1.5, "encoder.revision is 1.5"),
    (("dimension",), ABSENT, "dimension is absent"),
    (("dimension",), "12", "dimension is a text"),
    (("dimension",), 12.0, "dimension is 12.0"),
    (("dimension",), 0, "dimension is 0"),
    (("dimension",), 10**12, "dimension is 1000000000000"),
    (("dimension",), 13, "dimension is 13. Allowed: 12"),
    (("count",), -1, "count is -1"),
    (("count",), True, "count is true"),
    (("count",), float("nan"), "count is nan"),
    (("count",), 1e300, "count is 1e+300"),
    (("count",), 10**18, "count is 1000000000000000000"),
    (("count",), COUNT + 1, "count is 6. Allowed: 5"),
    (("patients",), "3", "patients is a text"),
    (("studies",), -3, "studies is -3"),
    (("splits",), [1], "splits is a list"),
    (("splits",), {"train": "all"}, "splits[train] is a text"),
    (("thumbnail_size",), -5, "thumbnail_size is -5"),
    (("sources",), {}, "sources is an object"),
    (("sources", 0), "IU", "sources[0] is a text"),
    (("sources", 0, "licence"), 7, "sources[0].licence is 7"),
    (("skipped",), {"no report": 3}, "skipped[no report] is 3"),
    (("skipped",), {"no report": [["d"]]}, "skipped[no report][0] is a list"),
    (("spread",), {"alpha": float("nan"), "beta": 1, "gamma": 1}, "spread.alpha is nan"),
    (("spread",), {"alpha": 1, "beta": 1}, "spread.gamma is absent"),
    (("files",), None, "files is null"),
    (("files",), [DOCUMENTS], "files is a list"),
    (("files", VECTORS), ABSENT, "vectors.index of the knowledge base"),
    (("files", VECTORS), [1], "files[vectors.index] is a list"),
    (("files", VECTORS, "bytes"), -1, "files[vectors.index].bytes is -1"),
    (("files", VECTORS, "bytes"), float("inf"), "files[vectors.index].bytes is inf"),
    (("files", VECTORS, "sha256"), None, "files[vectors.index].sha256 is null"),
    (("files", VECTORS, "sha256"), "0" * 64, "vectors.index of the knowledge base"),
    (("files", VECTORS, "mode"), "w", "files[vectors.index] is an object with 1 more"),
    (("files", "../0.png"), {"bytes": 1, "sha256": "0" * 64}, "files[name"),
    (("files", "/etc/passwd"), {"bytes": 1, "sha256": "0" * 64}, "files[name"),
    (("files", "a\\b"), {"bytes": 1, "sha256": "0" * 64}, "files[name"),
    (("files", ".."), {"bytes": 1, "sha256": "0" * 64}, "files[name"),
    (("files", "x.bin"), {"bytes": 1, "sha256": "0" * 64}, "x.bin"),
]


@pytest.mark.parametrize(("path", "value", "words"), IN_MANIFEST, ids=lambda x: str(x)[:30])
def test_a_field_of_the_manifest_that_is_not_allowed_is_named(
    base: Path, tower: BiTower, path: tuple[Any, ...], value: object, words: str
) -> None:
    manifest = json.loads((base / MANIFEST).read_text())
    put(manifest, path, value)
    (base / MANIFEST).write_text(json.dumps(manifest))
    refused(base, tower, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"[]", "is a list of 0"),
        (b"7", "is 7"),
        (b"null", "is null"),
        (b"{}", "format is absent"),
        (b"\xff\xfe{}", "cannot be read"),
        (DEEP.encode(), "nested too deeply"),
        (b'{"count": ' + b"9" * 10_000 + b"}", "cannot be read"),
        (2**40, "1,099,511,627,776 bytes"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_what_is_no_manifest_is_refused_wherever_it_is_read(
    base: Path, tower: BiTower, tmp_path: Path, content: bytes | int, words: str
) -> None:
    if isinstance(content, int):
        os.truncate(base / MANIFEST, content)  # nothing is written
    else:
        (base / MANIFEST).write_bytes(content)
    refused(base, tower, words, MANIFEST)
    for read in (read_manifest, lambda folder: load_encoder_of(folder, tmp_path / "none")):
        with pytest.raises(KnowledgeBaseError, match=MANIFEST):
            read(base)


IN_DOCUMENTS: list[tuple[tuple[Any, ...], object, str]] = [
    (("id",), [1], "id is a list of 1"),
    (("id",), 7, "id is 7"),
    (("id",), "", "id is a text of 0"),
    (("id",), "\udfff", "id is a text with half a character"),
    (("id",), "x" * 5000, "id is a text of 5,000"),
    (("id",), ABSENT, "id is absent"),
    (("id",), "d0", "lines 1 and 2 have the same id"),
    (("report",), 3.5, "report is 3.5"),
    (("report",), None, "report is null"),
    (("report",), {"text": "no"}, "report is an object"),
    (("report",), "", "report is a text of 0"),
    (("patient",), False, "patient is false"),
    (("study",), ["s"], "study is a list"),
    (("source",), 1, "source is 1"),
    (("licence",), [], "licence is a list"),
    (("split",), 0, "split is 0"),
    (("view",), {}, "view is an object"),
    (("colour",), "red", "is an object with 1 more fields"),
    (("thumbnail",), ABSENT, "thumbnail is absent"),
    (("thumbnail",), THUMBNAILS, "thumbnail is a text"),
    (("thumbnail",), [THUMBNAILS, 0], "thumbnail is a list of 2"),
    (("thumbnail", 0), 5, "thumbnail[0] is 5"),
    (("thumbnail", 0), "../../secret", "thumbnail of the document in line 2"),
    (("thumbnail", 0), MANIFEST, "thumbnail of the document in line 2"),
    (("thumbnail", 0), VECTORS, "thumbnail of the document in line 2"),
    (("thumbnail", 1), -1, "thumbnail[1] is -1"),
    (("thumbnail", 1), "0", "thumbnail[1] is a text"),
    (("thumbnail", 1), 0.5, "thumbnail[1] is 0.5"),
    (("thumbnail", 1), 10**30, "thumbnail[1] is 1000"),
    (("thumbnail", 1), 2**49, "thumbnail of the document in line 2"),
    (("thumbnail", 2), 0, "thumbnail[2] is 0"),
    (("thumbnail", 2), float("nan"), "thumbnail[2] is nan"),
]


@pytest.mark.parametrize(("path", "value", "words"), IN_DOCUMENTS, ids=lambda x: str(x)[:30])
def test_a_field_of_a_document_that_is_not_allowed_is_named(
    base: Path, tower: BiTower, path: tuple[Any, ...], value: object, words: str
) -> None:
    lines = [json.loads(line) for line in (base / DOCUMENTS).read_text().splitlines()]
    put(lines[1], path, value)
    (base / DOCUMENTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    sign(base)
    refused(base, tower, words)


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda old: b"", "Allowed: 0, as many"),
        (lambda old: old + b"\n", f"Line {COUNT + 1}"),
        (lambda old: old[: old.index(b"\n") + 1], "Allowed: 1, as many"),
        (lambda old: b"\xff" + old, "Line 1 of"),
        (lambda old: b"[]\n" + old, "Line 1 of"),
        (lambda old: DEEP.encode() + b"\n" + old, "Line 1 of"),
        (lambda old: b'"' + b"x" * 2**24 + b'"\n' + old, "a line of at most 16,777,216 bytes"),
    ],
    ids=["empty", "blank line", "one line", "not UTF-8", "a list", "deep", "gigantic line"],
)
def test_lines_that_are_no_documents_are_named_by_number(
    base: Path, tower: BiTower, change: Callable[[bytes], bytes], words: str
) -> None:
    rewrite(DOCUMENTS, change)(base)
    sign(base)
    refused(base, tower, words)


def rows(folder: Path) -> np.ndarray:
    return np.asarray(faiss.read_index(str(folder / VECTORS)).reconstruct_n(0, COUNT))


def vectors(folder: Path, index: faiss.Index) -> None:
    index.train(rows(folder))
    index.add(rows(folder))
    faiss.write_index(index, str(folder / VECTORS))


def numbers(place: tuple[int, slice], value: float) -> Damage:
    """Write a value into vectors of an index that is otherwise as it should be."""

    def damage(folder: Path) -> None:
        path = folder / VECTORS
        old = path.read_bytes()
        halves = np.frombuffer(old[-COUNT * 2 * DIMENSION * 2 :], "<f2").copy()
        halves = halves.reshape(COUNT, 2 * DIMENSION)
        halves[place] = value * halves[place] if abs(value) < 3 else value
        path.write_bytes(old[: -halves.nbytes] + halves.tobytes())

    return damage


WIDTH = 2 * DIMENSION
FP16, IP, L2 = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2
INDEXES: dict[str, tuple[Damage, str]] = {
    "flat": (lambda f: vectors(f, faiss.IndexFlatIP(WIDTH)), "its type is IxFI"),
    "L2": (lambda f: vectors(f, faiss.IndexScalarQuantizer(WIDTH, FP16, L2)), "type is IxSQ"),
    "8 bits": (
        lambda f: vectors(f, faiss.IndexScalarQuantizer(WIDTH, faiss.ScalarQuantizer.QT_8bit, IP)),
        "its type is IxSQ",
    ),
    "HNSW": (lambda f: vectors(f, faiss.IndexHNSWFlat(WIDTH, 4, IP)), "its type is IHN"),
    "PQ": (lambda f: vectors(f, faiss.IndexPQ(WIDTH, 2, 2, IP)), "its type is IxP"),
    "IVF": (lambda f: vectors(f, faiss.index_factory(WIDTH, "IVF1,Flat", IP)), "its type is Iw"),
    "mapped ids": (lambda f: faiss.write_index(mapped(f), str(f / VECTORS)), "its type is IxM"),
    "too wide": (
        lambda f: faiss.write_index(wide(), str(f / VECTORS)),
        f"{COUNT} vectors of {WIDTH} numbers",
    ),
    "empty": (rewrite(VECTORS, lambda old: b""), "its type is unknown"),
    "text": (rewrite(VECTORS, lambda old: b"not an index"), VECTORS),
    "short": (rewrite(VECTORS, lambda old: old[:-2]), VECTORS),
    "long": (rewrite(VECTORS, lambda old: old + b"\0\0"), VECTORS),
    "huge count": (rewrite(VECTORS, lambda old: old[:8] + b"\xff" * 8 + old[16:]), VECTORS),
    "huge codes": (rewrite(VECTORS, lambda old: old[:73] + b"\x7f" * 8 + old[81:]), VECTORS),
    "NaN": (numbers((2, slice(3, 4)), float("nan")), "report vector of document 2 has norm nan"),
    "infinite": (numbers((4, slice(20, 21)), np.inf), "image vector of document 4 has norm inf"),
    "zero": (numbers((0, slice(0, DIMENSION)), 0.0), "report vector of document 0 has norm 0."),
    "too long": (numbers((1, slice(DIMENSION, None)), 1.01), "image vector of document 1 has norm"),
    "too short": (numbers((3, slice(0, DIMENSION)), 0.99), "report vector of document 3 has norm"),
}


def mapped(folder: Path) -> faiss.Index:
    index = faiss.IndexIDMap(faiss.IndexScalarQuantizer(WIDTH, FP16, IP))
    index.add_with_ids(rows(folder), np.arange(COUNT)[::-1].astype(np.int64))
    return index


def wide() -> faiss.Index:
    index = faiss.IndexScalarQuantizer(WIDTH + 2, FP16, IP)
    index.add(np.ones((COUNT, WIDTH + 2), np.float32))
    return index


@pytest.mark.parametrize(("damage", "words"), INDEXES.values(), ids=INDEXES)
def test_an_index_of_another_kind_and_vectors_not_of_norm_1_are_refused(
    base: Path, tower: BiTower, damage: Damage, words: str
) -> None:
    damage(base)
    sign(base)
    refused(base, tower, words, VECTORS)


def picture(width: int, height: int, format: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    PIL.Image.new("L", (width, height)).save(stream, format)
    return stream.getvalue()


def bomb() -> bytes:
    """A JPEG file of a few hundred bytes that says it has 65,500 × 65,500 px."""
    jpeg = picture(8, 8)
    place = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:place] + (65_500).to_bytes(2, "big") * 2 + jpeg[place + 4 :]


def first_thumbnail(folder: Path, data: bytes) -> None:
    """Append a thumbnail, and let the first document have it."""
    path = folder / THUMBNAILS
    offset = path.stat().st_size
    path.write_bytes(path.read_bytes() + data)
    lines = [json.loads(line) for line in (folder / DOCUMENTS).read_text().splitlines()]
    lines[0]["thumbnail"] = [THUMBNAILS, offset, len(data)]
    (folder / DOCUMENTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    sign(folder)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (picture(9, 9, "PNG"), "no JPEG file"),
        (b"<svg onload='alert(1)'>", "no JPEG file"),
        (b"\xff\xd8\xff", "no JPEG file"),
        (picture(9, 9)[:60], "no JPEG file"),
        (bomb(), "65500 × 65500 px"),
        (picture(5000, 1), "5000 × 1 px"),
    ],
    ids=["PNG", "SVG", "three bytes", "cut short", "bomb", "too wide"],
)
def test_a_thumbnail_that_is_no_small_jpeg_is_refused(
    base: Path, tower: BiTower, data: bytes, words: str
) -> None:
    first_thumbnail(base, data)
    refused(base, tower, "thumbnail of the document in line 1", words)


def test_a_thumbnail_that_cannot_be_decoded_is_a_sentence(base: Path, tower: BiTower) -> None:
    first_thumbnail(base, picture(64, 64)[:-60])
    loaded = KnowledgeBase.load(base, tower)
    assert loaded.picture(1).size == (213, 256)
    for read in (lambda: loaded.picture(0), lambda: calibrate(loaded)):
        with pytest.raises(KnowledgeBaseError, match=r"thumbnail of document 0 .* decoded"):
            read()


@pytest.mark.parametrize("name", [MANIFEST, DOCUMENTS, VECTORS, THUMBNAILS])
def test_files_that_lie_elsewhere_or_are_none_are_refused(
    base: Path, tower: BiTower, tmp_path: Path, name: str
) -> None:
    elsewhere = shutil.move(base / name, tmp_path / "elsewhere")
    (base / name).symlink_to(elsewhere)
    refused(base, tower, name, "is a link to a file outside")
    (base / name).unlink()
    (base / name).symlink_to(name)
    refused(base, tower, name)
    (base / name).unlink()
    os.mkfifo(base / name)
    refused(base, tower, name)
    (base / name).unlink()
    (base / name).mkdir()
    refused(base, tower, name)
    (base / name).rmdir()
    shutil.move(elsewhere, base / name)
    (tmp_path / "link").symlink_to(base)  # the folder itself may be a link
    assert len(KnowledgeBase.load(tmp_path / "link", tower)) == COUNT


def test_a_folder_without_a_knowledge_base_says_so(tmp_path: Path, tower: BiTower) -> None:
    refused(tmp_path / "nowhere", tower, "There is no knowledge base in", "Build one")


def test_a_later_format_asks_for_an_update(base: Path, tower: BiTower) -> None:
    (base / MANIFEST).write_text('{"format": 3}')
    refused(base, tower, "has format 3, and this version reads up to 2. Update MR-RAG")


def test_what_is_not_described_is_left_out_and_format_1_is_read(base: Path, tower: BiTower) -> None:
    manifest = json.loads((base / MANIFEST).read_text()) | {"format": 1, "calibration": {"x": []}}
    for name in ("patients", "studies", "splits"):
        del manifest[name]
    (base / MANIFEST).write_text(json.dumps(manifest))
    loaded = KnowledgeBase.load(base, tower)
    assert "calibration" not in loaded.manifest
    assert len(loaded) == COUNT
