"""A case as JSON and as a page, and asked again from its JSON."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrrag.case import Case, Settings
from mrrag.cli.main import main
from mrrag.data.images import load_image
from mrrag.errors import SettingsError
from mrrag.evidence import find_evidence
from mrrag.explain import explain
from mrrag.files import ASSETS
from mrrag.loading import load_pipeline
from mrrag.pipeline import Pipeline, answer
from mrrag.report.case_page import case_to_html
from mrrag.report.export import case_to_json, differences, read_case
from mrrag.types import Image, Query, Weights

ROOT = ASSETS.parent
SAMPLE = (
    ROOT / "sample_cases" / json.loads((ROOT / "sample_cases/cases.json").read_text())[0]["file"]
)
QUESTION = "</script><script>alert(1)</script> Is there a pleural effusion?"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline()


@pytest.fixture(scope="module")
def image() -> Image:
    return load_image(SAMPLE)


def case_of(pipeline: Pipeline, image: Image, question: str, settings: Settings) -> Case:
    query = Query(image, question)
    evidence = find_evidence(pipeline, query, settings)
    *_, case = answer(pipeline, query, evidence, settings)
    assert isinstance(case, Case)
    return explain(pipeline, query, case)


@pytest.fixture(scope="module")
def case(pipeline: Pipeline, image: Image) -> Case:
    plain = find_evidence(pipeline, Query(image, QUESTION), Settings(k=6)).retrieved
    settings = Settings(
        k=5,
        weights=Weights(0.2, 0.5, 0.3),
        strength=0.7,
        layers=(1,),
        noise=1,
        seed=3,
        pinned=(plain[5].document.id,),
        excluded=(plain[0].document.id,),
    )
    return case_of(pipeline, image, QUESTION, settings)


@pytest.fixture(scope="module")
def exported(case: Case, image: Image) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(json.dumps(case_to_json(case, image), allow_nan=False))
    return whole


def test_an_exported_case_asked_again_gives_the_same_answers(
    pipeline: Pipeline, image: Image, exported: dict[str, Any]
) -> None:
    saved = read_case(exported)
    again = case_of(pipeline, image, saved.question, saved.settings)
    assert differences(saved, case_to_json(again, image)) == ([], [])


def test_the_export_holds_all_that_was_shown(case: Case, exported: dict[str, Any]) -> None:
    assert exported["input"]["sha256"]
    assert exported["settings"]["layers"] == [1]
    assert [r["drawn_at_random"] for r in exported["retrieved"]].count(True) == 1
    assert all(0 <= r["usual_percentile"] <= 100 for r in exported["retrieved"])
    (vote,) = exported["votes"]
    assert vote["affirm"] + vote["deny"] + vote["doubt"] <= vote["reports"] == len(case.retrieved)
    assert 0 < vote["base_rate"] < 1
    assert exported["warnings"] == case.warnings
    assert len(exported["influence"]["before"]) == 5
    assert case.picture is not None
    assert exported["picture"]["sentence"] == case.picture.sentence
    assert exported["picture"]["p_yes"]["rag"]["as_asked"] == case.answers["rag"].p_yes
    assert not exported["answers"]["rag"]["outside"]
    assert {"model", "encoder", "knowledge_base", "torch"} <= set(exported["versions"])


def test_what_was_learnt_is_written_out(pipeline: Pipeline, image: Image) -> None:
    exported = case_to_json(case_of(pipeline, image, "Is there a nodule?", Settings(k=2)), image)
    assert exported["settings"]["weights"]["alpha"] == pipeline.learnt.weights.alpha
    assert exported["settings"]["strength"] == pipeline.learnt.steering.strength
    assert tuple(exported["settings"]["layers"]) == pipeline.learnt.steering.layers
    assert exported["settings"]["form"] == pipeline.learnt.steering.form


def test_a_case_of_the_first_format_was_steered_as_in_the_paper(exported: dict[str, Any]) -> None:
    old = copy.deepcopy(exported) | {"format": 1}
    old["settings"].pop("form")
    old.pop("picture")
    assert read_case(old).settings.form == "ifa"


def test_a_case_steered_by_what_is_no_more_is_not_answered_in_another_way(
    exported: dict[str, Any],
) -> None:
    old = copy.deepcopy(exported) | {"format": 2}
    old["settings"]["form"] = "balanced"
    with pytest.raises(SettingsError, match="Ask the question again"):
        read_case(old)
    old["settings"]["form"] = "ifa"
    assert read_case(old).settings.form == "ifa"


def test_another_picture_or_version_is_said(image: Image, exported: dict[str, Any]) -> None:
    now = copy.deepcopy(exported)
    now["input"]["sha256"] = "0" * 64
    now["versions"]["model"] = "another"
    around, found = differences(read_case(exported), now)
    assert any("another file" in sentence for sentence in around)
    assert any(sentence.startswith("model was") for sentence in around)
    assert found == []
    now["answers"]["rag"]["text"] = "Perhaps."
    now["answers"]["rag_off"]["p_yes"] = None
    assert len(differences(read_case(exported), now)[1]) == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda e: 3,
        lambda e: [],
        lambda e: {},
        lambda e: e | {"format": 99},
        lambda e: e | {"format": "1"},
        lambda e: e | {"settings": {}},
        lambda e: e | {"settings": e["settings"] | {"open": "x"}},
        lambda e: e | {"settings": e["settings"] | {"weights": [1, 2, 3]}},
        lambda e: e | {"answers": {}},
        lambda e: e | {"versions": None},
        lambda e: e | {"input": 7},
    ],
)
def test_what_is_no_exported_case_is_refused(exported: dict[str, Any], spoil: Any) -> None:
    with pytest.raises(SettingsError):
        read_case(spoil(copy.deepcopy(exported)))


def test_the_page_needs_nothing_else_and_holds_the_case(
    pipeline: Pipeline, case: Case, exported: dict[str, Any], image: Image
) -> None:
    page = case_to_html(case, exported)
    assert "<img" not in page.replace(plotly_own(), "")
    assert page.count("plotly.js v") == 1
    own = page.replace(plotly_own(), "")
    assert not re.search(r"(src|href)=\"?(http|//)|@import|url\(", own)
    assert "<script>alert(1)" not in own
    held = re.search(r'<script type="application/json" id="case">(.*?)</script>', own, re.S)
    assert held is not None
    assert json.loads(held.group(1)) == exported
    assert "Research demonstration. Not a medical device." in own


def test_pictures_are_in_the_page_only_where_asked_for(
    pipeline: Pipeline, case: Case, exported: dict[str, Any], image: Image
) -> None:
    own = case_to_html(case, exported, (image, pipeline.knowledge_base)).replace(plotly_own(), "")
    assert own.count("<img") == 1 + len(case.retrieved) + 1  # and the least similar one


def test_answers_about_a_picture_the_model_does_not_know_say_so(pipeline: Pipeline) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120)).astype(np.uint8)
    query = Query(Image(noise), "Is there a nodule?")
    evidence = find_evidence(pipeline, query, Settings(k=2))
    by_question = Settings(k=2, weights=Weights(0.0, 0.0, 1.0))
    again = find_evidence(pipeline, query, by_question, known=evidence)
    assert again.warnings["outside"] == evidence.warnings["outside"]
    unknown = case_of(pipeline, Image(noise), query.question, Settings(k=2))
    exported = case_to_json(unknown, Image(noise))
    assert next(iter(exported["warnings"])) == "outside"
    assert all(answer["outside"] for answer in exported["answers"].values())
    page = case_to_html(unknown, exported).replace(plotly_own(), "")
    assert page.count("Means nothing for this picture") == 3
    assert page.count("Its answers mean nothing for this picture.</p>") == 2  # evidence, answers


def plotly_own() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def test_the_command_line_asks_an_exported_case_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["mrrag", "ask", *arguments])
        assert main() == 0
        said = capsys.readouterr()
        return said.out, said.err

    options = ("--k", "4", "--noise", "1", "--json", "--html", str(tmp_path / "case.html"))
    first, _ = run(str(SAMPLE), "Is there a nodule?", *options)
    (tmp_path / "case.json").write_text(first)
    assert "Is there a nodule?" in (tmp_path / "case.html").read_text(encoding="utf-8")
    _, said = run(str(SAMPLE), "--from", str(tmp_path / "case.json"))
    assert "The answers are those of the exported case." in said
    assert "differs" not in said
