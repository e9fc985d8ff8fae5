"""A person's chest in proportions, from which the anatomy is drawn.

Findings may change them before anything is drawn (:mod:`mrrag.phantom.disease`). Lengths are
in chest coordinates, as described in :mod:`mrrag.phantom.film`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mrrag.phantom.film import LEFT, RIGHT, Hand, Points, spline, stream
from mrrag.phantom.world import Study


@dataclass
class Chest:
    """A person's proportions, in chest units. Findings may change them before drawing."""

    top: float  # apex of the lungs
    dome: dict[Hand, float]  # top of each diaphragm dome
    bottom: float  # lower border of the heart and the rib cage
    bulge: float  # height of the domes above the costophrenic angles
    width: float  # half the inner width of the thorax
    ctr: float  # cardiothoracic ratio
    lift: float  # how far the cardiac apex points up (+) or down (-)
    shift: float  # of heart and mediastinum, towards the patient's left
    turn: float  # of the breast bone and clavicles by rotation, towards the patient's left
    knob: float  # radius of the aortic knob
    hilum: float  # height of the hila
    slope: float  # how steeply ribs fall
    wall: float  # thickness of the soft tissue outside the ribs
    curve: float = 0.0  # scoliosis: lateral excursion, towards the patient's left
    curve_at: float = 0.45
    aeration: float = 1.0
    broken: dict[tuple[Hand, int], float] = field(default_factory=dict)  # (side, rib): angle

    def cp(self, hand: Hand) -> float:
        """Return the height of the costophrenic angle."""
        return self.dome[hand] + self.bulge

    def spine(self, y: npt.ArrayLike) -> Points:
        """Return the lateral position of the spine at heights ``y``."""
        h = np.asarray(y, dtype=np.float64)
        main = np.exp(-(((h - self.curve_at) / 0.17) ** 2))
        lower = 0.55 * np.exp(-(((h - self.curve_at - 0.36) / 0.14) ** 2))
        return np.asarray(self.curve * (main - lower), dtype=np.float64)

    def heart_sides(self) -> tuple[float, float]:
        """Return how far the heart reaches to the patient's right and left of the midline."""
        whole = self.ctr * 2 * self.width
        return 0.33 * whole - self.shift, 0.67 * whole + self.shift

    def lateral(self, y: float) -> float:
        """Return the half-width of the rib cage at height ``y``."""
        t = (y - self.top) / (self.bottom - self.top)
        ts = [-0.05, 0.0, 0.03, 0.12, 0.25, 0.42, 0.62, 0.85, 1.0, 1.3]
        ws = [0.2, 0.34, 0.46, 0.64, 0.79, 0.90, 0.965, 1.0, 1.0, 0.97]
        return float(np.interp(t, ts, ws)) * self.width

    def spot(
        self, hand: Hand, zone: str | None, across: float, jitter: float
    ) -> tuple[float, float]:
        """Return a point in one lung; ``across`` is 0 at its medial, 1 at its lateral edge."""
        t = {"upper": 0.22, "mid": 0.53, "lower": 0.84}[zone or "mid"] + jitter
        y = self.top + t * (self.dome[hand] - self.top)
        inner = 0.07
        if y > self.hilum:
            reach = self.heart_sides()[0 if hand == RIGHT else 1]
            inner += max(0.0, reach - 0.07) * min(1.0, (y - self.hilum) / 0.2)
        return hand * (inner + across * (self.lateral(y) - inner)), y

    def lung_outline(self, hand: Hand) -> Points:
        """Return the closed outline of one lung, [n, 2]."""
        top, dome, cp, w = self.top, self.dome[hand], self.cp(hand), self.width
        long = dome - top
        outer = [(0.15 * w, top + 0.08), (0.20 * w, top + 0.025), (0.31 * w, top)]
        outer += [(0.47 * w, top + 0.03 * long)]
        for t in (0.12, 0.25, 0.42, 0.62, 0.85):
            outer.append((self.lateral(top + t * long), top + t * long))
        outer += [(w, 0.5 * (dome + cp)), (0.985 * w, cp)]
        b = cp - dome
        base = [(0.985 * w, cp), (0.9 * w, dome + 0.50 * b), (0.72 * w, dome + 0.13 * b)]
        base += [(0.5 * w, dome), (0.3 * w, dome + 0.12 * b), (0.1 * w, dome + 0.45 * b)]
        medial = [(0.08 * w, dome), (0.06 * w, 0.5 * (top + dome)), (0.09 * w, top + 0.12)]
        half = np.vstack([spline(outer), spline(base), np.array(medial)])
        half[:, 0] *= hand
        half[:, 0] += 0.45 * self.spine(half[:, 1])
        return half


def healthy_chest(study: Study) -> Chest:
    """Return the proportions of the study's patient without any finding."""
    rng = stream(study, "chest")
    top = 0.115 + rng.normal(0.0, 0.010)
    dome = 0.645 + 0.095 * study.inspiration + rng.normal(0.0, 0.010)
    left_dome = dome + rng.uniform(0.012, 0.035)
    return Chest(
        top=top,
        dome={RIGHT: dome, LEFT: left_dome},
        bottom=left_dome,
        bulge=rng.uniform(0.075, 0.105),
        width=0.355 + rng.normal(0.0, 0.012) + (0.008 if study.sex == "M" else -0.008),
        ctr=rng.uniform(0.42, 0.475) + 0.0001 * study.age,
        lift=rng.normal(0.0, 0.012),
        shift=0.0018 * study.rotation + rng.normal(0.0, 0.004),
        turn=0.0042 * study.rotation,
        knob=0.024 + 0.00015 * study.age + rng.normal(0.0, 0.002),
        hilum=top + (0.53 + rng.normal(0.0, 0.02)) * (dome - top),
        slope=rng.uniform(0.85, 1.2),
        wall=0.012 + 0.08 * study.habitus,
    )
