"""``questions``: from a data set with reports to a file that the other commands read."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import pytest

from mrrag.cli.main import parser
from mrrag.cli.options import read_chosen
from mrrag.data.corpus import read_corpus
from mrrag.errors import SettingsError

REPORTS = ("Large effusion.", "No effusion.", "Small right effusion.", "No effusion or nodule.")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of pictures and reports, two studies in each of two splits."""
    folder = tmp_path / "data"
    folder.mkdir()
    with (folder / "reports.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "report", "patient", "split"])
        for n, report in enumerate(REPORTS):
            (folder / f"{n}.png").write_bytes(b"not opened")
            table.writerow([f"{n}.png", report, f"p{n}", "train" if n < 2 else "validation"])
    return folder


def run(*words: object) -> argparse.Namespace:
    args = parser().parse_args([*map(str, words)])
    args.run(args)
    return args


def test_the_questions_are_the_data_sets_own_from_then_on(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("questions", "--data", data)
    printed = capsys.readouterr().out
    assert "4 yes/no questions, 1 open ones" in printed
    rows = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]
    assert {row["sentence"] for row in rows} == set(REPORTS)
    read = read_corpus(data).questions
    assert [(q.uid, q.answer, q.answer_type) for q in read] == [
        (row["uid"], row["answer"], row["answer_type"]) for row in rows
    ]
    assert {q.finding for q in read} == {"pleural effusion"}


def test_another_file_is_read_by_the_commands_that_learn_and_evaluate(
    data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "asked" / "questions.jsonl"
    run("questions", "--data", data, "--output", output, "--split", "train")
    assert not (data / "questions.jsonl").exists()
    for command in ("train-adapter", "find-layers", "evaluate"):
        args = parser().parse_args([command, "--data", str(data), "--ask", str(output)])
        assert [q.answer for q in read_chosen(args).questions] == ["Yes", "No"]


def test_no_file_is_written_over_and_no_read_only_folder_written_to(
    data: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there.jsonl"
    there.write_text("mine")
    with pytest.raises(SettingsError, match="exists already"):
        run("questions", "--data", data, "--output", there)
    assert there.read_text() == "mine"
    data.chmod(0o555)  # refused to an administrator too
    try:
        with pytest.raises(SettingsError, match="cannot be written"):
            run("questions", "--data", data)
    finally:
        data.chmod(0o755)
    assert not (data / "questions.jsonl").exists()


def test_a_split_that_is_not_there_is_named_with_those_that_are(data: Path) -> None:
    with pytest.raises(SettingsError, match="Splits: train, validation"):
        run("questions", "--data", data, "--split", "test")
    with pytest.raises(SettingsError, match="at least 1"):
        run("questions", "--data", data, "--per-study", "0")
