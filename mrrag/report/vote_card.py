"""The vote of the retrieved reports as HTML.

Values go in, markup comes out; it knows neither the page nor its controls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from mrrag.report.templating import render
from mrrag.retrieval.votes import per_cent, silent
from mrrag.types import Vote

__all__ = ["vote_card"]


def vote_card(votes: Sequence[Vote]) -> Markup:
    """Return what the reports say of each finding that the question names; empty without any."""
    shown = [
        {
            "finding": vote.finding,
            "affirm": vote.affirm,
            "deny": vote.deny,
            "doubt": vote.doubt,
            "silent": silent(vote),
            "reports": vote.reports,
            "base": "" if math.isnan(vote.base_rate) else per_cent(vote.base_rate),
        }
        for vote in votes
    ]
    return render("votes.html", votes=shown)
