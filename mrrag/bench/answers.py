"""Three answers with the whole trace, timed beside transformers' own ``generate()``.

naive
    The obvious way: three ``generate()`` calls under eager attention, with
    ``output_attentions``.
plain
    One ``generate()`` call under SDPA: one answer, no trace. The floor.
batched
    The second way that one would write: the three prompts as one batch of one
    ``generate()`` call under SDPA; no steering, no trace.
ours
    Three answers, streamed, and the trace.

All have the same prompts and write the same number of new tokens; end tokens are ignored.
They take turns in one process, so that other load on the machine affects all alike.
"""

from __future__ import annotations

import logging
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.generation.streamers import BaseStreamer

from mrrag.bench.random_weights import SHAPES, random_backbone
from mrrag.errors import SettingsError
from mrrag.model.answering import answer_branches
from mrrag.model.backbone import Backbone, encode_images, load_backbone, pixel_values
from mrrag.model.checkpoint import published_config
from mrrag.model.families import text_of
from mrrag.model.prefill import Branch, right_aligned
from mrrag.model.prompt import Prompt
from mrrag.model.steering import align
from mrrag.types import BUNDLED, Image, Steering

logger = logging.getLogger(__name__)

REPORT = (
    "The cardiac silhouette is mildly enlarged. There is a small right pleural effusion. "
    "No pneumothorax. Left sided pacemaker with leads in the heart. Mild pulmonary edema. "
) * 3
REPORT_TOKENS = 60
QUESTION = "Is there a pleural effusion?"
WAYS = ("naive", "plain", "batched", "ours")
ANSWERS = {"naive": 3, "plain": 1, "batched": 3, "ours": 3}
# naive decodes its three answers one by one.
ROWS = {"naive": 1, "plain": 1, "batched": 3, "ours": 3}
COPIED_BYTES = 2**28


@dataclass(frozen=True)
class Bench:
    """The options of the measurement, which are those of the command."""

    assets: Path
    model: str = BUNDLED
    random_weights: str | None = None
    dtype: str | None = None
    device: str = "cpu"
    quantize: str | None = None
    reports: int = 15
    new_tokens: int = 64
    repeats: int = 5


@dataclass(frozen=True)
class BenchInputs:
    """A loaded model, with the prompts that all ways answer."""

    backbone: Backbone
    image: Image
    off: Prompt
    rag: Prompt
    new_tokens: int


@dataclass(frozen=True)
class Run:
    """The times at which one answer's tokens came, and the size of the trace."""

    ticks: tuple[float, ...]
    trace_bytes: int


def bench(options: Bench) -> dict[str, Any]:
    """Measure the four ways.

    Returns
    -------
    dict
        ``naive``, ``plain``, ``batched`` and ``ours``, each with seconds (median over the
        repeats after one warm-up), tokens per second, peak bytes, trace bytes, and the share of the
        memory-bandwidth roofline that a decoding step reaches: the bytes that the step must
        read (the text model's weights and its rows of the cache), over the measured copy
        bandwidth, over the seconds that the step takes.
    """
    case = load_inputs(options)
    device = case.backbone.device
    runs, peaks = _take_turns(case, options.repeats)
    bandwidth = copy_bandwidth(device)
    result: dict[str, Any] = {
        "device": _device_name(device),
        "model": case.backbone.name,
        "dtype": str(case.backbone.model.dtype).removeprefix("torch."),
        "quantize": options.quantize,
        "reports": options.reports,
        "prompt_tokens": len(case.rag.ids),
        "new_tokens": options.new_tokens,
        "repeats": options.repeats,
        "copy_bytes_per_second": bandwidth,
        "step_bytes": {way: step_bytes(case, ROWS[way]) for way in WAYS},
        "torch": torch.__version__,
    }
    if device.type != "cuda":
        del case  # a large model fits into memory once
        peaks = {way: peak_in_own_process(options, way) for way in WAYS}
    for way in WAYS:
        roofline = result["step_bytes"][way] / bandwidth
        result[way] = _row(runs[way], peaks[way], ANSWERS[way], options.new_tokens, roofline)
    for way in WAYS[:-1]:
        # Turn by turn, since a machine's speed changes more over a run than within a turn.
        pairs = zip(runs["ours"], runs[way], strict=True)
        result[f"ours_over_{way}"] = statistics.median(a / b for (a, _), (b, _) in pairs)
    peak, floor = peaks["ours"], peaks["plain"]
    result["ours_peak_over_plain"] = peak / floor if peak and floor else None
    return result


def _take_turns(
    case: BenchInputs, repeats: int
) -> tuple[dict[str, list[tuple[float, Run]]], dict[str, int | None]]:
    """Run each way in turn; seconds with the run, and on CUDA the peak bytes, by way."""
    runs: dict[str, list[tuple[float, Run]]] = {way: [] for way in WAYS}
    peaks: dict[str, int | None] = {}
    on_cuda = case.backbone.device.type == "cuda"
    for repeat in range(repeats + 1):  # the first is the warm-up
        for way in WAYS:
            if on_cuda:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            run = RUN[way](case)
            _wait(case.backbone.device)
            seconds = time.perf_counter() - start
            if on_cuda:
                peaks[way] = torch.cuda.max_memory_allocated()
            if repeat:
                ticks = tuple(tick - start for tick in run.ticks)
                runs[way].append((seconds, replace(run, ticks=ticks)))
    return runs, peaks


def _row(
    runs: Sequence[tuple[float, Run]],
    peak: int | None,
    answers: int,
    new_tokens: int,
    roofline_seconds: float,
) -> dict[str, Any]:
    """Return one way's figures."""
    median = statistics.median(seconds for seconds, _ in runs)
    step = statistics.median(_step_seconds(run) for _, run in runs)
    together = answers * new_tokens / median
    return {
        "answers": answers,
        "seconds": median,
        "all_seconds": [seconds for seconds, _ in runs],
        "first_token_seconds": statistics.median(run.ticks[0] for _, run in runs),
        "step_seconds": step,
        "tokens_per_second": together,
        "tokens_per_second_per_answer": together / answers,
        "peak_bytes": peak,
        "trace_bytes": runs[0][1].trace_bytes,
        "roofline": roofline_seconds / step if step else None,
    }


def load_inputs(options: Bench) -> BenchInputs:
    """Load the model, or draw its weights at random, and build the prompts."""
    if options.random_weights and (options.quantize or options.model != BUNDLED):
        raise SettingsError(
            "Weights drawn at random belong to no checkpoint and are not quantized: leave out "
            "--random-weights, or --model and --quantize."
        )
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    bundled = options.assets / "llava"
    if options.random_weights is not None:
        config = published_config(options.random_weights, SHAPES[options.random_weights])
        backbone = random_backbone(
            config, bundled, dtype or torch.bfloat16, options.device, options.random_weights
        )
    else:
        backbone = load_backbone(
            bundled if options.model == BUNDLED else options.model,
            dtype=dtype,
            device=options.device,
            quantize=options.quantize,
        )
    rng = np.random.default_rng(0)

    def prompt(reports: int) -> Prompt:
        return backbone.prompt(QUESTION, [REPORT] * reports, max_report_tokens=REPORT_TOKENS)

    return BenchInputs(
        # An answer that ended early would be measured as a fast one.
        replace(backbone, eos_ids=()),
        Image(rng.integers(0, 255, (512, 512), dtype=np.uint8)),
        prompt(0),
        prompt(options.reports),
        options.new_tokens,
    )


# The four ways


class Ticks(BaseStreamer):  # type: ignore[misc,unused-ignore]
    """Record when each token came; the first value put is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Called by ``generate()`` with the prompt, then with each token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called by ``generate()`` at the end; nothing to do."""


def _generate(
    case: BenchInputs, prompts: Sequence[Prompt], attentions: bool = False
) -> tuple[Run, Any]:
    ticks = Ticks()
    mask_BX = right_aligned([len(prompt.ids) for prompt in prompts])
    ids_BX = align([torch.tensor(prompt.ids) for prompt in prompts], mask_BX)
    # Any token but the image's, of which generate() counts every place.
    ids_BX.masked_fill_(~mask_BX, case.backbone.tokenizer.eos_token_id)
    device = case.backbone.device
    out = case.backbone.model.generate(
        input_ids=ids_BX.to(device),
        attention_mask=mask_BX.long().to(device),
        pixel_values=pixel_values(case.backbone, [case.image] * len(prompts)),
        max_new_tokens=case.new_tokens,
        min_new_tokens=case.new_tokens,
        do_sample=False,
        output_attentions=attentions,
        return_dict_in_generate=True,
        streamer=ticks,
    )
    return Run(tuple(ticks.times[1:]), 0), out


def _with_attention(case: BenchInputs, name: str, run: Callable[[], Run]) -> Run:
    model = case.backbone.model
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": name})
    try:
        return run()
    finally:
        model.set_attn_implementation({"text_config": before})


def naive(case: BenchInputs) -> Run:
    """Answer three times, one after another, keeping all attention."""

    def run() -> Run:
        first, held = None, 0
        for prompt in (case.off, case.rag, case.rag):
            answer, out = _generate(case, [prompt], attentions=True)
            held += sum(a.nbytes for step in out.attentions for a in step)
            first = first or answer
        assert first is not None
        return Run(first.ticks, held)

    return _with_attention(case, "eager", run)


def plain(case: BenchInputs) -> Run:
    """Answer once."""
    return _with_attention(case, "sdpa", lambda: _generate(case, [case.rag])[0])


def batched(case: BenchInputs) -> Run:
    """Answer three times as one batch, padded on the left."""
    prompts = (case.off, case.rag, case.rag)
    return _with_attention(case, "sdpa", lambda: _generate(case, prompts)[0])


def ours(case: BenchInputs) -> Run:
    """Answer three times as one batch, MR-RAG steered in every layer, with the trace."""
    reports = len(case.rag.reports)
    relevance = tuple(np.linspace(1.0, 0.0, reports).tolist())
    features = encode_images(case.backbone, [case.image])
    branches = (
        Branch(case.off, features),
        Branch(case.rag, features),
        Branch(case.rag, features, relevance),
    )
    ticks: list[float] = []
    step = None
    for step in answer_branches(  # noqa: B007 (the last one is wanted)
        case.backbone,
        branches,
        Steering(1.0, tuple(range(case.backbone.layers))),
        max_new_tokens=case.new_tokens,
    ):
        ticks.append(time.perf_counter())
    assert step is not None
    assert step.tokens == (case.new_tokens,) * 3
    # The first step has no token yet, and the last no new one.
    return Run(tuple(ticks[1:-1]), sum(t.mass_LHS.nbytes + t.keys_LX.nbytes for t in step.traces))


RUN: dict[str, Callable[[BenchInputs], Run]] = {
    "naive": naive,
    "plain": plain,
    "batched": batched,
    "ours": ours,
}


# References


def _step_seconds(run: Run) -> float:
    return (run.ticks[-1] - run.ticks[0]) / max(1, len(run.ticks) - 1)


def step_bytes(case: BenchInputs, rows: int) -> int:
    """Return the bytes that a decoding step must read, on average over the answer."""
    text = case.backbone.model.config.text_config
    layers: Any = text_of(case.backbone.model).layers
    modules = (layers, case.backbone.model.lm_head)
    weights: int = sum(p.nbytes for module in modules for p in module.parameters())
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    itemsize = case.backbone.model.dtype.itemsize
    per_token: int = 2 * text.num_hidden_layers * text.num_key_value_heads * width * itemsize
    return weights + rows * per_token * (len(case.rag.ids) + case.new_tokens // 2)


def copy_bandwidth(device: torch.device) -> float:
    """Return bytes per second of a large copy, read and written; the best of ten."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * COPIED_BYTES / best


def peak_in_own_process(options: Bench, way: str) -> int | None:
    """Return the peak bytes of a process that runs one way once; None if it died."""
    # Not a Pool, which kills its process at the end, before it can clean up.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_peak, options, way).result()
        except BrokenProcessPool:
            logger.warning("The peak of %s is unknown: its process was killed.", way)
            return None


def _peak(options: Bench, way: str) -> int:
    case = load_inputs(options)
    RUN[way](case)
    return peak_bytes()


def peak_bytes() -> int:
    """Return the most memory that this process has held so far, in bytes."""
    # On Linux, ru_maxrss starts with the parent's value.
    status = Path("/proc/self/status")
    for line in status.read_text("ascii").splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} cpu, {torch.get_num_threads()} threads"


def bench_text(result: dict[str, Any]) -> str:
    """Return the figures as a table."""
    quantized = f" {result['quantize']}" if result["quantize"] else ""
    lines = [
        f"{result['model']}, {result['dtype']}{quantized}, {result['device']}",
        f"{result['reports']} reports of {REPORT_TOKENS} tokens, {result['prompt_tokens']} prompt "
        f"tokens, {result['new_tokens']} new tokens, median of {result['repeats']}",
        f"{'':7s}{'answers':>8s}{'seconds':>9s}{'first':>8s}{'tokens/s':>10s}{'each':>7s}"
        f"{'peak':>11s}{'trace':>11s}{'roofline':>10s}",
    ]
    for way in WAYS:
        row = result[way]
        roofline = "" if row["roofline"] is None else f"{row['roofline']:.0%}"
        peak = "?" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f} MB"
        lines.append(
            f"{way:7s}{row['answers']:8d}{row['seconds']:9.3f}{row['first_token_seconds']:8.3f}"
            f"{row['tokens_per_second']:10.3g}{row['tokens_per_second_per_answer']:7.3g}"
            f"{peak:>11s}{row['trace_bytes'] / 2**20:8.2f} MB"
            f"{roofline:>10s}"
        )
    said = ", ".join(f"{result[f'ours_over_{way}']:.2f} x {way}" for way in WAYS[1:-1])
    said = f"ours is {said} and {result['ours_over_naive']:.2f} x naive"
    if result["ours_peak_over_plain"] is not None:
        said += f", in {result['ours_peak_over_plain']:.2f} x plain's memory"
    lines.append(said)
    return "\n".join(lines)
