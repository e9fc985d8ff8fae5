"""Encoders: image and text → unit vectors in one space, in which MCR's cosines are taken.

:class:`~mrrag.retrieval.bi_tower.BiTower` is the paper's,
:class:`~mrrag.retrieval.open_clip.OpenClip` a published one; :func:`load_encoder` tells them
apart. Another encoder is one more class with what :class:`Encoder` names, and one more
reader in ``READERS``. This module does not know what a document or a score is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from mrrag.errors import ModelError
from mrrag.retrieval.bi_tower import BiTower, read_bitower
from mrrag.retrieval.open_clip import (
    OPEN_CLIP_BASE,
    OPEN_CLIP_CONFIG,
    OpenClip,
    read_open_clip,
)
from mrrag.retrieval.tower_pair import CONFIG_FILE, commit_of, needed_file
from mrrag.types import FloatArray, Image


class Encoder(Protocol):
    """What retrieval asks of an encoder.

    ``fingerprint`` pins the files that the vectors depend on, so that a knowledge base
    is never searched with vectors of another space; it is empty for an encoder that is
    not on disk.
    """

    @property
    def name(self) -> str:
        """What a person calls it."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over its files, or empty."""

    @property
    def origin(self) -> Mapping[str, str]:
        """What :func:`load_encoder` takes to read it again; empty as the fingerprint is."""

    @property
    def dimension(self) -> int:
        """D, the length of every vector."""

    @property
    def prepare(self) -> Callable[[Sequence[Image]], FloatArray]:
        """Pictures to the pixels it reads; can be pickled, so that other processes may do it."""

    def encode_prepared(self, pixels_NCYX: FloatArray) -> FloatArray:
        """Pixels of :attr:`prepare` to unit vectors, float32 [N, D]."""

    def images(self, images: Sequence[Image]) -> FloatArray:
        """Pictures to unit vectors, float32 [N, D]."""

    def texts(self, texts: Sequence[str]) -> FloatArray:
        """Texts to unit vectors, float32 [N, D]."""


# File that a directory or repository holds → how it is read; the first that exists decides.
READERS: dict[str, Callable[[str, Path], BiTower | OpenClip]] = {
    OPEN_CLIP_CONFIG: read_open_clip,
    CONFIG_FILE: read_bitower,
}


def load_encoder(
    source: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> BiTower | OpenClip:
    """Read a tower in float32, in eval mode.

    What it is, its files tell: a folder or repository with open_clip_config.json is
    open_clip's, one with config.json is of :meth:`BiTower.save`; a single file holds
    weights of open_clip, which say nothing of how they were configured: ``base`` does.

    Parameters
    ----------
    source
        A folder, a name of the model hub (owner/name), or a file of open_clip's training
        (.pt, .bin, .safetensors).
    revision
        Branch, tag or commit of the repository that is read on the hub.
    base
        For a file: folder or name of the hub whose configuration and tokenizer are its
        own; by default what RULE and MMed-RAG start from, a ResNet-50 CLIP.
    device
        Where it runs.

    Raises
    ------
    ModelError
        Where a file is absent or damaged, or the tensors are not those that the
        configuration asks for.
    """
    source = str(source)
    encoder: BiTower | OpenClip
    if Path(source).is_file():
        base = str(base or OPEN_CLIP_BASE)
        config = needed_file(base, (OPEN_CLIP_CONFIG,), revision)
        encoder = read_open_clip(base, config, Path(source).name, Path(source))
        encoder.origin = {"source": source, "base": base, **commit_of(base, config)}
    else:
        config = needed_file(source, tuple(READERS), revision)
        encoder = READERS[config.name](source, config)
        encoder.origin = {"source": source, **commit_of(source, config)}
    encoder.to(device)
    return encoder


def load_bitower(directory: str | Path) -> BiTower:
    """Load an encoder from a directory that :meth:`BiTower.save` wrote, and no other."""
    encoder = load_encoder(directory)
    if not isinstance(encoder, BiTower):
        raise ModelError(f"{directory} holds a tower of open_clip, and one of ours is needed.")
    return encoder


def describe_encoder(encoder: Encoder, near: Path) -> dict[str, str]:
    """Return what a manifest in the directory ``near`` keeps, to load the same encoder again.

    A local path is kept relative to ``near``, so that the two move together and no
    machine's folders are written down.
    """
    origin = dict(encoder.origin)
    for key in ("source", "base"):
        if key in origin and Path(origin[key]).exists():
            path = Path(os.path.relpath(origin[key], near)).as_posix()
            origin[key] = path if path.startswith(".") else f"./{path}"
    return {"name": encoder.name, "fingerprint": encoder.fingerprint, **origin}


def load_described_encoder(
    entry: Mapping[str, str], near: Path, *, device: torch.device | str = "cpu"
) -> BiTower | OpenClip:
    """Load the encoder that :func:`describe_encoder` described.

    Raises
    ------
    ModelError
        Where nothing says where it is, it cannot be read, or it is no longer the same.
    """
    if "source" not in entry:
        raise ModelError(
            f'Nothing says where the encoder "{entry.get("name", "")}" is. Give its folder.'
        )
    places = {
        key: os.path.normpath(near / entry[key]) if entry[key].startswith(".") else entry[key]
        for key in ("source", "base")
        if key in entry
    }
    for key, place in places.items():
        if entry[key].startswith(".") and not Path(place).exists():
            raise ModelError(
                f'The encoder "{entry["name"]}" is no longer in {place}. Put it back there, or '
                "build the knowledge base again with another one."
            )
    encoder = load_encoder(
        places["source"],
        base=places.get("base"),
        revision=entry.get("revision"),
        device=device,
    )
    if encoder.fingerprint != entry["fingerprint"]:
        raise ModelError(
            f'The encoder in {places["source"]} is "{encoder.name}" '
            f'({encoder.fingerprint[:12]}), and "{entry["name"]}" ({entry["fingerprint"][:12]}) '
            "was there before. Put that one back, or build the knowledge base again."
        )
    return encoder
