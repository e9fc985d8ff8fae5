"""The forms in which relevance steers attention, by name; what they do is in ``model/steering``.

It imports neither torch nor anything else that takes long: the page lists the forms before the
model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mrrag.types import Retrieved

GAP = 0.1  # of cosine: the unit in which the balanced form counts differences of scores


@dataclass(frozen=True)
class Form:
    """What is known of a form beside its transform.

    Attributes
    ----------
    title : str
        Its name on the page.
    lam : callable
        λ of a retrieved document, before the strength; zero or more.
    strengths : tuple of float
        What ``find-layers`` tries, up to what the slider on the page reaches.
    ablation : tuple of float
        What ``evaluate --ablations form`` compares.
    """

    title: str
    lam: Callable[[Retrieved], float]
    strengths: tuple[float, ...]
    ablation: tuple[float, ...]


# The paper's λ spreads from 0 to 1 however alike the documents are. The balanced form's is
# the difference of the scores itself, so that documents nearly alike are read nearly alike.
FORMS: dict[str, Form] = {
    "ifa": Form(
        "As in the paper",
        lambda document: document.relevance,
        strengths=(0.25, 0.5, 1.0, 2.0),
        ablation=(0.1, 0.25, 1.0),
    ),
    "balanced": Form(
        "Balanced",
        lambda document: document.gap / GAP,
        strengths=(1.0, 2.0, 4.0, 8.0),
        ablation=(1.0, 2.0, 4.0),
    ),
}


def lambdas(documents: Sequence[Retrieved], form: str) -> tuple[float, ...]:
    """Return λ of each document before the strength; ``form`` is a key of :data:`FORMS`."""
    return tuple(FORMS[form].lam(document) for document in documents)
