"""What an experiment compares: methods × K × irrelevant reports, and ablations.

A way of answering is what the model reads (:class:`ReadingPlan`: whose weights, how many
reports, how many of them irrelevant, in which order) and how it is steered while it
reads (:class:`Steering`). A table is a list of ways with names (:class:`Cell`).

It knows neither questions nor models, and imports nothing heavy: the command line lists
its names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np

from mrrag.errors import SettingsError
from mrrag.learnt import Learnt
from mrrag.types import METHODS, PLAIN, Steering, Weights

SINGLE: dict[str, Weights] = {
    "image_report": Weights(1.0, 0.0, 0.0),
    "image_image": Weights(0.0, 1.0, 0.0),
    "question_report": Weights(0.0, 0.0, 1.0),
}
SHARES = (0.0, 0.25, 0.5, 0.75)
WAYS = (METHODS[0], *SINGLE, *METHODS[1:])
ABLATIONS = ("similarities", "layers", "masking", "strength", "form", "order")
ABLATION_SHARES = (0.0, 0.5)  # IFA is meant for reports that differ in relevance
STRENGTHS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
# Those to which each form is compared; the paper's is 1.
FORM_STRENGTHS = {"ifa": (0.1, 0.25, 1.0), "balanced": (1.0, 2.0, 4.0)}
RANDOM_SETS = 3
# Enough for the first word, which is what is parsed; the rest of an answer changes nothing.
ANSWER_TOKENS = 3


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes
    ----------
    ks : tuple of int
        Reports retrieved; ablations take the first.
    shares : tuple of float
        Of the k, how many are replaced by reports drawn at random.
    methods, ablations : tuple of str
        Among :data:`WAYS` and :data:`ABLATIONS`.
    seed : int
        Of the noise, the random layers and the shuffled order.
    answer_tokens : int
        Where an answer is cut: the first word is all that strict parsing reads.
    """

    ks: tuple[int, ...] = (8,)
    shares: tuple[float, ...] = SHARES
    methods: tuple[str, ...] = WAYS
    ablations: tuple[str, ...] = ()
    seed: int = 0
    answer_tokens: int = ANSWER_TOKENS


@dataclass(frozen=True)
class ReadingPlan:
    """What the model reads before the question; ``weights`` None is no reports at all."""

    weights: Weights | None = None
    k: int = 0
    noise: int = 0
    order: str = "ranked"


@dataclass(frozen=True)
class Cell:
    """One line of a table: a way, its name there, and the line it is tested against."""

    table: str
    name: str
    k: int
    reading: ReadingPlan
    steering: Steering = PLAIN
    against: str = ""


def effective(steering: Steering) -> Steering:
    """The same; where it does nothing, the very same as plain RAG."""
    if not steering.strength or not steering.layers:
        return PLAIN
    return replace(steering, layers=tuple(sorted(steering.layers)))


def cells_of(plan: Plan, learnt: Learnt, layers: int) -> list[Cell]:
    """Every line of every table, in order; equal ways are answered once.

    Parameters
    ----------
    layers
        How many layers the model has.
    """
    _check(plan)
    ways: dict[str, tuple[Weights | None, Steering]] = {
        "rag_off": (None, PLAIN),
        **{name: (weights, PLAIN) for name, weights in SINGLE.items()},
        "rag": (learnt.weights, PLAIN),
        "mr_rag": (learnt.weights, effective(learnt.steering)),
    }
    cells = []
    for k in plan.ks:
        for name in plan.methods:
            weights, steering = ways[name]
            reading = ReadingPlan(weights, k) if weights else ReadingPlan()
            cells.append(Cell("methods", name, k, reading, steering))
        for share in plan.shares:
            reading = ReadingPlan(learnt.weights, k, round(share * k))
            for name in ("rag", "mr_rag"):
                if name in plan.methods:
                    cells.append(Cell("noise", name, k, reading, ways[name][1], "rag"))
    k = plan.ks[0]
    for group in plan.ablations:
        for share in ABLATION_SHARES if group != "similarities" else (0.0,):
            cells += _ablation(group, learnt, layers, k, round(share * k), plan.seed)
    return list(dict.fromkeys(cells))


def _check(plan: Plan) -> None:
    for given, allowed in ((plan.methods, WAYS), (plan.ablations, ABLATIONS)):
        for name in given:
            if name not in allowed:
                raise SettingsError(f"{name} is not known here. Choose among {', '.join(allowed)}.")
    if not plan.ks or not plan.methods:
        raise SettingsError("There is nothing to compare. Name a method and a K, at least.")
    for share in plan.shares:
        if not 0 <= share <= 1:
            raise SettingsError(
                f"A noise share of {share} was asked for. It is the share of the K reports that "
                "are irrelevant: from 0 to 1."
            )


def _ablation(group: str, learnt: Learnt, layers: int, k: int, noise: int, seed: int) -> list[Cell]:
    fused = ReadingPlan(learnt.weights, k, noise)
    steering = learnt.steering
    soft = effective(steering)
    everywhere = tuple(range(layers))
    if group == "similarities":
        rows = {**SINGLE, **_pairs(learnt.weights), "rag": learnt.weights}
        return [Cell(group, n, k, ReadingPlan(w, k, noise), PLAIN, "rag") for n, w in rows.items()]
    if group == "order":
        return [
            Cell(
                group,
                f"{name}, {order}",
                k,
                ReadingPlan(learnt.weights, k, noise, order),
                steering,
                f"{name}, ranked",
            )
            for name, steering in (("rag", PLAIN), ("mr_rag", soft))
            for order in ("ranked", "reversed", "shuffled")
        ]
    if group == "layers":
        steers = {
            "none": PLAIN,
            "critical": soft,
            "all": effective(replace(steering, layers=everywhere)),
            **{
                f"random: {', '.join(map(str, drawn))}": effective(replace(steering, layers=drawn))
                for drawn in random_layers(steering.layers, layers, seed)
            },
        }
        return [Cell(group, name, k, fused, steering, "none") for name, steering in steers.items()]
    if group == "form":
        named = {"none": PLAIN} | {
            f"{form}, {s:g}": effective(replace(steering, form=form, strength=s))
            for form, strengths in FORM_STRENGTHS.items()
            for s in strengths
        }
        return [Cell(group, name, k, fused, steering, "none") for name, steering in named.items()]
    if group == "masking":
        steers = {
            "none": PLAIN,
            "soft (IFA)": soft,
            "hard, critical layers": Steering(masked=steering.layers),
            "hard, all layers": Steering(masked=everywhere),
        }
        return [Cell(group, name, k, fused, steering, "none") for name, steering in steers.items()]
    return [
        Cell(group, f"{s:g}", k, fused, effective(replace(steering, strength=s)), "0")
        for s in sorted({*STRENGTHS, steering.strength})
    ]


def _pairs(learnt: Weights) -> dict[str, Weights]:
    """Two similarities at their learnt ratio, without the third; none where both are zero."""
    names = tuple(SINGLE)
    pairs = {}
    for left_out in (2, 1, 0):
        kept = [0.0 if i == left_out else w for i, w in enumerate(astuple(learnt))]
        if any(kept):
            name = " + ".join(n for i, n in enumerate(names) if i != left_out)
            pairs[name] = Weights(*kept)
    return pairs


def random_layers(critical: Sequence[int], layers: int, seed: int) -> list[tuple[int, ...]]:
    """Other sets of as many layers, drawn by the seed; fewer where there are no more."""
    rng = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    for _ in range(20):
        drawn = tuple(sorted(rng.choice(layers, len(critical), replace=False).tolist()))
        if drawn and drawn != tuple(sorted(critical)) and len(found) < RANDOM_SETS:
            found[drawn] = None
    return list(found)
