"""Image and text → unit vectors in one space: the bi-towers of MCR.

:class:`BiTower` is the paper's: a ResNet reads the picture, a BERT reads the report or the
question, and a linear projection each takes them to one shared space, in which MCR's three
cosines are inner products. :func:`paper_tower` begins one from public weights, for
training. :class:`OpenClip` is a published one, read as it is. :func:`load_encoder` tells
them apart. This module does not know what a document, a score or a knowledge base is.

Another encoder is one more small class with what :class:`Encoder` names, and one more
reader in ``READERS``; nothing else in the package asks for more.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image as PillowImage
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
)

from mrrag.errors import ModelError
from mrrag.files import file_sha256
from mrrag.retrieval.open_clip import (
    check_settings,
    check_state,
    fill,
    find_file,
    is_hub_name,
    open_clip_image_tower,
    open_clip_text_tower,
    read_weights,
)
from mrrag.types import FloatArray, Image

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "BiTower",
    "Encoder",
    "OpenClip",
    "clip_pixels_of",
    "describe_encoder",
    "file_sha256",
    "load_bitower",
    "load_described_encoder",
    "load_encoder",
    "paper_tower",
    "pixels_of",
]

FORMAT = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
FILES = (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE)

# The paper's two towers. Of the BERT's weights the hub has a pickle alone.
RESNET = "microsoft/resnet-50"
BERT = "emilyalsentzer/Bio_ClinicalBERT"
PRETRAINED_WEIGHTS = (WEIGHTS_FILE, "pytorch_model.bin")

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# What RULE and MMed-RAG train their retrievers from; its configuration and tokenizer are
# those of the .pt files that come of it.
OPEN_CLIP_BASE = "thaottn/OpenCLIP-resnet50-CC12M"
# Of the pictures that CLIP was trained on, per channel, as shares of full scale.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


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


def clip_pixels_of(
    images: Sequence[Image],
    size: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> FloatArray:
    """Pictures as CLIP reads them: the shorter side to ``size`` px, then the middle square.

    Bicubic, then each channel of [0, 1] less ``mean`` over ``std``. The longer side is
    rounded down and the crop's corner to even, as torchvision does for open_clip;
    transformers' own CLIP processor takes the corner one px off for some sides.

    Returns
    -------
    float32 [N, 3, size, size]
    """
    pixels_NCYX = np.empty((len(images), 3, size, size), dtype=np.float32)
    for n, image in enumerate(images):
        picture = PillowImage.fromarray(image.display).convert("RGB")
        short = min(picture.size)
        # All but the middle is cropped below anyway, and a sliver must not grow without bound.
        width, height = (min(side, 16 * short) for side in picture.size)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
        width, height = (size * side // short for side in picture.size)
        picture = picture.resize((width, height), PillowImage.Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        picture = picture.crop((left, top, left + size, top + size))
        values = np.asarray(picture, dtype=np.float32) / 255
        values = (values - np.array(mean, np.float32)) / np.array(std, np.float32)
        pixels_NCYX[n] = values.transpose(2, 0, 1)
    return pixels_NCYX


class _Encoder(nn.Module):
    """What encoders have in common: texts to ids, and batches without gradients.

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
        """float32 [N, C, Y, X] as of :attr:`prepare` to unit vectors [N, D]."""
        raise NotImplementedError

    def encode_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [N, T] ids and mask to unit vectors [N, D]."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """As of :class:`torch.nn.Module`; training also empties the fingerprint."""
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


class BiTower(_Encoder):
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
        super().__init__(
            tokenizer,
            dimension=dimension,
            image_size=image_size,
            max_text_tokens=max_text_tokens,
            name=name,
        )
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

    @property
    def prepare(self) -> Callable[[Sequence[Image]], FloatArray]:
        """:func:`pixels_of` at this tower's size."""
        return partial(pixels_of, size=self.image_size, channels=self.image_config.num_channels)

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
            if not bool(torch.isfinite(stored).all()):
                raise ModelError(
                    f"The encoder's {key} has values that are not finite ({stored.dtype})."
                )
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


class OpenClip(_Encoder):
    """A published tower of open_clip, with its own pooling, projections and preprocessing.

    Parameters
    ----------
    image_tower, text_tower
        As of :mod:`mrrag.retrieval.open_clip`.
    dimension, image_size, max_text_tokens, name
        As of :class:`BiTower`.
    mean, std
        Per channel, as shares of full scale.
    """

    def __init__(
        self,
        image_tower: nn.Module,
        text_tower: nn.Module,
        tokenizer: PreTrainedTokenizerFast,
        *,
        dimension: int,
        image_size: int,
        max_text_tokens: int,
        name: str,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        super().__init__(
            tokenizer,
            dimension=dimension,
            image_size=image_size,
            max_text_tokens=max_text_tokens,
            name=name,
        )
        self.mean, self.std = tuple(mean), tuple(std)
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def prepare(self) -> Callable[[Sequence[Image]], FloatArray]:
        """:func:`clip_pixels_of` at this tower's size."""
        return partial(clip_pixels_of, size=self.image_size, mean=self.mean, std=self.std)

    def encode_pixels(self, pixels_NCYX: Tensor) -> Tensor:
        """float32 [N, 3, Y, X] as of :attr:`prepare` to unit vectors [N, D]."""
        return nn.functional.normalize(self.image_tower(pixels_NCYX), dim=-1)

    def encode_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [N, T] ids and mask to unit vectors [N, D]."""
        return nn.functional.normalize(self.text_tower(input_ids, attention_mask), dim=-1)


# Beginning a tower


def paper_tower(
    resnet: str = RESNET,
    bert: str = BERT,
    *,
    resnet_revision: str | None = None,
    bert_revision: str | None = None,
    dimension: int = 512,
    image_size: int = 224,
    max_text_tokens: int = 256,
    name: str = "resnet50-bioclinicalbert",
    seed: int = 0,
) -> BiTower:
    """The paper's bi-tower before training: public weights, and random projections.

    The vectors mean nothing until it is trained. The BERT's text is put to lower case
    only where its vocabulary has no capitals: Bio_ClinicalBERT's has, was trained with
    them, and yet is put to lower case by transformers' defaults.

    Parameters
    ----------
    resnet, bert
        Names of the model hub, or folders, of a ResNet and a BERT in the layout of
        transformers.
    resnet_revision, bert_revision
        Branch, tag or commit on the hub.
    dimension, image_size, max_text_tokens, name
        As of :class:`BiTower`. The paper gives none of them.
    seed
        Of the projections.

    Raises
    ------
    ModelError
        Where files are absent, damaged, or of another kind of model.
    """
    image_config, image = _pretrained(
        resnet, resnet_revision, ResNetConfig, ResNetModel, spare=("classifier.",)
    )
    text_config, text = _pretrained(
        bert,
        bert_revision,
        BertConfig,
        BertModel,
        spare=("cls.", "pooler.", "bert.pooler."),
        add_pooling_layer=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = BiTower(
            image_config,
            text_config,
            _bert_tokenizer(bert, bert_revision),
            dimension=dimension,
            image_size=image_size,
            max_text_tokens=max_text_tokens,
            name=name,
        )
    tower.image_tower, tower.text_tower = image, text
    return tower.eval()


def _pretrained(
    source: str,
    revision: str | None,
    config_kind: Any,
    model_kind: Any,
    spare: tuple[str, ...],
    **options: Any,
) -> tuple[Any, Any]:
    """Configuration and model of a checkpoint of transformers, without its heads."""
    values = _read_json(_needed(source, (CONFIG_FILE,), revision))
    wanted = config_kind.model_type
    if values.get("model_type", wanted) != wanted:
        raise ModelError(
            f"{source} is a {values['model_type']}, and a {wanted} is needed. Give another one."
        )
    # What belongs to the heads, or to the release that wrote it, is not the tower's.
    for key in ("architectures", "id2label", "label2id", "transformers_version", "torch_dtype"):
        values.pop(key, None)
    try:
        config = config_kind(**values)
        state = read_weights(_needed(source, PRETRAINED_WEIGHTS, revision))
        return config, fill(model_kind, config, state, source, spare, **options)
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds for a wrong configuration
        raise ModelError(
            f"{source} cannot be built from its {CONFIG_FILE} ({type(error).__name__}: {error})."
        ) from error


def _bert_tokenizer(source: str, revision: str | None) -> PreTrainedTokenizerFast:
    path = _needed(source, ("vocab.txt",), revision)
    words = path.read_text(encoding="utf-8").split("\n")
    vocabulary = {word: n for n, word in enumerate(words) if word}
    cased = any(word != word.lower() for word in vocabulary if not word.startswith("["))
    tokenizer: PreTrainedTokenizerFast = BertTokenizer(vocab=vocabulary, do_lower_case=not cased)
    return tokenizer


# Reading a tower


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
        config = _needed(base, (OPEN_CLIP_CONFIG,), revision)
        encoder = _read_open_clip(base, config, Path(source).name, Path(source))
        encoder.origin = {"source": source, "base": base, **_commit(base, config)}
    else:
        config = _needed(source, tuple(READERS), revision)
        encoder = READERS[config.name](source, config)
        encoder.origin = {"source": source, **_commit(source, config)}
    encoder.to(device)
    return encoder


def load_bitower(directory: str | Path) -> BiTower:
    """:func:`load_encoder` for a folder that :meth:`BiTower.save` wrote, and nothing else."""
    encoder = load_encoder(directory)
    if not isinstance(encoder, BiTower):
        raise ModelError(f"{directory} holds a tower of open_clip, and one of ours is needed.")
    return encoder


def describe_encoder(encoder: Encoder, near: Path) -> dict[str, str]:
    """What a manifest in the folder ``near`` keeps, to load the same encoder again.

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
    """The encoder that :func:`describe_encoder` described.

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


def _read_bitower(source: str, config_path: Path) -> BiTower:
    """A tower that :meth:`BiTower.save` wrote."""
    commit = _commit(source, config_path).get("revision")
    files = {CONFIG_FILE: config_path}
    for file in (WEIGHTS_FILE, TOKENIZER_FILE):
        found = find_file(source, (file,), commit)
        if found is not None:
            files[file] = found
    absent = [file for file in FILES if file not in files]
    if absent:
        raise ModelError(
            f"The encoder in {source} lacks {', '.join(absent)}. "
            f"A complete one has {', '.join(FILES)}: save or copy it again."
        )
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        if config["format"] > FORMAT:
            raise ModelError(
                f"The encoder in {source} has format {config['format']}, and this version "
                f"reads up to {FORMAT}. Update MR-RAG."
            )
        tower = BiTower(
            ResNetConfig(**config["image"]),
            BertConfig(**config["text"]),
            _tokenizer(files[TOKENIZER_FILE], config["pad_token"]),
            dimension=config["dimension"],
            image_size=config["image_size"],
            max_text_tokens=config["max_text_tokens"],
            name=config["name"],
        )
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds for a damaged file
        raise ModelError(
            f"The encoder in {source} cannot be built from its {CONFIG_FILE} and tokenizer "
            f"({type(error).__name__}: {error}). Save or copy it again."
        ) from error
    state = read_weights(files[WEIGHTS_FILE])
    check_state(str(files[WEIGHTS_FILE]), state, tower.state_dict())
    tower.load_state_dict(state)  # copies into the tower's own float32
    tower.eval()
    tower.fingerprint = _fingerprint({file: files[file] for file in FILES})
    return tower


def _read_open_clip(
    source: str, config_path: Path, name: str = "", weights: Path | None = None
) -> OpenClip:
    """A tower of open_clip, with other ``weights`` than its own where they are given."""
    commit = _commit(source, config_path).get("revision")
    tokenizer_path = _needed(source, (TOKENIZER_FILE,), commit)
    weights = weights or _needed(source, OPEN_CLIP_WEIGHTS, commit)
    config = _read_json(config_path)
    origin = str(weights)
    try:
        model = config["model_cfg"]
        check_settings(
            f"{config_path} (model_cfg)",
            model,
            dict.fromkeys(("embed_dim", "quick_gelu", "vision_cfg", "text_cfg")),
        )
        preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, **config.get("preprocess_cfg", {})}
        read = {"interpolation": ("bicubic",), "resize_mode": ("shortest",), "mode": ("RGB",)}
        check_settings(
            f"{config_path} (preprocess_cfg)",
            {key: preprocess[key] for key in read if key in preprocess},
            read,
        )
        state = read_weights(weights)
        scale = state.pop("logit_scale", None)
        visual = {key: v for key, v in state.items() if key.startswith("visual.")}
        image_tower = open_clip_image_tower(origin, model, visual)
        text_tower = open_clip_text_tower(
            origin, model, {key: v for key, v in state.items() if key not in visual}
        )
        tower = OpenClip(
            image_tower,
            text_tower,
            # Padding is never read; CLIP's own is the end of a text.
            _tokenizer(
                tokenizer_path,
                "[PAD]" if "hf_model_name" in model["text_cfg"] else "<|endoftext|>",
            ),
            dimension=int(model["embed_dim"]),
            image_size=int(model["vision_cfg"].get("image_size", 224)),
            max_text_tokens=int(model["text_cfg"].get("context_length", 77)),
            name=name or _name(source),
            mean=preprocess["mean"],
            std=preprocess["std"],
        )
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds for a damaged file
        raise ModelError(
            f"{origin} cannot be read as {config_path} says "
            f"({type(error).__name__}: {error}). Copy it again."
        ) from error
    if scale is not None:
        tower.logit_scale.data.fill_(float(scale))
    tower.eval()
    tower.fingerprint = _fingerprint(
        {"weights": weights, "configuration": config_path, "tokenizer": tokenizer_path}
    )
    return tower


# What a folder or repository holds → how it is read; the first that is there counts.
READERS: dict[str, Callable[[str, Path], BiTower | OpenClip]] = {
    OPEN_CLIP_CONFIG: _read_open_clip,
    CONFIG_FILE: _read_bitower,
}


def _needed(source: str, names: Sequence[str], revision: str | None) -> Path:
    found = find_file(source, names, revision)
    if found is None:
        raise ModelError(
            f"{source} lacks {' or '.join(names)}. Give another folder or name, or copy it again."
        )
    return found


def _commit(source: str, path: Path) -> dict[str, str]:
    """The hub's commit that a kept file is of: its folder is called by it."""
    on_hub = not Path(source).exists() and is_hub_name(source)
    return {"revision": path.parent.name} if on_hub else {}


def _name(source: str) -> str:
    return Path(source).resolve().name if Path(source).exists() else source


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path} cannot be read ({error}). Copy it again.") from error


def _tokenizer(path: Path, pad_token: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(path), pad_token=pad_token
    )


def _config_dict(config: ResNetConfig | BertConfig) -> dict[str, Any]:
    values: dict[str, Any] = config.to_diff_dict()
    # The same model saved by another release of transformers is the same model.
    values.pop("transformers_version", None)
    return values


def _fingerprint(files: Mapping[str, Path]) -> str:
    """SHA-256 over the names and bytes of the encoder's files."""
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(f"{name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
