"""Questions made of reports by the finding rules, with their answers.

For a data set that has reports and no questions. A finding that a report affirms gives "yes",
one that it denies gives "no"; doubt, or a report that says both, gives no question. Within a
split each finding has as many "yes" as "no", so that its name alone does not predict the
answer. The wordings are neutral and drawn by seed: they carry nothing of the report.

This module opens no image and knows no model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mrrag.data.findings import FINDINGS, Mention, mentions
from mrrag.data.negation import sentences
from mrrag.data.records import Question, Record

__all__ = ["NAMES", "ReportQuestion", "side_and_place", "write_questions"]

# Finding → its names in questions.
NAMES: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("cardiomegaly", "an enlarged heart"),
    "pleural effusion": ("a pleural effusion", "pleural fluid"),
    "pneumothorax": ("a pneumothorax",),
    "consolidation": ("consolidation", "airspace disease"),
    "pneumonia": ("pneumonia",),
    "opacity": ("a lung opacity",),
    "nodule": ("a lung nodule",),
    "mass": ("a mass",),
    "granuloma": ("a granuloma",),
    "pulmonary edema": ("pulmonary edema", "vascular congestion"),
    "atelectasis": ("atelectasis",),
    "hyperinflation": ("hyperinflation of the lungs", "hyperinflation"),
    "scar": ("scarring", "a scar"),
    "fibrosis": ("fibrosis",),
    "pleural thickening": ("pleural thickening",),
    "aortic abnormality": ("a tortuous or calcified aorta", "an aortic abnormality"),
    "hernia": ("a hernia",),
    "pacemaker": ("a pacemaker",),
    "central line": ("a central line", "a central venous catheter"),
    "rib fracture": ("a rib fracture",),
    "fracture": ("a fracture",),
    "scoliosis": ("scoliosis",),
    "spine degeneration": ("degenerative change of the spine",),
}
CLOSED = (
    "Is there {name}?",
    "Is there evidence of {name}?",
    "Does the image show {name}?",
    "Can {name} be seen?",
)
WHICH_SIDE = ("Which side is the {noun} on?", "On which side is the {noun}?")
WHERE = ("Where is the {noun}?",)
# Findings that are on one side, or at one place.
SIDED = (
    "consolidation",
    "opacity",
    "nodule",
    "mass",
    "granuloma",
    "atelectasis",
    "scar",
    "pleural effusion",
    "pneumothorax",
    "pleural thickening",
    "central line",
    "pacemaker",
    "rib fracture",
)
_NOT_A_SIDE = re.compile(r"\b(?:left|right) (?:atri\w+|ventric\w+|heart)\b")
_BOTH = re.compile(r"\b(?:bilateral\w*|both|bibasilar|biapical|bibasal)\b")
_PLACE = re.compile(
    r"\b(left|right)(?: \w+)? (upper|middle|mid|lower) (lobe|zone|lung)\b"
    r"|\b(left|right)(?: lung| basilar)? (base|apex)\b"
)
# The words around a mention that speak of it, and not of the next finding.
_CHUNK_END = re.compile(r"[,;:]|\b(?:and|with|without|but|or|versus)\b")


@dataclass(frozen=True)
class ReportQuestion:
    """A question about a record, and the sentence of its report that the answer came from.

    The sentence is empty where the report says nothing and silence counts as "no".
    """

    question: Question
    sentence: str


@dataclass(frozen=True)
class _Said:
    """What one study's report says about a finding, in which sentence."""

    uid: str
    present: bool
    sentence: str


def write_questions(
    records: Iterable[Record], *, per_study: int = 4, seed: int = 0, silence: bool = False
) -> list[ReportQuestion]:
    """Return questions about the records' findings, in the records' order.

    Parameters
    ----------
    records
        A study with several records is asked about once, by the first of them.
    per_study
        Maximum number of yes/no questions about a study. An open one may be added, about the
        side or the place of a finding.
    seed
        Decides which studies are asked about which finding, and in what words.
    silence
        Whether a report that does not name a finding counts as "no". It gives questions about
        findings that reports seldom deny (granuloma, scar), with less certain answers.
    """
    first: dict[str, Record] = {}
    for record in records:
        if record.document.report.strip():
            first.setdefault(record.document.study or record.document.id, record)
    studies = list(first.values())
    rng = np.random.default_rng(seed)
    found: dict[str, list[ReportQuestion]] = {r.document.id: [] for r in studies}
    for split in sorted({record.split for record in studies}):
        within = [record for record in studies if record.split == split]
        for finding, said in _balanced(within, per_study, silence, rng):
            found[said.uid].append(_closed(finding, said, rng))
    for record in studies:
        found[record.document.id] += _open(record, rng)
    return [question for record in studies for question in found[record.document.id]]


def _balanced(
    records: Sequence[Record], per_study: int, silence: bool, rng: np.random.Generator
) -> list[tuple[str, _Said]]:
    """Choose as many studies with a finding as without it; findings with few come first."""
    said: dict[str, tuple[list[_Said], list[_Said]]] = {f: ([], []) for f in FINDINGS}
    for record in records:
        for finding, one in _all_said(record, silence):
            said[finding][not one.present].append(one)
    asked: Counter[str] = Counter()
    chosen: list[tuple[str, _Said]] = []
    for finding in sorted(FINDINGS, key=lambda f: min(map(len, said[f]))):
        yes, no = (_fewest_asked(side, asked, per_study, rng) for side in said[finding])
        for pair in zip(yes, no, strict=False):
            chosen += [(finding, one) for one in pair]
            asked.update(one.uid for one in pair)
    return chosen


def _fewest_asked(
    said: list[_Said], asked: Counter[str], per_study: int, rng: np.random.Generator
) -> list[_Said]:
    """Return the studies that may be asked about again, those asked about least first."""
    shuffled = [said[i] for i in rng.permutation(len(said))]
    return sorted((s for s in shuffled if asked[s.uid] < per_study), key=lambda s: asked[s.uid])


def _all_said(record: Record, silence: bool) -> list[tuple[str, _Said]]:
    """Return what a report says for certain, by finding."""
    report, uid = record.document.report, record.document.id
    by_finding: dict[str, list[Mention]] = {finding: [] for finding in FINDINGS}
    for mention in mentions(report, FINDINGS):
        by_finding[mention.finding].append(mention)
    said = []
    for finding, found in by_finding.items():
        stances = {mention.stance for mention in found}
        if len(stances) == 1 and "uncertain" not in stances:
            sentence = _sentence_of(report, found[0])
            said.append((finding, _Said(uid, stances == {"affirmed"}, sentence)))
        elif not found and silence:
            said.append((finding, _Said(uid, False, "")))
    return said


def _sentence_of(report: str, mention: Mention) -> str:
    start, stop = next(p for p in sentences(report.lower()) if p[1] >= mention.stop)
    return " ".join(report[start:stop].split())


def _closed(finding: str, said: _Said, rng: np.random.Generator) -> ReportQuestion:
    text = _pick(CLOSED, rng).format(name=_pick(NAMES[finding], rng))
    qid = f"{said.uid}-{finding.replace(' ', '-')}"
    answer = "Yes" if said.present else "No"
    return ReportQuestion(Question(qid, said.uid, text, answer, "closed", finding), said.sentence)


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _open(record: Record, rng: np.random.Generator) -> list[ReportQuestion]:
    """Return a question about the side or the place of one finding, where there is one."""
    report, uid = record.document.report, record.document.id
    by_finding: dict[str, list[Mention]] = {}
    for mention in mentions(report, SIDED):
        by_finding.setdefault(mention.finding, []).append(mention)
    options: list[tuple[str, tuple[str, ...], str, str]] = []
    for finding, found in by_finding.items():
        known = {side_and_place(report, mention) for mention in found}
        side, place = next(iter(known))
        if len(known) > 1 or not side or {m.stance for m in found} != {"affirmed"}:
            continue
        sentence = _sentence_of(report, found[0])
        options.append((finding, WHICH_SIDE, f"On the {side}", sentence))
        if place:
            options.append((finding, WHERE, f"In the {place}", sentence))
    if not options:
        return []
    finding, wordings, answer, sentence = options[int(rng.integers(len(options)))]
    text = _pick(wordings, rng).format(noun=finding)
    qid = f"{uid}-{finding.replace(' ', '-')}-place"
    return [ReportQuestion(Question(qid, uid, text, answer, "open", finding), sentence)]


def side_and_place(report: str, mention: Mention) -> tuple[str, str]:
    """Return the one side, and the place, that a report gives for a mention; "" where unsaid.

    A sentence that names both sides gives neither, and so does one that names the side of
    something else: "effusion and left atelectasis" says nothing of the effusion's.
    """
    lowered = report.lower()
    start, stop = next(p for p in sentences(lowered) if p[1] >= mention.stop)
    sentence = _NOT_A_SIDE.sub(lambda m: " " * len(m.group()), lowered[start:stop])
    sides = set(re.findall(r"\b(left|right)\b", sentence))
    if len(sides) != 1 or _BOTH.search(sentence):
        return "", ""
    before, after = sentence[: mention.start - start], sentence[mention.stop - start :]
    ends = [m.end() for m in _CHUNK_END.finditer(before)]
    cut = _CHUNK_END.search(after)
    chunk = before[ends[-1] if ends else 0 :] + " " + after[: cut.start() if cut else None]
    side = next(iter(sides))
    if not re.search(rf"\b{side}\b", chunk):
        return "", ""
    place = _PLACE.search(chunk)
    return side, _place_name(place) if place else ""


def _place_name(found: re.Match[str]) -> str:
    side, height, part, end_side, end = found.groups()
    if end:
        return f"{end_side} lung {end}"
    return f"{side} {'middle' if height == 'mid' else height} {part}"
