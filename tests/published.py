"""A tiny checkpoint in the layout in which LLaVA-Med 1.5 was published, with own values.

The same files, the same config fields, the same tensor names, a SentencePiece model; the
tower is a folder, where the published config names one on the hub.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
)

SENTENCES = (
    "Yes yes YES No no NO [INST] [/INST] 1. 2. 3. 4. 5. The heart. The lungs. There is.",
    "Reports of similar cases: 1. The heart is enlarged. 2. The lungs are clear.",
    "Is there a pleural effusion on the left? There is no pneumothorax. The heart is normal.",
)
# config.json of microsoft/llava-med-v1.5-mistral-7b, with a smaller shape.
CONFIG: dict[str, Any] = {
    "architectures": ["LlavaMistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "freeze_mm_mlp_adapter": False,
    "freeze_mm_vision_resampler": False,
    "hidden_act": "silu",
    "hidden_size": 64,
    "image_aspect_ratio": "pad",
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 32768,
    "mm_hidden_size": 24,
    "mm_patch_merge_type": "flat",
    "mm_projector_lr": None,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "model_type": "llava_mistral",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "tokenizer_model_max_length": 2048,
    "tokenizer_padding_side": "right",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.2",
    "tune_mm_mlp_adapter": False,
    "unfreeze_mm_vision_tower": True,
    "use_cache": True,
    "use_mm_proj": True,
    "vocab_size": 400,
}
FULL_SIZE: dict[str, Any] = CONFIG | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "mm_hidden_size": 1024,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}


def published_name(name: str) -> str:
    """The name that a parameter of LlavaForConditionalGeneration has as published."""
    name = re.sub(r"^model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model.", name)
    name = re.sub(r"^model\.multi_modal_projector\.linear_1\.", "model.mm_projector.0.", name)
    name = re.sub(r"^model\.multi_modal_projector\.linear_2\.", "model.mm_projector.2.", name)
    return name.replace("model.language_model.", "model.")


def converted_name(name: str) -> str:
    """The name in the layout that transformers 4 wrote (the ``-hf`` copies)."""
    name = re.sub(r"^model\.vision_tower\.", "vision_tower.vision_model.", name)
    name = re.sub(r"^model\.multi_modal_projector\.", "multi_modal_projector.", name)
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    return re.sub(r"^lm_head\.", "language_model.lm_head.", name)


def by_hand() -> LlavaForConditionalGeneration:
    """The model whose weights the checkpoints hold, its shape spelt out in full."""
    config = LlavaConfig(
        text_config=MistralConfig(
            vocab_size=400,
            # Multiples of 64, the block in which bitsandbytes' int4 packs for some CPUs.
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32768,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            sliding_window=None,
            initializer_range=0.3,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=7,
            projection_dim=16,
            initializer_range=0.3,
        ),
        image_token_index=0,
        vision_feature_layer=-2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlavaForConditionalGeneration(config)
    return model.eval()


def write_tokenizer(folder: Path) -> None:
    """tokenizer.model and what lies beside it; no tokenizer.json, as published."""
    stored = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_writer=stored,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    (folder / "tokenizer.model").write_bytes(stored.getvalue())
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    specials = {"0": "<unk>", "1": "<s>", "2": "</s>"}
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {
                number: {"content": token, **plain, "special": True}
                for number, token in specials.items()
            },
            "additional_special_tokens": [],
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "legacy": True,
            "model_max_length": 2048,
            "pad_token": "<unk>",
            "padding_side": "right",
            "sp_model_kwargs": {},
            "spaces_between_special_tokens": False,
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
            "use_default_system_prompt": False,
        },
    )
    write_json(
        folder / "special_tokens_map.json",
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"},
    )


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_tower(folder: Path, seed: int = 2) -> Path:
    """A CLIP vision tower of its own, as a folder of transformers'."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPVisionModel(by_hand().config.vision_config).save_pretrained(folder)
    return folder


def write_weights(folder: Path, weights: Mapping[str, torch.Tensor], shards: int = 1) -> None:
    """As one file, or as shards with their index."""
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(weights)
    files = {
        n: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, n in enumerate(names)
    }
    for file in sorted(set(files.values())):
        shard = {name: weights[name] for name in names if files[name] == file}
        save_file(shard, folder / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": files}
    write_json(folder / "model.safetensors.index.json", index)


def write_published(
    folder: Path,
    tower: Path,
    *,
    shards: int = 4,
    rename: Callable[[str], str] = published_name,
    changes: Iterable[tuple[str, Any]] = (),
) -> Path:
    """The whole checkpoint; ``changes`` are made to its config.json."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIG | {"mm_vision_tower": str(tower)} | dict(changes))
    write_json(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2},
    )
    write_tokenizer(folder)
    write_weights(folder, {rename(n): t for n, t in by_hand().state_dict().items()}, shards)
    return folder
