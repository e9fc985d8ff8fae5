"""What is usual in a knowledge base, so that the unusual can be said.

Yardsticks, all measured on the knowledge base itself, most of them once, when it is loaded:

- the best K scores of other patients' images, with the same question and weights;
- how often an image is closer to its own report than to another patient's: 50 % where the
  encoder cannot relate the images to the reports;
- how far the base's own images lie from the rest of it, in vectors and in pixels;
- the spread of each similarity, when the knowledge base is built.

It knows vectors, thumbnails and weights; no model, and no case but the one it is asked
about. Shape suffixes: M sampled document, K rank, F pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL.Image

from mrrag.retrieval.documents import sampled
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.retrieval.mcr import retrieve
from mrrag.types import FloatArray, Image, QueryVectors, Weights

__all__ = [
    "AT_CHANCE",
    "WEAK",
    "Calibration",
    "calibrate",
    "is_same_picture",
    "percentiles",
    "spread",
    "unlike",
    "usual_scores",
]

SAMPLED = 256
# For the usual scores of one query: images, and documents scored in all, at most.
USUAL, SCORED = 128, 2**22
# Percentage of pairs below which images and reports count as unrelated. The bundled encoder
# reaches 90 on its own kind of films, and 52 on real ones, which it never saw.
AT_CHANCE = 60.0
REFERENCE = 4096  # documents that the usual place of an image is learnt from, at most
FEWEST = 100  # below this, one in a hundred cannot be measured
RARE = 0.5  # per cent of the base's own images beyond each of the two limits
WEAK = 1.0  # per cent: a best score below all but so many usual ones is called weak
SIDE = 32  # px, of the small pictures that are compared
RIDGE = 0.01  # of the mean variance, so that directions without any do not decide alone
SAME_PICTURE = 0.995
SAME_VECTOR = 0.98

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """The yardsticks of a knowledge base.

    Attributes
    ----------
    sample_M : int64 [M]
        Numbers of sampled documents; none where the base is too small to tell what is usual.
    own_report : float
        Percentage of pairs in which a sampled image is closer to its own report than to one
        of another patient; NaN without a sample.
    center_D, whitening_DD : float64
        Mean and inverse square root of the covariance of its images' vectors.
    farthest : float
        Distance from the centre, so whitened, that 199 of 200 images keep within; NaN
        where the base is too small to tell.
    small_MF : float32 [M, F]
        Small pictures of a sample, standardised.
    least_alike : float
        Correlation with the nearest of them that 199 of 200 images of other patients
        reach; NaN where the base is too small to tell.
    """

    sample_M: npt.NDArray[np.int64]
    own_report: float
    center_D: Float64Array
    whitening_DD: Float64Array
    farthest: float
    small_MF: FloatArray
    least_alike: float


def calibrate(knowledge_base: KnowledgeBase, *, seed: int = 0) -> Calibration:
    """Measure the yardsticks; about a second for a few thousand documents."""
    rng = np.random.default_rng(seed)
    count = len(knowledge_base)
    reference = sampled(rng, count, REFERENCE)
    patient_N = knowledge_base.documents.patients[reference]
    t_ND, v_ND = knowledge_base.vectors(reference)
    # Learnt on one half of the patients, and the usual measured on the other.
    learnt_from = np.isin(patient_N, np.unique(patient_N)[::2])
    center_D, whitening_DD = _whitening(v_ND[learnt_from] if learnt_from.sum() > 1 else v_ND)
    distances = _distances(v_ND[~learnt_from], center_D, whitening_DD)

    sample = reference[:SAMPLED]
    small_MF = np.stack([_small(picture) for picture in knowledge_base.pictures(sample.tolist())])
    alike_MM = small_MF @ small_MF.T
    patient_M = patient_N[: len(sample)]
    alike_MM[patient_M[:, None] == patient_M] = -1.0

    enough = count >= FEWEST and min(learnt_from.sum(), (~learnt_from).sum()) >= FEWEST // 4
    return Calibration(
        sample_M=sample if enough else sample[:0],
        own_report=_own_report(t_ND, v_ND, patient_N) if enough else math.nan,
        center_D=center_D,
        whitening_DD=whitening_DD,
        farthest=float(np.percentile(distances, 100 - RARE)) if enough else math.nan,
        small_MF=small_MF,
        least_alike=float(np.percentile(alike_MM.max(1), RARE)) if enough else math.nan,
    )


def _own_report(t_ND: FloatArray, v_ND: FloatArray, patient_N: npt.NDArray[np.int64]) -> float:
    """Return in what percentage of pairs the first images are closer to their own report."""
    cosines_MN = v_ND[:SAMPLED] @ t_ND.T
    other_MN = patient_N[:SAMPLED, None] != patient_N
    closer_MN = cosines_MN < np.diagonal(cosines_MN)[:, None]
    return 100.0 * float(closer_MN[other_MN].mean())


def spread(t_ND: FloatArray, v_ND: FloatArray, t_QD: FloatArray) -> Weights:
    """Return how far the cosines of one query spread over the documents, on average.

    Parameters
    ----------
    t_ND, v_ND
        Vectors of a sample of reports and images, in the same order. The images are also
        the queries of the first two similarities.
    t_QD
        Vectors of questions, the queries of the third.

    Returns
    -------
    Weights
        Standard deviation for α, β and γ.
    """
    v_MD = v_ND[:SAMPLED]
    image_MN = (v_MD @ v_ND.T).astype(np.float64)
    np.fill_diagonal(image_MN, np.nan)  # an image with itself
    deviations = (np.nanstd(x, axis=1) for x in (v_MD @ t_ND.T, image_MN, t_QD @ t_ND.T))
    return Weights(*(float(each.mean()) for each in deviations))


def usual_scores(
    knowledge_base: KnowledgeBase,
    calibration: Calibration,
    vectors: QueryVectors,
    weights: Weights,
    k: int,
) -> FloatArray:
    """Return the k best scores of other images with this query's question, float32 [M, K].

    Each sampled image is the query in turn, among the documents of other patients; as in
    :func:`mrrag.retrieval.mcr.retrieve`, of equal reports the best counts. What a row lacks
    is NaN. ``weights`` are effective ones. Without an image there is nothing to compare, and
    so no row.
    """
    few = max(16, SCORED // len(knowledge_base))
    sample_M = calibration.sample_M[: min(USUAL, few)]
    if vectors.v is None or not len(sample_M):
        return np.empty((0, k), np.float32)
    known = knowledge_base.documents
    _, v_MD = knowledge_base.vectors(sample_M)
    left_MD = weights.alpha * v_MD
    if vectors.t is not None:
        left_MD = left_MD + weights.gamma * vectors.t
    queries = np.concatenate([left_MD, weights.beta * v_MD], axis=1)
    ids_MF, scores_MF = knowledge_base.nearest(queries, min(2 * k + 16, len(knowledge_base)))
    own_MF = known.patients[ids_MF] == known.patients[sample_M][:, None]
    report_MF = np.where(own_MF, -1, known.reports[ids_MF])
    same_MFF = np.tril(report_MF[:, :, None] == report_MF[:, None, :], -1)
    kept_MF = ~own_MF & ~same_MFF.any(-1)
    order_MF = np.argsort(~kept_MF, axis=1, kind="stable")  # the kept ones first, best first
    best_MF = np.where(kept_MF, scores_MF, np.nan)
    return np.take_along_axis(best_MF, order_MF, axis=1)[:, :k].astype(np.float32)


def percentiles(scores: Sequence[float], usual_MK: FloatArray) -> tuple[float, ...]:
    """Return, for the score of each rank, the percentage of usual scores at that rank below it.

    50 is what any image of the kind reaches; NaN where nothing is usual.
    """
    if not len(usual_MK):
        return (math.nan,) * len(scores)
    below_MK = usual_MK[:, : len(scores)] < np.asarray(scores, np.float32)
    return tuple((100.0 * below_MK.mean(0)).tolist())


def unlike(calibration: Calibration, image: Image, v_D: FloatArray) -> bool:
    """Return whether an image is unlike those of the knowledge base.

    It is where its vector lies farther out, or its pixels are less like any, than for 199
    of 200 of the base's own images. Of those, up to 1 in 100 would thus be called
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
        if float(small @ _small(knowledge_base.picture(found.number))) > SAME_PICTURE:
            return found.document.id
    return None


def small_picture(image: Image) -> FloatArray:
    """Return the picture, padded to a square of :data:`SIDE` px, of mean 0 and norm 1: [F]."""
    return _small(PIL.Image.fromarray(image.display))


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
