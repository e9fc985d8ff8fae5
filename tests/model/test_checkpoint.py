"""Every layout gives the logits of the same weights set by hand, or says why not."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.errors as hub
import numpy as np
import pytest
import torch
from published import (
    FULL_SIZE,
    by_hand,
    converted_name,
    published_name,
    write_json,
    write_published,
    write_tokenizer,
    write_tower,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from mrrag.errors import ModelError, SettingsError
from mrrag.model import checkpoint, weights
from mrrag.model.answering import answer_branches
from mrrag.model.backbone import (
    Backbone,
    encode_images,
    load_backbone,
    pixel_values,
)
from mrrag.model.checkpoint import KEY_MAPPINGS, find_checkpoint, read_config
from mrrag.model.prefill import Branch
from mrrag.model.prompt import MISTRAL_INSTRUCT, Prompt, prompt_text
from mrrag.model.weights import (
    bytes_needed,
    check_room,
    default_dtype,
    fingerprint,
    room,
    tensor_sizes,
    weight_files,
)
from mrrag.types import LLAVA_MED, Image, Steering

REPORTS = ("The heart is enlarged.", "The lungs are clear.", "There is no pneumothorax.")
QUESTION = "Is there a pleural effusion?"
PICTURE = Image(np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8))


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tower(tmp_path_factory.mktemp("towers") / "clip")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, tower: Path) -> Path:
    return write_published(tmp_path_factory.mktemp("published") / "llava-med", tower)


@pytest.fixture(scope="module")
def backbone(published: Path) -> Backbone:
    return load_backbone(published)


@pytest.fixture
def copied(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


def prompt_of(backbone: Backbone) -> Prompt:
    return backbone.prompt(QUESTION, REPORTS)


@torch.inference_mode()
def logits(model: Any, backbone: Backbone) -> Tensor:
    """What a model says to the whole prompt, with the image put in as transformers does."""
    ids = torch.tensor([prompt_of(backbone).ids])
    out = model(input_ids=ids, pixel_values=pixel_values(backbone, [PICTURE])).logits
    assert isinstance(out, Tensor)
    return out


def answers(backbone: Backbone, strength: float = 1.0) -> Any:
    prompt = prompt_of(backbone)
    features = encode_images(backbone, [PICTURE])
    branches = [Branch(prompt, features), Branch(prompt, features, (1.0, 0.5, 0.0))]
    *_, step = answer_branches(backbone, branches, Steering(strength, (0, 1)), max_new_tokens=3)
    return step


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change the first shard."""
    file = sorted(folder.glob("*.safetensors"))[0]
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | changes)


# The published layout


def test_the_published_layout_gives_the_logits_of_weights_set_by_hand(backbone: Backbone) -> None:
    assert torch.equal(logits(backbone.model, backbone), logits(by_hand(), backbone))
    assert answers(backbone).tokens == (3, 3)


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_any_number_of_files_is_the_same_model(tmp_path: Path, tower: Path, shards: int) -> None:
    backbone = load_backbone(write_published(tmp_path / "model", tower, shards=shards))
    assert torch.equal(logits(backbone.model, backbone), logits(by_hand(), backbone))


@pytest.mark.parametrize("image_token", [0, 399])
def test_a_converted_copy_is_the_same_model(tmp_path: Path, tower: Path, image_token: int) -> None:
    folder = write_published(tmp_path / "model", tower, rename=converted_name)
    config = by_hand().config
    config.image_token_id = image_token
    config.save_pretrained(folder)
    backbone = load_backbone(folder)
    assert backbone.image_token_id == image_token
    hand = by_hand()
    hand.config.image_token_id = image_token
    assert torch.equal(logits(backbone.model, backbone), logits(hand, backbone))


def test_what_transformers_writes_today_is_the_same_model(tmp_path: Path, published: Path) -> None:
    by_hand().save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    backbone = load_backbone(tmp_path)
    assert torch.equal(logits(backbone.model, backbone), logits(by_hand(), backbone))


def test_stray_files_change_nothing(published: Path, copied: Path) -> None:
    (copied / "training_args.bin").write_bytes(b"\x80\x04not a pickle that anyone should open")
    (copied / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (copied / ".DS_Store").write_bytes(b"")
    save_file({"adapter.weight": torch.ones(3)}, copied / "adapter.safetensors")
    (copied / "checkpoint-100").mkdir()
    stray, clean = load_backbone(copied), load_backbone(published)
    assert torch.equal(logits(stray.model, stray), logits(clean.model, clean))
    assert stray.fingerprint == clean.fingerprint


def test_the_7b_has_the_686_published_names() -> None:
    with torch.device("meta"):
        folder_config = checkpoint.published_config("7b", FULL_SIZE)
        model = LlavaForConditionalGeneration(folder_config)
    names = set(model.state_dict())
    stored = {published_name(name) for name in names}
    assert len(stored) == 686
    assert {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.31.self_attn.k_proj.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.mm_projector.0.bias",
        "model.mm_projector.2.weight",
        "model.norm.weight",
        "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
        "model.vision_tower.vision_tower.vision_model.encoder.layers.23.mlp.fc2.bias",
        "model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight",
    } <= stored
    assert sum(p.numel() for p in model.parameters()) == 7_566_219_264
    mapped = set()
    for name in stored:
        for pattern, replacement in KEY_MAPPINGS["llava_mistral"].items():
            name = re.sub(pattern, replacement, name)
        mapped.add(name)
    assert mapped == names


def test_the_published_shape_is_read_and_not_the_class_default() -> None:
    config = checkpoint.published_config("7b", FULL_SIZE)
    text, vision = config.text_config, config.vision_config
    assert text.rope_parameters["rope_theta"] == 1e6
    assert (text.rms_norm_eps, text.sliding_window, text.max_position_embeddings) == (
        1e-5,
        None,
        32768,
    )
    assert (text.num_key_value_heads, text.head_dim, text.intermediate_size) == (8, 128, 14336)
    assert (vision.image_size, vision.patch_size, vision.num_hidden_layers) == (336, 14, 24)
    assert (vision.hidden_act, vision.layer_norm_eps) == ("quick_gelu", 1e-5)
    assert config.vision_feature_layer == -2


HUATUO_7B = FULL_SIZE | {
    "model_type": "llava_qwen2",
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "mm_vision_tower": "./vit/clip_vit_large_patch14_336",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def test_huatuogpt_vision_is_the_same_layout_over_qwen2() -> None:
    config = checkpoint.published_config("7b", HUATUO_7B)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    names = set(model.state_dict())
    mapped = set()
    for name in (published_name(name) for name in names):
        for pattern, replacement in KEY_MAPPINGS["llava_qwen2"].items():
            name = re.sub(pattern, replacement, name)
        mapped.add(name)
    assert mapped == names
    assert "model.language_model.layers.27.self_attn.q_proj.bias" in names
    # Qwen2-7B's 7,615,616,512, CLIP's tower and the projector.
    parts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (("text", model.model.language_model), ("head", model.lm_head))
    }
    assert parts["text"] + parts["head"] == 7_615_616_512
    assert config.text_config.sliding_window is None
    assert config.image_token_id == 151643
    assert (config.vision_config.image_size, config.vision_config.num_hidden_layers) == (336, 24)


# Tokens and the template


def test_the_prompt_is_the_published_template(backbone: Backbone) -> None:
    prompt = backbone.prompt(QUESTION, ())
    image = prompt.span("image")
    joint = backbone.tokenizer.encode
    # Microsoft's own code cuts at <image>, encodes the pieces and keeps one BOS.
    before = joint("[INST] ", add_special_tokens=False)
    after = joint(f"\n{QUESTION} [/INST]", add_special_tokens=False)
    assert list(prompt.ids) == [1, *before, *[0] * 16, *after]
    assert image.stop - image.start == 16
    assert prompt.ids.count(1) == 1


def test_reports_are_in_the_prompt_word_for_word(backbone: Backbone) -> None:
    prompt = prompt_of(backbone)
    after = backbone.tokenizer.decode(list(prompt.ids[prompt.span("image").stop :]))
    reports = "".join(f"{k}. {text}\n" for k, text in enumerate(REPORTS, 1))
    assert after.strip() == f"Reports of similar cases:\n{reports}{QUESTION} [/INST]"
    for span, text in zip(prompt.reports, REPORTS, strict=True):
        assert backbone.tokenizer.decode(list(prompt.ids[span.start : span.stop])) == text


def test_a_prompt_is_shown_without_the_token_that_is_lent_to_the_image(backbone: Backbone) -> None:
    shown = prompt_text(backbone.tokenizer.decode, prompt_of(backbone))
    assert "<unk>" not in shown
    assert shown.count("<image>") == backbone.image_tokens
    assert re.match(r"<s> ?\[INST\] ?<image>", shown)
    assert shown.endswith(f"3. {REPORTS[2]}\n{QUESTION} [/INST]")


def test_no_text_can_ask_for_the_placeholder(backbone: Backbone) -> None:
    prompt = backbone.prompt(
        "Is <unk> there <image> a</s> nodule <s>?", ["An <un<unk>k> effusion."]
    )
    assert prompt.ids.count(0) == 16
    assert prompt.ids.count(1) == 1
    assert prompt.ids.count(2) == 0


def test_answers_begin_with_yes_or_no_and_end_at_eos(backbone: Backbone) -> None:
    assert backbone.eos_ids == (2,)
    pieces = backbone.tokenizer.convert_ids_to_tokens(list(backbone.yes_ids))
    assert {"▁Yes", "▁yes"} <= set(pieces)
    assert not set(backbone.yes_ids) & set(backbone.no_ids)


def test_an_image_is_padded_with_the_mean_colour(backbone: Backbone) -> None:
    wide = Image(np.full((10, 40), 255, np.uint8))
    pixels = pixel_values(backbone, [wide])[0]
    assert pixels.shape == (3, 28, 28)
    assert pixels[:, 0].abs().max() < 0.02  # the mean colour, normalised
    assert pixels[:, 14].min() > 1.5


# Vision towers


def test_the_tower_is_the_checkpoint_s_unless_another_is_asked_for(
    published: Path, tower: Path, tmp_path: Path
) -> None:
    own, stock = load_backbone(published), load_backbone(published, vision_tower="stock")
    other = load_backbone(published, vision_tower=str(write_tower(tmp_path / "other", seed=5)))
    hand = by_hand()
    pixels = pixel_values(own, [PICTURE])
    ours = encode_images(own, [PICTURE])
    assert torch.equal(ours[0], hand.get_image_features(pixels).pooler_output[0])
    weights = load_file(tower / "model.safetensors")
    hand.model.vision_tower.load_state_dict(
        {name.removeprefix("vision_model."): tensor for name, tensor in weights.items()}
    )
    theirs = hand.get_image_features(pixels).pooler_output[0]
    assert torch.equal(encode_images(stock, [PICTURE])[0], theirs)
    assert not torch.allclose(ours[0], theirs)
    assert not torch.allclose(encode_images(other, [PICTURE])[0], theirs)


def test_a_checkpoint_without_a_tower_takes_the_stock_one(copied: Path, published: Path) -> None:
    for file in copied.glob("*.safetensors"):
        kept = {n: t for n, t in load_file(file).items() if "vision_tower" not in n}
        save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="--vision-tower stock"):
        load_backbone(copied)
    bare, whole = (load_backbone(folder, vision_tower="stock") for folder in (copied, published))
    assert torch.equal(encode_images(bare, [PICTURE]), encode_images(whole, [PICTURE]))


def test_a_tower_of_another_shape_is_refused(published: Path, tiny_llava_folder: Path) -> None:
    with pytest.raises(ModelError, match="vision tower"):
        load_backbone(published, vision_tower=str(tiny_llava_folder))


# Other families


SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize("family", [LlamaConfig, Qwen2Config])
def test_another_text_model_is_a_backbone_too(
    tmp_path: Path, family: Callable[..., PretrainedConfig]
) -> None:
    text = family(**SHAPE)
    config = LlavaConfig(
        text_config=text, vision_config=by_hand().config.vision_config, image_token_index=399
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    backbone = load_backbone(tmp_path)
    assert (logits(backbone.model, backbone) - logits(model, backbone)).abs().max() < 1e-5
    plain, steered = answers(backbone, 0.0), answers(backbone, 2.0)
    assert plain.p_yes[0] == plain.p_yes[1]
    assert steered.p_yes[0] == plain.p_yes[0]
    assert steered.p_yes[1] != plain.p_yes[1]


# As they are published, or saved by transformers: a processor's, a text model's, one with turns
# that are tokens of their own.
VICUNA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}"
    "{% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"
)
CHATML = (
    "<s>system\nYou help.</s>\n{% for m in messages %}{{ '<s>' + m['role'] + '\n' }}"
    "{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}"
    "{% endfor %}{{ '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("file", "template", "wanted"),
    [
        ("chat_template.json", VICUNA, "USER: <image>\n{text} ASSISTANT:"),
        ("chat_template.jinja", VICUNA, "USER: <image>\n{text} ASSISTANT:"),
        ("chat_template.jinja", MISTRAL, "[INST] <image>\n{text} [/INST]"),
        (
            "chat_template.jinja",
            CHATML,
            "system\nYou help.</s>\n<s>user\n<image>{text}</s>\n<s>assistant\n",
        ),
    ],
    ids=["a processor's", "the same, newer", "a text model's", "with tokens for turns"],
)
def test_the_prompt_is_the_checkpoint_s_own_chat_template(
    tiny_llava_folder: Path, tmp_path: Path, file: str, template: str, wanted: str
) -> None:
    folder = shutil.copytree(tiny_llava_folder, tmp_path / "copy")
    stored = json.dumps({"chat_template": template}) if file.endswith("json") else template
    (folder / file).write_text(stored, encoding="utf-8")
    backbone = load_backbone(folder)
    assert backbone.fingerprint != fingerprint(tiny_llava_folder)
    prompt = backbone.prompt("USER: " + QUESTION, ())
    image = prompt.span("image")
    decode = backbone.tokenizer.decode
    before, after = decode(prompt.ids[: image.start]), decode(prompt.ids[image.stop :])
    typed = QUESTION if template is VICUNA else "USER: " + QUESTION
    said = wanted.format(text=typed)
    assert f"{before}<image>{after}" == f"<s>{said}"
    assert prompt.ids.count(1) == 1 + wanted.count("<s>")
    assert decode(prompt.ids[prompt.span("question").start : prompt.span("question").stop]) == typed


@pytest.mark.parametrize(
    ("file", "template", "said"),
    [
        ("chat_template.jinja", "{{ 'Hello.' }}", "does not put a user's text after <image>"),
        ("chat_template.jinja", "{% nonsense %}", "does not put a user's text after <image>"),
        ("chat_template.json", "[", "chat_template.json cannot be read"),
    ],
    ids=["without the turn", "not a template", "not JSON"],
)
def test_a_chat_template_that_cannot_be_followed_is_refused(
    tiny_llava_folder: Path, tmp_path: Path, file: str, template: str, said: str
) -> None:
    folder = shutil.copytree(tiny_llava_folder, tmp_path / "copy")
    (folder / file).write_text(template, encoding="utf-8")
    with pytest.raises(ModelError, match=said):
        load_backbone(folder)


def test_the_published_layout_has_the_published_template(copied: Path) -> None:
    (copied / "chat_template.jinja").write_text(VICUNA, encoding="utf-8")
    assert load_backbone(copied).template == MISTRAL_INSTRUCT


@pytest.fixture
def siglip(tmp_path: Path) -> Path:
    config = LlavaConfig(
        text_config=Qwen2Config(**SHAPE),
        vision_config=SiglipVisionConfig(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=7,
            vision_use_head=False,
        ),
        image_token_index=399,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    write_json(
        tmp_path / "preprocessor_config.json",
        {
            "image_processor_type": "SiglipImageProcessor",
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "size": {"height": 28, "width": 28},
            "resample": 3,
        },
    )
    return tmp_path


def test_another_vision_tower_is_read_patch_by_patch(siglip: Path) -> None:
    backbone = load_backbone(siglip)
    assert backbone.image_tokens == 16
    assert backbone.grid == (4, 4)
    assert encode_images(backbone, [PICTURE]).shape == (1, 16, 32)
    # 0 and 255 become -1 and 1, and the sides of a tall picture are the mean colour.
    pixels = pixel_values(backbone, [Image(np.full((28, 14), 255, np.uint8))])[0]
    assert pixels[:, :, 14].min() > 0.99
    assert pixels[:, :, 0].abs().max() < 0.01
    loaded = LlavaForConditionalGeneration.from_pretrained(siglip).eval()
    stock = logits(loaded, backbone)[:, -1].softmax(-1)[0]
    said = answers(backbone, 0.0)
    assert said.p_yes[0] == pytest.approx(float(stock[list(backbone.yes_ids)].sum()), abs=1e-6)
    assert answers(backbone, 2.0).p_yes[1] != said.p_yes[1]


def test_a_picture_is_padded_whatever_the_checkpoint_s_processor_would_crop(copied: Path) -> None:
    stored = {"do_center_crop": True, "crop_size": {"height": 28, "width": 28}, "do_pad": False}
    write_json(copied / "preprocessor_config.json", stored | {"size": {"shortest_edge": 28}})
    pixels = pixel_values(load_backbone(copied), [Image(np.full((10, 40), 255, np.uint8))])[0]
    assert pixels[:, 0].abs().max() < 0.02  # the mean colour
    assert pixels[:, 14, (0, -1)].min() > 1.5  # both ends of the picture


def test_a_vision_tower_that_is_not_read_is_refused_in_words(siglip: Path) -> None:
    configure(siglip, vision_feature_select_strategy="default")
    with pytest.raises(ModelError, match="siglip_vision_model is a part of the picture"):
        load_backbone(siglip)
    stored = json.loads((siglip / "config.json").read_text())
    configure(siglip, vision_config=stored["vision_config"] | {"model_type": "pixtral"})
    with pytest.raises(ModelError, match="vision tower of the kind 'pixtral'"):
        load_backbone(siglip)


# Placement and quantization


def test_a_model_spread_over_devices_answers_alike(
    published: Path, backbone: Backbone, tmp_path: Path
) -> None:
    from accelerate import dispatch_model

    spread = load_backbone(published)
    dispatch_model(
        spread.model,
        device_map={
            "model.vision_tower": "disk",
            "model.multi_modal_projector": "cpu",
            "model.language_model.embed_tokens": "cpu",
            "model.language_model.layers.0": "cpu",
            "model.language_model.layers.1": "disk",
            "model.language_model.layers.2": "cpu",
            "model.language_model.norm": "disk",
            "model.language_model.rotary_emb": "cpu",
            "lm_head": "disk",
        },
        main_device="cpu",
        offload_dir=str(tmp_path),
        force_hooks=True,
    )
    assert any(p.is_meta for p in spread.model.parameters())
    assert spread.device == torch.device("cpu")
    here, there = answers(backbone), answers(spread)
    assert here.texts == there.texts
    assert here.p_yes == pytest.approx(there.p_yes, abs=1e-6)
    assert np.abs(here.traces[1].mass_LHS - there.traces[1].mass_LHS).max() < 1e-6


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantized_model_keeps_its_eye_and_our_attention(published: Path, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    whole, small = load_backbone(published), load_backbone(published, quantize=kind)
    assert torch.equal(encode_images(whole, [PICTURE]), encode_images(small, [PICTURE]))
    assert small.model.get_memory_footprint() < 0.75 * whole.model.get_memory_footprint()
    a, b = (logits(bb.model, bb).flatten() for bb in (whole, small))
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > {"int8": 0.98, "int4": 0.6}[kind]
    plain, steered = answers(small, 0.0), answers(small, 2.0)
    assert plain.p_yes[0] == plain.p_yes[1]
    assert steered.p_yes[1] != plain.p_yes[1]
    assert steered.traces[1].layers == (0, 1)


def test_quantizing_without_its_package_says_what_to_install(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install bitsandbytes"):
        load_backbone(published, quantize="int8")


def test_an_unknown_quantization_is_refused(published: Path) -> None:
    with pytest.raises(SettingsError, match="int8 or int4, not 'int2'"):
        load_backbone(published, quantize="int2")


def test_a_model_larger_than_memory_is_refused_before_it_is_loaded(published: Path) -> None:
    sizes = tensor_sizes(published)
    whole = bytes_needed(sizes, torch.bfloat16, None)
    assert whole == 2 * sum(sizes.values())
    eighth = bytes_needed(sizes, torch.bfloat16, "int8")
    assert whole > eighth > bytes_needed(sizes, torch.bfloat16, "int4")
    check_room("llava-med", sizes, torch.bfloat16, None, whole)
    with pytest.raises(ModelError, match=r"--quantize int8 .* or --quantize int4 .*bundled"):
        check_room("llava-med", sizes, torch.bfloat16, None, whole - 1)


def test_room_is_counted_where_the_weights_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8 * 10**9, 10 * 10**9))
    cpu = room("cpu")
    assert room("cuda") == pytest.approx(7.2e9)
    assert room("auto", "int8") == pytest.approx(14.4e9)
    assert room("auto") == pytest.approx(14.4e9 + cpu, rel=0.2)


def test_a_large_model_keeps_half_precision_on_a_cpu_that_multiplies_it(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "half"
    shutil.copytree(published, half)
    for file in weight_files(half):
        save_file({n: t.to(torch.bfloat16) for n, t in load_file(file).items()}, file)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert default_dtype(half, "cpu") is torch.float32
    monkeypatch.setattr(weights, "LARGE", 1)
    assert default_dtype(half, "cpu") is torch.bfloat16
    assert load_backbone(half).model.dtype is torch.bfloat16
    assert default_dtype(published, "cpu") is torch.float32
    assert default_dtype(published, "cuda") is torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True}, raising=False)
    assert default_dtype(half, "cpu") is torch.float32
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert default_dtype(half, "cpu") is torch.float32


def test_the_7b_fits_a_16_gb_card_in_int8_and_an_8_gb_card_in_int4() -> None:
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(checkpoint.published_config("7b", FULL_SIZE))
    sizes = {published_name(name): p.numel() for name, p in model.state_dict().items()}
    assert bytes_needed(sizes, torch.bfloat16, None) == 15_132_438_528
    assert bytes_needed(sizes, torch.bfloat16, "int8") < 9e9
    assert bytes_needed(sizes, torch.bfloat16, "int4") < 6e9


# Refusing


def test_a_renamed_tensor_is_named_on_both_sides(copied: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    for file in copied.glob("*.safetensors"):
        stored = load_file(file)
        if name in stored:
            stored["model.layers.1.mlp.upper.weight"] = stored.pop(name)
            save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_backbone(copied)
    said = str(caught.value)
    assert "1 missing parameters: model.language_model.layers.1.mlp.up_proj.weight" in said
    assert "1 unexpected parameters: model.language_model.layers.1.mlp.upper.weight" in said


def test_a_wrong_config_is_refused_with_both_shapes(copied: Path) -> None:
    configure(copied, intermediate_size=64)
    with pytest.raises(ModelError, match=r"mlp\.\w+_proj\.weight \(.*128.* stored, .*64"):
        load_backbone(copied)


def test_a_config_with_too_few_layers_is_refused(copied: Path) -> None:
    configure(copied, num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"9 unexpected parameters: .*layers\.2\."):
        load_backbone(copied)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mm_projector_type", "linear"),
        ("mm_patch_merge_type", "spatial_unpad"),
        ("image_aspect_ratio", "anyres"),
        ("mm_use_im_start_end", True),
    ],
)
def test_a_variant_that_is_not_read_is_refused_by_its_field(
    copied: Path, field: str, value: object
) -> None:
    configure(copied, **{field: value})
    with pytest.raises(ModelError, match=f"{field} = {value!r}"):
        load_backbone(copied)


def test_a_config_that_leaves_out_the_shape_is_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    del config["rope_theta"]
    write_json(copied / "config.json", config)
    with pytest.raises(ModelError, match="lacks rope_theta"):
        read_config(copied)


def test_a_shard_cut_short_is_named(copied: Path) -> None:
    shard = sorted(copied.glob("*.safetensors"))[2]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ModelError, match=rf"{shard.name} is cut short"):
        load_backbone(copied)


def test_an_absent_shard_is_named(copied: Path) -> None:
    shard = sorted(copied.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"lacks {shard.name}"):
        load_backbone(copied)


@pytest.mark.parametrize("file", ["tokenizer.model", "config.json"])
def test_an_incomplete_folder_is_refused(copied: Path, file: str) -> None:
    (copied / file).unlink()
    with pytest.raises(ModelError, match=file):
        load_backbone(copied)


def test_pickled_weights_are_never_opened(tmp_path: Path, copied: Path) -> None:
    for file in copied.glob("*.safetensors*"):
        file.unlink()
    (copied / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match="no other format is read"):
        load_backbone(copied)


# Finding


@pytest.mark.parametrize("name", ["nowhere", "./no/where", "/no/where/at/all", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_hub_name_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="There is no folder"):
        find_checkpoint(name)


def answer_of_hub(error: type[Exception], status: int = 404) -> Exception:
    """An error as the hub's client raises it."""
    import httpx

    if not issubclass(error, hub.HfHubHTTPError):
        return error("what the client says")
    response = httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co"))
    return error("what the client says", response=response)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (hub.GatedRepoError, "accepted its terms"),
        (hub.RepositoryNotFoundError, "no repository"),
        (hub.RevisionNotFoundError, "no revision 'v9'"),
        (hub.LocalEntryNotFoundError, "cannot be reached"),
        (ConnectionError, "could not be downloaded"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], said: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise answer_of_hub(error)

    monkeypatch.setattr("mrrag.hub.snapshot_download", refuse)
    with pytest.raises(ModelError, match=said) as caught:
        find_checkpoint(LLAVA_MED, "v9")
    assert str(caught.value).endswith("--model bundled.")


def test_a_full_disk_is_told_before_and_during_the_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Listed:
        filename, file_size, will_download = "model.safetensors", 15 * 10**15, True

    def download(*_: object, dry_run: bool = False, **__: object) -> Any:
        if dry_run:
            return [Listed]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mrrag.hub.snapshot_download", download)
    with pytest.raises(ModelError, match=r"disk is full.*15000000\.0 GB are needed.*HF_HOME"):
        find_checkpoint(LLAVA_MED)
    Listed.file_size = 10
    heard: list[str] = []
    with pytest.raises(ModelError, match="disk is full"):
        find_checkpoint(LLAVA_MED, announce=heard.append)
    assert heard == [f"Downloading {LLAVA_MED}: 0.0 GB, once."]
