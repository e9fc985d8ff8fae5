"""Four checks of a loaded model on the device at hand, each against a second way to compute.

steered rows
    What IFA writes in each layer, against its equations in float64 on the CPU.
captured step
    The tokens of a decoding step that is captured as a CUDA graph, against an uncaptured one.
batch and single
    Three branches answered as one batch, against the same branches one by one.
memory
    What is held after many cases, against what was held after a few.

Shape suffixes: B batch row, X key column, V vocabulary, T generated token.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from logging.handlers import BufferingHandler

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import DynamicCache

from mrrag.bench.watched import REFERENCES, watch
from mrrag.case import Case, Settings
from mrrag.evidence import find_evidence
from mrrag.model import decoding
from mrrag.model.attention import plan_pass
from mrrag.model.backbone import Backbone, embed, encode_images
from mrrag.model.decoding import decode, token_step
from mrrag.model.prefill import Branch, fork, layout, prefill_batch, read_prefixes, run_batch, stack
from mrrag.model.steering import DEFAULT_ROWS
from mrrag.pipeline import Pipeline, answer
from mrrag.types import Image, Query, Steering

QUESTION = "Is there a pleural effusion?"
# Of different lengths, so that the batch has padding.
REPORTS = (
    "There is a small right pleural effusion. The heart is enlarged.",
    "No pleural effusion.",
    "The lungs are clear. There is no pneumothorax or pleural effusion. The heart is normal.",
    "Left sided pacemaker.",
)
RELEVANCE = (1.0, 0.0, 0.6, 0.3)
STRENGTH = 2.0
TOKENS = 16  # written by each answer that is compared
CASES = 50
FIRST_CASES = 10  # after which memory is first read: the first cases fill caches for good
ANSWER_TOKENS = 4  # written by each answer of those cases
LIMIT_S = 60.0
# Least growth that counts, in bytes. An allocator keeps some tens of MB that it may use again.
GROWTH = {"cpu": 32 * 2**20, "cuda": 8 * 2**20}
# Largest allowed difference, as a share of the largest value. Rows: one rounding of the output.
# Logits: the roundings of all layers.
ROW_ERROR, LOGIT_ERROR, HALF_LOGIT_ERROR = 1e-5, 1e-4, 0.05


@dataclass(frozen=True)
class Check:
    """One check's outcome.

    Attributes
    ----------
    passed : bool or None
        None where the check does not apply to this device.
    detail : str
        What was found, in one sentence.
    measured, allowed : float or None
        The figure that decides, and its limit.
    """

    name: str
    passed: bool | None
    detail: str
    measured: float | None = None
    allowed: float | None = None


def self_test(pipeline: Pipeline) -> Iterator[Check]:
    """Yield the four checks of a loaded pipeline, each as soon as it is done."""
    backbone = pipeline.backbone
    checks: dict[str, Callable[[], Check]] = {
        "steered rows": lambda: steered_rows(backbone),
        "captured step": lambda: captured_step(backbone),
        "batch and single": lambda: batch_and_single(backbone),
        "memory": lambda: memory(lambda n: one_case(pipeline, n), backbone.device),
    }
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:  # whatever fails here is what the check is for
            yield Check(name, False, f"It ended with {type(error).__name__}: {error}")


def branches_of(backbone: Backbone) -> list[Branch]:
    """Return three branches about one random picture: no reports, reports, reports and IFA."""
    image = picture(0)
    features, grid = encode_images(backbone, [image]), backbone.grid_of(image)
    plain, rag = (backbone.prompt(QUESTION, reports, image=grid) for reports in ((), REPORTS))
    return [Branch(plain, features), Branch(rag, features), Branch(rag, features, RELEVANCE)]


def picture(seed: int) -> Image:
    """Return a picture of noise, uint8 [256, 256]."""
    return Image(np.random.default_rng(seed).integers(0, 256, (256, 256), dtype=np.uint8))


def steering_of(backbone: Backbone, form: str = "ifa") -> Steering:
    """Return steering in every layer."""
    return Steering(STRENGTH, tuple(range(backbone.layers)), DEFAULT_ROWS, form=form)


# Steered rows


def steered_rows(backbone: Backbone) -> Check:
    """Compare the question rows of every layer with a float64 reference, in each form of IFA."""
    branches = branches_of(backbone)[1:]
    cache = prefill_batch(backbone, branches)
    watches = [
        watch(backbone, branches, fork(cache), steering_of(backbone, form)) for form in REFERENCES
    ]
    layers = min(len(seen.errors) for seen in watches)
    if layers < backbone.layers:
        said = f"The attention that steers was called in {layers} of {backbone.layers} layers."
        return Check("steered rows", False, said)
    error = float(np.max([seen.errors for seen in watches]))  # NaN where any of them is
    effect = min(max(seen.effects) for seen in watches)
    allowed = ROW_ERROR + _rounding(backbone)
    if effect < 4 * allowed:
        said = f"Steering changes the rows by {effect:.1e} of the largest value: nothing to test."
        return Check("steered rows", False, said)
    said = (
        f"{' and '.join(REFERENCES)}, {layers} layers: largest error "
        f"{error:.1e} of the largest value; steering changes it by {effect:.1e}."
    )
    return Check("steered rows", error <= allowed, said, error, allowed)


# Tokens


@dataclass(frozen=True)
class Written:
    """The tokens of each row, and whether a CUDA graph wrote them."""

    ids: tuple[tuple[int, ...], ...]
    captured: bool


def captured_step(backbone: Backbone) -> Check:
    """Compare the tokens that a captured step and an uncaptured one write."""
    name = "captured step"
    if backbone.device.type != "cuda":
        return Check(name, None, f"Not on a {backbone.device.type.upper()}.")
    if not backbone.capture:
        return Check(name, None, "This model's steps are not captured: it is spread or int8.")
    return same_tokens(written(backbone), written(replace(backbone, capture=False)))


def same_tokens(captured: Written, uncaptured: Written) -> Check:
    """Return whether the step was captured and writes what the uncaptured one writes."""
    if not captured.captured:
        return Check("captured step", False, "The step could not be captured, so it is slower.")
    pairs = [
        pair
        for rows in zip(captured.ids, uncaptured.ids, strict=True)
        for pair in zip(*rows, strict=True)
    ]
    different = sum(a != b for a, b in pairs)
    said = f"{different} of {len(pairs)} tokens differ."
    return Check("captured step", different == 0, said, different, 0)


@torch.inference_mode()
def written(backbone: Backbone) -> Written:
    """Write the tokens of three branches, each token by one call of the decoding step."""
    logits_BV, cache, mask_BX = _read(backbone, branches_of(backbone))
    ids_B1 = logits_BV.argmax(-1, keepdim=True)
    step = token_step(backbone, cache, mask_BX, ids_B1, TOKENS)
    columns = [ids_B1.flatten().tolist()]
    refusals = BufferingHandler(10**6)  # a step that cannot be captured says so in the log
    refusals.setLevel(logging.WARNING)
    decoding.logger.addHandler(refusals)
    try:
        for _ in range(TOKENS):
            step()
            columns.append(ids_B1.flatten().tolist())
    finally:
        decoding.logger.removeHandler(refusals)
    ids_BT = tuple(zip(*columns, strict=True))
    return Written(ids_BT, captured=backbone.capture and not refusals.buffer)


@torch.inference_mode()
def _read(backbone: Backbone, branches: Sequence[Branch]) -> tuple[Tensor, DynamicCache, Tensor]:
    """Read branches as one batch: logits [B, V] of what follows, the cache, its columns."""
    embeds = [embed(backbone, branch.prompt, branch.features) for branch in branches]
    cache = stack([prefix.cache for prefix in read_prefixes(backbone, branches, embeds)])
    prompts = [branch.prompt for branch in branches]
    mask_BX = layout(prompts)
    relevance = [branch.relevance for branch in branches]
    steered = plan_pass(prompts, relevance, mask_BX, steering_of(backbone), device=backbone.device)
    suffixes = [branch.suffix(rows) for branch, rows in zip(branches, embeds, strict=True)]
    return run_batch(backbone, suffixes, cache, mask_BX, steered), cache, mask_BX


def batch_and_single(backbone: Backbone) -> Check:
    """Compare three branches answered as one batch with the same three one by one.

    In half precision the texts may part where two words are nearly as likely, so there the
    logits of the first word alone decide.
    """
    backbone = replace(backbone, eos_ids=())  # an answer that ended would not be compared
    branches = branches_of(backbone)
    together_BV, texts = _answered(backbone, branches)
    alone = [_answered(backbone, [branch]) for branch in branches]
    alone_BV = torch.cat([logits_BV for logits_BV, _ in alone])
    error = float((together_BV - alone_BV).abs().max() / alone_BV.abs().max())
    half = backbone.model.dtype.itemsize < 4
    allowed = HALF_LOGIT_ERROR if half else LOGIT_ERROR
    different = sum(a != b for a, (_, (b,)) in zip(texts, alone, strict=True))
    said = (
        f"logits differ by {error:.1e} of the largest; {different} of {len(branches)} answers "
        f"of {TOKENS} tokens differ."
    )
    passed = error <= allowed and (half or not different)
    return Check("batch and single", passed, said[0].upper() + said[1:], error, allowed)


def _answered(
    backbone: Backbone, branches: Sequence[Branch]
) -> tuple[Tensor, tuple[tuple[int | None, ...], ...]]:
    logits_BV, cache, mask_BX = _read(backbone, branches)
    steps = decode(backbone, cache, mask_BX, logits_BV.clone(), max_new_tokens=TOKENS)
    return logits_BV, tuple(zip(*steps, strict=True))


def _rounding(backbone: Backbone) -> float:
    """Return the rounding of one output in the model's type; none in float32."""
    dtype = backbone.model.dtype
    return float(torch.finfo(dtype).eps) if dtype.itemsize < 4 else 0.0


# Memory


def one_case(pipeline: Pipeline, number: int) -> None:
    """Ask one case about a picture of its own, as the page does; nothing is kept."""
    query = Query(picture(number), QUESTION)
    settings = Settings(k=4, max_new_tokens=ANSWER_TOKENS)
    evidence = find_evidence(pipeline, query, settings)
    for step in answer(pipeline, query, evidence, settings):
        if isinstance(step, Case) and step.before is None:
            raise ValueError("The question was declined, so there was no answer.")


def memory(
    run_case: Callable[[int], None],
    device: torch.device,
    *,
    cases: int = CASES,
    limit_s: float = LIMIT_S,
) -> Check:
    """Run cases and compare the memory held after them with that after the first few.

    Parameters
    ----------
    run_case
        Called with 0, 1, ...
    device
        Whose memory is read: this process's on a CPU, torch's tensors on a GPU.
    limit_s
        After which no further case is begun.
    """
    name, start, first = "memory", time.perf_counter(), 0
    done = 0
    while done < cases and time.perf_counter() - start < limit_s:
        run_case(done)
        done += 1
        if done == FIRST_CASES:
            first = held_bytes(device)
    if done < 2 * FIRST_CASES:
        return Check(name, None, f"Too slow to be tested: {done} cases in {limit_s:.0f} s.")
    last = held_bytes(device)
    allowed = GROWTH["cuda" if device.type == "cuda" else "cpu"]
    said = f"{first / 2**20:.0f} MB after {FIRST_CASES} cases, {last / 2**20:.0f} MB after {done}."
    return Check(name, last - first <= allowed, said, last - first, allowed)


def held_bytes(device: torch.device) -> int:
    """Return the bytes of tensors on a GPU, else of this process's memory."""
    gc.collect()
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)
