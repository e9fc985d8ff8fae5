"""The command line, as a person calls it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mrrag.cli.main import main
from mrrag.phantom.write import write_data_set

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mrrag", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The same in this process, which has torch already."""

    def run_here(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["mrrag", *arguments])
        try:
            code = main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return run_here


def test_ask_prints_one_object_with_all_that_was_computed() -> None:
    done = run("ask", "sample_cases/case-1.dcm", "Is there a pleural effusion?", "--json")
    assert done.returncode == 0, done.stderr
    case = json.loads(done.stdout)
    assert set(case["answers"]) == {"rag_off", "rag", "mr_rag"}
    first = case["retrieved"][0]
    assert set(first["cosines"]) == {"image_report", "image_image", "question_report"}
    assert sum(first["terms"].values()) == first["score"]
    assert first["lambda"] == 1.0
    assert first["rank"] == 1
    assert len(case["trace"]["before"]) == len(case["trace"]["layers"])
    assert case["settings"]["k"] == 8
    assert "torch" in case["versions"]


def test_a_file_that_is_no_picture_is_one_clear_line(command: Command) -> None:
    done = command("ask", "README.md", "Is there a pleural effusion?")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_an_absent_file_is_one_clear_line(command: Command) -> None:
    done = command("ask", "nowhere.dcm", "Is there a pleural effusion?")
    assert done.returncode == 1
    assert "could not be opened" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_command(command: Command) -> None:
    done = command("--help")
    for command in (
        *("ask", "evaluate", "bench", "phantom", "train-adapter", "find-layers"),
        *("corpus", "fetch", "index"),
    ):
        assert command in done.stdout


def test_a_data_set_is_described_and_indexed(command: Command, tmp_path: Path) -> None:
    data, kb = tmp_path / "data", tmp_path / "kb"
    write_data_set(data, "fairvlmed", patients=12, seed=5, size=64, workers=1)
    (data / "Training" / "data_99999.npz").write_bytes(b"")
    done = command("corpus", str(data), "--list-skipped")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["layout", "fairvlmed"]
    assert "cases           12" in lines
    assert lines[-2:] == ["skipped row          1  no summary", "    Training/data_99999.npz"]
    done = command("index", "--data", str(data), "--kb", str(kb))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("8 of 12 cases (split: train); 1 rows skipped\n")
    assert "not indexed: 1 validation, 3 test (--split all includes them)" in done.stdout
    assert "\n8 documents" in done.stdout
    manifest = json.loads((kb / "manifest.json").read_text())
    assert manifest["splits"] == {"train": 8}
    done = command("index", "--data", str(data), "--kb", str(kb), "--split", "nobody", "--update")
    assert done.returncode == 1
    assert "error: No case is of the split nobody. The data set has 8 train" in done.stderr


def test_an_experiment_leaves_its_tables_in_the_run_folder(
    command: Command, tmp_path: Path
) -> None:
    data, folder = tmp_path / "data", tmp_path / "run"
    write_data_set(data, patients=12, seed=5, size=64, workers=1)
    options = ("--questions", "6", "--k", "2", "--noise", "0.5", "--methods", "rag_off", "rag")
    options += ("--weights", "0.4", "0.4", "0.2")
    where = ("--data", str(data), "--split", "all", "--folder", str(folder))
    done = command("evaluate", *where, *options, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["n"], result["k"], result["split"]) == (6, 2, "all")
    assert [row["method"] for row in result["methods"]] == ["rag_off", "rag"]
    assert result["weights"] == {"alpha": 0.4, "beta": 0.4, "gamma": 0.2}
    assert result["noise"][0]["irrelevant"] == 1
    config = json.loads((folder / "config.json").read_text())
    assert config["data_fingerprint"] == result["data_fingerprint"]
    assert config["plan"]["seed"] == 0
    predictions = (folder / "predictions.csv").read_text().splitlines()
    assert len(predictions) == 1 + 5 * 6  # two of the five with a wrong picture
    assert len((folder / "metrics.csv").read_text().splitlines()) == 1 + 3
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
