"""What the page must know before the model is loaded: names, layers, learnt values.

Read from the small files beside the weights, so that the page can be served while torch
and the model are still on their way.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrrag.errors import KnowledgeBaseError, ModelError
from mrrag.learnt import learnt_for
from mrrag.types import BUNDLED, Weights

PHANTOM_MODEL = "MR-RAG phantom LLaVA"


@dataclass(frozen=True)
class Base:
    """A knowledge base as the page presents it.

    Attributes
    ----------
    number : int
        Its place among those that the page offers, from 0.
    sources : tuple of (str, str)
        Where its reports come from, and under which licence.
    intervals : tuple of (float, float)
        95 % intervals of the learnt α, β and γ; empty where they were not learnt.
    """

    name: str = ""
    number: int = 0
    documents: int = 0
    sources: tuple[tuple[str, str], ...] = ()
    encoder: str = ""
    intervals: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class About:
    """A checkpoint as the page presents it.

    Attributes
    ----------
    layers, heads : int
        Of the text model.
    weights, critical, strength, form
        What was learnt for it: α, β, γ, the layers where IFA acts, how strongly, and in
        which form.
    phantoms_only : bool
        Whether it is limited to the phantom world (it has a ``scope.json``).
    why : str
        Why it is this model and not the paper's, in a sentence; else empty.
    base : Base
        Whose reports are retrieved.
    """

    model: str
    layers: int
    weights: Weights
    critical: tuple[int, ...]
    strength: float
    phantoms_only: bool
    form: str = "ifa"
    heads: int = 1
    why: str = ""
    base: Base = Base()


def read_about(
    assets: Path,
    *,
    model: str = BUNDLED,
    folder: Path | None = None,
    knowledge_base: Path | None = None,
    number: int = 0,
    why: str = "",
) -> About:
    """Read what the page shows of a model and a knowledge base, from their small files.

    Parameters
    ----------
    model, knowledge_base
        As in :func:`mrrag.pipeline.load_pipeline`.
    folder
        Where the model's files are; None for the bundled one.
    number
        The knowledge base's place among those that the page offers.

    Raises
    ------
    ModelError, KnowledgeBaseError
        Where a file is absent or is not what it should be.
    """
    learnt = learnt_for(model, knowledge_base, assets)
    bundled, folder = folder is None, folder or assets / "llava"
    layers, heads = _shape(folder, bundled=bundled)
    phantoms_only = model == BUNDLED and (folder / "scope.json").exists()
    return About(
        model=PHANTOM_MODEL if phantoms_only else folder.name if model == BUNDLED else model,
        layers=layers,
        weights=learnt.weights,
        critical=learnt.steering.layers,
        strength=learnt.steering.strength,
        form=learnt.steering.form,
        phantoms_only=phantoms_only,
        heads=heads,
        why=why,
        base=_read_base(knowledge_base, assets, number, learnt.intervals),
    )


def _shape(folder: Path, *, bundled: bool) -> tuple[int, int]:
    """Layers and heads of the text model."""
    if not bundled:
        # Other checkpoints' files leave out what is usual for their kind.
        from mrrag.model.checkpoint import read_config

        text: Any = read_config(folder).text_config
        return int(text.num_hidden_layers), int(text.num_attention_heads)
    # Transformers takes seconds to import, and the page is served before it is.
    try:
        text = _read(folder / "config.json")["text_config"]
        return int(text["num_hidden_layers"]), int(text["num_attention_heads"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{folder.name}/config.json does not say what the page needs ({error!r}). "
            "Restore the file."
        ) from None


def _read_base(
    given: Path | None, assets: Path, number: int, intervals: tuple[tuple[float, float], ...]
) -> Base:
    bundled = assets / "knowledge_base"
    directory = (given or bundled).resolve()
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        return Base(
            name="bundled" if directory == bundled.resolve() else directory.name,
            number=number,
            documents=int(manifest["count"]),
            sources=tuple((str(s["source"]), str(s["licence"])) for s in manifest["sources"]),
            encoder=str(manifest["encoder"]["name"]),
            intervals=intervals,
        )
    except (OSError, KeyError, TypeError, ValueError):
        raise KnowledgeBaseError(
            f"There is no knowledge base in {given or bundled}: its manifest.json is absent or "
            "damaged. Build one with `python -m mrrag index`, or give the directory that holds one."
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
