"""Shared by tests of the archive: a real Orthanc on loopback, with phantom films of two patients.

Orthanc and its DICOMweb plugin are Debian's ``orthanc`` and ``orthanc-dicomweb``. Tests are
skipped without them, and fail instead where MRRAG_REQUIRE_ORTHANC is 1.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client import DICOMwebClient
from pydicom.uid import ExplicitVRLittleEndian
from tiny_dicom import make_dicom

from app.bench.server import free_port
from mrrag.data.dicomweb_request import Archive

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "reader", "open-sesame"
SECONDS = 60
FILM = "1.2.840.10008.5.1.4.1.1.1.1"
PATIENT, NAME = "MRN-70415533", "Zyxwvut^Quirin"
OTHER_PATIENT = "MRN-80000001"


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc; ``archive`` is how to ask it."""

    archive: Archive
    process: subprocess.Popen[bytes]
    files: list[bytes]


def film(number: int, **attributes: object) -> bytes:
    """Return a film with its own pixels; UIDs are 2.25.<study>.<series>.<instance>."""
    pixels = np.random.default_rng(number).integers(0, 4096, (64, 48)).astype(np.uint16)
    study = attributes.pop("study", number)
    given = {
        "SOPClassUID": FILM,
        "SOPInstanceUID": f"2.25.{study}.1.{number}",
        "SeriesInstanceUID": f"2.25.{study}.1",
        "StudyInstanceUID": f"2.25.{study}",
        "PatientID": PATIENT,
        "PatientName": NAME,
        "PatientBirthDate": "19510203",
        "StudyDate": "20240131",
        "StudyTime": "120000",
        "AccessionNumber": f"ACC-{study}",
        "StudyDescription": "Chest",
        "SeriesDescription": "PA and lateral",
        "Modality": "DX",
        "SeriesNumber": 1,
        "InstanceNumber": number,
        "ViewPosition": "PA",
        "BitsStored": 12,
        "HighBit": 11,
        "BurnedInAnnotation": "NO",
    }
    return whole(make_dicom(pixels, ExplicitVRLittleEndian, **(given | attributes)))


def whole(data: bytes) -> bytes:
    """Return the file with the meta information that an archive asks for (PS3.10 7.1)."""
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def films() -> list[bytes]:
    """Return two studies of a patient (the first of two films) and one of another."""
    return [
        film(11, study=1),
        film(12, study=1, ViewPosition="LL"),
        film(21, study=2, StudyDate="20200517", SeriesDescription="Bedside", ViewPosition="AP"),
        film(31, study=3, PatientID=OTHER_PATIENT, PatientName="Other^Person"),
    ]


@contextlib.contextmanager
def orthanc(folder: Path, files: Sequence[bytes] | None = None) -> Iterator[Orthanc]:
    """Run Orthanc with these files; skip the test where it is not installed."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None or not PLUGIN.is_file():
        if os.environ.get("MRRAG_REQUIRE_ORTHANC") == "1":
            pytest.fail("MRRAG_REQUIRE_ORTHANC is 1 and Orthanc or its plugin was not found.")
        pytest.skip("Orthanc was not found (Debian: orthanc, orthanc-dicomweb).")
    port = free_port()
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "Plugins": [str(PLUGIN)],
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen(
            [program, str(folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        given = films() if files is None else list(files)
        archive = Archive(f"http://127.0.0.1:{port}/dicom-web", USER, PASSWORD)
        running = Orthanc(archive, process, given)
        store(running, given)
        yield running
    finally:
        process.kill()
        process.wait(SECONDS)


def store_over_dicomweb(running: Orthanc, files: Sequence[bytes]) -> None:
    """Give Orthanc the files as DICOMweb does (STOW-RS)."""
    archive = running.archive
    with requests.Session() as session:
        session.auth = (archive.user, archive.password)
        client = DICOMwebClient(archive.url, session)
        client.store_instances([pydicom.dcmread(io.BytesIO(data)) for data in files])


def store(running: Orthanc, files: Sequence[bytes]) -> None:
    """Wait until Orthanc answers, and give it the files."""
    until = time.monotonic() + SECONDS
    root = running.archive.url.removesuffix("/dicom-web")
    with httpx.Client(base_url=root, auth=(USER, PASSWORD), trust_env=False) as client:
        while True:
            try:
                client.get("/system").raise_for_status()
                break
            except httpx.HTTPError:
                assert running.process.poll() is None, "Orthanc did not start."
                assert time.monotonic() < until, "Orthanc did not answer."
                time.sleep(0.05)
        for data in files:
            client.post("/instances", content=data).raise_for_status()
