"""Image and text → unit vectors in one space: the bi-tower of MCR.

A ResNet reads the picture, a BERT reads the report or the question, and a linear
projection each takes them to one shared space, in which MCR's three cosines are inner
products. This module does not know what a document, a score or a knowledge base is.

Another encoder (a BiomedCLIP, say) is one more small class with what :class:`Encoder`
names; nothing else in the package asks for more.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image as PillowImage
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
)

from mrrag.errors import ModelError
from mrrag.types import FloatArray, Image

__all__ = ["BiTower", "Encoder", "file_sha256", "load_encoder", "pixels_of"]

FORMAT = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
FILES = (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE)


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


def pixels_of(images: Sequence[Image], size: int, channels: int = 1) -> FloatArray:
    """Pictures as a ResNet reads them.

    The longer side is resized to ``size`` px (Pillow's bicubic, which low-passes as it
    shrinks), the picture is standardised to mean 0 and standard deviation 1, and then
    laid in the middle of a square of zeros. The order matters: padding after
    standardising is padding with the picture's own mean, so that neither the contrast
    nor the padding depends on how tightly the film was cropped; standardising makes the
    vector independent of linear changes of window. A blank picture becomes zeros.

    Parameters
    ----------
    images
        Grey or colour, of any size.
    size
        Side of the square, px.
    channels
        1: colour is turned to grey by its luma (ITU-R 601). 3: grey is repeated, and
        the mean and deviation are taken over all three channels together.

    Returns
    -------
    float32 [N, channels, Y, X]
    """
    if channels not in (1, 3):
        raise ModelError(f"An image tower reads 1 or 3 channels, and {channels} were asked for.")
    pixels_NCYX = np.zeros((len(images), channels, size, size), dtype=np.float32)
    for n, image in enumerate(images):
        picture = PillowImage.fromarray(image.display).convert("L" if channels == 1 else "RGB")
        scale = size / max(picture.size)
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), PillowImage.Resampling.BICUBIC)
        values = np.asarray(picture, dtype=np.float32).reshape(height, width, channels)
        # Less than one grey level of deviation is a blank film, not a faint one.
        values = (values - values.mean()) / max(float(values.std()), 1.0)
        top, left = (size - height) // 2, (size - width) // 2
        pixels_NCYX[n, :, top : top + height, left : left + width] = values.transpose(2, 0, 1)
    return pixels_NCYX


class BiTower(nn.Module):
    """ResNet and BERT, each with a linear projection to one space of unit vectors.

    Parameters
    ----------
    image_config, text_config
        Of the two towers; ``image_config.num_channels`` is 1 (grey) or 3.
    tokenizer
        Fast, with a padding token, and no larger than ``text_config.vocab_size``.
    dimension
        D of the shared space.
    image_size
        Side of the square that the image tower reads, px.
    max_text_tokens
        A longer text is cut at its end.
    name
        What a person calls it.

    Attributes
    ----------
    logit_scale : parameter, scalar
        Logarithm of the inverse temperature of the contrastive loss that trains it (as
        in CLIP, starting at ln(1 / 0.07)); inference does not read it.
    fingerprint : str
        Set by :func:`load_encoder`, and emptied by :meth:`train`, since weights that
        move are no longer those on disk.
    """

    def __init__(
        self,
        image_config: ResNetConfig,
        text_config: BertConfig,
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
        if len(tokenizer) > text_config.vocab_size:
            raise ModelError(
                f"The encoder's tokenizer has {len(tokenizer)} tokens and its text tower only "
                f"{text_config.vocab_size}. They are not of one model."
            )
        if not 1 <= max_text_tokens <= text_config.max_position_embeddings:
            raise ModelError(
                f"The encoder is to read {max_text_tokens} text tokens; its text tower allows "
                f"1 to {text_config.max_position_embeddings}."
            )
        self.name = name
        self.fingerprint = ""
        self.dimension = dimension
        self.image_size = image_size
        self.max_text_tokens = max_text_tokens
        self.tokenizer = tokenizer
        self.image_config = image_config
        self.text_config = text_config
        self.image_tower = ResNetModel(image_config)
        self.text_tower = BertModel(text_config, add_pooling_layer=False)
        # No bias: a constant common to all vectors would raise every cosine alike.
        self.image_projection = nn.Linear(
            list(image_config.hidden_sizes or ())[-1], dimension, bias=False
        )
        self.text_projection = nn.Linear(text_config.hidden_size, dimension, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def train(self, mode: bool = True) -> BiTower:
        """As of :class:`torch.nn.Module`; training also empties the fingerprint."""
        if mode:
            self.fingerprint = ""
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
        if not bool(mask_NT.any(dim=1).all()):
            raise ModelError("A text to be encoded is empty. Leave it out instead.")
        return ids_NT, mask_NT

    def encode_pixels(self, pixels_NCYX: Tensor) -> Tensor:
        """float32 [N, C, Y, X] as of :func:`pixels_of` to unit vectors [N, D]."""
        pooled_ND = self.image_tower(pixel_values=pixels_NCYX).pooler_output.flatten(1)
        return nn.functional.normalize(self.image_projection(pooled_ND), dim=-1)

    def encode_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [N, T] ids and mask to unit vectors [N, D].

        Tokens are averaged over the mask. [CLS] would summarise nothing until a
        pretraining had taught it to, and a report is a list of findings: in the mean,
        each sentence counts, from the first step of training on.
        """
        states_NTD = self.text_tower(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        mask_NT1 = attention_mask.unsqueeze(-1).to(states_NTD.dtype)
        pooled_ND = (states_NTD * mask_NT1).sum(1) / mask_NT1.sum(1).clamp(min=1)
        return nn.functional.normalize(self.text_projection(pooled_ND), dim=-1)

    @property
    def prepare(self) -> Callable[[Sequence[Image]], FloatArray]:
        """As of :class:`Encoder`: :func:`pixels_of` at this tower's size."""
        return partial(pixels_of, size=self.image_size, channels=self.image_config.num_channels)

    def encode_prepared(self, pixels_NCYX: FloatArray) -> FloatArray:
        """float32 [N, C, Y, X] as of :attr:`prepare` to unit vectors, float32 [N, D]."""
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

    def save(self, directory: str | Path, *, float16: bool = True) -> None:
        """Write the configuration, the weights and the tokenizer to ``directory``.

        With ``float16``, matrices and kernels are halved on disk; vectors (biases,
        normalisation statistics) stay float32, since they weigh nothing and a running
        variance may exceed what float16 can hold. The vectors of a tower read back thus
        differ slightly from this one's, which is why only one that was read from disk
        has a fingerprint.

        Raises
        ------
        ModelError
            Where a weight is not finite in the form to be written.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        state: dict[str, Tensor] = {}
        for key, tensor in self.state_dict().items():
            half = float16 and tensor.is_floating_point() and tensor.ndim > 1
            stored = tensor.detach().to("cpu", torch.float16 if half else tensor.dtype)
            _require_finite(key, stored)
            state[key] = stored.contiguous()
        save_file(state, directory / WEIGHTS_FILE)
        # Without the padding and cutting of the last call, which are settings of ours.
        core = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        core.no_padding()
        core.no_truncation()
        core.save(str(directory / TOKENIZER_FILE))
        config = {
            "format": FORMAT,
            "name": self.name,
            "dimension": self.dimension,
            "image_size": self.image_size,
            "max_text_tokens": self.max_text_tokens,
            "pad_token": self.tokenizer.pad_token,
            "image": _config_dict(self.image_config),
            "text": _config_dict(self.text_config),
        }
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (directory / CONFIG_FILE).write_text(text, encoding="utf-8")


def load_encoder(directory: str | Path) -> BiTower:
    """Read a tower that :meth:`BiTower.save` wrote, in float32, in eval mode, on the CPU.

    Nothing is unpickled and nothing is downloaded.

    Raises
    ------
    ModelError
        Where a file is absent or damaged, or the tensors are not those that the
        configuration asks for.
    """
    directory = Path(directory)
    absent = [file for file in FILES if not (directory / file).is_file()]
    if absent:
        raise ModelError(
            f"The encoder in {directory} lacks {', '.join(absent)}. "
            f"A complete one has {', '.join(FILES)}: save or copy it again."
        )
    try:
        config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
        if config["format"] > FORMAT:
            raise ModelError(
                f"The encoder in {directory} has format {config['format']}, and this version "
                f"reads up to {FORMAT}. Update MR-RAG."
            )
        tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_file=str(directory / TOKENIZER_FILE), pad_token=config["pad_token"]
        )
        tower = BiTower(
            ResNetConfig(**config["image"]),
            BertConfig(**config["text"]),
            tokenizer,
            dimension=config["dimension"],
            image_size=config["image_size"],
            max_text_tokens=config["max_text_tokens"],
            name=config["name"],
        )
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds for a damaged file
        raise ModelError(
            f"The encoder in {directory} cannot be built from its {CONFIG_FILE} and tokenizer "
            f"({type(error).__name__}: {error}). Save or copy it again."
        ) from error
    _load_weights(tower, directory / WEIGHTS_FILE)
    tower.eval()
    tower.fingerprint = _fingerprint(directory)
    return tower


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read a mebibyte at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _load_weights(tower: BiTower, path: Path) -> None:
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is not a whole safetensors file ({error}). Save or copy it again."
        ) from error
    wanted = tower.state_dict()
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unexpected:
        raise ModelError(
            f"{path} is not of this configuration: {_listed('missing', missing)}; "
            f"{_listed('unexpected', unexpected)}."
        )
    for key, tensor in state.items():
        if tensor.shape != wanted[key].shape:
            raise ModelError(
                f"{path}: {key} has shape {list(tensor.shape)}, and {CONFIG_FILE} asks for "
                f"{list(wanted[key].shape)}."
            )
        _require_finite(key, tensor)
    tower.load_state_dict(state)  # copies into the tower's own float32


def _listed(what: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} tensors {what}" + (f" ({shown})" if keys else "")


def _require_finite(key: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"The encoder's {key} has values that are not finite ({tensor.dtype}).")


def _config_dict(config: ResNetConfig | BertConfig) -> dict[str, Any]:
    values: dict[str, Any] = config.to_diff_dict()
    # The same model saved by another release of transformers is the same model.
    values.pop("transformers_version", None)
    return values


def _fingerprint(directory: Path) -> str:
    """SHA-256 over the names and bytes of the encoder's files."""
    digest = hashlib.sha256()
    for file in FILES:
        digest.update(f"{file} {file_sha256(directory / file)}\n".encode())
    return digest.hexdigest()
