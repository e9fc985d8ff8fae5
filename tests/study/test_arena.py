"""Every method of the arena answers the same questions, and stands in one table beside RAG."""

from __future__ import annotations

import html
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_experiment import LEARNT, MADE_OF, make_heads, make_pipeline, make_questions

from mrrag.data.images import read_image
from mrrag.model.answering import answer_batch
from mrrag.model.backbone import encode_all
from mrrag.model.emphasis import COLUMNS, LOOKING, TRANSFORMS
from mrrag.model.mixing import RULES
from mrrag.report.experiment_page import experiment_to_html
from mrrag.retrieval.selection import CUTS
from mrrag.study.answer_file import StoredAnswer, read_answers
from mrrag.study.arena import ARENA, WRITING, prompts_of
from mrrag.study.cost import seconds_each
from mrrag.study.evaluation import PROMPTS, branch_of, encode_questions
from mrrag.study.experiment import Experiment, answer_all, choose_questions, evidence_of
from mrrag.study.metrics import brier, holm, log_loss, mcnemar
from mrrag.study.plan import Plan, cells_of
from mrrag.study.tables import metric_rows, tables
from mrrag.study.text import tables_text
from mrrag.types import PLAIN, Mixture, Opera, Rival

PLAN = Plan((3,), (0.0, 0.67), methods=(), arena=tuple(ARENA), wrong_picture=False)
Made = tuple[Any, Experiment, dict[str, StoredAnswer]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llava_folder: Path) -> Made:
    folder = tmp_path_factory.mktemp("arena")
    pipeline, cases = make_pipeline(folder, tiny_llava_folder)
    questions = choose_questions(cases, make_questions(cases), limit=9)
    cells = tuple(cells_of(PLAN, LEARNT, pipeline.backbone.layers, make_heads()))
    experiment = Experiment(questions, PLAN, cells, MADE_OF)
    answer_all(pipeline, experiment, folder / "run", batch=8)
    return pipeline, experiment, read_answers(folder / "run")


@pytest.fixture(scope="module")
def result(made: Made) -> dict[str, Any]:
    pipeline, experiment, answers = made
    return tables(experiment, answers, pipeline.knowledge_base, LEARNT)[0]


def row_of(result: dict[str, Any], method: str, irrelevant: int) -> dict[str, Any]:
    (row,) = [r for r in result["arena"] if (r["method"], r["irrelevant"]) == (method, irrelevant)]
    return row


def test_every_name_that_a_method_uses_is_known() -> None:
    for method in ARENA.values():
        if isinstance(method.way, Opera):
            assert {*method.way.looks} <= {*COLUMNS}
        assert method.cut in ("", *CUTS)
        if isinstance(method.way, Rival):
            for emphasis in method.way.emphases:
                assert emphasis.transform in TRANSFORMS
                assert emphasis.columns in COLUMNS
                assert emphasis.rows in LOOKING
            if method.way.mixture:
                assert method.way.mixture.prompts in PROMPTS
                assert method.way.mixture.rule in RULES


def test_every_method_answers_in_every_block(result: dict[str, Any]) -> None:
    assert [r["method"] for r in result["arena"]][: len(ARENA)] == [
        "rag",
        *(name for name in ARENA if name != "rag"),
    ]
    assert len(result["arena"]) == 2 * len(ARENA)
    for row in result["arena"]:
        assert math.isfinite(row["log_loss"])
        assert 0 <= row["brier"] <= 1
        assert ("test" in row) == (row["method"] != "rag")


def test_a_row_s_figures_follow_from_its_answers(made: Made, result: dict[str, Any]) -> None:
    _, experiment, answers = made
    gold = np.array([item.gold for item in experiment.questions.items], dtype=np.int8)
    cells = {c.name: c for c in experiment.cells if c.table == "arena, 2 random"}
    p_yes, said = {}, {}
    for name in ("rag", "replug"):
        rows = [answers[key] for key in experiment.keys(cells[name].reading, cells[name].steering)]
        p_yes[name] = np.array([row.p_yes for row in rows])
        starts = [row.text.lower()[:3] for row in rows]
        said[name] = np.array([1 if s == "yes" else 0 if s[:2] == "no" else -1 for s in starts])
    row = row_of(result, "replug", 2)
    assert row["log_loss"] == pytest.approx(log_loss(gold, p_yes["replug"]))
    assert row["brier"] == pytest.approx(brier(gold, p_yes["replug"]))
    lost, won, p = mcnemar(gold, said["rag"].astype(np.int8), said["replug"].astype(np.int8))
    test = row["test"]
    assert (test["only_first_right"], test["only_second_right"], test["p"]) == (lost, won, p)
    block = [r for r in result["arena"] if r["irrelevant"] == 2 and "test" in r]
    corrected = holm([r["test"]["p"] for r in block])
    assert [r["test"]["p_holm"] for r in block] == pytest.approx(corrected)


@pytest.mark.parametrize("name", WRITING)
def test_what_acts_while_writing_says_the_same_at_the_first_token(
    result: dict[str, Any], name: str
) -> None:
    row, namesake = row_of(result, name, 2), row_of(result, name.removesuffix("_writing"), 2)
    assert (row["log_loss"], row["brier"]) == (namesake["log_loss"], namesake["brier"])


def test_what_was_read_is_counted(result: dict[str, Any]) -> None:
    read = {name: row_of(result, name, 0) for name in ARENA}
    assert (read["rag"]["reports"], read["rag"]["prompts"]) == (3, 1)
    assert (read["rag_off"]["reports"], read["rag_off"]["prompts"]) == (0, 1)
    assert (read["replug"]["reports"], read["replug"]["prompts"]) == (3, 3)
    assert (read["top_report"]["reports"], read["top_report"]["prompts"]) == (1, 1)
    assert read["cad"]["prompts"] == read["pai"]["prompts"] == 2
    assert (read["mad"]["reports"], read["mad"]["prompts"]) == (3, 1)
    assert prompts_of(PLAIN, 8) == 1


def test_a_fusion_is_the_mean_of_single_reports_and_a_cut_to_one_is_its_first(made: Made) -> None:
    pipeline, experiment, answers = made
    cells = {c.name: c for c in experiment.cells if c.table == "arena"}
    items = experiment.questions.items[:3]
    encoded = encode_questions(pipeline, [(item.case, item.question) for item in items])
    for i, item in enumerate(encoded):
        found = evidence_of(pipeline, item, cells["rag"].reading, experiment.seed(i))
        branches = [branch_of(pipeline, item, [r.document.report]) for r in found]
        alone = answer_batch(pipeline.backbone, branches)
        yes, no = alone.p_yes.mean(), alone.p_no.mean()

        def stored(name: str, i: int = i) -> float:
            key = experiment.keys(cells[name].reading, cells[name].steering)[i]
            return answers[key].p_yes

        assert stored("uniform") == pytest.approx(yes / (yes + no), abs=1e-5)
        first = alone.p_yes[0] / (alone.p_yes[0] + alone.p_no[0])
        assert stored("top_report") == pytest.approx(first, abs=1e-5)


def test_few_shot_shows_each_report_after_the_picture_of_its_own_document(made: Made) -> None:
    pipeline, experiment, answers = made
    (cell,) = [c for c in experiment.cells if c.name == "few_shot" and not c.reading.noise]
    item = experiment.questions.items[0]
    (encoded,) = encode_questions(pipeline, [(item.case, item.question)])
    found = evidence_of(pipeline, encoded, cell.reading, experiment.seed(0))
    (branch,) = PROMPTS["pictures"](pipeline, encoded, found).branches
    base, backbone = pipeline.knowledge_base, pipeline.backbone
    pictures = [read_image(base.thumbnail(r.number)) for r in found]
    assert branch.features is not None
    assert encoded.features is not None
    shown = torch.cat([encoded.features, encode_all(backbone, pictures)], 1)
    assert torch.equal(branch.features, shown)
    names = [s.name for s in branch.prompt.spans if s.name.startswith(("picture", "report"))]
    assert names == [f"{what} {k}" for k in (1, 2, 3) for what in ("picture", "report")]
    direct = answer_batch(backbone, [branch])
    said = float(direct.p_yes[0] / (direct.p_yes[0] + direct.p_no[0]))
    key = experiment.keys(cell.reading, cell.steering)[0]
    assert answers[key].p_yes == pytest.approx(said, abs=1e-5)


def test_a_way_of_the_arena_has_keys_of_its_own(made: Made) -> None:
    experiment = made[1]
    reading = experiment.cells[0].reading
    ways = [PLAIN, Rival(), *(Rival(mixture=Mixture("no reports", "contrast", a)) for a in (1, 2))]
    assert len({experiment.keys(reading, way)[0] for way in ways}) == len(ways)


def test_seconds_are_beside_plain_rag_s(made: Made) -> None:
    pipeline, experiment, _ = made
    some = ("rag", "rag_off", "replug", "opera", "mad")
    few = replace(experiment, cells=tuple(c for c in experiment.cells if c.name in some))
    seconds = seconds_each(pipeline, few, questions=2)
    assert {*seconds} == {*some}
    assert min(seconds.values()) > 0


def test_text_page_and_csv_hold_the_arena(result: dict[str, Any]) -> None:
    shown = result | {"arena_seconds": {"rag": 0.5, "replug": 1.25}, "data": "made up"}
    assert "chosen setting" not in tables_text(shown)
    shown |= {"arena_settings": {"replug": "τ = 0.3"}}
    text = tables_text(shown)
    assert "chosen setting" in text
    assert text.count("τ = 0.3") == 2
    assert "arena, K = 3, 2 irrelevant, random" in text
    assert "× 2.50" in text
    assert "0.500 s an answer" in text
    page = html.unescape(experiment_to_html(shown))
    assert "τ = 0.3" in page
    for method in ARENA.values():
        assert text.count(method.title) >= 2
        assert method.title in page
    assert len([r for r in metric_rows(result) if r["table"] == "arena"]) == 2 * len(ARENA)
