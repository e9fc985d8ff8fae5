"""``ask --batch``: the questions of a table, answered one after the other into one file.

The file has a line of JSON for each row, in the order of the rows, and a line is on disk before
the next row is asked. So its lines say how far it came, whatever ended the command, and the same
command goes on from there. One case at a time is in memory.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mrrag.cli.options import load_chosen, ticker
from mrrag.errors import MRRAGError, SettingsError
from mrrag.files import is_out_of_space, json_sha256, locked

if TYPE_CHECKING:
    from mrrag.api import MRRAG
    from mrrag.case import Settings

logger = logging.getLogger(__name__)

COLUMNS = "The columns are image and question, and frame for DICOM files with several."
TRIAL = "Is there a pleural effusion?"
BLOCK = 2**16  # bytes read at a time, from the end of the file


@dataclass(frozen=True)
class Row:
    """A row of the table as it was typed; ``number`` counts from 1."""

    number: int
    image: str
    question: str
    frame: str


def run_batch(args: argparse.Namespace, settings: Settings) -> None:
    """Answer all rows that have no line yet.

    Raises
    ------
    SettingsError
        If the table or the file cannot be used, or, once all rows are asked, if some of them
        have no answer.
    """
    from mrrag.api import MRRAG
    from mrrag.pipeline import versions

    total = sum(1 for _ in read_rows(args.batch))
    rag = MRRAG(load_chosen(args))
    # Refused here, and not in the line of every row.
    rag.retrieve(None, TRIAL, settings=replace(settings, weights=None))
    how = {"settings": asdict(settings), "versions": versions(rag.pipeline)}
    with open_lines(args.output) as stream:
        done, refused = check_lines(stream, args, how)
        if done:
            print(f"{done} of {total} rows have a line already.", file=sys.stderr)
        rows = (row for row in read_rows(args.batch) if row.number > done)
        for row in ticker(rows, total - done, "asking"):
            line = key_of(row, how) | answered(rag, row, args.batch.parent, settings)
            refused += line["error"] is not None
            append(stream, line)
    if refused:
        raise SettingsError(
            f"{refused} of {total} rows have no answer; their lines in {args.output} say why. "
            "To ask them again, put them into a table of their own."
        )


def answered(rag: MRRAG, row: Row, folder: Path, settings: Settings) -> dict[str, Any]:
    """Return the case of a row as JSON values, or the sentence that says why there is none."""
    from mrrag.data.images import load_image

    try:
        if not row.image:
            raise SettingsError("The row has no image. Give the path of its file.")
        if not (row.frame or "0").isascii() or not (row.frame or "0").isdigit():
            raise SettingsError(f"The frame is {row.frame[:20]!r}. Give a whole number from 0.")
        image = load_image(folder / row.image, frame=int(row.frame or 0))
        case = rag.ask(image, row.question, settings=settings)
        return {"error": None, "case": case.to_json()}
    except MRRAGError as error:
        return {"error": str(error), "case": None}
    except Exception as error:  # nor does a fault of our own stop the rest
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("Unexpected %s\n%s", type(error).__name__, frames)
        return {"error": f"Something went wrong ({type(error).__name__}).", "case": None}


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV file in UTF-8; other columns are ignored.

    Raises
    ------
    SettingsError
        If it cannot be read, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            absent = {"image", "question"} - set(table.fieldnames or ())
            if absent:
                raise SettingsError(
                    f"{path.name} has no column {' and no column '.join(sorted(absent))}. {COLUMNS}"
                )
            for number, row in enumerate(table, 1):
                image, question, frame = (
                    (row.get(name) or "").strip() for name in ("image", "question", "frame")
                )
                yield Row(number, image, question, frame)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(
            f"{path.name} cannot be read as a CSV file in UTF-8 ({why}). {COLUMNS}"
        ) from None


def key_of(row: Row, how: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a line begins with; ``key`` is a digest of the row and how it is asked."""
    return {
        "row": row.number,
        "key": json_sha256([asdict(row), how])[:16],
        "image": row.image,
        "question": row.question,
    }


@contextmanager
def open_lines(path: Path) -> Iterator[BinaryIO]:
    """Open the file of answers to read and append; an incomplete last line is cut off first.

    Raises
    ------
    SettingsError
        If another process has it open, it cannot be written, or the disk is full.
    """

    def refuse() -> SettingsError:
        return SettingsError(
            f"Another command is writing to {path}. Wait for it, or name another --output."
        )

    try:
        with locked(path.with_name(f".{path.name}.lock"), refuse), path.open("ab+") as stream:
            stream.truncate(end_of_lines(stream))
            yield stream
    except OSError as error:
        if is_out_of_space(error):
            raise SettingsError(
                f"There is no room left for {path} ({error.strerror}). The answers so far are "
                "kept; free some space and repeat the command to go on."
            ) from None
        raise SettingsError(
            f"{path} cannot be written ({error.strerror}). Name another file with --output."
        ) from None


def end_of_lines(stream: BinaryIO) -> int:
    """Return the number of bytes up to the end of the last complete line."""
    end = stream.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - BLOCK)
        stream.seek(start)
        found = stream.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def check_lines(
    stream: BinaryIO, args: argparse.Namespace, how: Mapping[str, Any]
) -> tuple[int, int]:
    """Return how many rows have a line, and how many of these have no answer.

    Raises
    ------
    SettingsError
        If a line belongs to another table, or was asked otherwise.
    """
    stream.seek(0)
    done = refused = 0
    rows = read_rows(args.batch)
    for line in stream:
        row = next(rows, None)
        try:
            known = json.loads(line)
            error = known["error"]
            same = row is not None and known["key"] == key_of(row, how)["key"]
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise SettingsError(
                f"Line {done + 1} of {args.output} belongs to another table, model, knowledge base "
                f"or setting than row {done + 1} of {args.batch}. Name another file with --output."
            )
        done += 1
        refused += error is not None
    return done, refused


def append(stream: BinaryIO, line: Mapping[str, Any]) -> None:
    """Append a line; it is on disk on return."""
    stream.write(json.dumps(line, allow_nan=False).encode() + b"\n")
    stream.flush()
    os.fsync(stream.fileno())
