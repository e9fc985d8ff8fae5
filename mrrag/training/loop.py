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
from collections.abc import Callable, Mapping, Sequence
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
METRICS = "metrics.csv"
CONFIG = "config.json"
PLOT = "plot.html"


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Return the learning rate: linear warm-up to ``peak``, then cosine decay to ``peak`` / 20."""
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
    """Train ``module`` in place with AdamW; resume from the checkpoint in ``directory``, if any.

    Parameters
    ----------
    directory
        The run folder; holds ``checkpoint.pt`` (read with ``weights_only``) and
        ``metrics.csv``.
    loss_at
        Step number to scalar loss.
    evaluate
        Returns figures on validation data, which are written to the metrics file.
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
            torch.manual_seed(step)  # dropout must not depend on where the run resumed
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
    with atomic(directory / CHECKPOINT) as stream:
        torch.save(state, stream)


def _resume(
    directory: Path, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Load the checkpoint; return its step and mean loss, 0 and 0.0 without one."""
    path = directory / CHECKPOINT
    if not path.exists():
        (directory / METRICS).unlink(missing_ok=True)
        return 0, 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    step = int(state["step"])
    logger.info("resuming %s at step %d", directory.name, step)
    _drop_rows_after(directory / METRICS, step)
    return step, float(state["loss"])


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
