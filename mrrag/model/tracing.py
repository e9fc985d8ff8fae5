"""Where a prompt's last tokens look under a way of answering, beside plain attention.

Both are recorded in one pass over the same prompt, in the tokens where the way acts.

It does not know which methods there are, nor what a report is worth.
Shape suffixes: B batch row, X key column.
"""

from __future__ import annotations

import torch

from mrrag.model.answering import check_layers, heads_of
from mrrag.model.attention import plan_pass, traces, watch
from mrrag.model.backbone import Backbone, embed
from mrrag.model.emphasis import LOOKING, plan_emphasis
from mrrag.model.prefill import Branch, PrefixCache, layout, read_batch, run_batch
from mrrag.model.steering import DEFAULT_ROWS, ROWS, question_rows
from mrrag.types import AttentionTrace, Rival, Steering


@torch.inference_mode()
def trace_pair(
    backbone: Backbone, branch: Branch, way: Steering | Rival, known: PrefixCache | None = None
) -> tuple[AttentionTrace, AttentionTrace] | None:
    """Trace the attention of one prompt, plain and as a way of answering changes it.

    Parameters
    ----------
    way
        A steering, or a rival's changes of attention; its mixture is left out.
    known
        What was read of the image and its reports before; it stays as it is.

    Returns
    -------
    (AttentionTrace, AttentionTrace) or None
        Before and after; None where the way changes no attention in this prompt.
    """
    prompts = [branch.prompt] * 2
    mask_BX = layout(prompts)
    if isinstance(way, Steering):
        check_layers(backbone, way)
        rows = way.rows or DEFAULT_ROWS
        steered = plan_pass(prompts, [(), branch.relevance], mask_BX, way, device=backbone.device)
    else:
        rows = "last" if {e.rows for e in way.emphases} == {"last"} else DEFAULT_ROWS
        steered = plan_emphasis(
            prompts,
            [branch.relevance] * 2,
            mask_BX,
            way.emphases,
            backbone.layers,
            heads_of(backbone),
            plain=(0,),
            device=backbone.device,
        )
    if steered is None:
        return None
    look = [question_rows(p, rows) if rows in ROWS else LOOKING[rows](p) for p in prompts]
    steered = watch(steered, prompts, mask_BX, look)
    cache = read_batch(backbone, [branch] * 2, known)
    suffix = branch.suffix(embed(backbone, branch.prompt, branch.features))
    run_batch(backbone, [suffix] * 2, cache, mask_BX, steered)
    before, after = traces(steered, prompts, mask_BX, padded=backbone.family.padded)
    return before, after
