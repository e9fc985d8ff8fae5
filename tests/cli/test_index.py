"""How ``index`` shares its work among the processes of ``accelerate launch``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mrrag.cli import index
from mrrag.cli.main import parser
from mrrag.cli.options import Process, this_process
from mrrag.phantom.write import write_data_set


def test_a_process_that_was_not_launched_is_alone_and_may_choose_its_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    process = this_process()
    assert (process.index, process.count, process.local, process.device) == (0, 1, 1, None)


@pytest.mark.parametrize(("asked", "workers"), [([], 4), (["--workers", "3"], 3)])
def test_one_of_several_processes_builds_its_share_with_its_part_of_the_cores(
    asked: list[str], workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def build_share(*arguments: Any, **settings: Any) -> None:
        calls.append((arguments, settings))

    process = Process(index=1, count=3, device="cpu", local=2)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # which the command sets; undone afterwards
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(index, "this_process", lambda: process)
    monkeypatch.setattr("mrrag.retrieval.build.build_share", build_share)
    data, kb = tmp_path / "data", tmp_path / "kb"
    write_data_set(data, patients=6, seed=5, size=64, workers=1)
    args = parser().parse_args(["index", "--data", str(data), "--kb", str(kb), *asked])
    before = dict(vars(args))
    args.run(args)
    ((directory, _, _, share, wait), settings), *others = calls
    assert not others
    assert (directory, share, wait) == (kb, (1, 3), process.wait)
    assert settings["workers"] == workers
    assert vars(args) == before
