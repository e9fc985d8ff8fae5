"""What was found of each attention head of a model: the file of ``find-heads``.

PASTA steers in the heads in which that helps most, and ITI shifts the heads whose outputs tell
right answers from wrong ones. How it is found is in :mod:`mrrag.training.heads`.
Shape suffixes: L layer, H head, D head width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mrrag.errors import SettingsError
from mrrag.files import write_atomic
from mrrag.types import Emphasis, FloatArray, Rival, Shift

FORMAT = "mrrag heads 1"
TENSORS = ("direction_LHD", "spread_LH", "probe_LH", "pasta_LH")


@dataclass(frozen=True)
class Heads:
    """What was found of each head.

    Attributes
    ----------
    direction_LHD : float32
        The unit vector from the mean output with a wrong answer to that with a right one.
    spread_LH : float32
        Standard deviation of the outputs along it.
    probe_LH : float32
        Share of validation answers that a linear probe of the head's output judges rightly.
    pasta_LH : float32
        Mean P(right answer) on validation questions under PASTA in that head alone.
    """

    direction_LHD: FloatArray
    spread_LH: FloatArray
    probe_LH: FloatArray
    pasta_LH: FloatArray


def best_heads(score_LH: FloatArray, share: float) -> tuple[tuple[int, int], ...]:
    """Return the (layer, head) pairs with the highest scores, ascending: a share, at least one."""
    count = max(1, round(share * score_LH.size))
    order = np.argsort(-score_LH.ravel(), kind="stable")[:count]
    return tuple(sorted(divmod(int(n), score_LH.shape[1]) for n in order))


def in_best_heads(rival: Rival, heads: Heads, share: float) -> Rival:
    """Return a rival that acts in a share of the heads: in PASTA's best, or by ITI's probes."""
    chosen = best_heads(heads.pasta_LH, share)
    emphases: tuple[Emphasis, ...] = tuple(replace(e, heads=chosen) for e in rival.emphases)
    shift = shift_along(rival.shift, heads, share) if rival.shift else None
    return replace(rival, emphases=emphases, shift=shift)


def shift_along(shift: Shift, heads: Heads, share: float) -> Shift:
    """Return the shift of the heads with the best probes, along their directions or random ones.

    A random direction has the length of the one in whose place it is.
    """
    rng = np.random.default_rng(0)
    vectors = []
    for layer, head in best_heads(heads.probe_LH, share):
        direction_D = heads.direction_LHD[layer, head].astype(np.float64)
        if shift.random:
            drawn_D = rng.standard_normal(len(direction_D))
            direction_D = drawn_D / np.linalg.norm(drawn_D)
        added_D = heads.spread_LH[layer, head] * direction_D
        vectors.append((layer, head, tuple(added_D.tolist())))
    return replace(shift, vectors=tuple(vectors))


def write_heads(path: Path, heads: Heads, about: Mapping[str, object]) -> None:
    """Write the file; ``about`` is what it was found with, the model's fingerprint among it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(getattr(heads, name)) for name in TENSORS}
    metadata = {"format": FORMAT, "about": json.dumps(dict(about))}
    write_atomic(path, save(tensors, metadata=metadata))


def read_heads(path: Path, model: str) -> Heads:
    """Read the file of a model, known by its fingerprint.

    Raises
    ------
    SettingsError
        Where there is no such file, it is another kind of file, or of another model.
    """
    found = "This file was not found" if not path.is_file() else "It cannot be read as such a file"
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            found = f"It names the format {metadata.get('format')!r}"
            known = metadata.get("format") == FORMAT and {*file.keys()} == {*TENSORS}
            tensors = {name: file.get_tensor(name) for name in TENSORS} if known else {}
            about = json.loads(metadata.get("about", "{}")) if known else {}
    except (OSError, SafetensorError, ValueError):
        tensors = {}
    sizes = {t.shape[:2] for t in tensors.values()}
    if len(sizes) != 1 or not all(np.isfinite(t).all() for t in tensors.values()):
        raise SettingsError(
            f"{path} is not a file that find-heads wrote. {found}. Write one with "
            "`mrrag find-heads`, and name it with --heads."
        )
    if about.get("model") != model:
        raise SettingsError(
            f"The heads of {path} were found for another model ({about.get('model')}, not "
            f"{model}). Find those of this one with `mrrag find-heads`."
        )
    return Heads(**tensors)
