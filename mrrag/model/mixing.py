"""Rivals of IFA at the output: one answer from the probabilities of several prompts.

Contrasts hold a prompt against the same one without reports or without the image (CAD,
AdaCAD, PAI, ALFAR). Fusions average prompts with one report each (REPLUG and its kin).
A rule is a function of logits; to add one, write it and add it to :data:`RULES`.

It does not know where reports come from, nor which prompts belong together.
Shape suffixes: B batch row, G group of prompts with one answer, R prompt of a group,
V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad
from transformers import DynamicCache

from mrrag.errors import SettingsError
from mrrag.model.answering import AnswerBatch, heads_of, text_of, yes_no
from mrrag.model.attention import SteeredPass
from mrrag.model.backbone import Backbone, embed
from mrrag.model.emphasis import plan_emphasis, plan_writing
from mrrag.model.prefill import (
    Branch,
    PrefixCache,
    common_length,
    fork,
    layout,
    read_batch,
    run_batch,
)
from mrrag.types import Emphasis, Mixture, Rival

PLAUSIBLE = 0.1  # PAI: a token is cut below this part of the most probable one's probability
ALFAR_PLAUSIBLE = 0.7  # ALFAR's β
SMALLEST_RATIO = 1e-3  # of image to report attention, which ALFAR divides by
MAX_ROWS = 64  # prompts that are run together
TIE = 1e-6  # what the probabilities count beside votes, so that they decide where votes are even

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]


# Contrasts: the first prompt of a group against the second


def contrast(logits_GRV: Tensor, _scores: Tensor, alpha_G1: Tensor) -> Tensor:
    """Return (1 + α)·ℓ_with − α·ℓ_without (context-aware decoding, CAD)."""
    return (1 + alpha_G1) * logits_GRV[:, 0] - alpha_G1 * logits_GRV[:, 1]


def adaptive_contrast(logits_GRV: Tensor, scores: Tensor, _amount: Tensor) -> Tensor:
    """Contrast with α = the Jensen-Shannon divergence of the two, in bits (AdaCAD)."""
    return contrast(logits_GRV, scores, divergence(logits_GRV[:, 0], logits_GRV[:, 1])[:, None])


def divergence(first_GV: Tensor, second_GV: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of two softmaxes, in bits; [G], 0 to 1."""
    first, second = (x.log_softmax(-1).exp() for x in (first_GV, second_GV))
    middle = (first + second) / 2
    # xlogy and not a product of logarithms: 0·ln 0 is 0.
    parts = [torch.xlogy(p, p) - torch.xlogy(p, middle) for p in (first, second)]
    return (parts[0] + parts[1]).sum(-1) / (2 * math.log(2))


def plausible_contrast(logits_GRV: Tensor, _scores: Tensor, gamma_G1: Tensor) -> Tensor:
    """Return γ·c − (γ − 1)·u of log-softmaxes, −∞ where c < max c + ln 0.1 (PAI)."""
    c, u = (logits_GRV[:, i].log_softmax(-1) for i in (0, 1))
    implausible = c < c.amax(-1, keepdim=True) + math.log(PLAUSIBLE)
    return (gamma_G1 * c - (gamma_G1 - 1) * u).masked_fill(implausible, -torch.inf)


def ratio_contrast(logits_GRV: Tensor, _scores: Tensor, ratio_G1: Tensor) -> Tensor:
    """Return (1 + 1/a)·ℓ_with − (1 − a)·ℓ_without, cut below max + ln β (ALFAR).

    a is the last row's attention on the image divided by that on the reports, in the last layer.
    """
    a, with_GV = ratio_G1.clamp(min=SMALLEST_RATIO), logits_GRV[:, 0]
    implausible = with_GV < with_GV.amax(-1, keepdim=True) + math.log(ALFAR_PLAUSIBLE)
    mixed = (1 + 1 / a) * with_GV - (1 - a) * logits_GRV[:, 1]
    return mixed.masked_fill(implausible, -torch.inf)


# Fusions: all prompts of a group, each with a weight; a score of −∞ stands for no prompt


def uniform(logits_GRV: Tensor, scores_GR: Tensor, _amount: Tensor) -> Tensor:
    """Return ln of the mean probability."""
    return _fused(logits_GRV, torch.zeros_like(scores_GR).where(scores_GR > -torch.inf, scores_GR))


def by_score(logits_GRV: Tensor, scores_GR: Tensor, temperature_G1: Tensor) -> Tensor:
    """Return ln Σ_k w_k·p_k with w = softmax(score / τ) (REPLUG)."""
    return _fused(logits_GRV, scores_GR / temperature_G1)


def by_entropy(logits_GRV: Tensor, scores_GR: Tensor, temperature_G1: Tensor) -> Tensor:
    """Return ln Σ_k w_k·p_k with w = softmax(−H_k / τ), H_k the entropy in nats (LeEns)."""
    log_p = logits_GRV.log_softmax(-1)
    negative_GR = torch.xlogy(log_p.exp(), log_p.exp()).sum(-1) / temperature_G1
    return _fused(logits_GRV, negative_GR.where(scores_GR > -torch.inf, scores_GR))


def vote(logits_GRV: Tensor, scores_GR: Tensor, amount: Tensor) -> Tensor:
    """Return ln of each token's share of the votes; of even ones, the more probable leads."""
    counted_GR = scores_GR > -torch.inf
    votes_GRV = one_hot(logits_GRV.argmax(-1), logits_GRV.shape[-1])
    share_GV = (votes_GRV * counted_GR[..., None]).sum(1) / counted_GR.sum(1, keepdim=True)
    return torch.log(share_GV + TIE * uniform(logits_GRV, scores_GR, amount).exp())


def _fused(logits_GRV: Tensor, weights_GR: Tensor) -> Tensor:
    log_w_GR = weights_GR.log_softmax(-1)
    return (logits_GRV.log_softmax(-1) + log_w_GR[..., None]).logsumexp(1)


# Each returns the mixture's logits [G, V] from those of its prompts [G, R, V], the prompts' scores
# [G, R] and its one number [G, 1].
RULES: dict[str, Rule] = {
    "contrast": contrast,
    "adaptive contrast": adaptive_contrast,
    "plausible contrast": plausible_contrast,
    "ratio contrast": ratio_contrast,
    "uniform": uniform,
    "score": by_score,
    "entropy": by_entropy,
    "vote": vote,
}
TEMPERED = ("score", "entropy")


@dataclass(frozen=True)
class Group:
    """The prompts of one answer.

    Attributes
    ----------
    branches : sequence of Branch
        In a contrast, the full prompt and the one it is held against.
    scores : sequence of float
        What retrieval thinks of each, in cosine; a fusion weighs by them.
    """

    branches: Sequence[Branch]
    scores: Sequence[float]


@dataclass(frozen=True)
class MixedBatch(AnswerBatch):
    """The answers of G groups of prompts by one mixture.

    Attributes
    ----------
    seconds : float
        For reading the prompts, which mixtures may share, and for writing the answers.
    prompts_p_yes : tuple of float32 [R]
        For each group, P(yes) of each of its prompts alone.
    """

    seconds: float
    prompts_p_yes: tuple[npt.NDArray[np.float32], ...]


@torch.inference_mode()
def answer_mixtures(
    backbone: Backbone,
    groups: Sequence[Group],
    ways: Sequence[Rival],
    *,
    known: PrefixCache | None = None,
    max_new_tokens: int = 0,
) -> list[MixedBatch]:
    """Give one answer for each group of prompts in each way; prompts are read once for all.

    Changes of attention act on the prompts' last tokens, which are read again under each.

    Parameters
    ----------
    ways
        All with a mixture of the same prompts.
    known
        What was read of the image and its reports before; it stays as it is.

    Raises
    ------
    SettingsError
        Where a rule is unknown, or its number is not allowed.
    """
    mixtures: dict[tuple[Emphasis, ...], list[Mixture]] = {}
    for way in ways:
        if way.mixture is None:
            raise ValueError("A way without a mixture has no prompts to mix.")
        check_mixture(way.mixture)
        mixtures.setdefault(way.emphases, []).append(way.mixture)
    fuses = any(same[0].prompts == "each report" for same in mixtures.values())
    parts: dict[Rival, list[MixedBatch]] = {way: [] for way in ways}
    for chunk in _chunks(groups):
        start = time.perf_counter()
        # Prompts of one report each share little but their beginning; that of a contrast is read
        # whole, once for all changes of attention.
        own = [sharing(group) if fuses else group.branches for group in chunk]
        branches = [branch for row in own for branch in row]
        cache = read_batch(backbone, branches, known)
        reading = time.perf_counter() - start
        for emphases, same in mixtures.items():
            read = read_groups(backbone, chunk, branches, cache, same, emphases=emphases)
            read = replace(read, seconds=read.seconds + reading)
            for mixture in same:
                answer = mix(backbone, read, mixture, max_new_tokens=max_new_tokens)
                parts[Rival(emphases, mixture)].append(answer)
    return [
        MixedBatch(
            np.concatenate([part.p_yes for part in parts[way]]),
            np.concatenate([part.p_no for part in parts[way]]),
            np.concatenate([part.next_id for part in parts[way]]),
            tuple(text for part in parts[way] for text in part.texts),
            sum(part.seconds for part in parts[way]),
            tuple(p_R for part in parts[way] for p_R in part.prompts_p_yes),
        )
        for way in ways
    ]


def check_mixture(mixture: Mixture) -> None:
    """Raise SettingsError where a mixture's rule is unknown, or its number is not allowed."""
    if mixture.rule not in RULES:
        raise SettingsError(
            f"A mixture has the rule {mixture.rule!r}. Choose one of: {', '.join(RULES)}."
        )
    if not math.isfinite(mixture.amount) or (mixture.rule in TEMPERED and mixture.amount <= 0):
        raise SettingsError(
            f"The mixture {mixture.rule!r} has the number {mixture.amount}. It must be finite, and "
            "a temperature above 0."
        )


def _chunks(groups: Sequence[Group]) -> list[Sequence[Group]]:
    """Split groups so that at most :data:`MAX_ROWS` prompts are run together, or one group."""
    chunks: list[list[Group]] = [[]]
    for group in groups:
        rows = sum(len(g.branches) for g in chunks[-1])
        if chunks[-1] and rows + len(group.branches) > MAX_ROWS:
            chunks.append([])
        chunks[-1].append(group)
    return [*chunks]


def sharing(group: Group) -> list[Branch]:
    """Return a group's branches with what all begin with as their prefix, to be read once.

    Branches about different pictures, or with and without one, stay as they are.
    """
    first, *others = group.branches
    if any(branch.features is not first.features for branch in others):
        return [*group.branches]
    shared = min(common_length(first.prefix_ids, branch.prefix_ids) for branch in group.branches)
    return [
        replace(branch, prompt=replace(branch.prompt, suffix_start=shared))
        for branch in group.branches
    ]


@dataclass(frozen=True)
class ReadGroups:
    """Groups of prompts that have been read, for any number of mixtures of them.

    Attributes
    ----------
    group_B : int64 [B]
        The group of each prompt.
    rows_GR, scores_GR : int64 and float32 [G, R]
        The prompts of each group, and their scores; −∞ where it has fewer.
    mask_BX, cache, logits_BV
        What was read, and what follows.
    p_yes_B : float32 [B]
        P(yes) of each prompt alone; on the CPU.
    seconds : float
        For reading.
    ratio_G1 : float32 [G, 1] or None
        The last row's attention on the image divided by that on reports, where it was recorded.
    steer : callable or None
        What attention changes while the answer is written
        (:func:`mrrag.model.emphasis.plan_writing`).
    """

    group_B: Tensor
    rows_GR: Tensor
    scores_GR: Tensor
    mask_BX: Tensor
    cache: DynamicCache = field(repr=False)
    logits_BV: Tensor = field(repr=False)
    p_yes_B: Tensor
    seconds: float
    ratio_G1: Tensor | None = None
    steer: Callable[[Tensor], SteeredPass] | None = field(default=None, repr=False)


@torch.inference_mode()
def read_groups(
    backbone: Backbone,
    groups: Sequence[Group],
    branches: Sequence[Branch],
    cache: DynamicCache,
    mixtures: Sequence[Mixture],
    *,
    emphases: Sequence[Emphasis] = (),
) -> ReadGroups:
    """Read the last tokens of groups of prompts as one batch.

    Parameters
    ----------
    branches, cache
        Of all groups, and what was read of their prefixes, which stays as it is.
    mixtures
        What will be made of them, all of the same prompts.
    emphases
        Changes of attention: in the first prompt of a contrast, in every prompt of a fusion.
    """
    start = time.perf_counter()
    fuses = mixtures[0].prompts == "each report"
    prompts = [branch.prompt for branch in branches]
    mask_BX = layout(prompts)
    firsts = list(accumulate((len(g.branches) for g in groups), initial=0))
    relevance = [branch.relevance for branch in branches]
    model = backbone.layers, heads_of(backbone)
    plain = () if fuses else [b for b in range(len(branches)) if b not in firsts]
    steer = plan_writing(prompts, relevance, mask_BX, emphases, *model, plain=plain)
    steered = plan_emphasis(
        prompts,
        relevance,
        mask_BX,
        emphases,
        *model,
        plain=plain,
        watched=any(mixture.rule == "ratio contrast" for mixture in mixtures),
        device=backbone.device,
    )
    cache = fork(cache)
    suffixes = [b.suffix(embed(backbone, b.prompt, b.features)) for b in branches]
    logits_BV = run_batch(backbone, suffixes, cache, mask_BX, steered)
    ratio_G1 = None
    if steered is not None and steered.probe is not None:
        mass_GS = steered.probe.mass_BHS[-1].mean(1)[firsts[:-1]]
        ratio_G1 = mass_GS[:, :1] / mass_GS[:, 1:].clamp(min=SMALLEST_RATIO)
    rows_GR, scores_GR = (t.to(backbone.device) for t in _members(groups, firsts))
    group_B = torch.tensor([g for g, group in enumerate(groups) for _ in group.branches])
    p_yes_B = yes_no(backbone, logits_BV)[0].cpu()  # which waits for the device
    seconds = time.perf_counter() - start
    return ReadGroups(
        *(group_B, rows_GR, scores_GR, mask_BX, cache, logits_BV, p_yes_B, seconds),
        ratio_G1=ratio_G1,
        steer=steer,
    )


@torch.inference_mode()
def mix(
    backbone: Backbone, read: ReadGroups, mixture: Mixture, *, max_new_tokens: int = 0
) -> MixedBatch:
    """Give one answer for each group by one mixture; what was read stays as it is.

    Each next token is fed to all prompts of a group.
    """
    start = time.perf_counter()
    rows_GR, scores_GR = read.rows_GR, read.scores_GR
    number_G1 = torch.full((len(rows_GR), 1), mixture.amount, device=backbone.device)
    if mixture.rule == "ratio contrast" and read.ratio_G1 is not None:
        number_G1 = read.ratio_G1.to(backbone.device)
    rule = RULES[mixture.rule]

    def mixed(logits_BV: Tensor) -> Tensor:
        # A model on several devices ends on another one than it begins.
        return rule(logits_BV.to(rows_GR.device)[rows_GR], scores_GR, number_G1)

    answer = _written(backbone, mixed, read, max_new_tokens)
    return MixedBatch(
        *(answer.p_yes, answer.p_no, answer.next_id, answer.texts),
        seconds=read.seconds + time.perf_counter() - start,
        prompts_p_yes=tuple(read.p_yes_B[read.group_B == g].numpy() for g in range(len(rows_GR))),
    )


def _written(
    backbone: Backbone,
    mixed: Callable[[Tensor], Tensor],
    read: ReadGroups,
    max_new_tokens: int,
) -> AnswerBatch:
    """Write each group's answer greedily, by one mixture."""
    cache, mask_BX, group_B = fork(read.cache), read.mask_BX, read.group_B
    first_GV = mixed(read.logits_BV)
    p_yes, p_no = yes_no(backbone, first_GV)
    first_G = ids_G = first_GV.argmax(-1)
    written: list[list[int]] = [[] for _ in ids_G]
    ended = [False] * len(written)
    table = backbone.model.get_input_embeddings()
    for count in range(1, max_new_tokens + 1):
        for g, token in enumerate(ids_G.tolist()):
            ended[g] = ended[g] or token in backbone.eos_ids
            if not ended[g]:
                written[g].append(token)
        if all(ended) or count == max_new_tokens:
            break
        mask_BX = pad(mask_BX, (0, 1), value=True)
        embeds = table(ids_G[group_B.to(ids_G.device)][:, None])
        sees_B11X = mask_BX[:, None, None].to(backbone.device)
        steered = read.steer(sees_B11X) if read.steer else None
        ids_G = mixed(run_batch(backbone, [*embeds], cache, mask_BX, steered)).argmax(-1)
    return AnswerBatch(
        p_yes.cpu().numpy(),
        p_no.cpu().numpy(),
        first_G.cpu().numpy(),
        tuple(text_of(backbone, row, done=True) for row in written),
    )


def _members(groups: Sequence[Group], firsts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the batch rows [G, R] of each group and their scores; −∞ where it has fewer."""
    longest = max(len(group.branches) for group in groups)
    rows_GR = torch.zeros(len(groups), longest, dtype=torch.long)
    scores_GR = torch.full((len(groups), longest), -torch.inf)
    for g, (start, stop) in enumerate(pairwise(firsts)):
        rows_GR[g, : stop - start] = torch.arange(start, stop)
        scores_GR[g, : stop - start] = torch.tensor([*groups[g].scores])
    return rows_GR, scores_GR
