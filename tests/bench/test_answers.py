"""The four ways are measured on the same work; the figures' values are not tested."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published import by_hand
from torch.utils._python_dispatch import TorchDispatchMode

from mrrag.bench import answers as module
from mrrag.bench.answers import (
    WAYS,
    Bench,
    BenchInputs,
    batched,
    bench,
    bench_text,
    load_inputs,
    naive,
    ours,
    peak_bytes,
    peak_in_own_process,
    plain,
    step_bytes,
)
from mrrag.bench.random_weights import SHAPES, random_backbone
from mrrag.errors import ModelError, SettingsError
from mrrag.model.attention import plan_pass
from mrrag.model.backbone import Backbone, embed
from mrrag.model.checkpoint import published_config
from mrrag.model.decoding import token_step
from mrrag.model.prefill import Branch, layout, read_prefixes, run_batch, stack
from mrrag.types import Image, Steering

ASSETS = Path(__file__).resolve().parents[2] / "assets"


@pytest.fixture(scope="module")
def case(tiny_llava: Backbone) -> BenchInputs:
    image = Image(torch.randint(0, 255, (40, 30), dtype=torch.uint8).numpy())
    prompts = [
        tiny_llava.prompt(module.QUESTION, [module.REPORT] * k, max_report_tokens=20)
        for k in (0, 3)
    ]
    return BenchInputs(replace(tiny_llava, eos_ids=()), image, prompts[0], prompts[1], 5)


def test_every_way_writes_as_many_tokens_and_leaves_the_attention_as_it_was(
    case: BenchInputs,
) -> None:
    for way in (naive, plain, batched, ours):
        run = way(case)
        assert len(run.ticks) == 5
        assert list(run.ticks) == sorted(run.ticks)
        assert case.backbone.model.config.text_config._attn_implementation == "mrrag"


def test_our_trace_is_a_sliver_of_the_whole_attention(case: BenchInputs) -> None:
    assert 0 < ours(case).trace_bytes < naive(case).trace_bytes / 10
    assert plain(case).trace_bytes == 0


def test_a_step_reads_the_text_weights_once_and_each_row_s_cache(case: BenchInputs) -> None:
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


def test_random_weights_that_do_not_fit_are_refused_before_they_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mrrag.bench.random_weights.room", lambda device: 12 * 10**9)
    with pytest.raises(ModelError, match=r"7b takes 15\.1 GB of memory and 12\.0 GB are free"):
        load_inputs(Bench(ASSETS, random_weights="7b"))


def test_random_weights_of_a_checkpoint_are_refused() -> None:
    with pytest.raises(SettingsError, match="leave out --random-weights"):
        load_inputs(Bench(ASSETS, random_weights="7b", quantize="int4"))


def test_the_7b_shape_is_the_published_one() -> None:
    from published import FULL_SIZE

    assert all(FULL_SIZE[name] == value for name, value in SHAPES["7b"].items())


class Crossings(TorchDispatchMode):
    """Notes every operation between the meta device and another."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in (*args, out) if isinstance(t, torch.Tensor)}
        if len(devices) > 1:
            self.found.append(str(func))
        return out


@torch.inference_mode()
def test_the_7b_is_read_and_written_without_a_look_at_a_value() -> None:
    """Tensors on the meta device have shapes alone, so whatever would wait for a GPU fails.

    A step that waits for the device, or takes anything to it, cannot be captured as a graph.
    """
    config = published_config("7b", SHAPES["7b"])
    backbone = random_backbone(config, ASSETS / "llava", torch.bfloat16, "meta", "7b")
    pixels = torch.empty(1, 3, 336, 336, dtype=torch.bfloat16, device="meta")
    seen = backbone.model.get_image_features(pixel_values=pixels, return_dict=True)
    features = torch.stack(tuple(seen.pooler_output))
    prompts = [
        backbone.prompt(module.QUESTION, [module.REPORT] * reports) for reports in (0, 15, 15)
    ]
    branches = [Branch(prompt, features) for prompt in prompts]
    embeds = [embed(backbone, prompt, features) for prompt in prompts]
    prefixes = read_prefixes(backbone, branches, embeds)
    cache = stack([prefix.cache for prefix in prefixes])
    mask = layout(prompts)
    steered = plan_pass(
        prompts,
        [(), (), tuple(k / 14 for k in range(15))],
        mask,
        Steering(1.0, tuple(range(32)), "question+cue"),
        trace=True,
        device=backbone.device,
    )
    suffixes = [b.suffix(rows) for b, rows in zip(branches, embeds, strict=True)]
    logits = run_batch(backbone, suffixes, cache, mask, steered)
    assert logits.shape == (3, 32000)
    assert steered is not None
    assert steered.probe is not None
    assert len(steered.probe.mass_BHS) == 32
    step = token_step(backbone, cache, mask, logits.argmax(-1, keepdim=True), room=2)
    for _ in range(2):
        with Crossings() as crossings:
            step()
        assert not crossings.found


def test_reports_are_of_the_length_that_is_said() -> None:
    case = load_inputs(Bench(ASSETS, reports=3))
    assert [span.stop - span.start for span in case.rag.reports] == [module.REPORT_TOKENS] * 3


def test_the_result_is_json_with_all_four_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = module.peak_in_own_process
    # Each is measured in a process that imports torch anew; one shows as much as four.
    peaks = dict.fromkeys(WAYS, 10**9) | {"ours": measure(Bench(ASSETS, reports=2), "ours")}
    monkeypatch.setattr(module, "peak_in_own_process", lambda _, way: peaks[way])
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


def test_a_peak_is_the_process_s_own() -> None:
    held = np.ones(2**30, np.uint8)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert 2**26 < pool.submit(peak_bytes).result() < held.nbytes
    assert peak_bytes() > held.nbytes


def die(*_: object) -> None:
    os._exit(1)


def test_a_peak_that_kills_its_process_costs_no_other_figure(
    case: BenchInputs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_peak", die)
    with caplog.at_level(logging.WARNING):
        killed = peak_in_own_process(Bench(ASSETS), "naive")
    assert killed is None
    assert caplog.messages == ["The peak of naive is unknown: its process was killed."]
    monkeypatch.setattr(module, "peak_in_own_process", lambda *_: killed)
    monkeypatch.setattr(module, "load_inputs", lambda _: case)
    result = bench(Bench(ASSETS, repeats=1))
    assert result["ours"]["peak_bytes"] is None
    assert result["ours"]["seconds"] > 0
    assert bench_text(result).splitlines()[3].split()[-4] == "?"
    assert "memory" not in bench_text(result)
