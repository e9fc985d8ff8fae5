"""The command line, as a person calls it."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mrrag", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


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


def test_a_file_that_is_no_picture_is_one_clear_line() -> None:
    done = run("ask", "README.md", "Is there a pleural effusion?")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_an_absent_file_is_one_clear_line() -> None:
    done = run("ask", "nowhere.dcm", "Is there a pleural effusion?")
    assert done.returncode == 1
    assert "could not be opened" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_command() -> None:
    done = run("--help")
    for command in ("ask", "evaluate", "bench", "phantom", "train-adapter", "find-layers"):
        assert command in done.stdout
