"""The page's HTML: evidence cards, answers, notes and the fixed texts.

Pure functions from results to markup. Every text that comes from a report, a tag, a
question or a model passes :func:`text` before it is put between tags.
"""

from __future__ import annotations

import html
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from app.about import About
from mrrag.data.findings import matched_words, mentions, named
from mrrag.learnt import ALIKE
from mrrag.types import LLAVA_MED, METHODS, Answer, Retrieved, Weights

STYLE = Path(__file__).parent / "static" / "style.css"

DISCLAIMER = "Research demonstration. Not a medical device."
PROBABILITY_LABEL = "model token probability, not clinical confidence"
DIRECTION = "question tokens reading from report tokens"
ROUTING = "Attention shows where information is routed, not why."
LONGEST_REPORT = 4000
WARNINGS = {
    "unlike": "Unknown kind of picture",
    "known": "Picture in the knowledge base",
    "weak": "Weak evidence",
    "contradiction": "Contradiction",
}
SHOWN_AT_ONCE = 4
# The least that fills a bar of influence, so that what is next to nothing looks like it.
LEAST_INFLUENCE = 0.02
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
        else f"Its licence {'allows' if model == LLAVA_MED else 'may allow'} research use only."
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
        "shown. The paper’s IFA steers by it, the balanced form by the scores’ own differences. "
        "The settings rank again at once, without the model; "
        "<b>▲ ▼</b> say how a report moved against the learnt weights. <b>Influence</b> is causal: "
        "the report is cut off from the question, and the change of the answer’s probability is "
        "what it had added.</p>"
        "<p><b>Answers.</b> The same model answers three times: without reports, with them (RAG), "
        "and with them while relevance steers its attention in the critical layers (MR-RAG): it "
        "raises each report’s, as in the paper, or only shares attention out anew between the "
        "reports (balanced), as the settings say. RAG and MR-RAG read the same reports in the "
        "same order. "
        "P(yes) and P(no) are what the model gives to those words as its first token; they say "
        "nothing of how often such an answer is right.</p>"
        f"<p><b>Attention.</b> Each row is a layer of the model, from 0, and the direction is "
        f"{DIRECTION}. ▶ marks the layers in which IFA acts. {ROUTING}</p>"
        "<p><b>Who it is for.</b> Researchers and clinicians who want to see how the method "
        "works. It is not for patients’ care: the reports and, with the bundled model, the "
        "pictures are synthetic, and a wrong answer looks just like a right one.</p>"
        "</div></details>"
    )


def base_facts(about: About) -> str:
    """A knowledge base in a line, and behind it whose it is and what was learnt for it."""
    base = about.base
    if not base.documents:
        return ""
    sources = "; ".join(
        f"{text(source or 'source not stated')} ({text(licence or 'licence not stated')})"
        for source, licence in base.sources
    )
    weights = about.weights
    values = [getattr(weights, name) for name, _, _ in TERMS]
    learnt = ", ".join(
        f"{letter} {number(value, digits=2)}"
        + (
            f" ({number(base.intervals[n][0], digits=2)} to "
            f"{number(base.intervals[n][1], digits=2)})"
            if n < len(base.intervals)
            else ""
        )
        for n, ((_, letter, _), value) in enumerate(zip(TERMS, values, strict=True))
    )
    how = "95 % intervals in brackets" if base.intervals else ""
    if weights == ALIKE:
        how = "not learnt for it: all three count alike"
    return (
        f'<details class="base-facts"><summary>Knowledge base: {text(base.name)}, '
        f"{base.documents:,} reports</summary><p><b>Sources</b> {sources}<br>"
        f"<b>Encoder</b> {text(base.encoder)}<br>"
        f"<b>Weights</b> {learnt}{'; ' + how if how else ''}</p></details>"
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


# Ask was pressed, or Enter in the question.
LINE_SCRIPT = """
document.addEventListener('click', (event) => {
  if (event.target.closest('#ask')) trigger('asked');
});
document.addEventListener('keydown', (event) => {
  const enter = event.key === 'Enter' && !event.shiftKey;
  if (enter && event.target.closest('#question')) trigger('asked');
});
"""


def line(ahead: int) -> str:
    """How many questions are answered before one's own."""
    questions = "1 question is" if ahead == 1 else f"{ahead} questions are"
    return status(f"Waiting: {questions} ahead of yours.", kind="busy")


def samples(entries: Sequence[tuple[str, str]], chosen: int | None) -> str:
    """The sample cases, (title, thumbnail URL) each, as a grid of buttons."""
    buttons = "".join(
        f'<button type="button" class="sample" data-sample="{i}" '
        f'aria-pressed="{"true" if i == chosen else "false"}">'
        f'<img src="{url}" alt=""><span>{text(title)}</span></button>'
        for i, (title, url) in enumerate(entries)
    )
    return f'<div class="samples" role="group" aria-label="Sample cases">{buttons}</div>'


# ---------------------------------------------------------------- evidence


# A report as the model read it, its tokens' places in that text, and a share for each.
Tokens = tuple[str, Sequence[tuple[int, int]], Sequence[float]]


@dataclass(frozen=True)
class Card:
    """A retrieved report with what the page knows about it.

    Attributes
    ----------
    thumbnail : str
        URL of its radiograph; empty where there is none.
    percentile : float
        Per cent of random pairs with a lower score.
    learnt_rank : int or None
        Its rank with the learnt weights; 0 where it is beyond those that were ranked,
        None where the weights are the learnt ones.
    influence : (float, float) or None
        What the report adds to the probability of :attr:`word`, under RAG and MR-RAG.
    tokens : Tokens or None
        For the tint: attention on each token as a share of the most attended one.
    """

    item: Retrieved
    thumbnail: str = ""
    percentile: float = math.nan
    learnt_rank: int | None = None
    pinned: bool = False
    word: str = ""
    influence: tuple[float, float] | None = None
    tokens: Tokens | None = None


def report_html(report: str, question: str = "", tokens: Tokens | None = None) -> str:
    """A report with its headings set apart and the question's words marked.

    Mentions of a finding that the question names are marked by whether the report
    affirms, denies or doubts it. ``tokens`` tints the words by attention. A very long
    report is cut, and says so.
    """
    whole = tokens[0] if tokens else report
    shown = whole[:LONGEST_REPORT]
    marks: list[tuple[int, int, str, str]] = [
        (m.start, m.stop, m.stance, f"{m.finding}: {m.stance}")
        for m in mentions(shown, named(question))
    ]
    for start, stop in matched_words(question, shown):
        if not any(start < b and a < stop for a, b, _, _ in marks):
            marks.append((start, stop, "matched", "a word of the question"))
    headings = [m.span() for m in _HEADING.finditer(shown)]
    tints = (
        [
            (start, stop, share)
            for (start, stop), share in zip(tokens[1], tokens[2], strict=True)
            if stop <= len(shown)
        ]
        if tokens
        else []
    )

    # Cut wherever anything begins or ends; each piece then has one look.
    runs = [(0, len(shown)), *headings, *(m[:2] for m in marks), *(t[:2] for t in tints)]
    inside = {place for a, b in headings for place in range(a + 1, b)}
    cuts = sorted({end for run in runs for end in run} - inside)
    pieces = []
    mark = tint = 0
    marks.sort()
    for start, stop in itertools.pairwise(cuts):
        piece = shown[start:stop]
        if any(a <= start < b for a, b in headings):
            pieces.append(f'<b class="part">{text(piece.strip(" :").capitalize())}</b> ')
            continue
        look = text(piece)
        while tint < len(tints) and tints[tint][1] <= start:
            tint += 1
        if tint < len(tints) and tints[tint][0] <= start:
            share = tints[tint][2]
            look = (
                f'<span class="tok" style="--w:{100 * share:.0f}%" '
                f'title="attention: {100 * share:.0f} % of the most attended word">{look}</span>'
            )
        while mark < len(marks) and marks[mark][1] <= start:
            mark += 1
        if mark < len(marks) and marks[mark][0] <= start:
            _, _, kind, title = marks[mark]
            look = f'<mark class="{kind}" title="{text(title)}">{look}</mark>'
        pieces.append(look)
    cut = " <i>(cut here for display)</i>" if len(whole) > LONGEST_REPORT else ""
    return "".join(pieces) + cut


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


def rank_arrow(rank: int, learnt: int | None) -> str:
    """How far a report moved against the learnt weights' ranking."""
    if learnt is None:
        return ""
    if learnt == 0:
        return '<span class="moved up" title="far below with the learnt weights">▲ new</span>'
    if learnt == rank:
        return '<span class="moved" title="the same rank with the learnt weights">= same</span>'
    way, arrow = ("up", "▲") if rank < learnt else ("down", "▼")
    return (
        f'<span class="moved {way}" title="rank {learnt} with the learnt weights">'
        f"{arrow} {abs(learnt - rank)}</span>"
    )


def influence_bars(card: Card, most: float) -> str:
    """What a report adds to the answer's probability, under RAG and under MR-RAG."""
    if card.influence is None:
        return ""
    rows = ""
    for name, value in zip(("RAG", "MR-RAG"), card.influence, strict=True):
        size = 50 * min(1.0, abs(value) / most)
        left = 50 if value >= 0 else 50 - size
        rows += (
            f'<span class="small">{name}</span><span class="swing" aria-hidden="true">'
            f'<i class="{"for" if value >= 0 else "against"}" '
            f'style="left:{left:.2f}%;width:{size:.2f}%"></i></span>'
            f"<b>{number(value, signed=True)}</b>"
        )
    return (
        '<div class="influence" title="P with all reports minus P without this one; the report '
        'is cut off from the question in every layer">'
        f'<p class="small">influence on P({text(card.word)})</p>{rows}</div>'
    )


def evidence_card(card: Card, question: str, lowest: float, highest: float, most: float) -> str:
    """One report: picture, text, why it was chosen, and what it does to the answer."""
    item = card.item
    cosines = " · ".join(
        f"{letter} {number(value, digits=3)}" if not math.isnan(value) else f"{letter} absent"
        for (_, letter, _), value in zip(TERMS, item.cosines, strict=True)
    )
    identifier = text(item.document.id)
    picture = (
        f'<button type="button" class="enlarge" data-do="compare" data-id="{identifier}" '
        f'aria-label="Compare the radiograph of report {item.rank} with yours">'
        f'<img src="{card.thumbnail}" alt="Radiograph of report {item.rank}" loading="lazy">'
        "</button>"
        if card.thumbnail
        else '<span class="no-picture">no picture</span>'
    )
    source = ", ".join(filter(None, (item.document.source, item.document.licence)))
    flags = ""
    if item.drawn:
        flags += '<span class="badge random">drawn at random</span>'
    if card.pinned:
        flags += '<span class="badge pinned">pinned</span>'
    pin = "unpin" if card.pinned else "pin"
    chance = (
        f'<p class="small">above {card.percentile:.1f} % of random pairs</p>'
        if not math.isnan(card.percentile)
        else ""
    )
    return (
        f'<li class="evidence-card" data-id="{identifier}"><div class="thumb">{picture}'
        f'<span class="rank" aria-label="rank {item.rank}">{item.rank}</span>'
        f"{rank_arrow(item.rank, card.learnt_rank)}</div>"
        f'<div class="words"><p class="report">'
        f"{report_html(item.document.report, question, card.tokens)}</p>"
        f'<p class="source">{flags}<code>{identifier}</code>'
        f"{' · ' + text(source) if source else ''}</p>"
        f'<p class="deeds"><button type="button" data-do="{pin}" data-id="{identifier}" '
        f'aria-label="{pin.capitalize()} report {item.rank}">{pin.capitalize()}</button>'
        f'<button type="button" data-do="exclude" data-id="{identifier}" '
        f'aria-label="Exclude report {item.rank}">Exclude</button></p></div>'
        f'<div class="why">{term_bar(item, lowest, highest)}'
        f'<p class="small">cosines {cosines}</p>{chance}{influence_bars(card, most)}</div>'
        f'<div class="lambda" title="IFA’s λ, before its strength"><span class="small">λ</span>'
        f"<b>{number(item.relevance, digits=2)}</b>"
        f'<span class="meter" aria-hidden="true"><i style="height:{100 * item.relevance:.1f}%">'
        f"</i></span></div></li>"
    )


def evidence(
    cards: Sequence[Card],
    question: str,
    weights: Weights,
    notes: Sequence[str],
    seconds: float,
    warnings: Mapping[str, str] | None = None,
    excluded: Sequence[str] = (),
) -> str:
    """All reports on one scale: the first few in full view, the rest one click away."""
    retrieved = [card.item for card in cards]
    lowest = min((sum(min(t, 0.0) for t in r.terms) for r in retrieved), default=0.0)
    highest = max((sum(max(t, 0.0) for t in r.terms) for r in retrieved), default=1.0)
    swings = [abs(v) for card in cards for v in card.influence or ()]
    most = max([LEAST_INFLUENCE, *swings])
    items = [evidence_card(card, question, lowest, highest, most) for card in cards]
    legend = "".join(
        f'<span class="term"><i class="key {name}" aria-hidden="true"></i>{letter} {pair}, '
        f"weight {number(weight, digits=2)}</span>"
        for (name, letter, pair), weight in zip(
            TERMS, (weights.alpha, weights.beta, weights.gamma), strict=True
        )
    )
    rest = items[SHOWN_AT_ONCE:]
    more = (
        f'<details class="more" data-keep="more"><summary>{len(rest)} more '
        f"{'report' if len(rest) == 1 else 'reports'}: ranks {SHOWN_AT_ONCE + 1} to {len(items)}"
        f'</summary><ol class="cards" start="{SHOWN_AT_ONCE + 1}">{"".join(rest)}</ol></details>'
        if rest
        else ""
    )
    marked = (
        '<p class="legend marks">Words of the question: <mark class="affirmed">affirmed</mark> '
        '<mark class="denied">denied</mark> <mark class="uncertain">in doubt</mark> '
        '<mark class="matched">shared</mark></p>'
    )
    return (
        warning_list(warnings or {})
        + f'<p class="legend">{legend}<span class="aside">{len(items)} '
        f"{'report' if len(items) == 1 else 'reports'} in {seconds:.2f} s</span></p>{marked}"
        f'<ol class="cards">{"".join(items[:SHOWN_AT_ONCE])}</ol>{more}'
        f"{excluded_list(excluded)}{note_list(notes)}"
    )


def warning_list(warnings: Mapping[str, str]) -> str:
    """What a reader must know before trusting the evidence."""
    return "".join(
        f'<p class="warning {kind}" role="note"><b><span aria-hidden="true">⚠</span> '
        f"{WARNINGS[kind]}.</b> {text(sentence)}</p>"
        for kind, sentence in warnings.items()
    )


def meaningless(warnings: Mapping[str, str]) -> str:
    """The one warning that belongs above the answers too: that they mean nothing."""
    return warning_list({kind: s for kind, s in warnings.items() if kind == "unlike"})


def excluded_list(excluded: Sequence[str]) -> str:
    """The documents that were excluded by hand, each one click from its return."""
    if not excluded:
        return ""
    buttons = "".join(
        f'<button type="button" data-do="restore" data-id="{text(i)}" '
        f'aria-label="Restore document {text(i)}">{text(i)} ↩</button>'
        for i in excluded
    )
    return f'<p class="deeds excluded"><span class="small">Excluded by hand:</span> {buttons}</p>'


def compare(picture: str) -> str:
    """A window, closed at first, that holds the case's picture beside a report's."""
    return (
        '<dialog class="compare" aria-label="Your picture beside that of a report"><form '
        'method="dialog"><button aria-label="Close">Close</button></form>'
        f'<div><figure><img src="{picture}" alt="Your picture"><figcaption>Your picture'
        '</figcaption></figure><figure><img class="theirs" alt=""><figcaption class="theirs">'
        "</figcaption></figure></div></dialog>"
    )


# Keeps the reader's place when the cards are drawn again: what was open, what had the focus.
EVIDENCE_SCRIPT = """
let focused = null, open = new Set();
element.addEventListener('toggle', (event) => {
  const key = event.target.dataset && event.target.dataset.keep;
  if (key && event.target.isConnected) event.target.open ? open.add(key) : open.delete(key);
}, true);
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-do]');
  if (!button) return;
  if (button.dataset.do === 'compare') {
    const dialog = document.querySelector('#compare dialog');
    if (!dialog) return;
    const image = button.querySelector('img');
    dialog.querySelector('img.theirs').src = image.src;
    dialog.querySelector('img.theirs').alt = image.alt;
    dialog.querySelector('figcaption.theirs').textContent =
      image.alt + ', reduced, document ' + button.dataset.id;
    dialog.showModal();
    return;
  }
  focused = [button.dataset.do, button.dataset.id];
  trigger('click', {do: button.dataset.do, id: button.dataset.id});
});
watch('value', () => {
  for (const details of element.querySelectorAll('details[data-keep]')) {
    details.open = open.has(details.dataset.keep);
  }
  if (!focused) return;
  const buttons = [...element.querySelectorAll('button[data-do]')];
  const id = focused[1];
  const next = buttons.find((b) => b.dataset.id === id && b.dataset.do !== 'compare')
    || buttons.find((b) => b.dataset.do === focused[0]);
  if (next && document.activeElement === document.body) next.focus();
  focused = null;
});
"""


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


def word_difference(answer: str, base: str) -> str:
    """The words that an answer adds to and drops from RAG off's."""
    old, new = base.split(), answer.split()
    if old == new:
        return '<p class="small diff">Word for word RAG off’s answer.</p>'
    pieces = []
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(text(" ".join(new[c:d])))
            continue
        if b > a:
            pieces.append(f"<del>{text(' '.join(old[a:b]))}</del>")
        if d > c:
            pieces.append(f"<ins>{text(' '.join(new[c:d]))}</ins>")
    return f'<p class="small diff">Against RAG off: {" ".join(pieces)}</p>'


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
    warnings: Mapping[str, str] | None = None,
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
                badge(method, answers)
                + (word_difference(answer.text, answers["rag_off"].text) if i else "")
                + probabilities(answer, before)
                + f'<p class="small cost">{answer.seconds:.2f} s · {answer.tokens} '
                f"{'token' if answer.tokens == 1 else 'tokens'}</p>"
                + (prompt_html(answer.prompt) if answer.prompt else "")
            )
        columns.append(
            f'<article class="answer {method}" data-done="{str(answer is not None).lower()}">'
            f'<h3>{title}<span>{subtitle}</span></h3><p class="says">{words}</p>{foot}</article>'
        )
    return (
        meaningless(warnings or {})
        + f'<p class="asked"><span class="small">Question</span> {text(question)}</p>'
        f'<div class="answers">{"".join(columns)}</div>'
        + (f'<p class="small settings-line">{text(settings_line)}</p>' if settings_line else "")
        + note_list(notes)
    )


def _words(answer: str) -> str:
    return " ".join(answer.split())


LETTERS = "ABC"


def waiting(question: str) -> str:
    """What stands in place of the answers until the reader has typed an impression."""
    return (
        f'<p class="asked"><span class="small">Question</span> {text(question)}</p>'
        '<p class="waiting">Read the picture and the reports, then type your own impression '
        "below. The answers appear after it.</p>"
    )


def blind_columns(question: str, texts: Sequence[str]) -> str:
    """Three answers without their names, each with a button to vote for it."""
    columns = "".join(
        f'<article class="answer blind"><h3>Answer {letter}</h3><p class="says">{text(words)}</p>'
        f'<p class="deeds"><button type="button" data-vote="{letter}">{letter} is best</button>'
        "</p></article>"
        for letter, words in zip(LETTERS, texts, strict=True)
    )
    return (
        f'<p class="asked"><span class="small">Question</span> {text(question)}</p>'
        f'<div class="answers">{columns}</div><p class="deeds"><button type="button" '
        'data-vote="none">No difference</button><span class="small">The labels, probabilities '
        "and attention appear after your vote.</span></p>"
    )


def reading_line(impression: str, vote: str, letters: Mapping[str, str]) -> str:
    """The reader's impression, and what the vote was for."""
    parts = []
    if impression:
        parts.append(f"<b>Your impression:</b> {text(impression)}")
    if vote:
        chosen = TITLES[vote][0] if vote in TITLES else "no difference"
        whose = ", ".join(f"{letters[m]} was {TITLES[m][0]}" for m in METHODS if m in letters)
        parts.append(f"<b>Your vote:</b> {chosen} ({whose})")
    return f'<p class="read">{" · ".join(parts)}</p>' if parts else ""


VOTE_SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-vote]');
  if (button) trigger('click', {vote: button.dataset.vote});
});
"""

# The file travels packed, and the browser itself writes it.
SAVE_SCRIPT = """
watch('value', async () => {
  if (!props.value) return;
  const {name, type, gzip} = JSON.parse(props.value);
  const bytes = Uint8Array.from(atob(gzip), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const file = new Blob([await new Response(stream).arrayBuffer()], {type});
  const link = document.createElement('a');
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});
"""

HISTORY = (
    '<details class="visit"><summary>This visit’s cases (<span class="count">0</span>)</summary>'
    '<p class="small">Kept in this tab alone, and gone when it is closed.</p><ol></ol>'
    '<p class="deeds"><button type="button" disabled>Save questions, answers and votes</button>'
    "</p></details>"
)
HISTORY_SCRIPT = """
const cases = [];
const list = element.querySelector('ol'), save = element.querySelector('button');
watch('value', () => {
  if (!props.value) return;
  const {nonce, ...entry} = JSON.parse(props.value);
  entry.time = new Date().toISOString();
  cases.push(entry);
  const item = document.createElement('li');
  const names = {rag_off: 'RAG off', rag: 'RAG', mr_rag: 'MR-RAG'};
  const said = Object.entries(entry.answers).map(([m, words]) => names[m] + ': ' + words);
  const {impression, vote} = entry.reading;
  if (impression) said.push('Your impression: ' + impression);
  if (vote) said.push('Your vote: ' + (names[vote] || 'no difference'));
  const head = document.createElement('b'), rest = document.createElement('span');
  head.textContent = entry.question;
  rest.textContent = said.join(' · ');
  item.append(head, document.createElement('br'), rest);
  list.append(item);
  element.querySelector('.count').textContent = cases.length;
  save.disabled = false;
});
save.addEventListener('click', () => {
  const file = new Blob([JSON.stringify(cases, null, 1)], {type: 'application/json'});
  const link = document.createElement('a');
  link.href = URL.createObjectURL(file);
  link.download = 'mr-rag-visit.json';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});
"""


def stale(reasons: Sequence[str]) -> str:
    """A line over answers that were given to other settings than those on the page."""
    if not reasons:
        return ""
    return (
        '<p class="warning stale" role="status"><b><span aria-hidden="true">↻</span> Not up to '
        f"date.</b> Since these answers, {text(' and '.join(reasons))}. Press Ask to answer "
        "again.</p>"
    )


# ---------------------------------------------------------------- attention


def attention_intro() -> str:
    """The direction and the one thing that attention does not show."""
    return (
        f'<p class="direction"><b>Direction:</b> {DIRECTION}, after the softmax, averaged over '
        f"heads and question tokens. <b>▶</b> and a frame mark the layers where IFA acts. "
        f"{ROUTING}</p>"
    )


# A click on a heatmap or on the lines moves the layer's slider, and all that follows it.
LAYER_SCRIPT = """
const panel = element.closest('#attention');
const choose = (layer) => {
  const slider = panel.querySelector('#layer input[type=range]');
  const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set;
  set.call(slider, layer);
  slider.dispatchEvent(new Event('input', {bubbles: true}));
};
panel.addEventListener('pointerover', (event) => {
  const plot = event.target.closest('.js-plotly-plot');
  if (!plot || plot.choosesLayer || !plot.on) return;
  plot.choosesLayer = true;
  const byRow = plot.closest('#maps') !== null;
  plot.on('plotly_click', ({points}) => choose(byRow ? points[0].y : points[0].x));
});
"""


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
