"""Structured reports: what of them becomes text, what never does, and what is refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from pydicom.uid import (
    ComprehensiveSRStorage,
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    EnhancedSRStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    XRayRadiationDoseSRStorage,
)
from tiny_dicom import RAMP, make_dicom
from tiny_report import (
    AUTHOR,
    FINDING,
    FINDINGS,
    IMPRESSION,
    IMPRESSIONS,
    READER,
    coded,
    item,
    section,
    structured_report,
)

from mrrag.data.structured_report import StructuredReport, read_structured_report
from mrrag.errors import CorpusError

DEFLATED = DeflatedExplicitVRLittleEndian
SHORT = [section(FINDINGS, "The heart is enlarged.", "No effusion"), section(IMPRESSIONS, "Big.")]
SEQUENCE = b"\x40\x00\x30\xa7SQ\0\0"  # Content Sequence, explicit VR
ITEM = b"\xfe\xff\x00\xe0"
OPEN = b"\xff\xff\xff\xff"
ONE = ("1", "99TEST", "Lungs")


def read(*children: Any, **attributes: Any) -> StructuredReport:
    return read_structured_report(structured_report(children, **attributes))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DEFLATED])
def test_sections_are_read_in_the_trees_order_in_every_syntax(syntax: str) -> None:
    report = read_structured_report(structured_report(SHORT, syntax))
    assert report == StructuredReport(
        "The heart is enlarged. No effusion.", "Big.", True, True, "20240131120000"
    )


@pytest.mark.parametrize("kind", [EnhancedSRStorage, ComprehensiveSRStorage])
def test_enhanced_and_comprehensive_reports_are_read(kind: str) -> None:
    assert read(*SHORT, SOPClassUID=kind).impression == "Big."


@pytest.mark.parametrize(
    ("name", "field"),
    [
        (("59776-5", "LN", "Befund"), "findings"),
        (("19005-8", "LN", "Beurteilung"), "impression"),
        (("121076", "DCM", "Schluss"), "impression"),
        (("55107-7", "LN", "Addendum"), "impression"),
        (("F", "99TEST", " FINDINGS: "), "findings"),
        (("C", "99TEST", "Conclusion"), "impression"),
        (("121060", "DCM", "Findings"), None),  # History: the code counts
        (("121068", "DCM", "Previous Findings"), None),
        (("R", "99TEST", "Recommendation"), None),
        (("X", "99TEST", "Other"), None),
    ],
)
def test_a_section_is_known_by_code_and_else_by_meaning(name: Any, field: str | None) -> None:
    text = item("TEXT", ("N", "99TEST", "Lungs"), TextValue="Clear.")
    for report in (read(item("CONTAINER", name, [text])), read(item("TEXT", name, TextValue="A."))):
        assert [f for f in ("findings", "impression") if getattr(report, f)] == [field] * bool(
            field
        )


def test_names_within_a_section_stand_before_their_text() -> None:
    lungs = item("CONTAINER", ONE, [item("TEXT", FINDING, TextValue=t) for t in ("Clear", "Wide")])
    pleura = item("TEXT", ("2", "99TEST", "Pleura"), TextValue="no\r\n effusion")
    history = section(("121060", "DCM", "History"), "Fell from a ladder.")
    before = item("TEXT", ("121069", "DCM", "Previous Finding"), TextValue="Effusion.")
    report = read(item("CONTAINER", FINDINGS, [lungs, pleura, history, before]))
    assert report.findings == "Lungs: Clear. Wide. Pleura: no effusion."


def test_a_container_counts_before_an_items_own_name() -> None:
    texts = [item("TEXT", name, TextValue="Normal.") for name in (FINDING, IMPRESSION)]
    prior = item("CONTAINER", ("121066", "DCM", "Prior"), [*texts, section(FINDINGS, "Effusion.")])
    report = read(prior, item("CONTAINER", ONE, texts), item("CONTAINER", IMPRESSIONS, texts))
    assert report.findings == "Normal."
    assert report.impression == "Normal. Normal. Normal."


def test_codes_and_numbers_are_plain_words_with_what_modifies_them() -> None:
    present = ("3", "99TEST", "Presence")
    absent = coded(present, ("4", "99TEST", "Absent"), relationship="HAS PROPERTIES")
    finding = coded(FINDING, ("36118008", "SCT", "Pneumothorax"), absent)
    measured = {"NumericValue": "0.55", "MeasurementUnitsCodeSequence": []}
    sized = {"NumericValue": "3.5"}
    report = read(
        item(
            "CONTAINER",
            FINDINGS,
            [
                finding,
                number("Cardiothoracic ratio", measured, ("{ratio}", "UCUM", "ratio")),
                number("Diameter", sized, ("cm", "UCUM", "centimeter")),
                item("NUM", ONE, MeasuredValueSequence=[]),
            ],
        )
    )
    assert report.findings == (
        "Pneumothorax (Presence: Absent). Cardiothoracic ratio: 0.55. Diameter: 3.5 cm."
    )


def number(name: str, value: dict[str, Any], unit: tuple[str, str, str]) -> Any:
    measured = item("NUM", unit)
    measured.MeasurementUnitsCodeSequence = measured.ConceptNameCodeSequence
    measured.NumericValue = value["NumericValue"]
    for keyword in ("ConceptNameCodeSequence", "RelationshipType", "ValueType"):
        delattr(measured, keyword)
    return item("NUM", ("5", "99TEST", name), MeasuredValueSequence=[measured])


def test_no_name_of_a_person_and_no_context_becomes_text() -> None:
    names = [
        item("PNAME", FINDING, PersonName="Zyxwvut^Quirin"),
        item("TEXT", FINDING, relationship="HAS OBS CONTEXT", TextValue="Subject ID MRN-7"),
        item("TEXT", FINDING, relationship="INFERRED FROM", TextValue="Asked by Reader^Rita"),
        item("UIDREF", FINDING, UID="2.25.77"),
        item("DATE", FINDING, Date="19510203"),
    ]
    report = read(*names, item("CONTAINER", FINDINGS, [*names, *SHORT[0].ContentSequence]))
    assert report.findings == "The heart is enlarged. No effusion."
    held = repr(report)
    assert not any(w in held for w in ("Zyx", "MRN-", AUTHOR, READER, "2.25", "1951", "Hospital"))


@pytest.mark.parametrize(
    ("attributes", "complete", "verified", "written"),
    [
        ({"CompletionFlag": "PARTIAL"}, False, True, "20240131120000"),
        ({"PreliminaryFlag": "PRELIMINARY"}, False, True, "20240131120000"),
        ({"VerificationFlag": "UNVERIFIED"}, True, False, "20240131120000"),
        ({"VerificationFlag": None, "CompletionFlag": None}, False, False, "20240131120000"),
        ({"ContentTime": "07"}, True, True, "20240131070000"),
        ({"ContentTime": "070809.123"}, True, True, "20240131070809.123"),
        ({"ContentTime": None}, True, True, "20240131000000"),
        ({"ContentDate": None}, True, True, ""),
    ],
)
def test_flags_and_age_are_what_the_report_states(
    attributes: dict[str, Any], complete: bool, verified: bool, written: str
) -> None:
    report = read(*SHORT, **attributes)
    assert (report.complete, report.verified, report.written) == (complete, verified, written)


@pytest.mark.parametrize(
    ("sets", "text"),
    [
        ("ISO_IR 100", "Herzgröße normal."),
        ("ISO_IR 144", "Сердце увеличено."),
        ("ISO_IR 192", "心臓は拡大。 Ødem ✓."),
        ("GB18030", "心影增大。."),
        (["", "ISO 2022 IR 87"], "心臓は拡大。."),
    ],
)
def test_text_is_read_in_its_character_set(sets: Any, text: str) -> None:
    assert read(section(FINDINGS, text), SpecificCharacterSet=sets).findings == text


def test_an_items_own_character_set_counts_for_it_and_for_what_is_in_it() -> None:
    cyrillic = section(FINDINGS, "Сердце увеличено.")
    cyrillic.SpecificCharacterSet = "ISO_IR 144"
    report = read(cyrillic, section(IMPRESSIONS, "Größer."), SpecificCharacterSet="ISO_IR 192")
    assert (report.findings, report.impression) == ("Сердце увеличено.", "Größer.")


@pytest.mark.filterwarnings("ignore:.*encoding")
@pytest.mark.filterwarnings("ignore:.*decode")
@pytest.mark.parametrize(
    ("stated", "sentence"),
    [(b"ISO_IR 6  ", "does not fit"), (b"ISO_IR 192", "does not fit"), (b"ISO_IR 999", "is none")],
)
def test_text_that_may_be_misread_is_refused(stated: bytes, sentence: str) -> None:
    latin = structured_report([section(FINDINGS, "Größe")], SpecificCharacterSet="ISO_IR 100")
    with pytest.raises(CorpusError, match=sentence):
        read_structured_report(latin.replace(b"ISO_IR 100", stated))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "no structured report"),
        (b"no DICOM at all, but some text", "damaged"),
        (make_dicom(RAMP), "no structured report"),
        (structured_report(SHORT, SOPClassUID=XRayRadiationDoseSRStorage), "no structured report"),
        (structured_report([], SOPClassUID=EncapsulatedPDFStorage), "encapsulated PDF"),
        (b"\0" * (2**20 + 1), "1,048,577 bytes"),
        (structured_report([section(FINDINGS, "a " * 30_000)]), "60,000 letters"),
        (structured_report([section(FINDINGS, "a" * 2**20)], DEFLATED), "damaged"),
    ],
)
def test_what_is_no_report_or_too_large_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(CorpusError, match=sentence):
        read_structured_report(data)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("lengths", ["stated", "undefined"])
def test_a_report_that_is_cut_short_is_never_read_as_a_shorter_one(lengths: str) -> None:
    children = [section(FINDINGS, "The heart is enlarged."), section(IMPRESSIONS, "Big.")]
    whole = structured_report(children, undefined=lengths == "undefined")
    full, start = read_structured_report(whole), whole.index(SEQUENCE)
    for end in range(start, len(whole), 3):
        try:
            report = read_structured_report(whole[:end])
        except CorpusError:
            continue
        assert (report.findings, report.impression) in (("", ""), (full.findings, full.impression))


def test_more_items_than_are_read_are_refused() -> None:
    items = (ITEM + bytes(4)) * 10_001
    many = structured_report([]) + SEQUENCE + struct.pack("<I", len(items)) + items
    with pytest.raises(CorpusError, match="more than 10,000 items"):
        read_structured_report(many)


@pytest.mark.parametrize("depth", [40, 4000])
def test_hostile_nesting_is_refused(depth: int) -> None:
    inner = b""
    for _ in range(depth):
        inner = ITEM + struct.pack("<I", len(inner)) + inner
        inner = SEQUENCE + struct.pack("<I", len(inner)) + inner
    with pytest.raises(CorpusError, match="more than 32 deep"):
        read_structured_report(structured_report([]) + inner)
    with pytest.raises(CorpusError, match="damaged"):  # of undefined length, and never closed
        read_structured_report(structured_report([]) + (SEQUENCE + OPEN + ITEM + OPEN) * depth)


def test_a_reference_to_an_item_around_it_is_not_followed() -> None:
    loop = item("TEXT", relationship="CONTAINS")
    del loop.ValueType
    loop.ReferencedContentItemIdentifier = [1, 1]
    report = read(item("CONTAINER", FINDINGS, [loop, item("TEXT", FINDING, TextValue="Clear.")]))
    assert report.findings == "Clear."
