"""What the page must know before the model is loaded: names, layers, learnt values.

Read from the small files beside the weights, so that the page can be served while torch
and the model are still on their way.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrrag.errors import ModelError
from mrrag.types import Weights

PHANTOM_MODEL = "MR-RAG phantom LLaVA"


@dataclass(frozen=True)
class About:
    """A checkpoint as the page presents it.

    Attributes
    ----------
    layers, heads : int
        Of the text model.
    weights, critical, strength
        What was learnt for it: α, β, γ, the layers where IFA acts, and how strongly.
    phantoms_only : bool
        Whether it is limited to the phantom world (it has a ``scope.json``).
    """

    model: str
    layers: int
    weights: Weights
    critical: tuple[int, ...]
    strength: float
    phantoms_only: bool
    heads: int = 1


def read_about(assets: Path) -> About:
    """Read what the page shows of the checkpoint in an assets folder.

    Raises
    ------
    ModelError
        Where a file is absent or is not what it should be.
    """
    learnt = _read(assets / "learnt.json")
    config = _read(assets / "llava" / "config.json")
    phantoms_only = (assets / "llava" / "scope.json").exists()
    try:
        return About(
            model=PHANTOM_MODEL if phantoms_only else str(config.get("_name_or_path") or "LLaVA"),
            layers=int(config["text_config"]["num_hidden_layers"]),
            weights=Weights(**learnt["weights"]),
            critical=tuple(int(layer) for layer in learnt["layers"]),
            strength=float(learnt["strength"]),
            phantoms_only=phantoms_only,
            heads=int(config["text_config"]["num_attention_heads"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"The files in {assets.name} do not say what the page needs ({error!r}). "
            "Restore learnt.json and llava/config.json."
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(
            f"{path.parent.name}/{path.name} is absent or damaged. The page needs the bundled "
            "assets: restore them, or give another folder with --assets."
        ) from None
    if not isinstance(stored, dict):
        raise ModelError(f"{path.name} is not a JSON object. Restore the file.")
    return stored
