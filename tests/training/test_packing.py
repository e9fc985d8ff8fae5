"""Packing several questions behind one prefix changes nothing about any of them."""

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mrrag.data.records import Question
from mrrag.training.llava import build_llava
from mrrag.training.packing import IGNORE, Packed, Packer, packed_logits
from mrrag.training.tokenizer import train_tokenizer

REPORTS = ["No pneumothorax. The heart is normal in size.", "Small left pleural effusion."]
QUESTIONS = [
    Question(str(n), "case", question, answer, "open")
    for n, (question, answer) in enumerate(
        (
            ("Is there a pneumothorax?", "No pneumothorax."),
            ("Where is the nodule?", "Left upper zone."),
            ("Is there an effusion?", "Yes, small left pleural effusion."),
        )
    )
]
PATCHES = 64


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = [
        *REPORTS,
        *(t for q in QUESTIONS for t in (q.question, q.answer)),
        "[INST] 1. 2. [/INST]",
    ]
    return train_tokenizer(texts * 20, vocabulary=400)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    return build_llava(tokenizer).eval()


def packed(
    tokenizer: PreTrainedTokenizerFast,
    model: LlavaForConditionalGeneration,
    questions: list[Question],
    image: bool = True,
) -> Packed:
    return Packer.of(model, tokenizer, PATCHES if image else 0).pack(REPORTS, questions, 0)


def test_packed_questions_get_the_logits_of_separate_ones(
    tokenizer: PreTrainedTokenizerFast, model: LlavaForConditionalGeneration
) -> None:
    features = torch.randn(1, PATCHES, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together, _ = packed_logits(model, [packed(tokenizer, model, QUESTIONS)], features, PATCHES)
        apart = [
            packed_logits(model, [packed(tokenizer, model, [q])], features, PATCHES)[0]
            for q in QUESTIONS
        ]
    assert torch.allclose(together, torch.cat(apart), atol=1e-5)
    assert not torch.allclose(apart[0][0], apart[1][0], atol=1e-2)


def test_padding_of_a_batch_changes_nothing(
    tokenizer: PreTrainedTokenizerFast, model: LlavaForConditionalGeneration
) -> None:
    short, long = (
        packed(tokenizer, model, QUESTIONS[:1], False),
        packed(tokenizer, model, QUESTIONS, False),
    )
    with torch.inference_mode():
        both, _ = packed_logits(model, [short, long], None, 0)
        alone, _ = packed_logits(model, [short], None, 0)
    assert torch.allclose(both[: len(alone)], alone, atol=1e-5)


def test_labels_are_the_answers_and_their_end_alone(
    tokenizer: PreTrainedTokenizerFast, model: LlavaForConditionalGeneration
) -> None:
    row = packed(tokenizer, model, QUESTIONS)
    for n, question in enumerate(QUESTIONS, start=1):
        labels = row.labels[(row.block == n) & (row.labels != IGNORE)]
        assert labels[-1] == 2
        assert tokenizer.decode(labels[:-1]).strip() == question.answer
    assert np.all(row.labels[row.block == 0] == IGNORE)


def test_the_model_has_the_classes_of_llava_med(model: LlavaForConditionalGeneration) -> None:
    assert model.config.text_config.model_type == "mistral"
    assert model.config.vision_config.model_type == "clip_vision_model"
    assert model.config.vision_feature_layer == -2
