"""A run that was stopped and started again ends where an undisturbed one does."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mrrag.training.loop import fit, learning_rate


def run(directory: Path, stop_at: int | None = None) -> Tensor:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)

    def loss_at(step: int) -> Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return ((module(x) - x.sum(1, keepdim=True)) ** 2).mean()

    fit(directory, module, loss_at, steps=20, peak_lr=0.05, warmup=3, checkpoint_every=4)
    return module.weight.detach().clone()


def test_a_stopped_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    undisturbed = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", stop_at=10)
    assert torch.equal(run(tmp_path / "broken"), undisturbed)


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert torch.equal(run(tmp_path, stop_at=0), first)


def test_the_rate_rises_to_its_peak_and_falls_to_a_twentieth() -> None:
    rates = [learning_rate(s, peak=1.0, warmup=10, steps=100) for s in range(101)]
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] == pytest.approx(0.05)
