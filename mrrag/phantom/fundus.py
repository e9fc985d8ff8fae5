"""Draw the fundus of a phantom eye: disc, cup, vessels and macula, with or without glaucoma.

The image resembles one of a scanning laser ophthalmoscope: grey, with a bright disc, a
brighter cup and dark vessels. Glaucoma changes what a clinician looks at first: the cup takes
up more of the disc (the vertical cup-to-disc ratio), the inferior rim is thin, and a wedge of
lost nerve fibres below it is dark.

This module knows no real optics and no other disease. The images are for showing and testing
software. They are not fit to train or judge anything meant for patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from mrrag.phantom.report import QuestionAnswer

Array = npt.NDArray[np.float32]

ROWS, COLUMNS = 664, 512  # px, as in Harvard-FairVLMed
OVER = 2  # supersampling of the vessels, against stair-steps
GLAUCOMA_RATE = 0.5
DISC = 0.085  # radius, in columns


@dataclass(frozen=True)
class Eye:
    """An eye of a phantom patient. ``ratio`` is the vertical cup-to-disc ratio."""

    uid: int
    sex: Literal["female", "male"]
    age: int
    side: Literal["left", "right"]
    glaucoma: bool
    ratio: float
    seed: int

    @property
    def patient(self) -> int:
        """The patient's number, from 0: one eye each."""
        return self.uid - 1


def draw_eyes(count: int, seed: int) -> list[Eye]:
    """Draw ``count`` patients, one eye each; the ratios with and without glaucoma overlap."""
    rng = np.random.default_rng((seed, 11))
    eyes = []
    for uid in range(1, count + 1):
        glaucoma = bool(rng.random() < GLAUCOMA_RATE)
        ratio = rng.normal(0.74, 0.08) if glaucoma else rng.normal(0.38, 0.1)
        eyes.append(
            Eye(
                uid=uid,
                sex="female" if rng.random() < 0.5 else "male",
                age=int(rng.integers(35, 90)),
                side="left" if rng.random() < 0.5 else "right",
                glaucoma=glaucoma,
                ratio=round(float(np.clip(ratio, 0.15, 0.95)), 2),
                seed=int(rng.integers(2**31)),
            )
        )
    return eyes


def write_note(eye: Eye) -> tuple[str, str]:
    """Return a clinical note and its summary, both consistent with the image."""
    rng = np.random.default_rng((eye.seed, 1))
    pressure = int(np.clip(rng.normal(23 if eye.glaucoma else 15, 2.5), 9, 38))
    rim = "inferior rim thinning" if eye.glaucoma else "rim healthy"
    what = "glaucoma" if eye.glaucoma else "no glaucoma"
    plan = "start latanoprost at night" if eye.glaucoma else "review in a year"
    eyes = {"left": "OS", "right": "OD"}[eye.side]
    note = (
        f"{eye.age} y.o. {eye.sex}. C/D ratio {eyes}: {eye.ratio:.2f}; {rim}. "
        f"IOP today {pressure}. Assessment: {what}. Plan: {plan}."
    )
    size = "Large" if eye.ratio >= 0.6 else "Normal"
    summary = (
        f"{eye.age}-year-old {eye.sex} with {what}. {size} cup-to-disc ratio of {eye.ratio:.2f} "
        f"in the {eye.side} eye, {rim}. Pressure {pressure} mmHg."
    )
    return note, summary


def ask_about(eye: Eye) -> list[QuestionAnswer]:
    """Return questions about what the image shows, with their answers."""
    rows = (
        ("Does the patient have glaucoma?", eye.glaucoma, "glaucoma"),
        ("Is the cup-to-disc ratio enlarged?", eye.ratio >= 0.6, "cup"),
    )
    return [
        QuestionAnswer(question, "Yes." if yes else "No.", "closed", finding)
        for question, yes, finding in rows
    ]


def render_eye(eye: Eye, columns: int = COLUMNS) -> npt.NDArray[np.uint8]:
    """Draw the image, uint8 [rows, columns], with rows : columns as 664 : 512."""
    rows = round(columns * ROWS / COLUMNS)
    rng = np.random.default_rng((eye.seed, 2))
    # Eye coordinates: one unit is the width; x grows to the right, y downwards, from the
    # middle. In a right eye the disc is right of the middle, towards the nose.
    nose = 1.0 if eye.side == "right" else -1.0
    x = ((np.arange(columns) + 0.5) / columns - 0.5).astype(np.float32)[None, :]
    y = ((np.arange(rows) + 0.5) / columns - 0.5 * rows / columns).astype(np.float32)[:, None]
    disc = np.array([nose * rng.normal(0.16, 0.015), rng.normal(0.0, 0.015)])

    light = 0.42 + 0.025 * _cloud(rng, rows, columns, 5) + 0.012 * _cloud(rng, rows, columns, 40)
    light *= 1.05 - 0.9 * (x * x + 0.6 * y * y)
    macula = (x + nose * 0.11) ** 2 + (y - 0.02) ** 2
    light -= 0.13 * np.exp(-macula / 0.0035)
    if eye.glaucoma:
        light -= 0.07 * _wedge(x, y, disc, nose, float(rng.uniform(0.65, 0.95)))

    wide = DISC * rng.uniform(0.92, 1.05)
    tall = wide * rng.uniform(1.05, 1.15)
    from_disc = np.sqrt(((x - disc[0]) / wide) ** 2 + ((y - disc[1]) / tall) ** 2)
    light += 0.27 * _inside(from_disc, 1.0, 0.06)
    # In glaucoma the cup extends down: it is moved as far towards the lower rim as fits.
    drop = (0.6 if eye.glaucoma else 0.1) * (1.0 - eye.ratio) * tall
    from_cup = np.sqrt(
        ((x - disc[0] - 0.1 * nose * (eye.ratio - 1) * wide) / (wide * eye.ratio)) ** 2
        + ((y - disc[1] - drop) / (tall * eye.ratio)) ** 2
    )
    light += 0.26 * _inside(from_cup, 1.0, 0.1)

    light *= 1.0 - _vessels(rng, disc, nose, rows, columns)
    light += rng.normal(0.0, 0.012, light.shape)
    return np.round(255 * np.clip(light, 0.0, 1.0)).astype(np.uint8)


def _inside(distance: npt.NDArray[np.floating], edge: float, soft: float) -> Array:
    """Return 1 within ``edge`` and 0 beyond it, with a smooth border."""
    t = np.clip((edge + soft - distance) / (2 * soft), 0.0, 1.0)
    smooth: Array = (t * t * (3 - 2 * t)).astype(np.float32)
    return smooth


def _cloud(rng: np.random.Generator, rows: int, columns: int, cells: int) -> Array:
    """Return smooth texture, mean about 0, variance 1."""
    small = rng.standard_normal((round(cells * rows / columns), cells), dtype=np.float32)
    large = Image.fromarray(small).resize((columns, rows), Image.Resampling.BICUBIC)
    field = np.asarray(large, dtype=np.float32)
    return field / np.float32(max(float(field.std()), 1e-6))


def _wedge(x: Array, y: Array, disc: npt.NDArray[np.float64], nose: float, angle: float) -> Array:
    """Return the sector of lost fibres: from the disc down and away from the nose."""
    dx, dy = -nose * (x - disc[0]), y - disc[1]
    far = np.sqrt(dx * dx + dy * dy)
    turned = np.arctan2(dy, dx) - angle
    sector: Array = _inside(np.abs(turned), 0.12, 0.05) * _inside(-far, -DISC, 0.02)
    return sector


def _vessels(
    rng: np.random.Generator,
    disc: npt.NDArray[np.float64],
    nose: float,
    rows: int,
    columns: int,
) -> Array:
    """Return the share of light that vessels absorb, [rows, columns]."""
    sheet = Image.new("L", (columns * OVER, rows * OVER))
    pen = ImageDraw.Draw(sheet)

    def grow(at: npt.NDArray[np.float64], angle: float, bend: float, width: float) -> None:
        for step in range(36):
            if width < 0.0008 or abs(at[0]) > 0.55:
                return
            angle += bend + rng.normal(0.0, 0.06)
            bend *= 0.985
            to = at + 0.022 * np.array([np.cos(angle), np.sin(angle)])
            ends = [
                (float(p[0] + 0.5) * columns * OVER, float(p[1] * columns + 0.5 * rows) * OVER)
                for p in (at, to)
            ]
            wide = max(1, round(width * columns * OVER))
            pen.line([*ends[0], *ends[1]], fill=round(150 * min(1.0, width / 0.004)), width=wide)
            at, width = to, width * 0.95
            if width > 0.0016 and step > 2 and rng.random() < 0.16:
                side = float(rng.choice((-1.0, 1.0)))
                grow(at, angle + side * rng.uniform(0.4, 0.8), -side * 0.02, width * 0.6)

    for down in (-1.0, 1.0):
        for away, width in ((True, 0.011), (True, 0.008), (False, 0.006)):
            # The temporal arcades rise steeply and bend around the macula.
            turn = rng.uniform(1.15, 1.45) if away else rng.uniform(0.7, 1.1)
            angle = down * (np.pi - turn if (nose > 0) == away else turn)
            curl = -down * (0.045 if away else 0.02) * (-nose if away else nose)
            start = disc + rng.normal(0.0, 0.008, 2)
            grow(start, float(angle), float(curl), width * rng.uniform(0.85, 1.1))
    sheet = sheet.filter(ImageFilter.GaussianBlur(OVER * columns / 700))
    small = sheet.resize((columns, rows), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255.0
