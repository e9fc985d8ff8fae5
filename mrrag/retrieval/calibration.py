"""What is usual in a knowledge base, so that the unusual can be said.

Three yardsticks, all measured on the knowledge base itself, once, when it is loaded:

- chance: the score of a random document's image with another patient's document;
- the best score that the base's own images reach, among other patients' documents;
- how far the base's own images lie from the rest of it, in vectors and in pixels.

It knows vectors, thumbnails and weights; no model, and no case but the one it is asked
about. Shape suffixes: P random pair, M sampled document, F pixel.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import PIL.Image

from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.retrieval.mcr import effective_weights, retrieve
from mrrag.types import FloatArray, Image, QueryVectors, Weights

__all__ = ["Calibration", "calibrate", "chance_scores", "is_same_picture", "percentile", "unlike"]

PAIRS = 2000
SAMPLED = 256
REFERENCE = 4096  # documents that the usual place of an image is learnt from, at most
FEWEST = 100  # below this, one in a hundred cannot be measured
RARE = 1.0  # per cent: as rare as this among the base's own images is called unusual
SIDE = 32  # px, of the small pictures that are compared
RIDGE = 0.01  # of the mean variance, so that directions without any do not decide alone
SAME_PICTURE = 0.995
SAME_VECTOR = 0.98
_CHUNK = 8192

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """The yardsticks of a knowledge base.

    Attributes
    ----------
    image_report_P, image_image_P : float32 [P]
        Cosines of random pairs of different patients.
    reports_PD : float32 [P, D]
        The reports of these pairs, for a question's own cosines.
    weak : float
        Percentile among chance scores that the best report reaches for 99 of 100 of the
        base's own images; NaN where the base is too small to tell.
    center_D, whitening_DD : float64
        Mean and inverse square root of the covariance of its images' vectors.
    farthest : float
        Distance from the centre, so whitened, that 99 of 100 images keep within; NaN
        where the base is too small to tell.
    small_MF : float32 [M, F]
        Small pictures of a sample, standardised.
    least_alike : float
        Correlation with the nearest of them that 99 of 100 images of other patients
        reach; NaN where the base is too small to tell.
    """

    image_report_P: FloatArray
    image_image_P: FloatArray
    reports_PD: FloatArray
    weak: float
    center_D: Float64Array
    whitening_DD: Float64Array
    farthest: float
    small_MF: FloatArray
    least_alike: float


def calibrate(knowledge_base: KnowledgeBase, weights: Weights, *, seed: int = 0) -> Calibration:
    """Measure the yardsticks; about a second for a few thousand documents."""
    rng = np.random.default_rng(seed)
    count = len(knowledge_base)
    _, patient_N = np.unique([d.patient for d in knowledge_base.documents], return_inverse=True)
    first, second = rng.integers(0, count, (2, PAIRS))
    differ = patient_N[first] != patient_N[second]
    _, image_PD = knowledge_base.vectors(first[differ])
    report_PD, other_PD = knowledge_base.vectors(second[differ])

    reference = rng.permutation(count)[:REFERENCE]
    _, v_ND = knowledge_base.vectors(reference)
    # Learnt on one half of the patients, and the usual measured on the other.
    learnt_from = np.isin(patient_N[reference], np.unique(patient_N)[::2])
    center_D, whitening_DD = _whitening(v_ND[learnt_from] if learnt_from.sum() > 1 else v_ND)
    distances = _distances(v_ND[~learnt_from], center_D, whitening_DD)

    sample = reference[:SAMPLED]
    small_MF = np.stack([_small_thumbnail(knowledge_base, int(i)) for i in sample])
    alike_MM = small_MF @ small_MF.T
    alike_MM[patient_N[sample][:, None] == patient_N[sample]] = -1.0

    enough = count >= FEWEST and min(learnt_from.sum(), (~learnt_from).sum()) >= FEWEST // 4
    calibration = Calibration(
        image_report_P=(image_PD * report_PD).sum(1),
        image_image_P=(image_PD * other_PD).sum(1),
        reports_PD=report_PD,
        weak=math.nan,
        center_D=center_D,
        whitening_DD=whitening_DD,
        farthest=float(np.percentile(distances, 100 - RARE)) if enough else math.nan,
        small_MF=small_MF,
        least_alike=float(np.percentile(alike_MM.max(1), RARE)) if enough else math.nan,
    )
    if not enough:
        return calibration
    # Without a question, α and β decide alone; where both are zero, nothing can be measured.
    vectors = QueryVectors(image_PD[0], None)
    if max(abs(weights.alpha), abs(weights.beta)) <= 1e-6:
        return calibration
    usable, _ = effective_weights(weights, vectors)
    best = _best_scores(knowledge_base, usable, sample, patient_N)
    reached = percentile(best, chance_scores(calibration, vectors, usable))
    return replace(calibration, weak=float(np.percentile(reached, RARE)))


def chance_scores(
    calibration: Calibration, vectors: QueryVectors, weights: Weights
) -> Float64Array:
    """Scores of random pairs under these weights, with this query's question; ascending.

    Other weights cost one weighted sum of what is already there. ``weights`` are
    effective ones (:func:`mrrag.retrieval.mcr.effective_weights`).
    """
    scores = np.zeros(len(calibration.image_report_P))
    if vectors.v is not None:
        scores += weights.alpha * calibration.image_report_P
        scores += weights.beta * calibration.image_image_P
    if vectors.t is not None:
        scores += weights.gamma * (calibration.reports_PD @ vectors.t)
    return np.sort(scores)


def percentile(scores: npt.ArrayLike, chance: Float64Array) -> Float64Array:
    """Return the percentage of chance scores (ascending) below each score; NaN without any."""
    if not len(chance):
        return np.full(np.shape(scores), np.nan)
    return 100.0 * np.searchsorted(chance, scores) / len(chance)


def unlike(calibration: Calibration, image: Image, v_D: FloatArray) -> bool:
    """Return whether an image is unlike those of the knowledge base.

    It is where its vector lies farther out, or its pixels are less like any, than for 99
    of 100 of the base's own images. Of those, up to 2 in 100 would thus be called
    unlike. The vector alone does not tell: an encoder places what it never saw anywhere.
    """
    distance = float(_distances(v_D[None], calibration.center_D, calibration.whitening_DD)[0])
    alike = float((calibration.small_MF @ small_picture(image)).max(initial=-1.0))
    return distance > calibration.farthest or alike < calibration.least_alike


def is_same_picture(
    knowledge_base: KnowledgeBase, image: Image, vectors: QueryVectors
) -> str | None:
    """Return the id of the document that holds this very picture, or None.

    The nearest vectors are only a hint; the pixels of the thumbnail decide.
    """
    if vectors.v is None:
        return None
    nearest = retrieve(
        knowledge_base,
        QueryVectors(vectors.v, None),
        Weights(0.0, 1.0, 0.0),
        min(3, len(knowledge_base)),
    )
    small = small_picture(image)
    for found in nearest:
        if found.cosines[1] < SAME_VECTOR:
            break
        if float(small @ _small_thumbnail(knowledge_base, found.number)) > SAME_PICTURE:
            return found.document.id
    return None


def small_picture(image: Image) -> FloatArray:
    """Return the picture, padded to a square of :data:`SIDE` px, of mean 0 and norm 1: [F]."""
    return _small(PIL.Image.fromarray(image.display))


def _small_thumbnail(knowledge_base: KnowledgeBase, i: int) -> FloatArray:
    with PIL.Image.open(io.BytesIO(knowledge_base.thumbnail(i))) as picture:
        return _small(picture)


def _small(picture: PIL.Image.Image) -> FloatArray:
    grey = picture.convert("L")
    # A reduced copy first, so that a full-size film and its thumbnail are read alike.
    grey.thumbnail((4 * SIDE, 4 * SIDE), PIL.Image.Resampling.BOX)
    side = max(grey.size)
    square = PIL.Image.new("L", (side, side))
    square.paste(grey, ((side - grey.width) // 2, (side - grey.height) // 2))
    resized = square.resize((SIDE, SIDE), PIL.Image.Resampling.BILINEAR)
    values = np.asarray(resized, np.float32).ravel()
    values = values - values.mean()
    small: FloatArray = values / max(float(np.linalg.norm(values)), 1.0)
    return small


def _whitening(v_ND: FloatArray) -> tuple[Float64Array, Float64Array]:
    exact = v_ND.astype(np.float64)
    center_D = exact.mean(0)
    variances, directions = np.linalg.eigh(
        np.cov(exact.T) if len(exact) > 1 else np.eye(exact.shape[1])
    )
    variances = np.maximum(variances, 0.0) + RIDGE * max(float(variances.mean()), 1e-12)
    return center_D, directions / np.sqrt(variances)


def _distances(
    v_ND: FloatArray, center_D: Float64Array, whitening_DD: Float64Array
) -> Float64Array:
    distances: Float64Array = np.linalg.norm((v_ND - center_D) @ whitening_DD, axis=1)
    return distances


def _best_scores(
    knowledge_base: KnowledgeBase,
    weights: Weights,
    sample: npt.NDArray[np.int64],
    patient_N: npt.NDArray[np.int64],
) -> Float64Array:
    """Return the best score of each sampled document's image among other patients' documents."""
    _, query_MD = knowledge_base.vectors(sample)
    best_M = np.full(len(sample), -np.inf)
    for start in range(0, len(knowledge_base), _CHUNK):
        numbers = np.arange(start, min(start + _CHUNK, len(knowledge_base)))
        t_ND, v_ND = knowledge_base.vectors(numbers)
        scores_MN = query_MD @ (weights.alpha * t_ND + weights.beta * v_ND).T
        scores_MN[patient_N[sample][:, None] == patient_N[numbers]] = -np.inf
        best_M = np.maximum(best_M, scores_MN.max(1))
    return best_M
