"""Published towers: the vectors of a forward pass written by hand, or a refusal."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_openclip as tiny
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import save_file
from tiny_bitower import make_images
from torch import Tensor
from torch.nn import functional as F
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mrrag.errors import ModelError
from mrrag.retrieval.clip_resnet import ModifiedResNet
from mrrag.retrieval.encoders import (
    describe_encoder,
    load_bitower,
    load_described_encoder,
    load_encoder,
)
from mrrag.retrieval.open_clip import OpenClip, clip_pixels_of
from mrrag.retrieval.weights import read_weights
from mrrag.types import Image

TEXTS = ["no finding", "heart size is normal", "left pleural effusion is there is there is there"]

# Forward passes by hand, from the tensors under their published names


def linear(state: tiny.State, name: str, x: Tensor) -> Tensor:
    bias = state.get(f"{name}.bias")
    y = x @ state[f"{name}.weight"].T
    return y if bias is None else y + bias


def layer_norm(state: tiny.State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    n, t, e = q.shape
    q, k, v = (x.reshape(n, t, heads, e // heads).permute(0, 2, 1, 3) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(e // heads)
    mixed = (scores if bias is None else scores + bias).softmax(-1) @ v
    return mixed.permute(0, 2, 1, 3).reshape(n, t, e)


def timm_vit(state: tiny.State, pixels: Tensor) -> Tensor:
    trunk = "visual.trunk"
    kernel = state[f"{trunk}.patch_embed.proj.weight"]
    patches = F.conv2d(pixels, kernel, state[f"{trunk}.patch_embed.proj.bias"], stride=16)
    x = patches.flatten(2).transpose(1, 2)
    x = torch.cat([state[f"{trunk}.cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + state[f"{trunk}.pos_embed"]
    for n in range(tiny.VIT_LAYERS):
        block = f"{trunk}.blocks.{n}"
        qkv = linear(state, f"{block}.attn.qkv", layer_norm(state, f"{block}.norm1", x, 1e-6))
        q, k, v = qkv.reshape(*x.shape[:2], 3, -1).unbind(2)
        x = x + linear(state, f"{block}.attn.proj", attend(q, k, v, tiny.VIT_WIDTH // 64))
        inner = linear(state, f"{block}.mlp.fc1", layer_norm(state, f"{block}.norm2", x, 1e-6))
        x = x + linear(state, f"{block}.mlp.fc2", gelu(inner))
    x = layer_norm(state, f"{trunk}.norm", x, 1e-6)[:, 0]
    return F.normalize(linear(state, "visual.head.proj", x), dim=-1)


def hub_bert(state: tiny.State, ids: Tensor, mask: Tensor) -> Tensor:
    parts = "text.transformer.embeddings"
    x = state[f"{parts}.word_embeddings.weight"][ids]
    x = x + state[f"{parts}.position_embeddings.weight"][: ids.shape[1]]
    x = x + state[f"{parts}.token_type_embeddings.weight"][0]
    x = layer_norm(state, f"{parts}.LayerNorm", x, 1e-12)
    bias = torch.where(mask[:, None, None, :] == 1, 0.0, -torch.inf)
    for n in range(tiny.BERT_LAYERS):
        layer = f"text.transformer.encoder.layer.{n}"
        q, k, v = (
            linear(state, f"{layer}.attention.self.{part}", x) for part in ("query", "key", "value")
        )
        mixed = attend(q, k, v, tiny.BERT_WIDTH // 64, bias)
        x = x + linear(state, f"{layer}.attention.output.dense", mixed)
        x = layer_norm(state, f"{layer}.attention.output.LayerNorm", x, 1e-12)
        inner = gelu(linear(state, f"{layer}.intermediate.dense", x))
        x = x + linear(state, f"{layer}.output.dense", inner)
        x = layer_norm(state, f"{layer}.output.LayerNorm", x, 1e-12)
    projected = linear(state, "text.proj.2", gelu(linear(state, "text.proj.0", x[:, 0])))
    return F.normalize(projected, dim=-1)


def clip_resnet(state: tiny.State, pixels: Tensor) -> Tensor:
    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = state[f"visual.{name}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"visual.{name}.{end}"][:, None, None]
            for end in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def halve(x: Tensor) -> Tensor:
        n, c, rows, columns = x.shape
        return x.reshape(n, c, rows // 2, 2, columns // 2, 2).mean((3, 5))

    x = norm("bn1", conv("conv1", pixels, stride=2)).clamp(min=0)
    x = norm("bn2", conv("conv2", x)).clamp(min=0)
    x = halve(norm("bn3", conv("conv3", x)).clamp(min=0))
    for stage, depth in enumerate(tiny.RESNET_LAYERS, start=1):
        for n in range(depth):
            block = f"layer{stage}.{n}"
            strided = stage > 1 and n == 0
            y = norm(f"{block}.bn1", conv(f"{block}.conv1", x)).clamp(min=0)
            y = norm(f"{block}.bn2", conv(f"{block}.conv2", y)).clamp(min=0)
            y = norm(f"{block}.bn3", conv(f"{block}.conv3", halve(y) if strided else y))
            if n == 0:
                x = conv(f"{block}.downsample.0", halve(x) if strided else x)
                x = norm(f"{block}.downsample.1", x)
            x = (x + y).clamp(min=0)
    x = x.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x])
    pool = "visual.attnpool"
    x = x + state[f"{pool}.positional_embedding"][:, None]
    # As in CLIP's own code, by torch's multi-head attention.
    pooled, _ = F.multi_head_attention_forward(
        query=x[:1],
        key=x,
        value=x,
        embed_dim_to_check=x.shape[-1],
        num_heads=tiny.RESNET_WIDTH * 32 // 64,
        q_proj_weight=state[f"{pool}.q_proj.weight"],
        k_proj_weight=state[f"{pool}.k_proj.weight"],
        v_proj_weight=state[f"{pool}.v_proj.weight"],
        in_proj_weight=None,
        in_proj_bias=torch.cat([state[f"{pool}.{part}_proj.bias"] for part in "qkv"]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=state[f"{pool}.c_proj.weight"],
        out_proj_bias=state[f"{pool}.c_proj.bias"],
        use_separate_proj_weight=True,
        training=False,
        need_weights=False,
    )
    return F.normalize(pooled[0], dim=-1)


def clip_text(state: tiny.State, ids: Tensor, *, quick_gelu: bool) -> Tensor:
    t = ids.shape[1]
    x = state["token_embedding.weight"][ids] + state["positional_embedding"][:t]
    causal = torch.full((t, t), -torch.inf).triu(1)
    for n in range(tiny.CLIP_LAYERS):
        block = f"transformer.resblocks.{n}"
        y = layer_norm(state, f"{block}.ln_1", x, 1e-5)
        qkv = y @ state[f"{block}.attn.in_proj_weight"].T + state[f"{block}.attn.in_proj_bias"]
        mixed = attend(*qkv.split(tiny.CLIP_WIDTH, dim=-1), tiny.CLIP_HEADS, causal)
        x = x + linear(state, f"{block}.attn.out_proj", mixed)
        y = linear(state, f"{block}.mlp.c_fc", layer_norm(state, f"{block}.ln_2", x, 1e-5))
        y = y * torch.sigmoid(1.702 * y) if quick_gelu else gelu(y)
        x = x + linear(state, f"{block}.mlp.c_proj", y)
    x = layer_norm(state, "ln_final", x, 1e-5)
    # open_clip pads with 0, so that the largest id is the end of the text.
    return F.normalize(x[torch.arange(len(x)), ids.argmax(1)] @ state["text_projection"], dim=-1)


def padded(rows: list[list[int]], length: int) -> Tensor:
    return torch.tensor([row[:length] + [0] * (length - len(row)) for row in rows])


# Vectors


def colour_images(count: int, rows: int, columns: int) -> list[Image]:
    rng = np.random.default_rng(4)
    return [
        Image(rng.integers(0, 256, (rows + 7 * n, columns, 3), dtype=np.uint8))
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def biomedclip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_biomedclip(tmp_path_factory.mktemp("biomedclip"))


def test_biomedclip_gives_the_vectors_of_timm_and_bert(biomedclip: Path) -> None:
    state, encoder = tiny.biomedclip_state(), load_encoder(biomedclip)
    assert (encoder.dimension, encoder.image_size, encoder.max_text_tokens) == (24, 224, 16)
    images = [*colour_images(2, 230, 300), *make_images(1)]
    wanted = timm_vit(state, torch.from_numpy(clip_pixels_of(images, 224)))
    got = encoder.images(images, batch=2)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted.numpy(), atol=2e-6)
    word = {w: n + 4 for n, w in enumerate(tiny.WORDS)}
    rows = [[2, *(word[w] for w in text.split()), 3] for text in TEXTS]
    ids = padded(rows, 16)
    wanted = hub_bert(state, ids, (ids != 0).long())
    np.testing.assert_allclose(encoder.texts(TEXTS, batch=2), wanted.numpy(), atol=2e-6)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_trained_resnet_gives_the_vectors_of_clip(tmp_path: Path, quick_gelu: bool) -> None:
    state = tiny.resnet_state()
    base = tiny.write_resnet_base(tmp_path / "base", quick_gelu=quick_gelu)
    path = tiny.write_training_checkpoint(tmp_path / "checkpoints" / "epoch_360.pt", state)
    encoder = load_encoder(path, base=base)
    assert encoder.name == "epoch_360.pt"
    images = [*colour_images(2, 64, 90), *make_images(1)]
    wanted = clip_resnet(state, torch.from_numpy(clip_pixels_of(images, tiny.RESNET_SIDE)))
    np.testing.assert_allclose(encoder.images(images, batch=2), wanted.numpy(), atol=2e-6)
    word = {w: n + 1 for n, w in enumerate(tiny.WORDS)}
    begin, end = len(word) + 1, len(word) + 2
    # The last one is too long, and still has an end.
    rows = [[begin, *(word[w] for w in text.split())][: tiny.CLIP_CONTEXT - 1] for text in TEXTS]
    ids = padded([[*row, end] for row in rows], tiny.CLIP_CONTEXT)
    wanted = clip_text(state, ids, quick_gelu=quick_gelu)
    np.testing.assert_allclose(encoder.texts(TEXTS, batch=2), wanted.numpy(), atol=2e-6)


def test_resnet_50_has_as_many_parameters_as_the_published_one() -> None:
    with torch.device("meta"):
        tower = ModifiedResNet((3, 4, 6, 3), 1024, 224)
    # 38.32 M in open_clip's own table of models.
    assert round(sum(p.numel() for p in tower.parameters()) / 1e6, 2) == 38.32


def test_vectors_are_unit_and_training_forgets_the_file(biomedclip: Path) -> None:
    encoder = load_encoder(biomedclip)
    for vectors in (encoder.images(make_images(2)), encoder.texts(TEXTS)):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(encoder.texts(TEXTS), encoder.texts(TEXTS))
    with pytest.raises(ModelError, match="empty"):
        encoder.texts([" "])
    assert encoder.fingerprint
    encoder.train()
    assert encoder.fingerprint == ""
    assert encoder.origin == {}


# Pixels


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (40, 40), (300, 258, 3)])
def test_clip_pixels_are_those_of_transformers_where_the_middle_is_whole(
    shape: tuple[int, ...],
) -> None:
    picture = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    ours = clip_pixels_of([Image(picture)], 32)[0]
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    rgb = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    theirs = processor(rgb, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_clip_pixels_round_the_middle_as_torchvision() -> None:
    # 35 px less 32 px: 1.5 is rounded to 2, and not down to 1.
    ramp = np.repeat(np.arange(0, 35, dtype=np.uint8)[None], 32, axis=0)
    pixels = clip_pixels_of([Image(ramp)], 32, mean=(0, 0, 0), std=(1, 1, 1))
    np.testing.assert_allclose(pixels[0, 0, 0] * 255, np.arange(2, 34), atol=1e-4)


def test_a_sliver_does_not_grow_without_bound() -> None:
    sliver = Image(np.zeros((60000, 1), dtype=np.uint8))
    assert clip_pixels_of([sliver], 224).shape == (1, 3, 224, 224)


# Refusals


@pytest.mark.parametrize(
    "name",
    [
        "visual.trunk.pos_embed",
        "visual.trunk.blocks.3.attn.qkv.bias",
        "visual.head.proj.weight",
        "text.proj.2.weight",
    ],
)
def test_a_renamed_tensor_is_named(tmp_path: Path, name: str) -> None:
    state = tiny.biomedclip_state()
    state[name + "_"] = state.pop(name)
    tiny.write_biomedclip(tmp_path, state)
    with pytest.raises(ModelError, match=rf"1 tensors missing \({name}\); 1 .* \({name}_\)"):
        load_encoder(tmp_path)


def test_a_bert_tensor_is_missed_by_its_name(tmp_path: Path) -> None:
    state = tiny.biomedclip_state()
    words = state.pop("text.transformer.embeddings.word_embeddings.weight")
    tiny.write_biomedclip(tmp_path, state)
    with pytest.raises(ModelError, match=r"1 tensors missing \(text.transformer.*word_emb"):
        load_encoder(tmp_path)
    state["text.transformer.embeddings.word_embeddings.weight"] = words
    name = "encoder.layer.1.output.dense.weight"
    state["text.transformer.spare"] = state.pop(f"text.transformer.{name}")
    tiny.write_biomedclip(tmp_path, state)
    with pytest.raises(ModelError, match=rf"text.transformer.*missing \({name}\).*\(spare\)"):
        load_encoder(tmp_path)


def test_tensors_of_another_model_are_refused(tmp_path: Path) -> None:
    base = tiny.write_resnet_base(tmp_path / "base")
    state = tiny.resnet_state()
    short = {key: v for key, v in state.items() if "resblocks.1" not in key}
    path = tmp_path / "w.pt"
    torch.save(short, path)
    with pytest.raises(ModelError, match=r"12 tensors missing \(transformer.resblocks.1"):
        load_encoder(path, base=base)
    torch.save({**state, "visual.conv1.weight": torch.zeros(5, 3, 3, 3)}, path)
    with pytest.raises(ModelError, match=r"visual.conv1.weight has shape \[5, 3, 3, 3\]"):
        load_encoder(path, base=base)
    torch.save({**state, "token_embedding.weight": torch.zeros(5, tiny.CLIP_WIDTH)}, path)
    with pytest.raises(ModelError, match="does not fit its configuration"):
        load_encoder(path, base=base)
    torch.save({**state, "ln_final.bias": torch.full((tiny.CLIP_WIDTH,), torch.nan)}, path)
    with pytest.raises(ModelError, match="not finite"):
        load_encoder(path, base=base)


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ("vision_cfg", {"timm_pool": "avg"}, "timm_pool = 'avg'"),
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "plain ViTs"),
        ("vision_cfg", {"timm_model_name": "vit_large_patch16_224"}, "missing"),
        ("text_cfg", {"hf_pooler_type": "mean_pooler"}, "cls_last_hidden_state_pooler"),
        ("text_cfg", {"hf_proj_type": "linear"}, r"text.proj.weight"),
        ("text_cfg", {"surprise": 1}, "surprise = 1"),
        ("preprocess_cfg", {"resize_mode": "squash"}, "resize_mode = 'squash'"),
        ("model_cfg", {"embed_dim": 25}, "visual.head.proj.weight has shape"),
        ("model_cfg", {"embed_dim": "wide"}, r"model_cfg\.embed_dim is a text"),
        ("model_cfg", {"text_cfg": []}, r"model_cfg\.text_cfg is a list"),
        ("vision_cfg", {"image_size": 10**9}, r"model_cfg\.vision_cfg\.image_size is 1000000000"),
        ("text_cfg", {"context_length": -1}, r"model_cfg\.text_cfg\.context_length is -1"),
        ("preprocess_cfg", {"mean": [0, 0, math.nan]}, r"preprocess_cfg\.mean\[2\] is nan"),
        ("preprocess_cfg", {"std": [0, 1, 1]}, r"preprocess_cfg\.std\[0\] is 0"),
    ],
)
def test_a_configuration_that_is_not_read_is_refused(
    tmp_path: Path, biomedclip: Path, where: str, change: dict[str, Any], message: str
) -> None:
    shutil.copytree(biomedclip, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    place = config if where in config else config["model_cfg"]
    place[where].update(change)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        load_encoder(tmp_path)


def test_open_clips_own_vit_is_refused_in_words(tmp_path: Path) -> None:
    base = tiny.write_resnet_base(tmp_path / "base")
    config = json.loads((base / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"].update(layers=12, patch_size=16)
    (base / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(tiny.resnet_state(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match="open_clip's own ViT"):
        load_encoder(tmp_path / "w.pt", base=base)


class Trap:
    """A pickle that would write a file where it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_that_runs_code_is_refused_before_it_runs(tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "w.pt"
    torch.save({"state_dict": tiny.resnet_state(), "args": Trap(mark)}, path)
    with pytest.raises(ModelError, match="a pickle may run any program"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Trap(mark), protocol=2))
    with pytest.raises(ModelError, match="a pickle may run any program"):
        read_weights(path)
    assert not mark.exists()


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(tiny.resnet_state(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ModelError, match="is damaged"):
        read_weights(path)
    torch.save({"state_dict": {"a": 1}}, path)
    with pytest.raises(ModelError, match="no tensors by name"):
        read_weights(path)
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="no tensors by name"):
        read_weights(path)


def test_safetensors_are_read_first(tmp_path: Path) -> None:
    tiny.write_biomedclip(tmp_path)
    state = tiny.biomedclip_state(seed=1)
    save_file(state, tmp_path / "open_clip_model.safetensors")
    got = load_encoder(tmp_path).images(make_images(1))
    wanted = timm_vit(state, torch.from_numpy(clip_pixels_of(make_images(1), 224)))
    np.testing.assert_allclose(got, wanted.numpy(), atol=2e-6)


def test_an_absent_file_or_source_is_named(tmp_path: Path) -> None:
    tiny.write_biomedclip(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"lacks tokenizer\.json"):
        load_encoder(tmp_path)
    with pytest.raises(ModelError, match=r"lacks open_clip_config\.json or config\.json"):
        load_encoder(tmp_path.parent)
    with pytest.raises(ModelError, match="not found"):
        load_encoder(tmp_path / "nothing")
    with pytest.raises(ModelError, match="one of ours is needed"):
        load_bitower(tiny.write_biomedclip(tmp_path / "b"))


# The hub


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (GatedRepoError, "accepted its terms"),
        (RepositoryNotFoundError, "has no repository owner/name"),
        (RevisionNotFoundError, "no revision 'main9'"),
        (HfHubHTTPError, "could not be downloaded"),
        (OSError, "could not be downloaded"),
    ],
)
def test_what_the_hub_refuses_is_said(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], message: str
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        error = kind.__new__(kind)
        Exception.__init__(error, "refused")
        raise error

    monkeypatch.setattr("mrrag.hub.hf_hub_download", refuse)
    with pytest.raises(ModelError, match=message):
        load_encoder("owner/name", revision="main9")


def test_what_was_kept_is_found_without_a_network_and_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--biomedclip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    tiny.write_biomedclip(repository / "snapshots" / commit)
    encoder = load_encoder("owner/biomedclip")
    assert encoder.name == "owner/biomedclip"
    assert encoder.origin == {"source": "owner/biomedclip", "revision": commit}
    entry = describe_encoder(encoder, tmp_path)
    assert load_described_encoder(entry, tmp_path).fingerprint == encoder.fingerprint
    with pytest.raises(ModelError, match="cannot be reached"):
        load_encoder("owner/another")


# What a manifest keeps


def test_a_manifest_leads_back_to_the_same_tower_wherever_both_are_moved(tmp_path: Path) -> None:
    tiny.write_resnet_base(tmp_path / "here" / "base")
    path = tiny.write_training_checkpoint(tmp_path / "here" / "w.pt", tiny.resnet_state())
    encoder = load_encoder(path, base=tmp_path / "here" / "base")
    kept = tmp_path / "here" / "knowledge_base"
    kept.mkdir()
    entry = json.loads(json.dumps(describe_encoder(encoder, kept)))
    assert entry["source"] == "../w.pt"
    assert entry["base"] == "../base"
    (tmp_path / "here").rename(tmp_path / "there")
    again = load_described_encoder(entry, tmp_path / "there" / "knowledge_base")
    assert isinstance(again, OpenClip)
    np.testing.assert_array_equal(again.texts(TEXTS), encoder.texts(TEXTS))
    tiny.write_training_checkpoint(tmp_path / "there" / "w.pt", tiny.resnet_state(seed=1))
    with pytest.raises(ModelError, match="was there before"):
        load_described_encoder(entry, tmp_path / "there" / "knowledge_base")
    with pytest.raises(ModelError, match="Nothing says where"):
        load_described_encoder({"name": "old", "fingerprint": "0"}, kept)
