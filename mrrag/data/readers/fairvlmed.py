"""Harvard-FairVLMed: fundus images with summaries of the clinical notes."""

from __future__ import annotations

import re
import zipfile
from functools import partial
from pathlib import Path

import numpy as np

from mrrag.data.readers.collector import ABSENT, Collector, corpus_of
from mrrag.data.readers.rows import PICTURES, Skip, csv_rows
from mrrag.data.records import Corpus, Record
from mrrag.errors import CorpusError
from mrrag.types import Document

__all__ = ["SPLIT_FOLDERS", "read_fairvlmed"]

SOURCE = {"source": "Harvard-FairVLMed", "licence": "CC BY-NC-ND 4.0"}
SPLIT_FOLDERS = {"Training": "train", "Validation": "validation", "Test": "test"}
TABLES = ("data_summary.csv", "gpt-4_summarized_notes.csv")
DAMAGED = "damaged"


def read_fairvlmed(directory: str | Path) -> Corpus:
    """Read Harvard-FairVLMed: NumPy archives by split, and the table of summaries.

    ``Training``, ``Validation`` and ``Test`` hold ``data_xxxxx.npz`` (or
    ``slo_fundus_xxxxx.jpg``, as in other distributions). The texts are in
    ``data_summary.csv`` (``filename``, ``gpt4_summary``, ``note``, ``glaucoma``) or in
    ``gpt-4_summarized_notes.csv`` (file name, note, summary), both as published. The
    summary is the report, or the note where the summary is empty. The five digits are the
    ID of record, study and patient. The label is that of the table, else of the archive.

    Raises
    ------
    CorpusError
        If there is no table, or no record is left.
    """
    directory = Path(directory)
    table = next((p for n in TABLES if (p := directory / n).is_file()), None)
    if table is None:
        raise CorpusError(f"{directory} has no summaries: looked for {' and '.join(TABLES)}.")
    found = Collector[Record]()
    texts = _summaries(table, found.skip)
    seen: set[str] = set()
    for path in _images(directory):
        uid = _digits(path.stem)
        report, label = texts.get(uid, ("", ""))
        if not label and path.suffix == ".npz" and report:
            label = _archive_label(path)
        seen.add(uid)
        faults = {
            "file given before": found.repeats(uid),
            "no summary": uid not in texts,
            "empty summary": not report,
            "archive damaged": label == DAMAGED,
        }
        if found.rejects(f"{path.parent.name}/{path.name}", faults):
            continue
        document = Document(
            id=uid,
            report=report,
            patient=uid,
            study=uid,
            split=SPLIT_FOLDERS[path.parent.name],
            **SOURCE,
        )
        sick = label in ("1", "1.0", "yes", "true", "glaucoma")
        problems = ("glaucoma" if sick else "no glaucoma",) if label else ()
        found.accepted.append(Record(document, path, problems))
    for uid in sorted(texts.keys() - seen):
        places = f"data_{uid}.npz or slo_fundus_{uid}.jpg in {', '.join(SPLIT_FOLDERS)}"
        found.rejects(uid, {ABSENT: True}, {ABSENT: partial("looked for {}".format, places)})
    return corpus_of(found, directory)


def _summaries(table: Path, skip: Skip) -> dict[str, tuple[str, str]]:
    """Return report and label by the digits in the file name."""
    texts: dict[str, tuple[str, str]] = {}
    for number, row in enumerate(csv_rows(table), start=2):
        columns = {name.lower().replace("_", " "): value for name, value in row.items()}
        values = list(row.values())
        uid = _digits(columns.get("filename") or columns.get("file name") or values[0])
        summary = columns.get("gpt4 summary") or columns.get("summarized note") or ""
        if not summary and "gpt4 summary" not in columns and len(values) > 2:
            summary = values[2]  # the columns of this table have had several names
        note = columns.get("note") or columns.get("original note") or ""
        if not uid:
            skip("no file name", f"{table.name} line {number}")
        elif uid in texts:
            skip("file named before", uid)
        else:
            texts[uid] = (" ".join((summary or note).split()), columns.get("glaucoma", "").lower())
    return texts


def _images(directory: Path) -> list[Path]:
    """Return the archives and pictures of all splits, in the order of ``SPLIT_FOLDERS``."""
    return [
        path
        for folder in SPLIT_FOLDERS
        if (directory / folder).is_dir()
        for path in sorted((directory / folder).iterdir())
        if path.suffix in (".npz", *PICTURES)
    ]


def _digits(name: str) -> str:
    """Return 08003 of "data_08003.npz" and "slo_fundus_08003.jpg", else ""."""
    found = re.search(r"(\d+)(?:\.\w+)?$", name.strip())
    return found[1] if found else ""


def _archive_label(path: Path) -> str:
    """Return an archive's ``glaucoma`` as "0" or "1", or ``DAMAGED`` if it cannot be read."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return str(int(archive["glaucoma"].item())) if "glaucoma" in archive else ""
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile):
        return DAMAGED
