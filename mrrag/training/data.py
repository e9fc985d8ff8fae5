"""A data set on disk → the arrays that training reads, made once and kept in a cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mrrag.corpus import Case, Question, read_indiana, read_questions
from mrrag.images import load_image
from mrrag.types import Image


@dataclass(frozen=True)
class DataSet:
    """Cases with the questions about each, in the order of the data set.

    ``questions[n]`` are about ``cases[n]``.
    """

    directory: Path
    cases: tuple[Case, ...]
    questions: tuple[tuple[Question, ...], ...]

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """The numbers of the cases of a split."""
        return np.array([n for n, c in enumerate(self.cases) if c.split == split], dtype=np.int64)

    @property
    def reports(self) -> list[str]:
        """Every case's report."""
        return [c.document.report for c in self.cases]

    @property
    def patients(self) -> npt.NDArray[np.str_]:
        """Every case's patient."""
        return np.array([c.document.patient for c in self.cases])


def read_data_set(directory: Path) -> DataSet:
    """Read a data set in the Kaggle form of IU-Xray with its ``questions.jsonl``.

    A ``source.json`` beside it says where it comes from and under which licence.
    """
    about = directory / "source.json"
    origin = json.loads(about.read_text(encoding="utf-8")) if about.exists() else {}
    cases = read_indiana(directory, **origin).cases
    by_uid: dict[str, list[Question]] = {c.document.study: [] for c in cases}
    for question in read_questions(directory / "questions.jsonl"):
        if question.uid in by_uid:
            by_uid[question.uid].append(question)
    return DataSet(directory, cases, tuple(tuple(by_uid[c.document.study]) for c in cases))


def describe(data: DataSet) -> dict[str, object]:
    """What tells a data set apart: its texts, its splits, and its images by name and size."""
    digest = hashlib.sha256()
    for case, row in zip(data.cases, data.questions, strict=True):
        d, path = case.document, case.image_path
        size = path.stat().st_size if path.exists() else -1
        facts = [d.id, d.report, d.patient, d.study, d.split, path.name, size]
        asked = [[q.qid, q.question, q.answer] for q in row]
        digest.update(json.dumps([facts, asked]).encode())
    return {
        "directory": str(data.directory),
        "cases": len(data.cases),
        "questions": sum(map(len, data.questions)),
        "fingerprint": digest.hexdigest(),
    }


def cached_pixels(
    cache: Path,
    paths: Sequence[Path],
    prepare: Callable[[Sequence[Image]], npt.NDArray[np.float32]],
    *,
    workers: int | None = None,
) -> npt.NDArray[np.float16]:
    """Every image as its tower reads it, float16 [N, C, Y, X], memory-mapped from ``cache``.

    Parameters
    ----------
    prepare
        Images to float32 [n, C, Y, X]; must be picklable.
    """
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        chunks = [paths[i : i + 64] for i in range(0, len(paths), 64)]
        with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
            done = pool.map(partial(_prepare_chunk, prepare), chunks)
            arrays = list(tqdm(done, total=len(chunks), desc=cache.stem, mininterval=5))
        part = cache.with_suffix(".part.npy")
        np.save(part, np.concatenate(arrays))
        os.replace(part, cache)
    loaded: npt.NDArray[np.float16] = np.load(cache, mmap_mode="r", allow_pickle=False)
    return loaded


def _prepare_chunk(
    prepare: Callable[[Sequence[Image]], npt.NDArray[np.float32]], paths: Sequence[Path]
) -> npt.NDArray[np.float16]:
    return prepare([load_image(p) for p in paths]).astype(np.float16)
