"""The page's HTML: evidence cards, answers, notes and the fixed texts.

Pure functions from results to markup. Every text that comes from a report, a tag, a
question or a model passes :func:`text` before it is put between tags.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Collection, Mapping, Sequence

from mrrag.types import METHODS, Answer, Image, Retrieved, Weights

DISCLAIMER = "Research demonstration. Not a medical device."
PROBABILITY_LABEL = "model token probability, not clinical confidence"
DIRECTION = "question tokens reading from report tokens"
ROUTING = "Attention shows where information is routed, not why."
LONGEST_REPORT = 4000
SHOWN_AT_ONCE = 4
TERMS = (
    ("alpha", "α", "image–report"),
    ("beta", "β", "image–image"),
    ("gamma", "γ", "question–report"),
)
TITLES = {
    "rag_off": ("RAG off", "picture and question only"),
    "rag": ("RAG", "with the reports above"),
    "mr_rag": ("MR-RAG", "the same reports, steered by IFA"),
}
_HEADING = re.compile(r"\b(FINDINGS|IMPRESSION|INDICATION|COMPARISON|TECHNIQUE):\s*", re.I)


def text(value: object) -> str:
    """Any text, safe between tags and inside a quoted attribute."""
    return html.escape(str(value), quote=True)


def number(value: float, *, signed: bool = False, digits: int = 3) -> str:
    """A number with a true minus sign; a dash where there is none."""
    if math.isnan(value):
        return "–"
    shown = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(shown) == 0:
        shown = shown.lstrip("+-")
    return shown.replace("-", "−")


def rounded_terms(terms: Sequence[float], score: float, digits: int = 3) -> list[float]:
    """The terms rounded so that what is shown adds up to the score as it is shown.

    Each is rounded down and the units that are missing go to those that lost most
    (largest remainder), so none is off by a whole unit of the last digit.
    """
    unit = 10**digits
    floors = [math.floor(t * unit) for t in terms]
    missing = round(score * unit) - sum(floors)
    by_loss = sorted(range(len(terms)), key=lambda i: floors[i] - terms[i] * unit)
    for i in by_loss[: max(0, missing)]:
        floors[i] += 1
    return [f / unit for f in floors]


# ---------------------------------------------------------------- the frame


def header(model: str, phantoms_only: bool, why: str = "") -> str:
    """The bar that stays in view: what this is, what it is not, which model answers and why."""
    knows = (
        "It knows phantoms (synthetic chest radiographs) only."
        if phantoms_only
        else "Its licence allows research use only."
    )
    return (
        '<div class="bar-top"><div class="brand"><h1>MR-RAG</h1>'
        '<span class="tagline">radiograph questions, answered with retrieved reports</span></div>'
        f'<p class="standing" role="note"><strong>{DISCLAIMER}</strong> '
        f'<span class="model">Answering: <code>{text(model)}</code>. {knows}'
        f"{' ' + text(why) if why else ''}</span></p>"
        '<button type="button" class="theme" aria-label="Switch between light and dark">'
        '<span aria-hidden="true">◐</span></button></div>'
    )


HEADER_SCRIPT = """
element.addEventListener('click', (event) => {
  if (event.target.closest('.theme')) document.body.classList.toggle('dark');
});
"""

SAMPLES_SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-sample]');
  if (button) trigger('click', {sample: Number(button.dataset.sample)});
});
"""


def how_to_read() -> str:
    """A short guide to the page, closed until it is asked for."""
    return (
        '<details class="guide"><summary>How to read this page</summary><div class="guide-body">'
        "<p><b>Evidence.</b> The reports most like your case. The fused score is the sum of three "
        "signed terms, weight × cosine: <b>α</b> your picture with the report, <b>β</b> your "
        "picture with the report’s own picture, <b>γ</b> your question with the report. "
        "<b>λ</b> is the score placed between the lowest (0) and the highest (1) of the reports "
        "shown; IFA steers by it.</p>"
        "<p><b>Answers.</b> The same model answers three times: without reports, with them (RAG), "
        "and with them while its attention to them is raised by λ in the critical layers "
        "(MR-RAG). RAG and MR-RAG read the same reports in the same order. P(yes) and P(no) are "
        "what the model gives to those words as its first token; they say nothing of how often "
        "such an answer is right.</p>"
        f"<p><b>Attention.</b> Each row is a layer of the model, from 0, and the direction is "
        f"{DIRECTION}. ▶ marks the layers in which IFA acts. {ROUTING}</p>"
        "<p><b>Who it is for.</b> Researchers and clinicians who want to see how the method "
        "works. It is not for patients’ care: the reports and, with the bundled model, the "
        "pictures are synthetic, and a wrong answer looks just like a right one.</p>"
        "</div></details>"
    )


def empty(sentence: str) -> str:
    """What a part of the page says before there is anything to show."""
    return f'<p class="empty">{text(sentence)}</p>'


def status(sentence: str, *, kind: str = "plain") -> str:
    """The line under the Ask button; ``kind`` is plain, busy, done or problem."""
    role = "alert" if kind == "problem" else "status"
    mark = {"plain": "", "busy": "…", "done": "✓", "problem": "!"}[kind]
    return (
        f'<p class="status {kind}" role="{role}"><span class="mark" aria-hidden="true">{mark}'
        f"</span>{text(sentence)}</p>"
    )


def samples(entries: Sequence[tuple[str, str]], chosen: int | None) -> str:
    """The sample cases, (title, thumbnail URL) each, as a grid of buttons."""
    buttons = "".join(
        f'<button type="button" class="sample" data-sample="{i}" '
        f'aria-pressed="{"true" if i == chosen else "false"}">'
        f'<img src="{url}" alt=""><span>{text(title)}</span></button>'
        for i, (title, url) in enumerate(entries)
    )
    return f'<div class="samples" role="group" aria-label="Sample cases">{buttons}</div>'


def preview(image: Image, url: str, title: str, note: str = "") -> str:
    """The picture as it will be read, with what was done to the file."""
    tags = "".join(
        f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in image.tags.items()
    )
    notes = "".join(f"<li>{text(note)}</li>" for note in image.notes)
    rows, columns = image.display.shape[:2]
    return (
        f'<figure class="film-frame"><img src="{url}" alt="{text(title)}, {columns} by {rows} '
        f'pixels"><figcaption>{text(title)}<span>{columns} × {rows} px</span></figcaption></figure>'
        + (f'<p class="case-note">{text(note)}</p>' if note else "")
        + '<details class="file-notes"><summary>What was done to the file</summary>'
        + (f"<ul>{notes}</ul>" if notes else "<p>Nothing: shown as stored.</p>")
        + (f"<dl>{tags}</dl>" if tags else "")
        + "</details>"
    )


# ---------------------------------------------------------------- evidence


def report_html(report: str) -> str:
    """A report with its headings set apart; a very long one is cut, and says so."""
    cut = len(report) > LONGEST_REPORT
    body = text(report[:LONGEST_REPORT])
    body = _HEADING.sub(lambda m: f'<b class="part">{m.group(1).capitalize()}</b> ', body)
    return body + (" <i>(cut here for display)</i>" if cut else "")


def term_bar(item: Retrieved, lowest: float, highest: float) -> str:
    """The three signed terms as one stacked bar around zero.

    ``lowest`` (≤ 0) and ``highest`` (≥ 0) are the ends of the scale that all cards share.
    Negative terms grow to the left of zero and positive ones to the right.
    """
    width = (highest - lowest) or 1.0
    shown = rounded_terms(item.terms, item.score)
    ends = {True: 0.0, False: 0.0}
    parts = []
    for (name, letter, _), term in zip(TERMS, item.terms, strict=True):
        start = ends[term >= 0]
        ends[term >= 0] += term
        left = (min(start, start + term) - lowest) / width
        size = abs(term) / width
        label = letter if size > 0.07 else ""
        parts.append(
            f'<span class="seg {name}" style="left:{100 * left:.3f}%;width:{100 * size:.3f}%">'
            f"{label}</span>"
        )
    spoken = ", ".join(
        f"{letter} {pair} {number(value, signed=True)}"
        for (_, letter, pair), value in zip(TERMS, shown, strict=True)
    )
    sum_line = " ".join(
        f'<span class="term"><i class="key {name}" aria-hidden="true"></i>{letter} '
        f"{number(value, signed=True)}</span>"
        for (name, letter, _), value in zip(TERMS, shown, strict=True)
    )
    return (
        f'<div class="bar" role="img" aria-label="{spoken}; they sum to '
        f'{number(item.score)}">{"".join(parts)}'
        f'<span class="zero" style="left:{100 * -lowest / width:.3f}%"></span></div>'
        f'<p class="sum">{sum_line} <span class="equals">= '
        f"<b>{number(item.score)}</b></span></p>"
    )


def evidence_card(
    item: Retrieved, thumbnail: str | None, lowest: float, highest: float, random: bool
) -> str:
    """One report: picture, text, why it was chosen, and what IFA makes of it."""
    cosines = " · ".join(
        f"{letter} {number(value, digits=3)}" if not math.isnan(value) else f"{letter} absent"
        for (_, letter, _), value in zip(TERMS, item.cosines, strict=True)
    )
    picture = (
        f'<img src="{thumbnail}" alt="Radiograph of report {item.rank}" loading="lazy">'
        if thumbnail
        else '<span class="no-picture">no picture</span>'
    )
    source = ", ".join(filter(None, (item.document.source, item.document.licence)))
    flag = '<span class="badge random">drawn at random</span>' if random else ""
    return (
        f'<li class="evidence-card"><div class="thumb">{picture}'
        f'<span class="rank" aria-label="rank {item.rank}">{item.rank}</span></div>'
        f'<div class="words"><p class="report">{report_html(item.document.report)}</p>'
        f'<p class="source">{flag}<code>{text(item.document.id)}</code>'
        f"{' · ' + text(source) if source else ''}</p></div>"
        f'<div class="why">{term_bar(item, lowest, highest)}'
        f'<p class="small">cosines {cosines}</p></div>'
        f'<div class="lambda" title="IFA’s λ, before its strength"><span class="small">λ</span>'
        f"<b>{number(item.relevance, digits=2)}</b>"
        f'<span class="meter" aria-hidden="true"><i style="height:{100 * item.relevance:.1f}%">'
        f"</i></span></div></li>"
    )


def evidence(
    retrieved: Sequence[Retrieved],
    thumbnails: Mapping[str, str],
    weights: Weights,
    notes: Sequence[str],
    seconds: float,
    random_ids: Collection[str] = (),
) -> str:
    """All reports on one scale: the first few in full view, the rest one click away."""
    lowest = min((sum(min(t, 0.0) for t in r.terms) for r in retrieved), default=0.0)
    highest = max((sum(max(t, 0.0) for t in r.terms) for r in retrieved), default=1.0)
    cards = [
        evidence_card(
            item, thumbnails.get(item.document.id), lowest, highest, item.document.id in random_ids
        )
        for item in retrieved
    ]
    legend = "".join(
        f'<span class="term"><i class="key {name}" aria-hidden="true"></i>{letter} {pair}, '
        f"weight {number(weight, digits=2)}</span>"
        for (name, letter, pair), weight in zip(
            TERMS, (weights.alpha, weights.beta, weights.gamma), strict=True
        )
    )
    rest = cards[SHOWN_AT_ONCE:]
    more = (
        f'<details class="more"><summary>{len(rest)} more '
        f"{'report' if len(rest) == 1 else 'reports'}: ranks {SHOWN_AT_ONCE + 1} to {len(cards)}"
        f'</summary><ol class="cards" start="{SHOWN_AT_ONCE + 1}">{"".join(rest)}</ol></details>'
        if rest
        else ""
    )
    return (
        f'<p class="legend">{legend}<span class="aside">{len(cards)} '
        f"{'report' if len(cards) == 1 else 'reports'} in {seconds:.2f} s</span></p>"
        f'<ol class="cards">{"".join(cards[:SHOWN_AT_ONCE])}</ol>{more}{note_list(notes)}'
    )


def note_list(notes: Sequence[str]) -> str:
    """Notes on how a result came about."""
    if not notes:
        return ""
    return '<ul class="notes">' + "".join(f"<li>{text(n)}</li>" for n in notes) + "</ul>"


# ---------------------------------------------------------------- answers


def badge(method: str, answers: Mapping[str, Answer]) -> str:
    """Whether the words of an answer differ from those of the answer before it."""
    if method == "rag_off":
        return '<span class="badge base">the baseline</span>'
    before = METHODS[METHODS.index(method) - 1]
    if _words(answers[method].text) == _words(answers[before].text):
        return f'<span class="badge same">= identical to {TITLES[before][0]}</span>'
    what = "retrieval" if method == "rag" else "IFA"
    return f'<span class="badge changed">≠ changed by {what}</span>'


def probabilities(answer: Answer, before: Answer | None) -> str:
    """P(yes) and P(no) of the first token, with the move since the answer before it."""
    if math.isnan(answer.p_yes):
        return '<p class="small">The model was not asked, so there is no probability.</p>'
    rows = ""
    for name, value, other in (
        ("yes", answer.p_yes, before.p_yes if before else math.nan),
        ("no", answer.p_no, before.p_no if before else math.nan),
    ):
        move = "" if math.isnan(other) else number(value - other, signed=True, digits=2)
        rows += (
            f'<div class="p-row"><span class="p-name">P({name})</span>'
            f'<span class="p-bar" aria-hidden="true"><i style="width:{100 * value:.2f}%"></i>'
            "</span>"
            f'<b>{number(value)}</b><span class="move">{move}</span></div>'
        )
    since = (
        f"; at the right, the change since {TITLES[before.method][0]}" if before is not None else ""
    )
    return f'<div class="p">{rows}<p class="small">{PROBABILITY_LABEL}{since}</p></div>'


def prompt_html(prompt: str) -> str:
    """The exact prompt, with the run of image placeholders counted instead of repeated."""

    def counted(match: re.Match[str]) -> str:
        return f"<image> × {len(match.group(0)) // len('<image>')}"

    shown = re.sub(r"(?:<image>){2,}", counted, prompt)
    return (
        f'<details class="prompt"><summary>Exact prompt</summary><pre tabindex="0">{text(shown)}'
        "</pre></details>"
    )


def answer_columns(
    question: str,
    texts: Mapping[str, str],
    answers: Mapping[str, Answer] | None = None,
    notes: Sequence[str] = (),
    settings_line: str = "",
    *,
    stopped: bool = False,
) -> str:
    """Three equal columns: the texts so far, then the whole answers (or where they stopped)."""
    columns = []
    for i, method in enumerate(METHODS):
        title, subtitle = TITLES[method]
        answer = answers[method] if answers else None
        before = answers[METHODS[i - 1]] if answers and i else None
        words = text(answer.text if answer else texts.get(method, ""))
        if answer is None:
            words += "" if stopped else '<span class="caret" aria-hidden="true"></span>'
            foot = f'<p class="small">{"stopped here" if stopped else "answering"}</p>'
        else:
            assert answers is not None
            words = words or "<i>(no words)</i>"
            foot = (
                f"{badge(method, answers)}{probabilities(answer, before)}"
                f'<p class="small cost">{answer.seconds:.2f} s · {answer.tokens} '
                f"{'token' if answer.tokens == 1 else 'tokens'}</p>"
                + (prompt_html(answer.prompt) if answer.prompt else "")
            )
        columns.append(
            f'<article class="answer {method}" data-done="{str(answer is not None).lower()}">'
            f'<h3>{title}<span>{subtitle}</span></h3><p class="says">{words}</p>{foot}</article>'
        )
    return (
        f'<p class="asked"><span class="small">Question</span> {text(question)}</p>'
        f'<div class="answers">{"".join(columns)}</div>'
        + (f'<p class="small settings-line">{text(settings_line)}</p>' if settings_line else "")
        + note_list(notes)
    )


def _words(answer: str) -> str:
    return " ".join(answer.split())


# ---------------------------------------------------------------- attention


def attention_intro() -> str:
    """The direction and the one thing that attention does not show."""
    return (
        f'<p class="direction"><b>Direction:</b> {DIRECTION}, after the softmax, averaged over '
        f"heads and question tokens. <b>▶</b> and a frame mark the layers where IFA acts. "
        f"{ROUTING}</p>"
    )


def extremes(difference_sentence: str) -> str:
    """One sentence under the heatmaps that says what they show most."""
    return f'<p class="small reading">{text(difference_sentence)}</p>'


def overlays(
    layer: int,
    critical: bool,
    before: str,
    after: str,
    shares: tuple[float, float],
    padding: tuple[float, float],
    top: float,
) -> str:
    """The X-ray twice, with a layer's question→image attention before and after IFA."""

    def side(title: str, picture: str, share: float, lost: float) -> str:
        rest = f", {100 * lost:.1f} % on the padding around it" if lost >= 5e-4 else ""
        return (
            f"<figure>{picture}<figcaption><b>{title}</b> {100 * share:.1f} % of the question’s "
            f"attention is on the image{rest}</figcaption></figure>"
        )

    where = "where IFA acts" if critical else "where IFA does not act"
    return (
        f'<p class="small">Layer {layer}, {where}. Brighter and more opaque patches are read '
        "more; both pictures share one scale.</p>"
        f'<div class="overlays">{side("Before: RAG", before, shares[0], padding[0])}'
        f"{side('After: MR-RAG', after, shares[1], padding[1])}</div>"
        f'<p class="scale"><span>0</span><i aria-hidden="true"></i><span>{top:.4f} per patch'
        "</span></p>"
    )
