"""What differs between families of models: one small adapter for each class of transformers.

A family says where its text model is, how a picture becomes patches, and which control
tokens stand around them. Everything else (numbers of layers, image tokens, templates) is said
by the checkpoint's own files. No forward pass is copied here.

It does not know prompts, caches or how a checkpoint's files are named.
Shape suffixes: B picture, P image patch, E embedding, C colour, Y/X rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from torch import Tensor, nn
from transformers import (
    InternVLForConditionalGeneration,
    LlavaForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from mrrag.errors import ImageError

Inputs = Mapping[str, Tensor]
Size = tuple[int, int]


@dataclass(frozen=True)
class Family:
    """How the models of one class are read.

    Attributes
    ----------
    model
        The class of transformers.
    text : str
        The attribute of ``model.model`` that holds the text model.
    vision : tuple of str
        The modules between a picture and the text model, which are never quantised.
    before_image, after_image : str
        Control tokens around an image's tokens, where the chat template leaves them out.
    processor
        The image processor's class, and from a config the settings that replace a stored one's.
    inputs
        From the image processor and pictures, what ``get_image_features`` takes.
    shown
        From the config and those inputs of one picture, the pixels that the vision tower reads;
        [C, Y, X].
    grid
        From the config, the image processor and a picture's (rows, columns) in px, the (rows,
        columns) of its patches, as the text model sees them. Without a size, the grid of every
        picture, or None where it depends on the picture.
    image_tokens
        From the config and such a grid, the number of features of one image.
    padded : bool
        Whether the patches cover the picture padded to a square, or else the picture alone.
    positions
        From the model, which tokens are the image's (bool [tokens]) and its grid, the rotary
        positions [3, tokens] and by how much the next token's position differs from the number
        of tokens. None where positions count the tokens.
    """

    model: Any
    text: str
    vision: tuple[str, ...]
    processor: Any
    settings: Callable[[Any], Mapping[str, Any]]
    inputs: Callable[[Any, Sequence[PIL.Image.Image]], Inputs]
    shown: Callable[[Any, Inputs], Tensor]
    grid: Callable[[Any, Any, Size | None], tuple[int, int] | None]
    image_tokens: Callable[[Any, tuple[int, int]], int]
    before_image: str = ""
    after_image: str = ""
    padded: bool = True
    positions: Callable[[Any, Tensor, Sequence[tuple[int, int]]], tuple[Tensor, int]] | None = None


# LLaVA: CLIP or SigLIP, a projector, any text model

# Supported vision towers, and the number of tokens that each puts before its patches.
CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}


def _llava_settings(config: Any) -> Mapping[str, Any]:
    """Pad to a square with the mean colour, as in LLaVA's training.

    Many stored configurations crop to the centre, but the border of a radiograph is part of it.
    """
    side = config.vision_config.image_size
    return {
        "do_pad": True,
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
    }


def _llava_inputs(processor: Any, pictures: Sequence[PIL.Image.Image]) -> Inputs:
    return {"pixel_values": processor(list(pictures), return_tensors="pt")["pixel_values"]}


def _llava_grid(config: Any, *_: Any) -> tuple[int, int]:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return side, side


def _llava_tokens(config: Any, grid: tuple[int, int]) -> int:
    dropped = config.vision_feature_select_strategy == "default"
    return int(grid[0] * grid[1] + CLASS_TOKENS[config.vision_config.model_type] - dropped)


# SmolVLM: SigLIP whose patches are merged by pixel shuffle, and a small Llama


def _smolvlm_settings(config: Any) -> Mapping[str, Any]:
    """Leave the picture whole: one square, whose tokens follow one another.

    Split into tiles, a picture takes up to seventeen times the tokens, with markers between.
    """
    side = {"longest_edge": config.vision_config.image_size}
    return {"do_image_splitting": False, "do_pad": False, "size": side, "max_image_size": side}


def _smolvlm_inputs(processor: Any, pictures: Sequence[PIL.Image.Image]) -> Inputs:
    # Its own processor stretches every picture to a square. A heart must keep its shape.
    squares = [[padded(picture, processor.image_mean)] for picture in pictures]
    return {"pixel_values": processor(squares, return_tensors="pt")["pixel_values"]}


def _smolvlm_grid(config: Any, *_: Any) -> tuple[int, int]:
    vision = config.vision_config
    side = vision.image_size // vision.patch_size // config.scale_factor
    return side, side


def padded(picture: PIL.Image.Image, mean: Sequence[float]) -> PIL.Image.Image:
    """Return a picture in the middle of a square of the mean colour (LLaVA's expand2square)."""
    side = max(picture.size)
    square = PIL.Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _one_a_patch(_: Any, grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]


# Qwen2.5-VL: patches as many as the picture has, and positions in three dimensions

# Of the text model; more than a large radiograph needs, and what the class itself allows.
MAX_IMAGE_TOKENS = 1280


def _qwen_settings(config: Any) -> Mapping[str, Any]:
    """Limit the image's tokens: many stored configurations allow 16,384 of them."""
    pixels = _qwen_side(config) ** 2
    return {"min_pixels": 4 * pixels, "max_pixels": MAX_IMAGE_TOKENS * pixels}


def _qwen_side(config: Any) -> int:
    """Return the side, in px, of what becomes one token."""
    return int(config.vision_config.patch_size * config.vision_config.spatial_merge_size)


def _qwen_inputs(processor: Any, pictures: Sequence[PIL.Image.Image]) -> Inputs:
    read = processor(list(pictures), return_tensors="pt")
    return {name: read[name] for name in ("pixel_values", "image_grid_thw")}


def _qwen_shown(config: Any, inputs: Inputs) -> Tensor:
    """Put the patches of one picture together again."""
    vision = config.vision_config
    side, merge = vision.patch_size, vision.spatial_merge_size
    _, rows, columns = inputs["image_grid_thw"][0].tolist()
    # As the processor lays them out: merged rows and columns, those within, colour, time.
    blocks = inputs["pixel_values"].reshape(
        rows // merge, columns // merge, merge, merge, -1, vision.temporal_patch_size, side, side
    )[:, :, :, :, :, 0]
    return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(-1, rows * side, columns * side)


def _qwen_grid(config: Any, processor: Any, size: Size | None) -> tuple[int, int] | None:
    if size is None:
        return None
    side, limits = _qwen_side(config), processor.size
    try:
        rows, columns = smart_resize(
            *size, side, min_pixels=limits["shortest_edge"], max_pixels=limits["longest_edge"]
        )
    except ValueError as error:
        raise ImageError(
            f"The picture is {size[0]} × {size[1]} px; this model reads no side that is more than "
            "200 times the other. Crop it."
        ) from error
    return rows // side, columns // side


def _qwen_positions(
    model: Any, image: Tensor, grids: Sequence[tuple[int, int]]
) -> tuple[Tensor, int]:
    """Return the model's own M-RoPE positions: an image counts as its longer side."""
    merge = model.config.vision_config.spatial_merge_size
    sides = [[1, rows * merge, columns * merge] for rows, columns in grids]
    thw = torch.tensor(sides) if sides else None
    kinds = image[None].to(torch.int32)
    positions, shift = model.model.get_rope_index(kinds.long(), kinds, image_grid_thw=thw)
    return positions[:, 0], int(shift)


# InternVL: its own tower, whose patches are merged by pixel shuffle, and a Qwen


def _internvl_settings(config: Any) -> Mapping[str, Any]:
    """Leave the picture whole, as one tile."""
    rows, columns = config.vision_config.image_size
    return {"crop_to_patches": False, "size": {"height": rows, "width": columns}}


def _internvl_inputs(processor: Any, pictures: Sequence[PIL.Image.Image]) -> Inputs:
    # It stretches every picture to its tile, as SmolVLM does.
    squares = [padded(picture, processor.image_mean) for picture in pictures]
    return {"pixel_values": processor(squares, return_tensors="pt")["pixel_values"]}


def _internvl_grid(config: Any, *_: Any) -> tuple[int, int]:
    vision, ratio = config.vision_config, config.downsample_ratio
    rows, columns = (
        int(side // patch * ratio)
        for side, patch in zip(vision.image_size, vision.patch_size, strict=True)
    )
    return rows, columns


# model_type of a config → its family.
FAMILIES: dict[str, Family] = {
    "llava": Family(
        model=LlavaForConditionalGeneration,
        text="language_model",
        vision=("model.vision_tower", "model.multi_modal_projector"),
        processor=LlavaImageProcessorPil,
        settings=_llava_settings,
        inputs=_llava_inputs,
        shown=lambda _, inputs: inputs["pixel_values"][0],
        grid=_llava_grid,
        image_tokens=_llava_tokens,
    ),
    "smolvlm": Family(
        model=SmolVLMForConditionalGeneration,
        text="text_model",
        vision=("model.vision_model", "model.connector"),
        processor=SmolVLMImageProcessorPil,
        settings=_smolvlm_settings,
        inputs=_smolvlm_inputs,
        shown=lambda _, inputs: inputs["pixel_values"][0, 0],
        grid=_smolvlm_grid,
        image_tokens=_one_a_patch,
        before_image="<fake_token_around_image><global-img>",
        after_image="<fake_token_around_image>",
    ),
    "qwen2_5_vl": Family(
        model=Qwen2_5_VLForConditionalGeneration,
        text="language_model",
        vision=("model.visual",),
        processor=Qwen2VLImageProcessorPil,
        settings=_qwen_settings,
        inputs=_qwen_inputs,
        shown=_qwen_shown,
        grid=_qwen_grid,
        image_tokens=_one_a_patch,
        padded=False,
        positions=_qwen_positions,
    ),
    "internvl": Family(
        model=InternVLForConditionalGeneration,
        text="language_model",
        vision=("model.vision_tower", "model.multi_modal_projector"),
        processor=GotOcr2ImageProcessorPil,
        settings=_internvl_settings,
        inputs=_internvl_inputs,
        shown=lambda _, inputs: inputs["pixel_values"][0],
        grid=_internvl_grid,
        image_tokens=_one_a_patch,
        before_image="<img>",
        after_image="</img>",
    ),
}

# Kinds that cannot be served, and why.
REFUSED: dict[str, str] = {
    "gemma3": "it reads the image in both directions, and most of its layers a window only",
    "internvl_chat": "its layout is read by code of its own; take the copy whose name ends in -hf",
    "gemma4": "its layers take further embeddings of token ids, which an image does not have",
    "lfm2_vl": "most of its layers mix tokens by convolution, which cannot be steered",
    "llava_next": "it cuts pictures into tiles, whose tokens are not one grid",
    "llava_onevision": "it cuts pictures into tiles, whose tokens are not one grid",
    "mistral3": "it puts a token after every row of the picture, so its tokens are not one grid",
    "mllama": "it reads the picture by cross-attention, and not as tokens of the prompt",
    "paligemma": "it reads its whole prompt in both directions, so that the flow from reports to "
    "question is not one way",
    "qwen3_5": "most of its layers have linear attention, without logits to steer",
    "qwen3_vl": "it adds image features inside its first layers too",
}


def family_of(config: Any) -> Family:
    """Return the family of a model's config, which is one of :data:`FAMILIES`."""
    return next(f for f in FAMILIES.values() if isinstance(config, f.model.config_class))


def text_of(model: Any) -> nn.Module:
    """Return a model's text model, without its head."""
    text: nn.Module = getattr(model.model, family_of(model.config).text)
    return text
