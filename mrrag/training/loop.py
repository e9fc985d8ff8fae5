"""The one training loop: warm-up and cosine, checkpoints, a metrics file, exact resume;
and what a run leaves in its folder.

What a batch is and what its loss is are the caller's: ``loss_at(step)`` must depend on
nothing but the step and the seed it was made with, and then a run that was killed and
started again ends where an undisturbed one does.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import plotly.graph_objects as go
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from mrrag.errors import SettingsError

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.csv"
CONFIG = "config.json"
PLOT = "plot.html"


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Linear warm-up to ``peak``, then a cosine down to a twentieth of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    phase = (step - warmup) / max(1, steps - warmup)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, phase))))


def fit(
    directory: Path,
    module: nn.Module,
    loss_at: Callable[[int], Tensor],
    *,
    steps: int,
    peak_lr: float,
    warmup: int = 100,
    weight_decay: float = 0.01,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_every: int = 500,
    checkpoint_every: int = 200,
) -> None:
    """Train ``module`` in place with AdamW, resuming from ``directory`` where it can.

    Parameters
    ----------
    directory
        The run folder; holds ``checkpoint.pt`` (read with ``weights_only``) and
        ``metrics.csv``.
    loss_at
        Step number to scalar loss.
    evaluate
        Figures on held-out data, written to the metrics file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=peak_lr,
        betas=(0.9, 0.98),
    )
    first, mean = _resume(directory, module, optimizer)
    with tqdm(total=steps, initial=first, desc=directory.name, mininterval=5) as bar:
        for step in range(first, steps):
            module.train()
            torch.manual_seed(step)  # dropout, if any, must not depend on where a run resumed
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, peak=peak_lr, warmup=warmup, steps=steps)
            loss = loss_at(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            mean = 0.98 * mean + 0.02 * loss.item() if step else loss.item()
            bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
            bar.update()
            done = step + 1
            if evaluate is not None and (done % evaluate_every == 0 or done == steps):
                module.eval()
                with torch.inference_mode():
                    figures = dict(evaluate())
                _log(directory, {"step": done, "loss": mean, **figures})
            if done % checkpoint_every == 0 or done == steps:
                _checkpoint(directory, module, optimizer, done, mean)
    module.eval()


def _checkpoint(
    directory: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int, mean: float
) -> None:
    state = {
        "step": step,
        "loss": mean,
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    temporary = directory / (CHECKPOINT + ".part")
    torch.save(state, temporary)
    os.replace(temporary, directory / CHECKPOINT)  # never a half-written checkpoint


def _resume(
    directory: Path, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """The step to go on from, and the mean loss there."""
    path = directory / CHECKPOINT
    if not path.exists():
        (directory / METRICS).unlink(missing_ok=True)
        return 0, 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    step = int(state["step"])
    logger.info("resuming %s at step %d", directory.name, step)
    _forget_after(directory / METRICS, step)
    return step, float(state["loss"])


def _forget_after(metrics: Path, step: int) -> None:
    """Drop what a stopped run measured after its last checkpoint: it is measured again."""
    if not metrics.exists():
        return
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if not whole:  # cut off within its header, which is written with the first row
        metrics.unlink()
        return
    rows = [row for row in whole[1:] if int(row.split(",")[0]) <= step]
    part = metrics.with_suffix(".part")
    part.write_text("".join([whole[0], *rows]), encoding="utf-8")
    os.replace(part, metrics)


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
    """What ``make`` gives, from ``path`` where a run that was stopped has left it; whole or not."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save_file(make(), part)
        os.replace(part, path)
    return load_file(path)


def claim_run(
    directory: Path, *, config: Mapping[str, object], seed: int, data: Mapping[str, object]
) -> None:
    """Say in ``config.json`` what a run folder is of.

    Raises
    ------
    SettingsError
        Where it is of another run, with what differs.
    """
    try:
        known = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        known = {**known["config"], "seed": known["seed"], "data": known["data"]["fingerprint"]}
    except FileNotFoundError:
        directory.mkdir(parents=True, exist_ok=True)
        _describe(directory, config, seed, data)
        return
    except (ValueError, KeyError, TypeError):
        known = {}
    asked = {**config, "seed": seed, "data": data["fingerprint"]}
    differing = [key for key, value in asked.items() if known.get(key) != value]
    if differing:
        raise SettingsError(
            f"{directory} holds another run: {', '.join(differing)} differ. Give that run's "
            "settings to go on with it, another --output or --runs, or remove the folder."
        )


def _describe(
    directory: Path, config: Mapping[str, object], seed: int, data: Mapping[str, object]
) -> None:
    about = {"config": dict(config), "seed": seed, "data": dict(data)}
    (directory / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


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
    """Write what a run was and came to: ``config.json``, ``metrics.csv`` and ``plot.html``.

    Parameters
    ----------
    data
        What it learnt from; see :func:`mrrag.training.data.describe`.
    rows
        The metrics; None where :func:`fit` has written them.
    x, lines, errors
        Columns of the metrics: what the plot goes along, a line each, and the column
        of half an error bar's length by its line. A column that is absent is left out.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _describe(directory, config, seed, data)
    if rows is not None:
        with (directory / METRICS).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    elif not (directory / METRICS).exists():
        return  # a run of no steps
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
