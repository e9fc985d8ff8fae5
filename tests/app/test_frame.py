"""The frame of the page: what it says of a knowledge base."""

from dataclasses import replace

from app.about import read_about
from app.frame import base_facts
from mrrag.files import ASSETS
from mrrag.types import Weights


def test_a_knowledge_base_that_was_not_audited_names_the_command() -> None:
    about = read_about(ASSETS)
    own = replace(about.base, audit=None, name="own base")
    facts = base_facts(replace(about, base=own))
    assert "How good is this knowledge base?" in facts
    assert "mrrag audit --kb own base" in facts
    assert "<details open" not in facts


def test_weights_that_an_audit_chose_are_said_to_be_chosen() -> None:
    about = read_about(ASSETS)
    chosen = replace(about.base, intervals=(), chosen=True)
    facts = base_facts(replace(about, base=chosen, weights=Weights(0.6, 0.4, 0.0)))
    assert "chosen by mrrag audit" in facts
    assert "not learnt" not in facts
