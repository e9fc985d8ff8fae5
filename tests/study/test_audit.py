"""An audit finds a signal where there is one, and none where there is none."""

from dataclasses import replace

import numpy as np
import pytest

from mrrag.errors import SettingsError
from mrrag.study.audit import Compared, asked_of, audit, choose_weights
from mrrag.study.audit_text import audit_text, choice_text, reading
from mrrag.study.labels import Labels
from mrrag.study.similarities import Queries, Similarities
from mrrag.types import Document, Weights

ALIKE = Weights(1 / 3, 1 / 3, 1 / 3)
FACTS = {"documents": 300, "from": "the base's own, each without its patient"}


def case(signal: float, queries: int = 160, documents: int = 300) -> Compared:
    """Two findings; only α tells who has them, and γ's cosines spread far wider."""
    rng = np.random.default_rng(0)
    has_QL, holds_NL = rng.random((queries, 2)) < 0.3, rng.random((documents, 2)) < 0.2
    shape = (queries, documents)
    alike_QN = (has_QL[:, None] == holds_NL).sum(2)

    def noise(*size: int) -> np.ndarray:
        return rng.normal(size=size).astype(np.float32)

    similar = Similarities(
        alpha_QN=(signal * alike_QN + noise(*shape)).astype(np.float32),
        beta_QN=noise(*shape),
        gamma_FN=5 * noise(2, documents),
        pixels_QN=noise(*shape),
        own_report_QN=(5 * alike_QN + noise(*shape)).astype(np.float32),
        random_QN=noise(*shape),
        report_N=np.arange(documents),
    )
    people = tuple(Document(str(n), "report", str(n), f"s{n}") for n in range(queries))
    nothing = np.zeros((queries, 1), np.float32)
    labels = Labels(("one", "other"), has_QL, holds_NL, "finding rules")
    asked = Queries(people, nothing, nothing)
    return Compared(asked, labels, np.arange(2), np.arange(queries), similar, 8)


def test_a_similarity_that_knows_the_findings_is_told_from_those_that_do_not() -> None:
    result = audit(case(0.5), ALIKE) | FACTS
    auroc = {name: figures["auroc"] for name, figures in result["systems"].items()}
    assert auroc["alpha"]["interval"][0] > 0.6
    for blind in ("random", "beta", "gamma", "pixels"):
        assert 0.4 < auroc[blind]["value"] < 0.6
        assert result["differences"][blind]["p"] < 0.01
    assert auroc["own_report"]["value"] > auroc["alpha"]["value"]
    # The question decides alone with equal weights on raw cosines.
    assert result["differences"]["mcr"]["interval"][1] < 0
    assert auroc["alpha_gamma"]["value"] > auroc["mcr"]["value"]
    assert "better than chance: AUROC 0." in reading(result)
    assert "MCR is below α alone" in audit_text(result)


def test_chosen_weights_are_better_only_where_the_other_patients_say_so() -> None:
    chosen = choose_weights(case(1.0), ALIKE)
    assert chosen["better"]
    assert chosen["weights"]["alpha"] > 0.5
    assert chosen["difference"]["interval"][0] > 0
    assert len(chosen["studies"]) == chosen["queries"][0] == 80
    unsettled = choose_weights(case(0.0), ALIKE)
    assert not unsettled["better"]
    assert "nothing was written" in choice_text(unsettled)


def test_weights_are_not_chosen_on_too_few_patients() -> None:
    one = replace(case(1.0), patient_Q=np.zeros(160, np.int64))
    with pytest.raises(SettingsError, match="half of the patients"):
        choose_weights(one, ALIKE)


def test_labels_that_are_one_and_the_same_count_once() -> None:
    has_QL = np.zeros((40, 4), bool)
    has_QL[:10, :2] = has_QL[5:20, 2] = has_QL[:3, 3] = True  # the last is too rare
    labels = Labels(("rib fracture", "fracture", "scar", "rare"), has_QL, has_QL, "finding rules")
    assert asked_of(labels).tolist() == [0, 2]
