"""Anatomy: each ``paint_`` function adds one normal structure of a chest to the film.

What a disease looks like is not known here, except that pulmonary edema widens the hila and
the vessels of the upper lobes.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from mrrag.phantom.chest import Chest
from mrrag.phantom.film import (
    HANDS,
    LEFT,
    RIGHT,
    SOFT,
    Film,
    Hand,
    Ink,
    Points,
    blur,
    cloud,
    ramp,
    resize,
    soften,
    spline,
    stream,
)
from mrrag.phantom.world import Study

# Soft tissue


def paint_body(film: Film, chest: Chest, study: Study) -> None:
    """Paint the skin outline with neck, shoulders, axillae and flanks."""
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
    """Paint breast shadows in women, only the pectoral fold in men."""
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
    """Paint two aerated lungs, thinner at the edges, with a fine interstitial texture."""
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
    """Paint the heart: right atrium, left ventricle and apex, in front of the lung."""
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
    """Paint great vessels, aortic knob, descending aorta, and the air of the airways."""
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
    """Paint trachea and main bronchi, dark in the mediastinum."""
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
    """Paint the central pulmonary arteries; the left hilum is slightly higher."""
    rng = stream(study, "hila")
    congested = study.finding("pulmonary edema")
    gain = 1.0 + (0.25 * (1 + congested.level) if congested else 0.0)
    for hand in HANDS:
        x = hand * 0.078 + chest.shift
        y = chest.hilum + (0.012 if hand == RIGHT else -0.014)
        spot = film.bump(x, y, 0.022, 0.028) + 0.6 * film.bump(
            x + 0.01 * hand, y + 0.05, 0.014, 0.03
        )
        spot *= gain * rng.uniform(0.8, 1.2) * film.lung[hand]
        film.air *= 1.0 - np.clip(0.42 * spot, 0.0, 0.8)


def paint_abdomen(film: Film, chest: Chest, study: Study) -> None:
    """Paint gas in the stomach under the left dome, sometimes in the bowel beside it."""
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


# Bones and vessels


def paint_spine(film: Film, chest: Chest, study: Study) -> None:
    """Paint vertebral bodies with end plates, pedicles and spinous processes."""
    rng = stream(study, "spine")
    tall = 0.041 * 1.022 ** np.arange(19)
    y = np.cumsum(tall) - 0.02 + rng.uniform(0.0, 0.03)
    x, half = chest.spine(y), 0.030 + 0.009 * y
    lean = (chest.spine(y + 0.01) - chest.spine(y - 0.01)) / 0.02

    def place(across: list[float], down: list[float], turned: float = 0.0) -> Points:
        """Return points of every vertebra, [19, k, 2]; units are half-widths and heights."""
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
    """Return a rib's centre line at angles around the chest: 0 at the spine, pi in front."""
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
    """Paint ten pairs of ribs: flat posterior arches, steeper and fainter anterior ones."""
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
    """Draw bones along [n, k, 2] paths: marrow between two cortical lines."""
    along = np.gradient(paths, axis=1)
    across = np.stack([-along[..., 1], along[..., 0]], axis=2)
    across *= 0.5 * thick / (np.linalg.norm(across, axis=2, keepdims=True) + 1e-9)
    ink.areas(np.concatenate([paths + across, (paths - across)[:, ::-1]], axis=1), marrow)
    one = np.ones(len(paths))
    ink.lines(paths + across, 0.0024 * one, edge * one)
    ink.lines(paths - across, 0.0024 * one, 0.85 * edge * one)


def paint_shoulders(film: Film, chest: Chest, study: Study) -> None:
    """Paint clavicles, shoulder blades and the heads of the humeri."""
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
    """Return the vessel tree of one lung: [n, 6, 2] paths and [n] widths, widest first."""
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
    """Paint pulmonary vessels, from the hila out to the periphery."""
    rng = stream(study, "vessels")
    upper, lower = 1.0, 1.0 + 0.25 * (1.0 - study.inspiration)
    edema = study.finding("pulmonary edema")
    if edema:
        upper *= (1.35, 1.6, 1.7)[edema.level]
    ink = film.ink()
    for hand in HANDS:
        paths, widths = grow_vessels(hand, chest, rng, upper, lower)
        shades = np.minimum(1.0, 0.16 + 85 * widths)
        ink.lines(paths[::-1], widths[::-1], shades[::-1])
    film.fine += 0.125 * soften(ink.read()) * resize(film.vascular, film.size)
