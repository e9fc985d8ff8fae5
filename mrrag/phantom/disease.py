"""What each finding looks like: changes to the shape of the chest, and abnormal structures.

``RESHAPE`` holds the findings that change a :class:`mrrag.phantom.chest.Chest` before it is
drawn (an enlarged heart, a curved spine), ``PAINT`` those drawn on the film. A finding may be in
both. This module does not know how often findings occur, or which occur together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mrrag.phantom.chest import Chest
from mrrag.phantom.film import (
    HANDS,
    LEFT,
    RIGHT,
    Array,
    Film,
    Hand,
    cloud,
    ramp,
    resize,
    soften,
    spline,
    stream,
)
from mrrag.phantom.world import Finding, Study


def hands(finding: Finding) -> tuple[Hand, ...]:
    """Return the sides of the chest that a finding is on."""
    return {"right": (RIGHT,), "left": (LEFT,)}.get(finding.side or "bilateral", HANDS)


# Shape of the chest


def enlarge_heart(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Cardiomegaly: a cardiothoracic ratio of about 0.55, 0.60 or 0.68."""
    chest.ctr = (0.55, 0.605, 0.68)[finding.level] + rng.uniform(-0.012, 0.012)
    chest.lift -= 0.006 * finding.level


def overinflate(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Hyperinflation: long dark lungs, flat low domes and a narrow upright heart."""
    g = finding.level
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
    """Scoliosis: the thoracic spine bows out to the convex side."""
    reach = (0.022, 0.045, 0.075)[finding.level] * rng.uniform(0.9, 1.1)
    chest.curve = hands(finding)[0] * reach
    chest.curve_at = 0.47 + rng.normal(0.0, 0.025)


def lose_volume(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Atelectasis: the dome of its side rises a little."""
    for hand in hands(finding):
        chest.dome[hand] -= (0.008, 0.02, 0.035)[finding.level] * rng.uniform(0.9, 1.1)


def push_away(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Large effusions and pneumothoraces push the mediastinum to the other side."""
    if len(hands(finding)) == 1:
        chest.shift -= hands(finding)[0] * (0.0, 0.005, 0.022)[finding.level]


def break_rib(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Choose the broken rib, and the place of the fracture along it."""
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


def reshape(chest: Chest, study: Study) -> None:
    """Apply the study's findings to the chest, in place."""
    for finding in study.findings:
        if finding.name in RESHAPE:
            RESHAPE[finding.name](chest, finding, stream(study, finding.name + " shape"))


# Abnormal structures


def one_side(film: Film, chest: Chest, hand: Hand) -> Array:
    """Return the mask of one side; wider than the lung, so opacities leave no rim of air."""
    return ramp(hand * (film.x - 0.45 * chest.spine(film.y).astype(np.float32)), -0.01, 0.01)


def replace_air(film: Film, mask: Array, amount: float) -> None:
    """Replace ``amount`` of the air by fluid or tissue within the mask (0..1)."""
    film.air *= 1.0 - np.clip(amount * mask, 0.0, 1.0)


def paint_effusion(film: Film, chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Paint pleural fluid: a meniscus that rises along the lateral wall."""
    g = finding.level
    for hand in hands(finding):
        cp, dome = chest.cp(hand), chest.dome[hand]
        climb = (0.055, 0.12, 0.16)[g] * rng.uniform(0.9, 1.15)
        flat = (cp - 0.012, dome - 0.01, dome - 0.19)[g] + rng.normal(0.0, 0.006 + 0.01 * g)
        edge = np.abs(film.x - 0.45 * chest.spine(dome).astype(np.float32)) / chest.width
        rise = np.clip((edge - (0.62, 0.35, 0.2)[g]) / (0.38, 0.65, 0.8)[g], 0.0, 1.0)
        surface = flat - climb * rise ** (2.2, 2.4, 2.0)[g] + 0.004 * cloud(rng, 5, 1)
        fluid = one_side(film, chest, hand) * ramp(film.y - surface, -0.03, 0.022)
        replace_air(film, fluid, 0.97)
        film.tissue += (0.05, 0.05, 0.05)[g] * fluid * film.lung[hand]
        film.vascular *= 1.0 - fluid


def paint_pneumothorax(
    film: Film, chest: Chest, finding: Finding, rng: np.random.Generator
) -> None:
    """Paint pleural air: the lung edge leaves the wall, with no vessels beyond it."""
    g = finding.level
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
        replace_air(film, lung * film.lung[hand], (0.04, 0.12, 0.42)[g])
        film.air += 0.13 * space * (film.air > 0.3)
        film.vascular *= 1.0 - space
        ink = film.ink()
        ink.line(edge[free > 0.25], 0.0035, 1.0)
        film.fine += 0.085 * ink.read()


def paint_consolidation(
    film: Film, chest: Chest, finding: Finding, rng: np.random.Generator
) -> None:
    """Paint a fluffy airspace opacity, with dark aerated bronchi in it."""
    g = finding.level
    for hand in hands(finding):
        x, y = chest.spot(hand, finding.zone, rng.uniform(0.35, 0.6), rng.normal(0.0, 0.03))
        rx, ry = (0.055, 0.085, 0.12)[g], (0.048, 0.075, 0.105)[g]
        rx, ry = rx * rng.uniform(0.9, 1.15), ry * rng.uniform(0.9, 1.15)
        shape = film.bump(x, y, rx, ry) + (0.17, 0.14, 0.10)[g] * cloud(rng, 12, 4)
        opacity = ramp(shape, (0.30, 0.24, 0.2)[g], (1.0, 0.9, 0.7)[g]) * one_side(
            film, chest, hand
        )
        replace_air(film, opacity, (0.55, 0.75, 0.92)[g])
        film.vascular *= 1.0 - (1.2, 1.45, 1.6)[g] * opacity


def paint_nodule(film: Film, chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Paint a round, well-defined opacity."""
    g = finding.level
    for hand in hands(finding):
        x, y = chest.spot(hand, finding.zone, rng.uniform(0.35, 0.75), rng.normal(0.0, 0.04))
        radius = 0.5 * (0.026, 0.038, 0.055)[g] * rng.uniform(0.92, 1.1)
        squash = rng.uniform(0.9, 1.1)
        gx, gy = film.view.grid(film.size)
        d = ((gx - x) * squash) ** 2 + ((gy - y) / squash) ** 2
        ball = np.sqrt(np.clip(1.15 - d / radius**2, 0.0, 1.0))
        film.fine += (0.17, 0.20, 0.24)[g] * ball


def paint_edema(film: Film, chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Paint bat-wing haze around the hila, and septal lines at the lung bases."""
    g = finding.level
    ink = film.ink()
    for hand in HANDS:
        x, y = hand * 0.135 + chest.shift, chest.hilum + 0.05
        wing = film.bump(x, y, (0.065, 0.08, 0.095)[g], (0.10, 0.115, 0.135)[g])
        fluff = np.clip(wing * (1.0 + (0.12, 0.22, 0.3)[g] * cloud(rng, 14, 4)), 0.0, 1.0)
        haze = (0.30, 0.46, 0.68)[g] * fluff + (0.04, 0.08, 0.14)[g] * ramp(film.y, 0.25, 0.6)
        replace_air(film, haze * film.lung[hand], 1.0)
        film.vascular *= 1.0 - (0.1, 0.3, 0.6)[g] * fluff
        for _ in range((5, 8, 9)[g]):
            ly = chest.dome[hand] + rng.uniform(-0.16, 0.03)
            lx = hand * (chest.lateral(ly) - 0.006)
            tip = (lx - hand * rng.uniform(0.02, 0.035), ly + rng.normal(0.0, 0.003))
            ink.line(np.array([(lx, ly), tip]), 0.0022, 1.0)
    film.fine += (0.05, 0.06, 0.06)[g] * ink.read()


def paint_atelectasis(film: Film, chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Paint plate-like, roughly parallel bands across the lung."""
    g = finding.level
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
    """Paint a generator below the clavicle, and leads through the great veins to the heart."""
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
    """Paint a catheter from the neck or below the clavicle to the cavoatrial junction."""
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


def paint_findings(film: Film, chest: Chest, study: Study) -> None:
    """Draw the study's findings, in the order of ``PAINT``."""
    for name, paint in PAINT.items():
        finding = study.finding(name)
        if finding:
            paint(film, chest, finding, stream(study, name))
