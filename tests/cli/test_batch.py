"""``ask --batch``: a table of questions, answered into one file that can be resumed."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mrrag.cli.batch import BLOCK, end_of_lines
from mrrag.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "sample_cases"
QUESTION = "Is there evidence of pulmonary edema?"
Ask = Callable[..., tuple[int, str]]


def table(path: Path, rows: Sequence[Sequence[str]], head: str = "image,question,frame") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head.split(","), *rows])
    return path


def many(path: Path, count: int) -> Path:
    questions = (QUESTION, "Is there a pleural effusion?")
    pictures = (str(SAMPLES / "case-1.dcm"), str(SAMPLES / "case-3.png"))
    rows = [(pictures[n % 2], questions[n % 3 % 2], "") for n in range(count)]
    return table(path, rows)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_seconds(value: Any, near: bool = False) -> Any:
    """Leave out the seconds; ``near``: numbers stand for all that are alike to four digits.

    Another number of threads changes the last digits.
    """
    if isinstance(value, dict):
        return {n: without_seconds(v, near) for n, v in value.items() if n != "seconds"}
    if isinstance(value, list):
        return [without_seconds(v, near) for v in value]
    return pytest.approx(value, abs=1e-4) if near and isinstance(value, float) else value


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """The command in this process; returns its exit code and what it said."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mrrag", "ask", *map(str, arguments)])
        return main(), capsys.readouterr().err

    return run


def test_each_row_has_its_line_and_a_bad_one_stops_nothing(
    ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dicom = SAMPLES / "case-1.dcm"
    (tmp_path / "beside.png").write_bytes((SAMPLES / "case-3.png").read_bytes())
    (tmp_path / "broken.dcm").write_text("no picture")
    cases = table(
        tmp_path / "cases.csv",
        [
            (str(dicom), QUESTION, "0"),
            ("absent.png", QUESTION, ""),
            ("broken.dcm", QUESTION, ""),
            ("", QUESTION, ""),
            (str(dicom), "", ""),
            (str(dicom), QUESTION, "7"),
            (str(dicom), QUESTION, "first"),
            ("beside.png", QUESTION),
        ],
    )
    output = tmp_path / "answers.jsonl"
    code, said = ask("--batch", cases, "--output", output, "--k", 3)
    lines = lines_of(output)
    assert [line["row"] for line in lines] == list(range(1, 9))
    sentences = [line["error"] for line in lines]
    assert sentences[0] is sentences[-1] is None
    for sentence, part in zip(
        sentences[1:-1],
        ("opened", "unsupported type", "no image", "empty", "has 1 frame", "whole number"),
        strict=True,
    ):
        assert part in sentence
    assert code == 1
    assert "6 of 8 rows have no answer" in said
    assert "asking" in said  # the progress
    capsys.readouterr()
    assert [path.name for path in tmp_path.glob(".*")] == []  # no lock is left


def test_a_line_holds_what_ask_prints(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, output = many(tmp_path / "cases.csv", 1), tmp_path / "answers.jsonl"
    assert ask("--batch", cases, "--output", output, "--k", 3)[0] == 0
    (line,) = lines_of(output)
    monkeypatch.setattr(
        sys, "argv", ["mrrag", "ask", line["image"], line["question"], "--k", "3", "--json"]
    )
    assert main() == 0
    printed = {"case": json.loads(capsys.readouterr().out)}
    assert without_seconds(line["case"]) == without_seconds(printed["case"], near=True)


def test_a_killed_batch_goes_on_without_loss_or_repetition(ask: Ask, tmp_path: Path) -> None:
    cases, output, whole = (
        many(tmp_path / "cases.csv", 6),
        tmp_path / "answers.jsonl",
        tmp_path / "whole.jsonl",
    )
    command = [sys.executable, "-m", "mrrag", "ask", "--batch", str(cases), "--k", "2"]
    process = subprocess.Popen(
        [*command, "--output", str(output)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 240
        while not (output.exists() and output.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = output.read_bytes()
    assert 2 <= kept.count(b"\n") < 6
    output.write_bytes(kept + b'{"row": 99, "ca')  # as if it had been killed while writing
    code, said = ask("--batch", cases, "--output", output, "--k", 2)
    assert code == 0
    assert "of 6 rows have a line already" in said
    assert output.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert ask("--batch", cases, "--output", whole, "--k", 2)[0] == 0
    assert without_seconds(lines_of(output)) == without_seconds(lines_of(whole), near=True)
    done = output.read_bytes()
    assert ask("--batch", cases, "--output", output, "--k", 2)[0] == 0
    assert output.read_bytes() == done


def test_answers_of_another_table_or_setting_are_never_mixed(ask: Ask, tmp_path: Path) -> None:
    cases, output = many(tmp_path / "cases.csv", 2), tmp_path / "answers.jsonl"
    assert ask("--batch", cases, "--output", output, "--k", 2)[0] == 0
    before = output.read_bytes()
    other = table(tmp_path / "other.csv", [(str(SAMPLES / "case-3.png"), "Is it?", "")] * 2)
    shorter = many(tmp_path / "shorter.csv", 1)
    for rows, k, number in ((cases, 3, 1), (other, 2, 1), (shorter, 2, 2)):
        code, said = ask("--batch", rows, "--output", output, "--k", k)
        assert code == 1
        assert f"Line {number} of" in said
        assert output.read_bytes() == before
    output.write_bytes(b"not ours\n" + before)
    assert "Line 1 of" in ask("--batch", cases, "--output", output, "--k", 2)[1]


def test_settings_that_are_not_allowed_are_refused_once(ask: Ask, tmp_path: Path) -> None:
    cases, output = many(tmp_path / "cases.csv", 3), tmp_path / "answers.jsonl"
    for option in (("--k", 0), ("--noise", 99), ("--layers", 77), ("--form", "worse")):
        code, said = ask("--batch", cases, "--output", output, *option)
        assert code == 1
        assert said.count("error:") == 1
        assert not output.exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"picture,question\na,b\n", "no column image"),
        (b"", "no column image and no column question"),
        (b"image,question\n\xff\xfe,b\n", "UTF-8"),
        (b'image,question\na,"' + b"x" * 200_000 + b'"\n', "field larger than"),
        (None, "No such file"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_before_the_model_is_loaded(
    ask: Ask, tmp_path: Path, content: bytes | None, part: str
) -> None:
    cases, output = tmp_path / "cases.csv", tmp_path / "answers.jsonl"
    if content is not None:
        cases.write_bytes(content)
    code, said = ask("--batch", cases, "--output", output, "--assets", tmp_path / "none")
    assert code == 1
    assert part in said
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--batch", "a.csv"], "go together"),
        (["--output", "a.jsonl"], "go together"),
        (["a.png", "Is it?", "--batch", "a.csv", "--output", "a.jsonl"], "Leave out image"),
        (["--batch", "a.csv", "--output", "a.jsonl", "--json"], "--json"),
        ([], "no image"),
    ],
)
def test_options_that_do_not_go_together_are_named(
    ask: Ask, arguments: list[str], part: str
) -> None:
    code, said = ask(*arguments)
    assert code == 1
    assert part in said


def test_two_commands_do_not_write_to_one_file(ask: Ask, tmp_path: Path) -> None:
    from mrrag.cli.batch import open_lines

    cases, output = many(tmp_path / "cases.csv", 1), tmp_path / "answers.jsonl"
    with open_lines(output):
        code, said = ask("--batch", cases, "--output", output)
    assert code == 1
    assert "Another command is writing" in said


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_the_end_of_the_last_line_is_found_however_far_back_it_is(
    tmp_path: Path, size: int
) -> None:
    for before in (b"", b"a line\n", b"x" * BLOCK + b"\n"):
        path = tmp_path / "lines"
        path.write_bytes(before + b"y" * size)
        with path.open("rb") as stream:
            assert end_of_lines(stream) == len(before)
