"""Draws the frontal chest radiograph of a phantom patient.

The picture is built the way a radiograph is: every structure adds to (or, for air,
takes away from) the attenuation along the line from the tube to the detector, and a
tone curve turns the sum into grey values. Anatomy is laid out in *chest coordinates*:
``x`` is 0 on the midline and grows towards the patient's left (the right of the
picture), ``y`` grows downwards, and one unit is about the width of the film. So the
same patient looks the same at any size.

A study is drawn in four steps: :func:`build_chest` draws a person's proportions and lets
findings that change the shape of the chest (a big heart, a curved spine) change them;
the *anatomy* functions paint that chest on a :class:`Film`; the *finding* functions
paint what is wrong; :meth:`Film.develop` makes the exposure. Each structure has a random
stream of its own, so that taking a finding away leaves the rest of the picture as it was.

What it does not know: true X-ray physics (no beam hardening, scatter or magnification),
lateral views, children, surgery, and the many diseases not listed in
:data:`mrrag.phantom.world.KINDS`. The pictures are for showing and testing software; they
are not fit to train or judge anything meant for patients.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from mrrag.phantom.world import Finding, Grade, Study

Array = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Hand = Literal[-1, 1]

RIGHT: Hand = -1
LEFT: Hand = 1
HANDS: tuple[Hand, Hand] = (RIGHT, LEFT)

MAX_VALUE = 4095
LETTERS: dict[str, list[list[tuple[float, float]]]] = {
    "L": [[(-0.5, -1), (-0.5, 1), (0.6, 1)]],
    "R": [
        [(-0.5, 1), (-0.5, -1), (0.3, -1), (0.6, -0.5), (0.3, 0), (-0.5, 0)],
        [(0.0, 0.0), (0.6, 1.0)],
    ],
}
SOFT = 256  # soft tissue is painted on a grid of this size, whatever the size of the film
LUNG_AIR = 0.56  # attenuation that a full depth of lung takes away


# ---------------------------------------------------------------- small tools


def stream(study: Study, name: str) -> np.random.Generator:
    """A random stream for one structure of one study, independent of all others."""
    return np.random.default_rng([study.seed, zlib.crc32(name.encode())])


def level(finding: Finding) -> int:
    """0, 1 or 2 for mild, moderate or severe."""
    order: dict[Grade, int] = {"mild": 0, "moderate": 1, "severe": 2}
    return order[finding.grade or "moderate"]


def hands(finding: Finding) -> tuple[Hand, ...]:
    """The sides of the chest that a finding is on."""
    return {"right": (RIGHT,), "left": (LEFT,)}.get(finding.side or "bilateral", HANDS)


def spline(knots: list[tuple[float, float]], closed: bool = False, steps: int = 10) -> Points:
    """Catmull-Rom curve through ``knots``, as [n, 2] points."""
    p = np.asarray(knots, dtype=np.float64)
    if closed:
        p = np.vstack([p[-1:], p, p[:2]])
    else:
        p = np.vstack([2 * p[0] - p[1], p, 2 * p[-1] - p[-2]])
    a, b, c, d = (q[:, None] for q in (p[:-3], p[1:-2], p[2:-1], p[3:]))
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    points: Points = curve.reshape(-1, 2)
    return points if closed else np.vstack([points, p[-2:-1]])


def resize(image: Array, size: int) -> Array:
    """Scale a square field to ``size`` x ``size`` pixels."""
    if image.shape[0] == size:
        return image
    scaled = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(scaled, dtype=np.float32)


@lru_cache(maxsize=64)
def _gauss(size: int, sigma: float) -> Array:
    """Matrix [size, size] that blurs a column by ``sigma`` pixels."""
    i = np.arange(size)
    weights = np.exp(-0.5 * ((i[:, None] - i[None, :]) / sigma) ** 2)
    matrix: Array = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def blur(image: Array, radius: float) -> Array:
    """Gaussian blur by ``radius`` chest units; wide blurs are done on a coarser grid."""
    size = image.shape[0]
    coarse = min(size, 64 if radius > 0.02 else 128)
    kernel = _gauss(coarse, radius * coarse)
    small: Array = (kernel @ resize(image, coarse) @ kernel.T).astype(np.float32)
    return np.maximum(resize(small, size), np.float32(0))


def soften(image: Array) -> Array:
    """The slightest of blurs, against stair-steps: weights 1 2 1 along both axes."""
    rows = image.copy()
    rows[1:-1] += 0.5 * (image[:-2] + image[2:])
    rows[1:-1] *= 0.5
    out = rows.copy()
    out[:, 1:-1] += 0.5 * (rows[:, :-2] + rows[:, 2:])
    out[:, 1:-1] *= 0.5
    return out


def cloud(rng: np.random.Generator, cells: int, octaves: int = 3) -> Array:
    """Smooth random texture on the soft grid, about zero mean and unit variance."""
    total = np.zeros((SOFT, SOFT), np.float32)
    for octave in range(octaves):
        n = cells * 2**octave
        total += resize(rng.standard_normal((n, n), dtype=np.float32), SOFT) * 0.6**octave
    scaled: Array = total / np.float32(max(float(total.std()), 1e-6))
    return scaled


def ramp(x: Array, low: float, high: float) -> Array:
    """Smooth step from 0 at ``low`` to 1 at ``high`` (which may lie below ``low``)."""
    t: Array = np.clip((x - low) / (high - low), 0.0, 1.0).astype(np.float32)
    return t * t * (np.float32(3) - np.float32(2) * t)


# ---------------------------------------------------------------- the film


@dataclass(frozen=True)
class Projection:
    """How the patient stands before the detector: chest coordinates to film coordinates."""

    zoom: float
    dx: float
    dy: float
    tilt: float

    def to_film(self, points: Points) -> Points:
        """Film coordinates (0..1) of [n, 2] chest points."""
        c, s = np.cos(self.tilt), np.sin(self.tilt)
        x, y = points[:, 0], points[:, 1] - 0.5
        film = np.stack([c * x - s * y + self.dx, s * x + c * y + self.dy], axis=1)
        return np.asarray(film * self.zoom + 0.5, dtype=np.float64)

    def grid(self, size: int) -> tuple[Array, Array]:
        """Chest ``x`` and ``y`` at the pixel centres of a film of ``size`` pixels."""
        c, s = np.cos(self.tilt), np.sin(self.tilt)
        u = ((np.arange(size) + 0.5) / size - 0.5) / self.zoom
        fx, fy = (u - self.dx)[None, :], (u - self.dy)[:, None]
        return (c * fx + s * fy).astype(np.float32), (c * fy - s * fx + 0.5).astype(np.float32)


class Ink:
    """A transparency for fine structures: lines and outlines drawn with anti-aliasing."""

    def __init__(self, view: Projection, size: int) -> None:
        self.view = view
        self.over = max(2, -(-512 // size))
        self.pixels = size * self.over
        self.image = Image.new("L", (self.pixels, self.pixels))
        self.pen = ImageDraw.Draw(self.image)

    def _path(self, points: Points) -> list[float]:
        path: list[float] = (self.view.to_film(points) * self.pixels - 0.5).ravel().tolist()
        return path

    def line(self, points: Points, width: float, value: float) -> None:
        """Line through chest points; thinner than a pixel, it fades instead."""
        wide = width * self.view.zoom * self.pixels
        pen = max(1, round(wide))
        shade = round(255 * value * min(1.0, wide / pen))
        self.pen.line(self._path(points), fill=shade, width=pen, joint="curve" if pen > 3 else None)

    def lines(self, paths: Points, widths: Points, values: Points) -> None:
        """Many lines of equally many points: [n, k, 2] paths, [n] widths, [n] values."""
        flat = self.view.to_film(paths.reshape(-1, 2)) * self.pixels - 0.5
        wide = widths * self.view.zoom * self.pixels
        pens = np.maximum(1, np.round(wide)).astype(int)
        shades = np.round(255 * values * np.minimum(1.0, wide / pens)).astype(int)
        rows: list[list[float]] = flat.reshape(len(paths), -1).tolist()
        for row, pen, shade in zip(rows, pens.tolist(), shades.tolist(), strict=True):
            self.pen.line(row, fill=shade, width=pen, joint="curve" if pen > 5 else None)

    def area(self, points: Points, value: float) -> None:
        """Filled polygon."""
        self.pen.polygon(self._path(points), fill=round(255 * value))

    def areas(self, outlines: Points, value: float) -> None:
        """Many filled polygons of equally many points, [n, k, 2]."""
        flat = self.view.to_film(outlines.reshape(-1, 2)) * self.pixels - 0.5
        rows: list[list[float]] = flat.reshape(len(outlines), -1).tolist()
        for row in rows:
            self.pen.polygon(row, fill=round(255 * value))

    def disc(self, x: float, y: float, radius: float, value: float) -> None:
        """Filled circle."""
        turn = np.linspace(0, 2 * np.pi, 24)
        self.area(np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], axis=1), value)

    def read(self) -> Array:
        """The drawing as [size, size] values 0..1."""
        return np.asarray(self.image.reduce(self.over), dtype=np.float32) / np.float32(255)


class Film:
    """Attenuation gathered so far.

    ``tissue`` and the lungs live on the soft grid, ``fine`` on the full one. ``air`` is
    the depth of aerated lung (0..1), ``vascular`` says where lung vessels show, and is
    negative where they show dark (air bronchograms).
    """

    def __init__(self, size: int, view: Projection) -> None:
        self.size = size
        self.view = view
        self.x, self.y = view.grid(SOFT)
        self.tissue: Array = np.zeros((SOFT, SOFT), np.float32)
        self.air: Array = np.zeros((SOFT, SOFT), np.float32)
        self.vascular: Array = np.zeros((SOFT, SOFT), np.float32)
        self.lung: dict[Hand, Array] = {}
        self.fine: Array = np.zeros((size, size), np.float32)
        self.devices = Ink(view, size)

    def ink(self) -> Ink:
        """A fresh transparency of the film's size."""
        return Ink(self.view, self.size)

    def mask(self, points: Points) -> Array:
        """Soft-grid mask (0..1) of the inside of a closed curve."""
        ink = Ink(self.view, SOFT)
        ink.area(points, 1.0)
        return soften(ink.read())

    def bump(self, x: float, y: float, rx: float, ry: float) -> Array:
        """Gaussian spot on the soft grid."""
        d = ((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2
        return np.exp(-0.5 * d).astype(np.float32)

    def develop(self, study: Study) -> npt.NDArray[np.uint16]:
        """Expose and process the film: noise, tone curve, collimation, 12-bit values."""
        rng = stream(study, "develop")
        depth = resize(self.tissue - LUNG_AIR * self.air, self.size) + self.fine
        np.maximum(depth, 0.0, out=depth)
        grain = stream(study, "grain").standard_normal((self.size, self.size), dtype=np.float32)
        grain[1:] += 0.6 * grain[:-1]
        grain[:, 1:] += 0.6 * grain[:, :-1]
        dose = 0.0042 * (1.5 - 0.8 * study.exposure) * (1.0 + 0.6 * study.habitus)
        depth += grain * (dose * np.sqrt(self.size / 512)) * (0.8 + 1.5 * depth * depth)
        centre = 0.85 - 0.20 * (study.exposure - 0.5) + rng.normal(0.0, 0.03)
        gamma = 1.75 - 0.30 * study.habitus + rng.normal(0.0, 0.1)
        curve = tone_curve(centre, gamma)
        value = curve[np.clip(depth * (len(curve) / 2.5), 0, len(curve) - 1).astype(np.int32)]
        value *= self._collimation(rng)
        marker = self._marker(rng)
        value = np.maximum(value, marker * 0.97)
        grey = np.clip(value * MAX_VALUE + 0.5, 0, MAX_VALUE)
        return np.asarray(grey, dtype=np.uint16)

    def _collimation(self, rng: np.random.Generator) -> Array:
        """Where the beam fell: 1 inside, near 0 beyond the shutters."""
        margin = np.where(rng.random(4) < 0.35, rng.uniform(0.005, 0.045, 4), -0.1)
        soft = 0.004
        u = ((np.arange(self.size) + 0.5) / self.size).astype(np.float32)
        across = ramp(u, margin[0] - soft, margin[0] + soft)
        across = across * ramp(u, 1 - margin[1] + soft, 1 - margin[1] - soft)
        down = ramp(u, margin[2] - soft, margin[2] + soft)
        down = down * ramp(u, 1 - margin[3] + soft, 1 - margin[3] - soft)
        return (down[:, None] * across[None, :]).astype(np.float32)

    def _marker(self, rng: np.random.Generator) -> Array:
        """The lead letter, on the side of the film that it names."""
        letter, x = ("L", 0.91) if rng.random() < 0.6 else ("R", 0.09)
        x, y, h = x + rng.uniform(-0.03, 0.03), rng.uniform(0.06, 0.13), rng.uniform(0.016, 0.022)
        strokes = LETTERS[letter]
        ink = Ink(Projection(1.0, 0.0, 0.0, rng.normal(0.0, 0.06)), self.size)
        for stroke in strokes:
            ink.line(np.array(stroke) * h + (x - 0.5, y), 0.3 * h, 1.0)
        if rng.random() < 0.4:
            turn = np.linspace(0, 2 * np.pi, 40)
            ring = np.stack([x - 0.5 + 1.8 * h * np.cos(turn), y + 1.8 * h * np.sin(turn)], axis=1)
            ink.line(ring, 0.15 * h, 0.9)
        return ink.read()


def tone_curve(centre: float, gamma: float) -> Array:
    """Display value 0..1 by attenuation, tabulated from 0 to 2.5; ``centre`` shows at 0.63."""
    depth = np.linspace(0.0, 2.5, 8192, endpoint=False)
    return (1.0 - np.exp(-((depth / centre) ** gamma))).astype(np.float32)


# ---------------------------------------------------------------- the chest


@dataclass
class Chest:
    """A person's proportions, in chest units. Findings may change them before drawing."""

    top: float  # apex of the lungs
    dome: dict[Hand, float]  # top of each diaphragm dome
    bottom: float  # where the heart rests, and the lower ribs are
    bulge: float  # height of the domes above the costophrenic angles
    width: float  # half the inner width of the thorax
    ctr: float  # cardiothoracic ratio
    lift: float  # how far the cardiac apex points up (+) or down (-)
    shift: float  # of heart and mediastinum, towards the patient's left
    turn: float  # of the breast bone and clavicles by rotation, towards the patient's left
    knob: float  # radius of the aortic knob
    hilum: float  # height of the hila
    slope: float  # how steeply ribs fall
    wall: float  # thickness of soft tissue outside the ribs
    curve: float = 0.0  # scoliosis: lateral excursion, towards the patient's left
    curve_at: float = 0.45
    aeration: float = 1.0
    broken: dict[tuple[Hand, int], float] = field(default_factory=dict)  # (side, rib): angle

    def cp(self, hand: Hand) -> float:
        """Height of the costophrenic angle."""
        return self.dome[hand] + self.bulge

    def spine(self, y: npt.ArrayLike) -> Points:
        """Lateral position of the spine at heights ``y``."""
        h = np.asarray(y, dtype=np.float64)
        main = np.exp(-(((h - self.curve_at) / 0.17) ** 2))
        lower = 0.55 * np.exp(-(((h - self.curve_at - 0.36) / 0.14) ** 2))
        return np.asarray(self.curve * (main - lower), dtype=np.float64)

    def heart_sides(self) -> tuple[float, float]:
        """Reach of the heart to the patient's right and left of the midline."""
        whole = self.ctr * 2 * self.width
        return 0.33 * whole - self.shift, 0.67 * whole + self.shift

    def lateral(self, y: float) -> float:
        """Half-width of the rib cage at height ``y``."""
        t = (y - self.top) / (self.bottom - self.top)
        ts = [-0.05, 0.0, 0.03, 0.12, 0.25, 0.42, 0.62, 0.85, 1.0, 1.3]
        ws = [0.2, 0.34, 0.46, 0.64, 0.79, 0.90, 0.965, 1.0, 1.0, 0.97]
        return float(np.interp(t, ts, ws)) * self.width

    def spot(
        self, hand: Hand, zone: str | None, across: float, jitter: float
    ) -> tuple[float, float]:
        """A place in one lung: ``across`` runs from its medial (0) to its lateral edge (1)."""
        t = {"upper": 0.22, "mid": 0.53, "lower": 0.84}[zone or "mid"] + jitter
        y = self.top + t * (self.dome[hand] - self.top)
        inner = 0.07
        if y > self.hilum:
            reach = self.heart_sides()[0 if hand == RIGHT else 1]
            inner += max(0.0, reach - 0.07) * min(1.0, (y - self.hilum) / 0.2)
        return hand * (inner + across * (self.lateral(y) - inner)), y

    def lung_outline(self, hand: Hand) -> Points:
        """Closed outline of one lung, [n, 2]."""
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


def build_chest(study: Study) -> Chest:
    """A chest for the study's patient, shaped by the findings that reshape a chest."""
    rng = stream(study, "chest")
    top = 0.115 + rng.normal(0.0, 0.010)
    dome = 0.645 + 0.095 * study.inspiration + rng.normal(0.0, 0.010)
    left_dome = dome + rng.uniform(0.012, 0.035)
    chest = Chest(
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
    for finding in study.findings:
        if finding.name in RESHAPE:
            RESHAPE[finding.name](chest, finding, stream(study, finding.name + " shape"))
    return chest


def enlarge_heart(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Cardiomegaly: a cardiothoracic ratio of about 0.55, 0.60 or 0.68."""
    chest.ctr = (0.55, 0.605, 0.68)[level(finding)] + rng.uniform(-0.012, 0.012)
    chest.lift -= 0.006 * level(finding)


def overinflate(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Hyperinflation: long dark lungs, flat low domes and a narrow upright heart."""
    g = level(finding)
    for hand in HANDS:
        chest.dome[hand] += (0.025, 0.05, 0.075)[g]
    chest.bottom += (0.025, 0.05, 0.075)[g]
    chest.bulge *= (0.72, 0.5, 0.28)[g]
    chest.top -= (0.006, 0.012, 0.02)[g]
    chest.aeration += (0.06, 0.11, 0.17)[g]
    chest.slope *= (0.92, 0.82, 0.7)[g]
    if chest.ctr < 0.5:
        chest.ctr -= (0.03, 0.06, 0.09)[g] + rng.uniform(0.0, 0.01)


def bend_spine(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Scoliosis: the thoracic spine swings out to the convex side."""
    reach = (0.022, 0.045, 0.075)[level(finding)] * rng.uniform(0.9, 1.1)
    chest.curve = hands(finding)[0] * reach
    chest.curve_at = 0.47 + rng.normal(0.0, 0.025)


def lose_volume(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Atelectasis: the dome on its side rises a little."""
    for hand in hands(finding):
        chest.dome[hand] -= (0.008, 0.02, 0.035)[level(finding)] * rng.uniform(0.9, 1.1)


def push_away(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Large effusions and pneumothoraces push the mediastinum to the other side."""
    if len(hands(finding)) == 1:
        chest.shift -= hands(finding)[0] * (0.0, 0.005, 0.022)[level(finding)]


def break_rib(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Choose the rib that is broken, and where along it."""
    first = {"upper": 2, "mid": 4, "lower": 7}[finding.zone or "mid"]
    rib = first + int(rng.integers(2))
    chest.broken[hands(finding)[0], rib] = float(rng.uniform(0.75, 1.15))


Reshape = Callable[[Chest, Finding, np.random.Generator], None]
RESHAPE: dict[str, Reshape] = {
    "cardiomegaly": enlarge_heart,
    "hyperinflation": overinflate,
    "scoliosis": bend_spine,
    "atelectasis": lose_volume,
    "pleural effusion": push_away,
    "pneumothorax": push_away,
    "rib fracture": break_rib,
}


# ---------------------------------------------------------------- anatomy: soft tissue


def paint_body(film: Film, chest: Chest, study: Study) -> None:
    """Skin outline with neck, shoulders, axillae and flanks."""
    rng = stream(study, "body")
    side = chest.width + chest.wall + 0.022
    neck = 0.085 + 0.03 * study.habitus + (0.01 if study.sex == "M" else 0.0)
    arm = rng.normal(0.0, 0.02)
    pit = 0.40 + rng.normal(0.0, 0.025)
    half = [(neck, -0.4), (neck, -0.05), (neck + 0.02, 0.03), (0.25, 0.085 + 0.3 * arm)]
    half += [(0.42, 0.12 + arm), (0.52, 0.19 + arm), (0.62, 0.35), (0.72, 0.6), (0.60, 0.66)]
    half += [(0.50, 0.5), (side + 0.012, pit), (side, pit + 0.12), (side - 0.005, 0.72)]
    half += [(side - 0.01 + 0.02 * study.habitus, 0.9), (side, 1.4)]
    right = spline(half) * (-1, 1)
    outline = film.mask(np.vstack([spline(half), right[::-1]]))
    thick = outline * (0.16 + 0.84 * blur(outline, 0.045) ** 2)
    across = np.abs(film.x)
    chest_depth = 0.82 + 0.10 * study.habitus
    depth = chest_depth + (0.20 + 0.05 * study.habitus) * ramp(film.y, 0.58, 0.9)
    depth -= 0.30 * ramp(film.y, 0.22, 0.02)
    depth -= 0.10 * ramp(across, 0.3, 0.5)
    film.tissue += thick * depth
    film.tissue += 0.012 * outline * cloud(rng, 6, 4)


def paint_breasts(film: Film, chest: Chest, study: Study) -> None:
    """Breast shadows of women; in men only the pectoral fold."""
    rng = stream(study, "breasts")
    size = rng.uniform(0.5, 1.0) * (0.7 + 0.6 * study.habitus)
    low = 0.59 + 0.0008 * study.age + 0.04 * study.habitus + rng.normal(0.0, 0.03)
    for hand in HANDS:
        x = hand * (0.215 + rng.normal(0.0, 0.008)) + 0.5 * chest.turn
        if study.sex == "F":
            rx, ry = 0.125 + 0.02 * size, 0.13 + 0.04 * size
            d = ((film.x - x) / rx) ** 2 + ((film.y - low + ry) / ry) ** 2
            fall = ramp(film.y, low - 1.6 * ry, low - 0.2 * ry)
            film.tissue += 0.24 * size * fall * np.sqrt(np.clip(1.0 - d, 0.0, 1.0))
        else:
            film.tissue += 0.05 * film.bump(x + 0.06 * hand, 0.36, 0.09, 0.07)


def paint_lungs(film: Film, chest: Chest, study: Study) -> None:
    """Two aerated lungs, thinner towards their edges, with a fine interstitial texture."""
    rng = stream(study, "lungs")
    texture = cloud(rng, 40, 3)
    for hand in HANDS:
        lung = film.mask(chest.lung_outline(hand))
        film.lung[hand] = lung
        deep = lung * (0.55 + 0.55 * blur(lung, 0.035) ** 1.5)
        deep *= 1.0 + hand * 0.012 * study.rotation
        film.air += deep * chest.aeration * (1.0 + 0.028 * texture)
        film.vascular += lung
        film.tissue += 0.09 * blur(lung, 0.012) * (1.0 - lung) * ramp(film.y, chest.bottom, 0.5)
    film.air *= 1.0 - 0.10 * study.habitus * ramp(film.y, 0.35, 0.7)
    # the lower lobes reach down behind the domes
    behind = ramp(film.y, chest.bottom + 0.12, chest.bottom + 0.02) * ramp(film.y, 0.5, 0.6)
    behind *= ramp(np.abs(film.x), chest.width, 0.8 * chest.width)
    film.tissue -= 0.05 * behind


def paint_heart(film: Film, chest: Chest, study: Study) -> None:
    """The heart: right atrium, left ventricle and apex, in front of the lung."""
    rng = stream(study, "heart")
    right, left = chest.heart_sides()
    base, floor = chest.hilum - 0.02, chest.bottom
    tall = floor - base
    waist = rng.uniform(0.40, 0.5)
    knots = [(0.0, base - 0.06), (0.05, base - 0.02), (waist * left, base + 0.12 * tall)]
    knots += [(0.70 * left, base + 0.34 * tall), (0.91 * left, base + 0.60 * tall)]
    knots += [(left, floor - 0.055 - chest.lift), (0.95 * left, floor - 0.005 - chest.lift)]
    knots += [(0.55 * left, floor + 0.05), (0.0, floor + 0.06), (-0.6 * right, floor + 0.05)]
    knots += [(-0.92 * right, floor - 0.03), (-right, floor - 0.10)]
    knots += [(-0.88 * right, base + 0.35 * tall), (-0.05, base + 0.05)]
    outline = spline(knots, closed=True)
    outline[:, 0] += 0.35 * chest.spine(outline[:, 1])
    heart = film.mask(outline)
    solid = heart * (0.55 + 0.45 * blur(heart, 0.03))
    film.air *= 1.0 - 0.82 * solid
    film.tissue += 0.10 * blur(solid, 0.02) * heart
    film.vascular *= 1.0 - 0.75 * heart


def paint_mediastinum(film: Film, chest: Chest, study: Study) -> None:
    """Great vessels, aortic knob, descending aorta, and the air of trachea and bronchi."""
    rng = stream(study, "mediastinum")
    s, top, hilum = chest.shift + 0.4 * chest.turn, chest.top, chest.hilum
    knob_y = top + 0.175 + rng.normal(0.0, 0.008)
    reach = 0.042 + chest.knob + rng.normal(0.0, 0.003)
    wide = 0.050 + 0.012 * study.habitus + rng.normal(0.0, 0.003)
    left = [(0.055, top - 0.2), (0.042, top + 0.02), (0.046, knob_y - 1.5 * chest.knob)]
    left += [(reach - 0.006, knob_y - 0.7 * chest.knob), (reach, knob_y)]
    left += [(reach - 0.008, knob_y + chest.knob), (0.05, knob_y + 1.8 * chest.knob)]
    left += [(0.058, hilum - 0.01), (0.055, hilum + 0.1), (0.045, chest.bottom + 0.1)]
    right = [(-0.03, chest.bottom + 0.1), (-0.035, hilum + 0.08), (-wide, hilum)]
    right += [(-wide, top + 0.12), (-wide - 0.004, top + 0.06), (-0.055, top - 0.2)]
    outline = np.vstack([spline(left), spline(right)])
    outline[:, 0] += s + 0.6 * chest.spine(outline[:, 1])
    shadow = film.mask(outline)
    film.air *= 1.0 - 0.9 * shadow
    film.tissue += 0.05 * shadow
    film.vascular *= 1.0 - shadow
    paint_airway(film, chest, s, rng)


def paint_airway(film: Film, chest: Chest, shift: float, rng: np.random.Generator) -> None:
    """Trachea and main bronchi, dark in the mediastinum."""
    carina = chest.hilum - 0.075
    half = 0.0135 + rng.normal(0.0, 0.001)
    bend = rng.uniform(-0.010, 0.002)
    ink = Ink(film.view, SOFT)
    ys = np.linspace(-0.2, carina, 12)
    xs = shift + bend * ramp(ys.astype(np.float32), 0.1, carina) + 0.7 * chest.spine(ys)
    ink.line(np.stack([xs, ys], axis=1), 2 * half, 1.0)
    for hand, fall in ((RIGHT, 0.055), (LEFT, 0.05)):
        reach = hand * (0.05 if hand == RIGHT else 0.065)
        arm = [(xs[-1], carina - 0.008), (xs[-1] + 0.5 * reach, carina + 0.55 * fall)]
        ink.line(spline([*arm, (xs[-1] + reach, carina + fall)]), 1.5 * half, 0.75)
    air = soften(soften(ink.read()))
    film.tissue -= 0.15 * air * ramp(film.y, carina + 0.09, carina - 0.02)


def paint_hila(film: Film, chest: Chest, study: Study) -> None:
    """Central pulmonary arteries; the left hilum sits a little higher."""
    rng = stream(study, "hila")
    congested = study.finding("pulmonary edema")
    gain = 1.0 + (0.25 * (1 + level(congested)) if congested else 0.0)
    for hand in HANDS:
        x = hand * 0.078 + chest.shift
        y = chest.hilum + (0.012 if hand == RIGHT else -0.014)
        spot = film.bump(x, y, 0.022, 0.028) + 0.6 * film.bump(
            x + 0.01 * hand, y + 0.05, 0.014, 0.03
        )
        spot *= gain * rng.uniform(0.8, 1.2) * film.lung[hand]
        film.air *= 1.0 - np.clip(0.42 * spot, 0.0, 0.8)


def paint_abdomen(film: Film, chest: Chest, study: Study) -> None:
    """Gas in the stomach under the left dome, sometimes in the bowel beside it."""
    rng = stream(study, "abdomen")
    dome = chest.dome[LEFT]
    x, y = 0.17 + rng.normal(0.0, 0.025), dome + rng.uniform(0.05, 0.075)
    rx, ry = rng.uniform(0.035, 0.075), rng.uniform(0.018, 0.035)
    gas = np.clip(1.2 - ((film.x - x) / rx) ** 2 - ((film.y - y) / ry) ** 2, 0.0, 1.0)
    if rng.random() < 0.5:
        bx, by, br = rng.uniform(0.2, 0.3), dome + rng.uniform(0.1, 0.16), rng.uniform(0.02, 0.04)
        d = ((film.x - bx) ** 2 + (film.y - by) ** 2) / br**2
        gas = np.maximum(gas, 0.8 * np.clip(1.2 - d, 0.0, 1.0))
    under = 1.0 - blur(film.lung[LEFT], 0.008)
    film.tissue -= rng.uniform(0.12, 0.34) * np.sqrt(gas) * under * ramp(film.y, dome, dome + 0.03)


# ---------------------------------------------------------------- anatomy: bones and vessels


def paint_spine(film: Film, chest: Chest, study: Study) -> None:
    """Vertebral bodies with end plates, pedicles and spinous processes."""
    rng = stream(study, "spine")
    tall = 0.041 * 1.022 ** np.arange(19)
    y = np.cumsum(tall) - 0.02 + rng.uniform(0.0, 0.03)
    x, half = chest.spine(y), 0.030 + 0.009 * y
    lean = (chest.spine(y + 0.01) - chest.spine(y - 0.01)) / 0.02

    def place(across: list[float], down: list[float], turned: float = 0.0) -> Points:
        """Points of every vertebra: across in half-widths, down in heights; [19, k, 2]."""
        u, v = np.outer(half, across), np.outer(tall, down)
        px = x[:, None] + u + lean[:, None] * v + turned * chest.turn
        return np.stack([px, y[:, None] + v - lean[:, None] * u], axis=2)

    column, detail = Ink(film.view, SOFT), Ink(film.view, SOFT)
    column.areas(place([-1, -0.9, -1, 1, 0.9, 1], [-0.43, 0, 0.43, 0.43, 0, -0.43]), 1.0)
    one = np.ones(len(y))
    for edge in (-0.41, 0.41):
        detail.lines(place([-1, 1], [edge, edge]), 0.005 * one, 0.65 * one)
    for hand in HANDS:
        detail.lines(place([0.65 * hand, 1.6 * hand], [-0.12, -0.25]), 0.012 * one, 0.30 * one)
        detail.lines(place([hand, 0.9 * hand, hand], [-0.41, 0, 0.41]), 0.004 * one, 0.40 * one)
        pedicle = place([0.55 * hand, 0.7 * hand], [-0.15, -0.1], 0.5)
        detail.lines(pedicle, 0.013 * one, 0.65 * one)
    detail.lines(place([0, 0], [0.15, 0.55], 1.2), 0.008 * one, 0.7 * one)
    film.tissue += 0.09 * soften(soften(column.read())) + 0.065 * soften(detail.read())


def rib_path(chest: Chest, hand: Hand, rib: int, angles: Points) -> Points:
    """Centre line of a rib, by the angle around the chest: 0 at the spine, pi in front."""
    gap = (chest.bottom - chest.top + 0.02) / 9.6
    y0 = chest.top - 0.022 + gap * (rib - 0.75 - 0.35 * (rib < 2))
    convex = hand * chest.curve
    y0 += 1.6 * convex * (y0 - chest.curve_at)
    drop = chest.slope * (0.045 + 0.0045 * rib)
    wide = chest.lateral(y0 + drop + 0.14 * chest.slope * 0.3) + 0.004
    behind = angles < np.pi / 2
    around = np.where(behind, 1.0 - np.cos(angles), 1.0 - 1.55 * np.cos(angles))
    fall = np.where(behind, np.sin(angles), 1.0)
    attach = float(chest.spine(y0))
    y = y0 + drop * around + (0.14 * chest.slope * wide - 0.5 * convex) * fall
    x = hand * (wide * np.sin(angles)) + attach * (0.5 + 0.5 * np.cos(angles))
    x += 0.25 * attach + chest.turn * (0.5 - 0.5 * np.cos(angles))
    return np.stack([x, y], axis=1)


def paint_ribs(film: Film, chest: Chest, study: Study) -> None:
    """Ten pairs of ribs: flat arches behind, steeper and fainter in front."""
    rng = stream(study, "ribs")
    back, front = film.ink(), film.ink()
    arc, arc_front = (
        np.linspace(0.10, 0.51 * np.pi, 28),
        np.linspace(0.49 * np.pi, 0.76 * np.pi, 20),
    )
    whole, forward, thick = [], [], 0.0195 + rng.normal(0.0, 0.0006)
    for rib in range(1, 11):
        for hand in HANDS:
            crack = chest.broken.get((hand, rib))
            if crack is None:
                whole.append(rib_path(chest, hand, rib, arc))
            else:
                inner, outer = arc[arc < crack], arc[arc > crack + 0.05]
                draw_bones(back, rib_path(chest, hand, rib, inner)[None], thick)
                step = np.array([0.0, 1.15 * thick])
                draw_bones(back, rib_path(chest, hand, rib, outer)[None] + step, thick)
            if rib <= 8:
                forward.append(rib_path(chest, hand, rib, arc_front))
    draw_bones(back, np.array(whole), thick)
    draw_bones(front, np.array(forward), 1.15 * thick, edge=0.65)
    middle = np.abs(film.x - chest.spine(film.y).astype(np.float32))
    seen = ramp(middle, 0.025, 0.10) * (1.0 - 0.5 * ramp(film.y, chest.bottom, chest.bottom + 0.1))
    calcium = 0.9 + 0.003 * (60 - study.age)
    bones = 0.135 * back.read() + 0.11 * front.read()
    film.fine += calcium * bones * resize(seen, film.size)


def draw_bones(
    ink: Ink, paths: Points, thick: float, edge: float = 1.0, marrow: float = 0.55
) -> None:
    """Bones along [n, k, 2] paths: marrow between two cortical lines."""
    along = np.gradient(paths, axis=1)
    across = np.stack([-along[..., 1], along[..., 0]], axis=2)
    across *= 0.5 * thick / (np.linalg.norm(across, axis=2, keepdims=True) + 1e-9)
    ink.areas(np.concatenate([paths + across, (paths - across)[:, ::-1]], axis=1), marrow)
    one = np.ones(len(paths))
    ink.lines(paths + across, 0.0024 * one, edge * one)
    ink.lines(paths - across, 0.0024 * one, 0.85 * edge * one)


def paint_shoulders(film: Film, chest: Chest, study: Study) -> None:
    """Clavicles, shoulder blades and the heads of the humeri."""
    rng = stream(study, "shoulders")
    ink, flat = film.ink(), Ink(film.view, SOFT)
    raise_ = rng.normal(0.0, 0.012)
    for hand in HANDS:
        inner = hand * (0.032 + rng.normal(0.0, 0.002)) + chest.turn
        y = chest.top + 0.095 + rng.normal(0.0, 0.004)
        knots = [(inner, y), (inner + hand * 0.07, y - 0.012), (hand * 0.21, y - 0.066)]
        knots += [(hand * 0.32, y - 0.082 + raise_), (hand * 0.415, y - 0.065 + raise_)]
        draw_bones(ink, spline(knots)[None], 0.0195, marrow=0.6)
        ink.disc(inner + hand * 0.006, y + 0.002, 0.012, 0.6)
        sx, sy = hand * (0.375 + rng.normal(0.0, 0.012)), chest.top + 0.06 + raise_
        out = hand * 0.055
        blade = [(sx - 0.9 * out, sy + 0.04), (sx + out, sy + 0.02), (sx + 0.7 * out, sy + 0.12)]
        blade += [(sx - 0.1 * out, sy + 0.29), (sx - 0.4 * out, sy + 0.28), (sx - out, sy + 0.15)]
        edge = spline(blade, closed=True)
        flat.area(edge, 0.5)
        flat.line(edge[18:36], 0.010, 1.0)
        ridge = [
            (sx - 0.8 * out, sy + 0.08),
            (sx + 0.5 * out, sy + 0.025),
            (sx + 1.2 * out, sy - 0.02),
        ]
        flat.line(spline(ridge), 0.011, 0.8)
        arm = [(sx + 1.55 * out, sy + 0.06), (sx + 2.3 * out, sy + 0.18), (sx + 4 * out, sy + 0.5)]
        flat.line(spline(arm), 0.045, 0.75)
        flat.disc(*arm[0], 0.036, 0.9)
    film.fine += 0.125 * ink.read()
    film.tissue += 0.10 * soften(soften(flat.read()))


def grow_vessels(
    hand: Hand, chest: Chest, rng: np.random.Generator, upper: float, lower: float
) -> tuple[Points, Points]:
    """Vessel tree of one lung: [n, 6, 2] paths and [n] widths, wide branches first."""
    count = 120
    wander = (0.12 * rng.standard_normal((count, 5))).tolist()
    chance = rng.random((count, 3)).tolist()
    hy = chest.hilum + (0.012 if hand == RIGHT else -0.012)
    stack: deque[tuple[float, float, float, float]] = deque()
    for spoke in np.radians([-84, -66, -44, -20, 4, 26, 44, 60, 76, 88]).tolist():
        angle = spoke + 0.12 * float(rng.standard_normal())
        width = (0.0070 * upper if angle < -0.2 else 0.0098 * lower) * rng.uniform(0.7, 1.25)
        x = hand * (0.070 + 0.012 * math.cos(angle)) + chest.shift
        stack.append((x, hy + 0.045 * math.sin(angle), angle, width))
    paths: list[list[tuple[float, float]]] = []
    widths: list[float] = []
    while stack and len(paths) < count:
        x, y, angle, width = stack.popleft()
        turns, (fork, side, stretch) = wander[len(paths)], chance[len(paths)]
        pace = (0.008 + 0.6 * width) * (0.7 + 0.7 * stretch)
        path = [(x, y)]
        for turn in turns:
            angle += turn
            x, y = x + pace * hand * math.cos(angle), y + pace * math.sin(angle)
            path.append((x, y))
        paths.append(path)
        widths.append(width)
        if width > 0.0016 and chest.top < y < chest.cp(hand) and abs(x) < chest.width:
            lean = (0.35 + 0.5 * fork) * (1.0 if side < 0.5 else -1.0)
            stack.append((x, y, angle - 0.3 * lean, 0.82 * width))
            stack.append((x, y, angle + lean, 0.60 * width))
    return np.array(paths), np.array(widths)


def paint_vessels(film: Film, chest: Chest, study: Study) -> None:
    """Pulmonary vessels, from the hila out to the periphery."""
    rng = stream(study, "vessels")
    upper, lower = 1.0, 1.0 + 0.25 * (1.0 - study.inspiration)
    edema = study.finding("pulmonary edema")
    if edema:
        upper *= (1.35, 1.6, 1.7)[level(edema)]
    ink = film.ink()
    for hand in HANDS:
        paths, widths = grow_vessels(hand, chest, rng, upper, lower)
        shades = np.minimum(1.0, 0.16 + 85 * widths)
        ink.lines(paths[::-1], widths[::-1], shades[::-1])
    film.fine += 0.125 * soften(ink.read()) * resize(film.vascular, film.size)


# ---------------------------------------------------------------- findings


def one_side(film: Film, chest: Chest, hand: Hand) -> Array:
    """Mask of one side of the chest. Opacities use it, not the lung, so no rim of air is left."""
    return ramp(hand * (film.x - 0.45 * chest.spine(film.y).astype(np.float32)), -0.01, 0.01)


def fill(film: Film, where: Array, much: float) -> None:
    """Replace the air of lung by fluid or tissue where ``where`` (0..1) says so."""
    film.air *= 1.0 - np.clip(much * where, 0.0, 1.0)


def paint_effusion(film: Film, chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Fluid in the pleural space: a meniscus that climbs the lateral wall."""
    g = level(finding)
    for hand in hands(finding):
        cp, dome = chest.cp(hand), chest.dome[hand]
        climb = (0.055, 0.12, 0.16)[g] * rng.uniform(0.9, 1.15)
        flat = (cp - 0.012, dome - 0.01, dome - 0.19)[g] + rng.normal(0.0, 0.006 + 0.01 * g)
        edge = np.abs(film.x - 0.45 * chest.spine(dome).astype(np.float32)) / chest.width
        rise = np.clip((edge - (0.62, 0.35, 0.2)[g]) / (0.38, 0.65, 0.8)[g], 0.0, 1.0)
        surface = flat - climb * rise ** (2.2, 2.4, 2.0)[g] + 0.004 * cloud(rng, 5, 1)
        fluid = one_side(film, chest, hand) * ramp(film.y - surface, -0.03, 0.022)
        fill(film, fluid, 0.97)
        film.tissue += (0.05, 0.05, 0.05)[g] * fluid * film.lung[hand]
        film.vascular *= 1.0 - fluid


def paint_pneumothorax(
    film: Film, chest: Chest, finding: Finding, rng: np.random.Generator
) -> None:
    """Air in the pleural space: the lung edge leaves the wall, no vessels beyond it."""
    g = level(finding)
    for hand in hands(finding):
        outline = chest.lung_outline(hand)
        hilum = np.array([hand * 0.07 + chest.shift, chest.hilum])
        down = (outline[:, 1] - chest.top) / (chest.cp(hand) - chest.top)
        wide = (np.abs(outline[:, 0]) - 0.05) / 0.06
        free = np.clip(wide, 0.0, 1.0) * np.interp(down, [0.3, 1.0], [1.0, (0.1, 0.25, 0.75)[g]])
        pull = (0.15, 0.30, 0.60)[g] * rng.uniform(0.9, 1.1)
        ripple = 1.0 + 0.08 * np.sin(9 * down + rng.uniform(0, 6))
        edge = outline + (hilum - outline) * (pull * free * ripple)[:, None]
        lung = film.mask(edge)
        space = film.lung[hand] * (1.0 - lung)
        fill(film, lung * film.lung[hand], (0.04, 0.12, 0.42)[g])
        film.air += 0.13 * space * (film.air > 0.3)
        film.vascular *= 1.0 - space
        ink = film.ink()
        ink.line(edge[free > 0.25], 0.0035, 1.0)
        film.fine += 0.085 * ink.read()


def paint_consolidation(
    film: Film, chest: Chest, finding: Finding, rng: np.random.Generator
) -> None:
    """Fluffy airspace opacity; bronchi stay aerated and show dark within it."""
    g = level(finding)
    for hand in hands(finding):
        x, y = chest.spot(hand, finding.zone, rng.uniform(0.35, 0.6), rng.normal(0.0, 0.03))
        rx, ry = (0.055, 0.085, 0.12)[g], (0.048, 0.075, 0.105)[g]
        rx, ry = rx * rng.uniform(0.9, 1.15), ry * rng.uniform(0.9, 1.15)
        shape = film.bump(x, y, rx, ry) + (0.17, 0.14, 0.10)[g] * cloud(rng, 12, 4)
        opacity = ramp(shape, (0.30, 0.24, 0.2)[g], (1.0, 0.9, 0.7)[g]) * one_side(
            film, chest, hand
        )
        fill(film, opacity, (0.55, 0.75, 0.92)[g])
        film.vascular *= 1.0 - (1.2, 1.45, 1.6)[g] * opacity


def paint_nodule(film: Film, chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """A round, well-defined opacity."""
    g = level(finding)
    for hand in hands(finding):
        x, y = chest.spot(hand, finding.zone, rng.uniform(0.35, 0.75), rng.normal(0.0, 0.04))
        radius = 0.5 * (0.026, 0.038, 0.055)[g] * rng.uniform(0.92, 1.1)
        squash = rng.uniform(0.9, 1.1)
        gx, gy = film.view.grid(film.size)
        d = ((gx - x) * squash) ** 2 + ((gy - y) / squash) ** 2
        ball = np.sqrt(np.clip(1.15 - d / radius**2, 0.0, 1.0))
        film.fine += (0.17, 0.20, 0.24)[g] * ball


def paint_edema(film: Film, chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Bat-wing haze about the hila, and septal lines at the lung bases."""
    g = level(finding)
    ink = film.ink()
    for hand in HANDS:
        x, y = hand * 0.135 + chest.shift, chest.hilum + 0.05
        wing = film.bump(x, y, (0.065, 0.08, 0.095)[g], (0.10, 0.115, 0.135)[g])
        fluff = np.clip(wing * (1.0 + (0.12, 0.22, 0.3)[g] * cloud(rng, 14, 4)), 0.0, 1.0)
        haze = (0.30, 0.46, 0.68)[g] * fluff + (0.04, 0.08, 0.14)[g] * ramp(film.y, 0.25, 0.6)
        fill(film, haze * film.lung[hand], 1.0)
        film.vascular *= 1.0 - (0.1, 0.3, 0.6)[g] * fluff
        for _ in range((5, 8, 9)[g]):
            ly = chest.dome[hand] + rng.uniform(-0.16, 0.03)
            lx = hand * (chest.lateral(ly) - 0.006)
            tip = (lx - hand * rng.uniform(0.02, 0.035), ly + rng.normal(0.0, 0.003))
            ink.line(np.array([(lx, ly), tip]), 0.0022, 1.0)
    film.fine += (0.05, 0.06, 0.06)[g] * ink.read()


def paint_atelectasis(film: Film, chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Plate-like bands across the lung, about parallel."""
    g = level(finding)
    for hand in hands(finding):
        ink = film.ink()
        lean = hand * rng.uniform(-0.15, 0.35)
        x, y = chest.spot(hand, finding.zone, rng.uniform(0.45, 0.6), rng.normal(0.0, 0.02))
        for band in range((1, 2, 3)[g]):
            mx, my = x + rng.normal(0.0, 0.012), y + 0.034 * (band - 0.5 * g)
            reach = (0.055, 0.075, 0.09)[g] * rng.uniform(0.85, 1.15)
            tilt, sag = reach * (lean + rng.normal(0.0, 0.05)), rng.uniform(-0.006, 0.006)
            path = spline([(mx - reach, my - tilt), (mx, my + sag), (mx + reach, my + tilt)])
            thick = (0.008, 0.011, 0.016)[g] * rng.uniform(0.85, 1.2)
            bell = np.sin(np.linspace(0.3, np.pi - 0.3, len(path)))[:, None] * (0.0, 0.5 * thick)
            ink.area(np.vstack([path + bell, (path - bell)[::-1]]), 1.0)
        streak = soften(soften(ink.read())) * resize(film.lung[hand], film.size)
        film.fine += (0.13, 0.16, 0.19)[g] * streak


def paint_pacemaker(film: Film, chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Generator below the clavicle, leads through the great veins into the right heart."""
    right, left = chest.heart_sides()
    atrium = (-0.75 * right, chest.dome[RIGHT] - 0.13)
    ventricle = (0.55 * left, chest.dome[LEFT] - 0.005)
    cava = -0.045 + chest.shift
    ink = film.devices
    for hand in hands(finding):
        x, y = hand * (0.255 + rng.normal(0.0, 0.012)), chest.top + 0.15 + rng.normal(0.0, 0.012)
        top = chest.top + 0.085
        way = [(x - hand * 0.03, y - 0.03), (x - hand * 0.06, top + 0.01), (hand * 0.13, top)]
        way += [(-0.02, top + 0.05)] if hand == LEFT else [(-0.075, top + 0.02)]
        way += [(cava, top + 0.12), (cava - 0.004, chest.hilum)]
        sag = [(-0.5 * right, chest.dome[RIGHT] - 0.06), (0.1 * left, chest.dome[LEFT] + 0.005)]
        ink.line(spline([*way, *sag, ventricle]), 0.0042, 0.62)
        if rng.random() < 0.7:
            hook = [(-0.45 * right, atrium[1] + 0.03), atrium]
            ink.line(spline([(px + 0.006, py) for px, py in way] + hook), 0.0042, 0.62)
            ink.disc(*atrium, 0.005, 0.9)
        ink.disc(*ventricle, 0.005, 0.9)
        w, h, turn = rng.uniform(0.036, 0.042), rng.uniform(0.030, 0.036), rng.normal(0.0, 0.25)
        t = np.linspace(0, 2 * np.pi, 60)
        box = np.stack([np.cos(t), np.sin(t)], axis=1)
        box = np.sign(box) * np.abs(box) ** 0.45 * (w, h)
        spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        ink.area(box @ spin + (x, y), 0.85)
        ink.area((box * (0.75, 0.5) + (0, 0.2 * h)) @ spin + (x, y), 1.0)


def paint_central_line(
    film: Film, chest: Chest, finding: Finding, rng: np.random.Generator
) -> None:
    """Catheter from the neck or below the clavicle to the cavoatrial junction."""
    cava = -0.042 + chest.shift
    tip = (cava - 0.004, chest.hilum + 0.035 + rng.normal(0.0, 0.012))
    for hand in hands(finding):
        y = chest.top + 0.08
        if rng.random() < 0.6:
            way = [(hand * 0.085, y - 0.35), (hand * 0.075, y - 0.1), (hand * 0.06, y - 0.02)]
        else:
            way = [(hand * 0.30, y + 0.07), (hand * 0.20, y + 0.015), (hand * 0.10, y)]
        way += [(0.0, y + 0.055)] if hand == LEFT else [(-0.056, y + 0.04)]
        path = spline([*way, (cava, y + 0.12), (cava - 0.003, chest.hilum - 0.03), tip])
        film.devices.line(path, 0.0046, 0.30)


Paint = Callable[[Film, Chest, Finding, np.random.Generator], None]
PAINT: dict[str, Paint] = {
    "pulmonary edema": paint_edema,
    "consolidation": paint_consolidation,
    "nodule": paint_nodule,
    "atelectasis": paint_atelectasis,
    "pneumothorax": paint_pneumothorax,
    "pleural effusion": paint_effusion,
    "pacemaker": paint_pacemaker,
    "central line": paint_central_line,
}


# ---------------------------------------------------------------- render


def position(study: Study) -> Projection:
    """How the patient was placed; larger patients fill more of the film."""
    rng = stream(study, "view")
    zoom = 1.12 - 0.10 * study.habitus + rng.normal(0.0, 0.025)
    dx, dy = rng.normal(0.0, 0.012), rng.normal(0.01, 0.012)
    return Projection(zoom, dx, dy, rng.normal(0.0, 0.012))


def render(study: Study, size: int = 512) -> npt.NDArray[np.uint16]:
    """Draw the frontal radiograph of a study.

    Parameters
    ----------
    study : Study
        Whom to draw. ``study.seed`` fixes everything that its other fields leave open.
    size : int
        Height and width of the picture in pixels, at least 64. The anatomy is the same
        at any size; the grain is not.

    Returns
    -------
    ndarray of uint16, shape [size, size]
        12-bit grey values, 0..4095, MONOCHROME2: air is dark, bone and metal bright.
        Row 0 is the head end; the patient's right is on the left of the picture.
    """
    if size < 64:
        raise ValueError(f"size must be at least 64, not {size}")
    chest = build_chest(study)
    film = Film(size, position(study))
    for paint in (paint_body, paint_breasts, paint_lungs, paint_heart, paint_mediastinum):
        paint(film, chest, study)
    for paint in (paint_hila, paint_abdomen, paint_spine, paint_ribs, paint_shoulders):
        paint(film, chest, study)
    for name, paint_finding in PAINT.items():
        finding = study.finding(name)
        if finding:
            paint_finding(film, chest, finding, stream(study, name))
    paint_vessels(film, chest, study)
    if film.devices.image.getbbox():
        film.fine += 1.3 * film.devices.read()
    return film.develop(study)
