"""Answering: one question in several branches, several such questions, or a batch of prompts.

All read prefixes once, run the suffixes as one batch, each row with its own λ, and decode
with stock attention.

It does not know where reports come from, what they are worth, or who asks.
Shape suffixes: B batch row, X key column, V vocabulary.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache

from mrrag.errors import SettingsError
from mrrag.model.attention import plan_pass, traces
from mrrag.model.backbone import Backbone, embed
from mrrag.model.decoding import decode
from mrrag.model.emphasis import plan_emphasis, plan_writing
from mrrag.model.prefill import (
    Branch,
    PrefixCache,
    fork,
    layout,
    prefill_batch,
    read_prefixes,
    run_batch,
    stack,
)
from mrrag.model.steering import Block
from mrrag.types import PLAIN, AttentionTrace, Emphasis, Shift, Steering


@dataclass(frozen=True)
class Step:
    """How far the branches are; tuples have one entry per branch.

    Attributes
    ----------
    p_yes, p_no : tuple of float
        Probabilities at the first answer token, over the whole vocabulary.
    traces : tuple of AttentionTrace
        Empty where no trace was asked for.
    texts : tuple of str
        The answers so far.
    tokens : tuple of int
        Their lengths, without the end token.
    seconds : tuple of float
        From the call until the branch's last token so far.
    done : bool
        Whether this is the last step.
    prefix : PrefixCache
        The longest prefix of the branches, for the next call.
    """

    p_yes: tuple[float, ...]
    p_no: tuple[float, ...]
    traces: tuple[AttentionTrace, ...]
    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    done: bool
    prefix: PrefixCache


@dataclass(frozen=True)
class AnswerBatch:
    """The first answer token of B prompts, and their greedy texts.

    Attributes
    ----------
    p_yes, p_no : float32 [B]
        Probabilities over the whole vocabulary.
    next_id : int64 [B]
        The most probable first token.
    texts : tuple of str
        Empty strings where none were asked for.
    """

    p_yes: npt.NDArray[np.float32]
    p_no: npt.NDArray[np.float32]
    next_id: npt.NDArray[np.int64]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """One question's branches, to be answered beside other questions.

    Attributes
    ----------
    branches : sequence of Branch
        About one image.
    strength : float
        Multiplies this question's λ.
    known : PrefixCache or None
        The prefix of an earlier call about the same image; it stays as it is.
    """

    branches: Sequence[Branch]
    strength: float = 0.0
    known: PrefixCache | None = field(default=None, repr=False)


def answer_branches(
    backbone: Backbone,
    branches: Sequence[Branch],
    steering: Steering,
    *,
    max_new_tokens: int,
    trace: bool = True,
    known: PrefixCache | None = None,
) -> Iterator[Step]:
    """Answer several branches at once over shared prefixes, streaming.

    The first step has the first-token probabilities and the traces, and no text yet. One
    step per token follows, and a last one that is ``done``. Closing the generator stops it.

    Parameters
    ----------
    steering
        Acts in the branches that have relevance.
    known
        The prefix of an earlier call about the same image; it stays as it is.

    Raises
    ------
    SettingsError
        At the first step, where a setting is outside what is allowed.
    """
    asked = Asked(branches, steering.strength, known)
    for (step,) in answer_questions(
        backbone, [asked], steering, max_new_tokens=max_new_tokens, trace=trace
    ):
        yield step


@torch.inference_mode()
def answer_questions(
    backbone: Backbone,
    asked: Sequence[Asked],
    steering: Steering,
    *,
    max_new_tokens: int,
    trace: bool = True,
) -> Iterator[tuple[Step, ...]]:
    """Answer several questions at once, each as :func:`answer_branches` does, as one batch.

    Every element has a step for each question. A question's step is ``done`` as soon as its
    own answers are complete, and is repeated until those of the others are. The questions share
    nothing but the weights: to read these once for all rows is what is saved.

    Parameters
    ----------
    steering
        Acts in all branches that have relevance, with each question's own strength.

    Raises
    ------
    SettingsError
        At the first step, where a setting is outside what is allowed.
    """
    started = time.perf_counter()
    check_layers(backbone, steering)
    branches = [branch for one in asked for branch in one.branches]
    prompts = [branch.prompt for branch in branches]
    suffixes: list[Tensor] = []
    caches: list[DynamicCache] = []
    longest: list[PrefixCache] = []
    for one in asked:
        embeds = [embed(backbone, branch.prompt, branch.features) for branch in one.branches]
        prefixes = read_prefixes(backbone, one.branches, embeds, one.known)
        longest.append(max(prefixes, key=lambda prefix: len(prefix.ids)))
        caches += [prefix.cache for prefix in prefixes]
        suffixes += [b.suffix(rows).clone() for b, rows in zip(one.branches, embeds, strict=True)]
    cache = stack(caches)
    del caches, embeds, prefixes  # which would take memory for as long as this decodes

    mask_BX = layout(prompts)
    steered = plan_pass(
        prompts,
        [branch.relevance for branch in branches],
        mask_BX,
        steering,
        strengths=[one.strength for one in asked for _ in one.branches],
        trace=trace,
        device=backbone.device,
    )
    logits_BV = run_batch(backbone, suffixes, cache, mask_BX, steered)
    p_yes, p_no = (p_B.tolist() for p_B in yes_no(backbone, logits_BV))
    padded = backbone.family.padded
    seen = traces(steered, prompts, mask_BX, padded=padded) if trace and steered else ()
    ids: list[list[int]] = [[] for _ in branches]
    seconds = [time.perf_counter() - started] * len(branches)
    ends = list(itertools.accumulate(len(one.branches) for one in asked))
    rows_of = [slice(stop - len(one.branches), stop) for one, stop in zip(asked, ends, strict=True)]

    def step(n: int, done: bool) -> Step:
        own = rows_of[n]
        return Step(
            tuple(p_yes[own]),
            tuple(p_no[own]),
            seen[own],
            tuple(text_of(backbone, row, done) for row in ids[own]),
            tuple(map(len, ids[own])),
            tuple(seconds[own]),
            done,
            longest[n],
        )

    steps = [step(n, done=False) for n in range(len(asked))]
    yield tuple(steps)
    for tokens in decode(backbone, cache, mask_BX, logits_BV, max_new_tokens=max_new_tokens):
        elapsed = time.perf_counter() - started
        for b, token in enumerate(tokens):
            if token is not None:
                ids[b].append(token)
                seconds[b] = elapsed
        for n, own in enumerate(rows_of):
            if not steps[n].done:
                steps[n] = step(n, done=all(token is None for token in tokens[own]))
        yield tuple(steps)
    yield tuple(last if last.done else step(n, done=True) for n, last in enumerate(steps))


@torch.inference_mode()
def answer_batch(
    backbone: Backbone,
    branches: Sequence[Branch],
    steering: Steering = PLAIN,
    *,
    block: Block | None = None,
    emphases: Sequence[Emphasis] = (),
    shift: Shift | None = None,
    cache: DynamicCache | None = None,
    max_new_tokens: int = 0,
) -> AnswerBatch:
    """Answer independent branches as one left-padded batch, all under one steering.

    Parameters
    ----------
    block
        Reports whose flow to the question is cut: for the choice of critical layers, and
        to measure what a report changes.
    emphases
        What a rival of IFA changes, in place of ``steering`` and ``block``; so does ``shift``.
    cache
        From :func:`mrrag.model.prefill.prefill_batch` on the same branches, where several
        settings are compared; it stays as it is.
    max_new_tokens
        Longest answer. With 0, the first token is scored and nothing is written.
    """
    check_layers(backbone, steering, block.layers if block else ())
    prompts = [branch.prompt for branch in branches]
    mask_BX = layout(prompts)
    relevance = [branch.relevance for branch in branches]
    steer = None
    if emphases or shift:
        steered = plan_emphasis(
            prompts,
            relevance,
            mask_BX,
            emphases,
            backbone.layers,
            heads_of(backbone),
            shift=shift,
            device=backbone.device,
        )
        steer = plan_writing(
            prompts, relevance, mask_BX, emphases, backbone.layers, heads_of(backbone)
        )
    else:
        steered = plan_pass(
            prompts, relevance, mask_BX, steering, blocked=block, device=backbone.device
        )
    read = prefill_batch(backbone, branches) if cache is None else fork(cache)
    logits_BV = run_batch(backbone, _suffixes(backbone, branches), read, mask_BX, steered)
    p_yes, p_no = yes_no(backbone, logits_BV)
    ids: list[list[int]] = [[] for _ in branches]
    if max_new_tokens:
        for tokens in decode(
            backbone, read, mask_BX, logits_BV, max_new_tokens=max_new_tokens, steer=steer
        ):
            for row, token in zip(ids, tokens, strict=True):
                if token is not None:
                    row.append(token)
    return AnswerBatch(
        p_yes.cpu().numpy(),
        p_no.cpu().numpy(),
        logits_BV.argmax(-1).cpu().numpy(),
        tuple(text_of(backbone, row, done=True) for row in ids),
    )


@torch.inference_mode()
def same_state_trace(backbone: Backbone, branch: Branch, steering: Steering) -> AttentionTrace:
    """Trace where the plain run's question rows would look if their logits were steered.

    The transform acts on the plain run's own states and is not passed on. Each layer then
    shows its direct effect alone, free of what earlier layers changed in the states.
    """
    check_layers(backbone, steering)
    mask_BX = layout([branch.prompt])
    steered = plan_pass(
        [branch.prompt],
        [branch.relevance],
        mask_BX,
        steering,
        trace=True,
        acts=False,
        device=backbone.device,
    )
    if steered is None:  # for the type checker: a pass with a trace always has a plan
        raise ValueError("A traced pass has no plan.")
    cache = prefill_batch(backbone, [branch])
    run_batch(backbone, _suffixes(backbone, [branch]), cache, mask_BX, steered)
    return traces(steered, [branch.prompt], mask_BX, padded=backbone.family.padded)[0]


def check_layers(backbone: Backbone, steering: Steering, more: Collection[int] = ()) -> None:
    """Raise SettingsError where a layer is not one of the model's."""
    for layer in (*steering.layers, *steering.masked, *more):
        if not 0 <= layer < backbone.layers:
            raise SettingsError(
                f"Layer {layer} was asked for; {backbone.name} has layers 0 to "
                f"{backbone.layers - 1}. Choose layers among them."
            )


def _suffixes(backbone: Backbone, branches: Sequence[Branch]) -> list[Tensor]:
    return [b.suffix(embed(backbone, b.prompt, b.features)) for b in branches]


def heads_of(backbone: Backbone) -> int:
    """Return the number of attention heads of each layer of the text model."""
    return int(backbone.model.config.text_config.num_attention_heads)


def yes_no(backbone: Backbone, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Return P(yes) and P(no) over the whole vocabulary; [B] twice."""
    p_BV = logits_BV.softmax(-1)
    return p_BV[:, list(backbone.yes_ids)].sum(-1), p_BV[:, list(backbone.no_ids)].sum(-1)


def text_of(backbone: Backbone, ids: Sequence[int], done: bool) -> str:
    """Return the text of an answer's tokens; ``done`` says whether more may follow."""
    text = str(backbone.tokenizer.decode(list(ids), skip_special_tokens=True))
    # A character of several tokens decodes to a replacement character until it is complete.
    return text.strip() if done else text.rstrip("\ufffd").strip()
