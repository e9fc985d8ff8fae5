"""The rule that every reader follows: accept a row, or skip it and count the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from mrrag.data.records import Corpus, Record
from mrrag.errors import CorpusError

ABSENT = "image file absent"

T = TypeVar("T")


class Collector(Generic[T]):
    """Accepted rows in order, and the names of skipped rows by reason."""

    def __init__(self) -> None:
        self.accepted: list[T] = []
        self._skipped: dict[str, list[str]] = {}
        self._seen: set[str] = set()
        self.examples: dict[str, str] = {}

    def skip(self, reason: str, row: str, explained: str = "") -> None:
        """Count a row as skipped; the first one of a reason that is explained is an example."""
        self._skipped.setdefault(reason, []).append(row)
        if explained:
            self.examples.setdefault(reason, f"{row}: {explained}")

    def rejects(
        self,
        row: str,
        faults: Mapping[str, bool],
        explain: Mapping[str, Callable[[], str]] | None = None,
    ) -> bool:
        """Skip a row if it has a fault, and return whether it has one.

        Parameters
        ----------
        row
            The name to list the row by.
        faults
            Reason → whether it applies. The first that applies is the one counted.
        explain
            Reason → a function that says what is wrong with the row. Only the first row of a
            reason is explained, since that may take a search.
        """
        reason = next((reason for reason, applies in faults.items() if applies), None)
        if reason is not None:
            self.skip(reason, row)
            if explain and reason in explain and reason not in self.examples:
                self.examples[reason] = f"{row}: {explain[reason]()}"
        return reason is not None

    def repeats(self, key: str) -> bool:
        """Return whether this method was called with the same key before."""
        seen = key in self._seen
        self._seen.add(key)
        return seen

    @property
    def skipped(self) -> dict[str, tuple[str, ...]]:
        """Names of the skipped rows by reason, in the order in which reasons first occurred."""
        return {reason: tuple(rows) for reason, rows in self._skipped.items()}

    def require(self, path: Path | str, noun: str) -> None:
        """Raise a ``CorpusError`` with the reasons if no row was accepted."""
        if not self.accepted:
            counts = ", ".join(f"{len(rows)} with {r}" for r, rows in self._skipped.items())
            examples = "".join(f" For example {words}." for words in self.examples.values())
            raise CorpusError(
                f"No {noun} could be read from {path} ({counts or 'it has no rows'}).{examples}"
            )


def corpus_of(
    found: Collector[Record],
    path: Path | str,
    renamed: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Corpus:
    """Return the collected records as a corpus; raise ``CorpusError`` if there are none.

    ``renamed`` lists the images that were found under another suffix.
    """
    found.require(path, "case")
    return Corpus(
        tuple(found.accepted),
        found.skipped,
        examples=found.examples,
        notes=(*notes, *renamed_note(renamed)),
    )


def renamed_note(renamed: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence about images that were found under another suffix, if there are any."""
    once = list(dict.fromkeys(renamed))
    if not once:
        return ()
    return (f"Images found under another suffix: {len(once)}, such as {once[0]}.",)


def pictures_of(record: Record, pictures: Sequence[tuple[Path, str]]) -> list[Record]:
    """Return one record for each picture of a study, given as (file, view).

    The first keeps the ID, the others have "-2", "-3" and so on added to it.
    """
    return [
        replace(
            record,
            document=replace(
                record.document,
                id=record.document.id + (f"-{number}" if number > 1 else ""),
                view=view,
            ),
            image_path=path,
            picture=number,
        )
        for number, (path, view) in enumerate(pictures, start=1)
    ]
