"""Documents and one FAISS index over them: build, update, load, exact fused search.

A knowledge base is a directory:

- ``documents.jsonl``: a document a line, with where its thumbnail lies;
- ``thumbnails-000.bin``, ...: JPEG files one after another, below 8 MiB each;
- ``vectors.index``: one inner-product index over the concatenation [t_d ; v_d] of the
  report's and the image's unit vector, float16;
- ``manifest.json``: format, encoder and where it is, counts, licences, and the size and
  SHA-256 of all the others. It is written last, so that without it there is no knowledge
  base;
- ``images.npy``: size and time of each document's image file when it was read, int64
  [N, 2]. Only an update looks at it, and without it encodes everything again.

It is built in a hidden directory beside its place, ``.NAME.partial``. A journal there
says after each batch how far each file is good, so that a build that was killed goes on
from its last whole batch, and ends with the same bytes as one that was not.

The concatenation is what makes MCR exact in one scan (see :mod:`mrrag.retrieval.mcr`); this
module knows no weights and no queries, only vectors.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import mmap
import os
import shutil
from array import array
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import faiss
import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from mrrag.data.corpus import Record
from mrrag.data.images import load_image, thumbnail
from mrrag.errors import ImageError, KnowledgeBaseError, ModelError
from mrrag.files import file_sha256
from mrrag.learnt import FILE as LEARNT
from mrrag.retrieval.encoders import (
    BiTower,
    Encoder,
    OpenClip,
    describe_encoder,
    load_described_encoder,
    load_encoder,
)
from mrrag.types import Document, FloatArray, Image

__all__ = ["KnowledgeBase", "build_knowledge_base", "build_share", "load_encoder_of"]

logger = logging.getLogger(__name__)

FORMAT = 2  # 1 knows neither splits nor images.npy; it is read too
MANIFEST = "manifest.json"
DOCUMENTS = "documents.jsonl"
VECTORS = "vectors.index"
STAMPS = "images.npy"
THUMBNAIL_FILE_BYTES = 8 * 2**20 - 1
CALIBRATION_PAIRS = 2000
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
# Numbers in an index above which a scan is shared out among the cores; about 3 ms on one.
SHARED_SCAN = 2**24
# What only a build needs.
PLAN, JOURNAL, ROWS, STAMP_ROWS = "plan.json", "journal.jsonl", "rows.f16", "stamps.i64"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

OnProgress = Callable[[int, int], None]


class _Documents(Sequence[Document]):
    """The lines of ``documents.jsonl``, parsed when asked for; the file stays on disk.

    Of patients, studies and ids only eight-byte digests are kept: whoever looks one up
    gets candidates, and reads them to be sure.
    """

    def __init__(self, path: Path) -> None:
        starts = [0]
        places: list[tuple[int, int, int]] = []
        digests = array("q")
        self.files: dict[str, int] = {}
        with path.open("rb") as lines:
            for line in lines:
                document, (file, offset, length) = _parse_line(line)
                starts.append(starts[-1] + len(line))
                places.append((self.files.setdefault(file, len(self.files)), offset, length))
                digests.extend(map(_digest, (document.patient, document.study, document.id)))
        self._starts = np.array(starts, dtype=np.int64)
        self.places = np.array(places, dtype=np.int64).reshape(-1, 3)
        table_N3 = np.array(digests, dtype=np.int64).reshape(-1, 3)
        self.patients, self.studies, self.ids = (np.ascontiguousarray(c) for c in table_N3.T)
        self._lines: mmap.mmap | bytes = b""
        if places:  # a map of nothing is refused
            with path.open("rb") as stream:
                self._lines = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, i: int) -> Document: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Document]: ...
    def __getitem__(self, i: int | slice) -> Document | Sequence[Document]:
        if isinstance(i, slice):
            return [self[n] for n in range(*i.indices(len(self)))]
        n = range(len(self))[i]
        return _parse_line(self._lines[self._starts[n] : self._starts[n + 1]])[0]


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big", signed=True)


def _parse_line(line: bytes) -> tuple[Document, tuple[str, int, int]]:
    values = json.loads(line)
    file, offset, length = values.pop("thumbnail")
    return Document(**values), (str(file), int(offset), int(length))


class KnowledgeBase:
    """Documents, their thumbnails and their vectors; :meth:`load` makes one.

    Documents are numbered from 0 in the order in which they were built in.

    Attributes
    ----------
    documents : sequence of Document
        Read from disk as they are asked for.
    dimension : int
        D of each of the two vectors of a document.
    fingerprint : str
        SHA-256 over the digests of its files.
    manifest : mapping
        As read from disk: encoder, sources and licences, and ``calibration``,
        percentiles of the image-report and image-image cosine between random documents
        of different patients.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Mapping[str, Any],
        documents: _Documents,
        index: faiss.Index,
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.documents = documents
        self.dimension = int(manifest["dimension"])
        digests = json.dumps(manifest["files"], sort_keys=True)
        self.fingerprint = hashlib.sha256(digests.encode()).hexdigest()
        self._index = index

    @classmethod
    def load(cls, directory: str | Path, encoder: Encoder) -> KnowledgeBase:
        """Check every file and open the index, memory-mapped.

        Parameters
        ----------
        encoder
            The one that will encode the queries: its fingerprint must be that of the
            encoder the knowledge base was built with.

        Raises
        ------
        KnowledgeBaseError
            Where a file is absent, damaged or of a later format, or the encoder is
            another one.
        """
        directory = Path(directory)
        manifest = _read_manifest(directory)
        made_with = manifest["encoder"]
        if made_with["fingerprint"] != encoder.fingerprint:
            raise KnowledgeBaseError(
                f"The knowledge base in {directory} was built with the encoder "
                f'"{made_with["name"]}" ({made_with["fingerprint"][:12]}), and the one loaded is '
                f'"{encoder.name}" ({encoder.fingerprint[:12] or "not from disk"}). Their vectors '
                "cannot be compared: load that encoder, or build the knowledge base again with "
                "this one."
            )
        _check_files(directory, manifest["files"])
        try:
            documents = _Documents(directory / DOCUMENTS)
            index = faiss.read_index(str(directory / VECTORS), faiss.IO_FLAG_MMAP_IFC)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise KnowledgeBaseError(
                f"The knowledge base in {directory} cannot be read ({error}). Build it again."
            ) from error
        count, width = manifest["count"], 2 * manifest["dimension"]
        found = (len(documents), index.ntotal, index.d, index.metric_type)
        sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
        ends = np.array([sizes.get(name, -1) for name in documents.files], dtype=np.int64)
        file_N, offset_N, length_N = documents.places.T
        outside = (offset_N < 0) | (length_N < 0) | (offset_N + length_N > ends[file_N])
        if found != (count, count, width, faiss.METRIC_INNER_PRODUCT) or outside.any():
            raise KnowledgeBaseError(
                f"The parts of the knowledge base in {directory} do not fit one another: "
                f"{count} documents are declared, {len(documents)} listed and {index.ntotal} "
                "indexed. Build it again."
            )
        return cls(directory, manifest, documents, index)

    def __len__(self) -> int:
        return len(self.documents)

    def document(self, i: int) -> Document:
        """Document number ``i``."""
        return self.documents[i]

    def thumbnail(self, i: int) -> bytes:
        """The JPEG file of document ``i``'s image, reduced."""
        file, offset, length = (int(n) for n in self.documents.places[i])
        with (self.directory / list(self.documents.files)[file]).open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)

    def positions(
        self,
        *,
        patients: Collection[str] = (),
        studies: Collection[str] = (),
        ids: Collection[str] = (),
    ) -> list[int]:
        """Numbers of the documents of any of these patients, studies or ids, ascending."""
        known = self.documents
        maybe = np.zeros(len(self), dtype=bool)
        for keys, digests_N in (
            (patients, known.patients),
            (studies, known.studies),
            (ids, known.ids),
        ):
            if keys:
                maybe |= np.isin(digests_N, [_digest(key) for key in keys])
        numbers: list[int] = np.flatnonzero(maybe).tolist()
        return [
            i
            for i in numbers
            if (d := known[i]).patient in patients or d.study in studies or d.id in ids
        ]

    def vectors(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Report and image vectors (t, v) as the index holds them, float32 [N, D] each.

        Their norms are 1 up to float16's rounding, 5e-4 at most.
        """
        wanted = np.ascontiguousarray(ids, dtype=np.int64)
        if not len(wanted):
            nothing = np.empty((0, self.dimension), dtype=np.float32)
            return nothing, nothing
        both: FloatArray = self._index.reconstruct_batch(wanted)
        return both[:, : self.dimension], both[:, self.dimension :]

    def search(
        self, vector: npt.NDArray[np.floating[Any]], k: int, exclude: Collection[int] = ()
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The k documents with the largest inner product with ``vector``, exactly.

        FAISS sums in float32, so that documents closer than its rounding may come in
        either order. It is therefore asked for more than k, until the last one is below
        the k-th by more than any rounding, and those are scored again in float64. Equal
        scores come in document order.

        Parameters
        ----------
        vector : [2D]
        k
            At least 1. Fewer come where fewer are left.
        exclude
            Numbers of documents that must not come.

        Returns
        -------
        ids : int64 [N]
        scores : float64 [N], descending
        """
        exact_D = np.asarray(vector, dtype=np.float64)
        query_1D = exact_D.astype(np.float32)[None]
        # n·u·‖q‖·‖d‖ bounds a float32 sum of n products; ‖d‖ = √2, and twice for two.
        tolerance = 2 * np.sqrt(2) * exact_D.size * 2.0**-24 * float(np.linalg.norm(exact_D))
        barred = set(exclude)
        fetch = min(len(self), k + len(barred) + 8)
        while True:
            rough_N, found_N = self._scan(query_1D, fetch)
            ids = np.array([i for i in found_N if int(i) not in barred], dtype=np.int64)
            t_ND, v_ND = self.vectors(ids)
            # Row by row, so that equal documents get equal scores wherever they stand.
            scores = (np.concatenate([t_ND, v_ND], axis=1) * exact_D).sum(axis=1)
            order = np.lexsort((ids, -scores))
            ids, scores = ids[order], scores[order]
            enough = len(ids) >= k and scores[k - 1] - float(rough_N[-1]) > tolerance
            if fetch == len(self) or enough:
                return ids[:k], scores[:k]
            fetch = min(len(self), 2 * fetch)

    def _scan(self, query_1D: FloatArray, fetch: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """The ``fetch`` documents that are best by FAISS's float32 sums, best first.

        FAISS scans for one query on one core. A large index is therefore cut into as
        many ranges of documents as there are cores, and the best of each are merged:
        every document is still looked at.
        """
        cores = min(os.cpu_count() or 1, len(self))
        if cores == 1 or len(self) * query_1D.size < SHARED_SCAN:
            rough_1N, ids_1N = self._index.search(query_1D, fetch)
            return rough_1N[0], ids_1N[0]

        def scan(low: int, high: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
            chosen = faiss.SearchParameters(  # type: ignore[call-arg]
                sel=faiss.IDSelectorRange(low, high)
            )
            rough_1N, ids_1N = self._index.search(query_1D, min(fetch, high - low), params=chosen)
            return rough_1N[0], ids_1N[0]

        bounds = np.linspace(0, len(self), cores + 1).astype(np.int64).tolist()
        with ThreadPoolExecutor(cores) as pool:
            parts = list(pool.map(scan, bounds[:-1], bounds[1:]))
        rough_N = np.concatenate([rough for rough, _ in parts])
        ids_N = np.concatenate([ids for _, ids in parts])
        best = np.lexsort((ids_N, -rough_N))[:fetch]
        return rough_N[best], ids_N[best]


def load_encoder_of(directory: str | Path, bundled: Path) -> BiTower | OpenClip:
    """The encoder that a knowledge base was built with, from where its manifest says.

    Parameters
    ----------
    bundled
        The folder of the bundled one, which is known by its fingerprint wherever the
        knowledge base was copied to. It also serves where nothing says where the encoder
        is; :meth:`KnowledgeBase.load` then tells whether it is the right one.

    Raises
    ------
    KnowledgeBaseError
        Where there is no knowledge base, or its encoder is absent or another one by now.
    """
    entry = _read_manifest(Path(directory))["encoder"]
    encoder = load_encoder(bundled)
    if "source" not in entry or entry["fingerprint"] == encoder.fingerprint:
        return encoder
    try:
        return load_described_encoder(entry, Path(directory))
    except ModelError as error:
        raise KnowledgeBaseError(
            f'The knowledge base in {directory} needs the encoder "{entry["name"]}" that it was '
            f"built with. {error}"
        ) from error


def build_knowledge_base(
    directory: str | Path,
    cases: Sequence[Record],
    encoder: Encoder,
    *,
    thumbnail_size: int = 256,
    batch: int = 32,
    workers: int | None = None,
    overwrite: bool = False,
    update: bool = False,
    parts: Sequence[Path] = (),
    progress: OnProgress = lambda done, total: None,
) -> KnowledgeBase:
    """Encode cases and write them as a knowledge base, all or nothing.

    Everything is written beside ``directory`` under another name, and renamed once it
    is whole. A build that was stopped, by whatever means, goes on from its last whole
    batch when it is asked for again with the same cases, encoder and settings. A case
    without a report, or whose image cannot be read, is left out, and listed under
    ``skipped`` in the manifest.

    Parameters
    ----------
    thumbnail_size
        Longer side, px.
    batch
        How many cases are opened and encoded at a time.
    workers
        Processes that open images; None is as many as there are cores, or none but this
        one where there are few cases.
    overwrite
        Replace a knowledge base that is there already; anything else there is never
        replaced.
    update
        Make the knowledge base that is there follow ``cases``: those it lacks are
        added, those it has beyond them are removed, and what has the same id, report
        and image file (by size and time) is taken over without being encoded again.
    parts
        Other knowledge bases from which unchanged cases are taken over too.
    progress
        Called with (done, total) after each batch, and at first with what a stopped
        build had done.

    Raises
    ------
    KnowledgeBaseError
        Where ``directory`` is taken, there are no cases or two of one id, another build
        is at work there, the disk is full, or the encoder was not read from disk or
        gives no unit vectors.
    """
    directory = Path(directory)
    known = [KnowledgeBase.load(d, encoder) for d in ([directory] if update else []) + [*parts]]
    _check_free(directory, overwrite or update)
    if not encoder.fingerprint:
        raise KnowledgeBaseError(
            f'The encoder "{encoder.name}" was not read from disk, so that nothing could tell '
            "later whether a query is encoded alike. Save it, load it and build again."
        )
    twice = [i for i, n in Counter(case.document.id for case in cases).items() if n > 1]
    if twice:
        raise KnowledgeBaseError(
            f"{len(twice)} document ids come more than once, {twice[0]} for one. Give each its own."
        )
    hidden = directory.with_name(f".{directory.name}.partial")
    hidden.mkdir(parents=True, exist_ok=True)
    with _locked(hidden), _stopped_in_words(hidden):
        draft = _Draft(hidden, _plan(cases, encoder, thumbnail_size, batch, known), encoder)
        try:
            _fill(draft, cases, encoder, thumbnail_size, batch, workers, known, progress)
            draft.close()
            _finish(draft, len(cases), encoder, thumbnail_size)
        except KnowledgeBaseError:
            shutil.rmtree(hidden)  # another attempt would end alike
            raise
        finally:
            draft.abandon()
        if update and (directory / LEARNT).is_file():
            shutil.copy2(directory / LEARNT, hidden / LEARNT)
        _put_in_place(hidden, directory)
    for name in (PLAN, JOURNAL, ROWS, STAMP_ROWS):
        (directory / name).unlink(missing_ok=True)
    return KnowledgeBase.load(directory, encoder)


def build_share(
    directory: str | Path,
    cases: Sequence[Record],
    encoder: Encoder,
    share: tuple[int, int],
    wait: Callable[[], object],
    *,
    batch: int = 32,
    overwrite: bool = False,
    update: bool = False,
    progress: OnProgress = lambda done, total: None,
    **settings: Any,
) -> KnowledgeBase | None:
    """:func:`build_knowledge_base` by several processes that see the same disk.

    Each encodes a run of whole batches into a knowledge base of its own, beside
    ``directory``, and goes on there if it was stopped. The first one then joins them:
    what comes out is, to the byte, what one process would have built.

    Parameters
    ----------
    share
        Which process this is, from 0, and how many there are.
    wait
        Returns once every process has called it.

    Returns
    -------
    KnowledgeBase or None
        None but in the first process.
    """
    directory = Path(directory)
    _check_free(directory, overwrite or update)
    number, count = share
    shares = directory.with_name(f".{directory.name}.{encoder.fingerprint[:12]}.shares")
    size = batch * -(-len(cases) // (batch * count))
    starts = range(0, len(cases), size)
    places = [shares / f"{n}-of-{count}" for n in range(len(starts))]
    if number < len(places):
        build_knowledge_base(
            places[number],
            cases[starts[number] : starts[number] + size],
            encoder,
            batch=batch,
            update=(places[number] / MANIFEST).is_file(),
            parts=[directory] if update else [],
            progress=progress,
            **settings,
        )
    wait()
    if number:
        return None
    if update and (directory / LEARNT).is_file():
        shutil.copy2(directory / LEARNT, shares / LEARNT)
    built = build_knowledge_base(
        directory,
        cases,
        encoder,
        batch=batch,
        overwrite=overwrite or update,
        parts=places,
        **settings,
    )
    if (shares / LEARNT).is_file():
        os.replace(shares / LEARNT, directory / LEARNT)
    shutil.rmtree(shares)
    return built


def _check_free(directory: Path, overwrite: bool) -> None:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not (directory / MANIFEST).is_file():
        raise KnowledgeBaseError(
            f"{directory} exists and is not a knowledge base. Choose another directory."
        )
    if not overwrite:
        raise KnowledgeBaseError(
            f"There is a knowledge base in {directory} already. "
            "Choose another directory, or ask for it to be overwritten."
        )


def _plan(
    cases: Sequence[Record],
    encoder: Encoder,
    thumbnail_size: int,
    batch: int,
    known: Sequence[KnowledgeBase],
) -> str:
    """SHA-256 over all that decides what a build writes, but for the images themselves."""
    settings = [FORMAT, encoder.fingerprint, thumbnail_size, batch, THUMBNAIL_FILE_BYTES]
    settings += [base.fingerprint for base in known]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for case in cases:
        row = [*asdict(case.document).values(), str(case.image_path)]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a directory against other builds; the system lets go of it when a process ends."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise KnowledgeBaseError(
            f"Another build is at work in {directory}. Wait for it, or choose another directory."
        ) from error
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def _stopped_in_words(directory: Path) -> Iterator[None]:
    """Turn what the machine runs out of into a sentence; what was encoded stays."""
    kept = "What was encoded is kept there, and the same command goes on from it"
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise KnowledgeBaseError(
            f"There is no room left for {directory} ({error.strerror}). {kept} once there is."
        ) from error
    except BrokenProcessPool as error:
        raise KnowledgeBaseError(
            f"A process that opens images for {directory} was ended by the system, most likely "
            f"for want of memory. {kept}; with fewer --workers it needs less."
        ) from error


@dataclass(frozen=True)
class _Step:
    """How far a build is: a line of the journal, written once all before it is on disk."""

    cases: int = 0
    documents: int = 0
    document_bytes: int = 0
    thumbnail_file: int = -1
    thumbnail_bytes: int = 0
    skipped: Mapping[str, Sequence[str]] = field(default_factory=dict)


class _Read(NamedTuple):
    """A document with its thumbnail and its image file's size and time."""

    document: Document
    jpeg: bytes
    stamp: tuple[int, int]


class _Draft:
    """The files of a build, each open at the end of what the journal vouches for."""

    def __init__(self, directory: Path, plan: str, encoder: Encoder) -> None:
        self.directory, self.width = directory, 2 * encoder.dimension
        self.skipped: dict[str, list[str]] = {}
        self.step = _Step()
        steps = self._read_journal(plan)
        if not steps:
            for entry in directory.iterdir():
                entry.unlink()
            (directory / PLAN).write_text(json.dumps({"plan": plan}) + "\n", encoding="utf-8")
        for step in steps:
            self.step = step
            for reason, ids in step.skipped.items():
                self.skipped.setdefault(reason, []).extend(ids)
        (directory / MANIFEST).unlink(missing_ok=True)
        for path in directory.glob("thumbnails-*.bin"):
            if int(path.stem.partition("-")[2]) > self.step.thumbnail_file:
                path.unlink()
        self._files: dict[str, BinaryIO] = {}
        for name, size in self._sizes(self.step).items():
            self._open(name, size)
        journal = "".join(json.dumps(asdict(step)) + "\n" for step in steps)
        self._open(JOURNAL, len(journal.encode()))

    @staticmethod
    def thumbnail_name(number: int) -> str:
        return f"thumbnails-{number:03d}.bin"

    def _sizes(self, step: _Step) -> dict[str, int]:
        """How many bytes of which file a step vouches for."""
        sizes = {
            DOCUMENTS: step.document_bytes,
            ROWS: step.documents * self.width * 2,
            STAMP_ROWS: step.documents * 16,
        }
        if step.thumbnail_file >= 0:
            sizes[self.thumbnail_name(step.thumbnail_file)] = step.thumbnail_bytes
        return sizes

    def _open(self, name: str, size: int) -> BinaryIO:
        stream: BinaryIO = (self.directory / name).open("ab")
        stream.truncate(size)
        self._files[name] = stream
        return stream

    def _read_journal(self, plan: str) -> list[_Step]:
        """The steps whose files are all there; none where this is another build's."""
        steps: list[_Step] = []
        try:
            if json.loads((self.directory / PLAN).read_text(encoding="utf-8"))["plan"] != plan:
                logger.info("%s is of another build, and is begun again", self.directory)
                return steps
            for line in (self.directory / JOURNAL).read_text(encoding="utf-8").splitlines():
                step = _Step(**json.loads(line))
                if any(
                    (self.directory / name).stat().st_size < size
                    for name, size in self._sizes(step).items()
                ):
                    break
                steps.append(step)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # what was read before the damage is good
        return steps

    def add(self, read: Sequence[_Read], vectors_ND: FloatArray) -> None:
        """Write documents with their vectors and thumbnails; :meth:`commit` vouches for them."""
        file, offset, lines = self.step.thumbnail_file, self.step.thumbnail_bytes, b""
        for item in read:
            if file < 0 or offset + len(item.jpeg) > THUMBNAIL_FILE_BYTES:
                if file >= 0:
                    self._files.pop(self.thumbnail_name(file)).close()
                file, offset = file + 1, 0
                self._open(self.thumbnail_name(file), 0)
            name = self.thumbnail_name(file)
            self._files[name].write(item.jpeg)
            line = {**asdict(item.document), "thumbnail": [name, offset, len(item.jpeg)]}
            lines += json.dumps(line, ensure_ascii=False).encode() + b"\n"
            offset += len(item.jpeg)
        self._files[DOCUMENTS].write(lines)
        self._files[ROWS].write(vectors_ND.astype("<f2").tobytes())
        self._files[STAMP_ROWS].write(np.array([i.stamp for i in read], dtype="<i8").tobytes())
        self.step = replace(
            self.step,
            documents=self.step.documents + len(read),
            document_bytes=self.step.document_bytes + len(lines),
            thumbnail_file=file,
            thumbnail_bytes=offset,
        )

    def commit(self, cases: int, skipped: Mapping[str, Sequence[str]]) -> None:
        """Vouch in the journal for all that was written so far."""
        for reason, ids in skipped.items():
            self.skipped.setdefault(reason, []).extend(ids)
        self.step = replace(self.step, cases=cases, skipped=skipped)
        journal = self._files[JOURNAL]
        for stream in self._files.values():
            stream.flush()
        journal.write(json.dumps(asdict(self.step)).encode() + b"\n")
        journal.flush()

    def close(self) -> None:
        """Close all files, as their names are read next."""
        while self._files:
            self._files.popitem()[1].close()

    def abandon(self) -> None:
        """Close what is open, whatever the disk says: it is not vouched for."""
        while self._files:
            with suppress(OSError):
                self._files.popitem()[1].close()


class _Opened(NamedTuple):
    """What became of one image file; ``error`` where it could not be read."""

    pixels_CYX: FloatArray | None
    jpeg: bytes
    stamp: tuple[int, int]
    error: str = ""


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file, or -1 and -1 where it is not there."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _open_images(
    prepare: Callable[[Sequence[Image]], FloatArray], size: int, paths: Sequence[Path]
) -> list[_Opened]:
    """Decode, prepare and reduce images; runs in a process of its own."""
    opened = []
    for path in paths:
        stamp = _stamp(path)
        try:
            image = load_image(path)
        except ImageError as error:
            opened.append(_Opened(None, b"", stamp, str(error)))
        else:
            opened.append(_Opened(prepare([image])[0], thumbnail(image, size), stamp))
    return opened


def _fill(
    draft: _Draft,
    cases: Sequence[Record],
    encoder: Encoder,
    thumbnail_size: int,
    batch: int,
    workers: int | None,
    known: Sequence[KnowledgeBase],
    progress: OnProgress,
) -> None:
    """Encode what the draft lacks, a batch at a time, in the order of the cases."""
    done = draft.step.cases
    if done:
        progress(done, len(cases))
    place_of = _places_to_keep(known, thumbnail_size)
    batches = [
        [(case, place_of(case)) for case in cases[i : i + batch]]
        for i in range(done, len(cases), batch)
    ]
    wanted = [
        [case.image_path for case, place in rows if place is None and case.document.report.strip()]
        for rows in batches
    ]
    if workers is None:
        workers = min(os.cpu_count() or 1, sum(map(len, wanted)) // 64)
    open_images = partial(_open_images, encoder.prepare, thumbnail_size)
    for rows, results in zip(batches, _in_order(open_images, wanted, workers), strict=True):
        opened = iter(results)
        skipped: dict[str, list[str]] = {}
        read: list[_Read] = []
        # Knowledge base → places in this batch, and numbers in it.
        kept: dict[KnowledgeBase, tuple[list[int], list[int]]] = {}
        pixels: dict[int, FloatArray] = {}
        for case, place in rows:
            if not case.document.report.strip():
                skipped.setdefault("no report", []).append(case.document.id)
            elif place is not None:
                base, i = place
                here, there = kept.setdefault(base, ([], []))
                here.append(len(read))
                there.append(i)
                stamp = _stamp(case.image_path)
                read.append(_Read(case.document, base.thumbnail(i), stamp))
            elif (item := next(opened)).pixels_CYX is None:
                logger.warning("Case %s is left out: %s", case.document.id, item.error)
                skipped.setdefault("image cannot be read", []).append(case.document.id)
            else:
                pixels[len(read)] = item.pixels_CYX
                read.append(_Read(case.document, item.jpeg, item.stamp))
        if read:
            vectors_ND = np.empty((len(read), draft.width), dtype=np.float32)
            if pixels:
                reports = [read[n].document.report for n in pixels]
                encoded_ND = _encode(reports, np.stack(list(pixels.values())), encoder)
                vectors_ND[list(pixels)] = encoded_ND
            for base, (here, there) in kept.items():
                vectors_ND[here] = np.concatenate(base.vectors(there), axis=1)
            draft.add(read, vectors_ND)
        done += len(rows)
        draft.commit(done, skipped)
        progress(done, len(cases))


def _in_order(
    open_images: Callable[[Sequence[Path]], list[_Opened]],
    batches: Sequence[Sequence[Path]],
    workers: int,
) -> Iterator[list[_Opened]]:
    """Batches as they were given, opened by other processes a few batches ahead."""
    if workers < 2:
        yield from map(open_images, batches)
        return
    # One thread a process: several of each would wait for one another.
    with ProcessPoolExecutor(workers, initializer=threadpool_limits, initargs=(1,)) as pool:
        waiting: deque[list[Future[list[_Opened]]]] = deque()
        for paths in batches:
            size = max(1, -(-len(paths) // workers))
            parts = (paths[i : i + size] for i in range(0, len(paths), size))
            waiting.append([pool.submit(open_images, part) for part in parts])
            if len(waiting) > 4:  # enough to keep all busy, little enough to hold
                yield [item for job in waiting.popleft() for item in job.result()]
        while waiting:
            yield [item for job in waiting.popleft() for item in job.result()]


def _places_to_keep(
    known: Sequence[KnowledgeBase], thumbnail_size: int
) -> Callable[[Record], tuple[KnowledgeBase, int] | None]:
    """Where a case stands just as it is now, or None: a function of the case."""
    bases: list[tuple[KnowledgeBase, npt.NDArray[np.int64], dict[str, int]]] = []
    for base in known:
        if base.manifest.get("thumbnail_size") != thumbnail_size:
            continue
        try:
            stamps = np.load(base.directory / STAMPS, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            stamps = np.empty((0, 2))
        if stamps.shape != (len(base), 2):
            logger.info("%s does not say of which images it is: all are encoded", base.directory)
            continue
        bases.append((base, stamps, {d.id: i for i, d in enumerate(base.documents)}))

    def place_of(case: Record) -> tuple[KnowledgeBase, int] | None:
        stamp = None
        for base, stamps, numbers in bases:
            i = numbers.get(case.document.id)
            if i is None or base.document(i).report != case.document.report:
                continue
            stamp = stamp or _stamp(case.image_path)
            if stamp[0] >= 0 and stamp == tuple(stamps[i].tolist()):
                return base, i
        return None

    return place_of


def _encode(reports: Sequence[str], pixels_NCYX: FloatArray, encoder: Encoder) -> FloatArray:
    """[t_d ; v_d] of documents, float32 [N, 2D]."""
    t_ND = encoder.texts(reports)
    v_ND = encoder.encode_prepared(pixels_NCYX)
    for vectors in (t_ND, v_ND):
        if not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
            raise KnowledgeBaseError(
                f'The encoder "{encoder.name}" gave vectors that are not of norm 1. '
                "Cosines need unit vectors: check its weights."
            )
    return np.concatenate([t_ND, v_ND], axis=1)


def _finish(draft: _Draft, cases: int, encoder: Encoder, thumbnail_size: int) -> None:
    """Make the index of the rows, and write the manifest, last of all."""
    directory, count = draft.directory, draft.step.documents
    if not count:
        raise KnowledgeBaseError(
            f"None of {cases} cases could be built in. Check the data set and its images."
        )
    index = faiss.IndexScalarQuantizer(
        draft.width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    with (directory / ROWS).open("rb") as rows:
        while block := rows.read(4096 * draft.width * 2):
            index.add(np.frombuffer(block, "<f2").reshape(-1, draft.width).astype(np.float32))
    # FAISS's own writer does not say why it failed.
    with (directory / VECTORS).open("wb") as stream:
        stream.write(faiss.serialize_index(index).data)
    stamps = np.fromfile(directory / STAMP_ROWS, dtype="<i8").reshape(-1, 2)
    np.save(directory / STAMPS, stamps)
    documents = _Documents(directory / DOCUMENTS)
    sources = Counter((d.source, d.licence) for d in documents)
    splits = Counter(d.split for d in documents)
    thumbnails = map(draft.thumbnail_name, range(draft.step.thumbnail_file + 1))
    manifest = {
        "format": FORMAT,
        # Its own folder lies beside this one, so that both see other folders alike.
        "encoder": describe_encoder(encoder, directory),
        "dimension": encoder.dimension,
        "count": count,
        "patients": len(np.unique(documents.patients)),
        "studies": len(np.unique(documents.studies)),
        "splits": dict(splits),
        "vectors": "float16, report then image, inner product",
        "thumbnail_size": thumbnail_size,
        "sources": [{"source": s, "licence": b, "count": n} for (s, b), n in sources.items()],
        "skipped": {"image cannot be read": [], **draft.skipped},
        "calibration": _calibration(index, documents),
        "files": {
            name: {
                "bytes": (directory / name).stat().st_size,
                "sha256": file_sha256(directory / name),
            }
            for name in (DOCUMENTS, VECTORS, *thumbnails)
        },
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    # All at once: half a manifest must not be there either.
    part = directory / f"{MANIFEST}.part"
    part.write_text(text, encoding="utf-8")
    os.replace(part, directory / MANIFEST)
    for path in directory.iterdir():  # the disk has it all before it gets its name
        with path.open("rb") as stream_:
            os.fsync(stream_.fileno())


def _put_in_place(whole: Path, directory: Path) -> None:
    """Rename a knowledge base to where it belongs, in place of what is there."""
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        os.replace(directory, old)
        try:
            os.replace(whole, directory)
        except OSError:
            os.replace(old, directory)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(whole, directory)


def _calibration(index: faiss.Index, documents: _Documents) -> dict[str, Any] | None:
    """Percentiles of cosines between random documents of different patients."""
    rng = np.random.default_rng(0)
    pairs = [
        (int(a), int(b))
        for a, b in rng.integers(0, len(documents), (CALIBRATION_PAIRS, 2))
        if documents[a].patient != documents[b].patient
    ]
    if not pairs:
        return None
    dimension = index.d // 2
    first, second = (index.reconstruct_batch(np.array(side)) for side in zip(*pairs, strict=True))
    images = first[:, dimension:]
    cosines = {
        "image_report": (images * second[:, :dimension]).sum(axis=1),
        "image_image": (images * second[:, dimension:]).sum(axis=1),
    }
    return {
        "pairs": len(pairs),
        "percentiles": list(PERCENTILES),
        **{
            name: [round(float(p), 6) for p in np.percentile(values, PERCENTILES)]
            for name, values in cosines.items()
        },
    }


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        later = manifest["format"] > FORMAT
        if not later:
            for key, kind in (("encoder", dict), ("files", dict), ("dimension", int)):
                if not isinstance(manifest[key], kind):
                    raise TypeError(f"{key} is not of type {kind.__name__}")
            manifest["count"], manifest["encoder"]["name"], manifest["encoder"]["fingerprint"]
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


def _check_files(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
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
