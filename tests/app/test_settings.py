"""The settings: what a control cannot give is refused, and what was not moved is as learnt."""

from __future__ import annotations

import math

import pytest
from tiny_case import ABOUT, LEARNT_CONTROLS

from app.sections.settings import MAX_STRENGTH, settings_from
from mrrag.errors import SettingsError
from mrrag.forms import FORMS
from mrrag.types import Weights


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("k", 0), ("k", 999), ("k", 2.5), ("k", None), ("k", "3"), ("k", True), ("k", math.nan),
        ("alpha", 99.0), ("alpha", math.inf), ("beta", math.nan), ("gamma", "0.3"),
        ("strength", -0.1), ("strength", 100.0), ("strength", None),
        ("layers", ["4"]), ("layers", ["-1"]), ("layers", "1"), ("layers", [None]),
        ("layers", ["1; drop"]), ("layers", ["²"]),
        ("form", "block"), ("form", None), ("form", 0), ("form", []),
        ("noise", -1), ("noise", 4),
    ],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(control: str, value: object) -> None:
    with pytest.raises(SettingsError):
        settings_from(ABOUT, LEARNT_CONTROLS._replace(**{control: value}))


def test_every_strength_that_is_tried_can_be_chosen_on_the_page() -> None:
    assert max(s for form in FORMS.values() for s in form.strengths) <= MAX_STRENGTH


def test_untouched_sliders_mean_the_learnt_weights_exactly() -> None:
    assert settings_from(ABOUT, LEARNT_CONTROLS).weights is None
    moved = LEARNT_CONTROLS._replace(beta=0.4)
    assert settings_from(ABOUT, moved).weights == Weights(0.35, 0.4, 0.3)
