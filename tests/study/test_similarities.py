"""The similarities of an audit are those that retrieval has."""

from pathlib import Path

import numpy as np
import pytest
from tiny_bitower import make_cases, make_loaded_tower

from mrrag.retrieval.build import build_knowledge_base
from mrrag.retrieval.mcr import retrieve
from mrrag.study.agreement import nearest
from mrrag.study.similarities import queries_of_base, report_cosines, similarities
from mrrag.types import QueryVectors, Weights


def test_the_fused_ranking_is_that_of_retrieval_without_the_patient(tmp_path: Path) -> None:
    tower = make_loaded_tower(tmp_path / "tower")
    cases = make_cases(tmp_path / "images", 14)
    base = build_knowledge_base(tmp_path / "kb", cases, tower, thumbnail_size=16, workers=1)
    numbers = np.arange(len(base))
    queries = queries_of_base(base, numbers, 6)
    question = "Is there pleural effusion ?"
    similar = similarities(base, numbers, queries, [question], tower)
    weights = Weights(0.4, 0.3, 0.3)
    (score_QN,) = similar.fused(weights)
    found_QK = nearest(score_QN, similar.report_N, 5)
    t_D = tower.texts([question])[0]
    for q, document in enumerate(queries.documents):
        expected = retrieve(
            base,
            QueryVectors(queries.v_QD[q], t_D),
            weights,
            5,
            exclude_patients=[document.patient],
            exclude_studies=[document.study],
        )
        scores = [score_QN[q, n] for n in found_QK[q]]
        assert scores == pytest.approx([r.score for r in expected], abs=1e-5)


def test_reports_are_as_close_as_the_rare_words_they_share() -> None:
    documents = [
        "The heart is normal.",
        "The heart is enlarged.",
        "The lungs are clear. The heart is normal.",
        "A granuloma. The lungs are clear.",
        "A granuloma. The heart is enlarged.",
    ]
    cosine_QN = report_cosines(["the HEART is normal", "granuloma", "unknown words"], documents)
    assert cosine_QN[0].argmax() == 0
    assert cosine_QN[0, 0] == pytest.approx(1.0)
    assert (cosine_QN[1] > 0).tolist() == [False, False, False, True, True]
    assert not cosine_QN[2].any()
