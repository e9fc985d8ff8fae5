"""The film: attenuation summed along the beam, and its exposure to grey values.

A radiograph is built as it is in reality: every structure adds attenuation along the line
from the tube to the detector (air takes some away), and a tone curve maps the sum to grey
values. Structures are given in *chest coordinates*: ``x`` is 0 on the midline and grows
towards the patient's left (the right of the image), ``y`` grows downwards, and one unit is
about the width of the film. So the same patient looks the same at any image size.

This module knows no anatomy and no disease.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from mrrag.phantom.world import Study

Array = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Hand = Literal[-1, 1]  # the sign of x: the patient's right or left

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
SOFT = 256  # px: the grid of soft tissue, whatever the image size
LUNG_AIR = 0.56  # attenuation removed by a full depth of lung


# Tools


def stream(study: Study, name: str) -> np.random.Generator:
    """Return the random stream of one structure of one study, independent of all others."""
    return np.random.default_rng([study.seed, zlib.crc32(name.encode())])


def spline(knots: list[tuple[float, float]], closed: bool = False, steps: int = 10) -> Points:
    """Return the Catmull-Rom curve through ``knots``, as [n, 2] points."""
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
    """Return the matrix [size, size] that blurs a column by ``sigma`` pixels."""
    i = np.arange(size)
    weights = np.exp(-0.5 * ((i[:, None] - i[None, :]) / sigma) ** 2)
    matrix: Array = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def blur(image: Array, radius: float) -> Array:
    """Blur by a Gaussian of ``radius`` chest units; wide blurs use a coarser grid."""
    size = image.shape[0]
    coarse = min(size, 64 if radius > 0.02 else 128)
    kernel = _gauss(coarse, radius * coarse)
    small: Array = (kernel @ resize(image, coarse) @ kernel.T).astype(np.float32)
    return np.maximum(resize(small, size), np.float32(0))


def soften(image: Array) -> Array:
    """Smooth stair-steps with the weights 1 2 1 along both axes."""
    rows = image.copy()
    rows[1:-1] += 0.5 * (image[:-2] + image[2:])
    rows[1:-1] *= 0.5
    out = rows.copy()
    out[:, 1:-1] += 0.5 * (rows[:, :-2] + rows[:, 2:])
    out[:, 1:-1] *= 0.5
    return out


def cloud(rng: np.random.Generator, cells: int, octaves: int = 3) -> Array:
    """Return smooth random texture on the soft grid: mean about 0, variance 1."""
    total = np.zeros((SOFT, SOFT), np.float32)
    for octave in range(octaves):
        n = cells * 2**octave
        total += resize(rng.standard_normal((n, n), dtype=np.float32), SOFT) * 0.6**octave
    scaled: Array = total / np.float32(max(float(total.std()), 1e-6))
    return scaled


def ramp(x: Array, low: float, high: float) -> Array:
    """Return a smooth step from 0 at ``low`` to 1 at ``high``, which may be below ``low``."""
    t: Array = np.clip((x - low) / (high - low), 0.0, 1.0).astype(np.float32)
    return t * t * (np.float32(3) - np.float32(2) * t)


# The film


@dataclass(frozen=True)
class Projection:
    """The patient's position at the detector: maps chest to film coordinates."""

    zoom: float
    dx: float
    dy: float
    tilt: float

    def to_film(self, points: Points) -> Points:
        """Return the film coordinates (0..1) of [n, 2] chest points."""
        c, s = np.cos(self.tilt), np.sin(self.tilt)
        x, y = points[:, 0], points[:, 1] - 0.5
        film = np.stack([c * x - s * y + self.dx, s * x + c * y + self.dy], axis=1)
        return np.asarray(film * self.zoom + 0.5, dtype=np.float64)

    def grid(self, size: int) -> tuple[Array, Array]:
        """Return chest ``x`` and ``y`` at the pixel centres of an image of ``size`` pixels."""
        c, s = np.cos(self.tilt), np.sin(self.tilt)
        u = ((np.arange(size) + 0.5) / size - 0.5) / self.zoom
        fx, fy = (u - self.dx)[None, :], (u - self.dy)[:, None]
        return (c * fx + s * fy).astype(np.float32), (c * fy - s * fx + 0.5).astype(np.float32)


class Ink:
    """A layer for fine structures: lines and outlines drawn with anti-aliasing."""

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
        """Draw a line through chest points; a line thinner than a pixel is drawn fainter."""
        wide = width * self.view.zoom * self.pixels
        pen = max(1, round(wide))
        shade = round(255 * value * min(1.0, wide / pen))
        self.pen.line(self._path(points), fill=shade, width=pen, joint="curve" if pen > 3 else None)

    def lines(self, paths: Points, widths: Points, values: Points) -> None:
        """Draw lines of k points each: [n, k, 2] paths, [n] widths, [n] values."""
        flat = self.view.to_film(paths.reshape(-1, 2)) * self.pixels - 0.5
        wide = widths * self.view.zoom * self.pixels
        pens = np.maximum(1, np.round(wide)).astype(int)
        shades = np.round(255 * values * np.minimum(1.0, wide / pens)).astype(int)
        rows: list[list[float]] = flat.reshape(len(paths), -1).tolist()
        for row, pen, shade in zip(rows, pens.tolist(), shades.tolist(), strict=True):
            self.pen.line(row, fill=shade, width=pen, joint="curve" if pen > 5 else None)

    def area(self, points: Points, value: float) -> None:
        """Draw a filled polygon."""
        self.pen.polygon(self._path(points), fill=round(255 * value))

    def areas(self, outlines: Points, value: float) -> None:
        """Draw filled polygons of k points each, [n, k, 2]."""
        flat = self.view.to_film(outlines.reshape(-1, 2)) * self.pixels - 0.5
        rows: list[list[float]] = flat.reshape(len(outlines), -1).tolist()
        for row in rows:
            self.pen.polygon(row, fill=round(255 * value))

    def disc(self, x: float, y: float, radius: float, value: float) -> None:
        """Draw a filled circle."""
        turn = np.linspace(0, 2 * np.pi, 24)
        self.area(np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], axis=1), value)

    def read(self) -> Array:
        """Return the drawing as [size, size] values 0..1."""
        return np.asarray(self.image.reduce(self.over), dtype=np.float32) / np.float32(255)


class Film:
    """Attenuation so far.

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
        """Return an empty layer of the image's size."""
        return Ink(self.view, self.size)

    def mask(self, points: Points) -> Array:
        """Return the soft-grid mask (0..1) of the inside of a closed curve."""
        ink = Ink(self.view, SOFT)
        ink.area(points, 1.0)
        return soften(ink.read())

    def bump(self, x: float, y: float, rx: float, ry: float) -> Array:
        """Return a Gaussian spot on the soft grid."""
        d = ((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2
        return np.exp(-0.5 * d).astype(np.float32)

    def develop(self, study: Study) -> npt.NDArray[np.uint16]:
        """Return the exposed image: noise, tone curve, collimation, 12-bit values."""
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
        """Return the collimated field: 1 inside, near 0 behind the shutters."""
        margin = np.where(rng.random(4) < 0.35, rng.uniform(0.005, 0.045, 4), -0.1)
        soft = 0.004
        u = ((np.arange(self.size) + 0.5) / self.size).astype(np.float32)
        across = ramp(u, margin[0] - soft, margin[0] + soft)
        across = across * ramp(u, 1 - margin[1] + soft, 1 - margin[1] - soft)
        down = ramp(u, margin[2] - soft, margin[2] + soft)
        down = down * ramp(u, 1 - margin[3] + soft, 1 - margin[3] - soft)
        return (down[:, None] * across[None, :]).astype(np.float32)

    def _marker(self, rng: np.random.Generator) -> Array:
        """Return the lead side marker, L or R, on the side that it names."""
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
    """Tabulate the display value 0..1 for attenuation 0 to 2.5; ``centre`` maps to 0.63."""
    depth = np.linspace(0.0, 2.5, 8192, endpoint=False)
    return (1.0 - np.exp(-((depth / centre) ** gamma))).astype(np.float32)


def projection_of(study: Study) -> Projection:
    """Return the study's projection; larger patients fill more of the film."""
    rng = stream(study, "view")
    zoom = 1.12 - 0.10 * study.habitus + rng.normal(0.0, 0.025)
    dx, dy = rng.normal(0.0, 0.012), rng.normal(0.01, 0.012)
    return Projection(zoom, dx, dy, rng.normal(0.0, 0.012))
