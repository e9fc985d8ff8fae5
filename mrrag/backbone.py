"""The frozen vision-language model: load it, read an image once, answer in branches.

One question, several answers: what the branches have in common (the image, the reports)
is prefilled once; their suffixes run as one batch, each row with its own steering; then
all branches decode as one batch with stock attention, since steering acts on prompt
tokens alone.

Every pass takes embeddings, so nothing below :func:`embed` knows of images or ids, and
every batch is padded on the left, so the last column is always the token to go on from.

It does not know where reports come from, what they are worth, or who asks.
Shape suffixes: B batch row, X key column, E embedding, P image patch, V vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoTokenizer, DynamicCache, LlavaForConditionalGeneration
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from mrrag import attention
from mrrag.attention import Steering, steer, traces
from mrrag.errors import ModelError, SettingsError
from mrrag.prompt import Prompt
from mrrag.steering import Block
from mrrag.types import AttentionTrace, Image

logger = logging.getLogger(__name__)

# model_type in config.json → how its parameter names map onto LlavaForConditionalGeneration.
KEY_MAPPINGS: dict[str, dict[str, str]] = {"llava": {}}

Item = tuple[Tensor | None, Prompt, Sequence[float] | None]


@dataclass(frozen=True)
class Backbone:
    """A loaded checkpoint, with what its files say about it.

    Attributes
    ----------
    image_tokens : int
        How many tokens one image takes in a prompt.
    grid : (rows, columns)
        The image's patches.
    yes_ids, no_ids : tuple of int
        The tokens that say yes or no as the first word of an answer, in any case.
    eos_ids : tuple of int
        The tokens that end an answer.
    fingerprint : str
        Of the files, to tell checkpoints apart; see :func:`fingerprint`.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    image_processor: Any = field(repr=False)
    image_token_id: int
    image_tokens: int
    grid: tuple[int, int]
    yes_ids: tuple[int, ...]
    no_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    name: str
    fingerprint: str

    @property
    def layers(self) -> int:
        """How many layers the text model has."""
        return int(self.model.config.text_config.num_hidden_layers)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return torch.device(self.model.device)


@dataclass(frozen=True)
class Branch:
    """One way to answer; ``relevance`` is λ per report, empty for plain attention."""

    method: str
    prompt: Prompt
    relevance: tuple[float, ...] = ()


@dataclass(frozen=True)
class Step:
    """How far the branches are; every field but ``done`` has one entry per branch.

    ``p_yes`` and ``p_no`` are probabilities of the first answer token over the whole
    vocabulary. ``tokens`` counts without the end of the answer; ``seconds`` runs until
    the branch has ended. ``traces`` is empty where none was asked for.
    """

    p_yes: tuple[float, ...]
    p_no: tuple[float, ...]
    traces: tuple[AttentionTrace, ...]
    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    done: bool


@dataclass(frozen=True)
class ScoreBatch:
    """The first answer token of many prompts: float32 [B], float32 [B], int64 [B]."""

    p_yes: npt.NDArray[np.float32]
    p_no: npt.NDArray[np.float32]
    next_id: npt.NDArray[np.int64]


# Loading


def load_backbone(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Backbone:
    """Load a checkpoint folder in the transformers layout, from safetensors only.

    Parameters
    ----------
    dtype
        To compute in, whatever the files store.

    Raises
    ------
    ModelError
        Where the folder is absent or is of another kind, or where the files lack a
        parameter, have one too many, or have one of another shape.
    """
    path = Path(path)
    config = _read_config(path)
    kind = config.get("model_type")
    if kind not in KEY_MAPPINGS:
        raise ModelError(
            f"{path.name} is of the kind {kind!r}; MR-RAG reads {', '.join(KEY_MAPPINGS)}. "
            "Choose another checkpoint."
        )
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path.name} has no .safetensors file, and no other format is read. "
            "Download the checkpoint again, or convert it."
        )
    try:
        loaded: Any = LlavaForConditionalGeneration.from_pretrained(
            path,
            dtype=dtype,
            key_mapping=KEY_MAPPINGS[kind] or None,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # said below, with the names, as the others are
            output_loading_info=True,
        )
        model, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        image_processor = _load_image_processor(path, model.config)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path.name} could not be loaded: {error} Download the checkpoint again."
        ) from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            names = ", ".join(sorted(map(str, info[what]))[:8])
            raise ModelError(
                f"{path.name} has {len(info[what])} {what.replace('_', ' ')}: {names}. Its files "
                "and its config.json do not belong together. Download the checkpoint again."
            )
    model.set_attn_implementation({"text_config": attention.NAME})
    model.eval().requires_grad_(False).to(device)

    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    class_token = model.config.vision_feature_select_strategy == "full"
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        image_token_id=int(model.config.image_token_id),
        image_tokens=side * side + class_token,
        grid=(side, side),
        yes_ids=_word_ids(tokenizer, "yes"),
        no_ids=_word_ids(tokenizer, "no"),
        eos_ids=_eos_ids(model, tokenizer),
        name=path.name,
        fingerprint=fingerprint(path),
    )


def fingerprint(path: Path) -> str:
    """Sixteen hexadecimal digits that tell checkpoint folders apart, in milliseconds.

    SHA-256 over config.json, tokenizer.json and, of every safetensors file, the name, the
    size, and the first and last MiB: enough to notice a retraining, not a seal.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json"):
        if (path / name).is_file():
            digest.update((path / name).read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(2**20))
            stream.seek(max(0, size - 2**20))
            digest.update(stream.read())
    return digest.hexdigest()[:16]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"No readable config.json in {path}. Give the folder of a LLaVA checkpoint."
        ) from error
    return dict(config)


def _load_image_processor(path: Path, config: Any) -> Any:
    if any((path / f).is_file() for f in ("preprocessor_config.json", "processor_config.json")):
        return LlavaImageProcessorPil.from_pretrained(path, local_files_only=True)
    side = config.vision_config.image_size
    # LLaVA-Med's own: pad to a square with the mean colour, then resize (bicubic).
    return LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )


def _word_ids(tokenizer: Any, word: str) -> tuple[int, ...]:
    """The first tokens that are this whole word, in any case, at the start of an answer."""
    found = set()
    for variant in (word, word.capitalize(), word.upper()):
        for text in (variant, " " + variant):
            first = tokenizer.encode(text, add_special_tokens=False)[0]
            if tokenizer.decode([first]).strip().lower() == word:
                found.add(first)
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


# Reading


def pixel_values(backbone: Backbone, images: Sequence[Image]) -> Tensor:
    """What the vision tower reads; [B, 3, rows, columns] in the model's type."""
    pictures = [PIL.Image.fromarray(image.display).convert("RGB") for image in images]
    pixels: Tensor = backbone.image_processor(pictures, return_tensors="pt")["pixel_values"]
    return pixels.to(backbone.device, backbone.model.dtype)


def model_input(backbone: Backbone, image: Image) -> npt.NDArray[np.uint8]:
    """The padded square that the vision tower reads, as a picture; uint8 [side, side, 3].

    The processor's last step, the normalisation, is undone.
    """
    pixels = pixel_values(backbone, [image])[0].float().cpu().numpy()
    processor = backbone.image_processor
    if processor.do_normalize:
        mean, std = (np.reshape(v, (-1, 1, 1)) for v in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    if processor.do_rescale:
        pixels = pixels / processor.rescale_factor
    picture: npt.NDArray[np.uint8] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return picture.transpose(1, 2, 0)


@torch.inference_mode()
def encode_images(backbone: Backbone, images: Sequence[Image]) -> Tensor:
    """Vision tower and projector, once per image; [B, P, E], to be used again and again."""
    pixels = pixel_values(backbone, images)
    output = backbone.model.get_image_features(pixel_values=pixels, return_dict=True)
    return torch.stack(tuple(output.pooler_output))


def encode_image(backbone: Backbone, image: Image) -> Tensor:
    """One image's features; [1, P, E]."""
    return encode_images(backbone, [image])


@torch.inference_mode()
def embed(backbone: Backbone, prompt: Prompt, features: Tensor | None) -> Tensor:
    """Embeddings of a prompt, with the image's features at the image span; [tokens, E].

    Raises
    ------
    SettingsError
        Where the prompt is longer than the model reads.
    """
    longest = backbone.model.config.text_config.max_position_embeddings
    if len(prompt.ids) > longest:
        raise SettingsError(
            f"The prompt has {len(prompt.ids)} tokens and the model reads {longest}. "
            "Retrieve fewer reports, or cut them shorter."
        )
    ids = torch.tensor(prompt.ids, device=backbone.device)
    embeds: Tensor = backbone.model.get_input_embeddings()(ids)
    image = next((span for span in prompt.spans if span.name == "image"), None)
    if (image.stop - image.start if image else 0) != (
        0 if features is None else features.shape[-2]
    ):
        raise ValueError("The prompt's image span and the image's features differ in length.")
    if image and features is not None:
        # By position and not by id: a checkpoint may lend its placeholder's id to text.
        embeds[image.start : image.stop] = features.view(-1, embeds.shape[-1])
    return embeds


@torch.inference_mode()
def prefill(
    backbone: Backbone, embeds_XE: Tensor, cache: DynamicCache | None = None
) -> DynamicCache:
    """Read a prefix, after what ``cache`` already holds, which stays as it is."""
    cache = DynamicCache() if cache is None else fork(cache)
    if len(embeds_XE):
        backbone.model(
            inputs_embeds=embeds_XE[None], past_key_values=cache, use_cache=True, logits_to_keep=1
        )
    return cache


def fork(cache: DynamicCache) -> DynamicCache:
    """Another cache over the same tensors.

    A DynamicCache grows by concatenation and never writes into a tensor, so neither of
    the two notices what the other reads next.
    """
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    return forked


def layout(prefixes: Sequence[int], suffixes: Sequence[int]) -> Tensor:
    """Which columns of a batch hold tokens: bool [B, X], on the CPU.

    Prefixes and suffixes are each padded on the left to the longest one, so the columns
    are: padding, prefix, padding, suffix.
    """

    def right_aligned(lengths: Sequence[int]) -> Tensor:
        columns = torch.arange(max(lengths))
        return columns >= max(lengths) - torch.tensor(lengths)[:, None]

    return torch.cat([right_aligned(prefixes), right_aligned(suffixes)], dim=1)


def stack(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Several one-row caches as one batch, padded on the left."""
    longest = max(cache.get_seq_length() for cache in caches)
    stacked = fork(max(caches, key=lambda cache: cache.get_seq_length()))
    for i, layer in enumerate(stacked.layers):
        for part in ("keys", "values"):
            rows = [getattr(cache.layers[i], part) for cache in caches]
            padded = [pad(row, (0, 0, longest - row.shape[-2], 0)) for row in rows]
            setattr(layer, part, torch.cat(padded))
    return stacked


@torch.inference_mode()
def run_suffixes(
    backbone: Backbone,
    suffixes: Sequence[Tensor],
    cache: DynamicCache,
    mask_BX: Tensor,
    steering: Steering | None,
) -> Tensor:
    """Read the rest of every prompt as one batch; logits [B, V] of what comes next.

    Parameters
    ----------
    suffixes
        Embeddings [tokens, E], one tensor per row.
    cache
        The prefixes, stacked (or empty); it grows by the suffixes.
    mask_BX
        From :func:`layout`.
    """
    longest = max(map(len, suffixes))
    embeds_BXE = torch.stack([pad(s, (0, 0, longest - len(s), 0)) for s in suffixes])
    positions_BX = (mask_BX.cumsum(1) - 1).clamp(min=0)[:, -longest:]
    logits: Tensor = backbone.model(
        inputs_embeds=embeds_BXE,
        attention_mask=mask_BX.to(backbone.device),
        position_ids=positions_BX.to(backbone.device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        steering=steering,
    ).logits
    return logits[:, -1].float()


@torch.inference_mode()
def decode(
    backbone: Backbone,
    cache: DynamicCache,
    mask_BX: Tensor,
    logits_BV: Tensor,
    *,
    max_new_tokens: int,
) -> Iterator[list[int | None]]:
    """Go on greedily, all rows as one batch; yield a token per row as it comes.

    A row that has ended yields None. The loop ends with the last row, after
    ``max_new_tokens``, or when the generator is closed.
    """
    eos = torch.tensor(backbone.eos_ids, device=backbone.device)
    mask_BX = mask_BX.to(backbone.device)
    ended_B = torch.zeros(len(mask_BX), dtype=torch.bool, device=backbone.device)
    for step in itertools.count(1):
        ids_B = logits_BV.argmax(-1)
        ended_B = ended_B | torch.isin(ids_B, eos)
        tokens = torch.where(ended_B, -1, ids_B).tolist()
        if max(tokens) < 0:
            return
        yield [None if token < 0 else token for token in tokens]
        if step >= max_new_tokens:
            return
        positions_B1 = mask_BX.sum(1, keepdim=True)
        mask_BX = pad(mask_BX, (0, 1), value=True)
        logits_BV = backbone.model(
            input_ids=ids_B[:, None],
            attention_mask=mask_BX,
            position_ids=positions_B1,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]


# Answering


@torch.inference_mode()
def answer_branches(
    backbone: Backbone,
    features: Tensor | None,
    branches: Sequence[Branch],
    *,
    strength: float,
    layers: Collection[int],
    rows: str = "question+cue",
    transform: str = "ifa",
    max_new_tokens: int,
    trace: bool = True,
) -> Iterator[Step]:
    """Answer one question in several ways at once, over a shared prefix.

    The first step has the first-token probabilities and the traces, and no text yet; one
    step per token follows; the last one is ``done``. Closing the generator stops it.

    Parameters
    ----------
    features
        From :func:`encode_image`; None without an image.
    strength
        Multiplies every λ. The paper has none, which is 1.
    layers
        The critical layers, counted from 0.
    rows
        Which tokens count as the question, a key of :data:`mrrag.steering.ROWS`.
    transform
        A key of :data:`mrrag.steering.TRANSFORMS`.

    Raises
    ------
    SettingsError
        At the first step, where a setting is outside what is allowed.
    """
    started = time.perf_counter()
    _check_layers(backbone, layers)
    prompts = [branch.prompt for branch in branches]
    embeds = [embed(backbone, prompt, features) for prompt in prompts]

    # The image is common to all branches; the reports, to those with the same prefix.
    prefixes = [prompt.ids[: prompt.suffix_start] for prompt in prompts]
    common = _common_length(prefixes)
    root = prefill(backbone, embeds[0][:common])
    caches: dict[tuple[int, ...], DynamicCache] = {}
    for prefix, embeds_XE in zip(prefixes, embeds, strict=True):
        if prefix not in caches:
            caches[prefix] = prefill(backbone, embeds_XE[common : len(prefix)], root)
    cache = stack([caches[prefix] for prefix in prefixes])

    mask_BX = layout([len(p) for p in prefixes], [len(p.ids) - p.suffix_start for p in prompts])
    steering = steer(
        prompts,
        [branch.relevance for branch in branches],
        mask_BX,
        strength=strength,
        layers=layers,
        rows=rows,
        transform=transform,
        trace=trace,
        device=backbone.device,
    )
    suffixes = [e[p.suffix_start :] for e, p in zip(embeds, prompts, strict=True)]
    logits_BV = run_suffixes(backbone, suffixes, cache, mask_BX, steering)
    p_yes, p_no = (tuple(p_B.tolist()) for p_B in _yes_no(backbone, logits_BV))
    seen = traces(steering, prompts, mask_BX, backbone.grid) if trace and steering else ()

    ids: list[list[int]] = [[] for _ in branches]
    seconds = [time.perf_counter() - started] * len(branches)

    def step(done: bool) -> Step:
        texts = tuple(_text(backbone, row, done) for row in ids)
        return Step(p_yes, p_no, seen, texts, tuple(map(len, ids)), tuple(seconds), done)

    yield step(done=False)
    for tokens in decode(backbone, cache, mask_BX, logits_BV, max_new_tokens=max_new_tokens):
        for b, token in enumerate(tokens):
            if token is not None:
                ids[b].append(token)
                seconds[b] = time.perf_counter() - started
        yield step(done=False)
    yield step(done=True)


@torch.inference_mode()
def prefill_batch(backbone: Backbone, items: Sequence[Item]) -> DynamicCache:
    """Read the prefixes of many prompts in one pass, and equal ones once; one row per item.

    No setting of steering touches a prefix, so the result serves any number of calls of
    :func:`score_batch` and :func:`generate_batch` on the same items.
    """
    keys = [(id(features), prompt.ids[: prompt.suffix_start]) for features, prompt, _ in items]
    distinct = dict(zip(keys, items, strict=True))
    prefixes = [
        embed(backbone, p, features)[: p.suffix_start] for features, p, _ in distinct.values()
    ]
    cache = DynamicCache()
    mask_BX = layout([0] * len(prefixes), [len(prefix) for prefix in prefixes])
    run_suffixes(backbone, prefixes, cache, mask_BX, None)
    if len(distinct) < len(items):
        row = {key: i for i, key in enumerate(distinct)}
        cache.batch_select_indices(torch.tensor([row[key] for key in keys], device=backbone.device))
    return cache


@torch.inference_mode()
def score_batch(
    backbone: Backbone,
    items: Sequence[Item],
    *,
    strength: float,
    layers: Collection[int],
    rows: str = "question+cue",
    transform: str = "ifa",
    block: Block | None = None,
    cache: DynamicCache | None = None,
) -> ScoreBatch:
    """First-token probabilities of independent prompts, as one left-padded batch.

    Parameters
    ----------
    items
        (features, prompt, relevance) each, with relevance empty or None for plain.
    block
        Reports whose flow to the question is cut, for the choice of critical layers and
        for what a report changed.
    cache
        From :func:`prefill_batch` on the same items, where several settings are compared;
        it stays as it is.
    """
    logits_BV, _, _ = _read_batch(backbone, items, strength, layers, rows, transform, block, cache)
    p_yes, p_no = _yes_no(backbone, logits_BV)
    return ScoreBatch(p_yes.cpu().numpy(), p_no.cpu().numpy(), logits_BV.argmax(-1).cpu().numpy())


@torch.inference_mode()
def generate_batch(
    backbone: Backbone,
    items: Sequence[Item],
    *,
    strength: float,
    layers: Collection[int],
    rows: str = "question+cue",
    transform: str = "ifa",
    block: Block | None = None,
    cache: DynamicCache | None = None,
    max_new_tokens: int,
) -> list[str]:
    """Greedy texts of independent prompts; the parameters are :func:`score_batch`'s."""
    logits_BV, read, mask_BX = _read_batch(
        backbone, items, strength, layers, rows, transform, block, cache
    )
    ids: list[list[int]] = [[] for _ in items]
    for tokens in decode(backbone, read, mask_BX, logits_BV, max_new_tokens=max_new_tokens):
        for row, token in zip(ids, tokens, strict=True):
            if token is not None:
                row.append(token)
    return [_text(backbone, row, done=True) for row in ids]


def _read_batch(
    backbone: Backbone,
    items: Sequence[Item],
    strength: float,
    layers: Collection[int],
    rows: str,
    transform: str,
    block: Block | None,
    cache: DynamicCache | None,
) -> tuple[Tensor, DynamicCache, Tensor]:
    _check_layers(backbone, [*layers, *(block.layers if block else ())])
    prompts = [prompt for _, prompt, _ in items]
    starts = [prompt.suffix_start for prompt in prompts]
    mask_BX = layout(starts, [len(p.ids) - p.suffix_start for p in prompts])
    steering = steer(
        prompts,
        [relevance or () for _, _, relevance in items],
        mask_BX,
        strength=strength,
        layers=layers,
        rows=rows,
        transform=transform,
        blocked=block,
        device=backbone.device,
    )
    read = prefill_batch(backbone, items) if cache is None else fork(cache)
    suffixes = [embed(backbone, p, features)[p.suffix_start :] for features, p, _ in items]
    return run_suffixes(backbone, suffixes, read, mask_BX, steering), read, mask_BX


def _check_layers(backbone: Backbone, layers: Collection[int]) -> None:
    wrong = [layer for layer in layers if not 0 <= layer < backbone.layers]
    if wrong:
        raise SettingsError(
            f"Layer {wrong[0]} was asked for; {backbone.name} has layers 0 to "
            f"{backbone.layers - 1}. Choose layers among them."
        )


def _common_length(sequences: Sequence[Sequence[int]]) -> int:
    same = itertools.takewhile(lambda ids: len(set(ids)) == 1, zip(*sequences, strict=False))
    return sum(1 for _ in same)


def _yes_no(backbone: Backbone, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    p_BV = logits_BV.softmax(-1)
    return p_BV[:, list(backbone.yes_ids)].sum(-1), p_BV[:, list(backbone.no_ids)].sum(-1)


def _text(backbone: Backbone, ids: Sequence[int], done: bool) -> str:
    text = str(backbone.tokenizer.decode(list(ids), skip_special_tokens=True))
    # A character of several tokens shows as a replacement until its last one has come.
    return text.strip() if done else text.rstrip("\ufffd").strip()
