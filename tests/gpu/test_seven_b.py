"""On a GPU, a model of LLaVA-Med's size keeps the properties that the small tests prove.

The weights are random: what is tested is shapes, dtypes, streams and graphs, not answers.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llava import picture

from mrrag.bench.answers import REPORT
from mrrag.bench.random_weights import SHAPES, random_backbone
from mrrag.model.answering import Asked, Step, answer_batch, answer_branches, answer_questions
from mrrag.model.attention import SteeredPass, attention
from mrrag.model.backbone import Backbone, encode_images
from mrrag.model.checkpoint import published_config
from mrrag.model.prefill import Branch
from mrrag.model.steering import Edit, ifa
from mrrag.types import PLAIN, Steering

ASSETS = Path(__file__).resolve().parents[2] / "assets"
NEEDED = 20 * 2**30

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < NEEDED,
        reason="needs a GPU with 20 GB free",
    ),
    # torch warns that float32 products could be less exact.
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def seven_b() -> Iterator[Backbone]:
    torch.manual_seed(0)
    config = published_config("7b", SHAPES["7b"])
    backbone = random_backbone(config, ASSETS / "llava", torch.bfloat16, "auto", "7b")
    yield replace(backbone, eos_ids=())
    del backbone
    gc.collect()
    torch.cuda.empty_cache()


def branches_of(backbone: Backbone, seed: int, reports: int = 8) -> list[Branch]:
    features = encode_images(backbone, [picture(seed, (336, 336))])
    question = f"Is there a pleural effusion on film {seed}?"
    off, rag = (backbone.prompt(question, [REPORT] * k) for k in (0, reports))
    lam = tuple(np.linspace(1.0, 0.0, reports).tolist())
    return [Branch(off, features), Branch(rag, features), Branch(rag, features, lam)]


def answer(backbone: Backbone, branches: Sequence[Branch], strength: float = 1.0) -> Step:
    steering = Steering(strength, tuple(range(backbone.layers)), "question+cue")
    return list(answer_branches(backbone, branches, steering, max_new_tokens=12))[-1]


def test_a_captured_step_writes_what_an_uncaptured_one_writes(seven_b: Backbone) -> None:
    branches = branches_of(seven_b, 0)
    assert seven_b.capture
    captured = answer(seven_b, branches)
    assert captured.tokens == (12, 12, 12)
    assert captured.texts == answer(replace(seven_b, capture=False), branches).texts


def test_two_visitors_at_once_get_what_each_gets_alone(seven_b: Backbone) -> None:
    cases = [branches_of(seven_b, seed) for seed in (1, 2)]
    alone = [answer(seven_b, branches).texts for branches in cases]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(4):
            together = list(pool.map(lambda branches: answer(seven_b, branches).texts, cases))
            assert together == alone


def test_visitors_who_are_joined_get_what_each_gets_alone(seven_b: Backbone) -> None:
    """In bfloat16 another batch sums in another order, so words may part where two are close."""
    strengths = {5: 1.0, 6: 0.0, 7: 0.5}
    cases = {n: branches_of(seven_b, n, reports=n) for n in strengths}
    steering = Steering(1.0, tuple(range(seven_b.layers)), "question+cue")
    asked = [Asked(cases[n], strength) for n, strength in strengths.items()]
    *_, together = answer_questions(seven_b, asked, steering, max_new_tokens=12)
    for (n, strength), step in zip(strengths.items(), together, strict=True):
        alone = answer(seven_b, cases[n], strength)
        assert step.tokens == alone.tokens
        np.testing.assert_allclose(step.p_yes, alone.p_yes, rtol=0.15, atol=1e-6)
        for ours, theirs in zip(step.traces, alone.traces, strict=True):
            np.testing.assert_allclose(ours.mass_LHS, theirs.mass_LHS, atol=0.05)


def test_no_strength_is_plain_rag(seven_b: Backbone) -> None:
    step = answer(seven_b, branches_of(seven_b, 3), strength=0.0)
    assert step.texts[1] == step.texts[2]
    assert step.p_yes[1] == step.p_yes[2]


def test_a_batch_gives_what_single_prompts_give(seven_b: Backbone) -> None:
    branches = branches_of(seven_b, 4)
    steering = Steering(1.0, tuple(range(seven_b.layers)), "question+cue")
    batch = answer_batch(seven_b, branches, steering)
    for n, branch in enumerate(branches):
        single = answer_batch(seven_b, [branch], steering)
        # bfloat16 has eight bits, and another batch size sums in another order.
        np.testing.assert_allclose(batch.p_yes[n], single.p_yes[0], rtol=0.15, atol=1e-6)


def test_memory_is_flat_over_fifty_cases(seven_b: Backbone) -> None:
    def run(seed: int) -> int:
        answer_batch(seven_b, branches_of(seven_b, seed, reports=2), PLAIN, max_new_tokens=3)
        return torch.cuda.memory_allocated()

    first = [run(seed) for seed in range(5)][-1]
    assert [run(seed) for seed in range(45)][-1] <= first + 2**20


def test_steered_rows_equal_a_dense_float64_reference() -> None:
    """The shapes of one layer of a 7B model: 32 heads, 8 key heads, width 128."""
    torch.manual_seed(0)
    queries, keys = 24, 1600
    query, key, value = (
        torch.randn(1, heads, length, 128, device="cuda", dtype=torch.bfloat16)
        for heads, length in ((32, queries), (8, keys), (8, keys))
    )
    reports = torch.zeros(1, 1, queries, keys, dtype=torch.bool, device="cuda")
    reports[..., 600:1500] = True
    lam = reports * torch.rand(1, 1, 1, keys, device="cuda")
    question = torch.ones(1, queries, dtype=torch.bool, device="cuda")
    steered = SteeredPass(question, (Edit(ifa, lam, reports, frozenset([0])),))
    module = torch.nn.Module()
    module.layer_idx, module.num_key_value_groups, module.is_causal = 0, 4, True
    mask = torch.ones(queries, keys, dtype=torch.bool, device="cuda").tril(keys - queries)
    output, _ = attention(
        module, query, key, value, mask[None, None], scaling=128**-0.5, steered=steered
    )
    q, k, v = query.double(), key.double(), value.double()
    k, v = k.repeat_interleave(4, 1), v.repeat_interleave(4, 1)
    logits = q @ k.mT * 128**-0.5
    logits = logits + lam.double() * logits.abs()
    expected = logits.masked_fill(~mask, -torch.inf).softmax(-1) @ v
    # One rounding to bfloat16 at the end, and none before it.
    error = (output.double() - expected.transpose(1, 2)).abs()
    assert error.max() <= expected.abs().max() * 2**-8
