"""The frozen vision-language model: loading, what its files say, images and prompts.

A checkpoint becomes a :class:`Backbone`, an image becomes features, a question with its
reports becomes a prompt and its embeddings. What is done with them is in
:mod:`mrrag.model.prefill`, :mod:`mrrag.model.decoding` and :mod:`mrrag.model.answering`.

It does not know the layout of a checkpoint's files, where reports come from, what they are
worth, or who asks.
Shape suffixes: B batch row, P image patch, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor

from mrrag.errors import ModelError, SettingsError
from mrrag.model import attention
from mrrag.model.adapter import FILES as ADAPTER_FILES
from mrrag.model.adapter import fingerprint_with, merge_adapter
from mrrag.model.checkpoint import find_checkpoint, load_model, read_config
from mrrag.model.families import Family, family_of, text_of
from mrrag.model.norms import use_native_norms
from mrrag.model.processors import load_image_processor, load_template, load_tokenizer
from mrrag.model.prompt import (
    MAX_REPORT_TOKENS,
    MISTRAL_INSTRUCT,
    Prompt,
    Template,
    build_prompt,
    continuing,
)
from mrrag.model.weights import LARGE, default_dtype, fingerprint
from mrrag.types import Image


@dataclass(frozen=True)
class Backbone:
    """A loaded checkpoint, with the facts that its files state.

    Attributes
    ----------
    template : Template
        The chat template around one question.
    grid : (rows, columns) or None
        The patches of every image; None where they depend on the image (:meth:`grid_of`).
    yes_ids, no_ids : tuple of int
        The tokens that begin an answer with the word yes or no, in any letter case.
    eos_ids : tuple of int
        The tokens that end an answer.
    capture : bool
        Whether a decoding step may be captured as a CUDA graph: on a single device, with no
        weights moved in and out, in a process that keeps its device.
    fingerprint : str
        Tells checkpoints apart; see :func:`mrrag.model.checkpoint.fingerprint`.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    image_processor: Any = field(repr=False)
    template: Template
    image_token_id: int
    grid: tuple[int, int] | None
    yes_ids: tuple[int, ...]
    no_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    name: str
    fingerprint: str
    capture: bool = False

    @property
    def family(self) -> Family:
        """What is particular to the class of the model."""
        return family_of(self.model.config)

    @property
    def layers(self) -> int:
        """The number of layers of the text model."""
        return int(self.model.config.text_config.num_hidden_layers)

    @property
    def device(self) -> torch.device:
        """The device on which a pass begins, where its inputs go."""
        first = self.model.get_input_embeddings()
        # accelerate moves weights that it keeps elsewhere to this device when they are needed.
        hook = getattr(first, "_hf_hook", None)
        return torch.device(getattr(hook, "execution_device", None) or first.weight.device)

    @property
    def bound_by_weights(self) -> bool:
        """Whether more rows at once hardly slow a decoding step, and steps take most of the time.

        So it is for a large model on a GPU, and on a CPU that multiplies its bfloat16. In float32
        or from rounded weights a CPU takes far longer to read a prompt than to decode.
        """
        if sum(p.numel() for p in self.model.parameters()) < LARGE:
            return False
        rounded = getattr(self.model, "hf_quantizer", None) is not None
        return self.device.type == "cuda" or (self.model.dtype == torch.bfloat16 and not rounded)

    @property
    def image_tokens(self) -> int:
        """The tokens that every image takes in a prompt; ValueError where it depends on it."""
        return self._tokens_of(True)

    def grid_of(self, image: Image) -> tuple[int, int]:
        """Return the (rows, columns) of an image's patches."""
        rows, columns = image.display.shape[:2]
        grid = self.family.grid(self.model.config, self.image_processor, (rows, columns))
        assert grid is not None  # for the type checker: the size is given
        return grid

    def _tokens_of(self, image: bool | tuple[int, int]) -> int:
        grid = self.grid if image is True else image
        if grid is None:
            raise ValueError(f"{self.name} needs the grid of the image to build a prompt.")
        return self.family.image_tokens(self.model.config, grid) if grid else 0

    def prompt(
        self,
        question: str,
        reports: Sequence[str],
        *,
        image: bool | tuple[int, int] = True,
        max_report_tokens: int = MAX_REPORT_TOKENS,
        twice: bool = False,
        pictures: Sequence[tuple[int, int]] = (),
    ) -> Prompt:
        """Build the prompt of a question after its reports, with or without an image.

        Parameters
        ----------
        image
            The grid of its patches (:meth:`grid_of`), or whether there is one. The grid must be
            given where it depends on the image.
        pictures
            The grids of the reports' own pictures, one each, to show them, too; see
            :func:`encode_all`.

        The other parameters and the errors are those of :func:`mrrag.model.prompt.build_prompt`.
        """
        return build_prompt(
            self.tokenizer,
            question,
            reports,
            image_token_id=self.image_token_id,
            image_tokens=self._tokens_of(image),
            template=self.template,
            max_report_tokens=max_report_tokens,
            grid=(self.grid if image is True else image) or None,
            twice=twice,
            pictures=[(grid, self._tokens_of(grid)) for grid in pictures],
        )


def load_backbone(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    vision_tower: str = "checkpoint",
    quantize: str | None = None,
    adapter: str | Path | None = None,
) -> Backbone:
    """Load a checkpoint from a folder or the hub; safetensors files only.

    Parameters
    ----------
    dtype
        The type to compute in; by default :func:`mrrag.model.weights.default_dtype`.
    device, vision_tower, quantize
        As in :func:`mrrag.model.checkpoint.load_model`; ``revision`` as in
        :func:`mrrag.model.checkpoint.find_checkpoint`.
    adapter
        A folder or a name on the hub: a LoRA adapter to merge into the weights
        (:mod:`mrrag.model.adapter`).

    Raises
    ------
    ModelError
        Where the checkpoint does not exist or is of another kind, a parameter is missing,
        unexpected or of another shape, the adapter does not fit, or memory does not suffice.
    SettingsError
        Where an adapter is to be merged into quantised weights.
    """
    if adapter is not None and quantize is not None:
        raise SettingsError(
            f"--adapter cannot be merged into the rounded weights of --quantize {quantize}. Leave "
            "one of them out."
        )
    folder = find_checkpoint(name, revision)
    config = read_config(folder)
    tokenizer = load_tokenizer(folder, config)
    model = load_model(
        folder,
        config,
        dtype=dtype or default_dtype(folder, device),
        device=device,
        vision_tower=vision_tower,
        quantize=quantize,
    )
    known = fingerprint(folder)
    shown = folder.name if Path(name).expanduser().is_dir() else str(name)
    if adapter is not None:
        merged = find_checkpoint(adapter, files=ADAPTER_FILES)
        merge_adapter(model, merged)
        known, shown = fingerprint_with(known, merged), f"{shown} with {merged.name}"
    devices = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    return make_backbone(
        model,
        tokenizer,
        load_image_processor(folder, config),
        template=load_template(folder, tokenizer, config),
        name=shown,
        fingerprint=known,
        # bitsandbytes' int8 reads values back to the CPU, which a graph cannot do.
        capture=device == "auto" and len(devices) <= 1 and quantize != "int8",
    )


def make_backbone(
    model: Any,
    tokenizer: Any,
    image_processor: Any,
    *,
    template: Template = MISTRAL_INSTRUCT,
    name: str,
    fingerprint: str,
    capture: bool = False,
) -> Backbone:
    """Set our attention in a model's text part, and collect the facts that its files state."""
    model.set_attn_implementation({"text_config": attention.NAME})
    if capture:
        use_native_norms(text_of(model))
    family = family_of(model.config)
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        template=template,
        image_token_id=int(model.config.image_token_id),
        grid=family.grid(model.config, image_processor, None),
        yes_ids=_word_ids(tokenizer, "yes"),
        no_ids=_word_ids(tokenizer, "no"),
        eos_ids=_eos_ids(model, tokenizer),
        name=name,
        fingerprint=fingerprint,
        capture=capture,
    )


def _word_ids(tokenizer: Any, word: str) -> tuple[int, ...]:
    """Return the tokens that are this whole word, in any case, at the start of an answer."""
    go_on = continuing(tokenizer)
    found = set()
    for variant in (word, word.capitalize(), word.upper()):
        for text in (variant, " " + variant):
            for ids in (go_on(text), tokenizer.encode(text, add_special_tokens=False)):
                if tokenizer.decode(ids[:1]).strip().lower() == word:
                    found.add(ids[0])
    if not found:
        raise ModelError(
            f"The checkpoint's vocabulary has no token for {word!r}, so the probability of "
            "that answer cannot be read. Choose another checkpoint."
        )
    return tuple(sorted(found))


def _eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    ids = {tokenizer.eos_token_id}
    configured = model.generation_config.eos_token_id
    ids.update(configured if isinstance(configured, list) else [configured])
    return tuple(sorted(ids - {None}))


def image_inputs(backbone: Backbone, images: Sequence[Image]) -> dict[str, Tensor]:
    """Return what the vision tower takes, by the family's names, in the model's dtype."""
    pictures = [PIL.Image.fromarray(image.display).convert("RGB") for image in images]
    inputs = backbone.family.inputs(backbone.image_processor, pictures)
    moved = {name: values.to(backbone.device) for name, values in inputs.items()}
    return moved | {"pixel_values": moved["pixel_values"].to(backbone.model.dtype)}


def pixel_values(backbone: Backbone, images: Sequence[Image]) -> Tensor:
    """Return the vision tower's input; for LLaVA [B, 3, rows, columns] in the model's dtype."""
    return image_inputs(backbone, images)["pixel_values"]


def model_input(backbone: Backbone, image: Image) -> npt.NDArray[np.uint8]:
    """Return the picture as the vision tower reads it, padding included; uint8 [rows, columns, 3].

    The normalisation, the processor's last step, is undone.
    """
    shown = backbone.family.shown(backbone.model.config, image_inputs(backbone, [image]))
    pixels = shown.float().cpu().numpy()
    processor = backbone.image_processor
    if processor.do_normalize:
        mean, std = (np.reshape(v, (-1, 1, 1)) for v in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    if processor.do_rescale:
        pixels = pixels / processor.rescale_factor
    seen: npt.NDArray[np.uint8] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return seen.transpose(1, 2, 0)


@torch.inference_mode()
def encode_each(backbone: Backbone, images: Sequence[Image]) -> list[Tensor]:
    """Run the vision tower and the projector once per image; a tensor [1, P, E] for each."""
    inputs = image_inputs(backbone, images)
    output = backbone.model.get_image_features(**inputs, return_dict=True)
    return [features_PE[None] for features_PE in output.pooler_output]


def encode_images(backbone: Backbone, images: Sequence[Image]) -> Tensor:
    """Encode images that have equally many patches, as one tensor; [B, P, E]."""
    return torch.cat(encode_each(backbone, images))


def encode_all(backbone: Backbone, images: Sequence[Image]) -> Tensor:
    """Encode the images of one prompt, in the order of its spans; [1, P of all together, E]."""
    return torch.cat(encode_each(backbone, images), dim=1)


def positions(backbone: Backbone, prompt: Prompt) -> tuple[Tensor | None, int]:
    """Return a prompt's rotary positions where they do not count its tokens.

    Returns
    -------
    (int64 [3, tokens] or None, int)
        On the CPU, and by how much the next token's position differs from the number of tokens.
    """
    if backbone.family.positions is None:
        return None, 0
    image = torch.zeros(len(prompt.ids), dtype=torch.bool)
    for span in prompt.images:
        image[span.start : span.stop] = True
    return backbone.family.positions(backbone.model, image, prompt.grids)


@torch.inference_mode()
def embed(backbone: Backbone, prompt: Prompt, features: Tensor | None) -> Tensor:
    """Embed a prompt, with the images' features at their spans; [tokens, E].

    Raises
    ------
    SettingsError
        Where the prompt is longer than the model reads.
    """
    text = backbone.model.config.text_config
    longest = text.max_position_embeddings
    # A decoded token attends to the whole prompt, which a sliding window would not allow.
    longest = min(longest, getattr(text, "sliding_window", None) or longest)
    if len(prompt.ids) > longest:
        raise SettingsError(
            f"The prompt has {len(prompt.ids)} tokens and the model reads {longest}. "
            "Retrieve fewer reports, or cut them shorter."
        )
    ids = torch.tensor(prompt.ids, device=backbone.device)
    embeds: Tensor = backbone.model.get_input_embeddings()(ids)
    counts = [span.stop - span.start for span in prompt.images]
    if sum(counts) != (0 if features is None else features.shape[-2]):
        raise ValueError("The prompt's image spans and the images' features differ in length.")
    if features is not None:
        parts = torch.split(features.view(-1, embeds.shape[-1]), counts)
        for span, part in zip(prompt.images, parts, strict=True):
            # By position, not by id: the placeholder's id may also occur in text.
            embeds[span.start : span.stop] = part
    return embeds
