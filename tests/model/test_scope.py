"""A question outside the bundled model's world is declined, one inside it is not."""

from pathlib import Path

import pytest

from mrrag.errors import ModelError
from mrrag.model.scope import Scope, load_scope
from mrrag.training.recipe import SCOPE_MESSAGE, SCOPE_TERMS

SCOPE = Scope(SCOPE_TERMS, SCOPE_MESSAGE)


@pytest.mark.parametrize(
    "question",
    [
        "Is there a pleural effusion?",
        "IS THE HEART ENLARGED",
        "Are there any nodules?",
        "Describe the findings.",
        "Which side is the central line on?",
        "Is this chest normal?",
    ],
)
def test_questions_about_the_world_are_admitted(question: str) -> None:
    assert SCOPE.admits(question)


@pytest.mark.parametrize(
    "question",
    [
        "What is the blood type?",
        "Is there a brain tumour?",
        "Who won the match?",
        "Is the liver enlarged?",
        "¿Hay derrame?",
        "",
    ],
)
def test_questions_about_anything_else_are_declined(question: str) -> None:
    assert not SCOPE.admits(question)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ("[]", "is a list of 0"),
        ("{", "cannot be read"),
        ('{"terms": "nodule", "message": "No."}', "terms is a text"),
        ('{"terms": [""], "message": "No."}', r"terms\[0\] is a text of 0"),
        ('{"terms": ["nodule"]}', "message is absent"),
    ],
)
def test_a_damaged_scope_is_a_sentence(tmp_path: Path, stored: str, words: str) -> None:
    (tmp_path / "scope.json").write_text(stored)
    with pytest.raises(ModelError, match=rf"scope\.json.* {words}.*Restore"):
        load_scope(tmp_path)


def test_the_message_names_every_finding() -> None:
    from mrrag.phantom.world import FINDINGS

    assert all(finding in SCOPE_MESSAGE for finding in FINDINGS)
