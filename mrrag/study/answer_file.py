"""The answers in a run folder: CSV files to which one process appends as answers come.

An answer has a key, the digest of everything that produced it. What goes into the key is
not known here, nor what the answers are worth.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mrrag.errors import SettingsError
from mrrag.files import is_out_of_space, locked

COLUMNS = ("key", "qid", "p_yes", "own_rank", "documents", "text")


@dataclass(frozen=True)
class StoredAnswer:
    """One answer as it is stored.

    Attributes
    ----------
    p_yes : float
        P(yes) / (P(yes) + P(no)) at the first token.
    documents : tuple of str
        IDs of the reports that the model read, in the order of reading.
    own_rank : int or None
        Rank that the study's own report would have in the knowledge base; see
        :func:`mrrag.study.experiment.own_ranks`.
    """

    text: str
    p_yes: float
    documents: tuple[str, ...]
    own_rank: int | None


@contextmanager
def open_answers(path: Path) -> Iterator[BinaryIO]:
    """Open an answer file to append to; an incomplete last line is cut off first.

    Raises
    ------
    SettingsError
        If another process has it open, or the disk is full.
    """

    def refuse() -> SettingsError:
        return SettingsError(
            f"Another experiment is writing to {path}. Wait for it, or name another folder "
            "with --folder."
        )

    try:
        with locked(path.with_name(f".{path.name}.lock"), refuse), path.open("ab+") as stream:
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
            if not stream.seek(0, os.SEEK_END):
                _write(stream, [COLUMNS])
            yield stream
    except OSError as error:
        if not is_out_of_space(error):
            raise
        raise SettingsError(
            f"There is no room left for {path} ({error.strerror}). The answers so far are kept; "
            "free some space and repeat the command to go on."
        ) from None


def append_answers(stream: BinaryIO, answers: Iterable[tuple[str, str, StoredAnswer]]) -> None:
    """Append answers with their key and question ID; they are on disk on return."""
    _write(
        stream,
        (
            (
                key,
                " ".join(qid.split()),
                repr(answer.p_yes),
                "" if answer.own_rank is None else answer.own_rank,
                json.dumps(answer.documents),
                answer.text,
            )
            for key, qid, answer in answers
        ),
    )


def _write(stream: BinaryIO, rows: Iterable[Sequence[Any]]) -> None:
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(rows)
    stream.write(lines.getvalue().encode())
    stream.flush()
    os.fsync(stream.fileno())


def read_answers(folder: Path) -> dict[str, StoredAnswer]:
    """Return all answers in a run folder by key; an incomplete last line is ignored."""
    answers: dict[str, StoredAnswer] = {}
    for path in sorted(folder.glob("answers*.csv")):
        data = path.read_bytes()
        lines = data[: data.rfind(b"\n") + 1].decode("utf-8", errors="replace").split("\n")
        for row in csv.reader(lines[1:]):
            try:
                key, _, p_yes, rank, documents, text = row
                answer = StoredAnswer(
                    text, float(p_yes), tuple(json.loads(documents)), int(rank) if rank else None
                )
            except ValueError:
                continue  # damaged, or not a line of ours: the question is asked again
            answers.setdefault(key, answer)
    return answers
