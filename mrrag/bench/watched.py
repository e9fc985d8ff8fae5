"""A steered pass of the model, compared layer by layer with IFA's equations in float64.

The pass runs on the model's device. The reference is computed on the CPU, densely, from the
queries, keys and values that the layer's attention was called with. Which row is steered by
how much is worked out entry by entry. Only the definitions of forms and rows are shared with
what is tested.

Shape suffixes: B batch row, H head, Q trailing query row, X key column, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mrrag.model.attention import SteeredPass, attention, plan_pass
from mrrag.model.backbone import Backbone, embed
from mrrag.model.prefill import Branch, layout, run_batch
from mrrag.model.steering import DEFAULT_ROWS, ROWS
from mrrag.types import Steering

WATCHED = "mrrag-watched"


@dataclass(frozen=True)
class Watched(SteeredPass):
    """A steered pass whose rows are compared with a reference, layer by layer.

    Attributes
    ----------
    attend : callable
        The attention that the model had.
    form : str
        A key of :data:`REFERENCES`.
    lam_BQX, allowed_BQX, compared_BQ : Tensor
        λ times strength (float64), which keys a row may see, and which rows are compared.
    errors, effects : list of float
        One entry a layer, as a share of the largest value of the reference: its distance from
        the rows computed here, and from the rows without steering.
    """

    attend: Callable[..., tuple[Tensor, Any]] = attention
    form: str = "ifa"
    lam_BQX: Tensor = field(default_factory=lambda: torch.zeros(0))
    allowed_BQX: Tensor = field(default_factory=lambda: torch.zeros(0))
    compared_BQ: Tensor = field(default_factory=lambda: torch.zeros(0))
    errors: list[float] = field(default_factory=list)
    effects: list[float] = field(default_factory=list)


def compare(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any
) -> tuple[Tensor, Any]:
    """Call the model's attention and compare its rows; the signature is transformers'."""
    watch = given.get("steered")
    if not isinstance(watch, Watched):  # the call was not told of the pass
        return attention(module, query, key, value, mask, **given)
    result: tuple[Tensor, Any] = watch.attend(module, query, key, value, mask, **given)
    rows = watch.compared_BQ.shape[1]
    query, key, value = (t.detach().cpu().double() for t in (query[:, :, -rows:], key, value))
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    logits = torch.einsum("bhqd,bhxd->bhqx", query, key) * given["scaling"]
    hidden = ~watch.allowed_BQX[:, None]
    plain = logits.masked_fill(hidden, -torch.inf).softmax(-1)
    steered = REFERENCES[watch.form](logits, plain, watch.lam_BQX[:, None], hidden)
    found, expected, unsteered = (
        rows_BQHD[watch.compared_BQ]
        for rows_BQHD in (
            result[0][:, -rows:].detach().cpu().double(),
            *(torch.einsum("bhqx,bhxd->bqhd", weights, value) for weights in (steered, plain)),
        )
    )
    largest = float(expected.abs().max())
    watch.errors.append(float((found - expected).abs().max()) / largest)
    watch.effects.append(float((unsteered - expected).abs().max()) / largest)
    return result


AttentionInterface.register(WATCHED, compare)
AttentionMaskInterface.register(WATCHED, sdpa_mask)


def _ifa(logits: Tensor, _plain: Tensor, lam: Tensor, hidden: Tensor) -> Tensor:
    """Ã' = Ã + λ·|Ã| before the softmax (MR-RAG, IFA)."""
    raised = logits + lam.nan_to_num() * logits.abs()
    return raised.masked_fill(hidden, -torch.inf).softmax(-1)


def _balanced(_logits: Tensor, plain: Tensor, lam: Tensor, _hidden: Tensor) -> Tensor:
    """Share what the reports had among them by e^λ times what each had (our form)."""
    on_reports = plain.where(~lam.isnan(), 0)
    raised = on_reports * lam.nan_to_num().exp()
    shared = raised * (on_reports.sum(-1, keepdim=True) / raised.sum(-1, keepdim=True))
    return plain.where(lam.isnan(), shared)


# Each form by its equation: logits, probabilities without steering, λ and hidden keys → weights.
REFERENCES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "ifa": _ifa,
    "balanced": _balanced,
}


@torch.inference_mode()
def watch(
    backbone: Backbone, branches: Sequence[Branch], cache: DynamicCache, steering: Steering
) -> Watched:
    """Read the suffixes of branches, steered, and compare their question rows in every layer.

    Parameters
    ----------
    cache
        The prefixes, from :func:`mrrag.model.prefill.prefill_batch`; it grows.
    steering
        Its form is a key of :data:`REFERENCES`.
    """
    prompts = [branch.prompt for branch in branches]
    relevance = [branch.relevance for branch in branches]
    mask_BX = layout(prompts)
    plan = plan_pass(prompts, relevance, mask_BX, steering, device=backbone.device)
    if plan is None:
        raise ValueError("A pass with relevance has no plan.")
    lam_BQX, compared_BQ = _lambda_by_definition(branches, steering, mask_BX)
    Q, X = lam_BQX.shape[1:]
    causal_QX = torch.ones(Q, X, dtype=torch.bool).tril(X - Q)
    watched_pass = Watched(
        question_BQ=plan.question_BQ,
        edits=plan.edits,
        attend=ALL_ATTENTION_FUNCTIONS[backbone.model.config.text_config._attn_implementation],
        form=steering.form,
        lam_BQX=lam_BQX,
        allowed_BQX=causal_QX & mask_BX[:, None],
        compared_BQ=compared_BQ,
    )
    suffixes = [b.suffix(embed(backbone, b.prompt, b.features)) for b in branches]
    with _attention_named(backbone, WATCHED):
        run_batch(backbone, suffixes, cache, mask_BX, watched_pass)
    return watched_pass


@contextmanager
def _attention_named(backbone: Backbone, name: str) -> Iterator[None]:
    model = backbone.model
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": name})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": before})


def _lambda_by_definition(
    branches: Sequence[Branch], steering: Steering, mask_BX: Tensor
) -> tuple[Tensor, Tensor]:
    """Return λ times strength, float64 [B, Q, X], and the rows compared, bool [B, Q].

    λ is that of report k where row i is of the question and column j of report k, 0 in the
    reports' columns of other rows, and NaN in every other column. Entry by entry, so that it
    shares no step with :func:`mrrag.model.steering.make_edit`.
    """
    B, X = mask_BX.shape
    Q = max(len(b.prompt.ids) - b.prompt.suffix_start for b in branches)
    lam_BQX = torch.full((B, Q, X), torch.nan, dtype=torch.float64)
    compared_BQ = torch.zeros(B, Q, dtype=torch.bool)
    for b, branch in enumerate(branches):
        column_of_token = mask_BX[b].nonzero().flatten().tolist()
        relevance = branch.relevance or (0.0,) * len(branch.prompt.reports)
        rows = [
            column_of_token[token] - (X - Q)
            for span in branch.prompt.spans
            if span.name in ROWS[steering.rows or DEFAULT_ROWS]
            for token in range(span.start, span.stop)
        ]
        for span, amount in zip(branch.prompt.reports, relevance, strict=True):
            for token in range(span.start, span.stop):
                lam_BQX[b, :, column_of_token[token]] = 0
                lam_BQX[b, rows, column_of_token[token]] = steering.strength * amount
        compared_BQ[b, rows] = True
    return lam_BQX, compared_BQ
