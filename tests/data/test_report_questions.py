"""Questions made of reports: balanced, neutral, and answered as the report says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from mrrag.data.findings import FINDINGS, Asked, asked, mentions
from mrrag.data.records import Record
from mrrag.data.report_questions import CLOSED, NAMES, side_and_place, write_questions
from mrrag.types import Document


def records(reports: Mapping[str, str], split: str = "train") -> list[Record]:
    return [
        Record(Document(uid, report, patient=uid, study=uid, split=split), Path(f"{uid}.png"))
        for uid, report in reports.items()
    ]


REPORTS = {
    **{f"yes{n}": f"Small left pleural effusion. Study {n}." for n in range(6)},
    **{f"no{n}": f"No pleural effusion. The heart is normal in size. {n}." for n in range(3)},
    "big": "The heart is enlarged.",
    "doubt": "Possible pleural effusion.",
    "both": "No pleural effusion. There is a large pleural effusion.",
    "empty": " ",
}


def test_every_finding_has_as_many_yes_as_no_within_a_split() -> None:
    read = [*records(REPORTS), *records({"v1": "Large nodule.", "v2": "No nodule."}, "validation")]
    splits = {record.document.id: record.split for record in read}
    counts = Counter(
        (splits[one.question.uid], one.question.finding, one.question.answer)
        for one in write_questions(read)
        if one.question.answer_type == "closed"
    )
    assert counts == {
        ("train", "pleural effusion", "Yes"): 3,
        ("train", "pleural effusion", "No"): 3,
        ("train", "cardiomegaly", "Yes"): 1,
        ("train", "cardiomegaly", "No"): 1,
        ("validation", "nodule", "Yes"): 1,
        ("validation", "nodule", "No"): 1,
    }


def test_an_answer_comes_from_its_sentence_and_doubt_gives_no_question() -> None:
    written = write_questions(records(REPORTS))
    assert len({one.question.qid for one in written}) == len(written)
    assert not {"doubt", "both", "empty"} & {one.question.uid for one in written}
    for one in written:
        said = {m.stance for m in mentions(one.sentence, (one.question.finding,))}
        assert said == {"denied" if one.question.answer == "No" else "affirmed"}
        assert one.sentence in REPORTS[one.question.uid]


def test_a_seed_decides_all_and_another_chooses_others() -> None:
    once, again, other = (write_questions(records(REPORTS), seed=s) for s in (1, 1, 2))
    assert once == again
    assert once != other


def test_a_study_is_asked_no_more_than_was_said() -> None:
    reports = {
        **{f"a{n}": "Effusion. Nodule. Pneumothorax. Scarring." for n in range(4)},
        **{f"b{n}": "No effusion. No nodule. No pneumothorax. No scarring." for n in range(4)},
    }
    asked_about = Counter(
        one.question.uid for one in write_questions(records(reports), per_study=2)
    )
    assert max(asked_about.values()) == 2


def test_a_study_with_several_pictures_is_asked_about_once() -> None:
    pictures = [
        Record(Document(f"a{n}", "Nodule.", patient="a", study="a"), Path(f"a{n}.png"))
        for n in range(3)
    ]
    written = write_questions([*pictures, *records({"b": "No nodule."}, "")])
    assert [w.question.uid for w in written] == ["a0", "b"]


def test_silence_counts_as_no_only_where_it_is_asked_for() -> None:
    read = records({"a": "Calcified granuloma.", "b": "The lungs are clear."})
    assert write_questions(read) == []
    about = [w for w in write_questions(read, silence=True) if w.question.finding == "granuloma"]
    assert [(w.question.uid, w.question.answer, w.sentence) for w in about] == [
        ("a", "Yes", "Calcified granuloma."),
        ("b", "No", ""),
    ]


@pytest.mark.parametrize("finding", FINDINGS)
def test_every_wording_asks_for_the_presence_of_its_finding_alone(finding: str) -> None:
    for name in NAMES[finding]:
        for template in CLOSED:
            assert asked(template.format(name=name)) == (Asked(finding, "presence"),)


@pytest.mark.parametrize(
    ("sentence", "finding", "side", "place"),
    [
        ("Small left effusion.", "pleural effusion", "left", ""),
        ("Nodule in the right upper lobe.", "nodule", "right", "right upper lobe"),
        ("Opacity at the left base.", "opacity", "left", "left lung base"),
        ("Effusions, right greater than left.", "pleural effusion", "", ""),
        ("Bilateral effusions, the left larger.", "pleural effusion", "", ""),
        ("Effusion and left atelectasis.", "pleural effusion", "", ""),
        ("Effusion and left atelectasis.", "atelectasis", "left", ""),
        ("Central line ends in the right atrium.", "central line", "", ""),
        ("Left base clear. Nodule.", "nodule", "", ""),
    ],
)
def test_a_side_is_the_mentions_own(sentence: str, finding: str, side: str, place: str) -> None:
    mention = mentions(sentence, (finding,))[-1]
    assert side_and_place(sentence, mention) == (side, place)


def test_a_side_that_a_report_names_is_asked_for_openly() -> None:
    (one,) = write_questions(records({"a": "Moderate left pneumothorax."}))
    assert (one.question.answer_type, one.question.answer) == ("open", "On the left")
    assert one.question.finding == "pneumothorax"
    assert "side" in one.question.question
