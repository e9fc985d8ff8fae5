"""The reports' vote as it is shown."""

import math

from mrrag.report.vote_card import vote_card
from mrrag.types import Vote


def test_a_vote_shows_its_counts_beside_the_base_rate_and_escapes_words() -> None:
    shown = vote_card(
        [Vote("<b>effusion</b>", 3, 4, 0, 8, 0.042), Vote("nodule", 0, 8, 0, 8, math.nan)]
    )
    assert "3 of 8 affirm, 4 deny, 1 silent; 4 % of this knowledge base affirm it" in shown
    assert "&lt;b&gt;effusion" in shown
    assert "0 of 8 affirm, 8 deny</p>" in shown


def test_without_a_vote_nothing_is_shown() -> None:
    assert not vote_card([]).strip()
