"""The cards of the evidence and the answers: figures that add up, text that is escaped."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from tiny_case import ABOUT, HOSTILE, answered_case, picture, retrieved

from app import frame
from app.sections import viewer
from mrrag.report import answer_cards, cards
from mrrag.types import METHODS, Answer


def shown_numbers(markup: str) -> list[float]:
    line = re.search(r'<p class="sum">(.*?)</p>', markup, re.DOTALL)
    assert line is not None
    plain = re.sub(r"<[^>]+>", " ", line.group(1)).replace("−", "-")
    return [float(n) for n in re.findall(r"[-+]?\d+\.\d+", plain)]


def one_card(card: cards.Card) -> str:
    return cards.evidence([card], "?", ABOUT.weights, (), 0.1)


@pytest.mark.parametrize("seed", range(40))
def test_terms_shown_sum_to_the_score_shown(seed: int) -> None:
    a, b, c = (float(x) for x in np.random.default_rng(seed).uniform(-1, 1, 3))
    item = retrieved(1, (a, b, c))
    *terms, score = shown_numbers(one_card(cards.Card(item)))
    assert len(terms) == 3
    assert round(sum(terms), 3) == score
    assert score == pytest.approx(item.score, abs=5.01e-4)
    assert terms == pytest.approx(list(item.terms), abs=1e-3)


def test_negative_terms_grow_to_the_left_of_zero() -> None:
    bars = cards.term_bars(retrieved(1, (-0.5, 0.25, 0.25)), -0.5, 0.5)["bars"]
    places = [(float(bar["left"]), float(bar["width"])) for bar in bars]
    assert places == [(0, 50), (50, 25), (75, 25)]


def test_all_cards_share_one_scale() -> None:
    items = [retrieved(1, (0.5, 0.3, 0.2)), retrieved(2, (0.1, 0.1, -0.1))]
    markup = cards.evidence([cards.Card(i) for i in items], "?", ABOUT.weights, (), 0.1)
    zeros = re.findall(r'class="zero" style="left:([\d.]+)%', markup)
    assert len(set(zeros)) == 1
    assert len(zeros) == 2


def test_an_absent_pair_is_said_to_be_absent() -> None:
    item = replace(retrieved(1, (0.3, 0.2, 0.0)), cosines=(0.6, 0.4, math.nan))
    markup = one_card(cards.Card(item))
    assert "γ absent" in markup
    assert "nan" not in markup


@pytest.mark.parametrize("where", ["report", "id", "source", "question", "answer", "tag", "note"])
def test_hostile_text_is_escaped(where: str) -> None:
    item = retrieved(1, (0.3, 0.2, 0.1))
    document = item.document
    shown = answered_case()
    if where in ("report", "id", "source"):
        item = replace(item, document=replace(document, **{where: HOSTILE}))
        card = cards.Card(item, thumbnail="data:,", pinned=True)
        markup = cards.evidence(
            [card], HOSTILE, ABOUT.weights, (), 0.1, {"weak": HOSTILE}, [HOSTILE]
        )
    elif where == "question":
        markup = answer_cards.answer_columns(HOSTILE, {}, shown.result.answers)
    elif where == "answer":
        answers = {
            m: replace(a, text=HOSTILE, prompt=HOSTILE) for m, a in shown.result.answers.items()
        }
        markup = answer_cards.answer_columns("?", {}, answers)
        markup += answer_cards.answer_columns("?", dict.fromkeys(METHODS, HOSTILE))
    elif where == "tag":
        markup = viewer.details(replace(picture(), tags={"modality": HOSTILE}), HOSTILE, HOSTILE)
    else:
        markup = cards.note_list([HOSTILE]) + frame.status(HOSTILE) + frame.empty(HOSTILE)
    assert "<script" not in markup
    assert "<img src=x" not in markup
    assert "&lt;script&gt;" in markup


def test_a_very_long_report_is_cut_and_says_so() -> None:
    markup = cards.report_html("x" * 1_000_000)
    assert len(markup) < 5000
    assert "cut here" in markup


def test_the_fixed_sentences_are_on_the_page() -> None:
    header = frame.header(ABOUT)
    assert "Research demonstration. Not a medical device." in header
    assert "phantoms (synthetic chest radiographs) only" in header
    assert "question tokens reading from report tokens" in answer_cards.attention_intro()
    assert "not why" in answer_cards.attention_intro()


def test_badges_say_what_changed_the_words() -> None:
    texts = {"rag_off": "No.", "rag": "Yes.", "mr_rag": " Yes. "}
    answers = {m: Answer(m, t, 0.5, 0.5, "", 2, 0.1) for m, t in texts.items()}
    assert answer_cards.badge("rag", answers) == ("changed", "≠ changed by retrieval")
    assert answer_cards.badge("mr_rag", answers) == ("same", "= identical to RAG")
    answers["mr_rag"] = replace(answers["mr_rag"], text="No.")
    assert answer_cards.badge("mr_rag", answers) == ("changed", "≠ changed by IFA")


def test_probabilities_are_labelled_as_what_they_are() -> None:
    markup = answer_cards.answer_columns("?", {}, answered_case().result.answers)
    assert markup.count("model token probability, not clinical confidence") == 3


def test_an_answer_that_was_not_asked_has_no_probability() -> None:
    answers = {
        m: Answer(m, "This demo model only knows …", math.nan, math.nan, "", 0, 0.0)
        for m in METHODS
    }
    markup = answer_cards.answer_columns("?", {}, answers)
    assert "nan" not in markup
    assert "not asked" in markup


def test_image_placeholders_are_counted_in_the_prompt() -> None:
    prompt = "<s>" + "<image>" * 576 + "\nquestion"
    assert answer_cards.shown_prompt(prompt) == "<s><image> × 576\nquestion"
    answers = {m: Answer(m, "Yes.", 0.5, 0.5, prompt, 2, 0.1) for m in METHODS}
    assert "&lt;image&gt; × 576" in answer_cards.answer_columns("?", {}, answers)
