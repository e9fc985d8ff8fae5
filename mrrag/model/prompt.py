"""Question and reports → token ids, with spans that are known by construction.

The reports come before the question. In a causal decoder only then do question rows read
report columns, the flow on which IFA acts. Ids are built segment by segment: a span is
where its segment landed, nothing is searched for, and branches share the same ids for what
they have in common.

The template is the checkpoint's own chat template or, where it has none, LLaVA-Med 1.5's
``mistral_instruct``: ``[INST] <image>\\n{text} [/INST]``, one BOS, no system prompt.

This module knows no model and no tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mrrag.errors import SettingsError
from mrrag.types import Span

REPORTS_HEADING = "Reports of similar cases:\n"
IMAGE = "<image>"
MAX_REPORT_TOKENS = 256
SPACE = "▁"  # the space of SentencePiece


@dataclass(frozen=True)
class Template:
    """The text around one question about one image, without BOS.

    ``picture`` is the text before and after any further image.
    """

    opening: str = "[INST] "
    after_image: str = "\n"
    cue: str = " [/INST]"
    picture: tuple[str, str] = ("", "\n")

    @property
    def markers(self) -> tuple[str, ...]:
        """Template markers, which are removed from what a person types."""
        around = (text.strip() for text in (self.opening, self.cue))
        return (IMAGE, *(text for text in around if text))


MISTRAL_INSTRUCT = Template()
# As HuatuoGPT-Vision's own code writes it (github.com/FreedomIntelligence/HuatuoGPT-Vision).
HUATUO = Template("<|user|>\n", "\n", "\n<|assistant|>\n")


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that a prompt needs."""

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a sequence, if there is one."""

    @property
    def all_special_tokens(self) -> list[str]:
        """The strings that the tokenizer treats as control tokens."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text."""


@dataclass(frozen=True)
class Prompt:
    """Token ids, with spans that tile them.

    Attributes
    ----------
    suffix_start : int
        ``ids[:suffix_start]`` is the prefix (image and reports). It does not depend on the
        question, so it is read once; the rest is the question and its cue. Where the question
        stands twice, the prefix ends before the first.
    notes : tuple of str
        Which reports were shortened.
    grid : (rows, columns) or None
        The image's patches; None without an image.
    picture_grids : tuple of (rows, columns)
        The patches of the reports' own pictures, in their order; empty where they are not shown.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    suffix_start: int
    notes: tuple[str, ...] = ()
    grid: tuple[int, int] | None = None
    picture_grids: tuple[tuple[int, int], ...] = ()

    def span(self, name: str) -> Span:
        """Return the first span of that name; KeyError if there is none."""
        for span in self.spans:
            if span.name == name:
                return span
        raise KeyError(name)

    @property
    def images(self) -> tuple[Span, ...]:
        """The spans that image features fill: the image's, then those of the reports' pictures."""
        return tuple(s for s in self.spans if s.name == "image" or s.name.startswith("picture "))

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """The patches of each of :attr:`images`."""
        return (*((self.grid,) if self.grid else ()), *self.picture_grids)

    @property
    def reports(self) -> tuple[Span, ...]:
        """The spans of the reports, in the order of the documents."""
        return tuple(s for s in self.spans if s.name.startswith("report "))


def plain_text(text: str, tokenizer: Tokenizer, template: Template = MISTRAL_INSTRUCT) -> str:
    """Return a text without the control strings of tokenizer and template.

    Repeated until nothing changes, since removing one string may form another.
    """
    # Longest first, so that "</s>" is not left as "</" by a shorter token inside it.
    control = {*tokenizer.all_special_tokens, *template.markers}
    ordered = sorted(control, key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(s) for s in ordered))
    while True:
        cleaned = pattern.sub(" ", text)
        if cleaned == text:
            return " ".join(text.split())
        text = cleaned


def continuing(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """Return a function that encodes text which continues other text.

    A SentencePiece tokenizer treats any text as the start of a sentence and puts a space
    before it, which models trained on whole prompts never saw there. After a line break,
    which merges with nothing, it does not. (The bundled model was trained piece by piece, on
    a byte-level tokenizer.)
    """

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def after_line_break(text: str) -> list[int]:
        return encode("\n" + text)[len(line_break) :]

    line_break = encode("\n")
    return after_line_break if encode(SPACE) == encode(" ") else encode


def build_prompt(
    tokenizer: Tokenizer,
    question: str,
    reports: Sequence[str],
    *,
    image_token_id: int,
    image_tokens: int,
    template: Template = MISTRAL_INSTRUCT,
    max_report_tokens: int = MAX_REPORT_TOKENS,
    grid: tuple[int, int] | None = None,
    twice: bool = False,
    pictures: Sequence[tuple[tuple[int, int], int]] = (),
) -> Prompt:
    """Build the ids of one branch.

    Parameters
    ----------
    reports
        In the order of reading; empty for RAG off.
    image_tokens
        Placeholders that the vision tower's features fill (576 for LLaVA-Med 1.5); 0 without
        an image.
    template
        From :func:`mrrag.model.checkpoint.load_template`.
    max_report_tokens
        Longer reports are cut to this length, and a note says so.
    grid
        Rows and columns of the image's patches, for whoever shows attention.
    twice
        Whether the question also stands before the reports, as the span "first question"
        (MAD-RAG).
    pictures
        Grid and number of tokens of each report's own picture, to be shown before it as the span
        "picture 1" and so on (few-shot, as Med-Flamingo); empty for reports alone.

    Raises
    ------
    SettingsError
        Where the question is empty once control strings are removed.
    ValueError
        Where there are pictures, but not one for each report.
    """
    if pictures and len(pictures) != len(reports):
        raise ValueError(f"{len(reports)} reports have {len(pictures)} pictures.")
    question = plain_text(question, tokenizer, template)
    if not question:
        raise SettingsError("The question is empty. Type a question about the image.")

    go_on = continuing(tokenizer)

    def begin(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    ids: list[int] = []
    spans: list[Span] = []
    notes: list[str] = []

    def add(name: str, tokens: Sequence[int]) -> None:
        if not tokens:
            return
        spans.append(Span(name, len(ids), len(ids) + len(tokens)))
        ids.extend(tokens)

    opening = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    add("other", opening + begin(template.opening))
    add("image", [image_token_id] * image_tokens)
    # LLaVA splits its text at the image, so the text after it starts anew.
    heading = REPORTS_HEADING if reports else ""
    add("other", begin(template.after_image + ("" if twice else heading)))
    before_question = len(ids)
    if twice:
        add("first question", go_on(question))
        add("other", go_on("\n" + heading))
    for k, report in enumerate(reports, start=1):
        tokens = go_on(plain_text(report, tokenizer, template))
        if len(tokens) > max_report_tokens:
            notes.append(f"Report {k} was cut from {len(tokens)} to {max_report_tokens} tokens.")
            tokens = tokens[:max_report_tokens]
        add("other", go_on(f"{k}. "))
        if pictures:
            before, after = template.picture
            add("other", begin(before))
            add(f"picture {k}", [image_token_id] * pictures[k - 1][1])
            add("other", begin(after))
        add(f"report {k}", tokens)
        add("other", go_on("\n"))
    suffix_start = before_question if twice else len(ids)
    add("question", go_on(question))
    add("cue", go_on(template.cue))
    shown = tuple(grid for grid, _ in pictures)
    return Prompt(tuple(ids), tuple(spans), suffix_start, tuple(notes), grid, shown)


def prompt_text(decode: Callable[[list[int]], str], prompt: Prompt) -> str:
    """Return a prompt as text, with ``<image>`` for each of an image's tokens.

    The token there may be another's: LLaVA-Med has no ``<image>`` and uses ``<unk>``.
    """
    text, start = "", 0
    for span in prompt.images:
        text += decode(list(prompt.ids[start : span.start])) + IMAGE * (span.stop - span.start)
        start = span.stop
    return text + decode(list(prompt.ids[start:]))
