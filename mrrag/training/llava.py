"""The small LLaVA, with random weights.

It has the architecture of LLaVA-Med 1.5: a CLIP tower, a two-layer projector and a Mistral
decoder. So the same code serves both. :mod:`mrrag.training.vision` trains the tower,
:mod:`mrrag.training.decoder` the rest.
"""

from __future__ import annotations

import torch
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedTokenizerFast,
)


def build_llava(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlavaForConditionalGeneration:
    """Return a randomly initialised small LLaVA.

    Its vision is weak by design: 64 × 64 px, a quarter of the retriever's pixels. This is the
    paper's situation, a general model beside a specialised retriever, in which retrieval has
    something to add.
    """
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
            projection_dim=128,
        ),
        text_config=MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=4096,
            sliding_window=None,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.get_vocab()["<image>"],
        image_seq_length=64,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)
