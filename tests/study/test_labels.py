"""Labels of studies, and the neutral question about a finding."""

from pathlib import Path

import pytest

from mrrag.data.records import Record
from mrrag.study.labels import labels_of_problems, labels_of_reports, neutral_question
from mrrag.types import Document


@pytest.mark.parametrize(
    ("finding", "question"),
    [
        ("pleural effusion", "Is there a pleural effusion?"),
        ("Opacity", "Is there an opacity?"),
        ("cardiomegaly", "Is there cardiomegaly?"),
        ("pleural thickening", "Is there pleural thickening?"),
        ("atelectasis", "Is there atelectasis?"),
        ("mass", "Is there a mass?"),
        ("pneumothorax", "Is there a pneumothorax?"),
        ("hernia", "Is there a hernia?"),
        ("bone fractures", "Are there bone fractures?"),
    ],
)
def test_a_neutral_question_has_the_article_of_its_finding(finding: str, question: str) -> None:
    assert neutral_question(finding) == question


def test_a_report_has_the_findings_that_it_affirms() -> None:
    labels = labels_of_reports(
        ["There is a small pleural effusion. No pneumothorax."], ["No pleural effusion."] * 2
    )
    has = [name for name, given in zip(labels.names, labels.has_QL[0], strict=True) if given]
    assert has == ["pleural effusion"]
    assert not labels.holds_NL.any()
    assert labels.holds_NL.shape == (2, len(labels.names))


def record(name: str, *problems: str) -> Record:
    return Record(Document(name, "report", name, name), Path(name), problems=problems)


def test_a_data_set_s_own_labels_are_used_only_where_every_study_has_them() -> None:
    records = [
        record("a", "normal"),
        record("b", "Pulmonary Disease, Chronic Obstructive", "Lung"),
        record("c", "Cardiomegaly", "Cardiomegaly"),
        record("d"),
    ]
    labels = labels_of_problems(["a", "b"], ["c", "b"], records)
    assert labels is not None
    assert labels.names == ("cardiomegaly", "chronic obstructive pulmonary disease")
    assert labels.has_QL.tolist() == [[False, False], [False, True]]
    assert labels.holds_NL.tolist() == [[True, False], [False, True]]
    assert labels_of_problems(["a"], ["d"], records) is None
    assert labels_of_problems(["a"], ["elsewhere"], records) is None
