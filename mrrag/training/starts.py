"""Where the training of a retriever starts: random weights, or those of any tower we load.

======================  ============================================================
``small``               a small bi-tower with random weights
``bundled``             the image half of the included encoder; a new text half
``public``              a public ResNet and BERT, with random projections (the paper's)
a folder, file or name  a bi-tower, or a tower of open_clip; all its weights
======================  ============================================================

A new text half has random weights, and a tokenizer of the training texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from transformers import BertConfig, PreTrainedTokenizerFast, ResNetConfig

from mrrag.errors import SettingsError
from mrrag.retrieval.bi_tower import BERT, RESNET, BiTower, paper_tower
from mrrag.retrieval.encoders import load_bitower, load_encoder
from mrrag.retrieval.open_clip import OpenClip
from mrrag.retrieval.open_clip_writer import save_open_clip
from mrrag.training.data import DataSet
from mrrag.training.tokenizer import train_tokenizer


@dataclass(frozen=True)
class RetrieverOptions:
    """Settings of training a retriever; the paper states none of them.

    Attributes
    ----------
    start : str
        ``small``, ``bundled``, ``public``, or a source of :func:`load_encoder`.
    revision : str or None
        Branch, tag or commit of the start, on the hub.
    image_tower, text_tower : str
        A ResNet and a BERT, for ``public``: a name on the hub, or a folder.
    image_revision, text_revision : str or None
        Branch, tag or commit of these, on the hub.
    dimension, image_size, text_tokens : int or None
        As in :class:`mrrag.retrieval.bi_tower.BiTower`; None for the start's own.
    vocabulary : int
        Tokens of a new tokenizer, at most.
    steps, fact_steps : int
        Steps on pairs of image and report, and then on facts alone.
    fact_weight : float
        Weight of the fact-aware loss in the first of the two.
    batch : int
        Studies in a batch.
    learning_rate, weight_decay : float
        Peak, and decay of AdamW.
    keep : float
        Share of a report's sentences that is read in a step.
    augment : str
        A key of ``mrrag.training.augment.AUGMENTATIONS``.
    patience : int
        Evaluations, of twenty, without a better figure before training ends; 0 never ends it.
    """

    start: str = "bundled"
    revision: str | None = None
    image_tower: str = RESNET
    text_tower: str = BERT
    image_revision: str | None = None
    text_revision: str | None = None
    dimension: int | None = None
    image_size: int | None = None
    text_tokens: int | None = None
    vocabulary: int = 3000
    steps: int = 1200
    fact_steps: int = 0
    fact_weight: float = 1.0
    batch: int = 96
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    keep: float = 0.6
    augment: str = "move"
    patience: int = 6
    seed: int = 0


# Of the included encoder. Its text half shares a tokenizer with the included model.
BUNDLED_RECIPE = RetrieverOptions(
    start="small",
    vocabulary=1024,
    steps=1000,
    fact_steps=600,
    fact_weight=0.0,
    learning_rate=1e-3,
    keep=0.85,
    augment="shift",
    patience=0,
)

# Start → its own defaults, and the options that apply to it alone.
DEFAULTS = {
    "small": RetrieverOptions("small", dimension=128, image_size=128, text_tokens=192),
    "bundled": RetrieverOptions("bundled", text_tokens=192),
    "public": RetrieverOptions("public", dimension=512, image_size=224, text_tokens=256),
}
SPECIAL = {
    "small": ("dimension", "image_size", "text_tokens", "vocabulary"),
    "bundled": ("text_tokens", "vocabulary"),
    "public": (
        *("image_tower", "text_tower", "image_revision", "text_revision"),
        *("dimension", "image_size", "text_tokens"),
    ),
}
LOADED = ("revision",)  # a tower that is loaded whole has its sizes and tokenizer
RATES = {"small": 1e-3, "bundled": 1e-3}  # random weights need larger steps


def options_for(start: str, given: dict[str, object]) -> RetrieverOptions:
    """Return the options of a start: those that were given, and else its defaults.

    Raises
    ------
    SettingsError
        If an option was given that this start does not heed.
    """
    allowed = SPECIAL.get(start, LOADED)
    special = {name for names in (*SPECIAL.values(), LOADED) for name in names}
    refused = [name for name in given if name in special and name not in allowed]
    if refused:
        flags = ", ".join(map(_flag, refused))
        why = (
            "its sizes and its tokenizer are its own"
            if start not in SPECIAL
            else f"it takes {', '.join(map(_flag, allowed))}"
        )
        raise SettingsError(f"{flags} cannot be used with --start {start}: {why}. Leave it out.")
    defaults = DEFAULTS.get(start, RetrieverOptions(start))
    defaults = replace(defaults, learning_rate=RATES.get(start, defaults.learning_rate))
    known = {f.name for f in fields(RetrieverOptions)}
    return replace(defaults, **{k: v for k, v in given.items() if k in known})  # type: ignore[arg-type]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def build_tower(
    tokenizer: PreTrainedTokenizerFast,
    seed: int = 0,
    *,
    dimension: int = 128,
    image_size: int = 128,
    text_tokens: int = 192,
    name: str = "phantom-bitower",
) -> BiTower:
    """Return a randomly initialised small bi-tower, for grey images."""
    torch.manual_seed(seed)
    image = ResNetConfig(
        num_channels=1,
        embedding_size=24,
        hidden_sizes=[32, 64, 128, 192],
        depths=[1, 1, 1, 1],
        layer_type="basic",
    )
    return BiTower(
        image,
        _small_text(tokenizer, text_tokens),
        tokenizer,
        dimension=dimension,
        image_size=image_size,
        max_text_tokens=text_tokens,
        name=name,
    )


def _small_text(tokenizer: PreTrainedTokenizerFast, text_tokens: int) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=max(256, text_tokens),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )


def tokenizer_of_texts(data: DataSet, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer on the reports and questions of the training split."""
    rows = data.rows("train")
    texts = [data.records[n].document.report for n in rows]
    return train_tokenizer(
        [*texts, *(q.question for n in rows for q in data.questions[n])], vocabulary
    )


def start_tower(
    options: RetrieverOptions, data: DataSet, name: str, *, assets: Path
) -> tuple[BiTower | OpenClip, str]:
    """Return the tower that training starts from, and what is kept of which weights, in words.

    Parameters
    ----------
    data
        Its training texts make the tokenizer of a new text half.
    name
        What the trained tower will be called.
    assets
        The folder of the included encoder.

    Raises
    ------
    ModelError
        If the weights cannot be loaded, or have other architectures.
    """
    start = STARTS.get(options.start)
    if start is not None:
        tower, kept = start(options, data, assets)
    else:
        tower = load_encoder(options.start, revision=options.revision)
        kept = f"all weights and the tokenizer of {tower.name} ({options.start}) are kept"
    tower.name = name
    return tower, kept


def _start_small(
    options: RetrieverOptions, data: DataSet, _assets: Path
) -> tuple[BiTower | OpenClip, str]:
    tokenizer = tokenizer_of_texts(data, options.vocabulary)
    tower = build_tower(
        tokenizer,
        options.seed,
        dimension=options.dimension or 128,
        image_size=options.image_size or 128,
        text_tokens=options.text_tokens or 192,
    )
    return tower, f"random weights; a tokenizer of {len(tokenizer)} tokens from the training texts"


def _start_bundled(
    options: RetrieverOptions, data: DataSet, assets: Path
) -> tuple[BiTower | OpenClip, str]:
    bundled = load_bitower(assets / "encoder")
    tokenizer = tokenizer_of_texts(data, options.vocabulary)
    text_tokens = options.text_tokens or bundled.max_text_tokens
    torch.manual_seed(options.seed)
    tower = BiTower(
        bundled.image_config,
        _small_text(tokenizer, text_tokens),
        tokenizer,
        dimension=bundled.dimension,
        image_size=bundled.image_size,
        max_text_tokens=text_tokens,
        name=bundled.name,
    )
    tower.image_tower.load_state_dict(bundled.image_tower.state_dict())
    tower.image_projection.load_state_dict(bundled.image_projection.state_dict())
    return tower, (
        f"the image half of {bundled.name} is kept; the text half is new, with random weights "
        f"and a tokenizer of {len(tokenizer)} tokens from the training texts"
    )


def _start_public(
    options: RetrieverOptions, _data: DataSet, _assets: Path
) -> tuple[BiTower | OpenClip, str]:
    tower = paper_tower(
        options.image_tower,
        options.text_tower,
        resnet_revision=options.image_revision,
        bert_revision=options.text_revision,
        dimension=options.dimension or 512,
        image_size=options.image_size or 224,
        max_text_tokens=options.text_tokens or 256,
        seed=options.seed,
    )
    kept = f"the weights of {options.image_tower} and {options.text_tower} are kept"
    return tower, f"{kept}; the projections are random"


Start = Callable[[RetrieverOptions, DataSet, Path], tuple[BiTower | OpenClip, str]]
STARTS: dict[str, Start] = {
    "small": _start_small,
    "bundled": _start_bundled,
    "public": _start_public,
}


def save_tower(tower: BiTower | OpenClip, output: Path) -> None:
    """Save a trained tower in its own format, so that :func:`load_encoder` reads it."""
    if isinstance(tower, OpenClip):
        save_open_clip(tower, output)
    else:
        tower.save(output)
