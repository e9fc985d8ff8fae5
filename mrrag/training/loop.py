"""The training loop, with exact resumption, and the files of a run folder.

The loop has a warm-up and cosine schedule, checkpoints and a metrics file. Batches and losses
are the caller's. If ``loss_at(step)`` depends only on the step and a seed, a run that was
killed and restarted ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy.typing as npt
import plotly.graph_objects as go
import torch
from safetensors.numpy import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from mrrag.errors import SettingsError
from mrrag.files import atomic, write_atomic

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
METRICS = "metrics.csv"
CONFIG = "config.json"
PLOT = "plot.html"


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Return the learning rate: linear warm-up to ``peak``, then cosine decay to ``peak`` / 20."""
    if step < warmup:
        return peak * (step + 1) / warmup
    phase = (step - warmup) / max(1, steps - warmup)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, phase))))


@dataclass(frozen=True)
class EarlyStop:
    """When training ends before its last step, and which weights are kept.

    The figure is averaged over the last ``smooth`` evaluations, since one of a small validation
    split moves by chance. The weights with the highest average are kept.

    Attributes
    ----------
    figure : str
        A figure of ``evaluate``; higher is better.
    patience : int
        Training ends after this many evaluations without a higher average.
    """

    figure: str
    patience: int
    smooth: int = 3

    def averages(self, figures: Sequence[float]) -> list[float]:
        """Return the average after each evaluation."""
        recent = (figures[max(0, n + 1 - self.smooth) : n + 1] for n in range(len(figures)))
        return [sum(values) / len(values) for values in recent]

    def is_best(self, figures: Sequence[float]) -> bool:
        """Return whether the last evaluation has the highest average so far."""
        *before, last = self.averages(figures)
        return not before or last > max(before)

    def is_over(self, figures: Sequence[float]) -> bool:
        """Return whether training ends after these evaluations."""
        averages = self.averages(figures)
        return len(averages) - 1 - averages.index(max(averages)) >= self.patience


@dataclass
class _Progress:
    """What a checkpoint holds beside the weights and the optimiser."""

    step: int = 0
    loss: float = 0.0
    figures: list[float] = field(default_factory=list)  # of EarlyStop
    is_over: bool = False


def fit(
    directory: Path,
    module: nn.Module,
    loss_at: Callable[[int], Tensor],
    *,
    steps: int,
    peak_lr: float,
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_every: int = 500,
    early_stop: EarlyStop | None = None,
    checkpoint_seconds: float = 120.0,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Train ``module`` in place with AdamW; resume from the checkpoint in ``directory``, if any.

    Parameters
    ----------
    directory
        The run folder; holds ``checkpoint.pt`` and ``best.pt`` (read with ``weights_only``)
        and ``metrics.csv``.
    loss_at
        Step number to scalar loss.
    warmup
        Share of the steps in which the learning rate rises.
    evaluate
        Returns figures on validation data, which are written to the metrics file.
    early_stop
        With it, the module ends with its best weights rather than its last.
    checkpoint_seconds
        A checkpoint is written at the first step after this time, by ``clock``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    optimizer = _adamw(module, peak_lr, weight_decay)
    rise = max(1, round(warmup * steps))
    so_far = _resume(directory, module, optimizer)
    written = clock()
    name = directory.name
    with tqdm(total=steps, initial=so_far.step, desc=name, unit="step", mininterval=5) as bar:
        while so_far.step < steps and not so_far.is_over:
            step = so_far.step
            rate = learning_rate(step, peak=peak_lr, warmup=rise, steps=steps)
            loss = _take_step(module, optimizer, loss_at, step, rate)
            so_far.loss = 0.98 * so_far.loss + 0.02 * loss if step else loss
            so_far.step = step + 1
            bar.set_postfix(loss=f"{so_far.loss:.3f}", refresh=False)
            bar.update()
            is_last = so_far.step == steps
            is_due = so_far.step % evaluate_every == 0 or is_last
            is_best = is_due and _evaluate(directory, module, evaluate, so_far, early_stop)
            # With the best weights, so that the two never tell of different steps.
            if is_best or is_last or so_far.is_over or clock() - written >= checkpoint_seconds:
                _checkpoint(directory, module, optimizer, so_far)
                written = clock()
    if early_stop is not None and (directory / BEST).exists():
        best = torch.load(directory / BEST, map_location="cpu", weights_only=True)
        module.load_state_dict(best["module"])
    module.eval()


def _adamw(module: nn.Module, rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Return the optimiser; vectors (biases, norms) do not decay."""
    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.98),
    )


def _take_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_at: Callable[[int], Tensor],
    step: int,
    rate: float,
) -> float:
    """Train for one step; return its loss."""
    module.train()
    torch.manual_seed(step)  # dropout must not depend on where the run resumed
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = loss_at(step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _evaluate(
    directory: Path,
    module: nn.Module,
    evaluate: Callable[[], Mapping[str, float]] | None,
    so_far: _Progress,
    early_stop: EarlyStop | None,
) -> bool:
    """Write the figures; return whether these weights are the best so far, and keep them if so."""
    if evaluate is None:
        return False
    module.eval()
    with torch.inference_mode():
        figures = dict(evaluate())
    _log(directory, {"step": so_far.step, "loss": so_far.loss, **figures})
    if early_stop is None:
        return False
    so_far.figures.append(figures[early_stop.figure])
    so_far.is_over = early_stop.is_over(so_far.figures)
    is_best = early_stop.is_best(so_far.figures)
    if is_best:
        _write(directory / BEST, {"module": module.state_dict()})
    return is_best


def _checkpoint(
    directory: Path, module: nn.Module, optimizer: torch.optim.Optimizer, so_far: _Progress
) -> None:
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
    _write(directory / CHECKPOINT, {**asdict(so_far), **state})


def _write(path: Path, state: Mapping[str, object]) -> None:
    with atomic(path) as stream:
        torch.save(dict(state), stream)


def _resume(directory: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> _Progress:
    """Load the checkpoint, if any; return how far it had come."""
    path = directory / CHECKPOINT
    if not path.exists():
        (directory / METRICS).unlink(missing_ok=True)
        return _Progress()
    state = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    known = {f.name: state[f.name] for f in fields(_Progress) if f.name in state}
    so_far = _Progress(**known)
    logger.info("resuming %s at step %d", directory.name, so_far.step)
    _drop_rows_after(directory / METRICS, so_far.step)
    return so_far


def _drop_rows_after(metrics: Path, step: int) -> None:
    """Remove figures later than the last checkpoint: they will be measured again."""
    if not metrics.exists():
        return
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if not whole:  # cut off in its header, which is written with the first row
        metrics.unlink()
        return
    rows = [row for row in whole[1:] if int(row.split(",")[0]) <= step]
    write_atomic(metrics, "".join([whole[0], *rows]))


def _log(directory: Path, row: Mapping[str, float]) -> None:
    path = directory / METRICS
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({k: round(v, 5) for k, v in row.items()})


def cached(
    path: Path, make: Callable[[], dict[str, npt.NDArray[Any]]]
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays stored at ``path``; where it is absent, make and store them first."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(make()))
    return load_file(path)


def claim_run(
    directory: Path, *, config: Mapping[str, object], seed: int, data: Mapping[str, object]
) -> None:
    """Write a run's settings to ``config.json``, or check that the same are there.

    Raises
    ------
    SettingsError
        If the folder belongs to a run with other settings; names those that differ.
    """
    try:
        known = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        known = {**known["config"], "seed": known["seed"], "data": known["data"]["fingerprint"]}
    except FileNotFoundError:
        directory.mkdir(parents=True, exist_ok=True)
        _write_config(directory, config, seed, data)
        return
    except (ValueError, KeyError, TypeError):
        known = {}
    asked = {**config, "seed": seed, "data": data["fingerprint"]}
    differing = [key for key, value in asked.items() if known.get(key) != value]
    if differing:
        raise SettingsError(
            f"{directory} holds another run: {', '.join(differing)} differ. Use the settings of "
            "that run to resume it, choose another --output or --runs, or delete the folder."
        )


def _write_config(
    directory: Path, config: Mapping[str, object], seed: int, data: Mapping[str, object]
) -> None:
    about = {"config": dict(config), "seed": seed, "data": dict(data)}
    write_atomic(directory / CONFIG, json.dumps(about, indent=2) + "\n")


def record_run(
    directory: Path,
    *,
    config: Mapping[str, object],
    seed: int,
    data: Mapping[str, object],
    rows: Sequence[Mapping[str, object]] | None = None,
    x: str,
    lines: Sequence[str],
    errors: Mapping[str, str] | None = None,
) -> None:
    """Write the settings and results of a run: ``config.json``, ``metrics.csv``, ``plot.html``.

    Parameters
    ----------
    data
        Its training data; see :meth:`mrrag.training.data.DataSet.describe`.
    rows
        The metrics; None where :func:`fit` has written them.
    x, lines, errors
        Columns of the metrics: the x axis, the lines of the plot, and by line the column with
        half the length of its error bars. Lines without a column are left out.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write_config(directory, config, seed, data)
    if rows is not None:
        with (directory / METRICS).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    elif not (directory / METRICS).exists():
        return  # no steps were run
    with (directory / METRICS).open(newline="", encoding="utf-8") as stream:
        read = list(csv.DictReader(stream))
    figure = go.Figure()
    for line in lines:
        if read and line in read[0]:
            bar = (errors or {}).get(line)
            figure.add_scatter(
                x=[row[x] for row in read],
                y=[float(row[line]) for row in read],
                error_y={"array": [float(row[bar]) for row in read]} if bar else None,
                name=line,
                mode="lines+markers",
            )
    figure.update_layout(title=directory.name, xaxis_title=x, template="plotly_white")
    figure.write_html(directory / PLOT, include_plotlyjs=True)
