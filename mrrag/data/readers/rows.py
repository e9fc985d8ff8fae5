"""Text, JSON, CSV and Parquet files as rows, and the cells, names and paths in them.

It knows no data set.
"""

from __future__ import annotations

import bisect
import csv
import difflib
import gzip
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrrag.data.records import SPLITS
from mrrag.errors import CorpusError

PICTURES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".webp", ".tif", ".tiff", ".bmp")
SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    **{"training": "train", "val": "validation", "validate": "validation", "testing": "test"},
}
# Names that an absent one is compared with, which takes about a second.
MOST_NAMES = 10_000
# Key of a CSV row that is too long, and the reason for which such a row is skipped.
BEYOND = "fields beyond the last column"

# Counts a row as skipped: the reason and the row's name.
Skip = Callable[[str, str], None]


# Files


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, which may be compressed with gzip.

    Newlines are kept as they are: those inside quoted fields belong to the CSV reader.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as stream:
                return stream.read()
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return stream.read()
    except (OSError, EOFError) as error:  # gzip's own errors are OSErrors
        reason = getattr(error, "strerror", None) or error
        raise CorpusError(f"{path} cannot be read ({reason}).") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text ({error}). Convert it to UTF-8.") from error


def read_json(path: Path) -> Any:
    """Return the value in a JSON file."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise CorpusError(f"{path} is not JSON ({error}).") from error


def json_objects(path: Path, skip: Skip) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSON list, each with its place ("row 1")."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise CorpusError(f"{path} must be a list of objects, one for each question.")
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            yield f"row {number}", row
        else:
            skip("not an object", f"{path.name} row {number}")


def json_lines(path: Path, skip: Skip) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSON Lines file, each with its place ("line 1").

    Blank lines are ignored.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield f"line {number}", row
        else:
            skip("not a JSON object", f"{path.name} line {number}")


def csv_rows(path: Path, required: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file as stripped strings by column.

    The missing fields of a short row are empty. A long row has the extra key ``BEYOND``.

    Raises
    ------
    CorpusError
        If a required column is missing, or the file is not CSV.
    """
    # strict: a quote that is never closed is an error, instead of one field that holds
    # the rest of the file.
    text = io.StringIO(read_text(path), newline="")
    reader = csv.DictReader(text, restkey=BEYOND, restval="", strict=True)
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        absent = [name for name in required if name not in header]
        if absent:
            raise CorpusError(
                f"{path} has no column {', '.join(absent)}; it has {', '.join(header) or 'none'}."
            )
        for row in reader:
            beyond = {BEYOND: ""} if BEYOND in row else {}
            yield {name: row[name].strip() for name in header} | beyond
    except csv.Error as error:
        raise CorpusError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error


def parquet_rows(path: Path, wanted: Collection[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a Parquet file, with only the columns of a wanted (lower-case) name."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise CorpusError(
            f"{path} is a Parquet file, and pyarrow, which reads them, is not installed. "
            "Run pip install pyarrow, or save the table as CSV."
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            columns = [c for c in file.schema_arrow.names if c.strip().lower() in wanted]
            for batch in file.iter_batches(columns=columns):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise CorpusError(f"{path} is not a whole Parquet file ({error}).") from error


# Cells


def table_rows(
    path: Path, columns: Mapping[str, Sequence[str]], required: Sequence[str], skip: Skip
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a CSV, JSON Lines or Parquet table by field, each with its place.

    Parameters
    ----------
    columns
        Field → the lower-case column names that it may have.
    required
        Fields that a table must have. In JSON Lines they may be absent from a row, and are then
        empty, as other fields are.
    skip
        Called with a reason and a place for a row that cannot be read.

    Raises
    ------
    CorpusError
        If a required column is missing, or the table cannot be read.
    """
    raw: Iterable[tuple[str, Mapping[str, Any]]]
    if path.suffix == ".jsonl":
        raw = json_lines(path, skip)
    else:
        names = {name for names in columns.values() for name in names}
        rows = csv_rows(path) if path.suffix == ".csv" else parquet_rows(path, names)
        raw = ((f"row {n}", row) for n, row in enumerate(rows, start=1))
    for where, values in raw:
        if BEYOND in values:
            skip(BEYOND, where)
            continue
        given = {name.strip().lower(): name for name in values}
        chosen = {
            field: next((given[name] for name in names if name in given), None)
            for field, names in columns.items()
        }
        # The rows of JSON Lines need not all have the same keys.
        if path.suffix != ".jsonl" and not all(chosen[field] for field in required):
            needed = (f"one for the {field} ({', '.join(columns[field])})" for field in required)
            raise CorpusError(
                f"{path} has the columns {', '.join(values) or 'none'}. It needs "
                f"{' and '.join(needed)}."
            )
        yield where, {f: cell_text(values[name]) if name else "" for f, name in chosen.items()}


def cell_text(value: object) -> str:
    """Return a cell as a stripped string: lists joined by ";", None and NaN as ""."""
    if isinstance(value, list):
        return ";".join(cell_text(v) for v in value)
    return "" if value is None or value != value else str(value).strip()


def one_line(value: object) -> str:
    """Return a cell as a string in which all white space is single spaces."""
    return " ".join(cell_text(value).split())


def join_sections(findings: str, impression: str) -> str:
    """Return a report of findings and impression, one line for each that is not empty."""
    return "\n".join(line for text in (findings, impression) if (line := " ".join(text.split())))


def split_name(name: str) -> str:
    """Return the project's name of a split, or the given name if it is not a usual one."""
    return SPLIT_NAMES.get(name.strip().lower(), name.strip())


# Paths


def file_inside(folder: Path, name: str) -> Path | None:
    """Return a file below a folder, or None if it is absent or its name leads outside."""
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        return None
    path = folder / relative
    return path if path.is_file() else None


def find_image(folder: Path, name: str, renamed: list[str]) -> Path | None:
    """Return an image below a folder, if need be under another picture suffix, or None.

    A name without a suffix of ``PICTURES`` gets one. "b.jpg for a.png" is added to ``renamed``
    where the suffix differs.
    """
    path = file_inside(folder, name) if name else None
    # One look at the folder, which spares many at files in a data set of which a part is there.
    if path is not None or not name or not (folder / name).parent.is_dir():
        return path
    stem, suffix = _split_suffix(name)
    for other in (s for lower in PICTURES for s in (lower, lower.upper()) if s != suffix):
        path = file_inside(folder, stem + other)
        if path is not None:
            renamed.append(f"{path.name} for {Path(name).name}")
            return path
    return None


def absent_image(folder: Path, name: str) -> str:
    """Return in words where an absent image was looked for, and the nearest name there."""
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return f"{name} leads out of {folder}; write a path below it"
    if not path.parent.is_dir():
        return f"looked for {path}, and there is no folder {path.parent}"
    names = sorted(entry.name for entry in path.parent.iterdir())
    if len(names) > MOST_NAMES:  # those that begin alike stand around its place
        place = max(0, bisect.bisect(names, path.name) - MOST_NAMES // 2)
        names = names[place : place + MOST_NAMES]
    near = difflib.get_close_matches(path.name, names, 1, 0.5)
    if near:
        return f"looked for {path}; the nearest name there is {near[0]}"
    there = f"no name there is like it, one is {names[0]}" if names else "the folder is empty"
    return f"looked for {path}; {there}"


def _split_suffix(name: str) -> tuple[str, str]:
    suffix = Path(name).suffix
    return (name[: -len(suffix)], suffix) if suffix.lower() in PICTURES else (name, "")


def first_folder_with(directory: Path, names: Sequence[str], pattern: str) -> Path:
    """Return the first of these subfolders with a matching file, else the directory itself."""
    folders = (directory / name for name in names)
    return next((folder for folder in folders if any(folder.glob(pattern))), directory)
