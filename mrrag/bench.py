"""Side by side on one machine: three answers and the full trace, and what they cost.

naive
    What one would write first: three ``generate()`` calls under eager attention, with
    ``output_attentions``.
plain
    One ``generate()`` under SDPA: one answer, no trace. The floor.
ours
    Three answers, streamed, and the trace.

The same prompts and the same number of new tokens; ends of answers are not heeded, so
that each way writes as many.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mrrag.backbone import (
    Backbone,
    Branch,
    answer_branches,
    encode_image,
    load_backbone,
    pixel_values,
)
from mrrag.prompt import Prompt, build_prompt
from mrrag.types import Image

REPORT = (
    "The cardiac silhouette is mildly enlarged. There is a small right pleural effusion. "
    "No pneumothorax. Left sided pacemaker with leads in the heart. Mild pulmonary edema."
)
QUESTION = "Is there a pleural effusion?"


def bench(
    assets: Path, *, reports: int = 15, new_tokens: int = 64, repeats: int = 5
) -> dict[str, Any]:
    """Measure the three ways; seconds are medians over ``repeats`` after one warm-up each."""
    backbone = load_backbone(assets / "llava")
    rng = np.random.default_rng(0)
    image = Image(rng.integers(0, 255, (512, 512), dtype=np.uint8))
    kind = {"image_token_id": backbone.image_token_id, "image_tokens": backbone.image_tokens}
    off = build_prompt(backbone.tokenizer, QUESTION, [], **kind)
    rag = build_prompt(backbone.tokenizer, QUESTION, [REPORT] * reports, **kind)
    ways: dict[str, Callable[[], int]] = {
        "naive": lambda: _naive(backbone, image, (off, rag, rag), new_tokens),
        "plain": lambda: _plain(backbone, image, rag, new_tokens),
        "ours": lambda: _ours(backbone, image, off, rag, reports, new_tokens),
    }
    result: dict[str, Any] = {
        "device": f"cpu, {torch.get_num_threads()} threads",
        "model": backbone.name,
        "reports": reports,
        "prompt_tokens": len(rag.ids),
        "new_tokens": new_tokens,
        "repeats": repeats,
    }
    for name, way in ways.items():
        way()
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            trace_bytes = way()
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds)
        streams = 1 if name == "plain" else 3
        result[name] = {
            "seconds": median,
            "tokens_per_second": streams * new_tokens / median,
            "trace_bytes": trace_bytes,
        }
    return result


def _generate(
    backbone: Backbone, image: Image, prompt: Prompt, new_tokens: int, attentions: bool
) -> Any:
    ids = torch.tensor([prompt.ids])
    return backbone.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixel_values(backbone, [image]),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        output_attentions=attentions,
        return_dict_in_generate=True,
    )


def _with_attention(backbone: Backbone, name: str, run: Callable[[], int]) -> int:
    before = backbone.model.config.text_config._attn_implementation
    backbone.model.set_attn_implementation({"text_config": name})
    try:
        return run()
    finally:
        backbone.model.set_attn_implementation({"text_config": before})


def _naive(backbone: Backbone, image: Image, prompts: tuple[Prompt, ...], new_tokens: int) -> int:
    def run() -> int:
        held = 0
        for prompt in prompts:
            out = _generate(backbone, image, prompt, new_tokens, attentions=True)
            held += sum(a.nbytes for step in out.attentions for a in step)
        return held

    return _with_attention(backbone, "eager", run)


def _plain(backbone: Backbone, image: Image, prompt: Prompt, new_tokens: int) -> int:
    def run() -> int:
        _generate(backbone, image, prompt, new_tokens, attentions=False)
        return 0

    return _with_attention(backbone, "sdpa", run)


def _ours(
    backbone: Backbone, image: Image, off: Prompt, rag: Prompt, reports: int, new_tokens: int
) -> int:
    relevance = tuple(np.linspace(1.0, 0.0, reports).tolist())
    branches = (Branch("rag_off", off), Branch("rag", rag), Branch("mr_rag", rag, relevance))
    *_, last = answer_branches(
        replace(backbone, eos_ids=()),
        encode_image(backbone, image),
        branches,
        strength=1.0,
        layers=range(backbone.layers),
        max_new_tokens=new_tokens,
    )
    assert last.tokens == (new_tokens,) * 3
    return sum(t.mass_LHS.nbytes + t.keys_LX.nbytes for t in last.traces)


def bench_text(result: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = [
        f"{result['model']}, {result['device']}: {result['reports']} reports, "
        f"{result['prompt_tokens']} prompt tokens, {result['new_tokens']} new tokens, "
        f"median of {result['repeats']}",
        f"{'':8s}{'answers':>8s}{'seconds':>10s}{'tokens/s':>10s}{'trace':>12s}",
    ]
    for name, answers in (("naive", 3), ("plain", 1), ("ours", 3)):
        row = result[name]
        lines.append(
            f"{name:8s}{answers:8d}{row['seconds']:10.3f}{row['tokens_per_second']:10.0f}"
            f"{row['trace_bytes'] / 2**20:9.2f} MB"
        )
    ours = result["ours"]["seconds"]
    lines.append(
        f"ours is {ours / result['plain']['seconds']:.2f} x plain and "
        f"{ours / result['naive']['seconds']:.2f} x naive"
    )
    return "\n".join(lines)
