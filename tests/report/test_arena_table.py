"""The arena's table and curves: what they say, in which order, and that text stays text."""

from __future__ import annotations

import html
import re

import pytest
from tiny_case import HOSTILE, trace

from mrrag.report.arena_table import arena_table
from mrrag.report.curves import curve_text, sentence, strength_figure, weight_figure
from mrrag.study.arena import ARENA
from mrrag.study.arena_answers import ArenaAnswer, Curve

RAG = ArenaAnswer("rag", "Yes.", 0.7, 0.2, 0.21, (1, 2, 3))
PAI = ArenaAnswer("pai", "No.", 0.25, 0.7, 0.4, (1, 2, 3), trace(0), trace(1, (1, 2)))
LAST = ArenaAnswer("best_last", HOSTILE, 0.1, 0.1, 0.2, (3, 2, 1), trace(0), trace(2))
TOP = ArenaAnswer("top_report", "", 0.9, 0.1, 0.1, (1,))
STRENGTH = Curve("strength", (0.0, 1.0, 2.0), (0.8, 0.4, 0.1), 1.0)
ALPHA = Curve("alpha", (0.1, 0.33), (0.3, 0.4), 0.33)


def test_a_row_says_what_the_method_is_and_does_and_how_it_differs_from_plain_rag() -> None:
    table = arena_table([RAG, PAI, TOP], 3)
    rows = table.split("<tbody role")[1:]
    for row, name in zip(rows, ("rag", "pai", "top_report"), strict=True):
        assert ARENA[name].title in html.unescape(row)
        assert ARENA[name].does in html.unescape(row)
    change = [re.search(r'data-label="Change">([^<]*)<', row).group(1) for row in rows]  # type: ignore[union-attr]
    assert change == ["–", "−0.450", "+0.200"]
    assert "Read: report 1." in rows[2]
    assert "Read:" not in rows[1]
    assert "(no words)" in rows[2]


def test_only_rows_with_attention_open_and_each_opens_its_own() -> None:
    table = arena_table([RAG, PAI, LAST], 3)
    assert re.findall(r'aria-controls="arena-maps-(\w+)"', table) == ["pai", "best_last"]
    assert re.findall(r'id="arena-maps-(\w+)" hidden', table) == ["pai", "best_last"]
    assert "open-maps" not in arena_table([RAG, PAI, LAST], 3, maps=False)


def test_maps_have_reports_by_their_rank_in_the_case() -> None:
    def columns(answer: ArenaAnswer) -> tuple[list[str], list[str]]:
        table = arena_table([answer], 3).split('<table class="heat-table">')[1]
        head = re.findall(r'<th scope="col">([^<]*)</th>', table)
        first = re.findall(r"<td[^>]*>([^<]*)</td>", table)[: len(head) - 1]
        return head, first

    names, ranked = columns(PAI)
    assert names == ["layer", "image", "1", "2", "3", "question", "cue", "other"]
    reordered = ArenaAnswer("best_last", "No.", 0.1, 0.9, 0.2, (3, 2, 1), PAI.before, PAI.after)
    _, last = columns(reordered)
    assert last == [ranked[0], *ranked[3:0:-1], *ranked[4:]]


def test_an_answer_that_says_neither_is_marked_and_hostile_words_stay_words() -> None:
    table = arena_table([RAG, LAST], 3)
    assert table.count("mostly neither yes nor no") == 1
    assert "<script" not in table
    assert "<img" not in table
    assert HOSTILE in html.unescape(table)


def test_answers_that_mean_nothing_are_marked_so() -> None:
    table = arena_table([RAG], 3, {"outside": "It knows phantoms only.", "weak": "Weak."})
    assert "It knows phantoms only." in table
    assert "Weak." not in table
    assert 'class="arena outside"' in table


def test_a_curve_is_said_in_words_with_every_value() -> None:
    said = sentence(STRENGTH)
    assert "0.400 at the present 1.00" in said
    assert "between 0.100 and 0.800" in said
    assert "crosses one half between 0.00 and 1.00" in said
    assert "stays below one half" in sentence(ALPHA)
    text = curve_text([STRENGTH, ALPHA])
    assert text.count('<tr><th scope="row">') == 5
    assert text.count("(present)") == 2


def test_figures_mark_the_present_setting() -> None:
    figure = strength_figure(STRENGTH)
    assert list(figure.data[0].x) == [0.0, 1.0, 2.0]
    assert [s.x0 for s in figure.layout.shapes if s.x0 == s.x1] == [1.0]
    weights = weight_figure([ALPHA])
    assert list(weights.data[0].x) == pytest.approx([-0.23, 0.0])
    assert [s.x0 for s in weights.layout.shapes if s.x0 == s.x1] == [0.0]
    assert "0.33" in weights.data[0].name
