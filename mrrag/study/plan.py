"""The plan of an experiment: methods × K × irrelevant reports, ablations, and the arena.

A way of answering is what the model reads (:class:`ReadingPlan`: the weights of retrieval,
the number of reports, how many of them are irrelevant, their order) and how an answer is
made of it (:data:`mrrag.types.Way`: a steering, or a rival of IFA). A table is a list of
named ways (:class:`Cell`).

It knows neither questions nor models, and imports nothing heavy: the command line lists
its names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np

from mrrag.errors import SettingsError
from mrrag.forms import FORMS
from mrrag.learnt import Learnt
from mrrag.study.arena import ARENA, EVERY, Method
from mrrag.study.heads import Heads, in_best_heads
from mrrag.types import METHODS, PLAIN, Rival, Steering, Way, Weights

# RAG by one similarity alone.
SINGLE: dict[str, Weights] = {
    "image_report": Weights(1.0, 0.0, 0.0),
    "image_image": Weights(0.0, 1.0, 0.0),
    "question_report": Weights(0.0, 0.0, 1.0),
}
# RAG with reports that are all drawn at random: what any report is worth.
RANDOM = "random_reports"
ALL_METHODS = (METHODS[0], RANDOM, *SINGLE, *METHODS[1:])
SHARES = (0.0, 0.25, 0.5, 0.75)
# Where irrelevant reports come from.
NOISE_KINDS = {
    "random": "drawn from the whole knowledge base (the paper's)",
    "distant": "drawn from ranks 50 to 400",
    "silent": "the next best that say nothing of the finding asked about",
    "opposed": "the next best that say the opposite of the right answer",
}
ABLATION_SHARES = (0.0, 0.5)  # IFA is meant for reports that differ in relevance
STRENGTHS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
# Cut-offs and thresholds that are compared; MMed-RAG's script has a ratio of 1.5.
CUT_TRIALS = {"gap": (0.1, 0.2), "ratio": (1.1, 1.5), "difference": (0.05, 0.1)}
RANDOM_SETS = 3
# Enough for the first word, which is all that strict parsing reads.
ANSWER_TOKENS = 3


@dataclass(frozen=True)
class Plan:
    """What an experiment compares.

    Attributes
    ----------
    ks : tuple of int
        Numbers of retrieved reports; ablations take the first.
    shares : tuple of float
        Shares of the k reports that are replaced by irrelevant ones.
    methods, ablations : tuple of str
        Among :data:`ALL_METHODS` and :data:`ABLATIONS`.
    wrong_picture : bool
        Whether each of the three answers is also given about another patient's picture, with
        the same reports, to see whether the model looks at the picture.
    seed : int
        Seed of the random reports, the random layers and the shuffled order.
    answer_tokens : int
        Maximum number of answer tokens.
    kinds : tuple of str
        Where irrelevant reports come from, among :data:`NOISE_KINDS`.
    arena : tuple of str
        The rivals that are compared with plain RAG for each share and kind of irrelevant
        reports, among :data:`mrrag.study.arena.ARENA`.
    """

    ks: tuple[int, ...] = (8,)
    shares: tuple[float, ...] = SHARES
    methods: tuple[str, ...] = ALL_METHODS
    ablations: tuple[str, ...] = ()
    wrong_picture: bool = True
    seed: int = 0
    answer_tokens: int = ANSWER_TOKENS
    kinds: tuple[str, ...] = ("random",)
    arena: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadingPlan:
    """What the model reads before the question.

    Attributes
    ----------
    weights : Weights or None
        Weights of retrieval; None means no reports.
    k, noise : int
        Number of reports, and how many of them are irrelevant.
    kind : str
        Where irrelevant reports come from, a key of :data:`NOISE_KINDS`.
    cut, cut_at : str, float or None
        The cut-off after retrieval, a key of :data:`mrrag.retrieval.selection.CUTS` or empty,
        and its threshold.
    relevance : str
        Which λ each report gets, as a control: "own", that of another report ("shuffled"), or
        the mean of all ("equal").
    order : str
        "ranked", "reversed" or "shuffled".
    wrong_picture : bool
        Whether the model is shown another patient's picture. Reports are retrieved with the
        right one all the same.
    """

    weights: Weights | None = None
    k: int = 0
    noise: int = 0
    order: str = "ranked"
    wrong_picture: bool = False
    kind: str = "random"
    cut: str = ""
    cut_at: float | None = None
    relevance: str = "own"


@dataclass(frozen=True)
class Cell:
    """One row of a table: a way of answering, its name, and the row it is tested against."""

    table: str
    name: str
    k: int
    reading: ReadingPlan
    steering: Way = PLAIN
    against: str = ""


def effective(steering: Steering) -> Steering:
    """Return the steering with sorted layers; plain RAG's where it has no effect."""
    if not steering.strength or not steering.layers:
        return PLAIN
    return replace(steering, layers=tuple(sorted(steering.layers)))


def cells_of(
    plan: Plan,
    learnt: Learnt,
    layers: int,
    heads: Heads | None = None,
    methods: Mapping[str, Method] = ARENA,
) -> list[Cell]:
    """Return every row of every table, in order.

    Rows of different tables may share a way of answering; it is answered once.

    Parameters
    ----------
    layers
        Number of layers of the model.
    heads
        The heads in which some rivals act.
    methods
        The arena's, with their settings.

    Raises
    ------
    SettingsError
        For an unknown method or ablation, a share outside 0 to 1, or an empty plan.
    """
    _check(plan)
    cells = []
    for k in plan.ks:
        cells += [*_method_cells(plan, learnt, k), *_noise_cells(plan, learnt, k)]
        cells += _wrong_picture_cells(plan, learnt, k)
        cells += _arena_cells(plan, learnt, k, heads, methods)
    k = plan.ks[0]
    for group in plan.ablations:
        for share in ABLATION_SHARES if group != "similarities" else (0.0,):
            control = Cell(group, "", k, ReadingPlan(learnt.weights, k, round(share * k)))
            cells += _ABLATIONS[group](control, learnt, layers, plan.seed)
    return list(dict.fromkeys(cells))


def _check(plan: Plan) -> None:
    named: list[tuple[Sequence[str], Sequence[str]]] = [
        (plan.methods, ALL_METHODS),
        (plan.ablations, ABLATIONS),
        (plan.kinds, [*NOISE_KINDS]),
        (plan.arena, [*ARENA]),
    ]
    for names, allowed in named:
        for name in names:
            if name not in allowed:
                raise SettingsError(
                    f"Unknown method, ablation or kind of noise: {name}. Choose among "
                    f"{', '.join(allowed)}."
                )
    if not plan.ks or not (plan.methods or plan.arena):
        raise SettingsError("There is nothing to compare. Name at least one method and one K.")
    for share in plan.shares:
        if not 0 <= share <= 1:
            raise SettingsError(
                f"Invalid noise share: {share}. It is the share of the K reports that are "
                "irrelevant, from 0 to 1."
            )


# Methods and noise


def _method_cells(plan: Plan, learnt: Learnt, k: int) -> list[Cell]:
    fused = ReadingPlan(learnt.weights, k)
    ways: dict[str, tuple[ReadingPlan, Steering]] = {
        "rag_off": (ReadingPlan(), PLAIN),
        RANDOM: (ReadingPlan(learnt.weights, k, k), PLAIN),
        **{name: (ReadingPlan(weights, k), PLAIN) for name, weights in SINGLE.items()},
        "rag": (fused, PLAIN),
        "mr_rag": (fused, effective(learnt.steering)),
    }
    return [Cell("methods", name, k, *ways[name]) for name in plan.methods]


def noisy_readings(plan: Plan, weights: Weights, k: int) -> list[ReadingPlan]:
    """Return what is read at each kind and share of irrelevant reports, each once."""
    readings = [
        ReadingPlan(weights, k, noise, kind=kind if noise else "random")
        for kind in plan.kinds
        for noise in dict.fromkeys(round(share * k) for share in plan.shares)
    ]
    return list(dict.fromkeys(readings))


def _noise_cells(plan: Plan, learnt: Learnt, k: int) -> list[Cell]:
    steerings = {"rag": PLAIN, "mr_rag": effective(learnt.steering)}
    return [
        Cell("noise", name, k, reading, steering, "rag")
        for reading in noisy_readings(plan, learnt.weights, k)
        for name, steering in steerings.items()
        if name in plan.methods
    ]


def arena_block(reading: ReadingPlan) -> str:
    """Return the name of the arena's table at a kind and number of irrelevant reports."""
    return f"{EVERY}, {reading.noise} {reading.kind}" if reading.noise else EVERY


def reading_of(method: Method, reading: ReadingPlan) -> ReadingPlan:
    """Return what a rival reads where plain RAG reads ``reading``."""
    read = replace(
        reading,
        order=method.order,
        cut=method.cut,
        cut_at=method.cut_at,
        relevance=method.relevance,
        wrong_picture=method.wrong_picture,
    )
    return replace(read, noise=read.k, kind="random") if method.all_irrelevant else read


def way_of(method: Method, steering: Steering, heads: Heads | None = None) -> Way:
    """Return how a rival answers where MR-RAG is steered by ``steering``.

    Raises
    ------
    SettingsError
        Where it acts in chosen heads, and none are given.
    """
    if method.heads and isinstance(method.way, Rival):
        if heads is None:
            raise SettingsError(
                f"{method.title} acts in chosen heads of the model. Find them with `mrrag "
                "find-heads`, and name the file with --heads."
            )
        return in_best_heads(method.way, heads, method.heads)
    way = method.way or steering
    if isinstance(way, Steering):
        strength = method.strength or way.strength
        return effective(
            replace(way, strength=strength, layers=steering.layers, rows=steering.rows)
        )
    return way


def _arena_cells(
    plan: Plan, learnt: Learnt, k: int, heads: Heads | None, methods: Mapping[str, Method]
) -> list[Cell]:
    """Return plain RAG and every rival at each kind and share of irrelevant reports."""
    if not plan.arena:
        return []
    cells = []
    for reading in noisy_readings(plan, learnt.weights, k):
        for name in dict.fromkeys(("rag", *plan.arena)):
            method = methods[name]
            # Without reports nothing is irrelevant, but the row belongs to this block.
            read = reading_of(method, reading) if method.reads else ReadingPlan()
            way = way_of(method, learnt.steering, heads)
            cells.append(Cell(arena_block(reading), name, k, read, way, "rag"))
    return cells


def _wrong_picture_cells(plan: Plan, learnt: Learnt, k: int) -> list[Cell]:
    if not plan.wrong_picture:
        return []
    return [
        replace(cell, table="wrong picture", reading=replace(cell.reading, wrong_picture=True))
        for cell in _method_cells(plan, learnt, k)
        if cell.name in METHODS
    ]


# Ablations: each takes a cell of its table without a name, and varies one thing in it


def _similarities(control: Cell, learnt: Learnt, layers: int, seed: int) -> list[Cell]:
    rows = {**SINGLE, **_pairs(learnt.weights), "rag": learnt.weights}
    return [
        replace(control, name=name, reading=replace(control.reading, weights=w), against="rag")
        for name, w in rows.items()
    ]


def _pairs(learnt: Weights) -> dict[str, Weights]:
    """Return two similarities at their learnt ratio, without the third; no pair of zeros."""
    names = tuple(SINGLE)
    pairs = {}
    for omitted in (2, 1, 0):
        remaining = [0.0 if i == omitted else w for i, w in enumerate(astuple(learnt))]
        if any(remaining):
            name = " + ".join(n for i, n in enumerate(names) if i != omitted)
            pairs[name] = Weights(*remaining)
    return pairs


def _steered(control: Cell, steerings: Mapping[str, Steering]) -> list[Cell]:
    """Return one cell for each steering, tested against the first."""
    against = next(iter(steerings))
    return [
        replace(control, name=name, steering=steering, against=against)
        for name, steering in steerings.items()
    ]


def _layers(control: Cell, learnt: Learnt, layers: int, seed: int) -> list[Cell]:
    def ifa_in(chosen: tuple[int, ...]) -> Steering:
        return effective(replace(learnt.steering, layers=chosen))

    critical = learnt.steering.layers
    random = {
        f"random: {', '.join(map(str, drawn))}": ifa_in(drawn)
        for drawn in random_layers(critical, layers, seed)
    }
    everywhere = ifa_in(tuple(range(layers)))
    return _steered(
        control, {"none": PLAIN, "critical": ifa_in(critical), "all": everywhere, **random}
    )


def random_layers(critical: Sequence[int], layers: int, seed: int) -> list[tuple[int, ...]]:
    """Draw up to :data:`RANDOM_SETS` other sets of as many layers; fewer where no more exist."""
    rng = np.random.default_rng(seed)
    wanted = min(RANDOM_SETS, math.comb(layers, len(critical)) - 1)
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < wanted:
        chosen = tuple(sorted(rng.choice(layers, len(critical), replace=False).tolist()))
        if chosen != tuple(sorted(critical)):
            drawn[chosen] = None
    return list(drawn)


def _masking(control: Cell, learnt: Learnt, layers: int, seed: int) -> list[Cell]:
    return _steered(
        control,
        {
            "none": PLAIN,
            "soft (IFA)": effective(learnt.steering),
            "hard, critical layers": Steering(masked=learnt.steering.layers),
            "hard, all layers": Steering(masked=tuple(range(layers))),
        },
    )


def _strength(control: Cell, learnt: Learnt, layers: int, seed: int) -> list[Cell]:
    strengths = sorted({*STRENGTHS, learnt.steering.strength})
    return _steered(
        control, {f"{s:g}": effective(replace(learnt.steering, strength=s)) for s in strengths}
    )


def _form(control: Cell, learnt: Learnt, layers: int, seed: int) -> list[Cell]:
    forms = {
        f"{name}, {s:g}": effective(replace(learnt.steering, form=name, strength=s))
        for name, form in FORMS.items()
        for s in form.ablation
    }
    best = {f"{form}, its best": effective(steering) for form, steering in learnt.forms.items()}
    return _steered(control, {"none": PLAIN, **best, **forms})


def _order(control: Cell, learnt: Learnt, layers: int, seed: int) -> list[Cell]:
    return [
        replace(
            control,
            name=f"{name}, {order}",
            reading=replace(control.reading, order=order),
            steering=steering,
            against=f"{name}, ranked",
        )
        for name, steering in (("rag", PLAIN), ("mr_rag", effective(learnt.steering)))
        for order in ("ranked", "reversed", "shuffled")
    ]


def _cut(control: Cell, learnt: Learnt, layers: int, seed: int) -> list[Cell]:
    """Return RAG and MR-RAG with all reports, and with each cut-off on their scores."""
    steerings = {"rag": PLAIN, "mr_rag": effective(learnt.steering)}
    ways: list[tuple[str, str, float | None]] = [("all reports", "", None)]
    ways += [(f"{cut} {at:g}", cut, at) for cut, ats in CUT_TRIALS.items() for at in ats]
    return [
        replace(
            control,
            name=f"{name}, {way}",
            reading=replace(control.reading, cut=cut, cut_at=at),
            steering=steering,
            against="rag, all reports",
        )
        for way, cut, at in ways
        for name, steering in steerings.items()
    ]


_ABLATIONS: dict[str, Callable[[Cell, Learnt, int, int], list[Cell]]] = {
    "similarities": _similarities,
    "layers": _layers,
    "masking": _masking,
    "strength": _strength,
    "form": _form,
    "order": _order,
    "cut": _cut,
}
ABLATIONS = tuple(_ABLATIONS)


# Settings whose risk is tested


def candidate_cells(learnt: Learnt, ks: Sequence[int]) -> list[Cell]:
    """Return the settings of ``calibrate``: RAG off, and K × cut-off × steering."""
    steerings = {"RAG": PLAIN, "MR-RAG": effective(learnt.steering)}
    cells = [Cell("candidates", "RAG off", 0, ReadingPlan())]
    for k in ks:
        for cut, at in (("", None), *((c, ats[0]) for c, ats in CUT_TRIALS.items() if k > 1)):
            reading = ReadingPlan(learnt.weights, k, cut=cut, cut_at=at)
            name = f"K = {k}" + (f", {cut} {at:g}" if cut else "")
            cells += [
                Cell("candidates", f"{way}, {name}", k, reading, steering)
                for way, steering in steerings.items()
                if k > 1 or way == "RAG"
            ]
    return cells
