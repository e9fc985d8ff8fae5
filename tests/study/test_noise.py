"""Hard noise is irrelevant, near, and not to be told by its score."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_bitower import make_cases, make_loaded_tower

from mrrag.data.records import Question
from mrrag.errors import SettingsError
from mrrag.retrieval.build import build_knowledge_base
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.retrieval.mcr import retrieve
from mrrag.study.evaluation import EncodedItem
from mrrag.study.noise import hard_noise
from mrrag.types import QueryVectors, Weights

WEIGHTS = Weights(0.5, 0.3, 0.2)
SAID = ("There is a pleural effusion.", "No pleural effusion.", "The heart is large.")
Made = tuple[KnowledgeBase, EncodedItem]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Reports that affirm, deny, and say nothing of an effusion, each in words of its own."""
    folder = tmp_path_factory.mktemp("noise")
    tower = make_loaded_tower(folder / "tower")
    cases = [
        replace(c, document=replace(c.document, report=f"{SAID[n % 3]} Film number {n}."))
        for n, c in enumerate(make_cases(folder, 72))
    ]
    base = build_knowledge_base(folder / "kb", cases, tower, workers=1)
    question = Question("q", "d0", "Is there a pleural effusion?", "Yes", "closed")
    t, v = base.vectors([0])
    item = EncodedItem(question, cases[0], torch.zeros(1), QueryVectors(v[0], t[0]), 1)
    return base, item


@pytest.mark.parametrize(("kind", "said"), [("opposed", SAID[1]), ("silent", SAID[2])])
def test_the_nearest_of_their_kind_take_the_lowest_places(made: Made, kind: str, said: str) -> None:
    base, item = made
    whole = retrieve(base, item.vectors, WEIGHTS, 50, exclude_patients={"p0"})
    found = hard_noise(base, item, WEIGHTS, 6, 3, kind)
    drawn = [r for r in found if r.drawn]
    assert [r.document.id for r in found if not r.drawn] == [r.document.id for r in whole[:3]]
    nearest = [r for r in whole[6:] if r.document.report.startswith(said)][:3]
    assert [r.document.id for r in drawn] == [r.document.id for r in nearest]
    assert [r.score for r in drawn] == [r.score for r in nearest]
    assert (found[0].relevance, found[-1].relevance) == (1, 0)


def test_distant_ones_are_drawn_beyond_rank_50_by_their_seed(made: Made) -> None:
    base, item = made
    near = {
        r.document.id for r in retrieve(base, item.vectors, WEIGHTS, 50, exclude_patients={"p0"})
    }
    found = hard_noise(base, item, WEIGHTS, 6, 3, "distant", seed=1)
    drawn = {r.document.id for r in found if r.drawn}
    assert len(drawn) == 3
    assert not drawn & near
    assert found == hard_noise(base, item, WEIGHTS, 6, 3, "distant", seed=1)
    assert found != hard_noise(base, item, WEIGHTS, 6, 3, "distant", seed=2)


def test_what_cannot_be_drawn_is_refused(made: Made) -> None:
    base, item = made
    with pytest.raises(SettingsError, match="distant, silent, opposed"):
        hard_noise(base, item, WEIGHTS, 6, 3, "random")
