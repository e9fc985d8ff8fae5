"""A picture archive, and a table of reports by accession number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from mrrag.data.dicomweb import Criteria, find_series, find_studies, instance_path
from mrrag.data.dicomweb_request import Archive
from mrrag.data.pseudonyms import pseudonym
from mrrag.data.readers.collector import Collector, corpus_of, pictures_of
from mrrag.data.readers.rows import one_line, split_name, table_rows
from mrrag.data.records import Corpus, Record
from mrrag.data.views import view_of
from mrrag.errors import CorpusError, SettingsError
from mrrag.types import Document

__all__ = ["FILMS", "read_archive"]

COLUMNS = {
    "accession": ("accession", "accession_number", "accessionnumber"),
    "report": ("report", "text", "findings", "report_text"),
    "split": ("split", "use", "subset"),
}
TABLES = (".csv", ".jsonl", ".parquet")
FILMS = ("CR", "DX")  # the modalities of projection radiographs (PS3.3 C.7.3.1.1.1)
AT_ONCE = 8  # studies that are looked up at the same time
BLOCK = 1000  # rows that wait for that
REFUSED = "accession number that the archive cannot search by"


def read_archive(
    archive: Archive,
    reports: str | Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Corpus:
    """Find the films of each report of a table in the archive; no film is fetched yet.

    The table is a CSV, JSON Lines or Parquet file with the columns ``accession`` and ``report``,
    and it may have ``split``. ``COLUMNS`` lists other names that are allowed. A study's films are
    its instances of modality CR and DX; each record's ``image_path`` is that of one of them, below
    the archive's address (:func:`mrrag.data.dicomweb.instance_path`).

    Of patient and study only pseudonyms are kept. A skipped row is named by its place in the table.

    Parameters
    ----------
    progress
        Called with (done, total) rows as they are looked up.

    Raises
    ------
    CorpusError
        If the table cannot be read, or no film of it is in the archive.
    ArchiveError
        If the archive does not answer as it should.
    """
    path = Path(reports)
    if path.suffix not in TABLES or not path.is_file():
        raise CorpusError(
            f"{path} is no table of reports. Give a file that ends with {', '.join(TABLES)}, with "
            "the columns accession and report."
        )
    found = Collector[Record]()
    rows: list[tuple[str, dict[str, str]]] = []
    for where, row in table_rows(path, COLUMNS, ("accession", "report"), found.skip):
        row["report"] = "\n".join(t for line in row["report"].splitlines() if (t := one_line(line)))
        faults = {
            "no accession number": not row["accession"],
            "accession number given before": found.repeats(row["accession"]),
            "no report": not row["report"],
        }
        if not found.rejects(where, faults):
            rows.append((where, row))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            looked_up = pool.map(partial(_records, archive), [row for _, row in block])
            for done, ((where, _), records) in enumerate(
                zip(block, looked_up, strict=True), start + 1
            ):
                if isinstance(records, str):
                    found.skip(records, where)
                else:
                    found.accepted.extend(records)
                progress(done, len(rows))
    return corpus_of(found, path)


def _records(archive: Archive, row: dict[str, str]) -> Sequence[Record] | str:
    """Return a record of each film of a row's study, frontal ones first, or why there is none."""
    try:
        studies, _ = find_studies(archive, Criteria(accession=row["accession"]))
    except SettingsError:
        return REFUSED
    # * and ? stand for any sign in a search (PS3.4 C.2.2.2.4).
    studies = [study for study in studies if study.accession == row["accession"]]
    if len(studies) != 1:
        return "more than one study of this accession number" if studies else "not in the archive"
    (study,) = studies
    films = [
        (Path(instance_path(series, instance)), view)
        for series in find_series(archive, study.uid, modalities=FILMS)
        for instance, view in zip(series.instances, series.views, strict=True)
    ]
    if not films:
        return f"no film ({' or '.join(FILMS)}) in the archive"
    uid = pseudonym(study.uid)
    document = Document(
        id=uid,
        report=row["report"],
        patient=pseudonym(study.patient) or uid,
        study=uid,
        split=split_name(row["split"]),
    )
    pictures = [(path, view_of(view)) for path, view in films]
    pictures.sort(key=lambda picture: picture[1] != "frontal")
    return pictures_of(Record(document, pictures[0][0]), pictures)
