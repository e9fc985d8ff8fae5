"""The rule that every reader follows: accept a row, or skip it and count the reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

from mrrag.data.records import Corpus, Record
from mrrag.errors import CorpusError

T = TypeVar("T")


class Collector(Generic[T]):
    """Accepted rows in order, and the names of skipped rows by reason."""

    def __init__(self) -> None:
        self.accepted: list[T] = []
        self._skipped: dict[str, list[str]] = {}
        self._seen: set[str] = set()

    def skip(self, reason: str, row: str) -> None:
        """Count a row as skipped."""
        self._skipped.setdefault(reason, []).append(row)

    def rejects(self, row: str, faults: Mapping[str, bool]) -> bool:
        """Skip a row if it has a fault, and return whether it has one.

        Parameters
        ----------
        row
            The name to list the row by.
        faults
            Reason → whether it applies. The first that applies is the one counted.
        """
        reason = next((reason for reason, applies in faults.items() if applies), None)
        if reason is not None:
            self.skip(reason, row)
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

    def require(self, path: Path, noun: str) -> None:
        """Raise a ``CorpusError`` with the reasons if no row was accepted."""
        if not self.accepted:
            counts = ", ".join(f"{len(rows)} with {r}" for r, rows in self._skipped.items())
            raise CorpusError(
                f"No {noun} could be read from {path} ({counts or 'it has no rows'})."
            )


def corpus_of(found: Collector[Record], path: Path, other_images: int = 0) -> Corpus:
    """Return the collected records as a corpus; raise ``CorpusError`` if there are none."""
    found.require(path, "case")
    return Corpus(tuple(found.accepted), found.skipped, other_images=other_images)
