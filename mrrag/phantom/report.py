"""The report of a phantom study, and questions about it with their answers.

Reports are short and incomplete, as real ones are: they name some normal findings and leave
out some that are present. So an omission says little, and a report that names the finding
asked about is worth more than one that does not; this is what the question-report similarity
of MCR is for. Questions are about findings named in the study's own report, as in data sets
whose questions were generated from reports.

This module knows no pixels. Its texts are the whole vocabulary of the bundled model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mrrag.phantom.world import FINDINGS, Finding, Study

# Words for the grades of findings that have a size; for others the grade is its own word.
SIZES = {"mild": "small", "moderate": "moderate", "severe": "large"}
SIZED = ("pleural effusion", "pneumothorax", "nodule")

# Sentences that assert a finding. {side}, {zone} and {grade} are filled in; {grade} may be
# empty.
PRESENT: dict[str, tuple[str, ...]] = {
    "cardiomegaly": (
        "There is {grade} cardiomegaly.",
        "The heart is {grade} enlarged.",
        "{grade} enlargement of the cardiac silhouette.",
        "The cardiac silhouette is {grade} enlarged.",
    ),
    "pleural effusion": (
        "There is a {grade} {side} pleural effusion.",
        "{grade} {side} pleural fluid.",
        "{grade} {side} effusion with blunting of the costophrenic angle.",
    ),
    "pneumothorax": (
        "There is a {grade} {side} pneumothorax.",
        "{grade} {side} apical pneumothorax.",
        "A pleural line is seen in keeping with a {grade} {side} pneumothorax.",
    ),
    "consolidation": (
        "There is {grade} consolidation in the {side} {zone} zone.",
        "{grade} airspace opacity in the {side} {zone} zone.",
        "{side} {zone} zone {grade} infiltrate suspicious for pneumonia.",
    ),
    "nodule": (
        "There is a {grade} nodule in the {side} {zone} zone.",
        "{grade} nodular opacity in the {side} {zone} zone.",
        "{grade} {side} {zone} zone pulmonary nodule.",
    ),
    "pulmonary edema": (
        "There is {grade} pulmonary edema.",
        "{grade} perihilar haze in keeping with edema.",
        "{grade} pulmonary vascular congestion and edema.",
    ),
    "atelectasis": (
        "{grade} {side} {zone} zone atelectasis.",
        "{grade} linear atelectasis in the {side} {zone} zone.",
        "There is {grade} plate-like atelectasis in the {side} {zone} zone.",
    ),
    "hyperinflation": (
        "The lungs are {grade} hyperinflated.",
        "{grade} hyperinflation with flattened diaphragms.",
        "{grade} emphysematous hyperexpansion of the lungs.",
    ),
    "pacemaker": (
        "A {side} chest pacemaker is in place.",
        "{side} sided pacemaker with leads in the heart.",
        "Pacing device over the {side} chest.",
    ),
    "central line": (
        "A {side} central line ends in the superior vena cava.",
        "{side} central venous catheter in place.",
        "There is a {side} internal jugular central line.",
    ),
    "rib fracture": (
        "There is a {side} {zone} rib fracture.",
        "Fracture of a {side} {zone} rib.",
        "Displaced {side} {zone} rib fracture.",
    ),
    "scoliosis": (
        "There is {grade} scoliosis convex to the {side}.",
        "{grade} {side} convex scoliosis of the thoracic spine.",
        "{grade} curvature of the spine convex to the {side}.",
    ),
}

# Sentences that deny a finding.
ABSENT: dict[str, tuple[str, ...]] = {
    "cardiomegaly": (
        "The heart is normal in size.",
        "Heart size is within normal limits.",
        "The cardiac silhouette is not enlarged.",
    ),
    "pleural effusion": (
        "No pleural effusion.",
        "The costophrenic angles are sharp without pleural fluid.",
        "There is no effusion.",
    ),
    "pneumothorax": ("No pneumothorax.", "There is no pneumothorax.", "No pneumothorax is seen."),
    "consolidation": (
        "No consolidation.",
        "No focal airspace opacity.",
        "There is no infiltrate.",
    ),
    "nodule": ("No pulmonary nodule.", "No suspicious nodule is seen."),
    "pulmonary edema": (
        "No pulmonary edema.",
        "Pulmonary vascularity is normal without edema.",
        "There is no vascular congestion.",
    ),
    "atelectasis": ("No atelectasis.", "There is no atelectasis."),
    "hyperinflation": ("The lungs are not hyperinflated.", "Lung volumes are normal."),
    "pacemaker": ("No pacemaker.", "No pacing device is present."),
    "central line": ("No central line.", "There is no central venous catheter."),
    "rib fracture": (
        "No rib fracture.",
        "The ribs are intact without fracture.",
        "No displaced rib fracture.",
    ),
    "scoliosis": ("No scoliosis.", "The spine is straight without scoliosis."),
}

# Probability that the absence of a finding is reported.
DENIAL_RATE: dict[str, float] = {
    "cardiomegaly": 0.3,
    "pleural effusion": 0.3,
    "pneumothorax": 0.3,
    "consolidation": 0.25,
    "nodule": 0.2,
    "pulmonary edema": 0.2,
    "atelectasis": 0.2,
    "hyperinflation": 0.2,
    "pacemaker": 0.15,
    "central line": 0.15,
    "rib fracture": 0.2,
    "scoliosis": 0.2,
}
# Probability that a finding is left out of the report, by grade (None: it has no grade).
SILENCE_RATE: dict[str | None, float] = {
    "mild": 0.7,
    "moderate": 0.6,
    "severe": 0.5,
    None: 0.6,
}
# Probability that a finding is reported, over all grades.
SAID_RATE = 0.36
MOST_ASKED = 3
PRIORS = (
    "Compared with the prior study there is no change.",
    "No prior study for comparison.",
    "Similar to the prior exam.",
    "New since the prior exam.",
)
NOTHING_NAMED = (
    "Single frontal view of the chest.",
    "Frontal radiograph of the chest.",
    "The study is limited to one view.",
)
NORMAL_IMPRESSIONS = (
    "No acute cardiopulmonary abnormality.",
    "No acute disease.",
    "Normal chest.",
    "No acute findings.",
)

# Names of the findings in questions.
NAMES: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("cardiomegaly", "an enlarged heart", "cardiac enlargement"),
    "pleural effusion": ("a pleural effusion", "pleural effusion", "pleural fluid"),
    "pneumothorax": ("a pneumothorax", "pneumothorax"),
    "consolidation": ("consolidation", "airspace opacity", "an infiltrate"),
    "nodule": ("a nodule", "a pulmonary nodule"),
    "pulmonary edema": ("pulmonary edema", "edema"),
    "atelectasis": ("atelectasis",),
    "hyperinflation": ("hyperinflation", "hyperinflation of the lungs"),
    "pacemaker": ("a pacemaker", "a pacing device"),
    "central line": ("a central line", "a central venous catheter"),
    "rib fracture": ("a rib fracture", "a fracture"),
    "scoliosis": ("scoliosis", "curvature of the spine"),
}
CLOSED = (
    "Is there {name}?",
    "Is there evidence of {name}?",
    "Does the image show {name}?",
    "Does the patient have {name}?",
    "Is {name} seen?",
    "Is {name} present in this image?",
)
SIDED = (
    "Is there {name} on the {side}?",
    "Does the image show {name} on the {side} side?",
)
WHERE = ("Where is the {noun}?", "In which zone is the {noun}?")
WHICH_SIDE = ("Which side is the {noun} on?", "On which side is the {noun}?")
HOW_SEVERE = ("How severe is the {noun}?", "How marked is the {noun}?")
HOW_LARGE = ("How large is the {noun}?", "What size is the {noun}?")
DESCRIBE = (
    "Describe the findings.",
    "What abnormality is seen?",
    "What are the findings in this image?",
    "Summarize the abnormal findings.",
)
NOTHING_FOUND = "No acute abnormality."

# Words by which a question about this world is recognised.
TOPICS: tuple[str, ...] = tuple(
    sorted({n.removeprefix("a ").removeprefix("an ") for names in NAMES.values() for n in names})
)


@dataclass(frozen=True)
class QuestionAnswer:
    """A question about one study, and its answer by construction.

    ``finding`` is None for questions about the whole image.
    """

    question: str
    answer: str
    answer_type: Literal["closed", "open"]
    finding: str | None


def grade_word(finding: Finding, adverb: bool = False) -> str:
    """Return the word for a grade: "small" effusion, "moderate" edema, "mildly" enlarged."""
    if finding.grade is None:
        return ""
    word = SIZES[finding.grade] if finding.name in SIZED else finding.grade
    return {"moderate": "moderately"}.get(word, word + "ly") if adverb else word


def _sentence(template: str, finding: Finding, say_grade: bool) -> str:
    adverb = "{grade} enlarged" in template or "{grade} hyperinflated" in template
    text = template.format(
        side=finding.side or "",
        zone=finding.zone or "",
        grade=grade_word(finding, adverb) if say_grade else "",
    )
    text = " ".join(text.split()).replace(" .", ".")
    return text[0].upper() + text[1:]


def canonical(finding: Finding) -> str:
    """Return the finding as a short phrase: "small right pleural effusion"."""
    place = f"in the {finding.side} {finding.zone} zone" if finding.zone else ""
    words: tuple[str | None, ...]
    if finding.name == "rib fracture":
        words = (finding.side, finding.zone, finding.name)
    elif finding.zone:
        words = (grade_word(finding), finding.name, place)
    elif finding.name == "scoliosis":
        words = (grade_word(finding), finding.name, f"convex to the {finding.side}")
    else:
        words = (grade_word(finding), finding.side, finding.name)
    return " ".join(w for w in words if w)


@dataclass(frozen=True)
class Report:
    """A report's two sections, and the findings that it asserts and denies."""

    findings: str
    impression: str
    asserted: tuple[str, ...]
    denied: tuple[str, ...]


def write_report(study: Study, copy: int = 0) -> Report:
    """Write the study's report, which depends on nothing but the study and ``copy``.

    Copy 0 is the report of the data set. Any other copy says of the same study the same truth
    in other words, with other findings left out.
    """
    rng = np.random.default_rng((study.seed, 1, copy) if copy else (study.seed, 1))

    def pick(choices: tuple[str, ...]) -> str:
        return choices[int(rng.integers(len(choices)))]

    sentences: list[str] = []
    asserted, denied = [], []
    for name in FINDINGS:
        finding = study.finding(name)
        if finding is not None:
            if rng.random() < SILENCE_RATE[finding.grade]:
                continue
            hedge = finding.grade == "mild" and rng.random() < 0.15
            text = _sentence(pick(PRESENT[name]), finding, say_grade=rng.random() < 0.8)
            if hedge and not text.startswith(("There", "The ", "A ")):
                text = f"Possible {text[0].lower()}{text[1:]}"
            sentences.append(text)
            asserted.append(name)
        elif rng.random() < DENIAL_RATE[name]:
            sentences.append(pick(ABSENT[name]))
            denied.append(name)
    order = rng.permutation(len(sentences))
    sentences = [sentences[i] for i in order]
    if rng.random() < 0.2:
        sentences.insert(0, pick(PRIORS))
    if not sentences:
        sentences = [pick(NOTHING_NAMED)]
    # The impression repeats the main findings only.
    main = [f for f in study.findings if f.name in asserted and f.grade != "mild"][:2]
    if main:
        impression = " ".join(c[0].upper() + c[1:] + "." for c in map(canonical, main))
    elif study.findings:
        impression = ""  # findings that were left out are not called normal either
    else:
        impression = pick(NORMAL_IMPRESSIONS)
    return Report(" ".join(sentences), impression, tuple(asserted), tuple(denied))


def ask(study: Study, report: Report, rates: Mapping[str, float]) -> Iterator[QuestionAnswer]:
    """Yield questions about the findings that a report names, with their answers.

    ``rates`` holds the prevalence of each finding. With it, yes and no are balanced for every
    finding, so that its name alone does not predict the answer.
    """
    rng = np.random.default_rng((study.seed, 2))

    def pick(choices: tuple[str, ...]) -> str:
        return choices[int(rng.integers(len(choices)))]

    present = [f for f in study.findings if f.name in report.asserted]
    yes = [present[i] for i in rng.permutation(len(present))[:MOST_ASKED]]
    # Over the population, each finding is denied as often as it is affirmed.
    odds = {f: rates[f] / (1 - rates[f]) * SAID_RATE / DENIAL_RATE[f] for f in report.denied}
    no = [f for f in report.denied if rng.random() < odds[f]]
    for finding in yes:
        if finding.side in ("left", "right") and rng.random() < 0.25:
            # Half of the sided questions ask about the other side.
            side = finding.side if rng.random() < 0.5 else _other(finding.side)
            text = pick(SIDED).format(name=pick(NAMES[finding.name]), side=side)
            reply = f"{'Yes' if side == finding.side else 'No'}, {canonical(finding)}."
            yield QuestionAnswer(text, reply, "closed", finding.name)
        else:
            text = pick(CLOSED).format(name=pick(NAMES[finding.name]))
            yield QuestionAnswer(text, f"Yes, {canonical(finding)}.", "closed", finding.name)
    for name in no:
        text = pick(CLOSED).format(name=pick(NAMES[name]))
        yield QuestionAnswer(text, f"No {name}.", "closed", name)
    yield from _open_questions(study, present, rng)


def _other(side: str) -> str:
    return "left" if side == "right" else "right"


def _open_questions(
    study: Study, named: Sequence[Finding], rng: np.random.Generator
) -> Iterator[QuestionAnswer]:
    def pick(choices: tuple[str, ...]) -> str:
        return choices[int(rng.integers(len(choices)))]

    if named:
        finding = named[int(rng.integers(len(named)))]
        noun = finding.name
        options: list[tuple[tuple[str, ...], str]] = []
        if finding.zone:
            options.append((WHERE, f"{finding.side} {finding.zone} zone"))
        elif finding.side:
            side = "both sides" if finding.side == "bilateral" else f"the {finding.side}"
            options.append((WHICH_SIDE, f"on {side}"))
        if finding.grade:
            options.append((HOW_LARGE if noun in SIZED else HOW_SEVERE, grade_word(finding)))
        if options:
            templates, reply = options[int(rng.integers(len(options)))]
            reply = reply[0].upper() + reply[1:] + "."
            yield QuestionAnswer(pick(templates).format(noun=noun), reply, "open", noun)
    if rng.random() < 0.35:
        said = [canonical(f) for f in study.findings[:3]]
        reply = " ".join(s[0].upper() + s[1:] + "." for s in said) or NOTHING_FOUND
        yield QuestionAnswer(pick(DESCRIBE), reply, "open", None)


def prevalence(studies: Sequence[Study]) -> dict[str, float]:
    """Return the share of studies with each finding."""
    return {
        name: float(np.mean([s.finding(name) is not None for s in studies])) for name in FINDINGS
    }
