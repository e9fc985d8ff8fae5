"""A case: its settings, the evidence retrieved for it, and the answers.

Plain values that need no torch, so that a page can be laid out before the model is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mrrag.types import (
    Answer,
    AttentionTrace,
    Familiarity,
    QueryVectors,
    Retrieved,
    Vote,
    Weights,
)

if TYPE_CHECKING:
    from mrrag.model.prefill import PrefixCache

MAX_QUESTION_CHARACTERS = 1000
MAX_STRENGTH = 10.0
MAX_NEW_TOKENS = 512
METHOD_NAMES = {"rag_off": "RAG off", "rag": "RAG", "mr_rag": "MR-RAG"}
# Below this change of P(yes), an answer hardly depends on the picture.
LEAST_CHANGE = 0.05


@dataclass(frozen=True)
class Settings:
    """Everything that a person may set; None means the value learnt for this checkpoint.

    Attributes
    ----------
    k : int
        Reports retrieved.
    weights : Weights or None
        α, β, γ of MCR.
    strength : float or None
        Multiplies IFA's λ (the paper has none: 1.0).
    layers : tuple of int or None
        The critical layers, counted from 0.
    form : str or None
        How relevance steers, a key of :data:`mrrag.forms.FORMS`.
    noise : int
        Number of the k reports that are replaced by reports drawn at random.
    max_new_tokens : int
        Longest answer, in tokens.
    seed : int
        Of the random draw.
    pinned, excluded : tuple of str
        Ids of documents that are always retrieved, and of those that never are.
    """

    k: int = 8
    weights: Weights | None = None
    strength: float | None = None
    layers: tuple[int, ...] | None = None
    form: str | None = None
    noise: int = 0
    max_new_tokens: int = 40
    seed: int = 0
    pinned: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """What MCR retrieved, before any answer; enough to rank again without encoding.

    Attributes
    ----------
    vectors : QueryVectors
        Of the query.
    retrieved : tuple of Retrieved
        The documents, best first.
    weights : Weights
        As used: an absent image's or question's weights are shared out.
    notes : tuple of str
        What was done otherwise than asked, in sentences.
    seconds : float
        For encoding and search.
    percentiles : tuple of float
        For each document, the percentage of other images whose document at that rank has a
        lower score (:func:`mrrag.retrieval.calibration.usual_scores`); NaN without an image.
    warnings : dict
        Kind → sentence: "outside" (:attr:`mrrag.model.world.World.warning`), "unlike", "known",
        "lateral", "weak", "contradiction" (:func:`mrrag.retrieval.doubts.warnings_of`).
    familiarity : Familiarity or None
        What is known of the image, whatever the settings.
    votes : tuple of Vote
        What the documents' reports say of each finding that the question names.
    """

    vectors: QueryVectors = field(repr=False)
    retrieved: tuple[Retrieved, ...]
    weights: Weights
    notes: tuple[str, ...]
    seconds: float
    percentiles: tuple[float, ...] = ()
    warnings: dict[str, str] = field(default_factory=dict)
    familiarity: Familiarity | None = None
    votes: tuple[Vote, ...] = ()


@dataclass(frozen=True)
class Influence:
    """What each report does to the answer, measured by blocking it.

    The report is cut off from the question and the answer cue in every layer, and P(yes) and
    P(no) are read again. Later reports may still have read it: this is its direct influence.

    Attributes
    ----------
    word : str
        "yes" or "no": RAG's first word, whose probability is followed.
    before, after : tuple of float
        For each report, P(word) with all reports minus P(word) without this one, for RAG and
        for MR-RAG. Positive where the report supports the word.
    whole_before, whole_after : float
        P(word) with all reports.
    """

    word: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    whole_before: float
    whole_after: float


@dataclass(frozen=True)
class PictureInfluence:
    """What the picture does to each answer, measured by replacing it.

    The question and the reports stay the same; only what the model sees is another picture.

    Attributes
    ----------
    p_yes : dict
        Method → P(yes) with the picture, without one, with one of the mean colour, and with
        the least similar picture of the knowledge base (NaN where there is none).
    other : str
        The id of the document whose picture is the least similar; empty where there is none.
    cosine : float
        Its image-image cosine.
    thumbnail : bytes
        Its picture, as a JPEG file.
    """

    p_yes: dict[str, tuple[float, float, float, float]]
    other: str
    cosine: float
    thumbnail: bytes = field(repr=False)

    @property
    def change(self) -> dict[str, float]:
        """The largest change of P(yes) without the picture, for each method."""
        return {
            method: max(abs(p - seen) for p in others if not math.isnan(p))
            for method, (seen, *others) in self.p_yes.items()
        }

    @property
    def sentence(self) -> str:
        """Whether the answers depend on the picture, in a sentence."""
        change = self.change
        hardly = [METHOD_NAMES[m] for m, largest in change.items() if largest < LEAST_CHANGE]
        most = f"{max(change.values()):.2f}"
        if len(hardly) == len(change):
            return (
                "The answers hardly depend on the picture: with another one, or none, P(yes) "
                f"changes by at most {most}."
            )
        said = f"With another picture, or none, P(yes) changes by up to {most}."
        if hardly:
            said += f" The answer of {' and '.join(hardly)} hardly depends on the picture."
        return said


@dataclass(frozen=True)
class Progress:
    """The text so far of each method's answer."""

    texts: dict[str, str]


@dataclass(frozen=True)
class CaseCache:
    """What was read of an image and its reports, for the next question about that image.

    The caller holds it and hands it back; it is freed with its holder.

    Attributes
    ----------
    image_sha256 : bytes
        Of the displayed pixels; empty without an image.
    prefix : PrefixCache
        The image's features, and the keys and values of the longest prefix.
    """

    image_sha256: bytes
    prefix: PrefixCache = field(repr=False)


@dataclass(frozen=True)
class Case:
    """One finished case.

    Attributes
    ----------
    question : str
        As asked.
    retrieved : tuple of Retrieved
        The reports that RAG and MR-RAG read, best first.
    answers : dict
        By method, in the order of :data:`mrrag.types.METHODS`.
    before, after : AttentionTrace or None
        The attention of RAG and of MR-RAG; None where the question was declined.
    settings : Settings
        As used, with learnt values filled in.
    notes, warnings
        As in :class:`Evidence`, and what to know about the answers.
    seconds : dict
        For "evidence", "image" and "answers".
    versions : dict
        What produced the case: packages, model, encoder, knowledge base.
    percentiles, votes
        As in :class:`Evidence`.
    influence : Influence or None
        What each report does to the answer; added by :func:`mrrag.explain.explain`.
    picture : PictureInfluence or None
        What the picture does to the answers; added with it.
    same_state : AttentionTrace or None
        IFA's transform applied to plain RAG's own states, a counterfactual; added with it.
    cache : CaseCache or None
        For the next question about the image, where memory allows.
    """

    question: str
    retrieved: tuple[Retrieved, ...]
    answers: dict[str, Answer]
    before: AttentionTrace | None
    after: AttentionTrace | None
    settings: Settings
    notes: tuple[str, ...]
    seconds: dict[str, float]
    versions: dict[str, str]
    percentiles: tuple[float, ...] = ()
    warnings: dict[str, str] = field(default_factory=dict)
    influence: Influence | None = None
    same_state: AttentionTrace | None = None
    votes: tuple[Vote, ...] = ()
    picture: PictureInfluence | None = None
    cache: CaseCache | None = field(default=None, repr=False, compare=False)
