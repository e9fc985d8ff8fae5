"""The reports' own vote on the findings that a question names."""

import math

from mrrag.retrieval.votes import BaseRates, sentence, votes
from mrrag.types import Document

REPORTS = [
    "Small left pleural effusion.",
    "No pleural effusion. No pneumothorax.",
    "No effusion.",
    "Possible pleural effusion.",
    "The heart is enlarged.",
]


def test_each_report_votes_once_on_each_finding_that_the_question_names() -> None:
    effusion, pneumothorax = votes(
        "Is there a pleural effusion or a pneumothorax?", REPORTS, {"pleural effusion": 0.043}
    )
    assert (effusion.affirm, effusion.deny, effusion.doubt, effusion.reports) == (1, 2, 1, 5)
    assert (pneumothorax.affirm, pneumothorax.deny) == (0, 1)
    assert math.isnan(pneumothorax.base_rate)
    assert sentence(effusion) == (
        "pleural effusion: 1 of 5 affirm, 2 deny, 1 in doubt, 1 silent; "
        "4 % of this knowledge base affirm it"
    )
    assert "knowledge base" not in sentence(pneumothorax)


def test_nothing_votes_without_a_finding_or_a_report() -> None:
    assert votes("What is seen?", REPORTS) == ()
    assert votes("Is there a pleural effusion?", []) == ()


class Base:
    """What a base rate is counted of: a knowledge base with these reports."""

    def __init__(self, reports: list[str]) -> None:
        self.reports, self.documents, self.reads = reports, self, 0

    def __len__(self) -> int:
        return len(self.reports)

    def read(self, numbers: list[int]) -> list[Document]:
        self.reads += 1
        return [Document(str(n), self.reports[n], patient="", study="") for n in numbers]


def test_a_base_rate_is_the_share_of_reports_that_affirm_and_is_counted_once() -> None:
    base = Base(REPORTS)
    rates = BaseRates(base)  # type: ignore[arg-type]
    assert rates.of(["pleural effusion", "pneumothorax"]) == {
        "pleural effusion": 0.2,
        "pneumothorax": 0.0,
    }
    assert rates.of(["cardiomegaly", "pleural effusion"])["cardiomegaly"] == 0.2
    assert base.reads == 1
    assert BaseRates(Base([])).of(["pneumothorax"]) == {"pneumothorax": 0.0}  # type: ignore[arg-type]
