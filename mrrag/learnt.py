"""What was learnt for a checkpoint and a knowledge base: α, β, γ, and where IFA acts.

This module does not need torch: the page shows these values before the model is loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

from mrrag.errors import ModelError, SettingsError
from mrrag.files import read_json, write_atomic
from mrrag.forms import FORMS
from mrrag.schema import (
    FieldError,
    Flag,
    Items,
    Number,
    Record,
    Row,
    Text,
    Whole,
    refusing_fields,
)
from mrrag.types import BUNDLED, Steering, Weights

FILE, MANIFEST = "learnt.json", "manifest.json"
ALIKE = Weights(1 / 3, 1 / 3, 1 / 3)
# What α, β and γ count for by default, in units of each similarity's spread. A question says
# less about a patient than a picture does, and so counts half.
SHARES = Weights(0.4, 0.4, 0.2)
LEAST_SPREAD = 1e-4  # of cosines of float16 vectors; below it is rounding
# For a model without a search for layers: the paper's form and strength, in no layer.
UNKNOWN = Steering(strength=1.0, rows="question", form="ifa")

REMEDY = (
    "It holds α, β, γ, the critical layers and the strength of a checkpoint. Run "
    "`python -m mrrag train-adapter` and `python -m mrrag find-layers`, or restore the file."
)
_WEIGHT = Number(-1000, 1000)  # as mrrag.retrieval.mcr.MAX_WEIGHT
_STUDIES = Items(Text(pattern="[0-9a-f]{12}", what="12 hexadecimal digits"))
_INTERVALS = Items(Row((_WEIGHT, _WEIGHT)))
# How these values were found stands beside them, and little of it is read.
_TRIAL = Record(
    {"layers": Items(Whole(0, 999), most=1000), "strength": Number(0, 10), "rows": Text(1, 100)}
)
_LEARNT = Record(
    {
        "weights": Record({name: _WEIGHT for name in ("alpha", "beta", "gamma")}, closed=True),
        "layers": Items(Whole(0, 999), most=1000),
        "strength": Number(0, 10),  # as mrrag.case.MAX_STRENGTH
        "rows": Text(1, 100),
    },
    {
        "form": Text(1, 100),
        "model": Text(1, 500),
        "adapter": Record({}, {"intervals": _INTERVALS, "used": Flag(), "studies": _STUDIES}),
        "sweep": Record(
            {},
            {"studies": _STUDIES, "best_of_forms": Record({}, {f: _TRIAL for f in FORMS})},
        ),
    },
)


@dataclass(frozen=True)
class Learnt:
    """What was learnt for a checkpoint and knowledge base.

    Attributes
    ----------
    steering : Steering
        The critical layers, and how strongly and in which form IFA acts there.
    model : str
        The name of the model whose layers these are.
    intervals : tuple
        95 % intervals of α, β and γ; empty where they were not learnt, or what was learnt is
        not used.
    studies : frozenset of str
        :func:`study_digest` of every study from whose questions any of it was learnt.
    forms : mapping
        The setting of each form of IFA that was best on validation questions, for comparison.
    """

    weights: Weights
    steering: Steering
    model: str = BUNDLED
    intervals: tuple[tuple[float, float], ...] = ()
    studies: frozenset[str] = frozenset()
    forms: Mapping[str, Steering] = field(default_factory=dict)


def load_learnt(path: Path) -> Learnt:
    """Read the learnt weights, critical layers and strength, and check every field.

    Raises
    ------
    ModelError
        Where the file is absent, or a field is not what it may be.
    """
    return check_learnt(_read(path), path.name)


def check_learnt(stored: object, name: str) -> Learnt:
    """Check every field of what :func:`load_learnt` reads; ``name`` is its file."""
    with refusing_fields(name, REMEDY, ModelError):
        values = _LEARNT.check(stored)
        weights = Weights(**values["weights"])
        if not any(astuple(weights)):
            raise FieldError("zero throughout", "at least one weight other than 0", "weights")
        adapter, sweep = (values.get(part, {}) for part in ("adapter", "sweep"))
        intervals = adapter.get("intervals", ())
        if len(intervals) not in (0, 3) or any(low > high for low, high in intervals):
            allowed = "three pairs of a lower and an upper end, or none"
            raise FieldError("a list of others", allowed, "adapter.intervals")
    return Learnt(
        weights=weights,
        steering=Steering(
            strength=values["strength"],
            layers=tuple(values["layers"]),
            rows=values["rows"],
            form=values.get("form", "ifa"),
        ),
        model=values.get("model", BUNDLED),
        intervals=tuple(intervals) if adapter.get("used", True) else (),
        studies=frozenset((*adapter.get("studies", ()), *sweep.get("studies", ()))),
        forms={
            form: Steering(found["strength"], tuple(found["layers"]), found["rows"], form=form)
            for form, found in sweep.get("best_of_forms", {}).items()
            if form in FORMS
        },
    )


def _read(path: Path) -> Any:
    def refuse(why: str) -> ModelError:
        return ModelError(f"{path.name} cannot be read ({why}). {REMEDY}")

    return read_json(path, refuse)


def study_digest(study: str) -> str:
    """Return the anonymous ID of a study that was learnt from."""
    return hashlib.sha256(study.encode()).hexdigest()[:12]


def learnt_path(model: str, knowledge_base: Path | object | None, assets: Path) -> Path:
    """Return the path of ``learnt.json`` for a model on a knowledge base.

    Raises
    ------
    SettingsError
        For another model on the bundled knowledge base, whose file belongs to the bundled
        model; and for a knowledge base that is in no folder.
    """
    if knowledge_base is not None and not isinstance(knowledge_base, Path):
        raise SettingsError(
            f"What is learnt is written to a folder, and {knowledge_base} is none. Copy it to one "
            "with `mrrag kb copy`, learn there, and copy it back; learnt.json goes along."
        )
    own = _own(knowledge_base, assets)
    if own is not None:
        return own / FILE
    if model != BUNDLED:
        raise SettingsError(
            "What is learnt for another model is stored with its own knowledge base. Build one "
            "with `python -m mrrag index`, and name it with --kb."
        )
    return assets / FILE


def write_learnt(path: Path, learnt: Learnt, *, model: str, **found: Mapping[str, object]) -> None:
    """Write the learnt values, with how they were found, atomically.

    Parameters
    ----------
    found
        ``adapter`` or ``sweep``. The other one is kept; a sweep of another model is removed.
    """
    stored: dict[str, object] = {}
    if path.exists():
        stored = _read(path)
        if not isinstance(stored, dict):
            raise ModelError(f"{path.name} cannot be read (it holds no object). {REMEDY}")
    if stored.get("model", BUNDLED) != model:
        stored.pop("sweep", None)
    used = {
        "model": model,
        "weights": asdict(learnt.weights),
        "layers": learnt.steering.layers,
        "strength": learnt.steering.strength,
        "rows": learnt.steering.rows,
        "form": learnt.steering.form,
    }
    write_atomic(path, json.dumps(stored | used | found, indent=2) + "\n")


def learnt_for(model: str, knowledge_base: Path | Mapping[str, Any] | None, assets: Path) -> Learnt:
    """Return what was learnt for a model on a knowledge base.

    α, β and γ belong to the knowledge base, the critical layers to the model. A knowledge base
    other than the bundled one may hold a ``learnt.json`` for both (:func:`write_learnt`).
    Without it the weights are :func:`default_weights`. A model whose layers were not searched
    for has no critical layers, so IFA acts nowhere until layers are chosen.

    Parameters
    ----------
    model
        ``"bundled"``, or another name.
    knowledge_base
        Its folder, or where it is in none its JSON files by name; None for the bundled one.
    """
    given = knowledge_base
    own = given if isinstance(given, Mapping) else _own(given, assets)
    learnt = load_learnt(assets / FILE)
    if own is not None:
        weights = default_weights(own)
        learnt = replace(learnt, weights=weights, intervals=(), studies=frozenset())
        if known := _learnt_in(own):
            if known.model == model:
                return known
            learnt = replace(
                learnt, weights=known.weights, intervals=known.intervals, studies=known.studies
            )
    if model != BUNDLED:
        learnt = replace(learnt, steering=UNKNOWN)
    return learnt


def _learnt_in(own: Path | Mapping[str, Any]) -> Learnt | None:
    if isinstance(own, Mapping):
        return check_learnt(own[FILE], FILE) if FILE in own else None
    return load_learnt(own / FILE) if (own / FILE).is_file() else None


def default_weights(knowledge_base: Path | Mapping[str, Any]) -> Weights:
    """Return α, β, γ where none were learnt: :data:`SHARES`, each divided by its spread.

    Cosines of question and report may spread twice as wide over the documents as those of
    image and report, and with equal weights would decide alone. The spread of each similarity
    is in the manifest (:func:`mrrag.retrieval.calibration.spread`). The weights are scaled to
    a sum of 1. A knowledge base that was built without it has equal weights.
    """
    try:
        if isinstance(knowledge_base, Mapping):
            stored = knowledge_base[MANIFEST]
        else:
            stored = read_json(knowledge_base / MANIFEST, ValueError)
        spread = Weights(**stored["spread"])
        known = all(0 <= width <= 2 for width in astuple(spread))  # false for NaN too
        spreads = known and max(astuple(spread)) >= LEAST_SPREAD
    except (KeyError, TypeError, ValueError):
        return ALIKE
    return per_spread(SHARES, spread) if spreads else ALIKE


def per_spread(shares: Weights, spread: Weights) -> Weights:
    """Return weights that give each standardised term its share, with a sum of 1.

    A similarity that is the same for all documents gets none, unless there is no other: divided
    by its spread, rounding alone would decide.
    """
    parts = [
        share / width if width >= LEAST_SPREAD else 0.0
        for share, width in zip(astuple(shares), astuple(spread), strict=True)
    ]
    whole = math.fsum(parts)
    return Weights(*(part / whole for part in parts)) if whole else shares


def _own(knowledge_base: Path | None, assets: Path) -> Path | None:
    bundled = (assets / "knowledge_base").resolve()
    return knowledge_base if knowledge_base and knowledge_base.resolve() != bundled else None
