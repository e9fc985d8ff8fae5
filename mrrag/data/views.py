"""Which view a picture is, and which pictures of a study are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mrrag.data.records import Corpus, Record
from mrrag.errors import CorpusError

__all__ = ["CHOICES", "choose_views", "pictures_of_studies", "view_of"]

# What --views takes.
CHOICES = ("frontal", "all")

# The words of the data sets, and those of DICOM: defined terms of View Position (0018,5101;
# PS3.3 C.8.1.1) and meanings of View Code Sequence (PS3.16 CID 4010), in letters alone.
# Decubitus, oblique and axial views are neither frontal nor lateral here.
_FRONTAL = ("frontal", "pa", "ap", "posteroanterior", "anteroposterior", "frontalview")
_LATERAL = (
    *("lateral", "lat", "ll", "rl", "leftlateral", "rightlateral", "lateralview"),
    *("xtablelateral", "crosstablelateral"),
)
_VIEWS = dict.fromkeys(_FRONTAL, "frontal") | dict.fromkeys(_LATERAL, "lateral")

ONLY_LATERAL = "only a lateral picture"
NONE_FRONTAL = "no picture that is known to be frontal"


def view_of(word: str) -> str:
    """Return "frontal", "lateral", or "" for another view or none.

    Case, hyphens and blanks do not matter: "PA", "postero-anterior" and "Frontal" are frontal,
    "LL" and "left lateral" lateral.
    """
    return _VIEWS.get("".join(filter(str.isalpha, word.lower())), "")


def pictures_of_studies(records: Sequence[Record]) -> list[list[int]]:
    """Return the row numbers of the pictures of each study, in the order of the records.

    Pictures are of one study where patient, study and report are the same.
    """
    rows: dict[tuple[str, str, str], list[int]] = {}
    for row, record in enumerate(records):
        d = record.document
        rows.setdefault((d.patient, d.study, d.report), []).append(row)
    return list(rows.values())


def choose_views(corpus: Corpus, views: str) -> Corpus:
    """Return the corpus with one frontal picture of each study, or with all pictures.

    With "frontal", the first frontal picture of a study is kept. A study that has none is
    skipped and counted. Where no view is known in the whole data set, every study is kept: by
    its first picture where the data set lists pictures by study, else by all of them. A note
    says so.
    Questions about pictures that are left out are skipped.

    Raises
    ------
    CorpusError
        If ``views`` is not one of ``CHOICES``, or nothing is left.
    """
    if views not in CHOICES:
        raise CorpusError(f'The views are "{views}"; allowed are {" and ".join(CHOICES)}.')
    if views == "all":
        return corpus
    records, notes = corpus.records, corpus.notes
    studies = pictures_of_studies(records)
    reasons: dict[str, list[str]] = {}
    if any(record.view for record in records):
        kept, reasons = _frontal_rows(records, studies)
    else:
        kept = {n for n, record in enumerate(records) if record.picture == 1}
        some = "the first picture of each study, which may be a lateral one; --views all uses all"
        used = some if len(kept) < len(records) else "every picture"
        notes += (f"No view is given, so --views frontal uses {used}.",)
    if not kept:
        raise CorpusError("No frontal picture is there. --views all uses the other ones.")
    left_out = {records[n].document.id for n in range(len(records)) if n not in kept}
    lost = [q for q in corpus.questions if q.uid in left_out]
    skipped_questions = dict(corpus.skipped_questions)
    if lost:
        skipped_questions["about a picture that --views leaves out"] = tuple(q.qid for q in lost)
    used_studies = (rows for rows in studies if not kept.isdisjoint(rows))
    return replace(
        corpus,
        records=tuple(record for n, record in enumerate(records) if n in kept),
        skipped=dict(corpus.skipped) | {reason: tuple(ids) for reason, ids in reasons.items()},
        questions=tuple(q for q in corpus.questions if q.uid not in left_out),
        skipped_questions=skipped_questions,
        other_images=sum(n not in kept for rows in used_studies for n in rows),
        notes=notes,
    )


def _frontal_rows(
    records: Sequence[Record], studies: Sequence[Sequence[int]]
) -> tuple[set[int], dict[str, list[str]]]:
    """Return the row of each study's first frontal picture, and the studies without by reason."""
    kept: set[int] = set()
    reasons: dict[str, list[str]] = {}
    for rows in studies:
        frontal = next((n for n in rows if records[n].view == "frontal"), None)
        if frontal is not None:
            kept.add(frontal)
        else:
            lateral = all(records[n].view == "lateral" for n in rows)
            reason = ONLY_LATERAL if lateral else NONE_FRONTAL
            reasons.setdefault(reason, []).append(records[rows[0]].document.id)
    return kept, reasons
