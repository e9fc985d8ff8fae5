"""Tiny random checkpoints of every family, each in the layout in which it is published.

Trained on nothing: what matters is that every wrong mask, position or patch shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from published import published_name, write_weights
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from mrrag.model.backbone import Backbone, image_inputs
from mrrag.model.prompt import Prompt
from mrrag.types import Image

SENTENCES = (
    "Yes yes YES No no NO 1. 2. 3. 4. 5. system user assistant User: Assistant: You help.",
    "Reports of similar cases:\n1. The heart is enlarged.\n2. The lungs are clear.\n",
    "Is there a pleural effusion on the left? There is no pneumothorax. The heart is normal.",
)
SEED = 3
# Qwen2's, whose content is one string.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Tiny:
    """One family: how its folder is written, and how transformers itself reads it.

    Attributes
    ----------
    write
        Writes a checkpoint into an empty folder.
    stock
        Returns transformers' own model of such a folder, without anything of ours.
    inputs
        Returns what transformers' ``generate()`` takes beside the ids, for one picture.
    prompt
        The text around the image and the question, with ``{image}`` and ``{text}``.
    """

    write: Callable[[Path], None]
    stock: Callable[[Path], Any]
    inputs: Callable[[Backbone, Image, Prompt], Mapping[str, Any]]
    prompt: str


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def seeded(build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return build().eval()


def write_tokenizer(folder: Path, controls: list[str], eos: str, **more: Any) -> int:
    """A byte-level BPE with these control tokens and no BOS, as Qwen's; return its length."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in controls])
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, **more)
    whole.save_pretrained(folder)
    return len(whole)


# HuatuoGPT-Vision: LLaVA over Qwen2, in transformers' layout and in its own


def huatuo(vocabulary: int, image_token: int, eos: int) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        text_config=Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            use_sliding_window=False,
            bos_token_id=vocabulary - 1,
            eos_token_id=eos,
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
        image_token_index=image_token,
        vision_feature_layer=-2,
    )
    model = LlavaForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if name.endswith("_proj.bias"):  # zero in a fresh model, and not in a trained one
            torch.nn.init.normal_(weight, std=0.3)
    model.generation_config.eos_token_id = eos
    return model


HUATUO_CONTROLS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]


def write_huatuo_hf(folder: Path) -> None:
    controls = ["<image>", *HUATUO_CONTROLS]
    n = write_tokenizer(folder, controls, "<|im_end|>", chat_template=CHATML)
    seeded(lambda: huatuo(n, n - 4, n - 2)).save_pretrained(folder)


def write_huatuo(folder: Path) -> None:
    """The fields of its config.json, and the parameter names of LLaVA's own code."""
    n = write_tokenizer(folder, HUATUO_CONTROLS, "<|endoftext|>", chat_template=CHATML)
    model = seeded(lambda: huatuo(n, n - 1, n - 1))
    tower = folder / "vit"
    tower.mkdir()
    write_json(tower / "config.json", model.config.vision_config.to_dict())
    text = model.config.text_config
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlavaQwen2ForCausalLM"],
            "bos_token_id": n - 1,
            "eos_token_id": n - 1,
            "hidden_act": "silu",
            "hidden_size": text.hidden_size,
            "image_aspect_ratio": "pad",
            "intermediate_size": text.intermediate_size,
            "max_position_embeddings": text.max_position_embeddings,
            "max_window_layers": 28,
            "mm_hidden_size": 24,
            "mm_patch_merge_type": "flat",
            "mm_projector_type": "mlp2x_gelu",
            "mm_use_im_patch_token": False,
            "mm_use_im_start_end": False,
            "mm_vision_select_feature": "patch",
            "mm_vision_select_layer": -2,
            "mm_vision_tower": str(tower),
            "model_type": "llava_qwen2",
            "num_attention_heads": text.num_attention_heads,
            "num_hidden_layers": text.num_hidden_layers,
            "num_key_value_heads": text.num_key_value_heads,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": 1e6,
            "sliding_window": 131072,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "vocab_size": n,
        },
    )
    write_weights(folder, {published_name(k): w for k, w in model.state_dict().items()}, 2)


def stock_huatuo(folder: Path) -> LlavaForConditionalGeneration:
    n = json.loads((folder / "config.json").read_text())["vocab_size"]
    return seeded(lambda: huatuo(n, n - 1, n - 1))


def stock_llava(folder: Path) -> Any:
    return LlavaForConditionalGeneration.from_pretrained(folder).eval()


# SmolVLM2


SMOLVLM_CONTROLS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<row_1_col_1>",
    "<end_of_utterance>",
]
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def write_smolvlm(folder: Path) -> None:
    n = write_tokenizer(
        folder,
        SMOLVLM_CONTROLS,
        "<end_of_utterance>",
        bos_token="<|im_start|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=["<fake_token_around_image>", "<image>", "<end_of_utterance>"],
    )
    write_json(folder / "chat_template.json", {"chat_template": SMOLVLM_TEMPLATE})
    config = SmolVLMConfig(
        image_token_id=n - 5,
        scale_factor=2,
        text_config={
            "model_type": "llama",
            "vocab_size": n,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
            "bos_token_id": n - 6,
            "eos_token_id": n - 1,
            "pad_token_id": n - 1,
            "initializer_range": 0.3,
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            "initializer_range": 0.2,
        },
    )
    model = seeded(lambda: SmolVLMForConditionalGeneration(config))
    model.generation_config.eos_token_id = n - 1
    model.save_pretrained(folder)
    # As published: the splitting of pictures is left to the processor, and is on.
    SmolVLMImageProcessorPil(
        do_image_splitting=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        size={"longest_edge": 256},
        max_image_size={"longest_edge": 64},
    ).save_pretrained(folder)


def smolvlm_inputs(_: Backbone, image: Image, __: Prompt) -> Mapping[str, Any]:
    """What its own processor makes of a square picture that it does not split."""
    grey = PIL.Image.fromarray(image.display).convert("RGB")
    side = max(grey.size)
    square = PIL.Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(grey, ((side - grey.width) // 2, (side - grey.height) // 2))
    processor = SmolVLMImageProcessorPil(
        do_image_splitting=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        size={"longest_edge": 64},
        max_image_size={"longest_edge": 64},
    )
    return dict(processor([[square]], return_tensors="pt"))


def stock_smolvlm(folder: Path) -> Any:
    return SmolVLMForConditionalGeneration.from_pretrained(folder).eval()


# Qwen2.5-VL, and Lingshu, which is one


QWEN_CONTROLS = [
    *["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"],
    *["<|image_pad|>", "<|video_pad|>"],
]
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou help.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_qwen(folder: Path) -> None:
    """With the names and the flat config in which Qwen2.5-VL and Lingshu are published."""
    n = write_tokenizer(folder, QWEN_CONTROLS, "<|im_end|>", chat_template=QWEN_TEMPLATE)
    stored = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "bos_token_id": n - 7,
        "eos_token_id": n - 5,
        "vision_start_token_id": n - 4,
        "vision_end_token_id": n - 3,
        "image_token_id": n - 2,
        "video_token_id": n - 1,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.3,
        "intermediate_size": 96,
        "max_position_embeddings": 4096,
        "max_window_layers": 28,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 2,
            "hidden_act": "silu",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "in_chans": 3,
            "out_hidden_size": 64,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "spatial_patch_size": 4,
            "window_size": 32,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.2,
        },
        "vocab_size": n,
    }
    write_json(folder / "config.json", stored)
    write_json(folder / "generation_config.json", {"eos_token_id": [n - 5, n - 7]})
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    model = seeded(lambda: Qwen2_5_VLForConditionalGeneration(config))
    for name, weight in model.named_parameters():
        if "language_model" in name and name.endswith("_proj.bias"):
            torch.nn.init.normal_(weight, std=0.3)
    renamed = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): weight
        for name, weight in model.state_dict().items()
    }
    write_weights(folder, renamed, 2)
    # As published, but for the patches of 4 px, in which a small picture has many.
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "max_pixels": 12845056,
            "merge_size": 2,
            "min_pixels": 3136,
            "patch_size": 4,
            "temporal_patch_size": 2,
        },
    )


def qwen_inputs(backbone: Backbone, image: Image, prompt: Prompt) -> Mapping[str, Any]:
    """What its own processor makes of the picture, and which tokens are the image's."""
    grey = PIL.Image.fromarray(image.display).convert("RGB")
    processor = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, min_pixels=256, max_pixels=81920
    )
    kinds = [[int(token == backbone.image_token_id) for token in prompt.ids]]
    return {**processor([grey], return_tensors="pt"), "mm_token_type_ids": torch.tensor(kinds)}


def stock_qwen(folder: Path) -> Any:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()


# InternVL3, in transformers' layout


INTERNVL_CONTROLS = [
    *["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"],
    "<video>",
]
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
INTERNVL_PICTURES = {
    "crop_to_patches": False,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"height": 32, "width": 32},
}


def write_internvl(folder: Path) -> None:
    n = write_tokenizer(folder, INTERNVL_CONTROLS, "<|im_end|>")
    (folder / "chat_template.jinja").write_text(INTERNVL_TEMPLATE, encoding="utf-8")
    config = InternVLConfig(
        image_token_id=n - 2,
        image_seq_length=16,
        tie_word_embeddings=False,
        text_config={
            "model_type": "qwen2",
            "vocab_size": n,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "use_sliding_window": False,
            "bos_token_id": n - 7,
            "eos_token_id": n - 5,
            "initializer_range": 0.3,
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [32, 32],
            "patch_size": [4, 4],
            "initializer_range": 0.2,
        },
    )
    model = seeded(lambda: InternVLForConditionalGeneration(config))
    model.generation_config.eos_token_id = n - 5
    model.save_pretrained(folder)
    kind = {"image_processor_type": "GotOcr2ImageProcessorFast", "max_patches": 12}
    # Published copies differ in whether they cut pictures into tiles.
    write_json(
        folder / "preprocessor_config.json", INTERNVL_PICTURES | kind | {"crop_to_patches": True}
    )


def internvl_inputs(_: Backbone, image: Image, __: Prompt) -> Mapping[str, Any]:
    """What its own processor makes of a square picture as one tile."""
    grey = PIL.Image.fromarray(image.display).convert("RGB")
    side = max(grey.size)
    square = PIL.Image.new("RGB", (side, side), (123, 116, 103))
    square.paste(grey, ((side - grey.width) // 2, (side - grey.height) // 2))
    read = GotOcr2ImageProcessorPil(**INTERNVL_PICTURES)([square], return_tensors="pt")
    return {"pixel_values": read["pixel_values"]}


def stock_internvl(folder: Path) -> Any:
    return InternVLForConditionalGeneration.from_pretrained(folder).eval()


TINY: dict[str, Tiny] = {
    "huatuo-hf": Tiny(
        write_huatuo_hf,
        stock_llava,
        lambda backbone, image, _: image_inputs(backbone, [image]),
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n{image}\n{text}<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "huatuo": Tiny(
        write_huatuo,
        stock_huatuo,
        lambda backbone, image, _: image_inputs(backbone, [image]),
        "<|user|>\n{image}\n{text}\n<|assistant|>\n",
    ),
    "smolvlm": Tiny(
        write_smolvlm,
        stock_smolvlm,
        smolvlm_inputs,
        "<|im_start|>User:<fake_token_around_image><global-img>{image}<fake_token_around_image>"
        "{text}<end_of_utterance>\nAssistant:",
    ),
    "qwen2.5-vl": Tiny(
        write_qwen,
        stock_qwen,
        qwen_inputs,
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n<|vision_start|>{image}"
        "<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "internvl": Tiny(
        write_internvl,
        stock_internvl,
        internvl_inputs,
        "<|im_start|>user\n<img>{image}</img>\n{text}<|im_end|>\n<|im_start|>assistant\n",
    ),
}
