"""The paper's bi-tower: a ResNet reads the picture, a BERT the report or the question.

A linear projection each takes both to one shared space, in which MCR's three cosines are
inner products. :func:`paper_tower` builds one from public weights, for training. It does
not know what a document, a score or a knowledge base is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
from mrrag.hub import find_file
from mrrag.retrieval.tower_pair import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    TowerPair,
    commit_of,
    fingerprint_of,
    load_tokenizer,
    needed_file,
    read_config,
    refusing,
)
from mrrag.retrieval.weights import check_state, fill, read_weights
from mrrag.schema import Items, Number, Record, Text, Whole, refusing_fields
from mrrag.types import FloatArray, Image

FORMAT = 1
FILES = (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE)
# What sizes are read; transformers checks what else its configurations hold.
_WIDTH, _LAYERS = Whole(1, 65_536), Whole(1, 200)
_CONFIG = Record(
    {
        "format": Whole(1, FORMAT),
        "name": Text(1, 500),
        "dimension": _WIDTH,
        "image_size": Whole(1, 4096),
        "max_text_tokens": _WIDTH,
        "pad_token": Text(1, 100),
        "image": Record(
            {},
            {
                "num_channels": Whole(1, 3),
                "embedding_size": _WIDTH,
                "hidden_sizes": Items(_WIDTH, 1, 8),
                "depths": Items(_LAYERS, 1, 8),
            },
        ),
        "text": Record(
            {},
            {
                "vocab_size": Whole(1, 2_000_000),
                "hidden_size": _WIDTH,
                "num_hidden_layers": _LAYERS,
                "num_attention_heads": _WIDTH,
                "intermediate_size": _WIDTH,
                "max_position_embeddings": _WIDTH,
                "type_vocab_size": _WIDTH,
                "layer_norm_eps": Number(0, 1),
            },
        ),
    }
)

# The paper's two towers. The hub only has a pickle of the BERT's weights.
RESNET = "microsoft/resnet-50"
BERT = "emilyalsentzer/Bio_ClinicalBERT"
PRETRAINED_WEIGHTS = (WEIGHTS_FILE, "pytorch_model.bin")


def pixels_of(images: Sequence[Image], size: int, channels: int = 1) -> FloatArray:
    """Return pictures as a ResNet reads them.

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


class BiTower(TowerPair):
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
        words = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))
        if words > text_config.vocab_size:
            raise ModelError(
                f"The encoder's tokenizer has {words} tokens and its text tower only "
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
        """Encode pixels of :func:`pixels_of`, float32 [N, C, Y, X], as unit vectors [N, D]."""
        pooled_ND = self.image_tower(pixel_values=pixels_NCYX).pooler_output.flatten(1)
        return nn.functional.normalize(self.image_projection(pooled_ND), dim=-1)

    def encode_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode ids and mask, int64 [N, T], as unit vectors [N, D].

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
    """Build the paper's bi-tower before training: public weights, random projections.

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
    """Load configuration and model of a transformers checkpoint, without its heads."""
    values = read_config(needed_file(source, (CONFIG_FILE,), revision))
    wanted = config_kind.model_type
    if values.get("model_type", wanted) != wanted:
        raise ModelError(
            f"{source} is a {values['model_type']}, and a {wanted} is needed. Give another one."
        )
    # What belongs to the heads, or to the release that wrote it, is not the tower's.
    for key in ("architectures", "id2label", "label2id", "transformers_version", "torch_dtype"):
        values.pop(key, None)
    with refusing(f"{source} cannot be built from its {CONFIG_FILE}", ""):
        config = config_kind(**values)
        state = read_weights(needed_file(source, PRETRAINED_WEIGHTS, revision))
        return config, fill(model_kind, config, state, source, spare, **options)


def _bert_tokenizer(source: str, revision: str | None) -> PreTrainedTokenizerFast:
    path = needed_file(source, ("vocab.txt",), revision)
    words = path.read_text(encoding="utf-8").split("\n")
    vocabulary = {word: n for n, word in enumerate(words) if word}
    cased = any(word != word.lower() for word in vocabulary if not word.startswith("["))
    tokenizer: PreTrainedTokenizerFast = BertTokenizer(vocab=vocabulary, do_lower_case=not cased)
    return tokenizer


# Reading


def read_bitower(source: str, config_path: Path) -> BiTower:
    """Read an encoder that :meth:`BiTower.save` wrote."""
    commit = commit_of(source, config_path).get("revision")
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
    problem = f"The encoder in {source} cannot be built from its {CONFIG_FILE} and tokenizer"
    with refusing(problem, " Save or copy it again."):
        config = read_config(config_path)
        if type(config.get("format")) is int and FORMAT < config["format"] < 1000:
            raise ModelError(
                f"The encoder in {source} has format {config['format']}, and this version "
                f"reads up to {FORMAT}. Update MR-RAG."
            )
        with refusing_fields(str(config_path), "Save or copy it again.", ModelError):
            _CONFIG.check(config)
        state = read_weights(files[WEIGHTS_FILE])
        tokenizer = load_tokenizer(files[TOKENIZER_FILE], config["pad_token"])
        with torch.device("meta"):  # no room is taken for sizes that the weights do not have
            shapes = _tower_of(config, tokenizer).state_dict()
        check_state(str(files[WEIGHTS_FILE]), state, shapes)
        tower = _tower_of(config, tokenizer)
    tower.load_state_dict(state)  # copies into the tower's own float32
    tower.eval()
    tower.fingerprint = fingerprint_of({file: files[file] for file in FILES})
    return tower


def _tower_of(config: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> BiTower:
    return BiTower(
        ResNetConfig(**config["image"]),
        BertConfig(**config["text"]),
        tokenizer,
        dimension=config["dimension"],
        image_size=config["image_size"],
        max_text_tokens=config["max_text_tokens"],
        name=config["name"],
    )


def _config_dict(config: ResNetConfig | BertConfig) -> dict[str, Any]:
    values: dict[str, Any] = config.to_diff_dict()
    # The same model saved by another release of transformers is the same model.
    values.pop("transformers_version", None)
    return values
