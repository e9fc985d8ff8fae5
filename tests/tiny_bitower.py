"""A random bi-tower and a few dozen synthetic cases, for the tests of retrieval."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForPreTraining,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
)

from mrrag.data.records import Record
from mrrag.retrieval.bi_tower import BiTower
from mrrag.retrieval.encoders import load_encoder
from mrrag.types import Document, Image

WORDS = ["no", "finding", "pleural", "effusion", "left", "is", "there", "heart", "size", "normal"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]"
    )


def make_tower(channels: int = 1, dimension: int = 12, seed: int = 0) -> BiTower:
    torch.manual_seed(seed)
    image = ResNetConfig(
        num_channels=channels, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]
    )
    text = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    tower = BiTower(
        image,
        text,
        make_tokenizer(),
        dimension=dimension,
        image_size=32,
        max_text_tokens=16,
        name=f"tiny tower {seed}",
    )
    return tower.eval()


def make_images(count: int, seed: int = 0) -> list[Image]:
    rng = np.random.default_rng(seed)
    return [Image(rng.integers(0, 256, (40, 30), dtype=np.uint8)) for _ in range(count)]


def make_loaded_tower(directory: Path, seed: int = 0) -> BiTower:
    """A tower with a fingerprint: one that was read from disk."""
    make_tower(seed=seed).save(directory)
    return load_encoder(directory)


def make_cases(directory: Path, count: int) -> list[Record]:
    """Cases of two studies a patient; the last two are alike to the last byte."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    cases = []
    for n in range(count):
        path = directory / f"{n}.png"
        if n < count - 1:
            pixels = rng.integers(0, 256, (24, 20), dtype=np.uint8)
            report = " ".join(rng.choice(WORDS, 6))
        PillowImage.fromarray(pixels).save(path)
        source = "made up" if n % 3 else "drawn"
        document = Document(f"d{n}", report, f"p{n // 2}", f"s{n}", source, "CC0")
        cases.append(Record(document, path))
    return cases


CASED = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "No",
    "no",
    "Pleural",
    "effusion",
    "##s",
    ".",
    "[MASK]",
]


def write_public_weights(folder: Path, words: list[str]) -> tuple[str, str]:
    """A ResNet and a BERT as the hub has the paper's: safetensors, and a pickle of tensors."""
    torch.manual_seed(5)
    resnet, bert = folder / "resnet-50", folder / "Bio_ClinicalBERT"
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    ResNetForImageClassification(config).save_pretrained(resnet)
    text = BertForPreTraining(
        BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
        )
    )
    text.config.save_pretrained(bert)
    torch.save(text.state_dict(), bert / "pytorch_model.bin")
    (bert / "vocab.txt").write_text("\n".join(words) + "\n")
    return str(resnet), str(bert)


def write_data_set(directory: Path, count: int) -> Path:
    """A plain folder of those cases; every fifth patient is of the validation split."""
    rows = ["image,report,id,patient,split"]
    for n, case in enumerate(make_cases(directory, count)):
        split = "validation" if n // 2 % 5 == 4 else "train"
        document = case.document
        rows.append(
            f"{case.image_path.name},{document.report},{document.id},{document.patient},{split}"
        )
    (directory / "reports.csv").write_text("\n".join(rows) + "\n")
    return directory
