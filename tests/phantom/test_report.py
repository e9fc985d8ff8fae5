"""The words of the phantom world agree with what was drawn."""

import numpy as np

from mrrag.phantom.report import (
    ABSENT,
    NAMES,
    NORMAL_IMPRESSIONS,
    PRESENT,
    ask,
    canonical,
    prevalence,
    write_report,
)
from mrrag.phantom.world import FINDINGS, KINDS, Study, draw_studies

STUDIES = draw_studies(600, seed=1)
RATES = prevalence(STUDIES)


def test_every_finding_has_words() -> None:
    for words in (PRESENT, ABSENT, NAMES):
        assert set(words) == set(FINDINGS)


def test_the_same_seed_gives_the_same_world() -> None:
    assert draw_studies(20, seed=3) == draw_studies(20, seed=3)
    assert draw_studies(20, seed=3) != draw_studies(20, seed=4)


def test_a_finding_has_only_the_sides_and_zones_of_its_kind() -> None:
    for study in STUDIES:
        for finding in study.findings:
            kind = KINDS[finding.name]
            assert (finding.side in kind.sides) if kind.sides else finding.side is None
            assert (finding.zone in kind.zones) if kind.zones else finding.zone is None
            assert (finding.grade is not None) == kind.graded


def test_a_report_asserts_only_what_is_there_and_denies_only_what_is_not() -> None:
    for study in STUDIES:
        report = write_report(study)
        present = {f.name for f in study.findings}
        assert set(report.asserted) <= present
        assert not set(report.denied) & present


def test_a_report_names_the_side_it_was_drawn_on() -> None:
    for study in STUDIES:
        report = write_report(study)
        for finding in study.findings:
            if finding.name in report.asserted and finding.name == "pneumothorax":
                assert f"{finding.side}" in report.findings.lower()


def test_reports_are_silent_about_most_findings_there_or_not() -> None:
    denied = np.mean([len(write_report(s).denied) / (12 - len(s.findings)) for s in STUDIES])
    with_findings = [s for s in STUDIES if s.findings]
    asserted = np.mean([len(write_report(s).asserted) / len(s.findings) for s in with_findings])
    assert 0.1 < denied < 0.35
    assert 0.25 < asserted < 0.5


def test_a_report_calls_a_chest_normal_only_where_it_is() -> None:
    normal = [s for s in STUDIES if write_report(s).impression in NORMAL_IMPRESSIONS]
    assert normal
    assert all(not s.findings for s in normal)


def test_questions_are_about_what_the_report_names() -> None:
    for study in STUDIES:
        report = write_report(study)
        for qa in ask(study, report, RATES):
            assert qa.finding is None or qa.finding in report.asserted + report.denied


def test_yes_and_no_are_in_balance_for_every_finding() -> None:
    yes: dict[str, list[bool]] = {name: [] for name in FINDINGS}
    for study in draw_studies(3000, seed=2):
        for qa in ask(study, write_report(study), RATES):
            if qa.answer_type == "closed" and qa.finding:
                yes[qa.finding].append(qa.answer.startswith("Yes"))
    for name, answers in yes.items():
        assert 0.35 < np.mean(answers) < 0.6, name


def test_answers_agree_with_the_study() -> None:
    for study in STUDIES:
        for qa in ask(study, write_report(study), RATES):
            if qa.answer_type == "closed" and qa.finding and qa.answer.startswith("Yes"):
                finding = study.finding(qa.finding)
                assert finding is not None
                assert canonical(finding) in qa.answer
            elif qa.answer_type == "closed" and qa.finding and not qa.answer.startswith("No,"):
                assert study.finding(qa.finding) is None


def test_a_patient_keeps_sex_age_and_chronic_findings() -> None:
    by_patient: dict[int, list[Study]] = {}
    for study in STUDIES:
        by_patient.setdefault(study.patient, []).append(study)
    for first, *later in by_patient.values():
        for study in later:
            assert (study.sex, study.age, study.habitus) == (first.sex, first.age, first.habitus)
            if first.finding("pacemaker"):
                assert study.finding("pacemaker") == first.finding("pacemaker")


def test_a_report_written_anew_tells_the_same_truth_in_other_words() -> None:
    others = [write_report(study, copy=copy) for study in STUDIES[:200] for copy in (1, 2)]
    for study, report in zip([s for s in STUDIES[:200] for _ in (1, 2)], others, strict=True):
        present = {f.name for f in study.findings}
        assert set(report.asserted) <= present
        assert not set(report.denied) & present
    first = [write_report(study) for study in STUDIES[:200]]
    same = [a == b for a, b in zip(first, others[::2], strict=True)]
    assert np.mean(same) < 0.2
    assert others[::2] != others[1::2]
    assert write_report(STUDIES[0], copy=1) == write_report(STUDIES[0], copy=1)
