"""A Structured Report (PS3.3 A.35) → its findings and impression as text.

Of the file only ``ATTRIBUTES`` are parsed, so patient, authors and observers are never read. Of
the content tree (PS3.3 C.17.3) only what is contained by value is read: content items of type
PNAME, of another relationship (observation context, evidence), or included by reference are left
out. This module knows no archive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

from pydicom import uid
from pydicom.charset import python_encoding
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from mrrag.data.attributes import as_list
from mrrag.data.dicom import parse
from mrrag.errors import CorpusError

__all__ = ["MAX_REPORT_BYTES", "PDF", "REPORTS", "StructuredReport", "read_structured_report"]

# The SOP classes that are read (PS3.4 B.5).
REPORTS = (uid.BasicTextSRStorage, uid.EnhancedSRStorage, uid.ComprehensiveSRStorage)
PDF = uid.EncapsulatedPDFStorage
MAX_REPORT_BYTES = 2**20  # also after inflation
MAX_ITEMS = 10_000
MAX_DEPTH = 32
MAX_LETTERS = 50_000

ATTRIBUTES = (
    "SOPClassUID", "SpecificCharacterSet", "ContentDate", "ContentTime", "CompletionFlag",
    "VerificationFlag", "PreliminaryFlag", "ValueType", "ConceptNameCodeSequence",
    "ContentSequence",
)  # fmt: skip
TAGS = tuple(Tag(keyword) for keyword in ATTRIBUTES)

FINDINGS, IMPRESSION, OTHER = "findings", "impression", "other"  # sections
# Concept names by scheme and code (PS3.16 CID 7001 and CID 7002, with the DCM codes of earlier
# editions). An addendum and conclusions count as impression.
CODES = MappingProxyType(
    {("DCM", code): FINDINGS for code in ("121070", "121071")}
    | {("LN", code): FINDINGS for code in ("59776-5", "18782-3")}
    | {("DCM", code): IMPRESSION for code in ("121072", "121073", "121076", "121077", "121111")}
    | {("LN", code): IMPRESSION for code in ("19005-8", "55110-1", "55112-7", "55107-7")}
    | {
        ("DCM", code): OTHER
        for code in (
            "121060", "121062", "121064", "121065", "121066", "121068", "121069", "121074",
            "121075", "121109", "121110", "121113",
        )
    }
    | {
        ("LN", code): OTHER
        for code in (
            "11329-0", "18783-1", "18785-6", "18834-2", "29549-3", "55108-5", "55109-3",
            "55111-9", "55113-5", "55114-3", "55115-0", "55752-0", "73568-8", "73569-6",
        )
    }
)  # fmt: skip
# Else by the words of the meaning.
MEANINGS = MappingProxyType(
    dict.fromkeys(
        ("finding", "findings", "procedure findings", "imaging findings", "radiology findings"),
        FINDINGS,
    )
    | dict.fromkeys(
        ("impression", "impressions", "conclusion", "conclusions", "addendum", "summary",
         "findings and impression", "radiology impression"),
        IMPRESSION,
    )
    | dict.fromkeys(
        ("history", "clinical history", "clinical information", "comparison", "indication",
         "indications", "previous finding", "previous findings", "recommendation",
         "recommendations", "technique"),
        OTHER,
    )
)  # fmt: skip
STATED = ("TEXT", "CODE", "NUM")
MODIFIERS = ("HAS CONCEPT MOD", "HAS PROPERTIES")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
DAMAGED = "The structured report could not be read: it is damaged, cut short, or not what it says."
NOTHING = Dataset()
UNDEFINED = 0xFFFFFFFF
ASCII = ("", "ISO_IR 6", "ISO 2022 IR 6")


@dataclass(frozen=True)
class StructuredReport:
    """A report's text, and what its author says of it.

    ``findings`` and ``impression`` are single lines, empty where the report has none. ``written``
    is its date and time as digits that sort by age, empty where it states none.
    """

    findings: str
    impression: str
    complete: bool
    verified: bool
    written: str


def read_structured_report(data: bytes) -> StructuredReport:
    """Read a Basic Text, Enhanced or Comprehensive SR.

    What stands under a heading of findings or impression is read, in the order of the content
    tree. A heading is a concept name in ``CODES`` or, failing that, in ``MEANINGS``: that of the
    nearest container that has one, else the item's own. Text is taken as it is; a coded or measured
    item becomes "name: value (modifier: value)". Other names within a section stand before their
    text. All else is left out: other sections, names of people, dates, references, images.

    Parameters
    ----------
    data
        A DICOM file of at most ``MAX_REPORT_BYTES``.

    Raises
    ------
    CorpusError
        If it is of another class, damaged, larger or deeper than allowed, or in a character set
        that is unknown, not stated or does not fit.
    """
    if len(data) > MAX_REPORT_BYTES:
        raise CorpusError(
            f"The structured report has {len(data):,} bytes. At most {MAX_REPORT_BYTES:,} are read."
        )
    try:
        dataset = parse(data, TAGS, most=MAX_REPORT_BYTES)
        _check_class(dataset)
        _check_tree(dataset)
        said: dict[str, list[str]] = {FINDINGS: [], IMPRESSION: []}
        for section, statement in _statements(dataset):
            said[section].append(statement)
        findings, impression = (" ".join(said[name]) for name in (FINDINGS, IMPRESSION))
        if len(findings) + len(impression) > MAX_LETTERS:
            raise CorpusError(
                f"The structured report has {len(findings) + len(impression):,} letters of text. "
                f"At most {MAX_LETTERS:,} are read."
            )
        return StructuredReport(
            findings,
            impression,
            complete=dataset.get("CompletionFlag") == "COMPLETE"
            and dataset.get("PreliminaryFlag") != "PRELIMINARY",
            verified=dataset.get("VerificationFlag") == "VERIFIED",
            written=_written(dataset),
        )
    except CorpusError:
        raise
    except Exception:  # pydicom raises many kinds; their words may quote the report
        raise CorpusError(DAMAGED) from None


def _check_class(dataset: Dataset) -> None:
    kind = dataset.get("SOPClassUID")
    if kind == PDF:
        raise CorpusError(
            "The report is an encapsulated PDF, which is not read. Export the reports as a table."
        )
    if kind not in REPORTS:
        raise CorpusError(
            "The file is no structured report that is read. Basic Text, Enhanced and "
            "Comprehensive SR are."
        )


def _check_tree(root: Dataset) -> None:
    """Raise ``CorpusError`` if the content tree is too large or deep, or its text unsure."""
    _check_whole(root)
    waiting, count = [(root, 0, _character_sets(root, ()))], 0
    while waiting:
        item, depth, sets = waiting.pop()
        children = item.get("ContentSequence") or ()
        count += 1
        if count + len(waiting) + len(children) > MAX_ITEMS:
            raise CorpusError(
                f"The structured report has more than {MAX_ITEMS:,} items, which is more than is "
                "read."
            )
        if depth > MAX_DEPTH:
            raise CorpusError(
                f"The items of the structured report are nested more than {MAX_DEPTH} deep, which "
                "is more than is read."
            )
        for text in _texts(item):
            if "\ufffd" in text or (not text.isascii() and all(name in ASCII for name in sets)):
                raise CorpusError(
                    "The structured report's text does not fit the character set that it states "
                    "(SpecificCharacterSet), or it states none."
                )
        for child in children:
            _check_whole(child)
            waiting.append((child, depth + 1, _character_sets(child, sets)))


def _check_whole(item: Dataset) -> None:
    """Raise ``CorpusError`` if a value is shorter than its length, which pydicom lets pass."""
    for tag in item.keys():  # noqa: SIM118, values would be converted
        raw = item.get_item(tag)
        length = raw.length if isinstance(raw, RawDataElement) else UNDEFINED
        if length != UNDEFINED and len(raw.value or b"") < length:
            raise CorpusError(DAMAGED)


def _character_sets(item: Dataset, around: tuple[str, ...]) -> tuple[str, ...]:
    """Return an item's character sets, or those around it where it states none (PS3.5 7.5.3)."""
    if "SpecificCharacterSet" not in item:
        return around
    sets = tuple(str(name) for name in as_list(item.SpecificCharacterSet))
    if unknown := [name for name in sets if name not in python_encoding]:
        raise CorpusError(
            f"The structured report's character set {CONTROL.sub(' ', unknown[0])[:32]!r} is none "
            "of DICOM's (PS3.3 C.12.1.1.2)."
        )
    return sets


def _texts(item: Dataset) -> Iterator[str]:
    """Yield the texts of an item that may be read, not those of its children."""
    if item.get("ValueType") in STATED or item.get("ValueType") == "CONTAINER":
        yield _text(item, "TextValue")
        for keyword in ("ConceptNameCodeSequence", "ConceptCodeSequence"):
            yield _text(_first(item, keyword), "CodeMeaning")


def _statements(item: Dataset, around: str = "") -> Iterator[tuple[str, str]]:
    """Yield section and text of an item and of what it contains, in the tree's order.

    ``around`` is the section of the containers around it, "" where they are of none.
    """
    kind, name = item.get("ValueType"), _first(item, "ConceptNameCodeSequence")
    own = _section(name)
    section = (own or around) if kind == "CONTAINER" else (around or own)
    if own == OTHER:  # with all that is in it: a finding within the history is none of today's
        return
    if kind in STATED and section and (words := _words(item, named=not own)):
        yield section, words if words[-1] in ".!?:;" else f"{words}."
    if kind != "CONTAINER":
        return
    label = _text(name, "CodeMeaning") if section and not own else ""
    for child in item.get("ContentSequence") or ():
        if child.get("RelationshipType") != "CONTAINS":
            continue
        for inner, words in _statements(child, section):
            yield inner, f"{label}: {words}" if label and inner == section else words
            label = ""


def _words(item: Dataset, *, named: bool) -> str:
    """Return a text, code or number in plain words, with its name unless that is the heading."""
    kind = item.ValueType
    value, modifiers = _text(item, "TextValue"), ""
    if kind == "CODE":
        value = _text(_first(item, "ConceptCodeSequence"), "CodeMeaning")
    elif kind == "NUM":
        measured = _first(item, "MeasuredValueSequence")
        unit = _text(_first(measured, "MeasurementUnitsCodeSequence"), "CodeValue")
        value = " ".join(map(str, as_list(measured.get("NumericValue"))))
        value += f" {unit}" if value and unit != "1" and "{" not in unit else ""  # UCUM
    if not value:
        return ""
    if kind != "TEXT":  # without its modifiers, such as "absent", it may say the opposite
        inner = [
            _words(child, named=True)
            for child in item.get("ContentSequence") or ()
            if child.get("ValueType") in STATED and child.get("RelationshipType") in MODIFIERS
        ]
        modifiers = "; ".join(filter(None, inner))
    name = _text(_first(item, "ConceptNameCodeSequence"), "CodeMeaning") if named else ""
    return (f"{name}: " if name else "") + value.strip() + (f" ({modifiers})" if modifiers else "")


def _section(name: Dataset) -> str:
    """Return which section a concept name heads, "" for none that is known."""
    code = (_text(name, "CodingSchemeDesignator"), _text(name, "CodeValue"))
    meaning = " ".join(re.findall(r"[^\W\d_]+", _text(name, "CodeMeaning").lower()))
    return CODES.get(code) or MEANINGS.get(meaning, "")


def _first(item: Dataset, keyword: str) -> Dataset:
    """Return the first item of a sequence, one without attributes where it is absent."""
    return next(iter(item.get(keyword) or ()), NOTHING)


def _text(item: Dataset, keyword: str) -> str:
    """Return an attribute as one line; "" where it is absent."""
    return " ".join(CONTROL.sub(" ", str(item.get(keyword) or "")).split())


def _written(dataset: Dataset) -> str:
    """Return Content Date and Time as digits; "" where there is no date (PS3.5 6.2, DA and TM)."""
    day, hour = (str(dataset.get(keyword) or "") for keyword in ("ContentDate", "ContentTime"))
    if not re.fullmatch(r"\d{8}", day):
        return ""
    return day + (hour.ljust(6, "0") if re.fullmatch(r"\d{2,6}(\.\d{1,6})?", hour) else "0" * 6)
