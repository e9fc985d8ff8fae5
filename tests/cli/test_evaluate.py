"""What ``evaluate`` compares follows from the names that were given."""

from __future__ import annotations

import pytest

from mrrag.cli.evaluate import plan_of
from mrrag.cli.main import parser
from mrrag.study.arena import ARENA, BY_NAME
from mrrag.study.plan import ALL_METHODS, Plan


def plan(*options: str) -> Plan:
    return plan_of(parser().parse_args(["evaluate", *options]))


def test_without_names_it_is_the_paper_s_methods_and_no_arena() -> None:
    assert (plan().methods, plan().arena) == (ALL_METHODS, ())
    named = plan("--methods", "rag", "mr_rag")
    assert (named.methods, named.arena) == (("rag", "mr_rag"), ())


def test_the_arena_is_every_rival_in_one_table() -> None:
    every = plan("--methods", "arena", "--heads", "heads.safetensors")
    assert every.methods == ()
    assert every.arena == tuple(name for name in ARENA if name not in BY_NAME)
    few_shot = plan("--methods", "arena", "few_shot", "--heads", "heads.safetensors")
    assert {*few_shot.arena} - {*every.arena} == {"few_shot"}
    without = plan("--methods", "arena")
    assert {*every.arena} - {*without.arena} == {"pasta_heads", "iti", "iti_random"}
    without = plan("--methods", "arena", "--heads", "heads.safetensors", "--no-wrong-picture")
    assert {*every.arena} - {*without.arena} == {"wrong_picture", "mr_rag_wrong_picture"}
    assert plan("--methods", "pai_writing").arena == ("pai_writing",)


def test_rivals_stand_beside_what_else_was_named() -> None:
    some = plan("--methods", "rag", "image_image", "pai", "replug")
    assert some.methods == ("rag", "image_image")
    assert some.arena == ("rag", "pai", "replug")


def test_an_unknown_name_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plan("--methods", "magic")
    said = capsys.readouterr().err
    assert "magic" in said
    assert "replug" in said
