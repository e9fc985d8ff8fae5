"""The common part of all encoders: a pair of towers, and the files that they are read from.

It does not know how a tower is built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mrrag.errors import ModelError
from mrrag.files import file_sha256, read_json
from mrrag.hub import find_file, is_hub_name
from mrrag.types import FloatArray, Image

if TYPE_CHECKING:
    from typing_extensions import Self

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"


class TowerPair(nn.Module):
    """The common part of the encoders: tokenising, and batches without gradients.

    Attributes
    ----------
    logit_scale : parameter, scalar
        Logarithm of the inverse temperature of the contrastive loss that trains it (as
        in CLIP, starting at ln(1 / 0.07)); inference does not read it.
    fingerprint, origin
        Set by :func:`load_encoder`, and emptied by :meth:`train`, since weights that
        move are no longer those on disk.
    """

    logit_scale: nn.Parameter

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        dimension: int,
        image_size: int,
        max_text_tokens: int,
        name: str,
    ) -> None:
        super().__init__()
        if tokenizer.pad_token_id is None:
            raise ModelError("The encoder's tokenizer has no padding token. Give it one.")
        self.name = name
        self.fingerprint = ""
        self.origin: Mapping[str, str] = {}
        self.dimension = dimension
        self.image_size = image_size
        self.max_text_tokens = max_text_tokens
        self.tokenizer = tokenizer

    @property
    def prepare(self) -> Callable[[Sequence[Image]], FloatArray]:
        """Pictures to what the image tower reads, float32 [N, C, Y, X]; can be pickled."""
        raise NotImplementedError

    def encode_pixels(self, pixels_NCYX: Tensor) -> Tensor:
        """Encode pixels of :attr:`prepare`, float32 [N, C, Y, X], as unit vectors [N, D]."""
        raise NotImplementedError

    def encode_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode ids and mask, int64 [N, T], as unit vectors [N, D]."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Switch training mode, as in :class:`torch.nn.Module`; it also empties the fingerprint."""
        if mode:
            self.fingerprint, self.origin = "", {}
        super().train(mode)
        return self

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts to ``(input_ids, attention_mask)``, int64 [N, T] each, padded and cut.

        T is the longest text of the batch, at most ``max_text_tokens``.

        Raises
        ------
        ModelError
            Where nothing is left of a text.
        """
        batch = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_text_tokens,
            return_tensors="pt",
        )
        ids_NT, mask_NT = batch["input_ids"].long(), batch["attention_mask"].long()
        if not bool((mask_NT.sum(1) > self.tokenizer.num_special_tokens_to_add()).all()):
            raise ModelError("A text to be encoded is empty. Leave it out instead.")
        return ids_NT, mask_NT

    def encode_prepared(self, pixels_NCYX: FloatArray) -> FloatArray:
        """Encode pixels of :attr:`prepare`, float32 [N, C, Y, X], as unit vectors [N, D]."""
        self._require_eval()
        with torch.inference_mode():
            pixels = torch.from_numpy(pixels_NCYX).to(self.logit_scale.device)
            vectors: FloatArray = self.encode_pixels(pixels).float().cpu().numpy()
        return vectors

    def images(self, images: Sequence[Image], batch: int = 32) -> FloatArray:
        """Pictures to unit vectors, float32 [N, D]."""
        self._require_eval()
        vectors_ND = np.empty((len(images), self.dimension), dtype=np.float32)
        for start in range(0, len(images), batch):
            pixels_NCYX = self.prepare(images[start : start + batch])
            vectors_ND[start : start + batch] = self.encode_prepared(pixels_NCYX)
        return vectors_ND

    def texts(self, texts: Sequence[str], batch: int = 32) -> FloatArray:
        """Texts to unit vectors, float32 [N, D].

        Raises
        ------
        ModelError
            Where nothing is left of a text.
        """
        self._require_eval()
        vectors_ND = np.empty((len(texts), self.dimension), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(texts), batch):
                ids, mask = self.tokenize(texts[start : start + batch])
                device = self.logit_scale.device
                encoded = self.encode_ids(ids.to(device), mask.to(device))
                vectors_ND[start : start + batch] = encoded.float().cpu().numpy()
        return vectors_ND

    def _require_eval(self) -> None:
        # In training mode a batch would change the running statistics, and dropout the
        # vectors: both silently.
        if self.training:
            raise RuntimeError("Call eval() on the encoder before encoding with it.")


@contextmanager
def refusing(problem: str, remedy: str) -> Iterator[None]:
    """Turn whatever transformers raises for a wrong file into a ModelError.

    It raises many kinds: for a missing key, a wrong type, a size that does not fit.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelError(f"{problem} ({why}).{remedy}") from error


def needed_file(source: str, names: Sequence[str], revision: str | None) -> Path:
    """Return the first of ``names`` that a source has; ModelError if it has none."""
    found = find_file(source, names, revision)
    if found is None:
        raise ModelError(
            f"{source} lacks {' or '.join(names)}. Give another folder or name, or copy it again."
        )
    return found


def commit_of(source: str, path: Path) -> dict[str, str]:
    """Return the hub's commit of a cached file, which its directory is named after."""
    on_hub = not Path(source).exists() and is_hub_name(source)
    return {"revision": path.parent.name} if on_hub else {}


def name_of(source: str) -> str:
    """Return the name of a directory, or a hub name as it is."""
    return Path(source).resolve().name if Path(source).exists() else source


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration file."""
    problem = f"{path} cannot be read"
    values = read_json(path, lambda why: ModelError(f"{problem} ({why}). Copy it again."))
    if not isinstance(values, dict):
        raise ModelError(f"{problem} (it holds no object). Copy it again.")
    return values


def load_tokenizer(path: Path, pad_token: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer from tokenizer.json."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(path), pad_token=pad_token
    )


def fingerprint_of(files: Mapping[str, Path]) -> str:
    """Return SHA-256 over the names and bytes of an encoder's files."""
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(f"{name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
