"""What ``index`` takes of a data set, and how processes share its work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mrrag.cli import index
from mrrag.cli.main import parser
from mrrag.cli.options import Process, this_process
from mrrag.errors import SettingsError
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


def own_data(folder: Path, *rows: str) -> Path:
    """Write a table of studies s0, s1, …, each given as "view,split,report"."""
    table = ["image,study,patient,view,split,report"]
    for n, row in enumerate(rows):
        (folder / f"{n}.png").write_bytes(b"")
        table.append(f"{n}.png,s{n},p{n},{row}")
    (folder / "table.csv").write_text("\n".join(table))
    return folder


def indexed(data: Path, *options: str) -> list[str]:
    args = parser().parse_args(["index", "--data", str(data), "--kb", "kb", *options])
    return [record.document.id for record in index.records_to_index(args)]


def test_test_studies_enter_no_base_unannounced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("PA,test,Clear.", "PA,,CLEAR.", "PA,validation,No effusion.", "LL,test,Clear.")
    data = own_data(tmp_path, *rows)
    assert indexed(data) == ["1.png", "2.png"]
    said = capsys.readouterr().out
    assert "2 of 3 cases (split: all but test); 1 rows skipped" in said
    assert "not indexed: 1 test (--split all includes them)" in said
    assert "only a lateral picture" in said
    assert "repeat" not in said
    assert indexed(data, "--split", "all", "--views", "all") == ["0.png", "1.png", "2.png", "3.png"]
    said = capsys.readouterr().out
    assert "2 test cases are among them, as asked by --split all" in said
    assert "2 reports repeat an earlier one word for word; the commonest stands there 3" in said


def test_a_data_set_without_splits_says_that_none_is_left_for_testing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(indexed(own_data(tmp_path, "PA,,Clear.", "PA,,Effusion."))) == 2
    assert "the data set has no splits" in capsys.readouterr().out


def test_a_data_set_of_test_studies_alone_is_indexed_by_choice_only(tmp_path: Path) -> None:
    data = own_data(tmp_path, "PA,test,Clear.")
    with pytest.raises(SettingsError, match=r"of the split all but test\. The data set has 1 test"):
        indexed(data)
    assert indexed(data, "--split", "test") == ["0.png"]


def test_a_data_set_is_described_by_its_pictures_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = own_data(tmp_path, "PA,,Clear.", "LL,,Clear.", "PA,,Seen XXXX.")
    with (data / "table.csv").open("a") as table:
        table.write("\nabsent.png,s9,p9,PA,,Clear.")
    args = parser().parse_args(["corpus", str(data)])
    args.run(args)
    lines = capsys.readouterr().out.splitlines()
    assert "pictures        2 frontal, 1 lateral, 0 of unknown or another view" in lines
    assert "  only lateral  1 studies" in lines
    assert "  word for word 1 repeat an earlier one; the commonest stands there 2 times" in lines
    assert "reports         0 with an impression only, 1 with removed words (XXXX or ___)" in lines
    assert "cases           2" in lines
    assert f"(absent.png: looked for {data / 'absent.png'}; " in lines[-2]
    assert lines[-1].endswith("only a lateral picture")
