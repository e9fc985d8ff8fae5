"""A picture archive, and its reports: a table by accession number, or its structured reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from mrrag.data.dicomweb import (
    Criteria,
    FoundSeries,
    fetch_instance,
    find_series,
    find_studies,
    instance_path,
    patiently,
    patients_of_studies,
)
from mrrag.data.dicomweb_request import Archive, RefusedError
from mrrag.data.pseudonyms import pseudonym
from mrrag.data.readers.collector import Collector, corpus_of, pictures_of
from mrrag.data.readers.rows import join_sections, one_line, split_name, table_rows
from mrrag.data.records import Corpus, Record
from mrrag.data.structured_report import (
    MAX_REPORT_BYTES,
    PDF,
    REPORTS,
    StructuredReport,
    read_structured_report,
)
from mrrag.data.views import view_of
from mrrag.errors import CorpusError, SettingsError
from mrrag.types import Document

__all__ = ["FILMS", "read_archive", "read_archive_reports"]

COLUMNS = {
    "accession": ("accession", "accession_number", "accessionnumber"),
    "report": ("report", "text", "findings", "report_text"),
    "split": ("split", "use", "subset"),
}
TABLES = (".csv", ".jsonl", ".parquet")
FILMS = ("CR", "DX")  # the modalities of projection radiographs (PS3.3 C.7.3.1.1.1)
DOCUMENTS = ("SR", "DOC", "OT")  # those of structured reports and encapsulated documents
MAX_REPORTS = 50  # structured reports of a study
AT_ONCE = 8  # studies that are looked up at the same time
BLOCK = 1000  # rows that wait for that
REFUSED = "accession number that the archive cannot search by"
NO_FILM = f"no film ({' or '.join(FILMS)}) in the archive"
UNREADABLE = "structured report that cannot be read"
IN_PDF = "report as encapsulated PDF, which is not read; export it to a table"

Row = TypeVar("Row")


class Left(NamedTuple):
    """Why a row is left out, and in words what is wrong with it, if there is more to say."""

    reason: str
    explained: str = ""


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
    _look_up(found, rows, partial(_records, archive), progress)
    return corpus_of(found, path)


def read_archive_reports(
    archive: Archive,
    *,
    unverified: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Corpus:
    """Find every study with films in the archive, and read its report from its structured ones.

    Of several reports the newest counts that is complete and verified and has findings or an
    impression (:func:`mrrag.data.structured_report.read_structured_report`). A study is left out
    if one of its structured reports cannot be read, since that may be the newest. Otherwise as
    :func:`read_archive`; a skipped study is named by its pseudonym.

    Parameters
    ----------
    unverified
        Whether the newest counts even if it is not complete or not verified.

    Raises
    ------
    CorpusError
        If no study has films and a report.
    ArchiveError
        If the archive does not answer as it should.
    """
    found = Collector[Record]()
    studies = patients_of_studies(archive, FILMS)
    rows = [(pseudonym(uid), (uid, patients)) for uid, patients in studies.items()]
    _look_up(found, rows, partial(_reported, archive, unverified), progress)
    return corpus_of(found, "the archive's studies with films")


def _look_up(
    found: Collector[Record],
    rows: Sequence[tuple[str, Row]],
    records_of: Callable[[Row], Sequence[Record] | Left],
    progress: Callable[[int, int], None],
) -> None:
    """Collect the records of each row, given as (name, row); several are looked up at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            looked_up = pool.map(records_of, [row for _, row in block])
            for done, ((name, _), records) in enumerate(
                zip(block, looked_up, strict=True), start + 1
            ):
                if isinstance(records, Left):
                    found.skip(records.reason, name, records.explained)
                else:
                    found.accepted.extend(records)
                progress(done, len(rows))


def _records(archive: Archive, row: dict[str, str]) -> Sequence[Record] | Left:
    """Return a record of each film of a row's study, frontal ones first, or why there is none."""
    try:
        studies, _ = find_studies(archive, Criteria(accession=row["accession"]))
    except SettingsError:
        return Left(REFUSED)
    # * and ? stand for any sign in a search (PS3.4 C.2.2.2.4).
    studies = [study for study in studies if study.accession == row["accession"]]
    if len(studies) != 1:
        many = "more than one study of this accession number"
        return Left(many if studies else "not in the archive")
    (study,) = studies
    series = find_series(archive, study.uid, modalities=FILMS)
    return _films(series, study.uid, study.patient, row["report"], split=split_name(row["split"]))


def _reported(
    archive: Archive, unverified: bool, study: tuple[str, set[str]]
) -> Sequence[Record] | Left:
    """Return a record of each film of a study (UID and patient ids), or why there is none."""
    uid, patients = study
    if len(patients) > 1:  # the report may be another patient's than the film
        return Left("study of more than one patient id")
    (patient,) = patients
    series = patiently(partial(find_series, archive, uid, modalities=(*FILMS, *DOCUMENTS)))
    films = [one for one in series if one.modality in FILMS]
    report = _newest(archive, series, unverified) if films else Left(NO_FILM)
    if isinstance(report, Left):
        return report
    text = join_sections(report.findings, report.impression)
    return _films(films, uid, patient, text, impression_only=not report.findings)


def _newest(
    archive: Archive, series: Sequence[FoundSeries], unverified: bool
) -> StructuredReport | Left:
    """Return the newest report of a study, or why there is none."""
    instances = [
        (kind, instance_path(one, instance))
        for one in series
        for instance, kind in zip(one.instances, one.classes, strict=True)
    ]
    paths = [path for kind, path in instances if kind in REPORTS]
    if not paths:
        return Left(IN_PDF if PDF in {kind for kind, _ in instances} else "no structured report")
    if len(paths) > MAX_REPORTS:
        return Left(f"more than {MAX_REPORTS} structured reports in a study")
    reports = []
    for path in paths:
        fetch = partial(fetch_instance, archive, path, most=MAX_REPORT_BYTES)
        try:
            reports.append(read_structured_report(patiently(fetch)))
        except (CorpusError, RefusedError) as error:
            return Left(UNREADABLE, str(error))
    # Of equal age the last one counts.
    reports = sorted((r for r in reports if r.findings or r.impression), key=lambda r: r.written)
    if not reports:
        return Left("structured report with neither findings nor impression")
    counting = [r for r in reports if unverified or (r.complete and r.verified)]
    if not counting:
        done = reports[-1].complete
        return Left(f"report that is not {'verified' if done else 'complete'}")
    return counting[-1]


def _films(
    series: Sequence[FoundSeries],
    study: str,
    patient: str,
    report: str,
    *,
    split: str = "",
    impression_only: bool = False,
) -> Sequence[Record] | Left:
    """Return a record of each film of a study, frontal ones first, or that there is none."""
    pictures = [
        (Path(instance_path(one, instance)), view_of(view))
        for one in series
        for instance, view in zip(one.instances, one.views, strict=True)
    ]
    if not pictures:
        return Left(NO_FILM)
    pictures.sort(key=lambda picture: picture[1] != "frontal")
    uid = pseudonym(study)
    document = Document(
        id=uid, report=report, patient=pseudonym(patient) or uid, study=uid, split=split
    )
    record = Record(document, pictures[0][0], impression_only=impression_only)
    return pictures_of(record, pictures)
