"""Neutral words ask the same, and keep what the answer means."""

from mrrag.data.records import Question
from mrrag.study.neutral import neutral


def asked(qid: str, question: str, answer: str, kind: str = "closed") -> Question:
    return Question(qid, "case", question, answer, kind)


def test_a_question_about_the_normal_is_turned_with_its_answer() -> None:
    given = [
        asked("1", "Is the heart size normal?", "Yes"),
        asked("2", "Does this film show blunting that suggests pleural effusion?", "yes, it does"),
    ]
    reworded, omitted = neutral(given)
    assert [(q.question, q.answer, q.finding) for q in reworded] == [
        ("Is there cardiomegaly?", "No", "cardiomegaly"),
        ("Is there a pleural effusion?", "Yes", "pleural effusion"),
    ]
    assert omitted == ()


def test_what_cannot_be_said_neutrally_is_left_out_and_repeats_are_asked_once() -> None:
    given = [
        asked("1", "Is there a left pleural effusion?", "No"),
        asked("2", "Is there an effusion or a pneumothorax?", "No"),
        asked("3", "What is this?", "A film", "open"),
        asked("4", "Is there a nodule?", "Yes"),
        asked("5", "Any nodule?", "Yes"),
    ]
    reworded, omitted = neutral(given)
    assert [q.qid for q in reworded] == ["4"]
    assert omitted == ("1", "2", "3")
