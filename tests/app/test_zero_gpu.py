"""Answering on a lent device is answering, but for what cannot leave that device."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from mrrag.case import Case, Settings
from mrrag.data.images import load_image
from mrrag.errors import ModelError
from mrrag.evidence import find_evidence
from mrrag.explain import explain
from mrrag.files import ASSETS
from mrrag.pipeline import Pipeline, answer
from mrrag.types import Query

SAMPLES = Path(ASSETS).parent / "sample_cases"


def test_a_lent_case_is_the_same_case_and_can_be_sent(pipeline: Pipeline) -> None:
    pytest.importorskip("spaces")
    from app.zero_gpu import lend, seconds_for

    query = Query(load_image(SAMPLES / "case-1.dcm"), "Is there a pleural effusion?")
    settings = Settings()
    evidence = find_evidence(pipeline, query, settings)
    *_, here = answer(pipeline, query, evidence, settings)
    on_gpu = lend(pipeline)
    *_, lent = on_gpu.answer(pipeline, query, evidence, settings)
    assert isinstance(here, Case)
    assert isinstance(lent, Case)
    assert here.cache is not None
    assert lent.cache is None
    assert {m: a.text for m, a in lent.answers.items()} == {
        m: a.text for m, a in here.answers.items()
    }
    explained = on_gpu.explain(pipeline, query, lent, vectors=evidence.vectors)
    by_hand = explain(pipeline, query, here, vectors=evidence.vectors)
    assert explained.influence == by_hand.influence
    # What goes there and what comes back travel between processes.
    pickle.loads(pickle.dumps((query, evidence, settings, evidence.vectors)))
    assert pickle.loads(pickle.dumps(explained)).answers == lent.answers
    assert 10 < seconds_for(query, evidence, settings) < 60


def test_why_no_gpu_was_lent_is_said(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("spaces")
    from spaces.zero.gradio import error

    from app import zero_gpu

    query = Query(None, "Is there a pleural effusion?")
    evidence = find_evidence(pipeline, query, Settings())

    def lent(raised: Exception) -> list[object]:
        def fail(*_: object) -> None:
            raise raised

        monkeypatch.setattr(zero_gpu, "answer_case", fail)
        return list(zero_gpu.lend(pipeline).answer(pipeline, query, evidence, Settings()))

    with pytest.raises(ModelError, match=r"^No GPU could be borrowed .+ 3s left\)\. Try later\.$"):
        lent(error("ZeroGPU quota exceeded", "60s against 3s left). <a href='x'>Try later</a>."))
    with pytest.raises(ZeroDivisionError):
        lent(ZeroDivisionError("of ours"))


def test_stop_ends_the_lent_call(pipeline: Pipeline) -> None:
    pytest.importorskip("spaces")
    from app.zero_gpu import lend

    query = Query(load_image(SAMPLES / "case-1.dcm"), "Is there a pleural effusion?")
    evidence = find_evidence(pipeline, query, Settings())
    answer = lend(pipeline).answer
    steps = answer(pipeline, query, evidence, Settings(), cancelled=lambda: True)
    assert list(steps) == []


def test_a_declined_question_borrows_no_gpu_to_be_explained(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("spaces")
    from app import zero_gpu

    query = Query(load_image(SAMPLES / "case-1.dcm"), "Is the patient a smoker?")
    *_, case = answer(pipeline, query, find_evidence(pipeline, query, Settings()), Settings())
    monkeypatch.setattr(zero_gpu, "explain_case", lambda *_: pytest.fail("A GPU was borrowed."))
    assert isinstance(case, Case)
    assert zero_gpu.lend(pipeline).explain(pipeline, query, case) is case
