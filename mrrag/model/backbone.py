"""The frozen vision-language model: read an image once, answer in branches.

One question, several answers: what the branches have in common (the image, the reports)
is prefilled once; their suffixes run as one batch, each row with its own steering; then
all branches decode as one batch with stock attention, since steering acts on prompt
tokens alone.

Every pass takes embeddings, so nothing below :func:`embed` knows of images or ids, and
every batch is padded on the left, so the last column is always the token to go on from.

It does not know what a checkpoint's files look like, where reports come from, what they
are worth, or who asks.
Shape suffixes: B batch row, X key column, E embedding, P image patch, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, LlavaForConditionalGeneration
from transformers.cache_utils import DynamicLayer

from mrrag.errors import ModelError, SettingsError
from mrrag.model import attention
from mrrag.model.attention import SteeredPass, plan_pass, traces
from mrrag.model.checkpoint import (
    find_checkpoint,
    fingerprint,
    image_tokens,
    load_image_processor,
    load_model,
    load_template,
    load_tokenizer,
    read_config,
)
from mrrag.model.prompt import MISTRAL_INSTRUCT, Prompt, Template, continuing
from mrrag.model.steering import Block
from mrrag.types import AttentionTrace, Image

logger = logging.getLogger(__name__)

# What transformers calls the keyword of a cache; the old name warns in the new versions.
_ARGUMENTS = inspect.signature(LlavaForConditionalGeneration.forward).parameters
CACHE = "cache" if "cache" in _ARGUMENTS else "past_key_values"

# What one visit may keep of its last case. LLaVA-Med with 15 reports takes 0.2 GB.
MAX_KEPT_BYTES = 512 * 2**20

Item = tuple[Tensor | None, Prompt, Sequence[float] | None]


@dataclass(frozen=True)
class Backbone:
    """A loaded checkpoint, with what its files say about it.

    Attributes
    ----------
    template : Template
        What its prompts look like.
    image_tokens : int
        How many tokens one image takes in a prompt.
    grid : (rows, columns)
        The image's patches.
    yes_ids, no_ids : tuple of int
        The tokens that say yes or no as the first word of an answer, in any case.
    eos_ids : tuple of int
        The tokens that end an answer.
    capture : bool
        Whether a step of decoding may be captured as a CUDA graph: on one device, with
        nothing moved in and out, and where a process keeps its device.
    fingerprint : str
        Of the files, to tell checkpoints apart; see :func:`mrrag.model.checkpoint.fingerprint`.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    image_processor: Any = field(repr=False)
    template: Template
    image_token_id: int
    image_tokens: int
    grid: tuple[int, int]
    yes_ids: tuple[int, ...]
    no_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    name: str
    fingerprint: str
    capture: bool = False

    @property
    def layers(self) -> int:
        """How many layers the text model has."""
        return int(self.model.config.text_config.num_hidden_layers)

    @property
    def device(self) -> torch.device:
        """Where a pass begins, which is where its inputs go."""
        first = self.model.get_input_embeddings()
        # Weights that accelerate keeps elsewhere come here when they are needed.
        hook = getattr(first, "_hf_hook", None)
        return torch.device(getattr(hook, "execution_device", None) or first.weight.device)


@dataclass(frozen=True)
class Branch:
    """One way to answer; ``relevance`` is λ per report, empty for plain attention."""

    method: str
    prompt: Prompt
    relevance: tuple[float, ...] = ()


@dataclass(frozen=True)
class PrefixCache:
    """A prefix that has been read, to go on from in the next question about an image.

    Attributes
    ----------
    features : Tensor or None
        The image's, from :func:`encode_image`; another image's reading is of no use.
    ids : tuple of int
        The tokens read: template, image and reports.
    """

    features: Tensor | None = field(repr=False)
    ids: tuple[int, ...] = field(repr=False)
    cache: DynamicCache = field(repr=False)

    @property
    def nbytes(self) -> int:
        """What keeping it costs, on the device."""
        layers: list[Any] = self.cache.layers
        return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in layers)


def worth_keeping(backbone: Backbone, reading: PrefixCache) -> bool:
    """Whether there is room to keep it: never the last quarter of a device's memory."""
    if backbone.device.type != "cuda":
        return reading.nbytes <= MAX_KEPT_BYTES
    free, total = torch.cuda.mem_get_info(backbone.device)
    return reading.nbytes <= MAX_KEPT_BYTES and free >= total / 4


@dataclass(frozen=True)
class Step:
    """How far the branches are; every field but ``done`` has one entry per branch.

    ``p_yes`` and ``p_no`` are probabilities of the first answer token over the whole
    vocabulary. ``tokens`` counts without the end of the answer; ``seconds`` runs until
    the branch has ended. ``traces`` is empty where none was asked for. ``reading`` is the
    longest prefix of the branches, for the next call.
    """

    p_yes: tuple[float, ...]
    p_no: tuple[float, ...]
    traces: tuple[AttentionTrace, ...]
    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    done: bool
    reading: PrefixCache


@dataclass(frozen=True)
class AnswerBatch:
    """The first answer token of B prompts, and their greedy texts, empty where none were asked.

    float32 [B], float32 [B], int64 [B], B strings.
    """

    p_yes: npt.NDArray[np.float32]
    p_no: npt.NDArray[np.float32]
    next_id: npt.NDArray[np.int64]
    texts: tuple[str, ...]


# Loading


def load_backbone(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    tower: str = "checkpoint",
    quantize: str | None = None,
) -> Backbone:
    """Load a checkpoint, a folder or a name on the hub, from safetensors only.

    Parameters
    ----------
    dtype
        To compute in, whatever the files store; by default float32 on the CPU and bfloat16
        elsewhere.
    device, tower, quantize
        As in :func:`mrrag.model.checkpoint.load_model`; ``revision`` as in
        :func:`mrrag.model.checkpoint.find_checkpoint`.

    Raises
    ------
    ModelError
        Where there is no such checkpoint, or it is of another kind, or the files lack a
        parameter, have one too many, or have one of another shape, or there is no room.
    """
    folder = find_checkpoint(name, revision)
    config = read_config(folder)
    tokenizer = load_tokenizer(folder, config)
    model = load_model(
        folder,
        config,
        dtype=dtype or (torch.float32 if device == "cpu" else torch.bfloat16),
        device=device,
        tower=tower,
        quantize=quantize,
    )
    devices = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    return make_backbone(
        model,
        tokenizer,
        load_image_processor(folder, config),
        template=load_template(folder, tokenizer),
        name=folder.name if Path(name).expanduser().is_dir() else str(name),
        fingerprint=fingerprint(folder),
        # bitsandbytes' int8 looks at its values on the CPU, which a graph cannot.
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
    """Put our attention under a model's text part, and note what its files say about it."""
    model.set_attn_implementation({"text_config": attention.NAME})
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        template=template,
        image_token_id=int(model.config.image_token_id),
        image_tokens=image_tokens(model.config),
        grid=(side, side),
        yes_ids=_word_ids(tokenizer, "yes"),
        no_ids=_word_ids(tokenizer, "no"),
        eos_ids=_eos_ids(model, tokenizer),
        name=name,
        fingerprint=fingerprint,
        capture=capture,
    )


def _word_ids(tokenizer: Any, word: str) -> tuple[int, ...]:
    """The first tokens that are this whole word, in any case, at the start of an answer."""
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
    square: npt.NDArray[np.uint8] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return square.transpose(1, 2, 0)


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
    text = backbone.model.config.text_config
    longest = text.max_position_embeddings
    # A token being written looks at all there is, which a sliding window would not let it.
    longest = min(longest, getattr(text, "sliding_window", None) or longest)
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
            inputs_embeds=embeds_XE[None], **{CACHE: cache}, use_cache=True, logits_to_keep=1
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


def crop(cache: DynamicCache, tokens: int) -> DynamicCache:
    """The first ``tokens`` of a cache, over the same memory."""
    cropped = fork(cache)
    layers: list[Any] = cropped.layers
    for layer in layers:
        layer.keys, layer.values = layer.keys[:, :, :tokens], layer.values[:, :, :tokens]
    return cropped


def read_prefixes(
    backbone: Backbone,
    features: Tensor | None,
    prompts: Sequence[Prompt],
    embeds: Sequence[Tensor],
    known: PrefixCache | None = None,
) -> list[PrefixCache]:
    """Read the prefix of every prompt, each token once.

    A prefix goes on from what it has in common with one that was read before, here or (by
    ``known``) in an earlier call: all of the image, and the reports as far as they are the
    same and in the same order. The longest is read first, in one causal pass without a mask;
    the others then begin with what it holds.
    """
    read = [known] if known is not None and known.features is features else []
    readings: dict[int, PrefixCache] = {}
    for n in sorted(range(len(prompts)), key=lambda n: -prompts[n].suffix_start):
        embeds_XE, ids = embeds[n], prompts[n].ids[: prompts[n].suffix_start]
        best = max(read, key=lambda r: _common_length(r.ids, ids), default=None)
        shared = 0 if best is None else _common_length(best.ids, ids)
        cache = DynamicCache() if best is None or not shared else crop(best.cache, shared)
        reading = PrefixCache(features, ids, prefill(backbone, embeds_XE[shared : len(ids)], cache))
        readings[n] = reading
        read.append(reading)
    return [readings[n] for n in range(len(prompts))]


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
    steering: SteeredPass | None,
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
        **{CACHE: cache},
        use_cache=True,
        logits_to_keep=1,
        steering=steering,
    ).logits
    return logits[:, -1].float()


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's cache with room for all that is to come: its shape never changes."""

    keys: Tensor
    values: Tensor

    def __init__(self, layer: Any, room: int, column: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys = pad(layer.keys, (0, 0, 0, room))
        self.values = pad(layer.values, (0, 0, 0, room))
        self.is_initialized = True
        self.column = column

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token at the column, and give all there is; the mask hides the rest."""
        column = self.column.to(self.keys.device)
        self.keys.index_copy_(2, column, key_states)
        self.values.index_copy_(2, column, value_states)
        return self.keys, self.values


def token_step(
    backbone: Backbone, cache: DynamicCache, mask_BX: Tensor, ids_B1: Tensor, room: int
) -> Callable[[], None]:
    """A function that feeds ``ids_B1`` and overwrites it with what comes next.

    Every tensor that it reads and writes keeps its place and its shape, so that on one
    CUDA device the whole step is captured once, as a graph, and replayed: a 7B step is
    some thousand small kernels, which Python cannot launch as fast as the device runs
    them. Elsewhere, and where capturing is not possible, it runs as it is.

    Parameters
    ----------
    cache
        What was read. It is taken over: its layers are given room where they are.
    mask_BX
        Which columns of ``cache`` hold tokens.
    room
        How often the function may be called.
    """
    # Without the wrappers that look after images, of which there are none here.
    text, head = backbone.model.model.language_model, backbone.model.lm_head
    device = backbone.device
    start = mask_BX.shape[1]
    # Kernels want masks of whole sixteens, and would pad any other in each layer of each step.
    room += -(start + room) % 16
    # To be added to logits: a mask of bools would be made into one in each layer of each step.
    hidden_B11X = ~pad(mask_BX.to(device), (0, room))[:, None, None]
    layers: list[Any] = cache.layers
    mask_B11X = hidden_B11X.to(layers[0].keys.dtype).masked_fill_(hidden_B11X, -torch.inf)
    positions_B1 = mask_BX.sum(1, keepdim=True).to(device)
    column = torch.tensor([start], device=device)
    for i in range(len(layers)):  # one after another, so that a batch is never held twice
        layers[i] = RoomyLayer(layers[i], room, column)

    def step() -> None:
        mask_B11X.index_fill_(3, column, 0)
        hidden_B1E = text(
            input_ids=ids_B1,
            attention_mask=mask_B11X,
            position_ids=positions_B1,
            **{CACHE: cache},
            use_cache=True,
        ).last_hidden_state
        ids_B1.copy_(head(hidden_B1E).argmax(-1))
        positions_B1.add_(1)
        column.add_(1)

    if not (backbone.capture and device.type == "cuda"):
        return step
    return captured(step, (ids_B1, mask_B11X, positions_B1, column))


def captured(step: Callable[[], None], state: Sequence[Tensor]) -> Callable[[], None]:
    """A step as a CUDA graph; the trial run that capturing needs is taken back."""
    before = [tensor.clone() for tensor in state]
    beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    run: Callable[[], None] = graph.replay
    try:
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    except RuntimeError as error:
        logger.warning("Decoding without a CUDA graph, so slower: %s", error)
        run = step
    for tensor, value in zip(state, before, strict=True):
        tensor.copy_(value)
    return run


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
    ``max_new_tokens``, or when the generator is closed. ``cache`` is taken over.
    """
    ids_B1 = logits_BV.argmax(-1, keepdim=True)
    ended = [False] * len(ids_B1)
    advance: Callable[[], None] | None = None
    for count in range(1, max_new_tokens + 1):
        tokens = ids_B1.flatten().tolist()
        ended = [e or t in backbone.eos_ids for e, t in zip(ended, tokens, strict=True)]
        if all(ended):
            return
        yield [None if e else t for e, t in zip(ended, tokens, strict=True)]
        if count == max_new_tokens:
            return
        if advance is None:
            advance = token_step(backbone, cache, mask_BX, ids_B1, max_new_tokens - 1)
        advance()


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
    known: PrefixCache | None = None,
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
        Which tokens count as the question, a key of :data:`mrrag.model.steering.ROWS`.
    transform
        A key of :data:`mrrag.model.steering.TRANSFORMS`.
    known
        Of an earlier call with the same ``features``, to read on from; it stays as it is.

    Raises
    ------
    SettingsError
        At the first step, where a setting is outside what is allowed.
    """
    started = time.perf_counter()
    _check_layers(backbone, layers)
    prompts = [branch.prompt for branch in branches]
    embeds = [embed(backbone, prompt, features) for prompt in prompts]

    readings = read_prefixes(backbone, features, prompts, embeds, known)
    cache = stack([reading.cache for reading in readings])
    longest = max(readings, key=lambda reading: len(reading.ids))

    mask_BX = layout(
        [p.suffix_start for p in prompts], [len(p.ids) - p.suffix_start for p in prompts]
    )
    steering = plan_pass(
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
        tokens = tuple(map(len, ids))
        return Step(p_yes, p_no, seen, texts, tokens, tuple(seconds), done, longest)

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
    :func:`answer_batch` on the same items.
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
def answer_batch(
    backbone: Backbone,
    items: Sequence[Item],
    *,
    strength: float,
    layers: Collection[int],
    rows: str = "question+cue",
    transform: str = "ifa",
    block: Block | None = None,
    cache: DynamicCache | None = None,
    max_new_tokens: int = 0,
) -> AnswerBatch:
    """Answer independent prompts as one left-padded batch, all under one steering.

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
    max_new_tokens
        Where the answers are cut. With none, the first token is scored and nothing written.
    """
    _check_layers(backbone, [*layers, *(block.layers if block else ())])
    prompts = [prompt for _, prompt, _ in items]
    starts = [prompt.suffix_start for prompt in prompts]
    mask_BX = layout(starts, [len(p.ids) - p.suffix_start for p in prompts])
    steering = plan_pass(
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
    logits_BV = run_suffixes(backbone, suffixes, read, mask_BX, steering)
    p_yes, p_no = _yes_no(backbone, logits_BV)
    ids: list[list[int]] = [[] for _ in items]
    if max_new_tokens:
        for tokens in decode(backbone, read, mask_BX, logits_BV, max_new_tokens=max_new_tokens):
            for row, token in zip(ids, tokens, strict=True):
                if token is not None:
                    row.append(token)
    return AnswerBatch(
        p_yes.cpu().numpy(),
        p_no.cpu().numpy(),
        logits_BV.argmax(-1).cpu().numpy(),
        tuple(_text(backbone, row, done=True) for row in ids),
    )


@torch.inference_mode()
def same_state_trace(
    backbone: Backbone,
    item: Item,
    *,
    strength: float,
    layers: Collection[int],
    rows: str = "question+cue",
    transform: str = "ifa",
) -> AttentionTrace:
    """Where the plain run's question rows would look, were their logits transformed.

    The transform acts on the plain run's own states and is not passed on, so each layer
    shows its direct effect alone, free of what earlier layers did to the states.
    """
    features, prompt, relevance = item
    _check_layers(backbone, layers)
    mask_BX = layout([prompt.suffix_start], [len(prompt.ids) - prompt.suffix_start])
    steering = plan_pass(
        [prompt],
        [relevance or ()],
        mask_BX,
        strength=strength,
        layers=layers,
        rows=rows,
        transform=transform,
        trace=True,
        acts=False,
        device=backbone.device,
    )
    assert steering is not None  # a probed pass always is
    suffix = embed(backbone, prompt, features)[prompt.suffix_start :]
    run_suffixes(backbone, [suffix], prefill_batch(backbone, [item]), mask_BX, steering)
    return traces(steering, [prompt], mask_BX, backbone.grid)[0]


def _check_layers(backbone: Backbone, layers: Collection[int]) -> None:
    wrong = [layer for layer in layers if not 0 <= layer < backbone.layers]
    if wrong:
        raise SettingsError(
            f"Layer {wrong[0]} was asked for; {backbone.name} has layers 0 to "
            f"{backbone.layers - 1}. Choose layers among them."
        )


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in same)


def _yes_no(backbone: Backbone, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    p_BV = logits_BV.softmax(-1)
    return p_BV[:, list(backbone.yes_ids)].sum(-1), p_BV[:, list(backbone.no_ids)].sum(-1)


def _text(backbone: Backbone, ids: Sequence[int], done: bool) -> str:
    text = str(backbone.tokenizer.decode(list(ids), skip_special_tokens=True))
    # A character of several tokens shows as a replacement until its last one has come.
    return text.strip() if done else text.rstrip("\ufffd").strip()
