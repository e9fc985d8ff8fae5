"""The answers and the attention on the picture as HTML.

Values go in, markup comes out; templates/*.html say how it looks. It knows neither the page
nor its controls.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from markupsafe import Markup

from mrrag.case import PictureInfluence
from mrrag.report.cards import DIRECTION, ROUTING, meaningless
from mrrag.report.pictures import file_url
from mrrag.report.templating import number, render
from mrrag.report.vote_card import vote_card
from mrrag.types import METHODS, Answer, Vote

PROBABILITY_LABEL = "model token probability, not clinical confidence"
TITLES = {
    "rag_off": ("RAG off", "picture and question only"),
    "rag": ("RAG", "with the reports above"),
    "mr_rag": ("MR-RAG", "the same reports, steered by IFA"),
}
LETTERS = "ABC"


def answer_columns(
    question: str,
    texts: Mapping[str, str],
    answers: Mapping[str, Answer] | None = None,
    notes: Sequence[str] = (),
    settings_line: str = "",
    *,
    stopped: bool = False,
    warnings: Mapping[str, str] | None = None,
    picture: Markup | str = "",
    votes: Sequence[Vote] = (),
) -> Markup:
    """Return three equal columns: the texts so far, or the whole answers.

    ``picture`` is from :func:`picture_table`. The reports' ``votes`` stand above the answers,
    since they hold where the model's answers do not.
    """
    return render(
        "answers.html",
        question=question,
        columns=[_column(method, texts, answers) for method in METHODS],
        notes=notes,
        settings_line=settings_line,
        stopped=stopped,
        doubts=meaningless(warnings or {}),
        outside="outside" in (warnings or {}),
        probability_label=PROBABILITY_LABEL,
        picture=picture,
        votes=vote_card(votes),
    )


def _column(
    method: str, texts: Mapping[str, str], answers: Mapping[str, Answer] | None
) -> dict[str, Any]:
    """Return what the template shows of one method."""
    title, subtitle = TITLES[method]
    column: dict[str, Any] = {"method": method, "title": title, "subtitle": subtitle}
    if answers is None:
        return column | {"answer": None, "text": texts.get(method, "")}
    answer = answers[method]
    i = METHODS.index(method)
    before = answers[METHODS[i - 1]] if i else None
    return column | {
        "answer": answer,
        "text": answer.text,
        "badge": badge(method, answers),
        "difference": word_difference(answer.text, answers["rag_off"].text) if i else None,
        "probabilities": probabilities(answer, before),
        "since": TITLES[before.method][0] if before else "",
        "seconds": f"{answer.seconds:.2f}",
        "prompt": shown_prompt(answer.prompt),
    }


def picture_table(found: PictureInfluence, thumbnails: bool = True) -> Markup:
    """Return P(yes) with the case's picture, and with others in its place, as a small table.

    ``thumbnails`` is whether the least similar picture is shown.
    """
    rows = [
        (TITLES[method][0], values[0], [(p, p - values[0]) for p in values[1:]])
        for method, values in found.p_yes.items()
    ]
    return render(
        "picture_influence.html",
        sentence=found.sentence,
        rows=rows,
        other=found.other,
        cosine=found.cosine,
        thumbnail=file_url(found.thumbnail) if thumbnails and found.thumbnail else "",
    )


def badge(method: str, answers: Mapping[str, Answer]) -> tuple[str, str]:
    """Return whether an answer's words differ from the answer's before it: kind and text."""
    if method == "rag_off":
        return "base", "the baseline"
    before = METHODS[METHODS.index(method) - 1]
    if _words(answers[method].text) == _words(answers[before].text):
        return "same", f"= identical to {TITLES[before][0]}"
    return "changed", f"≠ changed by {'retrieval' if method == 'rag' else 'IFA'}"


def probabilities(answer: Answer, before: Answer | None) -> list[dict[str, str]]:
    """Return P(yes) and P(no) of the first token, with the change since the answer before."""
    if math.isnan(answer.p_yes):
        return []
    rows = []
    for word, value, other in (
        ("yes", answer.p_yes, before.p_yes if before else math.nan),
        ("no", answer.p_no, before.p_no if before else math.nan),
    ):
        move = "" if math.isnan(other) else number(value - other, signed=True, digits=2)
        shown = {"word": word, "width": f"{100 * value:.2f}", "shown": number(value)}
        rows.append(shown | {"move": move})
    return rows


def word_difference(answer: str, base: str) -> list[tuple[str, str]]:
    """Return the words that an answer shares with, drops from and adds to RAG off's.

    As ("equal" | "gone" | "new", words) in order; empty where the two are equal.
    """
    old, new = base.split(), answer.split()
    if old == new:
        return []
    pieces = []
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(("equal", " ".join(new[c:d])))
            continue
        if b > a:
            pieces.append(("gone", " ".join(old[a:b])))
        if d > c:
            pieces.append(("new", " ".join(new[c:d])))
    return pieces


def shown_prompt(prompt: str) -> str:
    """Return the exact prompt, with the image placeholders counted instead of repeated."""

    def counted(match: re.Match[str]) -> str:
        return f"<image> × {len(match.group(0)) // len('<image>')}"

    return re.sub(r"(?:<image>){2,}", counted, prompt)


def _words(answer: str) -> str:
    return " ".join(answer.split())


def waiting(question: str) -> Markup:
    """Return what is shown until the reader has typed an impression."""
    return render("waiting.html", question=question)


def blind_columns(question: str, texts: Sequence[str]) -> Markup:
    """Return three answers without their names, each with a button to vote for it."""
    return render("blind.html", question=question, columns=list(zip(LETTERS, texts, strict=True)))


def reading_line(impression: str, vote: str, letters: Mapping[str, str]) -> Markup:
    """Return the reader's impression, and what the vote was for."""
    return render(
        "reading.html",
        impression=impression,
        vote=(TITLES[vote][0] if vote in TITLES else "no difference") if vote else "",
        whose=", ".join(f"{letters[m]} was {TITLES[m][0]}" for m in METHODS if m in letters),
    )


def stale(reasons: Sequence[str]) -> Markup:
    """Return a line over answers that were given with other settings than the page's."""
    return render("stale.html", reasons=reasons)


# Attention


def attention_intro() -> Markup:
    """Return the direction of the flow that is shown, and what attention does not show."""
    return render("attention_intro.html", direction=DIRECTION, routing=ROUTING)


def extremes(sentence: str) -> Markup:
    """Return the sentence under the heatmaps on what stands out in them."""
    return Markup('<p class="small reading">{}</p>').format(sentence)


def overlays(
    layer: int,
    critical: bool,
    before: Markup,
    after: Markup,
    shares: tuple[float, float],
    padding: tuple[float, float],
    top: float,
) -> Markup:
    """Return the picture twice, with a layer's question→image attention before and after IFA.

    Parameters
    ----------
    before, after
        From :func:`mrrag.report.pictures.overlay_html`.
    shares, padding
        Of the question's attention: on the image, and on the padding around it.
    top
        Attention per patch at the end of the colour scale.
    """
    return render(
        "overlays.html",
        layer=layer,
        critical=critical,
        sides=[
            (title, picture, f"{100 * share:.1f}", f"{100 * lost:.1f}" if lost >= 5e-4 else "")
            for title, picture, share, lost in zip(
                ("Before: RAG", "After: MR-RAG"), (before, after), shares, padding, strict=True
            )
        ],
        top=f"{top:.4f}",
    )
