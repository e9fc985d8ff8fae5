"""A run that was stopped and restarted ends like an uninterrupted one."""

import csv
import itertools
import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from apart import run_apart
from torch import Tensor, nn

from mrrag.data.records import Question, Record
from mrrag.training.data import DataSet
from mrrag.training.loop import EarlyStop, fit, learning_rate, record_run
from mrrag.types import Document


def run(directory: Path, kill_at: int | None = None) -> Tensor:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)

    def loss_at(step: int) -> Tensor:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return ((module(x) - x.sum(1, keepdim=True)) ** 2).mean()

    fit(
        directory,
        module,
        loss_at,
        steps=20,
        peak_lr=0.05,
        warmup=0.15,
        checkpoint_seconds=4,
        clock=partial(next, itertools.count()),  # a second a step
        evaluate=lambda: {"weight": float(module.weight.detach().sum())},
        evaluate_every=3,
    )
    return module.weight.detach().clone()


def killed(directory: Path, at: int) -> None:
    assert run_apart(run, directory, at)[0] == -signal.SIGKILL


def test_a_killed_run_resumes_to_the_same_weights_and_figures(tmp_path: Path) -> None:
    uninterrupted = run(tmp_path / "whole")
    for at in (2, 10, 18):  # before the first checkpoint; after a figure that no checkpoint has
        killed(tmp_path / "broken", at)
    assert torch.equal(run(tmp_path / "broken"), uninterrupted)
    figures = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("whole", "broken")]
    assert figures[0] == figures[1]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its first checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "broken"
    killed(folder, 5)
    return folder


@pytest.mark.parametrize("left", ["", "step,lo"])
def test_a_metrics_file_that_was_cut_off_in_its_header_is_begun_again(
    tmp_path: Path, broken: Path, left: str
) -> None:
    run(tmp_path / "whole")
    shutil.copytree(broken, tmp_path / "broken")
    (tmp_path / "broken" / "metrics.csv").write_text(left)
    run(tmp_path / "broken")
    header, *rows = (tmp_path / "broken" / "metrics.csv").read_text().splitlines()
    whole = (tmp_path / "whole" / "metrics.csv").read_text().splitlines()
    assert header == whole[0]
    assert rows == whole[2:]  # figures from before the checkpoint are lost with the file


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert torch.equal(run(tmp_path, kill_at=0), first)


def stopped_early(directory: Path, kill_at: int | None = None) -> tuple[float, int]:
    """The weight and the number of steps of a run whose figure is highest at step 6, of 30."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    taken = []

    def loss_at(step: int) -> Tensor:
        if step == kill_at:
            raise KeyboardInterrupt
        taken.append(step)
        return -module.weight.sum()  # a weight that grows with each step

    weights: list[float] = []

    def evaluate() -> dict[str, float]:
        weights.append(float(module.weight.detach()))
        return {"figure": -abs(taken[-1] - 5)}

    stop = EarlyStop("figure", patience=3, smooth=1)
    figures = {"evaluate": evaluate, "evaluate_every": 2, "early_stop": stop}
    fit(directory, module, loss_at, steps=30, peak_lr=0.1, weight_decay=0, **figures)
    if kill_at is None:
        assert float(module.weight.detach()) < weights[-1]
    return float(module.weight.detach()), taken[-1] + 1


def test_training_ends_when_its_figure_no_longer_rises_with_the_weights_that_were_best(
    tmp_path: Path,
) -> None:
    best, steps = stopped_early(tmp_path / "whole")
    assert steps == 12  # three evaluations after the best one
    for at in (3, 7, 9):
        with pytest.raises(KeyboardInterrupt):
            stopped_early(tmp_path / "broken", kill_at=at)
    assert stopped_early(tmp_path / "broken") == (best, 12)
    rows = (tmp_path / "broken" / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["2", "4", "6", "8", "10", "12"]


def test_a_single_high_figure_is_averaged_with_those_before_it() -> None:
    stop = EarlyStop("figure", patience=2)
    assert stop.averages([1.0, 4.0, 1.0, 1.0]) == [1.0, 2.5, 2.0, 2.0]
    assert stop.is_best([1.0, 4.0])
    assert not stop.is_best([1.0, 4.0, 1.0])
    assert not stop.is_over([1.0, 4.0, 1.0])
    assert stop.is_over([1.0, 4.0, 1.0, 1.0])


def test_the_rate_rises_to_its_peak_and_falls_to_a_twentieth() -> None:
    rates = [learning_rate(s, peak=1.0, warmup=10, steps=100) for s in range(101)]
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] == pytest.approx(0.05)


def test_a_run_says_what_it_was_and_draws_what_it_came_to(tmp_path: Path) -> None:
    rows = [{"layer": n, "drop": n / 10, "error": 0.01} for n in range(3)]
    record_run(
        tmp_path,
        config={"questions": 5},
        seed=7,
        data={"fingerprint": "abc"},
        rows=rows,
        x="layer",
        lines=("drop", "absent"),
        errors={"drop": "error"},
    )
    about = json.loads((tmp_path / "config.json").read_text())
    assert about == {"config": {"questions": 5}, "seed": 7, "data": {"fingerprint": "abc"}}
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        assert [float(row["drop"]) for row in csv.DictReader(stream)] == [0.0, 0.1, 0.2]
    assert "Plotly.newPlot" in (tmp_path / "plot.html").read_text(encoding="utf-8")


def test_a_data_set_is_known_by_its_texts_and_images(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"1")
    case = Record(Document("d", "No effusion.", "p", "s"), image)
    question = Question("q", "d", "Is it?", "No", "closed")
    data = DataSet((case,), ((question,),), tmp_path)
    first = data.describe()
    assert (first["cases"], first["questions"]) == (1, 1)
    assert data.describe() == first
    other = DataSet((case,), ((replace(question, answer="Yes"),),), tmp_path)
    assert other.describe()["fingerprint"] != first["fingerprint"]
    image.write_bytes(b"12")
    assert data.describe()["fingerprint"] != first["fingerprint"]
