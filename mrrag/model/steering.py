"""IFA and its kin: transforms of attention logits before the softmax, and where they act.

A transform takes the logits, λ (zero or more, broadcast onto them) and the mask of the
places where question rows meet report columns. In a causal decoder that is the only place
where Reports→Question exists, so λ is zero everywhere else. Where λ is zero throughout, a
transform changes nothing. IFA's rivals act elsewhere, too: :mod:`mrrag.model.emphasis`.

This module knows prompts and tensors. It does not know models, layers or caches.
Shape suffixes: B batch row, H head, Q question row, X key column.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mrrag.errors import SettingsError
from mrrag.model.prompt import Prompt

Transform = Callable[[Tensor, Tensor, Tensor], Tensor]


def ifa(logits: Tensor, lam: Tensor, _reports: Tensor) -> Tensor:
    """Apply importance-aware information flow augmentation: Ã' = Ã + λ·|Ã| (MR-RAG, IFA).

    No logit is lowered. What is not a report loses attention in the softmax alone, which
    normalises.
    """
    return logits + lam * logits.abs()


def balanced(logits: Tensor, lam: Tensor, reports: Tensor) -> Tensor:
    """Use relevance as a prior over the reports: Ã' = Ã + λ − c, Σ exp Ã' = Σ exp Ã (ours).

    The sums run over a row's report columns, and c is one number per row. After the
    softmax, report k has a share of the attention on reports that is proportional to e^λ_k
    times its share before. The attention on all reports together, and its distribution
    over the words of one report, stay as they were.
    """
    raised = logits + lam
    change = _total(raised, reports) - _total(logits, reports)
    return torch.where(reports, raised - change, logits)


def _total(logits: Tensor, reports: Tensor) -> Tensor:
    """Return ln Σ exp over each row's report columns."""
    least = torch.finfo(logits.dtype).min
    return logits.masked_fill(~reports, least).logsumexp(-1, keepdim=True)


def block(logits: Tensor, lam: Tensor, _reports: Tensor) -> Tensor:
    """Block attention wherever λ > 0 (MR-RAG, choice of the critical layers)."""
    return logits.masked_fill(lam > 0, -torch.inf)


# By the names of mrrag.forms.FORMS.
TRANSFORMS: dict[str, Transform] = {"ifa": ifa, "balanced": balanced}


def below_mean(relevance: Sequence[float]) -> tuple[int, ...]:
    """Return the numbers, from 1, of the reports whose λ is below their mean."""
    mean = sum(relevance) / max(1, len(relevance))
    return tuple(k for k, lam in enumerate(relevance, start=1) if lam < mean)


# The spans that count as the question. The answer is read at the end of the cue.
ROWS: dict[str, tuple[str, ...]] = {
    "question": ("question",),
    "question+cue": ("question", "cue"),
}
# Every token that can carry a report's content to the answer.
DEFAULT_ROWS = "question+cue"


@dataclass(frozen=True)
class Block:
    """Reports to cut off from the question, and the layers in which to cut them off.

    Attributes
    ----------
    layers : collection of int
        Counted from 0.
    reports : sequence of collections of int
        For each prompt of the batch, the reports to block, counted from 1 as in the
        span names. Empty means every report of every prompt.
    rows : str or None
        The tokens that are cut off, a key of :data:`ROWS`; None means those of the pass.
    """

    layers: Collection[int]
    reports: Sequence[Collection[int]] = ()
    rows: str | None = None


@dataclass(frozen=True)
class Edit:
    """One transform in some layers, with λ for every question row and key of a batch.

    Attributes
    ----------
    lam_BQX : float32 [B, 1, Q, X]
        The amount: λ times the strength. The Q rows are the last of the pass.
    region_BQX : bool [B, 1, Q, X]
        The third argument of the transform; for IFA, where question rows meet report columns.
    heads : tuple of int
        The heads in which it acts; empty for all.
    """

    transform: Transform
    lam_BQX: Tensor
    region_BQX: Tensor
    layers: frozenset[int]
    heads: tuple[int, ...] = ()

    def to(self, device: torch.device | str) -> Edit:
        """Return the same edit on a device."""
        return replace(self, lam_BQX=self.lam_BQX.to(device), region_BQX=self.region_BQX.to(device))

    def apply(self, logits_BHQX: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformed logits, and which rows it acts on: bool [B, 1 or H, Q]."""
        moved = self.to(logits_BHQX.device)  # no copy where they are on one device
        lam = moved.lam_BQX
        if self.heads:
            chosen_H = torch.zeros(logits_BHQX.shape[1], device=lam.device)
            chosen_H[list(self.heads)] = 1
            lam = lam * chosen_H[:, None, None]
        return self.transform(logits_BHQX, lam, moved.region_BQX), (lam != 0).any(-1)


def align(values: Sequence[Tensor], mask_BX: Tensor) -> Tensor:
    """Move per-token values of several prompts onto the columns of their padded batch.

    The n-th attended column of a row is its prompt's n-th token, wherever the padding is.

    Parameters
    ----------
    values
        One tensor [tokens] per row, all of one dtype.
    mask_BX
        True where a column holds a token.

    Returns
    -------
    Tensor [B, X]
        Zero on the padding.
    """
    flat = torch.cat(list(values))
    return torch.zeros(mask_BX.shape, dtype=flat.dtype).masked_scatter(mask_BX, flat)


def question_rows(prompt: Prompt, rows: str) -> Tensor:
    """Mark the prompt tokens that count as the question; bool [tokens].

    Raises
    ------
    SettingsError
        Where ``rows`` is not a key of :data:`ROWS`.
    """
    if rows not in ROWS:
        raise SettingsError(
            f"Question rows can be {' or '.join(map(repr, ROWS))}, not {rows!r}. "
            "Choose one of them."
        )
    is_question = torch.zeros(len(prompt.ids), dtype=torch.bool)
    for span in prompt.spans:
        if span.name in ROWS[rows]:
            is_question[span.start : span.stop] = True
    return is_question


def report_keys(prompt: Prompt, amounts: Sequence[float]) -> Tensor:
    """Spread one amount per report over its tokens; float32 [tokens], zero elsewhere."""
    if amounts and len(amounts) != len(prompt.reports):
        raise ValueError(f"{len(amounts)} amounts for {len(prompt.reports)} reports.")
    spread = torch.zeros(len(prompt.ids))
    for span, amount in zip(prompt.reports, amounts, strict=False):
        spread[span.start : span.stop] = amount
    return spread


def make_edit(
    transform: Transform,
    prompts: Sequence[Prompt],
    amounts: Sequence[Sequence[float]],
    question_BQ: Tensor,
    mask_BX: Tensor,
    layers: Collection[int],
) -> Edit | None:
    """Expand one λ per report onto question rows × report columns.

    Parameters
    ----------
    amounts
        For each prompt, λ times strength of each of its reports; empty for none.
    question_BQ
        True for the question rows among the last Q rows of the pass.
    mask_BX
        True where a column of the batch holds a token.
    layers
        Where the transform acts.

    Returns
    -------
    Edit or None
        None where there is nothing to do, so that nothing is computed for it.

    Raises
    ------
    SettingsError
        Where an amount is negative or not finite.
    """
    lam_BX = align([report_keys(p, a) for p, a in zip(prompts, amounts, strict=True)], mask_BX)
    if not (torch.isfinite(lam_BX) & (lam_BX >= 0)).all():
        raise SettingsError(
            "Relevance times strength must be zero or more, and finite. Check the strength."
        )
    if not layers or not lam_BX.any():
        return None
    ones = [report_keys(p, [1.0] * len(p.reports)) for p in prompts]
    reports_BX = align(ones, mask_BX).bool()

    def meet(columns_BX: Tensor) -> Tensor:
        return (question_BQ[:, :, None] * columns_BX[:, None, :])[:, None]

    return Edit(transform, meet(lam_BX), meet(reports_BX), frozenset(layers))
