"""What the arena finds on one case: plain values, which need no model to be shown.

It imports nothing heavy, since the page lists the methods before the model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from mrrag.study.arena import ARENA, CONTROLS
from mrrag.types import AttentionTrace

# The methods that may be asked about one case; "rag" is what the others are compared with.
OFFERED = tuple(name for name in ARENA if name not in CONTROLS and not ARENA[name].heads)


@dataclass(frozen=True)
class ArenaAnswer:
    """What one method of the arena answers about a case.

    Attributes
    ----------
    method : str
        A key of :data:`mrrag.study.arena.ARENA`.
    p_yes, p_no : float
        Probabilities at the first answer token, over the whole vocabulary.
    seconds : float
        From the question to the answer's last token, after what was read before. What several
        methods read together counts in each.
    ranks : tuple of int
        Of the reports that were read, in the order of reading.
    before, after : AttentionTrace or None
        Plain attention, and what the method makes of it, over the same prompt and in the tokens
        where it acts; None where it changes none.
    alone : tuple of float
        P(yes) of each report alone, in the order of ``ranks``, where each had its own prompt.
    """

    method: str
    text: str
    p_yes: float
    p_no: float
    seconds: float
    ranks: tuple[int, ...]
    before: AttentionTrace | None = None
    after: AttentionTrace | None = None
    alone: tuple[float, ...] = ()


@dataclass(frozen=True)
class Curve:
    """P(yes) of MR-RAG as one setting moves and all others stay.

    Attributes
    ----------
    setting : str
        "strength", "alpha", "beta" or "gamma".
    at, p_yes : tuple of float
        The setting's values in order, the present one among them, and P(yes) at each.
    present : float
        The setting's value in the case.
    """

    setting: str
    at: tuple[float, ...]
    p_yes: tuple[float, ...]
    present: float
