"""The settings section: the controls' values, checked and turned into settings.

A value that the control could not give is refused in a sentence.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from app.about import About
from mrrag.case import Case, Settings
from mrrag.errors import SettingsError
from mrrag.forms import FORMS
from mrrag.types import Weights

# Narrower than mrrag.retrieval.mcr.MAX_K and mrrag.case.MAX_STRENGTH: no more cards than a
# person reads, and a slider that stays fine enough.
MAX_K = 16
MAX_STRENGTH = 8.0  # the strongest that find-layers tries
WEIGHT_STEP = 0.01
FORM_NAMES = {form.title: name for name, form in FORMS.items()}


class Controls(NamedTuple):
    """The controls of the settings: components in the layout, unchecked values in an action."""

    k: Any
    alpha: Any
    beta: Any
    gamma: Any
    strength: Any
    layers: Any
    form: Any
    noise: Any


def max_weight(about: About) -> float:
    """Return the end of the α, β and γ sliders: twice the largest learnt weight, at least 1."""
    learnt = (about.weights.alpha, about.weights.beta, about.weights.gamma)
    return float(max(1, math.ceil(2 * max(abs(w) for w in learnt))))


def settings_from(
    about: About,
    controls: Controls,
    *,
    pinned: tuple[str, ...] = (),
    excluded: tuple[str, ...] = (),
) -> Settings:
    """Return the controls' values as settings; learnt weights are left to the pipeline.

    ``pinned`` and ``excluded`` come from the visit's own state and are taken as they are.

    Raises
    ------
    SettingsError
        If a value is not one that its control can give.
    """
    limit = max_weight(about)
    k = whole("The number of reports", controls.k, 1, MAX_K)
    weights = Weights(
        _real("α", controls.alpha, -limit, limit),
        _real("β", controls.beta, -limit, limit),
        _real("γ", controls.gamma, -limit, limit),
    )
    if not isinstance(controls.layers, list | tuple):
        raise SettingsError("The layers are not a list. Choose them from those shown.")
    form = controls.form
    if not isinstance(form, str) or form not in FORM_NAMES.values():
        raise SettingsError("That form of IFA does not exist. Choose one of those shown.")
    layers = sorted({whole("A layer", digits(v), 0, about.layers - 1) for v in controls.layers})
    return Settings(
        k=k,
        # A slider rounds a learnt weight to its step; where it was not moved, use the real value.
        weights=None if _as_learnt(weights, about.weights) else weights,
        strength=_real("The IFA strength", controls.strength, 0.0, MAX_STRENGTH),
        layers=tuple(layers),
        form=form,
        noise=whole("The number of irrelevant reports", controls.noise, 0, k),
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
    """Return a string of digits as a number, as a checkbox names its layer; else the value."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def _real(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise SettingsError(f"{name} must be a number from {low:g} to {high:g}.")
    return float(value)


def whole(name: str, value: object, low: int, high: int) -> int:
    """Return a control's value as a whole number from ``low`` to ``high``.

    Raises
    ------
    SettingsError
        If it is not one.
    """
    number = _real(name, value, low, high)
    if number != int(number):
        raise SettingsError(f"{name} must be a whole number from {low} to {high}.")
    return int(number)


def settings_line(about: About, result: Case) -> str:
    """Return the settings of a result in one line."""
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
