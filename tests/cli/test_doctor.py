"""The command prints what was found, and its exit status says whether a check failed."""

from __future__ import annotations

import json
import sys

import pytest

from mrrag.bench import doctor as module
from mrrag.bench.doctor import Diagnosis
from mrrag.bench.self_test import Check
from mrrag.cli.main import main

PASSED = (Check("model", True, "Loaded in 0.4 s."), Check("captured step", None, "Not on a CPU."))
FAILED = Check("steered rows", False, "Largest error 0.2.", 0.2, 1e-5)


def run(monkeypatch: pytest.MonkeyPatch, *options: str, checks: tuple[Check, ...] = PASSED) -> int:
    found = Diagnosis(
        {"python": "3.11"}, {"system": "Linux"}, "bundled", "No GPU.", "Reached.", "it", checks, 7.0
    )
    monkeypatch.setattr(module, "examine", lambda assets, **_: found)
    monkeypatch.setattr(sys, "argv", ["mrrag", "doctor", *options])
    return main()


def test_a_check_that_does_not_apply_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "| the page's model | bundled. No GPU. |" in printed
    assert "| captured step | not tested | Not on a CPU. |" in printed


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_failed_check_is_printed_and_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    assert run(monkeypatch, *options, checks=(*PASSED, FAILED)) == 1
    said = capsys.readouterr()
    assert "Failed: steered rows." in said.err
    if options:
        check = json.loads(said.out)["checks"][2]
        assert check == {
            "name": "steered rows",
            "passed": False,
            "detail": "Largest error 0.2.",
            "measured": 0.2,
            "allowed": 1e-5,
        }
    else:
        assert "| steered rows  | FAILED     | Largest error 0.2. |" in said.out


def test_a_package_that_cannot_be_loaded_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mrrag.bench.doctor", None)
    monkeypatch.setattr(sys, "argv", ["mrrag", "doctor"])
    assert main() == 1
    assert (
        "error: A package cannot be loaded here (ModuleNotFoundError: " in capsys.readouterr().err
    )
