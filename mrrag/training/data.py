"""A data set on disk → the arrays that training reads, made once and kept in a cache."""

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

from mrrag.data.corpus import Corpus, Question, Record, read_indiana, read_questions
from mrrag.data.images import load_image
from mrrag.errors import CorpusError, ImageError
from mrrag.types import Image


@dataclass(frozen=True)
class DataSet:
    """Cases with the questions about each, in the order of the data set.

    ``questions[n]`` are about ``cases[n]``.
    """

    directory: Path
    records: tuple[Record, ...]
    questions: tuple[tuple[Question, ...], ...]

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """The numbers of the cases of a split."""
        return np.array([n for n, c in enumerate(self.records) if c.split == split], dtype=np.int64)

    def without(self, rows: Sequence[int]) -> DataSet:
        """The same cases in the same places, but these belong to no split."""
        cases = list(self.records)
        for n in rows:
            cases[n] = replace(cases[n], document=replace(cases[n].document, split=""))
        return replace(self, records=tuple(cases))

    @property
    def reports(self) -> list[str]:
        """Every case's report."""
        return [c.document.report for c in self.records]

    @property
    def patients(self) -> npt.NDArray[np.str_]:
        """Every case's patient."""
        return np.array([c.document.patient for c in self.records])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over its texts, splits and labels, and its images' names and sizes."""
        digest = hashlib.sha256()
        for case, questions in zip(self.records, self.questions, strict=True):
            path = case.image_path
            row = [*asdict(case.document).values(), case.problems, path.name, path.stat().st_size]
            digest.update(json.dumps([*row, *map(asdict, questions)]).encode())
        return digest.hexdigest()


def read_data_set(directory: Path) -> DataSet:
    """Read a data set in the Kaggle form of IU-Xray with its ``questions.jsonl``.

    A ``source.json`` beside it says where it comes from and under which licence.
    """
    about = directory / "source.json"
    origin = json.loads(about.read_text(encoding="utf-8")) if about.exists() else {}
    cases = read_indiana(directory, **origin).records
    by_uid: dict[str, list[Question]] = {c.document.study: [] for c in cases}
    for question in read_questions(directory / "questions.jsonl"):
        if question.uid in by_uid:
            by_uid[question.uid].append(question)
    return DataSet(directory, cases, tuple(tuple(by_uid[c.document.study]) for c in cases))


def held_out_share(patients: Iterable[str], share: float) -> set[str]:
    """So large a share of the patients, at least one, by a digest of their names."""
    ordered = sorted(set(patients), key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(ordered[: math.ceil(share * len(ordered))])


def to_learn_from(read: Corpus, directory: Path, *, held_out: float = 0.1) -> DataSet:
    """A data set of any layout, as far as it has reports, with a validation split.

    Cases of no split are for training. Where none is for validation, every patient of a
    ``held_out`` share of training's is, chosen by a digest of their names.

    Raises
    ------
    CorpusError
        Where fewer than two cases are left to train on, or to validate with.
    """
    cases = [case for case in read.records if case.document.report.strip()]
    split = [case.split or "train" for case in cases]
    if "validation" not in split:
        chosen = held_out_share(
            (c.document.patient for c, s in zip(cases, split, strict=True) if s == "train"),
            held_out,
        )
        split = [
            "validation" if s == "train" and c.document.patient in chosen else s
            for c, s in zip(cases, split, strict=True)
        ]
    asked: dict[str, list[Question]] = {case.document.id: [] for case in cases}
    for question in read.questions:
        if question.uid in asked:
            asked[question.uid].append(question)
    data = DataSet(
        directory,
        tuple(
            replace(c, document=replace(c.document, split=s))
            for c, s in zip(cases, split, strict=True)
        ),
        tuple(tuple(asked[case.document.id]) for case in cases),
    )
    return checked(data)


def checked(data: DataSet) -> DataSet:
    """The data set itself, where there is enough to train on and to validate with."""
    counts = {name: len(data.rows(name)) for name in ("train", "validation")}
    if min(counts.values()) < 2:
        raise CorpusError(
            f"{data.directory} has {counts['train']} cases with a report and an image to train on "
            f"and {counts['validation']} to validate with; two of each are needed at least."
        )
    return data


def describe(data: DataSet) -> dict[str, object]:
    """A data set for a run's record: where it was, how large, and its fingerprint."""
    return {
        "directory": str(data.directory),
        "cases": len(data.records),
        "questions": sum(map(len, data.questions)),
        "fingerprint": data.fingerprint,
    }


def cached_pixels(
    cache: Path,
    paths: Sequence[Path],
    prepare: Callable[[Sequence[Image]], npt.NDArray[np.float32]],
    *,
    workers: int | None = None,
) -> tuple[npt.NDArray[np.float16], list[int]]:
    """Every image as its tower reads it, float16 [N, C, Y, X], memory-mapped from ``cache``.

    Parameters
    ----------
    prepare
        Images to float32 [n, C, Y, X]; must be picklable.

    Returns
    -------
    tuple
        The pixels, and the numbers of the images that cannot be read, whose rows are black.
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
            bar = tqdm(done, total=len(starts), desc=cache.stem, mininterval=5)
            for i, (chunk, missing) in zip(starts, bar, strict=True):
                failed += [i + n for n in missing]
                if pixels is None:
                    shape = (len(paths), *chunk.shape[1:])
                    pixels = np.lib.format.open_memmap(part, "w+", chunk.dtype, shape)
                pixels[i : i + len(chunk)] = chunk
        unreadable.write_text(json.dumps(failed), encoding="utf-8")
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
