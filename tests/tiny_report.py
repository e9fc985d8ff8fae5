"""Structured Reports for tests, made item by item."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian

# Concept names: code, scheme and meaning.
Name = tuple[str, str, str]
TITLE = ("18748-4", "LN", "Diagnostic Imaging Report")
FINDINGS, FINDING = ("121070", "DCM", "Findings"), ("121071", "DCM", "Finding")
IMPRESSIONS, IMPRESSION = ("121072", "DCM", "Impressions"), ("121073", "DCM", "Impression")
AUTHOR, READER = "Author^Ann", "Reader^Rita"


def code(name: Name) -> Dataset:
    """Return a code sequence's item (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = name
    return item


def item(
    kind: str,
    name: Name | None = None,
    children: Sequence[Dataset] = (),
    relationship: str = "CONTAINS",
    **attributes: Any,
) -> Dataset:
    """Return a content item (PS3.3 C.17.3)."""
    made = Dataset()
    made.RelationshipType, made.ValueType = relationship, kind
    if name:
        made.ConceptNameCodeSequence = [code(name)]
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    if children:
        made.ContentSequence = list(children)
    return made


def section(name: Name, *texts: str) -> Dataset:
    """Return a container of texts."""
    return item("CONTAINER", name, [item("TEXT", FINDING, TextValue=text) for text in texts])


def coded(name: Name, value: Name, *children: Dataset, relationship: str = "CONTAINS") -> Dataset:
    """Return a coded item."""
    return item("CODE", name, children, relationship, ConceptCodeSequence=[code(value)])


def structured_report(
    children: Sequence[Dataset],
    syntax: str = ExplicitVRLittleEndian,
    /,
    *,
    undefined: bool = False,
    **attributes: Any,
) -> bytes:
    """Return a Basic Text SR with patient, author and verifying observer as a DICOM file.

    Attributes are set, or removed if None. Lengths of sequences and their items are stated, or
    ``undefined``.
    """
    dataset = item("CONTAINER", TITLE, children)
    del dataset.RelationshipType
    author = Dataset()
    author.ValueType, author.PersonName = "PNAME", AUTHOR
    observer = Dataset()
    observer.VerifyingObserverName, observer.VerificationDateTime = READER, "20240131130000"
    observer.VerifyingOrganization = "Hospital of Names"
    given: dict[str, Any] = {
        "SOPClassUID": BasicTextSRStorage,
        "SOPInstanceUID": "2.25.9.9.9",
        "Modality": "SR",
        "PatientName": "Zyxwvut^Quirin",
        "PatientID": "MRN-70415533",
        "ContentDate": "20240131",
        "ContentTime": "120000",
        "CompletionFlag": "COMPLETE",
        "VerificationFlag": "VERIFIED",
        "AuthorObserverSequence": [author],
        "VerifyingObserverSequence": [observer],
    }
    for keyword, value in (given | attributes).items():
        if value is not None:
            setattr(dataset, keyword, value)
    if undefined:
        for inner in dataset.iterall():
            if inner.VR == "SQ":
                inner.is_undefined_length = True
                for one in inner.value:
                    one.is_undefined_length_sequence_item = True
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()
