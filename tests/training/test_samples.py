"""The sample cases are chosen by what was measured, and say so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mrrag.phantom.world import draw_studies
from mrrag.training.samples import BEHAVIOURS, Measured, SampleCase, write_samples

CASES = Path(__file__).parents[2] / "sample_cases" / "cases.json"


def test_the_bundled_cases_have_the_titles_and_notes_of_their_behaviours() -> None:
    texts = {(b.title, b.note.format(noise=4 if b.noisy else 0)) for b in BEHAVIOURS}
    cases = json.loads(CASES.read_text(encoding="utf-8"))
    assert {(case["title"], case["note"]) for case in cases} == texts


def test_a_behaviour_is_shown_only_by_questions_with_the_answers_that_it_names() -> None:
    off, rag, mr_rag, noisy_rag, noisy_mr_rag, yes = np.indices((2,) * 6).reshape(6, -1) == 1
    figures = np.zeros(len(off))
    measured = Measured(off, rag, mr_rag, noisy_rag, noisy_mr_rag, yes, yes, figures, figures)
    shown = {behaviour.title: behaviour.shown(measured) for behaviour in BEHAVIOURS}
    missed = shown["Retrieval corrects a missed finding"]
    assert missed.any()
    assert not off[missed].any()
    assert (mr_rag & yes)[missed].all()
    assert not (missed & shown["Retrieval corrects a false positive"]).any()
    resisted = shown["IFA resists irrelevant reports"]
    assert (rag & noisy_mr_rag)[resisted].all()
    assert not noisy_rag[resisted].any()


def test_written_cases_are_of_all_four_kinds_of_file(tmp_path: Path) -> None:
    studies = draw_studies(4, seed=1)
    write_samples(tmp_path, [SampleCase(n, "t", "q", "n") for n in range(4)], studies)
    listed = json.loads((tmp_path / "cases.json").read_text(encoding="utf-8"))
    names = [case["file"] for case in listed]
    assert names == ["case-1.dcm", "case-2.dcm", "case-3.png", "case-4.png"]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)
