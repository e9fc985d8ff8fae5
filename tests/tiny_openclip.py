"""Small checkpoints in open_clip's published layouts, with random values, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

State = dict[str, Tensor]

WORDS = ["no", "finding", "pleural", "effusion", "left", "is", "there", "heart", "size", "normal"]
DIMENSION = 24
BERT_LAYERS, BERT_WIDTH, BERT_INNER = 2, 128, 96
VIT_LAYERS, VIT_WIDTH = 12, 192  # vit_tiny_patch16_224
CLIP_LAYERS, CLIP_WIDTH, CLIP_HEADS, CLIP_CONTEXT = 2, 48, 3, 8
RESNET_LAYERS, RESNET_WIDTH, RESNET_SIDE = [1, 2, 1, 1], 8, 64

BIOMEDCLIP_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": DIMENSION,
        "vision_cfg": {
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": {
            "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 16,
        },
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    },
}
RESNET_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": DIMENSION,
        "vision_cfg": {
            "image_size": RESNET_SIDE,
            "layers": RESNET_LAYERS,
            "width": RESNET_WIDTH,
            "patch_size": None,
        },
        "text_cfg": {
            "context_length": CLIP_CONTEXT,
            "vocab_size": len(WORDS) + 3,
            "width": CLIP_WIDTH,
            "heads": CLIP_HEADS,
            "layers": CLIP_LAYERS,
        },
    },
    "preprocess_cfg": BIOMEDCLIP_CONFIG["preprocess_cfg"],
}


def _filled(shapes: dict[str, tuple[int, ...]], seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            values = 0.5 + values.abs()
        elif name.endswith("num_batches_tracked"):
            values = torch.tensor(7)
        elif len(shape) == 1 and name.endswith("weight"):
            values = 1 + 0.2 * values  # of a normalisation
        elif len(shape) > 1:
            values = values / (values[0].numel() ** 0.5)
        else:
            values = 0.3 * values
        state[name] = values
    return state


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def biomedclip_state(seed: int = 0) -> State:
    """In the names of microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224."""
    e = VIT_WIDTH
    shapes: dict[str, tuple[int, ...]] = {"logit_scale": ()}
    shapes |= {"visual.trunk.cls_token": (1, 1, e), "visual.trunk.pos_embed": (1, 197, e)}
    shapes |= {"visual.trunk.patch_embed.proj.weight": (e, 3, 16, 16)}
    shapes |= {"visual.trunk.patch_embed.proj.bias": (e,)}
    for n in range(VIT_LAYERS):
        block = f"visual.trunk.blocks.{n}"
        shapes |= _norm(f"{block}.norm1", e) | _linear(f"{block}.attn.qkv", 3 * e, e)
        shapes |= _linear(f"{block}.attn.proj", e, e) | _norm(f"{block}.norm2", e)
        shapes |= _linear(f"{block}.mlp.fc1", 4 * e, e) | _linear(f"{block}.mlp.fc2", e, 4 * e)
    shapes |= _norm("visual.trunk.norm", e) | {"visual.head.proj.weight": (DIMENSION, e)}
    e = BERT_WIDTH
    bert = "text.transformer"
    shapes |= {f"{bert}.embeddings.word_embeddings.weight": (len(WORDS) + 4, e)}
    shapes |= {f"{bert}.embeddings.position_embeddings.weight": (20, e)}
    shapes |= {f"{bert}.embeddings.token_type_embeddings.weight": (2, e)}
    shapes |= _norm(f"{bert}.embeddings.LayerNorm", e)
    for n in range(BERT_LAYERS):
        layer = f"{bert}.encoder.layer.{n}"
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{layer}.attention.self.{part}", e, e)
        shapes |= _linear(f"{layer}.attention.output.dense", e, e)
        shapes |= _norm(f"{layer}.attention.output.LayerNorm", e)
        shapes |= _linear(f"{layer}.intermediate.dense", BERT_INNER, e)
        shapes |= _linear(f"{layer}.output.dense", e, BERT_INNER)
        shapes |= _norm(f"{layer}.output.LayerNorm", e)
    middle = (e + DIMENSION) // 2
    shapes |= {"text.proj.0.weight": (middle, e), "text.proj.2.weight": (DIMENSION, middle)}
    state = _filled(shapes, seed)
    state[f"{bert}.embeddings.position_ids"] = torch.arange(20)[None]
    return state


def resnet_state(seed: int = 0) -> State:
    """In the names that open_clip gives its RN50."""
    e = CLIP_WIDTH
    shapes: dict[str, tuple[int, ...]] = {"positional_embedding": (CLIP_CONTEXT, e)}
    shapes |= {"text_projection": (e, DIMENSION), "logit_scale": ()}
    w = RESNET_WIDTH

    def batch_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        ends = ("weight", "bias", "running_mean", "running_var")
        return {f"{name}.{end}": (width,) for end in ends} | {f"{name}.num_batches_tracked": ()}

    for n, (rows, columns) in enumerate(((w // 2, 3), (w // 2, w // 2), (w, w // 2)), start=1):
        shapes |= {f"visual.conv{n}.weight": (rows, columns, 3, 3)}
        shapes |= batch_norm(f"visual.bn{n}", rows)
    channels = w
    for stage, depth in enumerate(RESNET_LAYERS):
        planes = w * 2**stage
        for n in range(depth):
            block = f"visual.layer{stage + 1}.{n}"
            shapes |= {f"{block}.conv1.weight": (planes, channels, 1, 1)}
            shapes |= {f"{block}.conv2.weight": (planes, planes, 3, 3)}
            shapes |= {f"{block}.conv3.weight": (4 * planes, planes, 1, 1)}
            shapes |= batch_norm(f"{block}.bn1", planes) | batch_norm(f"{block}.bn2", planes)
            shapes |= batch_norm(f"{block}.bn3", 4 * planes)
            if n == 0:
                shapes |= {f"{block}.downsample.0.weight": (4 * planes, channels, 1, 1)}
                shapes |= batch_norm(f"{block}.downsample.1", 4 * planes)
            channels = 4 * planes
    pool = "visual.attnpool"
    shapes |= {f"{pool}.positional_embedding": ((RESNET_SIDE // 32) ** 2 + 1, channels)}
    for part in "kqv":
        shapes |= _linear(f"{pool}.{part}_proj", channels, channels)
    shapes |= _linear(f"{pool}.c_proj", DIMENSION, channels)
    for n in range(CLIP_LAYERS):
        block = f"transformer.resblocks.{n}"
        shapes |= _norm(f"{block}.ln_1", e) | _norm(f"{block}.ln_2", e)
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * e, e),
            f"{block}.attn.in_proj_bias": (3 * e,),
        }
        shapes |= _linear(f"{block}.attn.out_proj", e, e)
        shapes |= _linear(f"{block}.mlp.c_fc", 4 * e, e) | _linear(f"{block}.mlp.c_proj", e, 4 * e)
    shapes |= {"token_embedding.weight": (len(WORDS) + 3, e)} | _norm("ln_final", e)
    return _filled(shapes, seed)


def _tokenizer(begin: str, end: str, vocabulary: list[str], unknown: str) -> Tokenizer:
    ids = {word: n for n, word in enumerate(vocabulary)}
    core = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([word for word in vocabulary if word[0] in "[<"])
    core.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, ids[begin]), (end, ids[end])]
    )
    return core


def write_biomedclip(folder: Path, state: State | None = None) -> Path:
    """A folder as the hub has it: a configuration, a pickle of tensors, a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(BIOMEDCLIP_CONFIG))
    torch.save(state or biomedclip_state(), folder / "open_clip_pytorch_model.bin")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    core = _tokenizer("[CLS]", "[SEP]", vocabulary, "[UNK]")
    core.save(str(folder / "tokenizer.json"))
    return folder


def write_resnet_base(folder: Path, *, quick_gelu: bool = False) -> Path:
    """The configuration and tokenizer of an RN50, as thaottn/OpenCLIP-resnet50-CC12M."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(json.dumps(RESNET_CONFIG))
    if quick_gelu:
        config["model_cfg"]["quick_gelu"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    vocabulary = ["unknown", *WORDS, "<|startoftext|>", "<|endoftext|>"]
    core = _tokenizer("<|startoftext|>", "<|endoftext|>", vocabulary, "unknown")
    core.save(str(folder / "tokenizer.json"))
    return folder


def write_training_checkpoint(path: Path, state: State) -> Path:
    """As open_clip's own training writes it, on several GPUs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4)}}
    checkpoint = {
        "epoch": 360,
        "name": "2024_05_01-model_RN50-lr_0.0001-b_512-j_4-p_amp",
        "state_dict": {f"module.{key}": tensor for key, tensor in state.items()},
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "scaler": {"scale": 65536.0, "growth_interval": 2000},
    }
    torch.save(checkpoint, path)
    return path
