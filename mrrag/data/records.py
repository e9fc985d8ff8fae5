"""What a reader of a data set returns: records, questions, and the rows it skipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mrrag.types import Document

__all__ = ["SPLITS", "Corpus", "Question", "Record"]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Record:
    """A document and its image file, or the image's path in a picture archive.

    ``problems`` are the data set's own labels. ``picture`` is the number of the image among
    those that the reader found of the study, from 1 and frontal ones first; it is 1 where each
    image has a row of its own. ``impression_only`` says that the report has no findings
    section. The report is empty where there is none (a VQA file).
    """

    document: Document
    image_path: Path
    problems: tuple[str, ...] = ()
    picture: int = 1
    impression_only: bool = False

    @property
    def split(self) -> str:
        """The document's split."""
        return self.document.split

    @property
    def view(self) -> str:
        """The document's view."""
        return self.document.view


@dataclass(frozen=True)
class Question:
    """A question about a record, with its reference answer.

    ``uid`` is the ID of the record's document. ``answer_type`` is "closed" (yes or no) or
    "open"; ``finding`` is what the question is about, or empty. ``split`` is the
    question's own split, or empty where its file gives none.
    """

    qid: str
    uid: str
    question: str
    answer: str
    answer_type: str
    finding: str = ""
    split: str = ""


@dataclass(frozen=True)
class Corpus:
    """The records and questions of a data set, and the IDs of skipped rows by reason.

    ``examples`` says of some reasons, in words, what is wrong with their first row. ``notes``
    are sentences about how the data set was read. ``other_images`` counts the images of the
    records' studies that are not used, because of the choice of views.
    """

    records: tuple[Record, ...]
    skipped: Mapping[str, tuple[str, ...]]
    questions: tuple[Question, ...] = ()
    skipped_questions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    other_images: int = 0
    examples: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
