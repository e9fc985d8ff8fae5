"""Each check passes where all is well, and fails where what it is about is broken."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mrrag.bench import self_test as module
from mrrag.bench.self_test import (
    Written,
    batch_and_single,
    memory,
    one_case,
    same_tokens,
    self_test,
    steered_rows,
    written,
)
from mrrag.bench.watched import REFERENCES
from mrrag.forms import FORMS
from mrrag.loading import load_pipeline
from mrrag.model import decoding
from mrrag.model.attention import attention
from mrrag.model.backbone import Backbone, load_backbone
from mrrag.model.decoding import token_step
from mrrag.pipeline import Pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline()


@pytest.fixture
def broken(tiny_llava_folder: Path) -> Backbone:
    """A model of one's own to break."""
    return load_backbone(tiny_llava_folder)


def test_all_checks_pass_on_a_cpu_or_do_not_apply(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "memory", lambda run, device: memory(run, device, cases=20))
    found = {check.name: check for check in self_test(pipeline)}
    assert {name: check.passed for name, check in found.items()} == {
        "steered rows": True,
        "captured step": None,
        "batch and single": True,
        "memory": True,
    }
    assert found["captured step"].detail == "Not on a CPU."


def test_both_forms_of_ifa_have_a_reference() -> None:
    assert {"ifa", "balanced"} <= set(REFERENCES) <= set(FORMS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_passes_in_every_type(tiny_llava_folder: Path, dtype: torch.dtype) -> None:
    backbone = load_backbone(tiny_llava_folder, dtype=dtype)
    for check in (steered_rows(backbone), batch_and_single(backbone)):
        assert check.passed, check


def test_the_attention_is_put_back(broken: Backbone) -> None:
    steered_rows(broken)
    assert broken.model.config.text_config._attn_implementation == "mrrag"


# What may be broken in an attention


def deaf(*args: Any, steered: Any = None, **given: Any) -> Any:
    """Attention that ignores the edit."""
    return attention(*args, **given)


def halved(*args: Any, steered: Any = None, **given: Any) -> Any:
    """Attention that edits by half of λ."""
    if steered is not None and steered.edits:
        edits = tuple(replace(edit, lam_BQX=edit.lam_BQX / 2) for edit in steered.edits)
        steered = replace(steered, edits=edits)
    return attention(*args, steered=steered, **given)


def lazy(module: Any, *args: Any, steered: Any = None, **given: Any) -> Any:
    """Attention that ignores the edit in the last layer alone."""
    return attention(module, *args, steered=steered if module.layer_idx < 2 else None, **given)


def spoilt(*args: Any, steered: Any = None, **given: Any) -> Any:
    """Attention that gives NaN in the first layer's last row."""
    output, weights = attention(*args, steered=steered, **given)
    if args[0].layer_idx == 0:
        output[:, -1] = torch.nan
    return output, weights


@pytest.mark.parametrize("breaking", [deaf, halved, lazy, spoilt])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_not_steered_as_they_should_be_are_noticed(
    tiny_llava_folder: Path, breaking: Any, dtype: torch.dtype
) -> None:
    backbone = load_backbone(tiny_llava_folder, dtype=dtype)
    AttentionInterface.register(breaking.__name__, breaking)
    AttentionMaskInterface.register(breaking.__name__, sdpa_mask)
    backbone.model.set_attn_implementation({"text_config": breaking.__name__})
    check = steered_rows(backbone)
    assert check.passed is False
    assert "largest error" in check.detail


def test_an_attention_that_is_not_told_of_the_pass_is_noticed(
    broken: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = broken.model.forward
    monkeypatch.setattr(broken.model, "forward", lambda *, steered=None, **more: forward(**more))
    check = steered_rows(broken)
    assert (check.passed, check.detail) == (
        False,
        "The attention that steers was called in 0 of 3 layers.",
    )


def test_steering_without_effect_tests_nothing(
    broken: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRENGTH", 1e-6)
    check = steered_rows(broken)
    assert check.passed is False
    assert "nothing to test" in check.detail


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_that_sees_its_padding_is_noticed(
    tiny_llava_folder: Path, dtype: torch.dtype
) -> None:
    backbone = load_backbone(tiny_llava_folder, dtype=dtype)

    def blind(*args: Any, **given: Any) -> Any:
        if given["attention_mask"] is not None:
            given["attention_mask"] = torch.ones_like(given["attention_mask"]).bool()
        return sdpa_mask(*args, **given)

    AttentionInterface.register("blind", attention)
    AttentionMaskInterface.register("blind", blind)
    backbone.model.set_attn_implementation({"text_config": "blind"})
    assert batch_and_single(backbone).passed is False


def test_a_captured_step_must_be_captured_and_write_the_same() -> None:
    one, other = ((1, 2), (3, 4)), ((1, 2), (3, 5))
    assert same_tokens(Written(one, True), Written(one, False)).passed
    differs = same_tokens(Written(other, True), Written(one, False))
    assert (differs.passed, differs.detail) == (False, "1 of 4 tokens differ.")
    assert same_tokens(Written(one, False), Written(one, False)).passed is False


def test_a_step_that_says_that_it_is_not_captured_is_heard(
    tiny_llava: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    capturing = replace(tiny_llava, capture=True)  # which a CPU does not heed, nor say so
    before = written(capturing)
    assert before.captured

    def refusing(*args: Any) -> Any:
        step = token_step(*args)

        def run() -> None:
            decoding.logger.warning("Decoding without a CUDA graph, so slower: no.")
            step()

        return run

    monkeypatch.setattr(module, "token_step", refusing)
    assert written(capturing) == Written(before.ids, captured=False)
    assert not decoding.logger.handlers


def test_memory_that_cases_keep_is_noticed() -> None:
    kept = []
    leaking = memory(lambda n: kept.append(bytes([n + 1]) * 2**22), CPU, cases=30)
    assert leaking.passed is False
    assert leaking.measured is not None
    assert leaking.measured > 40 * 2**20
    assert memory(lambda n: None, CPU, cases=30).passed


def test_a_machine_too_slow_for_the_cases_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Iterator[float] = itertools.count(0.0, 10.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    slow = memory(lambda n: None, CPU)
    assert (slow.passed, slow.detail) == (None, "Too slow to be tested: 5 cases in 60 s.")


def test_a_case_is_answered_and_not_declined(pipeline: Pipeline) -> None:
    one_case(pipeline, 0)
    assert pipeline.scope is not None
    nothing = replace(pipeline, scope=replace(pipeline.scope, terms=()))
    with pytest.raises(ValueError, match="no answer"):
        one_case(nothing, 0)


def test_a_check_that_breaks_down_is_a_failed_check(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broke(*_: Any) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(module, "run_batch", broke)
    monkeypatch.setattr(module, "memory", broke)
    found = {check.name: check for check in self_test(pipeline)}
    assert found["batch and single"].passed is False
    assert found["memory"].detail == "It ended with RuntimeError: no kernel image is available"
    assert found["steered rows"].passed
