"""Transforms of pre-softmax attention logits, and where in a prompt they act.

A transform takes logits, a non-negative λ that broadcasts onto them, and where question
rows meet report columns, the one place where Reports→Question exists in a causal decoder;
λ is zero everywhere else. Where all of λ is zero a transform changes nothing.

This module knows prompts and tensors; it does not know models, layers' code or caches.
Shape suffixes: B batch row, H head, Q question row, X key column.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrrag.errors import SettingsError
from mrrag.model.prompt import Prompt

Transform = Callable[[Tensor, Tensor, Tensor], Tensor]


def ifa(logits: Tensor, lam: Tensor, _reports: Tensor) -> Tensor:
    """Importance-aware information flow augmentation: Ã' = Ã + λ·|Ã| (MR-RAG, section IFA).

    No logit is ever lowered: what is not a report loses in the softmax, by normalisation.
    """
    return logits + lam * logits.abs()


def balanced(logits: Tensor, lam: Tensor, reports: Tensor) -> Tensor:
    """Relevance as a prior over the reports: Ã' = Ã + λ − c, with Σ exp Ã' = Σ exp Ã (ours).

    λ is the strength times the difference of fused scores, in tenths of cosine
    (:func:`mrrag.retrieval.mcr.lambdas`). The sums are over a row's report columns. After the
    softmax a report's share of what is read from reports is multiplied by e^λ and divided by
    the same for all; how much is read from reports together, and how that is shared among a
    report's words, stay as they were.
    """
    raised = logits + lam
    change = _total(raised, reports) - _total(logits, reports)
    return torch.where(reports, raised - change, logits)


def _total(logits: Tensor, reports: Tensor) -> Tensor:
    """ln Σ exp over each row's report columns."""
    least = torch.finfo(logits.dtype).min
    return logits.masked_fill(~reports, least).logsumexp(-1, keepdim=True)


def block(logits: Tensor, lam: Tensor, _reports: Tensor) -> Tensor:
    """Attention blocking: no flow at all where λ > 0 (MR-RAG, choice of critical layers)."""
    return logits.masked_fill(lam > 0, -torch.inf)


# By what relevance steers: as in the paper, or as a prior.
FORMS: dict[str, Transform] = {"ifa": ifa, "balanced": balanced}
TRANSFORMS: dict[str, Transform] = {**FORMS, "block": block}

# Which spans count as the question. The answer is read at the end of the cue.
ROWS: dict[str, tuple[str, ...]] = {
    "question": ("question",),
    "question+cue": ("question", "cue"),
}


@dataclass(frozen=True)
class Block:
    """Reports to cut off from the question, and the layers in which to do so.

    Attributes
    ----------
    layers : collection of int
        Counted from 0.
    reports : sequence of collections of int
        For each prompt of the batch, the reports to block, counted from 1 as in the
        span names. Empty means every report of every prompt.
    rows : str or None
        Which tokens are cut off, a key of :data:`ROWS`; None means those of the pass.
    """

    layers: Collection[int]
    reports: Sequence[Collection[int]] = ()
    rows: str | None = None


@dataclass(frozen=True)
class Edit:
    """One transform in some layers: λ for every question row and key of a batch.

    ``lam_BQX`` is float32 and ``reports_BQX`` bool, where question rows meet report columns;
    both [B, 1, Q, X]. The Q rows are the last of the pass.
    """

    transform: Transform
    lam_BQX: Tensor
    reports_BQX: Tensor
    layers: frozenset[int]

    def to(self, device: torch.device | str) -> Edit:
        """The same on a device."""
        lam, reports = self.lam_BQX.to(device), self.reports_BQX.to(device)
        return Edit(self.transform, lam, reports, self.layers)

    def apply(self, logits_BHQX: Tensor) -> Tensor:
        """The logits, transformed."""
        moved = self.to(logits_BHQX.device)  # no copy where they are on one device
        return self.transform(logits_BHQX, moved.lam_BQX, moved.reports_BQX)


def align(values: Sequence[Tensor], mask_BX: Tensor) -> Tensor:
    """Per-token values of several prompts, moved onto the columns of their padded batch.

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
    """True for the prompt tokens that count as the question; bool [tokens].

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
    """One amount per report, spread over its tokens; float32 [tokens], else zero."""
    if amounts and len(amounts) != len(prompt.reports):
        raise ValueError(f"{len(amounts)} amounts for {len(prompt.reports)} reports.")
    spread = torch.zeros(len(prompt.ids))
    for span, amount in zip(prompt.reports, amounts, strict=False):
        spread[span.start : span.stop] = amount
    return spread


def make_edit(
    transform: str,
    prompts: Sequence[Prompt],
    amounts: Sequence[Sequence[float]],
    question_BQ: Tensor,
    mask_BX: Tensor,
    layers: Collection[int],
) -> Edit | None:
    """Expand one λ per report onto question rows × report columns.

    Parameters
    ----------
    transform
        A key of :data:`TRANSFORMS`.
    amounts
        For each prompt, λ of each of its reports; empty for none.
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
        Where the transform is not known or an amount is negative or not finite.
    """
    if transform not in TRANSFORMS:
        raise SettingsError(
            f"There is no steering called {transform!r}. Choose one of: {', '.join(TRANSFORMS)}."
        )
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

    return Edit(TRANSFORMS[transform], meet(lam_BX), meet(reports_BX), frozenset(layers))
