"""``splits.csv``: the split, and the patient, of each study of a data set that names none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mrrag.data.readers.collector import Collector
from mrrag.data.readers.rows import csv_rows, split_name
from mrrag.data.records import SPLITS, Corpus, Record
from mrrag.errors import CorpusError

__all__ = ["read_splits", "with_splits"]

UNNAMED = "no patient and split in splits.csv"


def with_splits(corpus: Corpus, path: Path) -> Corpus:
    """Return the corpus with the splits and patients of a ``splits.csv``.

    A row is of the record with its ``uid``, or of all records of the study with it. A record
    that it does not name is skipped, because its patient may be in another split. Without a
    column ``patient`` the patients stay as they are, and a note says what that means.

    Raises
    ------
    CorpusError
        As :func:`read_splits`, or if no record is left.
    """
    splits = read_splits(path)
    found = Collector[Record]()
    for record in corpus.records:
        document = record.document
        patient, split = splits.get(document.id) or splits.get(document.study) or ("", "")
        patient = document.patient if patient is None else patient
        if patient and split:
            named = replace(document, patient=patient, split=split)
            found.accepted.append(replace(record, document=named))
        elif record.picture == 1:  # a study counts once
            found.skip(UNNAMED, document.id)
    found.require(path.parent, "case")
    notes = corpus.notes
    alone = all(r.document.patient == r.document.study for r in found.accepted)
    if alone and any(patient is None for patient, _ in splits.values()):
        notes += (
            f"{path.name} has no column patient: each study counts as a patient of its own. If a "
            "patient has several studies, add the column, or retrieval may find the same person.",
        )
    skipped = {**corpus.skipped, **found.skipped}
    return replace(corpus, records=tuple(found.accepted), skipped=skipped, notes=notes)


def read_splits(path: Path) -> dict[str, tuple[str | None, str]]:
    """Return patient and split by uid; the patient is None where there is no such column.

    Columns other than ``uid``, ``patient`` and ``split`` are ignored.

    Raises
    ------
    CorpusError
        If it has no rows, no column ``uid`` or ``split``, another split than ``SPLITS``, or one
        uid with two patients or splits.
    """
    rows = list(csv_rows(path))
    if not rows:
        raise CorpusError(f"{path} has no rows. Give one for each uid, or remove the file.")
    columns = list(rows[0])
    absent = [name for name in ("uid", "split") if name not in columns]
    if absent:
        raise CorpusError(
            f"{path} has the columns {', '.join(columns)}, but no {' and no '.join(absent)}. It "
            'needs "uid", the id of the study, and "split" (train, validation or test), and may '
            'have "patient". Rename or add them.'
        )
    splits: dict[str, tuple[str | None, str]] = {}
    for number, row in enumerate(rows, start=2):
        given = (row.get("patient"), split_name(row["split"]))
        if splits.setdefault(row["uid"], given) != given:
            raise CorpusError(
                f"{path}, line {number}: the uid {row['uid']} came before with another patient or "
                "split. Give each uid once."
            )
        if given[1] and given[1] not in SPLITS:
            raise CorpusError(
                f'{path}, line {number}: the split is "{row["split"]}"; it must be '
                f"{', '.join(SPLITS[:-1])} or {SPLITS[-1]}."
            )
    return splits
