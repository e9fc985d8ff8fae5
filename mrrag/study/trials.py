"""Settings of the arena's methods: which are tried on validation questions, and which is chosen.

Every method that has a setting has the same number of trials. A trial is the method itself,
with another value in its place. What is chosen goes into a file, with which ``evaluate`` asks
other questions.

It imports nothing heavy, and asks nothing itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mrrag.errors import SettingsError
from mrrag.files import read_json, write_atomic
from mrrag.learnt import Learnt
from mrrag.schema import Choice, Items, Record, Text, refusing_fields
from mrrag.study.arena import ARENA, Method
from mrrag.study.heads import Heads
from mrrag.study.plan import Cell, Plan, arena_block, noisy_readings, reading_of, way_of
from mrrag.types import Opera, Rival, Shift

BUDGET = 5  # trials of each method
FORMAT = "mrrag settings 1"
DIGITS = 12  # of a picture's SHA-256 that the file keeps
REMEDY = "Write one with `mrrag find-settings`, and name it with --settings."

Trials = dict[str, Method]  # by the setting, in words


def _rival(method: Method) -> Rival:
    if not isinstance(method.way, Rival):
        raise TypeError(f"{method.title} is no rival of prompts or attention.")
    return method.way


# What a number sets; each returns the method with the number in its place


def _strength(method: Method, strength: float) -> Method:
    return replace(method, strength=strength)


def _emphasis(method: Method, amount: float) -> Method:
    """Set every change of attention to this amount; the signs stay."""
    rival = _rival(method)
    changed = tuple(replace(e, amount=math.copysign(amount, e.amount)) for e in rival.emphases)
    return replace(method, way=replace(rival, emphases=changed))


def _factor(method: Method, factor: float) -> Method:
    """Set by what attention is multiplied, below 1; the amount is added to its logarithm."""
    return _emphasis(method, -math.log(factor))


def _mixture(method: Method, amount: float) -> Method:
    rival = _rival(method)
    if rival.mixture is None:
        raise TypeError(f"{method.title} mixes nothing.")
    return replace(method, way=replace(rival, mixture=replace(rival.mixture, amount=amount)))


def _shift(method: Method, amount: float) -> Method:
    rival = _rival(method)
    shift = rival.shift or Shift(0.0)
    return replace(method, way=replace(rival, shift=replace(shift, amount=amount)))


def _weight(method: Method, weight: float) -> Method:
    if not isinstance(method.way, Opera):
        raise TypeError(f"{method.title} does not search with beams.")
    return replace(method, way=replace(method.way, weight=weight))


def _cut_at(method: Method, threshold: float) -> Method:
    return replace(method, cut_at=threshold)


def _tried(
    name: str, sign: str, values: Sequence[float], at: Callable[[Method, float], Method]
) -> Trials:
    return {f"{sign} = {value:g}": at(ARENA[name], value) for value in values}


def _strengths(name: str) -> Trials:
    """Return the learnt strength, and others in its place."""
    return {"as learnt": ARENA[name], **_tried(name, "strength", (0.5, 1, 4, 8), _strength)}


def _pairs(name: str) -> Trials:
    """Return PAI at pairs of the image's emphasis and the contrast."""
    pairs = ((0.2, 1.1), (0.5, 1.1), (1.0, 1.1), (0.2, 1.5), (0.5, 1.5))
    return {
        f"α = {alpha:g}, γ = {gamma:g}": _mixture(_emphasis(ARENA[name], alpha), gamma)
        for alpha, gamma in pairs
    }


REPORT_SHARES = (0.2, 0.4, 0.6, 0.8, 0.9)
FACTORS = (0.01, 0.1, 0.3, 0.5, 0.8)
SHIFTS = (1.0, 2.0, 5.0, 10.0, 15.0)
GAPS = (0.05, 0.1, 0.15, 0.2, 0.3)

# What is tried of each method; the published value is among it. What is not named here has nothing
# to set, or is named after its setting.
TRIALS: dict[str, Trials] = {
    "mr_rag": _strengths("mr_rag"),
    "ifa": _tried("ifa", "strength", (0.1, 0.25, 0.5, 1, 2), _strength),
    "pai": _pairs("pai"),
    "pai_attention": _tried("pai_attention", "α", (0.1, 0.2, 0.5, 1, 2), _emphasis),
    "pai_contrast": _tried("pai_contrast", "γ", (1.05, 1.1, 1.2, 1.5, 2), _mixture),
    "pai_reports": _tried("pai_reports", "α", (0.1, 0.2, 0.5, 1, 2), _emphasis),
    "pasta": _tried("pasta", "α", FACTORS, _factor),
    "pasta_heads": _tried("pasta_heads", "α", FACTORS, _factor),
    "pasta_image": _tried("pasta_image", "α", FACTORS, _factor),
    "spotlight": _tried("spotlight", "ψ", REPORT_SHARES, _emphasis),
    "spotlight_image": _tried("spotlight_image", "ψ", (0.1, 0.2, 0.3, 0.5, 0.7), _emphasis),
    "alfar": _tried("alfar", "α", (0.1, 0.2, 0.4, 0.6, 0.8), _emphasis),
    "cad": _tried("cad", "α", (-0.5, -0.25, 0.25, 0.5, 1), _mixture),
    "replug": _tried("replug", "τ", (0.02, 0.05, 0.1, 0.3, 1), _mixture),
    "entropy": _tried("entropy", "τ", (0.1, 0.3, 1, 3, 10), _mixture),
    "mmed_gap": _tried("mmed_gap", "threshold", GAPS, _cut_at),
    "mmed_ratio": _tried("mmed_ratio", "threshold", (1.1, 1.2, 1.5, 2, 3), _cut_at),
    "mmed_gap_ifa": _tried("mmed_gap_ifa", "threshold", GAPS, _cut_at),
    "mad": _tried("mad", "m", (0.1, 0.3, 0.5, 0.7, 0.9), _emphasis),
    "opera": _tried("opera", "weight", (0.5, 1, 2, 5, 10), _weight),
    "opera_reports": _tried("opera_reports", "weight", (0.5, 1, 2, 5, 10), _weight),
    "pai_writing": _pairs("pai_writing"),
    "pasta_writing": _tried("pasta_writing", "α", FACTORS, _factor),
    "spotlight_writing": _tried("spotlight_writing", "ψ", REPORT_SHARES, _emphasis),
    "iti": _tried("iti", "α", SHIFTS, _shift),
    "iti_random": _tried("iti_random", "α", SHIFTS, _shift),
    "lambda_shuffled": _strengths("lambda_shuffled"),
    "lambda_equal": _strengths("lambda_equal"),
    "mr_rag_best_last": _strengths("mr_rag_best_last"),
    "mr_rag_wrong_picture": _strengths("mr_rag_wrong_picture"),
}
# Controls get the setting of the row that they explain, and what acts while writing its namesake's.
FOLLOWS = {
    "pai_writing": "pai",
    "pasta_writing": "pasta",
    "spotlight_writing": "spotlight",
    "iti_random": "iti",
    "lambda_shuffled": "mr_rag",
    "lambda_equal": "mr_rag",
    "mr_rag_best_last": "mr_rag",
    "mr_rag_wrong_picture": "mr_rag",
}


def with_settings(chosen: Mapping[str, str]) -> dict[str, Method]:
    """Return the arena, with each method's chosen setting in the place of the published one."""
    methods = dict(ARENA)
    for name, trials in TRIALS.items():
        setting = chosen.get(FOLLOWS.get(name, name))
        if setting is not None:
            methods[name] = trials[setting]
    return methods


def settings_of(methods: Collection[str], chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the chosen setting of each of these methods that has one, controls among them."""
    leaders = {name: FOLLOWS.get(name, name) for name in methods if name in TRIALS}
    return {name: chosen[leader] for name, leader in leaders.items() if leader in chosen}


def trial_cells(
    plan: Plan, learnt: Learnt, heads: Heads | None = None
) -> dict[str, dict[str, list[Cell]]]:
    """Return, by method and setting, how its trial is answered at each kind and share of noise.

    Of the plan's arena, methods without a setting and controls are left out.

    Raises
    ------
    SettingsError
        Where a method acts in chosen heads, and none are given.
    """
    (k,) = plan.ks
    readings = noisy_readings(plan, learnt.weights, k)
    return {
        name: {
            setting: [
                Cell(
                    arena_block(reading),
                    f"{name}, {setting}",
                    k,
                    reading_of(method, reading),
                    way_of(method, learnt.steering, heads),
                )
                for reading in readings
            ]
            for setting, method in TRIALS[name].items()
        }
        for name in plan.arena
        if name in TRIALS and name not in FOLLOWS
    }


# The choice

_FILE = Record(
    {
        "format": Choice((FORMAT,)),
        "model": Text(1, 500),
        "knowledge_base": Text(1, 500),
        "pictures": Items(Text(DIGITS, DIGITS)),
        "methods": Record(
            {},
            {name: Record({"chosen": Choice([*tried])}) for name, tried in TRIALS.items()},
            closed=True,
        ),
    }
)


@dataclass(frozen=True)
class Trial:
    """How one setting answered: right answers among those asked, and the Brier score."""

    right: int
    asked: int
    brier: float


def best_trial(trials: Mapping[str, Trial]) -> str:
    """Return the setting with the most right answers; of equals that of the lowest Brier score."""
    return min(trials, key=lambda setting: (-trials[setting].right, trials[setting].brier))


def write_settings(
    path: Path,
    trials: Mapping[str, Mapping[str, Trial]],
    about: Mapping[str, object],
    pictures: Collection[str],
) -> dict[str, str]:
    """Choose a setting for each method, write all trials, and return what was chosen.

    Parameters
    ----------
    about
        On what they were tried: "model" and "knowledge_base" (fingerprints) among it.
    pictures
        SHA-256 of each picture that they were tried on.
    """
    chosen = {name: best_trial(tried) for name, tried in trials.items()}
    methods = {
        name: {"chosen": chosen[name], "trials": {s: asdict(trial) for s, trial in tried.items()}}
        for name, tried in trials.items()
    }
    kept = sorted({picture[:DIGITS] for picture in pictures})
    stored = {"format": FORMAT, **about, "methods": methods, "pictures": kept}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    return chosen


def read_settings(
    path: Path, *, model: str, knowledge_base: str, pictures: Collection[str]
) -> dict[str, str]:
    """Read the chosen settings, to ask about these pictures (SHA-256).

    Raises
    ------
    SettingsError
        Where the file is none of :func:`write_settings`, is of another model or knowledge base,
        or its settings were chosen on some of the pictures.
    """

    def refuse(why: str) -> SettingsError:
        return SettingsError(f"{path} cannot be read ({why}). {REMEDY}")

    stored = read_json(path, refuse)
    with refusing_fields(path.name, REMEDY, SettingsError):
        values = _FILE.check(stored)
    for what, found, present in (
        ("model", values["model"], model),
        ("knowledge base", values["knowledge_base"], knowledge_base),
    ):
        if found != present:
            raise SettingsError(
                f"The settings of {path} were chosen for another {what} ({found}, not {present}). "
                "Choose those of this one with `mrrag find-settings`."
            )
    tried = {picture[:DIGITS] for picture in pictures} & {*values["pictures"]}
    if tried:
        raise SettingsError(
            f"The settings of {path} were chosen on {len(tried)} of these pictures, so that "
            "answers about them would flatter every method. Ask about others, as of another split."
        )
    return {name: found["chosen"] for name, found in values["methods"].items()}
