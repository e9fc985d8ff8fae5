"""Names, layers and learnt values, which the page shows before the model is loaded.

Read from the small files beside the weights, so that the page can be served while torch
and the model are loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrrag.errors import ModelError
from mrrag.files import read_json
from mrrag.learnt import Learnt, default_weights, learnt_for
from mrrag.report.audit_panel import AUDIT, checked_audit, read_audit
from mrrag.retrieval.address import Place
from mrrag.retrieval.manifest import MANIFEST, files_of, read_manifest
from mrrag.types import BUNDLED, Weights

PHANTOM_MODEL = "MR-RAG phantom LLaVA"


@dataclass(frozen=True)
class Base:
    """A knowledge base as the page shows it.

    Attributes
    ----------
    number : int
        Tells the page's pairs of a model and a knowledge base apart.
    sources : tuple of (str, str)
        Source and licence of its reports.
    intervals : tuple of (float, float)
        95 % intervals of the learnt α, β and γ; empty if they were not learnt.
    chosen : bool
        Whether its weights are neither the default nor learnt with intervals, but chosen by
        ``mrrag audit --choose-weights``.
    audit : mapping or None
        What ``mrrag audit`` measured of it (:func:`mrrag.report.audit_panel.read_audit`).
    """

    name: str = ""
    number: int = 0
    documents: int = 0
    sources: tuple[tuple[str, str], ...] = ()
    encoder: str = ""
    intervals: tuple[tuple[float, float], ...] = ()
    chosen: bool = False
    audit: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class About:
    """A checkpoint as the page shows it.

    Attributes
    ----------
    layers, heads : int
        Of the text model.
    weights, critical, strength, form
        Learnt for it: α, β, γ, and the layers, strength and form of IFA.
    phantoms_only : bool
        Whether it only knows synthetic phantoms (it has a ``scope.json``).
    why : str
        A sentence on why this is not the paper's model; else empty.
    base : Base
        The knowledge base whose reports are retrieved.
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
    knowledge_base: Place | None = None,
    number: int = 0,
    why: str = "",
) -> About:
    """Read what the page shows of a model and a knowledge base from their small files.

    Parameters
    ----------
    model, knowledge_base
        As in :func:`mrrag.loading.load_pipeline`.
    folder
        Folder of the model's files; None for the bundled one.
    number
        As of :class:`Base`.

    Raises
    ------
    ModelError, KnowledgeBaseError
        If a file is missing or damaged.
    """
    files = files_of(knowledge_base)
    learnt = learnt_for(model, files, assets)
    bundled, folder = folder is None, folder or assets / "llava"
    layers, heads = _shape(folder, bundled=bundled)
    phantoms_only = model == BUNDLED and (folder / "scope.json").exists()
    local = model == BUNDLED or Path(model).expanduser().is_dir()  # no visitor needs its path
    return About(
        model=PHANTOM_MODEL if phantoms_only else folder.name if local else model,
        layers=layers,
        weights=learnt.weights,
        critical=learnt.steering.layers,
        strength=learnt.steering.strength,
        form=learnt.steering.form,
        phantoms_only=phantoms_only,
        heads=heads,
        why=why,
        base=_read_base(knowledge_base, files, assets, number, learnt),
    )


def _shape(folder: Path, *, bundled: bool) -> tuple[int, int]:
    """Return the number of layers and heads of the text model."""
    if not bundled:
        # Other checkpoints' files omit the defaults of their architecture.
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
    place: Place | None,
    files: Path | Mapping[str, Any] | None,
    assets: Path,
    number: int,
    learnt: Learnt,
) -> Base:
    """Describe a knowledge base; ``files`` is what :func:`files_of` returned of its place."""
    if isinstance(files, Mapping):
        manifest, default = files[MANIFEST], default_weights(files)
        audit = checked_audit(files.get(AUDIT), manifest)
        name = place.name if place is not None else ""
    else:
        bundled = (assets / "knowledge_base").resolve()
        directory = bundled if files is None else files.resolve()
        manifest, default = read_manifest(directory), default_weights(directory)
        name = "bundled" if directory == bundled else directory.name
        audit = read_audit(directory)
    return Base(
        name=name,
        number=number,
        documents=manifest["count"],
        sources=tuple((s["source"], s["licence"]) for s in manifest.get("sources", ())),
        encoder=manifest["encoder"]["name"],
        intervals=learnt.intervals,
        chosen=not learnt.intervals and learnt.weights != default,
        audit=audit,
    )


def _read(path: Path) -> dict[str, Any]:
    stored = read_json(
        path,
        lambda _: ModelError(
            f"{path.parent.name}/{path.name} is missing or damaged. The page needs the bundled "
            "assets: restore them, or give another folder with --assets."
        ),
    )
    if not isinstance(stored, dict):
        raise ModelError(f"{path.name} is not a JSON object. Restore the file.")
    return stored
