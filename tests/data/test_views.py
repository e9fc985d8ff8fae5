"""Views: what the words mean, and which pictures of a study are used."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrrag.data.corpus import read_corpus
from mrrag.data.records import Corpus, Question, Record
from mrrag.data.views import choose_views, view_of
from mrrag.errors import CorpusError
from mrrag.types import Document


def pictures(study: str, *views: str, report: str = "Clear.") -> list[Record]:
    return [
        Record(
            Document(f"{study}{n}", report, f"p{study}", study, view=view),
            Path(f"{study}{n}.png"),
            picture=n,
        )
        for n, view in enumerate(views, start=1)
    ]


@pytest.mark.parametrize(
    ("words", "view"),
    [
        (("PA", "AP", "frontal", "Frontal ", "postero-anterior", "antero-posterior"), "frontal"),
        (("LATERAL", "LL", "RL", "left lateral", "XTABLE LATERAL", "Lateral"), "lateral"),
        (("", "AP AXIAL", "AP LLD", "LAO", "oblique", "lateral decubitus"), ""),
    ],
)
def test_the_words_of_data_sets_and_of_dicom_name_the_view(words: list[str], view: str) -> None:
    assert {view_of(word) for word in words} == {view}


def test_the_first_frontal_picture_of_each_study_is_kept_and_the_others_are_counted() -> None:
    rows = [
        *pictures("a", "frontal", "frontal", "lateral"),
        *pictures("b", "lateral", "lateral"),
        *pictures("c", "", "lateral"),
        *pictures("d", "lateral", "frontal"),
    ]
    asked = [
        Question(f"q{n}", r.document.id, "Clear?", "yes", "closed") for n, r in enumerate(rows)
    ]
    corpus = Corpus(tuple(rows), {"no report": ("z",)}, tuple(asked))
    chosen = choose_views(corpus, "frontal")
    assert [r.document.id for r in chosen.records] == ["a1", "d2"]
    assert chosen.skipped == {
        "no report": ("z",),
        "only a lateral picture": ("b1",),
        "no picture that is known to be frontal": ("c1",),
    }
    assert chosen.other_images == 3
    assert [q.uid for q in chosen.questions] == ["a1", "d2"]
    (lost,) = chosen.skipped_questions.values()
    assert len(lost) == 7
    assert choose_views(corpus, "all") == corpus


def test_pictures_with_reports_of_their_own_are_studies_of_their_own() -> None:
    rows = (
        *pictures("a", "frontal", report="Clear."),
        *pictures("a", "frontal", report="Effusion."),
    )
    assert choose_views(Corpus(rows, {}), "frontal").records == rows


def test_where_no_view_is_known_every_study_is_kept_and_that_is_said() -> None:
    chosen = choose_views(Corpus((*pictures("a", "", ""), *pictures("b", "")), {}), "frontal")
    assert [r.document.id for r in chosen.records] == ["a1", "b1"]
    assert not chosen.skipped
    assert "No view is given" in chosen.notes[0]
    assert "the first picture of each study" in chosen.notes[0]
    # Rows that stand for themselves are all kept.
    alone = Corpus((*pictures("a", ""), *pictures("a", "")), {})
    assert choose_views(alone, "frontal").records == alone.records
    assert choose_views(alone, "frontal").notes == (
        "No view is given, so --views frontal uses every picture.",
    )


def test_nothing_left_and_an_unknown_choice_are_refused() -> None:
    with pytest.raises(CorpusError, match="No frontal picture"):
        choose_views(Corpus(tuple(pictures("a", "lateral")), {}), "frontal")
    with pytest.raises(CorpusError, match=r'"side"; allowed are frontal and all'):
        choose_views(Corpus((), {}), "side")


def test_an_own_table_may_have_views(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"")
    (tmp_path / "t.csv").write_text(
        "image,report,study,patient,View\na.png,Clear.,s1,p1,Lateral\nb.png,Clear.,s1,p1,PA\n"
        "c.png,Effusion.,s2,p2,Oblique\n"
    )
    corpus = read_corpus(tmp_path, views="all")
    assert [r.view for r in corpus.records] == ["lateral", "frontal", ""]
    assert 'neither frontal nor lateral, such as "Oblique"' in corpus.notes[0]
    assert [r.document.id for r in read_corpus(tmp_path).records] == ["b.png"]
