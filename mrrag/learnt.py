"""What was learnt for a checkpoint and a knowledge base: α, β, γ, and where IFA acts.

Read without torch, since the page shows it before the model is there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mrrag.errors import ModelError
from mrrag.types import BUNDLED, Weights

FILE = "learnt.json"
ALIKE = Weights(1 / 3, 1 / 3, 1 / 3)


@dataclass(frozen=True)
class Learnt:
    """What was learnt for a checkpoint and knowledge base, with where it came from.

    ``intervals`` are 95 % intervals of α, β and γ; empty where they were not learnt.
    """

    weights: Weights
    layers: tuple[int, ...]
    strength: float
    rows: Literal["question", "question+cue"]
    provenance: dict[str, str] = field(default_factory=dict)
    intervals: tuple[tuple[float, float], ...] = ()


def load_learnt(path: Path) -> Learnt:
    """Read the learnt weights, critical layers and strength."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Learnt(
            weights=Weights(**stored["weights"]),
            layers=tuple(stored["layers"]),
            strength=float(stored["strength"]),
            rows=stored["rows"],
            provenance=stored.get("provenance", {}),
            intervals=tuple(
                (float(low), float(high))
                for low, high in stored.get("adapter", {}).get("intervals", ())
            ),
        )
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path.name} cannot be read ({error}). It holds α, β, γ, the critical layers and the "
            "strength of a checkpoint. Run `python -m mrrag train-adapter` and "
            "`python -m mrrag find-layers`, or restore the file."
        ) from None


def learnt_for(model: str, knowledge_base: Path | None, assets: Path) -> Learnt:
    """What is known for a model on a knowledge base; nothing that is not known is guessed.

    α, β and γ go with the knowledge base, the critical layers with the model. A knowledge
    base of one's own may hold a ``learnt.json`` for both. Without one, the three pairs
    count alike; a model whose layers were never searched for has none, so that IFA acts
    nowhere until layers are chosen.

    Parameters
    ----------
    model
        ``"bundled"``, or any other.
    knowledge_base
        Its folder; None for the bundled one.
    """
    bundled = (assets / "knowledge_base").resolve()
    own = knowledge_base if knowledge_base and knowledge_base.resolve() != bundled else None
    if own is not None and (own / FILE).is_file():
        return load_learnt(own / FILE)
    learnt = load_learnt(assets / FILE)
    if own is not None:
        learnt = replace(learnt, weights=ALIKE, intervals=())
    if model != BUNDLED:
        learnt = replace(learnt, layers=(), strength=1.0, rows="question")
    return learnt
