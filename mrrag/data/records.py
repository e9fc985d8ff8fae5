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
    """A document and its image file.

    ``projection`` is "Frontal", "Lateral" or the data set's own word; ``problems`` are
    the data set's own labels. The report is empty where there is none (a VQA file).
    """

    document: Document
    image_path: Path
    projection: str = ""
    problems: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        """The document's split."""
        return self.document.split


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

    ``other_images`` counts the images that are not used, because a record has one image;
    most of them are lateral views.
    """

    records: tuple[Record, ...]
    skipped: Mapping[str, tuple[str, ...]]
    questions: tuple[Question, ...] = ()
    skipped_questions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    other_images: int = 0
