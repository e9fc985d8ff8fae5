"""An archive with a table of reports: which films are found, and what is skipped and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from orthanc import (
    OTHER_PATIENT,
    PATIENT,
    Orthanc,
    film,
    films,
    orthanc,
    store,
    store_over_dicomweb,
)
from pydicom.uid import EncapsulatedPDFStorage, XRayRadiationDoseSRStorage
from tiny_report import FINDINGS, IMPRESSIONS, item, section, structured_report

import mrrag.data.dicomweb as dicomweb
from mrrag.data.dicomweb import instance_stamp, load_instance
from mrrag.data.images import read_image
from mrrag.data.pseudonyms import pseudonym
from mrrag.data.readers.dicomweb import read_archive, read_archive_reports
from mrrag.data.views import choose_views
from mrrag.errors import ArchiveError, CorpusError, ImageError


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    others = [
        film(41, study=4, Modality="CT", AccessionNumber="ACC-4"),
        film(51, study=5, AccessionNumber="TWICE"),
        film(61, study=6, AccessionNumber="TWICE"),
    ]
    with orthanc(tmp_path_factory.mktemp("orthanc"), [*films(), *others]) as running:
        yield running


def report(study: int, number: int, *children: Any, **attributes: Any) -> bytes:
    """Return a structured report of a study; by default its text is its number."""
    given = {
        "SOPInstanceUID": f"2.25.{study}.8.{number}",
        "SeriesInstanceUID": f"2.25.{study}.8",
        "StudyInstanceUID": f"2.25.{study}",
        "AccessionNumber": f"ACC-{study}",
        "ContentTime": f"12{number:02}00",
    }
    said = children or [section(FINDINGS, f"Report {number}."), section(IMPRESSIONS, "No change.")]
    return structured_report(said, **(given | attributes))


def table(folder: Path, *rows: str, header: str = "accession,report") -> Path:
    path = folder / "reports.csv"
    path.write_text("\n".join([header, *rows]))
    return path


def test_each_report_gets_its_studys_films(hospital: Orthanc, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    read = read_archive(
        hospital.archive,
        table(
            tmp_path,
            "ACC-1,No effusion.,train",
            "ACC-3,Cardiomegaly.,val",
            header="Accession_Number,Report,split",
        ),
        progress=lambda done, total: seen.append((done, total)),
    )
    documents = [record.document for record in read.records]
    assert [d.report for d in documents] == ["No effusion."] * 2 + ["Cardiomegaly."]
    assert [d.patient for d in documents] == [
        *[pseudonym(PATIENT)] * 2,
        pseudonym(OTHER_PATIENT),
    ]
    assert [d.view for d in documents] == ["frontal", "lateral", "frontal"]
    assert [d.split for d in documents] == ["train", "train", "validation"]
    assert len({d.study for d in documents}) == 2
    frontal = choose_views(read, "frontal").records
    assert [record.document.report for record in frontal] == ["No effusion.", "Cardiomegaly."]
    image = load_instance(hospital.archive, frontal[0].image_path)
    assert image.sha256 == read_image(hospital.files[0]).sha256
    assert seen == [(1, 2), (2, 2)]
    identity = (PATIENT, OTHER_PATIENT, "ACC-", "2.25.", "Zyxwvut")
    assert not any(word in str(d) for d in documents for word in identity)


def test_what_has_no_film_is_skipped_by_its_row_and_never_named(
    hospital: Orthanc, tmp_path: Path
) -> None:
    rows = ("ACC-1,Clear.", "ACC-9,Clear.", "ACC-4,Clear.", "TWICE,Clear.", "ACC-*,Clear.",
            "ACC-2,", ",Clear.", "ACC-1,Again.", f"{'1' * 17},Clear.")  # fmt: skip
    read = read_archive(hospital.archive, table(tmp_path, *rows))
    assert len(read.records) == 2
    assert dict(read.skipped) == {
        "no report": ("row 6",),
        "no accession number": ("row 7",),
        "accession number given before": ("row 8",),
        "not in the archive": ("row 2", "row 5"),
        "no film (CR or DX) in the archive": ("row 3",),
        "more than one study of this accession number": ("row 4",),
        "accession number that the archive cannot search by": ("row 9",),
    }


def test_a_studys_report_is_its_newest_that_is_complete_and_verified(
    hospital: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicomweb, "PAGE", 3)
    nested = section(FINDINGS, "Deep.")
    for _ in range(40):
        nested = item("CONTAINER", FINDINGS, [nested])
    store(hospital, [film(10 * n, study=n) for n in range(70, 78)])
    store_over_dicomweb(
        hospital,
        [
            *[report(1, 2), report(1, 1), report(1, 3, VerificationFlag="UNVERIFIED")],
            report(2, 4, VerificationFlag="UNVERIFIED"),
            report(3, 5, CompletionFlag="PARTIAL", PatientID=OTHER_PATIENT),
            report(70, 1, SOPClassUID=EncapsulatedPDFStorage, Modality="DOC"),
            *[report(71, 6), report(71, 7, nested)],
            report(72, 8, item("TEXT", ("1", "99TEST", "Other"), TextValue="Nothing.")),
            report(73, 9, section(IMPRESSIONS, "Größer."), SpecificCharacterSet="ISO_IR 100"),
            report(74, 1, section(FINDINGS, "a" * 2**20)),
            report(75, 1, SOPClassUID=XRayRadiationDoseSRStorage),
            report(77, 1, PatientID=OTHER_PATIENT),
        ],
    )
    read = read_archive_reports(hospital.archive)
    texts = ["Report 2.\nNo change."] * 2 + ["Größer."]
    assert sorted(r.document.report for r in read.records) == sorted(texts)
    assert [r.view for r in read.records if not r.impression_only] == ["frontal", "lateral"]
    names = {n: pseudonym(f"2.25.{n}") for n in range(80)}
    skipped = {reason: set(rows) for reason, rows in read.skipped.items()}
    assert skipped == {
        "report that is not verified": {names[2]},
        "report that is not complete": {names[3]},
        "report as encapsulated PDF, which is not read; export it to a table": {names[70]},
        "structured report that cannot be read": {names[71], names[74]},
        "structured report with neither findings nor impression": {names[72]},
        "no structured report": {names[n] for n in (5, 6, 75, 76)},
        "study of more than one patient id": {names[77]},
    }
    (example,) = read.examples.values()
    assert "32 deep" in example or "1,0" in example
    identity = (PATIENT, OTHER_PATIENT, "ACC-", "2.25.", "Zyxwvut", "Reader", "Author")
    assert not any(word in f"{r.document} {example}" for r in read.records for word in identity)
    read = read_archive_reports(hospital.archive, unverified=True)
    first = {r.document.study: r.document.report.split("\n")[0] for r in read.records}
    assert first == {
        names[1]: "Report 3.",
        names[2]: "Report 4.",
        names[3]: "Report 5.",
        names[73]: "Größer.",
    }


def test_an_archive_that_repeats_its_first_studies_is_told_and_ends(
    hospital: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = dicomweb._page
    monkeypatch.setattr(dicomweb, "_page", lambda archive, _: page(archive, 0))
    with pytest.raises(ArchiveError, match="the same studies again"):
        read_archive_reports(hospital.archive)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("reports.txt", "accession,report", "no table of reports"),
        ("reports.csv", "image,report\n1,Clear.", "one for the accession"),
        ("reports.csv", "accession,report\nACC-9,Clear.", "1 with not in the archive"),
        ("reports.csv", "accession,report\n", "No case could be read"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(
    hospital: Orthanc, tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CorpusError, match=sentence):
        read_archive(hospital.archive, tmp_path / name)
    with pytest.raises(CorpusError, match="no table"):
        read_archive(hospital.archive, tmp_path / "absent.csv")


def test_an_archive_that_lets_nobody_in_ends_the_reading(hospital: Orthanc, tmp_path: Path) -> None:
    wrong = replace(hospital.archive, password="no")
    with pytest.raises(ArchiveError, match="does not let"):
        read_archive(wrong, table(tmp_path, "ACC-1,Clear."))


def test_an_instance_that_is_gone_is_no_picture_and_one_of_an_archive_away_no_answer(
    hospital: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Path("studies/2.25.1/series/2.25.1.1/instances/2.25.999")
    with pytest.raises(ImageError, match="refused"):
        load_instance(hospital.archive, gone)
    monkeypatch.setattr("mrrag.data.dicomweb.PAUSES_S", (0.0, 0.0))
    with pytest.raises(ArchiveError, match="cannot be reached"):
        load_instance(replace(hospital.archive, url="http://127.0.0.1:9/dicom-web"), gone)


def test_a_stamp_is_of_one_instance_and_fits_the_file_of_stamps() -> None:
    stamps = [instance_stamp(Path(f"studies/1/series/2/instances/{n}")) for n in range(50)]
    assert len(set(stamps)) == 50
    assert all(0 <= number < 2**63 for stamp in stamps for number in stamp)
    assert stamps[3] == instance_stamp(Path("studies/1/series/2/instances/3"))
