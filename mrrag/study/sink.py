"""Whether a model has an attention sink, and what the logits on reports are like.

In large models most heads rest on the first token, and the logits on words are negative. IFA,
Ã + λ·|Ã|, then lifts all words of a relevant report towards zero. Where logits are as often
positive as negative, it doubles some words and lifts others. So what the paper's form does
depends on these figures, and they can be had for any checkpoint.

Shape suffixes: B batch row, H head, Q question row, X key column, S column group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrrag.model.attention import Probe, SteeredPass
from mrrag.model.backbone import Backbone, embed
from mrrag.model.prefill import Branch, layout, prefill_batch, run_batch
from mrrag.model.steering import DEFAULT_ROWS, align, make_edit, question_rows, report_keys
from mrrag.pipeline import Pipeline
from mrrag.study.evaluation import BATCH, EncodedItem, Ticker, branch_of, evidence_for, no_ticker


@dataclass(frozen=True)
class LayerFlow:
    """What the question's rows look at in one layer under plain RAG.

    Attributes
    ----------
    first, first_most : float
        Attention on the first token: the mean over heads, and of the head with most.
    reports : float
        Attention on all reports, mean over heads.
    logit, logit_sd, positive : float
        Logits on report columns before the softmax: mean, standard deviation, and the share
        above zero.
    first_logit : float
        The mean logit on the first token.
    """

    layer: int
    first: float
    first_most: float
    reports: float
    logit: float
    logit_sd: float
    positive: float
    first_logit: float


def measure_sink(
    pipeline: Pipeline, items: Sequence[EncodedItem], k: int, *, ticker: Ticker = no_ticker
) -> tuple[LayerFlow, ...]:
    """Return the figures of every layer, averaged over the questions with ``k`` reports."""
    parts, sizes = [], []
    chunks = [items[i : i + BATCH] for i in range(0, len(items), BATCH)]
    for chunk in ticker(chunks, len(chunks), "attention"):
        weights = pipeline.learnt.weights
        branches = [
            branch_of(
                pipeline,
                item,
                [r.document.report for r in evidence_for(pipeline, item, weights, k)],
            )
            for item in chunk
        ]
        parts.append(_measure(pipeline.backbone, branches))
        sizes.append(len(chunk))
    mean_LF = np.average(parts, axis=0, weights=sizes)
    return tuple(LayerFlow(layer, *row) for layer, row in enumerate(mean_LF.tolist()))


@torch.inference_mode()
def _measure(backbone: Backbone, branches: Sequence[Branch]) -> np.ndarray[Any, Any]:
    """Return the figures of one batch, in the order of :class:`LayerFlow`; [layers, 7]."""
    prompts = [branch.prompt for branch in branches]
    mask_BX = layout(prompts)
    Q = max(len(p.ids) - p.span("question").start for p in prompts)
    question_BQ = align([question_rows(p, DEFAULT_ROWS) for p in prompts], mask_BX)[:, -Q:]
    first_BX = torch.zeros(mask_BX.shape)
    first_BX[torch.arange(len(prompts)), mask_BX.int().argmax(1)] = 1
    ones = [[1.0] * len(prompt.reports) for prompt in prompts]
    keys = [report_keys(p, amounts) for p, amounts in zip(prompts, ones, strict=True)]
    reports_BX = align(keys, mask_BX)
    probe = Probe(torch.stack([first_BX, reports_BX], -1).to(backbone.device))
    found: list[list[float]] = []

    def record(logits_BHQX: Tensor, _lam: Tensor, region_BQX: Tensor) -> Tensor:
        seen = logits_BHQX[region_BQX.expand_as(logits_BHQX)]
        to_first = first_BX.to(logits_BHQX.device)[:, None, None]
        rows = question_BQ.to(logits_BHQX.device)[:, None]
        first_BHQ = (logits_BHQX * to_first).sum(-1)
        first = first_BHQ[rows.expand_as(first_BHQ)]
        figures = (seen.mean(), seen.std(), (seen > 0).float().mean(), first.mean())
        found.append([float(figure) for figure in figures])
        return logits_BHQX

    every = range(backbone.layers)
    edit = make_edit(record, prompts, ones, question_BQ, mask_BX, every)
    if edit is None:
        raise ValueError("There is nothing to measure without a report.")
    device = backbone.device
    steered = SteeredPass(question_BQ.to(device), (edit.to(device),), probe, acts=False)
    suffixes = [b.suffix(embed(backbone, b.prompt, b.features)) for b in branches]
    run_batch(backbone, suffixes, prefill_batch(backbone, branches), mask_BX, steered)
    mass_LHS = torch.stack([mass.mean(0).cpu() for mass in probe.mass_BHS]).float().numpy()
    first, reports = mass_LHS[..., 0], mass_LHS[..., 1]
    return np.column_stack([first.mean(1), first.max(1), reports.mean(1), np.array(found)])


def sink_text(flows: Sequence[LayerFlow], questions: int, k: int) -> str:
    """Return the figures as a table."""
    lines = [
        f"Plain RAG, {questions} questions, {k} reports; rows of question and cue",
        "layer  first token  of one head  reports   logit     sd  above 0  first's logit",
    ]
    lines += [
        f"{flow.layer:5d}{flow.first:13.3f}{flow.first_most:13.3f}{flow.reports:9.3f}"
        f"{flow.logit:8.2f}{flow.logit_sd:7.2f}{flow.positive:9.0%}{flow.first_logit:15.2f}"
        for flow in flows
    ]
    return "\n".join(lines)


def sink_json(flows: Sequence[LayerFlow], questions: int, k: int) -> dict[str, Any]:
    """Return the figures for ``--json``."""
    return {"questions": questions, "k": k, "layers": [asdict(flow) for flow in flows]}
