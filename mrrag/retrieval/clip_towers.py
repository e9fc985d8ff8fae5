"""open_clip's image and text towers, built from its checkpoints without open_clip.

open_clip needs torchvision. timm's ViT is mapped onto transformers' ViT, a BERT onto
transformers' BERT, and CLIP's text transformer onto transformers' CLIP; CLIP's own ResNet,
which transformers lacks, is in :mod:`mrrag.retrieval.clip_resnet`. Every published name is
used, or the load is refused. This module does not know pictures, texts or what a vector is
used for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    ViTConfig,
    ViTModel,
)

from mrrag.errors import ModelError
from mrrag.retrieval.clip_resnet import HEAD_WIDTH, ModifiedResNet
from mrrag.retrieval.weights import State, check_names, check_settings, check_state, fill
from mrrag.schema import Items, Record, Whole, refusing_fields

# timm's plain ViTs (224 px and larger): layers of a size.
VIT_NAME = re.compile(r"vit_(tiny|small|base|large)_patch(\d+)_(\d+)")
VIT_LAYERS = {"tiny": 12, "small": 12, "base": 12, "large": 24}

# Published name → names in a checkpoint of transformers, which its loader knows in every
# release. Where there are several, the tensor is cut into as many along its first axis.
TIMM_VIT = {
    "visual.trunk.cls_token": ("embeddings.cls_token",),
    "visual.trunk.pos_embed": ("embeddings.position_embeddings",),
    "visual.trunk.patch_embed.proj.weight": ("embeddings.patch_embeddings.projection.weight",),
    "visual.trunk.patch_embed.proj.bias": ("embeddings.patch_embeddings.projection.bias",),
    "visual.trunk.norm.weight": ("layernorm.weight",),
    "visual.trunk.norm.bias": ("layernorm.bias",),
}
TIMM_VIT_BLOCK = {
    "norm1.": ("layernorm_before",),
    "attn.qkv.": (
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
    ),
    "attn.proj.": ("attention.output.dense",),
    "norm2.": ("layernorm_after",),
    "mlp.fc1.": ("intermediate.dense",),
    "mlp.fc2.": ("output.dense",),
}
CLIP_TEXT = {
    "token_embedding.weight": ("text_model.embeddings.token_embedding.weight",),
    "positional_embedding": ("text_model.embeddings.position_embedding.weight",),
    "ln_final.weight": ("text_model.final_layer_norm.weight",),
    "ln_final.bias": ("text_model.final_layer_norm.bias",),
    "text_projection": ("text_projection.weight",),
}
CLIP_TEXT_BLOCK = {
    "ln_1.": ("layer_norm1",),
    "attn.in_proj_": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out_proj.": ("self_attn.out_proj",),
    "ln_2.": ("layer_norm2",),
    "mlp.c_fc.": ("mlp.fc1",),
    "mlp.c_proj.": ("mlp.fc2",),
}


# Names


def names_of_blocks(
    whole: Mapping[str, tuple[str, ...]],
    block: Mapping[str, tuple[str, ...]],
    published: str,
    target: str,
    layers: int,
) -> dict[str, tuple[str, ...]]:
    """Return the table of all names: ``whole``, and ``block`` once per layer."""
    names = dict(whole)
    for n in range(layers):
        for key, parts in block.items():
            for end in ("weight", "bias"):
                names[f"{published}.{n}.{key}{end}"] = tuple(
                    f"{target}.{n}.{part}.{end}" for part in parts
                )
    return names


def _renamed(origin: str, state: State, names: Mapping[str, tuple[str, ...]]) -> State:
    check_names(origin, state, names)
    renamed: State = {}
    for key, targets in names.items():
        for target, tensor in zip(targets, state[key].chunk(len(targets)), strict=True):
            renamed[target] = tensor
    return renamed


# open_clip's image towers


class TimmViT(nn.Module):
    """A ViT read at its class token, and a projection: open_clip's TimmModel."""

    def __init__(self, vit: ViTModel, projection: nn.Linear) -> None:
        super().__init__()
        self.vit = vit
        self.projection = projection

    def forward(self, pixels_NCYX: Tensor) -> Tensor:
        """Encode pixels, float32 [N, 3, Y, X], as [N, D]."""
        states_NXE = self.vit(pixel_values=pixels_NCYX).last_hidden_state
        projected: Tensor = self.projection(states_NXE[:, 0])
        return projected


def open_clip_image_tower(origin: str, model: Mapping[str, Any], state: State) -> nn.Module:
    """Build the image tower of an open_clip checkpoint.

    Parameters
    ----------
    origin
        Where it comes from, for the errors.
    model
        ``model_cfg`` of its configuration.
    state
        All tensors under ``visual.``.

    Raises
    ------
    ModelError
        Where it is of a kind that is not read, or its tensors are not those of its
        configuration.
    """
    vision = model["vision_cfg"]
    read = _timm_vit if "timm_model_name" in vision else _modified_resnet
    return read(origin, vision, int(model["embed_dim"]), state)


def _timm_vit(origin: str, vision: Mapping[str, Any], dimension: int, state: State) -> nn.Module:
    check_settings(
        f"{origin} (vision_cfg)",
        {"timm_pool": "avg", **vision},  # open_clip's default
        {
            "timm_model_name": None,
            "timm_model_pretrained": None,
            "timm_pool": ("", "token"),
            "timm_proj": ("linear",),
            "timm_proj_bias": (False,),
            "timm_drop": None,  # of training alone, as the next
            "timm_drop_path": None,
            "image_size": None,
        },
    )
    match = VIT_NAME.fullmatch(str(vision["timm_model_name"]))
    if match is None:
        raise ModelError(
            f"{origin} has the image tower {repr(vision['timm_model_name'])[:60]}; of timm's, "
            "MR-RAG reads the plain ViTs (vit_base_patch16_224, for one)."
        )
    layers, patch = VIT_LAYERS[match[1]], int(match[2])
    head = "visual.head.proj.weight"
    names = names_of_blocks(
        TIMM_VIT, TIMM_VIT_BLOCK, "visual.trunk.blocks", "encoder.layer", layers
    )
    check_names(origin, state, {*names, head})
    trunk = {key: tensor for key, tensor in state.items() if key != head}
    hidden, inner = state[head].shape[1], state["visual.trunk.blocks.0.mlp.fc1.weight"].shape[0]
    config = ViTConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD_WIDTH,
        intermediate_size=inner,
        hidden_act="gelu",
        layer_norm_eps=1e-6,  # timm's, not transformers' 1e-12
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        image_size=int(vision.get("image_size", match[3])),
        patch_size=patch,
    )
    vit = fill(ViTModel, config, _renamed(origin, trunk, names), origin, add_pooling_layer=False)
    projection = nn.Linear(hidden, dimension, bias=False)
    _set(origin, projection, {"weight": state[head]}, "visual.head.proj.")
    return TimmViT(vit, projection)


def _modified_resnet(
    origin: str, vision: Mapping[str, Any], dimension: int, state: State
) -> nn.Module:
    check_settings(
        f"{origin} (vision_cfg)",
        vision,
        {
            "layers": None,
            "width": None,
            "image_size": None,
            "patch_size": None,  # null in the published files
            "head_width": (HEAD_WIDTH,),
        },
    )
    depths = vision.get("layers")
    if not isinstance(depths, list) or len(depths) != 4:
        raise ModelError(
            f"{origin} has an image tower of open_clip's own ViT; MR-RAG reads CLIP's ResNets "
            "and timm's ViTs."
        )
    with refusing_fields(origin, "Copy it again.", ModelError):
        Record({"layers": Items(Whole(1, 200))}).check(vision)
    tower = ModifiedResNet(
        depths, dimension, int(vision.get("image_size", 224)), int(vision.get("width", 64))
    )
    _set(origin, tower, {k.removeprefix("visual."): v for k, v in state.items()}, "visual.")
    return tower


def _set(origin: str, module: nn.Module, state: State, prefix: str) -> None:
    """Copy tensors into a module, under the same names but for ``prefix``."""
    check_state(
        origin,
        {prefix + key: tensor for key, tensor in state.items()},
        {prefix + key: tensor for key, tensor in module.state_dict().items()},
    )
    module.load_state_dict(state)
    module.eval()


# open_clip's text towers


class HubBert(nn.Module):
    """A BERT read at [CLS], and a projection: open_clip's HFTextEncoder."""

    def __init__(self, bert: BertModel, projection: nn.Module) -> None:
        super().__init__()
        self.bert = bert
        self.projection = projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode ids and mask, int64 [N, T], as [N, D]."""
        states_NTE = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]
        projected: Tensor = self.projection(states_NTE[:, 0])
        return projected


class ClipText(nn.Module):
    """CLIP's causal text transformer, read at the end of the text."""

    def __init__(self, clip: CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode ids and mask, int64 [N, T], as [N, D]."""
        embedded: Tensor = self.clip(input_ids=input_ids, attention_mask=attention_mask).text_embeds
        return embedded


def open_clip_text_tower(origin: str, model: Mapping[str, Any], state: State) -> nn.Module:
    """Build the text tower of an open_clip checkpoint.

    Parameters
    ----------
    origin, model
        As of :func:`open_clip_image_tower`.
    state
        All tensors that are not under ``visual.``, without ``logit_scale``.

    Raises
    ------
    ModelError
        As of :func:`open_clip_image_tower`.
    """
    read = _hub_bert if "hf_model_name" in model["text_cfg"] else _clip_text
    return read(origin, model, state)


def _hub_bert(origin: str, model: Mapping[str, Any], state: State) -> nn.Module:
    text, dimension = model["text_cfg"], int(model["embed_dim"])
    check_settings(
        f"{origin} (text_cfg)",
        {"hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler", **text},  # open_clip's defaults
        {
            "hf_model_name": None,
            "hf_tokenizer_name": None,
            "hf_model_pretrained": None,
            "hf_proj_type": ("mlp", "linear"),
            "hf_pooler_type": ("cls_last_hidden_state_pooler",),
            "context_length": None,
        },
    )
    # A buffer that BERT had once, 0, 1, 2, ...
    state = {k: v for k, v in state.items() if k != "text.transformer.embeddings.position_ids"}
    head = {k.removeprefix("text.proj."): v for k, v in state.items() if k.startswith("text.proj.")}
    body = {
        k.removeprefix("text.transformer."): v
        for k, v in state.items()
        if k.startswith("text.transformer.")
    }
    # Names that no tower could take are refused here; those of BERT itself where it is filled.
    known = {"text.proj." + k for k in head} | {"text.transformer." + k for k in body}
    sizes = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    needed = {
        *(f"text.transformer.embeddings.{size}.weight" for size in sizes),
        "text.transformer.encoder.layer.0.intermediate.dense.weight",
    }
    check_names(origin, state, known | needed)
    words, positions, kinds = (body[f"embeddings.{size}.weight"].shape for size in sizes)
    hidden = words[1]
    config = BertConfig(
        vocab_size=words[0],
        hidden_size=hidden,
        num_hidden_layers=_depth(body, "encoder.layer."),
        num_attention_heads=hidden // HEAD_WIDTH,
        intermediate_size=body["encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=positions[0],
        type_vocab_size=kinds[0],
    )
    bert = fill(BertModel, config, body, f"{origin} (text.transformer)", add_pooling_layer=False)
    middle = (hidden + dimension) // 2
    projection = (
        nn.Linear(hidden, dimension, bias=False)
        if text.get("hf_proj_type", "mlp") == "linear"
        else nn.Sequential(
            nn.Linear(hidden, middle, bias=False),
            nn.GELU(),
            nn.Linear(middle, dimension, bias=False),
        )
    )
    _set(origin, projection, head, "text.proj.")
    return HubBert(bert, projection)


def _clip_text(origin: str, model: Mapping[str, Any], state: State) -> nn.Module:
    text, dimension = model["text_cfg"], int(model["embed_dim"])
    check_settings(
        f"{origin} (text_cfg)",
        text,
        dict.fromkeys(("context_length", "vocab_size", "width", "heads", "layers")),
    )
    width, layers = int(text.get("width", 512)), int(text.get("layers", 12))
    words = int(text.get("vocab_size", 49408))
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=int(text.get("heads", 8)),
        max_position_embeddings=int(text.get("context_length", 77)),
        projection_dim=dimension,
        hidden_act="quick_gelu" if model.get("quick_gelu") else "gelu",
        # The last two words of CLIP's vocabulary begin and end a text.
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )
    names = names_of_blocks(
        CLIP_TEXT,
        CLIP_TEXT_BLOCK,
        "transformer.resblocks",
        "text_model.encoder.layers",
        layers,
    )
    renamed = _renamed(origin, state, names)
    # open_clip multiplies from the left, a linear layer from the right.
    renamed["text_projection.weight"] = renamed["text_projection.weight"].T.contiguous()
    return ClipText(fill(CLIPTextModelWithProjection, config, renamed, origin))


def _depth(state: Collection[str], prefix: str) -> int:
    return 1 + max(
        int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix)
    )
