"""The public face: its names, its documentation, and a case in a few lines."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mrrag
from mrrag.files import ASSETS

SAMPLES = ASSETS.parent / "sample_cases"
QUESTION = "Is an enlarged heart present in this image?"


@pytest.fixture(scope="module")
def rag() -> mrrag.MRRAG:
    return mrrag.load()


@pytest.fixture(scope="module")
def case(rag: mrrag.MRRAG) -> mrrag.CaseReport:
    return rag.ask(SAMPLES / "case-1.dcm", QUESTION, k=8)


def test_every_public_name_exists_and_every_home_is_public() -> None:
    assert set(mrrag.__all__) == {*mrrag._MODULES, "__version__"}
    for name in mrrag.__all__:
        assert getattr(mrrag, name) is not None
    assert set(mrrag.__all__) <= set(dir(mrrag))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mrrag.nothing


@pytest.mark.parametrize("name", [n for n in mrrag.__all__ if n != "__version__"])
def test_every_public_name_is_documented(name: str) -> None:
    public = getattr(mrrag, name)
    assert inspect.getdoc(public)
    assert public.__module__.startswith("mrrag.")
    if inspect.isclass(public) and not issubclass(public, Exception):
        methods = [m for n, m in vars(public).items() if inspect.isfunction(m) and n[0] != "_"]
        assert all(inspect.getdoc(method) for method in methods)


def test_importing_the_package_loads_no_torch() -> None:
    check = "import sys, mrrag, mrrag.errors, mrrag.case; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_case_is_asked_in_two_lines(case: mrrag.CaseReport) -> None:
    assert list(case.answers) == ["rag_off", "rag", "mr_rag"]
    assert case.answers["mr_rag"].text
    assert len(case.retrieved) == 8
    assert case.retrieved[0].score >= case.retrieved[-1].score
    assert case.after is not None
    assert np.allclose(case.after.mass_LHS.sum(-1), 1.0, atol=1e-4)
    assert case.influence is not None


def test_a_case_shows_itself_in_a_terminal_and_in_a_notebook(case: mrrag.CaseReport) -> None:
    assert len(repr(case)) < 600
    assert case.answers["rag"].text in repr(case)
    html = case._repr_html_()
    assert type(html) is str  # joined with other markup, it stays markup
    assert QUESTION in html
    assert "<script" not in html
    assert case.retrieved[0].document.report.split(".")[0] in html


def test_a_case_is_exported_as_the_command_line_does(case: mrrag.CaseReport) -> None:
    exported = json.loads(json.dumps(case.to_json()))
    assert exported["question"] == QUESTION
    assert case.to_html().startswith("<!doctype html>")
    assert len(case.to_html(pixels=False)) < len(case.to_html())


def test_a_stream_ends_with_its_case(rag: mrrag.MRRAG) -> None:
    *steps, last = rag.stream(SAMPLES / "case-3.png", QUESTION, k=2, max_new_tokens=3)
    assert steps
    assert all(isinstance(step, mrrag.Progress) for step in steps)
    assert isinstance(last, mrrag.CaseReport)
    assert last.influence is None
    assert rag.explain(last).influence is not None


def test_a_case_is_put_to_the_arena(rag: mrrag.MRRAG, case: mrrag.CaseReport) -> None:
    found = rag.arena(case, ["rag", "vote"])
    assert list(found) == ["rag", "vote"]
    assert found["rag"].p_yes == pytest.approx(case.answers["rag"].p_yes, abs=0.02)
    with pytest.raises(mrrag.SettingsError, match="no method"):
        rag.arena(case, ["nothing"])


def test_an_image_may_be_a_path_its_bytes_an_image_or_none(rag: mrrag.MRRAG) -> None:
    path = SAMPLES / "case-1.dcm"
    pictures: list[str | Path | bytes | mrrag.Image] = [
        str(path), path, path.read_bytes(), mrrag.load_image(path),
    ]  # fmt: skip
    found = [[r.score for r in rag.retrieve(p, QUESTION, k=3).retrieved] for p in pictures]
    assert all(scores == found[0] for scores in found)
    assert "without an image" in rag.retrieve(None, QUESTION).notes[0]


def test_settings_are_keywords_and_change_a_value_that_is_given(rag: mrrag.MRRAG) -> None:
    path = SAMPLES / "case-1.dcm"
    evidence = rag.retrieve(path, QUESTION, k=2, weights=(0.0, 1.0, 0.0))
    assert evidence.weights == mrrag.Weights(0.0, 1.0, 0.0)
    given = mrrag.Settings(k=5, weights=mrrag.Weights(1.0, 0.0, 0.0))
    evidence = rag.retrieve(path, QUESTION, settings=given, k=3)
    assert len(evidence.retrieved) == 3
    assert evidence.weights == given.weights
    with pytest.raises(TypeError, match="strenght"):
        rag.retrieve(path, QUESTION, strenght=2.0)
    with pytest.raises(mrrag.SettingsError, match="0 to 10"):
        rag.ask(path, QUESTION, strength=11.0)
