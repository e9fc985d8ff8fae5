"""Findings that a text names, and whether the text affirms or denies them."""

import pytest

from mrrag.data.findings import FINDINGS, contradictions, matched_words, mentions, named, stance


@pytest.mark.parametrize(
    ("report", "finding", "said"),
    [
        ("There is a small left pleural effusion.", "pleural effusion", "affirmed"),
        ("No pleural effusion.", "pleural effusion", "denied"),
        ("No focal consolidation, effusion, or pneumothorax.", "pneumothorax", "denied"),
        ("The costophrenic angles are sharp without pleural fluid.", "pleural effusion", "denied"),
        ("There is no pneumothorax but a large effusion is seen.", "pleural effusion", "affirmed"),
        ("No pneumothorax. Large effusion.", "pleural effusion", "affirmed"),
        ("No change in the left effusion.", "pleural effusion", "affirmed"),
        ("The effusion is not seen.", "pleural effusion", "denied"),
        ("The effusion has resolved.", "pleural effusion", "denied"),
        ("Pneumothorax cannot be excluded.", "pneumothorax", "uncertain"),
        ("Possible small effusion.", "pleural effusion", "uncertain"),
        ("Infiltrate suspicious for pneumonia.", "pneumonia", "uncertain"),
        ("Infiltrate suspicious for pneumonia.", "consolidation", "affirmed"),
        ("The cardiac silhouette is not enlarged.", "cardiomegaly", "denied"),
        ("The cardiac silhouette is mildly enlarged.", "cardiomegaly", "affirmed"),
        ("The heart is normal in size.", "cardiomegaly", "denied"),
        ("Heart size is within normal limits.", "cardiomegaly", "denied"),
        ("Moderate enlargement of the cardiac silhouette.", "cardiomegaly", "affirmed"),
        ("The lungs are not hyperinflated.", "hyperinflation", "denied"),
        ("The ribs are intact without fracture.", "rib fracture", "denied"),
        ("No effusion on the left. Effusion on the right.", "pleural effusion", "affirmed"),
        ("INDICATION: Evaluate for pneumothorax. FINDINGS: Clear.", "pneumothorax", None),
        ("History: effusion. Findings: No effusion.", "pleural effusion", "denied"),
        ("NO PNEUMOTHORAX.", "pneumothorax", "denied"),
        ("The lungs are clear.", "pneumothorax", None),
        ("", "pneumothorax", None),
    ],
)
def test_negation_reaches_as_far_as_its_clause(report: str, finding: str, said: str) -> None:
    assert stance(report, finding) == said


def test_the_phantom_reports_own_sentences_are_understood() -> None:
    from mrrag.phantom.report import ABSENT, PRESENT

    fill = {"side": "left", "zone": "lower", "grade": "mild"}
    for sentences, said in ((PRESENT, "affirmed"), (ABSENT, "denied")):
        for finding, wordings in sentences.items():
            for wording in wordings:
                sentence = wording.format(**fill)
                assert stance(sentence, finding) == said, (sentence, said)


def test_a_question_names_its_findings_in_any_wording() -> None:
    assert named("Is there pleural fluid?") == ("pleural effusion",)
    assert named("Is the heart enlarged?") == ("cardiomegaly",)
    assert named("Effusion or PNEUMOTHORAX?") == ("pleural effusion", "pneumothorax")
    assert named("What is the blood type?") == ()


def test_mentions_are_positions_in_the_report() -> None:
    report = "No Effusion.\nLarge pneumothorax."
    found = mentions(report, FINDINGS)
    assert [(report[m.start : m.stop], m.stance) for m in found] == [
        ("Effusion", "denied"),
        ("pneumothorax", "affirmed"),
    ]


def test_only_the_questions_findings_count_as_contradictions() -> None:
    reports = ["Large effusion.", "No effusion. Nodule.", "No nodule.", "Possible effusion."]
    assert contradictions("Is there an effusion?", reports) == {"pleural effusion": ((0,), (1,))}
    assert contradictions("Is there a fracture?", reports) == {}
    assert contradictions("Is there an effusion?", reports[1:]) == {}


def test_shared_words_are_found_without_common_ones() -> None:
    report = "There is no rib fracture; the Effusions remain."
    places = matched_words("Is there an effusion or a fracture?", report)
    assert [report[a:b] for a, b in places] == ["fracture", "Effusions"]


def test_a_megabyte_of_text_is_read_in_moments() -> None:
    report = "no effusion " * 90_000
    assert stance(report, "pleural effusion") == "denied"
