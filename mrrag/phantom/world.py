"""The phantom population: patients, studies and their findings.

A study is drawn in two steps: a clinical picture (heart failure, infection, trauma, ...),
then the findings that go with it, each with side, zone and grade. Because findings are
correlated, chests resemble one another, and retrieval has something to find.

This module knows neither pixels (:mod:`mrrag.phantom.render`) nor words
(:mod:`mrrag.phantom.report`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Side = Literal["left", "right", "bilateral"]
Zone = Literal["upper", "mid", "lower"]
Grade = Literal["mild", "moderate", "severe"]

GRADES: tuple[Grade, ...] = ("mild", "moderate", "severe")


@dataclass(frozen=True)
class FindingKind:
    """The allowed sides and zones of a finding; empty where it has none."""

    name: str
    sides: tuple[Side, ...] = ()
    zones: tuple[Zone, ...] = ()
    graded: bool = True


KINDS: dict[str, FindingKind] = {
    k.name: k
    for k in (
        FindingKind("cardiomegaly"),
        FindingKind("pleural effusion", ("left", "right", "bilateral")),
        FindingKind("pneumothorax", ("left", "right")),
        FindingKind("consolidation", ("left", "right"), ("upper", "mid", "lower")),
        FindingKind("nodule", ("left", "right"), ("upper", "mid", "lower")),
        FindingKind("pulmonary edema"),
        FindingKind("atelectasis", ("left", "right"), ("mid", "lower")),
        FindingKind("hyperinflation"),
        FindingKind("pacemaker", ("left", "right"), graded=False),
        FindingKind("central line", ("left", "right"), graded=False),
        FindingKind("rib fracture", ("left", "right"), ("upper", "mid", "lower"), graded=False),
        FindingKind("scoliosis", ("left", "right")),
    )
}
FINDINGS: tuple[str, ...] = tuple(KINDS)


@dataclass(frozen=True)
class Finding:
    """An abnormality of one study.

    ``side`` is the patient's side, so "right" is on the left of the image; for scoliosis it is
    the side of the convexity. For an effusion, a pneumothorax or a nodule ``grade`` is its
    size: small, moderate or large.
    """

    name: str
    side: Side | None = None
    zone: Zone | None = None
    grade: Grade | None = None

    @property
    def level(self) -> int:
        """0, 1 or 2 for mild, moderate or severe; moderate where the finding has no grade."""
        return GRADES.index(self.grade or "moderate")


@dataclass(frozen=True)
class Study:
    """A frontal chest radiograph of a phantom patient, without its pixels and report.

    ``habitus`` runs from 0 (thin) to 1 (large), ``inspiration`` from 0 (poor) to 1
    (deep), ``exposure`` from 0 (under) to 1 (over); ``rotation`` is in degrees,
    positive towards the patient's left; ``seed`` fixes everything else.
    """

    uid: int
    patient: int
    sex: Literal["F", "M"]
    age: int
    habitus: float
    rotation: float
    inspiration: float
    exposure: float
    findings: tuple[Finding, ...]
    seed: int

    def finding(self, name: str) -> Finding | None:
        """Return the finding of that name, or None."""
        return next((f for f in self.findings if f.name == name), None)


# Clinical pictures: the probability of each, and of each finding given the picture.
# A finding not listed has the background rate.
BACKGROUND_RATE = 0.04
PICTURES: dict[str, tuple[float, dict[str, float]]] = {
    "well": (0.16, {}),
    "heart failure": (
        0.18,
        {"cardiomegaly": 0.9, "pulmonary edema": 0.75, "pleural effusion": 0.65, "pacemaker": 0.45},
    ),
    "infection": (
        0.16,
        {"consolidation": 0.9, "pleural effusion": 0.35, "atelectasis": 0.3},
    ),
    "emphysema": (0.15, {"hyperinflation": 0.95, "nodule": 0.4, "pneumothorax": 0.25}),
    "trauma": (
        0.13,
        {"rib fracture": 0.85, "pneumothorax": 0.55, "pleural effusion": 0.2, "atelectasis": 0.25},
    ),
    "intensive care": (
        0.12,
        {"central line": 0.95, "consolidation": 0.4, "pulmonary edema": 0.4, "atelectasis": 0.45},
    ),
    "spine": (0.10, {"scoliosis": 0.95, "atelectasis": 0.35, "nodule": 0.2}),
}


# Findings that persist from one study of a patient to the next.
CHRONIC = ("cardiomegaly", "hyperinflation", "pacemaker", "scoliosis")


def draw_patient(first_uid: int, patient: int, rng: np.random.Generator) -> list[Study]:
    """Draw the one to three studies of a patient.

    Sex, age, habitus and chronic findings are the same in all; the rest is drawn per study.
    """
    sex: Literal["F", "M"] = "F" if rng.random() < 0.5 else "M"
    age = int(rng.integers(19, 92))
    habitus = float(rng.beta(2.0, 2.5))
    names = list(PICTURES)
    picture = names[int(rng.choice(len(names), p=[PICTURES[n][0] for n in names]))]
    rates = PICTURES[picture][1]
    chronic: dict[str, Finding] = {}
    studies = []
    for offset in range(int(rng.choice((1, 2, 3), p=(0.8, 0.15, 0.05)))):
        present = [
            f for f in FINDINGS if f in chronic or rng.random() < rates.get(f, BACKGROUND_RATE)
        ]
        findings = tuple(chronic.get(f) or _draw_finding(KINDS[f], rng) for f in present)
        chronic = {f.name: f for f in findings if f.name in CHRONIC}
        studies.append(
            Study(
                uid=first_uid + offset,
                patient=patient,
                sex=sex,
                age=age,
                habitus=habitus,
                rotation=float(np.clip(rng.normal(0.0, 3.0), -8.0, 8.0)),
                inspiration=float(rng.beta(4.0, 2.0)),
                exposure=float(rng.beta(4.0, 4.0)),
                findings=findings,
                seed=int(rng.integers(2**31)),
            )
        )
    return studies


def _draw_finding(kind: FindingKind, rng: np.random.Generator) -> Finding:
    side: Side | None = None
    zone: Zone | None = None
    grade: Grade | None = None
    if kind.sides:
        weights = {"pacemaker": (0.85, 0.15), "central line": (0.25, 0.75)}.get(kind.name)
        side = kind.sides[int(rng.choice(len(kind.sides), p=weights))]
    if kind.zones:
        zone = kind.zones[int(rng.integers(len(kind.zones)))]
    if kind.graded:
        grade = GRADES[int(rng.choice(3, p=(0.4, 0.35, 0.25)))]
    return Finding(kind.name, side, zone, grade)


def draw_studies(patients: int, seed: int) -> list[Study]:
    """Draw the whole population; splits go by patient number."""
    rng = np.random.default_rng(seed)
    studies: list[Study] = []
    for patient in range(patients):
        studies += draw_patient(len(studies), patient, rng)
    return studies
