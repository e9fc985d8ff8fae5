"""The text model's attention: stock SDPA, with the question rows recomputed in float32.

Registered with transformers under :data:`NAME`. The options of a pass travel with the call,
as the keyword ``steered`` of ``model(...)``: nothing is global and nothing is patched.
Without the keyword, or in a layer where it has no effect, this is stock SDPA.

SDPA gives neither logits to transform nor probabilities to show, and an additive mask
cannot express |Ã|. The question rows are few, so only they are recomputed: edited before
the mask (after it, finfo.min + |finfo.min| = 0 would reveal the future), put back where
they were edited, and reduced at once to what is shown.

It does not know what a report is worth, nor how the model was loaded.
Shape suffixes: B batch row, H head, G query heads per key head, Q trailing query row,
X key column, S span name, D head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mrrag.errors import SettingsError
from mrrag.model.prompt import Prompt
from mrrag.model.steering import (
    DEFAULT_ROWS,
    TRANSFORMS,
    Block,
    Edit,
    align,
    below_mean,
    block,
    make_edit,
    question_rows,
)
from mrrag.types import AttentionTrace, Steering

NAME = "mrrag"


@dataclass(frozen=True)
class Probe:
    """Record, layer by layer, where the question rows look."""

    spans_BXS: Tensor
    mass_BHS: list[Tensor] = field(default_factory=list)
    keys_BX: list[Tensor] = field(default_factory=list)

    def record(self, weights_BHQX: Tensor, question_BQ: Tensor) -> None:
        """Reduce one layer's probabilities, without synchronising with the device."""
        share_BQ = question_BQ / question_BQ.sum(-1, keepdim=True)
        mean_BHX = torch.einsum("bhqx,bq->bhx", weights_BHQX, share_BQ)
        self.mass_BHS.append(mean_BHX @ self.spans_BXS.to(mean_BHX.device))
        self.keys_BX.append(mean_BHX.mean(1))


@dataclass(frozen=True)
class SteeredPass:
    """What one forward pass does to its question rows, and what it records of them.

    Attributes
    ----------
    question_BQ : bool [B, Q]
        Which of the last Q query rows the probe looks at: those of the question.
    edits : tuple of Edit
        The transforms of the logits, in order.
    probe : Probe or None
        Records the attention of the question rows.
    acts : bool
        Where False, the probe sees the edits and the pass does not: the effect that they
        would have on the plain run's own states.
    shifts : mapping
        By layer, what is added to the heads' outputs in the last row: float32 [B, H, D].
    outputs : list or None
        Where given, every layer appends its heads' outputs in the last row: [B, H, D].
    changed : int
        How many of the last rows the edits change, of which alone probabilities are then computed;
        0 for all of the Q.
    """

    question_BQ: Tensor
    edits: tuple[Edit, ...] = ()
    probe: Probe | None = None
    acts: bool = True
    shifts: Mapping[int, Tensor] = field(default_factory=dict)
    outputs: list[Tensor] | None = None
    changed: int = 0


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    steered: SteeredPass | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of one layer, with the signature that transformers calls.

    Parameters
    ----------
    query, key, value
        [B, H, queries, D], [B, heads of keys, X, D] twice; rotary positions applied.
    attention_mask
        Bool [B, 1, queries, X], True where a query may look, or None for plain causality. For
        one query, if it is not steered, it may also hold numbers, which are added to the logits.

    Returns
    -------
    (Tensor [B, queries, H, D], None)
    """
    if query.shape[2] == 1 and not kwargs.get("dropout"):
        output = one_row(query, key, value, attention_mask, scaling)
    else:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    if steered is None:
        return output, None
    layer: Any = module.layer_idx
    edits = [edit for edit in steered.edits if layer in edit.layers]
    if edits or steered.probe is not None:
        _recompute(output, query, key, value, attention_mask, scaling, steered, edits)
    if layer in steered.shifts:
        output[:, -1] += steered.shifts[layer].to(output)
    if steered.outputs is not None:
        steered.outputs.append(output[:, -1].clone())
    return output, None


def _recompute(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    steered: SteeredPass,
    edits: Sequence[Edit],
) -> None:
    """Compute the question rows again with their edits, and put them into the output."""
    rows = steered.question_BQ.shape[1]
    logits_BHQX = row_logits(query[:, :, -rows:], key, scaling)
    # A layer may live on another device than the one the pass began on.
    device = query.device
    touched = []
    for edit in edits:
        logits_BHQX, touched_BHQ = edit.apply(logits_BHQX)
        touched.append(touched_BHQ)
    if steered.changed and steered.probe is None:
        rows = steered.changed
        logits_BHQX = logits_BHQX[:, :, -rows:]
        touched = [touched_BHQ[..., -rows:] for touched_BHQ in touched]
    weights_BHQX = masked_softmax(logits_BHQX, attention_mask)
    if touched and steered.acts:
        touched_BQH1 = reduce(torch.logical_or, touched).transpose(1, 2)[..., None]
        edited_BQHD = row_values(weights_BHQX, value).to(output.dtype)
        output[:, -rows:] = torch.where(touched_BQH1, edited_BQHD, output[:, -rows:])
    if steered.probe is not None:
        steered.probe.record(weights_BHQX, steered.question_BQ.to(device))


def one_row(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float
) -> Tensor:
    """Return stock SDPA for one token of decoding; [B, 1, H, D].

    The query heads of a key head become its rows. Otherwise keys and values are copied once
    per query head at each step, which takes longer than the attention itself.
    """
    B, H, _, D = query.shape
    folded = query.reshape(B, key.shape[1], -1, D)
    output = nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=attention_mask, scale=scaling
    )
    return output.reshape(B, 1, H, D)


def row_logits(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Return float32 logits [B, H, Q, X]; query heads are folded into their key head's rows."""
    B, H, Q, D = query.shape
    folded = query.float().reshape(B, key.shape[1], -1, D)
    return (folded @ key.float().mT * scaling).view(B, H, Q, -1)


def masked_softmax(logits_BHQX: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return probabilities of the last Q rows, exactly zero on the future and the padding."""
    Q, X = logits_BHQX.shape[-2:]
    if attention_mask is None:
        # The last Q of X positions: row q may look at keys up to X - Q + q.
        allowed = logits_BHQX.new_ones(Q, X, dtype=torch.bool).tril(X - Q)
    else:
        allowed = attention_mask[:, :, -Q:]
    # The smallest number, not -inf: a row of padding sees nothing, and must not become NaN.
    return logits_BHQX.masked_fill(~allowed, torch.finfo(torch.float32).min).softmax(-1)


def row_values(weights_BHQX: Tensor, value: Tensor) -> Tensor:
    """Return weighted values [B, Q, H, D] in float32, folded as in :func:`row_logits`."""
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
    steering: Steering,
    *,
    strengths: Sequence[float] = (),
    blocked: Block | None = None,
    trace: bool = False,
    acts: bool = True,
    device: torch.device | str = "cpu",
) -> SteeredPass | None:
    """Plan a pass over a batch of prompts, each with its own λ, spans and padding.

    Parameters
    ----------
    relevance
        For each prompt, λ of each of its reports before the strength; empty for plain.
    mask_BX
        True where a key column of the batch holds a token. Every row ends at the last column.
    strengths
        Each prompt's own, in place of the steering's.
    blocked
        Reports whose flow to the question is cut, beside what ``steering`` hides.
    trace
        Whether to record, in every layer, where the question rows look.
    acts
        Whether the edits change the pass, or only what is recorded.

    Returns
    -------
    SteeredPass or None
        None where the pass is stock attention throughout.

    Raises
    ------
    SettingsError
        Where the form or the rows are unknown, or λ times strength is negative or not finite.
    """
    if steering.form not in TRANSFORMS:
        raise SettingsError(
            f"There is no steering called {steering.form!r}. Choose one of: "
            f"{', '.join(TRANSFORMS)}."
        )
    rows = steering.rows or DEFAULT_ROWS
    Q = max(len(p.ids) - p.span("question").start for p in prompts)

    def rows_BQ(name: str) -> Tensor:
        return align([question_rows(p, name) for p in prompts], mask_BX)[:, -Q:]

    question_BQ = rows_BQ(rows)
    strengths = strengths or [steering.strength] * len(prompts)
    amounts = [
        [strength * lam for lam in row] for strength, row in zip(strengths, relevance, strict=True)
    ]
    edits = [
        make_edit(
            TRANSFORMS[steering.form], prompts, amounts, question_BQ, mask_BX, steering.layers
        )
    ]
    hidden = Block(steering.masked, [below_mean(row) for row in relevance], DEFAULT_ROWS)
    for cut in (hidden, blocked):
        if cut is not None and cut.layers:
            cut_off = [
                [float(not cut.reports or k in cut.reports[b]) for k in _numbers(prompt)]
                for b, prompt in enumerate(prompts)
            ]
            cut_BQ = rows_BQ(cut.rows or rows)
            edits.append(make_edit(block, prompts, cut_off, cut_BQ, mask_BX, cut.layers))
    moved = tuple(edit.to(device) for edit in edits if edit)
    probe = Probe(_span_columns(prompts, mask_BX).to(device)) if trace else None
    if not moved and probe is None:
        return None
    return SteeredPass(question_BQ.to(device), moved, probe, acts)


def watch(
    steered: SteeredPass, prompts: Sequence[Prompt], mask_BX: Tensor, rows: Sequence[Tensor]
) -> SteeredPass:
    """Return the same pass with a probe on some of its rows: bool [tokens] for each prompt."""
    device, Q = steered.question_BQ.device, steered.question_BQ.shape[1]
    rows_BQ = align(rows, mask_BX)[:, -Q:].to(device)
    probe = Probe(_span_columns(prompts, mask_BX).to(device))
    return replace(steered, question_BQ=rows_BQ, probe=probe)


def traces(
    steered: SteeredPass,
    prompts: Sequence[Prompt],
    mask_BX: Tensor,
    *,
    padded: bool = True,
) -> tuple[AttentionTrace, ...]:
    """Return what a probed pass recorded: a trace per prompt, without padding, on the CPU.

    ``padded`` is that of the model's family, for :class:`~mrrag.types.AttentionTrace`.
    """
    if steered.probe is None:
        raise ValueError("This pass was not probed.")
    mass_BLHS = _stacked(steered.probe.mass_BHS)
    keys_BLX = _stacked(steered.probe.keys_BX)
    result = []
    for b, prompt in enumerate(prompts):
        names = span_names(prompt)
        layers = {i for e in steered.edits if e.lam_BQX[b].any() for i in e.layers}
        result.append(
            AttentionTrace(
                spans=prompt.spans,
                names=names,
                mass_LHS=mass_BLHS[b, :, :, : len(names)].numpy().copy(),
                keys_LX=keys_BLX[b][:, mask_BX[b]].numpy(),
                grid=prompt.grid or (0, 0),
                padded=padded,
                layers=tuple(sorted(layers)),
            )
        )
    return tuple(result)


def _stacked(layers: Sequence[Tensor]) -> Tensor:
    """Return one tensor [B, L, ...] on the CPU, wherever the layers live."""
    first = layers[0].device
    return torch.stack([layer.to(first) for layer in layers], 1).cpu()


def span_names(prompt: Prompt) -> tuple[str, ...]:
    """Return the distinct span names of a prompt, in the order of :class:`AttentionTrace`."""
    present = {span.name for span in prompt.spans}
    reports = (span.name for span in prompt.reports)
    ordered = ("image", "first question", *reports, "question", "cue", "other")
    return tuple(name for name in ordered if name in present)


def _numbers(prompt: Prompt) -> range:
    return range(1, len(prompt.reports) + 1)


def _span_columns(prompts: Sequence[Prompt], mask_BX: Tensor) -> Tensor:
    """Return one-hot float32 [B, X, S]: the span name of each key column."""
    indices = []
    for prompt in prompts:
        names = span_names(prompt)
        index = torch.zeros(len(prompt.ids), dtype=torch.long)
        for span in prompt.spans:
            index[span.start : span.stop] = names.index(span.name)
        indices.append(index)
    return torch.nn.functional.one_hot(align(indices, mask_BX)).float()
