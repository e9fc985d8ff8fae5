"""The settings section: the controls' values as the pipeline takes them, checked.

Whatever the browser sent is refused in a sentence where its control could not give it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from app.about import About
from mrrag.errors import SettingsError
from mrrag.types import Weights

if TYPE_CHECKING:
    from mrrag.case import Case, Settings

MAX_K = 16
MAX_STRENGTH = 4.0
WEIGHT_STEP = 0.01
# Of mrrag.model.steering.FORMS, which needs torch.
FORM_NAMES = {"As in the paper": "ifa", "Balanced": "balanced"}


def max_weight(about: About) -> float:
    """How far the α, β and γ sliders go: twice the largest learnt weight, at least 1."""
    learnt = (about.weights.alpha, about.weights.beta, about.weights.gamma)
    return float(max(1, math.ceil(2 * max(abs(w) for w in learnt))))


def settings_from(
    about: About,
    k: object,
    alpha: object,
    beta: object,
    gamma: object,
    strength: object,
    layers: object,
    form: object,
    noise: object,
    *,
    pinned: tuple[str, ...] = (),
    excluded: tuple[str, ...] = (),
) -> Settings:
    """The controls' values as settings; what stands as learnt is left to the pipeline.

    ``pinned`` and ``excluded`` come from the visit's own state and are taken as they are.

    Raises
    ------
    SettingsError
        Where a value is not what its control can give.
    """
    from mrrag.case import Settings

    limit = max_weight(about)
    whole_k = whole("The number of reports", k, 1, MAX_K)
    learnt = about.weights
    weights = Weights(
        _real("α", alpha, -limit, limit),
        _real("β", beta, -limit, limit),
        _real("γ", gamma, -limit, limit),
    )
    if not isinstance(layers, list | tuple):
        raise SettingsError("The layers are not a list. Choose them from those shown.")
    if not isinstance(form, str) or form not in FORM_NAMES.values():
        raise SettingsError("That form of IFA does not exist. Choose one of those shown.")
    numbers = sorted({whole("A layer", digits(v), 0, about.layers - 1) for v in layers})
    return Settings(
        k=whole_k,
        # A slider rounds what was learnt to its step; where it was not moved, use the real value.
        weights=None if _as_learnt(weights, learnt) else weights,
        strength=_real("The IFA strength", strength, 0.0, MAX_STRENGTH),
        layers=tuple(numbers),
        form=form,
        noise=whole("The number of irrelevant reports", noise, 0, whole_k),
        pinned=pinned,
        excluded=excluded,
    )


def _as_learnt(weights: Weights, learnt: Weights) -> bool:
    pairs = (
        (weights.alpha, learnt.alpha),
        (weights.beta, learnt.beta),
        (weights.gamma, learnt.gamma),
    )
    return all(abs(given - known) <= 0.51 * WEIGHT_STEP for given, known in pairs)


def digits(value: object) -> object:
    """What a control says in digits, as a number: a checkbox says its layer in words."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def _real(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise SettingsError(f"{name} must be a number from {low:g} to {high:g}.")
    return float(value)


def whole(name: str, value: object, low: int, high: int) -> int:
    """A control's value as a whole number from ``low`` to ``high``.

    Raises
    ------
    SettingsError
        Where it is none.
    """
    number = _real(name, value, low, high)
    if number != int(number):
        raise SettingsError(f"{name} must be a whole number from {low} to {high}.")
    return int(number)


def settings_line(about: About, result: Case) -> str:
    """The settings of a result in one line, so that it can be read on its own."""
    settings = result.settings
    layers = about.critical if settings.layers is None else settings.layers
    strength = about.strength if settings.strength is None else settings.strength
    random = f", {settings.noise} of them drawn at random" if settings.noise else ""
    where = ", ".join(map(str, layers)) or "none"
    form = " (balanced)" if (settings.form or about.form) == "balanced" else ""
    return (
        f"{settings.k} reports{random}; IFA{form} strength {strength:g} in layers {where}; "
        f"{result.versions.get('model', about.model)}"
    )
