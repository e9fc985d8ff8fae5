"""``index --data dicomweb:URL``: built from a real archive, resumed, and brought up to date."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from orthanc import PASSWORD, PATIENT, USER, Orthanc, film, orthanc, store, store_over_dicomweb
from tiny_report import FINDINGS, section, structured_report

import mrrag.data.dicomweb as dicomweb
from mrrag.cli.main import parser
from mrrag.data.pseudonyms import pseudonym
from mrrag.errors import ArchiveError, SettingsError
from mrrag.files import ASSETS
from mrrag.retrieval.encoders import load_encoder
from mrrag.retrieval.knowledge_base import KnowledgeBase

IDENTITY = ("MRN-7", "Zyxwvut", "2.25.", "ACC-")
REPORTS = [f"ACC-{n},Report {n}: no effusion." for n in range(1, 7)]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    given = [film(10 * n, study=n, PatientID=f"{PATIENT}-{n % 3}") for n in range(1, 6)]
    with orthanc(tmp_path_factory.mktemp("orthanc"), given) as running:
        yield running


@pytest.fixture
def index(hospital: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command on some of the reports, or on structured ones; return the films fetched."""
    monkeypatch.setenv("MRRAG_DICOMWEB_USER", USER)
    monkeypatch.setenv("MRRAG_DICOMWEB_PASSWORD", PASSWORD)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setattr(dicomweb, "PAUSES_S", ())
    fetched: list[object] = []
    fetch = dicomweb.fetch_instance

    def counted(archive: Any, path: Any, **options: Any) -> bytes:
        fetched.append(path)
        return fetch(archive, path, **options)

    monkeypatch.setattr(dicomweb, "fetch_instance", counted)

    def run(kb: str, reports: int | None, *options: str) -> int:
        fetched.clear()
        table = tmp_path / "reports.csv"
        table.write_text("\n".join(["accession,report", *REPORTS[:reports]]))
        source = "sr" if reports is None else str(table)
        words = ["index", "--data", f"dicomweb:{hospital.archive.url}", "--reports", source]
        words += ["--kb", str(tmp_path / kb), "--batch", "2", "--workers", "1"]
        args = parser().parse_args([*words, *options])
        args.run(args)
        return len(fetched)

    return run


def base(folder: Path) -> KnowledgeBase:
    return KnowledgeBase.load(folder, load_encoder(ASSETS / "encoder"))


def test_a_base_is_built_and_then_only_what_is_new_is_fetched(
    index: Any,
    hospital: Orthanc,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    assert index("kb", 3) == 3
    assert "3 documents of 3 patients" in capsys.readouterr().out
    store(hospital, [film(60, study=6, PatientID=f"{PATIENT}-0")])
    assert index("kb", 6, "--update") == 3
    assert index("kb", 5, "--update") == 0
    built = base(tmp_path / "kb")
    assert [d.report for d in built.documents] == [row.partition(",")[2] for row in REPORTS[:5]]
    assert {d.patient for d in built.documents} == {pseudonym(f"{PATIENT}-{n}") for n in range(3)}
    for file in (f for f in tmp_path.rglob("*") if f.is_file() and f.name != "reports.csv"):
        held = file.read_bytes()
        assert not any(word.encode() in held for word in IDENTITY)
    said = capsys.readouterr()
    assert not any(word in said.out + said.err + caplog.text for word in IDENTITY)


def test_a_build_that_the_archive_broke_off_is_resumed_to_the_same(
    index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, count = dicomweb.fetch_instance, 0

    def breaks(archive: Any, path: Any, **options: Any) -> bytes:
        nonlocal count
        count += 1
        if count == 4:
            archive = dicomweb.Archive("http://127.0.0.1:9/dicom-web")
        return bytes(counted(archive, path, **options))

    monkeypatch.setattr(dicomweb, "fetch_instance", breaks)
    with pytest.raises(ArchiveError, match="cannot be reached"):
        index("kb", 5)
    assert not (tmp_path / "kb").exists()
    assert index("kb", 5) == 3  # the last batch that was whole is kept
    assert index("whole", 5) == 5
    assert base(tmp_path / "kb").fingerprint == base(tmp_path / "whole").fingerprint


def test_a_base_of_structured_reports_follows_their_changes(
    index: Any, hospital: Orthanc, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stored(study: int, number: int, text: str, **attributes: Any) -> None:
        uids = {
            "PatientID": f"{PATIENT}-{study % 3}",
            "StudyInstanceUID": f"2.25.{study}",
            "SeriesInstanceUID": f"2.25.{study}.8",
            "SOPInstanceUID": f"2.25.{study}.8.{number}",
            "ContentTime": f"12{number:02}00",
        }
        given = structured_report([section(FINDINGS, text)], **(uids | attributes))
        store_over_dicomweb(hospital, [given])

    def texts() -> list[str]:
        return sorted(d.report for d in base(tmp_path / "kb").documents)

    stored(1, 1, "No effusion.")
    stored(2, 1, "Cardiomegaly.")
    stored(3, 1, "Not yet read.", VerificationFlag="UNVERIFIED")
    index("kb", None)
    said = capsys.readouterr().out
    assert re.search(r"skipped row +1  report that is not verified", said)
    assert re.search(r"skipped row +\d  no structured report", said)
    assert texts() == ["Cardiomegaly.", "No effusion."]
    stored(1, 2, "A small effusion.")
    index("kb", None, "--update")
    assert texts() == ["A small effusion.", "Cardiomegaly."]
    index("kb", None, "--update", "--unverified")
    assert texts() == ["A small effusion.", "Cardiomegaly.", "Not yet read."]
    for file in (f for f in (tmp_path / "kb").rglob("*") if f.is_file()):
        held = file.read_bytes()
        assert not any(word.encode() in held for word in (*IDENTITY, "Reader^", "Author^"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data", "dicomweb:http://pacs/x", "--kb", "kb"], "--reports"),
        (["--data", "dicomweb:http://pacs/x", "--reports", "r.csv"], "--kb"),
        (["--data", "dicomweb:http://a/x", "--kb", "k", "--reports", "r.csv", "--vqa"], "--vqa"),
        (["--data", "dicomweb:pacs", "--kb", "k", "--reports", "r.csv"], "'pacs' cannot be used"),
        (["--data", "folder", "--kb", "k", "--reports", "r.csv"], "--reports goes with"),
        (["--data", "folder", "--kb", "k", "--unverified"], "--unverified goes with"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str], sentence: str) -> None:
    args = parser().parse_args(["index", *options])
    with pytest.raises(SettingsError, match=sentence):
        args.run(args)
