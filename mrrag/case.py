"""A case: what a person sets and asks, what was found for it, and what was answered.

Plain values, read without torch, so that a page can be laid out before the model is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mrrag.types import Answer, AttentionTrace, QueryVectors, Retrieved, Weights

if TYPE_CHECKING:
    from mrrag.model.backbone import PrefixCache

MAX_QUESTION_CHARACTERS = 1000


@dataclass(frozen=True)
class Settings:
    """Everything a person may set; None means what was learnt for this checkpoint.

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
        By what relevance steers, a key of :data:`mrrag.model.steering.FORMS`.
    noise : int
        How many of the k are replaced by reports drawn at random.
    max_new_tokens : int
        Where an answer is cut.
    seed : int
        Of the noise.
    pinned, excluded : tuple of str
        Ids of documents that come whatever their score, and of those that never come.
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
    """What MCR found, before any answer: enough to re-rank without encoding again.

    Attributes
    ----------
    percentiles : tuple of float
        For each document, the per cent of random pairs whose score is below its own.
    warnings : dict
        Kind → sentence: "unlike", "known", "weak", "contradiction". See :func:`warn`.
    familiar : Familiar
        What was found about the image, which no setting changes.
    """

    vectors: QueryVectors
    retrieved: tuple[Retrieved, ...]
    weights: Weights
    notes: tuple[str, ...]
    seconds: float
    percentiles: tuple[float, ...] = ()
    warnings: dict[str, str] = field(default_factory=dict)
    familiar: Familiarity | None = None


@dataclass(frozen=True)
class Familiarity:
    """Whether a query's image is unlike the knowledge base, or the id of its twin there."""

    unlike: bool
    twin: str | None


@dataclass(frozen=True)
class Influence:
    """What each report does to the answer: it is cut off, and P(yes), P(no) are read again.

    The report is cut off from the question and the answer cue in every layer. Later
    reports may still have read it, so this is the report's direct influence.

    Attributes
    ----------
    word : str
        "yes" or "no": what RAG answers first, and so whose probability is followed.
    before, after : tuple of float
        For each report, P(word) with all reports − P(word) without this one: RAG's and
        MR-RAG's. Positive where the report speaks for the word.
    whole_before, whole_after : float
        P(word) with all reports.
    """

    word: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    whole_before: float
    whole_after: float


@dataclass(frozen=True)
class Progress:
    """How far the answers have come: the text so far of each method."""

    texts: dict[str, str]


@dataclass(frozen=True)
class CaseCache:
    """What was read of an image and its reports, for the next question about that image.

    It is handed in and handed back, and goes when its holder does.
    """

    picture: bytes
    reading: PrefixCache = field(repr=False)


@dataclass(frozen=True)
class Case:
    """One finished case. ``before`` is plain RAG's attention, ``after`` MR-RAG's.

    ``settings`` hold what was used, with what was learnt filled in. ``same_state`` is IFA's
    transform applied to plain RAG's own states (a counterfactual). It and ``influence``
    are there once :func:`explain` has added them.
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
    kept: CaseCache | None = field(default=None, repr=False, compare=False)
