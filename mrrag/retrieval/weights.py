"""Weights on disk: read safely, checked by name and shape, put into a module.

Nothing is unpickled but tensors and plain values, and every name is used or the load is
refused. This module does not know what a tensor is for.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mrrag.errors import ModelError

State = dict[str, Tensor]


def read_weights(path: Path) -> State:
    """Tensors by name, from safetensors or from a PyTorch file, onto the CPU.

    A PyTorch file is a pickle, which may run any program; it is opened with
    ``weights_only``, which builds nothing but tensors and plain values. Of a training
    checkpoint, what is under ``state_dict`` is taken, without the ``module.`` that
    distributed training puts before every name.

    Raises
    ------
    ModelError
        Where the file is damaged, holds anything else, or has no tensors.
    """
    found: Any
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is not a whole safetensors file ({error}). Save or copy it again."
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path} is damaged, or holds more than tensors and plain values, which is refused: "
            "a pickle may run any program. Copy it again, or save its state_dict alone, where "
            "you trust it, as safetensors."
        ) from error
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    if not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(
            f"{path} holds no tensors by name. Give the weights, or a training checkpoint with "
            "a state_dict."
        )
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): v for key, v in state.items()}
    return dict(state)


# Putting tensors where they belong


def check_state(origin: str, state: State, wanted: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are absent, too many, of another shape, or not finite."""
    check_names(origin, state, wanted)
    for key, tensor in state.items():
        if tensor.shape != wanted[key].shape:
            raise ModelError(
                f"{origin}: {key} has shape {list(tensor.shape)}, and its configuration asks for "
                f"{list(wanted[key].shape)}."
            )
    _check_finite(origin, state)


def fill(
    kind: Any, config: Any, state: State, origin: str, spare: tuple[str, ...] = (), **options: Any
) -> Any:
    """Build a model of transformers with these tensors, float32, in eval mode.

    Parameters
    ----------
    kind, config, options
        The class, its configuration and what else its constructor takes.
    state
        Under the names that checkpoints of transformers have.
    origin
        Where they come from, for the errors.
    spare
        Beginnings of names that are left out (heads that are not wanted).

    Raises
    ------
    ModelError
        As :func:`check_state`.
    """
    state = {k: v for k, v in state.items() if not (spare and k.startswith(spare))}
    _check_finite(origin, state)
    model, info = kind.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # said below, with the names, as the others are
        output_loading_info=True,
        **options,
    )
    mismatched = [f"{k} {list(a)} for {list(b)}" for k, a, b in info["mismatched_keys"]]
    if mismatched:
        raise ModelError(f"{origin} does not fit its configuration: {', '.join(mismatched[:3])}.")
    _refuse(origin, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]))
    return model


def check_settings(
    origin: str, settings: Mapping[str, Any], known: Mapping[str, Collection[Any] | None]
) -> None:
    """Refuse a setting that is not known, or has a value that is not read.

    Parameters
    ----------
    known
        Setting → values that are read; None for any.
    """
    for key, value in settings.items():
        came = f"{key[:60]} = {repr(value)[:60]}"
        if key not in known:
            raise ModelError(f"{origin} has {came}, which MR-RAG does not read.")
        allowed = known[key]
        if allowed is not None and value not in allowed:
            raise ModelError(
                f"{origin} has {came}; MR-RAG reads {' or '.join(map(repr, allowed))}."
            )


def check_names(origin: str, state: Collection[str], wanted: Collection[str]) -> None:
    """Raise :class:`ModelError` unless the tensors of ``state`` are those that are wanted."""
    _refuse(origin, sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted)))


def _refuse(origin: str, missing: list[str], unexpected: list[str]) -> None:
    if missing or unexpected:
        raise ModelError(
            f"{origin} is not of this configuration: {_listed('missing', missing)}; "
            f"{_listed('unexpected', unexpected)}."
        )


def _listed(what: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} tensors {what}" + (f" ({shown})" if keys else "")


def _check_finite(origin: str, state: State) -> None:
    for key, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{origin}: {key} has values that are not finite ({tensor.dtype}).")
