"""Query studies and every similarity between them and the documents of a knowledge base.

Shape suffixes: Q query, N document, F question, D embedding, P pixel, W word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mrrag.data.images import load_image
from mrrag.data.records import Record
from mrrag.errors import CorpusError, ImageError
from mrrag.retrieval.calibration import small_picture
from mrrag.retrieval.encoders import Encoder
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.types import Document, FloatArray, Image, Weights

__all__ = [
    "Queries",
    "Similarities",
    "queries_of_base",
    "queries_of_records",
    "report_cosines",
    "similarities",
]

Int64Array = npt.NDArray[np.int64]
BATCH = 32  # images that are encoded together

# Returns the items with a progress bar; arguments: items, their number, a label.
Ticker = Callable[[Iterable[Any], int, str], Iterable[Any]]


@dataclass(frozen=True)
class Queries:
    """Studies that are asked about.

    Attributes
    ----------
    documents : tuple of Document
        Who they are, and what their own reports say.
    v_QD : float32 [Q, D]
        Unit vectors of their images.
    small_QP : float32 [Q, P]
        Their small pictures (:func:`mrrag.retrieval.calibration.small_picture`).
    """

    documents: tuple[Document, ...]
    v_QD: FloatArray
    small_QP: FloatArray


@dataclass(frozen=True)
class Similarities:
    """Scores of every document for every query; −inf where both are of one patient or study.

    Attributes
    ----------
    alpha_QN, beta_QN : float32 [Q, N]
        Cosines of image and report, and of image and image.
    gamma_FN : float32 [F, N]
        Cosines of question and report; the patients are not in it, so nothing is barred.
    pixels_QN : float32 [Q, N]
        Correlation of the small pictures.
    own_report_QN : float32 [Q, N]
        TF-IDF cosine of the query's own report and the document's.
    random_QN : float32 [Q, N]
        Uniform draws.
    report_N : int64 [N]
        Equal where the reports are.
    """

    alpha_QN: FloatArray
    beta_QN: FloatArray
    gamma_FN: FloatArray
    pixels_QN: FloatArray
    own_report_QN: FloatArray
    random_QN: FloatArray
    report_N: Int64Array

    def spread(self) -> Weights:
        """Return how far the cosines of one query spread over the documents, on average.

        As :func:`mrrag.retrieval.calibration.spread`, of the pairs that are here.
        """
        alpha, beta = (
            float(np.nanstd(np.where(np.isfinite(cosine_QN), cosine_QN, np.nan), axis=1).mean())
            for cosine_QN in (self.alpha_QN, self.beta_QN)
        )
        return Weights(alpha, beta, float(self.gamma_FN.std(axis=1).mean()))

    def of_queries(self, chosen_Q: npt.NDArray[np.bool_]) -> Similarities:
        """Return the rows of some of the queries."""
        return replace(
            self,
            alpha_QN=self.alpha_QN[chosen_Q],
            beta_QN=self.beta_QN[chosen_Q],
            pixels_QN=self.pixels_QN[chosen_Q],
            own_report_QN=self.own_report_QN[chosen_Q],
            random_QN=self.random_QN[chosen_Q],
        )

    def fused(self, weights: Weights) -> tuple[FloatArray, ...]:
        """Return MCR's score for each question, float32 [Q, N] each.

        Where γ is 0 the question decides nothing, and there is one for all questions.
        """
        alpha, beta, gamma = (np.float32(w) for w in astuple(weights))
        barred_QN = np.isneginf(self.alpha_QN)
        picture_QN = np.zeros_like(self.alpha_QN)
        if alpha:  # 0 · −inf has no value
            picture_QN += alpha * np.where(barred_QN, 0, self.alpha_QN)
        if beta:
            picture_QN += beta * np.where(barred_QN, 0, self.beta_QN)
        picture_QN[barred_QN] = -np.inf
        if not gamma:
            return (picture_QN,)
        return tuple(picture_QN + gamma * cosine_N for cosine_N in self.gamma_FN)


def queries_of_base(
    knowledge_base: KnowledgeBase, numbers_N: Int64Array, count: int, *, seed: int = 0
) -> Queries:
    """Return a sample of a knowledge base's own studies as queries, among these numbers.

    A study is drawn once, by its first frontal image, or its first where none is known to
    be frontal. The vectors are those of the index, the small pictures those of the thumbnails.
    """
    documents = [knowledge_base.document(int(i)) for i in numbers_N]
    places = _sampled([d if d.report else None for d in documents], count, seed)
    _, v_QD = knowledge_base.vectors(numbers_N[places])
    small_QP = _small_thumbnails(knowledge_base, numbers_N[places])
    return Queries(tuple(documents[i] for i in places), v_QD, small_QP)


def queries_of_records(
    records: Sequence[Record],
    encoder: Encoder,
    count: int,
    *,
    seed: int = 0,
    ticker: Ticker = lambda items, total, label: items,
) -> Queries:
    """Return a sample of the studies of a data set as queries, one image of each.

    Images that cannot be read, and studies without a report, are left out.

    Raises
    ------
    CorpusError
        Where none is left.
    """
    chosen = _sampled([r.document if r.document.report else None for r in records], count, seed)
    documents: list[Document] = []
    vectors, small = [], []
    starts = range(0, len(chosen), BATCH)
    for start in ticker(starts, len(starts), f"images, {BATCH} at a time"):
        opened: list[Image] = []
        for i in chosen[start : start + BATCH]:
            try:
                opened.append(load_image(records[i].image_path))
            except ImageError:
                continue
            documents.append(records[i].document)
        if opened:
            vectors.append(encoder.images(opened))
            small += [small_picture(image) for image in opened]
    if not documents:
        raise CorpusError(
            f"None of {len(records)} studies has a report and an image that can be read, so "
            "there is nothing to audit with. Give another split or data set."
        )
    return Queries(tuple(documents), np.concatenate(vectors), np.stack(small))


def _sampled(documents: Sequence[Document | None], count: int, seed: int) -> Int64Array:
    """Return the places of up to ``count`` studies, one document of each, ascending."""
    of_study: dict[str, int] = {}
    for i, document in enumerate(documents):
        if document is None:
            continue
        known = documents[of_study.setdefault(document.study, i)]
        if document.view == "frontal" and known is not None and known.view != "frontal":
            of_study[document.study] = i
    places = np.fromiter(of_study.values(), np.int64, len(of_study))
    drawn = np.random.default_rng(seed).permutation(len(places))[:count]
    chosen: Int64Array = np.sort(places[drawn])
    return chosen


def similarities(
    knowledge_base: KnowledgeBase,
    numbers_N: Int64Array,
    queries: Queries,
    questions: Sequence[str],
    encoder: Encoder,
    *,
    seed: int = 0,
) -> Similarities:
    """Score the documents of these numbers for every query, in every way.

    Memory is 4 bytes × Q × N for each of five matrices, 200 MB for 500 × 20,000.
    """
    documents = [knowledge_base.document(int(i)) for i in numbers_N]
    t_ND, v_ND = knowledge_base.vectors(numbers_N)
    small_NP = _small_thumbnails(knowledge_base, numbers_N)
    barred_QN = _alike([d.patient for d in queries.documents], [d.patient for d in documents])
    barred_QN |= _alike([d.study for d in queries.documents], [d.study for d in documents])
    rng = np.random.default_rng(seed)
    scores = (
        queries.v_QD @ t_ND.T,
        queries.v_QD @ v_ND.T,
        queries.small_QP @ small_NP.T,
        report_cosines([d.report for d in queries.documents], [d.report for d in documents]),
        rng.random(barred_QN.shape, dtype=np.float32),
    )
    for score_QN in scores:
        score_QN[barred_QN] = -np.inf
    alpha_QN, beta_QN, pixels_QN, own_report_QN, random_QN = scores
    return Similarities(
        alpha_QN=alpha_QN,
        beta_QN=beta_QN,
        gamma_FN=encoder.texts(list(questions)) @ t_ND.T,
        pixels_QN=pixels_QN,
        own_report_QN=own_report_QN,
        random_QN=random_QN,
        report_N=knowledge_base.documents.reports[numbers_N],
    )


def _alike(queries: Sequence[str], documents: Sequence[str]) -> npt.NDArray[np.bool_]:
    _, code = np.unique([*queries, *documents], return_inverse=True)
    alike_QN: npt.NDArray[np.bool_] = code[: len(queries), None] == code[len(queries) :]
    return alike_QN


def _small_thumbnails(knowledge_base: KnowledgeBase, numbers: Int64Array) -> FloatArray:
    pictures = (np.asarray(knowledge_base.picture(int(i))) for i in numbers)
    return np.stack([small_picture(Image(picture)) for picture in pictures])


def report_cosines(queries: Sequence[str], documents: Sequence[str]) -> FloatArray:
    """Return TF-IDF cosines of reports, float32 [Q, N].

    A word counts (1 + ln tf) · (1 + ln(N / df)), with df the number of documents that hold
    it (Salton and Buckley 1988). Words of one document only, or of none, are left out: they
    match nothing else.
    """
    counted = [_words(report) for report in documents]
    df = Counter(word for words in counted for word in words)
    column = {word: w for w, word in enumerate(w for w, n in df.items() if n > 1)}
    idf_W = np.array([1 + np.log(len(documents) / df[word]) for word in column], np.float32)
    query_QW = _tf_idf([_words(report) for report in queries], column, idf_W)
    parts = [
        query_QW @ _tf_idf(counted[start : start + 1024], column, idf_W).T
        for start in range(0, len(counted), 1024)  # dense rows of a large base would not fit
    ]
    return np.concatenate(parts, axis=1)


def _words(report: str) -> Counter[str]:
    return Counter(re.findall(r"[^\W\d_]+", report.lower()))


def _tf_idf(
    counted: Sequence[Counter[str]], column: dict[str, int], idf_W: FloatArray
) -> FloatArray:
    rows = np.zeros((len(counted), len(column)), np.float32)
    for row, words in zip(rows, counted, strict=True):
        for word, times in words.items():
            if word in column:
                row[column[word]] = (1 + np.log(times)) * idf_W[column[word]]
    unit: FloatArray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
