"""Prefill: read prompts into key-value caches, and read each shared prefix once.

A prompt's prefix (template, image, reports) does not depend on the question or on
steering, so it is read once and shared; the suffixes (question and cue) then run as one
batch, each row with its own steering. Every batch is padded on the left, so its last
column is always the token to continue from.

It does not know what is asked, nor how an answer goes on (:mod:`mrrag.model.decoding`).
Shape suffixes: B batch row, X key column, E embedding, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, LlavaForConditionalGeneration

from mrrag.model.attention import SteeredPass
from mrrag.model.backbone import Backbone, embed, positions
from mrrag.model.prompt import Prompt

# The keyword by which transformers takes a cache; newer versions warn about the old name.
_ARGUMENTS = inspect.signature(LlavaForConditionalGeneration.forward).parameters
CACHE = "cache" if "cache" in _ARGUMENTS else "past_key_values"

# The limit for one visit's cache. LLaVA-Med with 15 reports takes 0.2 GB.
MAX_CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Branch:
    """One prompt to be answered.

    Attributes
    ----------
    prompt : Prompt
        From :meth:`mrrag.model.backbone.Backbone.prompt`.
    features : Tensor or None
        The image's, [1, P, E], from :func:`mrrag.model.backbone.encode_images`. Branches
        about one image share one tensor, by which a shared prefix is recognised.
    relevance : tuple of float
        λ of each report before the strength; empty for plain attention.
    """

    prompt: Prompt
    features: Tensor | None = field(default=None, repr=False)
    relevance: Sequence[float] = ()

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """The token ids of template, image and reports."""
        return self.prompt.ids[: self.prompt.suffix_start]

    def suffix(self, embeds_XE: Tensor) -> Tensor:
        """Return the question's and cue's part of the prompt's embeddings."""
        return embeds_XE[self.prompt.suffix_start :]


@dataclass(frozen=True)
class PrefixCache:
    """A prefix that has been read, to continue from in the next question about an image.

    Attributes
    ----------
    features : Tensor or None
        The image's; a cache of another image is of no use.
    ids : tuple of int
        The tokens read: template, image and reports.
    """

    features: Tensor | None = field(repr=False)
    ids: tuple[int, ...] = field(repr=False)
    cache: DynamicCache = field(repr=False)

    @property
    def nbytes(self) -> int:
        """The memory it takes, on the device."""
        layers: list[Any] = self.cache.layers
        return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in layers)


def fits_in_memory(backbone: Backbone, prefix: PrefixCache) -> bool:
    """Return whether a cache may be kept: a quarter of a GPU's memory always stays free."""
    if backbone.device.type != "cuda":
        return prefix.nbytes <= MAX_CACHE_BYTES
    free, total = torch.cuda.mem_get_info(backbone.device)
    return prefix.nbytes <= MAX_CACHE_BYTES and free >= total / 4


def fit_together(
    backbone: Backbone, questions: Sequence[Sequence[Branch]], max_new_tokens: int
) -> bool:
    """Return whether several questions' branches fit into memory at once, an eighth to spare.

    Of each question the longest prefix is held beside the batch, for the next question.
    """
    text = backbone.model.config.text_config
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    itemsize = backbone.model.dtype.itemsize
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * width * itemsize
    longest = [max(len(branch.prompt.ids) for branch in branches) for branches in questions]
    columns = max(longest) + max_new_tokens
    needed = per_token * (columns * sum(map(len, questions)) + sum(longest))
    if backbone.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(backbone.device)
        # PyTorch keeps what was freed, to use it again.
        free += torch.cuda.memory_reserved(backbone.device)
        free -= torch.cuda.memory_allocated(backbone.device)
    else:
        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
    return bool(needed <= free - total / 8)


# Caches


def fork(cache: DynamicCache) -> DynamicCache:
    """Return another cache over the same tensors.

    A DynamicCache grows by concatenation and never writes into a tensor, so neither of the
    two notices what the other reads next.
    """
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    return forked


def crop(cache: DynamicCache, tokens: int) -> DynamicCache:
    """Return the first ``tokens`` of a cache, over the same memory."""
    cropped = fork(cache)
    layers: list[Any] = cropped.layers
    for layer in layers:
        layer.keys, layer.values = layer.keys[:, :, :tokens], layer.values[:, :, :tokens]
    return cropped


def shift_of(cache: Any) -> Tensor | int:
    """Return by how much the next token's position differs from the number of tokens read.

    An int64 tensor [B, 1] on the CPU after pictures with positions of their own (M-RoPE);
    else 0.
    """
    return getattr(cache, "shift_B1", 0)


def set_shift(cache: Any, shifts: Sequence[int]) -> None:
    """Note on a cache what :func:`shift_of` returns, one number a row; zeros leave it as it is."""
    if any(shifts):
        cache.shift_B1 = torch.tensor(shifts)[:, None]


def stack(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Return several one-row caches as one batch, padded on the left."""
    longest = max(cache.get_seq_length() for cache in caches)
    stacked = fork(max(caches, key=lambda cache: cache.get_seq_length()))
    for i, layer in enumerate(stacked.layers):
        for part in ("keys", "values"):
            rows = [getattr(cache.layers[i], part) for cache in caches]
            padded = [pad(row, (0, 0, longest - row.shape[-2], 0)) for row in rows]
            setattr(layer, part, torch.cat(padded))
    set_shift(stacked, [int(shift_of(cache)) for cache in caches])
    return stacked


def layout(prompts: Sequence[Prompt]) -> Tensor:
    """Return which columns of a batch of prompts hold tokens: bool [B, X], on the CPU.

    Prefixes and suffixes are each padded on the left to the longest one, so the columns
    are: padding, prefix, padding, suffix.
    """
    starts = [prompt.suffix_start for prompt in prompts]
    suffixes = [len(prompt.ids) - start for prompt, start in zip(prompts, starts, strict=True)]
    return torch.cat([right_aligned(starts), right_aligned(suffixes)], dim=1)


def right_aligned(lengths: Sequence[int]) -> Tensor:
    """Return which columns of rows padded on the left hold tokens; bool [B, X], on the CPU."""
    columns = torch.arange(max(lengths))
    return columns >= max(lengths) - torch.tensor(lengths)[:, None]


# Passes


@torch.inference_mode()
def prefill(
    backbone: Backbone,
    embeds_XE: Tensor,
    cache: DynamicCache | None = None,
    positions_3X: Tensor | None = None,
) -> DynamicCache:
    """Read a prefix after what ``cache`` already holds; ``cache`` itself stays as it is.

    ``positions_3X`` are the tokens' where they are not counted: see
    :func:`mrrag.model.backbone.positions`.
    """
    cache = DynamicCache() if cache is None else fork(cache)
    if len(embeds_XE):
        backbone.model(
            inputs_embeds=embeds_XE[None],
            position_ids=None
            if positions_3X is None
            else positions_3X[:, None].to(embeds_XE.device),
            **{CACHE: cache},
            use_cache=True,
            logits_to_keep=1,
        )
    return cache


def read_prefixes(
    backbone: Backbone,
    branches: Sequence[Branch],
    embeds: Sequence[Tensor],
    known: PrefixCache | None = None,
) -> list[PrefixCache]:
    """Read the prefix of every branch, each token once.

    A prefix continues from what it has in common with one that was read before, here or (by
    ``known``) in an earlier call: the whole image, and the reports as far as they are the
    same and in the same order. The longest is read first, in one causal pass without a mask;
    the others begin with what it holds.
    """
    read = [] if known is None else [known]
    prefixes: dict[int, PrefixCache] = {}
    for n in sorted(range(len(branches)), key=lambda n: -branches[n].prompt.suffix_start):
        ids, features = branches[n].prefix_ids, branches[n].features
        usable = [prefix for prefix in read if prefix.features is features]
        best = max(usable, key=lambda prefix: common_length(prefix.ids, ids), default=None)
        shared = 0 if best is None else common_length(best.ids, ids)
        cache = DynamicCache() if best is None or not shared else crop(best.cache, shared)
        positions_3X, shift = positions(backbone, branches[n].prompt)
        if positions_3X is not None:
            positions_3X = positions_3X[:, shared : len(ids)]
        whole = prefill(backbone, embeds[n][shared : len(ids)], cache, positions_3X)
        set_shift(whole, [shift])
        prefixes[n] = PrefixCache(features, ids, whole)
        read.append(prefixes[n])
    return [prefixes[n] for n in range(len(branches))]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return with how many equal tokens two prompts begin."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in same)


@torch.inference_mode()
def prefill_batch(backbone: Backbone, branches: Sequence[Branch]) -> DynamicCache:
    """Read the prefixes of many branches in one pass, and equal ones once; one row a branch.

    Steering never touches a prefix, so the result serves any number of calls of
    :func:`mrrag.model.answering.answer_batch` on the same branches.
    """
    keys = [(id(branch.features), branch.prefix_ids) for branch in branches]
    distinct = dict(zip(keys, branches, strict=True))
    prefixes = [
        embed(backbone, branch.prompt, branch.features)[: branch.prompt.suffix_start]
        for branch in distinct.values()
    ]
    cache = DynamicCache()
    placed = {key: positions(backbone, branch.prompt) for key, branch in distinct.items()}
    positions_3X = [
        given[:, : len(prefix)]
        for (given, _), prefix in zip(placed.values(), prefixes, strict=True)
        if given is not None
    ]
    mask_BX = right_aligned([len(prefix) for prefix in prefixes])
    run_batch(backbone, prefixes, cache, mask_BX, positions_3X=positions_3X)
    if len(distinct) < len(branches):
        row = {key: i for i, key in enumerate(distinct)}
        cache.batch_select_indices(torch.tensor([row[key] for key in keys], device=backbone.device))
    set_shift(cache, [placed[key][1] for key in keys])
    return cache


def read_batch(
    backbone: Backbone, branches: Sequence[Branch], known: PrefixCache | None = None
) -> DynamicCache:
    """Read the prefixes of many branches; one row a branch.

    With ``known`` they continue from what was read of their one image before
    (:func:`read_prefixes`), else they are read in one pass (:func:`prefill_batch`).
    """
    if known is None:
        return prefill_batch(backbone, branches)
    embeds = [embed(backbone, branch.prompt, branch.features) for branch in branches]
    return stack([p.cache for p in read_prefixes(backbone, branches, embeds, known)])


@torch.inference_mode()
def run_batch(
    backbone: Backbone,
    embeds: Sequence[Tensor],
    cache: DynamicCache,
    mask_BX: Tensor,
    steered: SteeredPass | None = None,
    *,
    positions_3X: Sequence[Tensor] = (),
) -> Tensor:
    """Read the next tokens of every row as one batch; logits [B, V] of what follows.

    Parameters
    ----------
    embeds
        Embeddings [tokens, E], one tensor per row.
    cache
        What was read before, stacked (or empty); it grows by the new tokens.
    mask_BX
        Which columns, of the cache and of the new tokens, hold tokens; see :func:`layout`.
    positions_3X
        The new tokens' positions, one tensor per row, where they are not counted.
    """
    longest = max(map(len, embeds))
    embeds_BXE = torch.stack([pad(row, (0, 0, longest - len(row), 0)) for row in embeds])
    if positions_3X:
        placed = torch.stack([pad(row, (longest - row.shape[1], 0)) for row in positions_3X], 1)
    else:
        placed = (mask_BX.cumsum(1) - 1 + shift_of(cache)).clamp(min=0)[:, -longest:]
    logits: Tensor = backbone.model(
        inputs_embeds=embeds_BXE,
        attention_mask=mask_BX.to(backbone.device),
        position_ids=placed.to(backbone.device),
        **{CACHE: cache},
        use_cache=True,
        logits_to_keep=1,
        steered=steered,
    ).logits
    return logits[:, -1].float()
