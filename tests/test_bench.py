"""The three ways are measured on the same work; the figures' values are not tested."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published import by_hand

from mrrag import bench as module
from mrrag.backbone import Backbone
from mrrag.bench import (
    WAYS,
    Bench,
    Case,
    bench,
    bench_text,
    load_case,
    naive,
    ours,
    plain,
    random_backbone,
    step_bytes,
)
from mrrag.prompt import build_prompt
from mrrag.types import Image

ASSETS = Path(__file__).resolve().parent.parent / "assets"


@pytest.fixture(scope="module")
def case(tiny_llava: Backbone) -> Case:
    image = Image(torch.randint(0, 255, (40, 30), dtype=torch.uint8).numpy())
    kind = {
        "image_token_id": tiny_llava.image_token_id,
        "image_tokens": tiny_llava.image_tokens,
        "max_report_tokens": 20,
    }
    prompts = [
        build_prompt(tiny_llava.tokenizer, module.QUESTION, [module.REPORT] * k, **kind)
        for k in (0, 3)
    ]
    return Case(replace(tiny_llava, eos_ids=()), image, prompts[0], prompts[1], 5)


def test_every_way_writes_as_many_tokens_and_leaves_the_attention_as_it_was(case: Case) -> None:
    for way in (naive, plain, ours):
        run = way(case)
        assert len(run.ticks) == 5
        assert list(run.ticks) == sorted(run.ticks)
        assert case.backbone.model.config.text_config._attn_implementation == "mrrag"


def test_our_trace_is_a_sliver_of_the_whole_attention(case: Case) -> None:
    assert 0 < ours(case).trace_bytes < naive(case).trace_bytes / 10
    assert plain(case).trace_bytes == 0


def test_a_step_reads_the_text_weights_once_and_each_row_s_cache(case: Case) -> None:
    text = case.backbone.model.model.language_model
    weights = sum(p.nbytes for p in text.layers.parameters())
    weights += case.backbone.model.lm_head.weight.nbytes
    row = 3 * 2 * 2 * 12 * 4 * (len(case.rag.ids) + 2)  # layers, K and V, heads, width, bytes
    assert step_bytes(case, 1) == weights + row
    assert step_bytes(case, 3) == weights + 3 * row


def test_random_weights_answer_in_the_type_asked_for() -> None:
    backbone = random_backbone(by_hand().config, ASSETS / "llava", torch.bfloat16, "cpu", "tiny")
    assert backbone.model.dtype == torch.bfloat16
    assert backbone.image_tokens == 16
    assert backbone.name == "tiny, random weights"


def test_the_7b_shape_is_the_published_one() -> None:
    from published import FULL_SIZE

    assert all(FULL_SIZE[name] == value for name, value in module.SHAPES["7b"].items())


def test_reports_are_of_the_length_that_is_said() -> None:
    case = load_case(Bench(ASSETS, reports=3))
    assert [span.stop - span.start for span in case.rag.reports] == [module.REPORT_TOKENS] * 3


@pytest.mark.timeout(900)  # three processes that each import torch
def test_the_result_is_json_with_all_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COPIED_BYTES", 2**20)
    result = json.loads(json.dumps(bench(Bench(ASSETS, reports=2, new_tokens=3, repeats=1))))
    for way in WAYS:
        row = result[way]
        assert min(row["seconds"], row["tokens_per_second"], row["roofline"]) > 0
        assert row["peak_bytes"] > 50e6
        assert 0 < row["first_token_seconds"] < row["seconds"]
    assert result["ours"]["answers"] == 3
    table = bench_text(result)
    assert all(f"\n{way}" in table for way in WAYS)
    assert "x plain" in table
