"""The data that training reads: cases with their questions, and images as cached arrays."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mrrag.data.corpus import read_corpus
from mrrag.data.images import load_image
from mrrag.data.records import Corpus, Question, Record
from mrrag.errors import CorpusError, ImageError
from mrrag.files import write_atomic
from mrrag.types import Image


@dataclass(frozen=True)
class DataSet:
    """A corpus with its questions grouped by case: ``questions[n]`` are about ``records[n]``.

    ``directory`` is where it was read from.
    """

    records: tuple[Record, ...]
    questions: tuple[tuple[Question, ...], ...]
    directory: Path = Path()

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """Return the row numbers of the cases of a split."""
        return np.array([n for n, r in enumerate(self.records) if r.split == split], dtype=np.int64)

    def subset(self, rows: Iterable[int]) -> DataSet:
        """Return the data set with these cases only, in this order."""
        rows = list(rows)
        return replace(
            self,
            records=tuple(self.records[n] for n in rows),
            questions=tuple(self.questions[n] for n in rows),
        )

    def without(self, rows: Sequence[int]) -> DataSet:
        """Return the data set with these cases in no split; row numbers stay the same."""
        records = list(self.records)
        for n in rows:
            records[n] = _with_split(records[n], "")
        return replace(self, records=tuple(records))

    @property
    def reports(self) -> list[str]:
        """The report of every case."""
        return [record.document.report for record in self.records]

    @property
    def patients(self) -> npt.NDArray[np.str_]:
        """The patient of every case."""
        return np.array([record.document.patient for record in self.records])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the texts, splits and labels, and of the images' names and sizes."""
        digest = hashlib.sha256()
        for record, questions in zip(self.records, self.questions, strict=True):
            path = record.image_path
            document = asdict(record.document).values()
            row = [*document, record.problems, path.name, path.stat().st_size]
            digest.update(json.dumps([*row, *map(asdict, questions)]).encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        """Return what ``config.json`` says about the data of a run."""
        return {
            "directory": str(self.directory),
            "cases": len(self.records),
            "questions": sum(map(len, self.questions)),
            "fingerprint": self.fingerprint,
        }


def _with_split(record: Record, split: str) -> Record:
    return replace(record, document=replace(record.document, split=split))


def group_questions(corpus: Corpus, directory: Path) -> DataSet:
    """Return the corpus with its questions grouped by the case that they are about."""
    by_id: dict[str, list[Question]] = {r.document.id: [] for r in corpus.records}
    for question in corpus.questions:
        if question.uid in by_id:
            by_id[question.uid].append(question)
    questions = tuple(tuple(by_id[r.document.id]) for r in corpus.records)
    return DataSet(corpus.records, questions, directory)


def read_data_set(directory: Path) -> DataSet:
    """Read a data set in the Kaggle form of IU-Xray with its ``questions.jsonl``.

    Raises
    ------
    CorpusError
        If it cannot be read, or has no questions.
    """
    corpus = read_corpus(directory, "indiana")
    if not corpus.questions:
        raise CorpusError(
            f"{directory} has no questions. Write a world with questions.jsonl by "
            "`python -m mrrag phantom`."
        )
    return group_questions(corpus, directory)


def sample_patients(patients: Iterable[str], share: float) -> set[str]:
    """Deterministically sample ``share`` of the patients, at least one, by a hash of their IDs."""
    ordered = sorted(set(patients), key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(ordered[: math.ceil(share * len(ordered))])


def split_for_training(
    corpus: Corpus, directory: Path, *, validation_share: float = 0.1
) -> DataSet:
    """Return the cases of a corpus that have a report, with a validation split.

    Cases without a split go into training. Where there is no validation split,
    ``validation_share`` of the training patients are moved into one.

    Raises
    ------
    CorpusError
        If fewer than two cases are left for training or for validation.
    """
    records = [
        _with_split(record, record.split or "train")
        for record in corpus.records
        if record.document.report.strip()
    ]
    if not any(record.split == "validation" for record in records):
        train = (record.document.patient for record in records if record.split == "train")
        chosen = sample_patients(train, validation_share)
        records = [
            _with_split(record, "validation")
            if record.split == "train" and record.document.patient in chosen
            else record
            for record in records
        ]
    return require_cases(group_questions(replace(corpus, records=tuple(records)), directory))


def require_cases(data: DataSet) -> DataSet:
    """Return the data set unchanged.

    Raises
    ------
    CorpusError
        If it has fewer than two cases for training or for validation.
    """
    counts = {name: len(data.rows(name)) for name in ("train", "validation")}
    if min(counts.values()) < 2:
        raise CorpusError(
            f"{data.directory} has {counts['train']} cases with a report and an image to train on "
            f"and {counts['validation']} to validate with; at least two of each are needed."
        )
    return data


def cached_pixels(
    cache: Path,
    paths: Sequence[Path],
    prepare: Callable[[Sequence[Image]], npt.NDArray[np.float32]],
    *,
    workers: int | None = None,
) -> tuple[npt.NDArray[np.float16], list[int]]:
    """Return the images as an encoder reads them, from ``cache``, which is written if absent.

    Parameters
    ----------
    prepare
        Images to float32 [n, C, Y, X]; must be picklable.

    Returns
    -------
    pixels : float16 [N, C, Y, X]
        Memory-mapped.
    unreadable : list of int
        Row numbers of the images that cannot be read; these rows are zero.
    """
    unreadable = cache.with_suffix(".unreadable.json")
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        starts = range(0, len(paths), 64)
        part = cache.with_suffix(".part.npy")
        with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
            done = pool.map(partial(_prepare_chunk, prepare), [paths[i : i + 64] for i in starts])
            pixels = None  # on disk: it may be larger than memory
            failed: list[int] = []
            bar = tqdm(total=len(paths), desc=cache.stem, unit="image", mininterval=5)
            for i, (chunk, missing) in zip(starts, done, strict=True):
                failed += [i + n for n in missing]
                if pixels is None:
                    shape = (len(paths), *chunk.shape[1:])
                    pixels = np.lib.format.open_memmap(part, "w+", chunk.dtype, shape)
                pixels[i : i + len(chunk)] = chunk
                bar.update(len(chunk))
            bar.close()
        write_atomic(unreadable, json.dumps(failed))
        os.replace(part, cache)
    loaded: npt.NDArray[np.float16] = np.load(cache, mmap_mode="r", allow_pickle=False)
    return loaded, json.loads(unreadable.read_text(encoding="utf-8"))


def _prepare_chunk(
    prepare: Callable[[Sequence[Image]], npt.NDArray[np.float32]], paths: Sequence[Path]
) -> tuple[npt.NDArray[np.float16], list[int]]:
    images, missing = [], []
    for n, path in enumerate(paths):
        try:
            images.append(load_image(path))
        except (ImageError, OSError):
            images.append(Image(np.zeros((8, 8), np.uint8)))
            missing.append(n)
    pixels = prepare(images).astype(np.float16)
    pixels[missing] = 0
    return pixels, missing
