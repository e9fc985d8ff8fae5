"""The text model's attention: stock SDPA, and the question rows once more by hand.

Registered with transformers under :data:`NAME`. What a pass shall do travels with the
call, as the keyword ``steering`` of ``model(...)``; nothing is global and nothing is
patched. Without it, or in a layer where it has nothing to do, this is stock SDPA.

SDPA gives neither logits to transform nor probabilities to show, and an additive mask
cannot express |Ã|. The question rows are few, so they alone are recomputed in float32:
edited before the mask (afterwards, finfo.min + |finfo.min| = 0 would show the future),
put back where edited, and reduced at once to what is shown.

It does not know what a report is worth, nor how the model was loaded.
Shape suffixes: B batch row, H head, G query heads per key head, Q trailing query row,
X key column, S span name, D head width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mrrag.model.prompt import Prompt
from mrrag.model.steering import Block, Edit, align, make_edit, question_rows
from mrrag.types import AttentionTrace

NAME = "mrrag"


@dataclass(frozen=True)
class Probe:
    """Collects, layer by layer, where the question rows looked."""

    spans_BXS: Tensor
    mass_BHS: list[Tensor] = field(default_factory=list)
    keys_BX: list[Tensor] = field(default_factory=list)

    def record(self, weights_BHQX: Tensor, question_BQ: Tensor) -> None:
        """Reduce one layer's probabilities; no synchronisation with the device."""
        share_BQ = question_BQ / question_BQ.sum(-1, keepdim=True)
        mean_BHX = torch.einsum("bhqx,bq->bhx", weights_BHQX, share_BQ)
        self.mass_BHS.append(mean_BHX @ self.spans_BXS.to(mean_BHX.device))
        self.keys_BX.append(mean_BHX.mean(1))


@dataclass(frozen=True)
class SteeredPass:
    """What one forward pass does to its question rows, and what it notes about them.

    ``question_BQ`` marks the question rows among the last Q query rows of the pass. Where
    ``acts`` is False the probe sees the edits and the pass does not: what they would do
    to the plain run's own states.
    """

    question_BQ: Tensor
    edits: tuple[Edit, ...] = ()
    probe: Probe | None = None
    acts: bool = True


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    steering: SteeredPass | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, in the form that transformers calls.

    Parameters
    ----------
    query, key, value
        [B, H, queries, D], [B, heads of keys, X, D] twice; rotary positions applied.
    attention_mask
        Bool [B, 1, queries, X], True where a query may look, or None for plain causality. For
        one query it may also be of numbers, to be added to the logits.

    Returns
    -------
    (Tensor [B, queries, H, D], None)
    """
    if steering is None and query.shape[2] == 1 and not kwargs.get("dropout"):
        return one_row(query, key, value, attention_mask, scaling), None
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )
    if steering is None:
        return output, None
    layer = module.layer_idx
    edits = [edit for edit in steering.edits if layer in edit.layers]
    if not edits and steering.probe is None:
        return output, None

    rows = steering.question_BQ.shape[1]
    logits_BHQX = row_logits(query[:, :, -rows:], key, scaling)
    # A layer may live on another device than the one the pass began on.
    device = query.device
    for edit in edits:
        logits_BHQX = edit.apply(logits_BHQX)
    weights_BHQX = masked_softmax(logits_BHQX, attention_mask)
    if edits and steering.acts:
        lam_BQ = torch.stack([edit.lam_BQX.amax((1, 3)) for edit in edits]).amax(0).to(device)
        edited_BQHD = row_values(weights_BHQX, value).to(output.dtype)
        output[:, -rows:] = torch.where(
            (lam_BQ > 0)[:, :, None, None], edited_BQHD, output[:, -rows:]
        )
    if steering.probe is not None:
        steering.probe.record(weights_BHQX, steering.question_BQ.to(device))
    return output, None


def one_row(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float
) -> Tensor:
    """Stock SDPA of a token being decoded; [B, 1, H, D].

    The query heads of a key head are its rows, so that keys and values are not copied once
    per query head at every step, which takes longer than attending to them does.
    """
    B, H, _, D = query.shape
    folded = query.reshape(B, key.shape[1], -1, D)
    output = nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=attention_mask, scale=scaling
    )
    return output.reshape(B, 1, H, D)


def row_logits(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Float32 logits [B, H, Q, X]; the query heads of a key head are folded into its rows."""
    B, H, Q, D = query.shape
    folded = query.float().reshape(B, key.shape[1], -1, D)
    return (folded @ key.float().mT * scaling).view(B, H, Q, -1)


def masked_softmax(logits_BHQX: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Probabilities of the last Q rows, with the future and the padding at exactly zero."""
    Q, X = logits_BHQX.shape[-2:]
    if attention_mask is None:
        # The last Q of X positions: row q may look at keys up to X - Q + q.
        allowed = logits_BHQX.new_ones(Q, X, dtype=torch.bool).tril(X - Q)
    else:
        allowed = attention_mask[:, :, -Q:]
    # The smallest number, not -inf: a row of padding sees nothing, and must not become NaN.
    return logits_BHQX.masked_fill(~allowed, torch.finfo(torch.float32).min).softmax(-1)


def row_values(weights_BHQX: Tensor, value: Tensor) -> Tensor:
    """Weighted values [B, Q, H, D] in float32, folded as in :func:`row_logits`."""
    B, H, Q, X = weights_BHQX.shape
    folded = weights_BHQX.reshape(B, value.shape[1], -1, X) @ value.float()
    return folded.view(B, H, Q, -1).transpose(1, 2)


AttentionInterface.register(NAME, attention)
# Without a mask of its own, a suffix on a cache would silently see its future.
AttentionMaskInterface.register(NAME, sdpa_mask)


def plan_pass(
    prompts: Sequence[Prompt],
    relevance: Sequence[Sequence[float]],
    mask_BX: Tensor,
    *,
    strength: float,
    layers: Collection[int],
    rows: str,
    transform: str = "ifa",
    blocked: Block | None = None,
    trace: bool = False,
    acts: bool = True,
    device: torch.device | str = "cpu",
) -> SteeredPass | None:
    """Plan a pass over a batch of prompts, each with its own λ, spans and padding.

    Parameters
    ----------
    relevance
        For each prompt, λ of each of its reports before ``strength``; empty for plain.
    mask_BX
        True where a key column of the batch holds a token; every row ends at the last.
    blocked
        Reports whose flow to the question is cut.
    trace
        Whether to note where the question rows look, in every layer.
    acts
        Whether the edits change the pass, or only what is noted.

    Returns
    -------
    Steering or None
        None where the pass is stock attention throughout.
    """
    Q = max(len(p.ids) - p.span("question").start for p in prompts)
    question_BQ = align([question_rows(p, rows) for p in prompts], mask_BX)[:, -Q:]
    edits = [
        make_edit(
            transform,
            prompts,
            [[strength * r for r in row] for row in relevance],
            question_BQ,
            mask_BX,
            layers,
        )
    ]
    if blocked is not None:
        amounts = [
            [float(not blocked.reports or k in blocked.reports[b]) for k in _numbers(prompt)]
            for b, prompt in enumerate(prompts)
        ]
        blocked_BQ = align([question_rows(p, blocked.rows or rows) for p in prompts], mask_BX)
        edits.append(
            make_edit("block", prompts, amounts, blocked_BQ[:, -Q:], mask_BX, blocked.layers)
        )
    moved = tuple(edit.to(device) for edit in edits if edit)
    probe = Probe(_span_columns(prompts, mask_BX).to(device)) if trace else None
    if not moved and probe is None:
        return None
    return SteeredPass(question_BQ.to(device), moved, probe, acts)


def traces(
    steering: SteeredPass,
    prompts: Sequence[Prompt],
    mask_BX: Tensor,
    grid: tuple[int, int],
) -> tuple[AttentionTrace, ...]:
    """What a probed pass saw, one trace per prompt, free of padding and on the CPU."""
    if steering.probe is None:
        raise ValueError("This pass was not probed.")
    mass_BLHS = _stacked(steering.probe.mass_BHS)
    keys_BLX = _stacked(steering.probe.keys_BX)
    result = []
    for b, prompt in enumerate(prompts):
        names = span_names(prompt)
        steered = {i for e in steering.edits if e.lam_BQX[b].any() for i in e.layers}
        result.append(
            AttentionTrace(
                spans=prompt.spans,
                names=names,
                mass_LHS=mass_BLHS[b, :, :, : len(names)].numpy().copy(),
                keys_LX=keys_BLX[b][:, mask_BX[b]].numpy(),
                grid=grid,
                layers=tuple(sorted(steered)),
            )
        )
    return tuple(result)


def _stacked(layers: Sequence[Tensor]) -> Tensor:
    """One tensor [B, L, ...] on the CPU, wherever the layers live; one copy a device."""
    first = layers[0].device
    return torch.stack([layer.to(first) for layer in layers], 1).cpu()


def span_names(prompt: Prompt) -> tuple[str, ...]:
    """The distinct span names of a prompt, in the order of :class:`AttentionTrace`."""
    present = {span.name for span in prompt.spans}
    ordered = ("image", *(s.name for s in prompt.reports), "question", "cue", "other")
    return tuple(name for name in ordered if name in present)


def _numbers(prompt: Prompt) -> range:
    return range(1, len(prompt.reports) + 1)


def _span_columns(prompts: Sequence[Prompt], mask_BX: Tensor) -> Tensor:
    """One-hot float32 [B, X, S]: the span name that each key column belongs to."""
    indices = []
    for prompt in prompts:
        names = span_names(prompt)
        index = torch.zeros(len(prompt.ids), dtype=torch.long)
        for span in prompt.spans:
            index[span.start : span.stop] = names.index(span.name)
        indices.append(index)
    return torch.nn.functional.one_hot(align(indices, mask_BX)).float()
