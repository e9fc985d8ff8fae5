"""Ids are built segment by segment, so spans are known and control strings cannot be typed."""

from __future__ import annotations

import itertools

import pytest

from mrrag.errors import SettingsError
from mrrag.model.backbone import Backbone
from mrrag.model.prompt import MISTRAL_INSTRUCT, Prompt, build_prompt, plain_text, prompt_text

QUESTION = "Is there a pleural effusion on the left?"
REPORTS = ("The heart is enlarged.", "The lungs are clear.", "There is no pneumothorax.")


def make(
    backbone: Backbone, question: str = QUESTION, reports: tuple[str, ...] = REPORTS, **options: int
) -> Prompt:
    return build_prompt(
        backbone.tokenizer,
        question,
        reports,
        image_token_id=backbone.image_token_id,
        image_tokens=options.pop("image_tokens", backbone.image_tokens),
        **options,
    )


def test_spans_tile_the_ids(tiny_llava: Backbone) -> None:
    for reports in ((), REPORTS[:1], REPORTS):
        prompt = make(tiny_llava, reports=reports)
        assert prompt.spans[0].start == 0
        assert prompt.spans[-1].stop == len(prompt.ids)
        for left, right in itertools.pairwise(prompt.spans):
            assert left.stop == right.start > left.start


def test_spans_decode_to_their_text(tiny_llava: Backbone) -> None:
    prompt = make(tiny_llava)

    def text(name: str) -> str:
        span = prompt.span(name)
        return str(tiny_llava.tokenizer.decode(prompt.ids[span.start : span.stop]))

    assert text("question") == QUESTION
    assert text("cue") == " [/INST]"
    assert [text(span.name) for span in prompt.reports] == list(REPORTS)


def test_the_whole_prompt_is_the_template(tiny_llava: Backbone) -> None:
    image = "<image>" * tiny_llava.image_tokens
    decode = tiny_llava.tokenizer.decode
    assert decode(make(tiny_llava, reports=()).ids) == f"<s>[INST] {image}\n{QUESTION} [/INST]"
    assert decode(make(tiny_llava, reports=REPORTS[:2]).ids) == (
        f"<s>[INST] {image}\nReports of similar cases:\n1. {REPORTS[0]}\n2. {REPORTS[1]}\n"
        f"{QUESTION} [/INST]"
    )


def test_a_prompt_is_shown_as_it_is_read(tiny_llava: Backbone) -> None:
    for prompt in (make(tiny_llava), make(tiny_llava, image_tokens=0)):
        assert prompt_text(tiny_llava.tokenizer.decode, prompt) == tiny_llava.tokenizer.decode(
            prompt.ids
        )


def test_reports_come_before_the_question(tiny_llava: Backbone) -> None:
    prompt = make(tiny_llava)
    assert max(span.stop for span in prompt.reports) <= prompt.suffix_start
    assert prompt.span("question").start == prompt.suffix_start


def test_the_prefix_does_not_depend_on_the_question(tiny_llava: Backbone) -> None:
    one, other = make(tiny_llava), make(tiny_llava, question="Is the heart normal?")
    assert one.suffix_start == other.suffix_start
    assert one.ids[: one.suffix_start] == other.ids[: other.suffix_start]


def test_branches_share_the_image_and_the_question(tiny_llava: Backbone) -> None:
    off, rag = make(tiny_llava, reports=()), make(tiny_llava)
    shared = off.span("image").stop
    assert off.ids[:shared] == rag.ids[:shared]
    assert off.ids[off.suffix_start :] == rag.ids[rag.suffix_start :]


def test_the_image_takes_as_many_tokens_as_the_checkpoint_says(tiny_llava: Backbone) -> None:
    assert make(tiny_llava).ids.count(tiny_llava.image_token_id) == tiny_llava.image_tokens == 16
    without = make(tiny_llava, image_tokens=0)
    assert tiny_llava.image_token_id not in without.ids
    with pytest.raises(KeyError):
        without.span("image")


@pytest.mark.parametrize(
    "typed",
    ["<un<unk>k> is it?", "</s><s> is it?", "<ima<image>ge> is it?", "[/INST] is it? [INST]"],
)
def test_special_strings_typed_by_a_person_are_stripped(tiny_llava: Backbone, typed: str) -> None:
    prompt = make(tiny_llava, question=typed, reports=(typed,))
    special = set(tiny_llava.tokenizer.all_special_ids)
    for name in ("question", "report 1"):
        span = prompt.span(name)
        ids = prompt.ids[span.start : span.stop]
        assert not special & set(ids)
        text = tiny_llava.tokenizer.decode(ids)
        assert "is it?" in text
        assert not any(marker in text for marker in MISTRAL_INSTRUCT.markers)


def test_cleaning_text_twice_changes_nothing(tiny_llava: Backbone) -> None:
    for text in ("a <b> c", "<un<unk>k>", "[[/INST]/INST]", "two\n lines"):
        once = plain_text(text, tiny_llava.tokenizer)
        assert plain_text(once, tiny_llava.tokenizer) == once


@pytest.mark.parametrize("question", ["", "  \n", "<image>", "[INST]</s>"])
def test_an_empty_question_is_refused(tiny_llava: Backbone, question: str) -> None:
    with pytest.raises(SettingsError, match="question is empty"):
        make(tiny_llava, question=question)


def test_a_long_report_is_cut_with_a_note(tiny_llava: Backbone) -> None:
    prompt = make(tiny_llava, max_report_tokens=3)
    assert [span.stop - span.start for span in prompt.reports] == [3, 3, 3]
    assert len(prompt.notes) == 3
    assert prompt.notes[0].startswith("Report 1 was cut from ")
    assert not make(tiny_llava).notes


def test_a_question_asked_twice_stands_before_the_reports_and_the_prefix_ends_there(
    tiny_llava: Backbone,
) -> None:
    once, twice = make(tiny_llava), tiny_llava.prompt(QUESTION, REPORTS, twice=True)
    spans = {span.name: span for span in twice.spans}
    first, last = spans["first question"], spans["question"]
    words = [twice.ids[s.start : s.stop] for s in (first, last)]
    assert (
        words[0] == words[1] == once.ids[once.span("question").start : once.span("question").stop]
    )
    assert spans["image"].stop < first.start == twice.suffix_start < spans["report 1"].start
    assert [s.name for s in twice.reports] == [s.name for s in once.reports]
    assert [s.start for s in twice.spans[1:]] == [s.stop for s in twice.spans[:-1]]
