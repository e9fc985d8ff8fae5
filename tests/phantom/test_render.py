"""The phantom radiograph: where each finding shows, and what must never change."""

from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from mrrag.phantom.render import build_chest, render
from mrrag.phantom.world import GRADES, KINDS, Finding, Grade, Side, Study, Zone, draw_studies

SIZE = 128
SEEDS = (3, 17)
BANDS: dict[Zone, tuple[float, float]] = {
    "upper": (0.05, 0.42),
    "mid": (0.28, 0.66),
    "lower": (0.45, 0.85),
}
Image = npt.NDArray[np.float64]


def study(*findings: Finding, seed: int = 3) -> Study:
    return Study(0, 0, "M", 55, 0.4, 0.0, 0.7, 0.5, findings, seed)


def change(*findings: Finding, seed: int) -> Image:
    """What the findings do to the picture: positive where they make it brighter."""
    return picture(*findings, seed=seed) - picture(seed=seed)


@cache
def picture(*findings: Finding, seed: int) -> Image:
    return render(study(*findings, seed=seed), SIZE).astype(np.float64)


def halves(image: Image) -> dict[Side, Image]:
    """By the patient's side: the patient's right is on the left of the picture."""
    return {"right": image[:, : SIZE // 2], "left": image[:, SIZE // 2 :]}


def other(side: Side) -> Side:
    return "left" if side == "right" else "right"


def test_the_same_study_gives_the_same_pixels() -> None:
    assert np.array_equal(render(study(), SIZE), render(study(), SIZE))


def test_another_seed_gives_another_picture() -> None:
    a, b = (render(study(seed=s), SIZE).astype(float) for s in SEEDS)
    assert np.abs(a - b).mean() > 40


@pytest.mark.parametrize("size", [64, 100, 256])
def test_pixels_are_twelve_bit_at_any_size(size: int) -> None:
    for drawn in draw_studies(2, seed=1):
        image = render(drawn, size)
        assert image.shape == (size, size)
        assert image.dtype == np.uint16
        assert image.max() <= 4095
        assert image.max() > 2500
        assert image.min() < 200


def test_too_small_a_film_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 64"):
        render(study(), 32)


def test_the_anatomy_does_not_depend_on_the_size() -> None:
    small = render(study(), 64).astype(float)
    large = render(study(), 256).astype(float).reshape(64, 4, 64, 4).mean(axis=(1, 3))
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.99


def test_lungs_are_darker_than_heart_and_abdomen() -> None:
    image = render(study(), SIZE)
    lung = np.median(image[40:70, 26:42])
    assert np.median(image[80:90, 66:76]) > 2 * lung
    assert np.median(image[112:120, 30:50]) > 2 * lung


@pytest.mark.parametrize("name", KINDS)
def test_every_finding_changes_the_picture(name: str) -> None:
    kind = KINDS[name]
    for side in kind.sides or (None,):
        for zone in kind.zones or (None,):
            difference = change(Finding(name, side, zone, "moderate"), seed=3)
            assert np.abs(difference).max() > 150, (side, zone)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "brighter"),
    [
        ("pleural effusion", True),
        ("consolidation", True),
        ("nodule", True),
        ("atelectasis", True),
        ("pneumothorax", False),
        ("pacemaker", True),
    ],
)
def test_a_finding_shows_on_its_side(name: str, brighter: bool, side: Side, seed: int) -> None:
    zone: Zone = "lower"
    difference = change(Finding(name, side, zone, "mild"), seed=seed)
    gain = np.clip(difference if brighter else -difference, 0, None)
    sums = {hand: half.sum() for hand, half in halves(gain).items()}
    assert sums[side] > (1.2 if name == "pacemaker" else 4) * sums[other(side)]


@pytest.mark.parametrize("zone", BANDS)
@pytest.mark.parametrize("name", ["consolidation", "nodule", "rib fracture"])
def test_a_finding_shows_in_its_zone(name: str, zone: Zone) -> None:
    for seed in SEEDS:
        difference = np.abs(change(Finding(name, "right", zone, "moderate"), seed=seed))
        rows = difference.sum(axis=1)
        centre = (rows * np.arange(SIZE)).sum() / rows.sum() / SIZE
        low, high = BANDS[zone]
        assert low < centre < high


@pytest.mark.parametrize(
    "name", ["pleural effusion", "consolidation", "nodule", "pulmonary edema", "atelectasis"]
)
def test_a_higher_grade_is_whiter(name: str) -> None:
    kind = KINDS[name]
    finding = Finding(name, "right" if kind.sides else None, "mid" if kind.zones else None)
    for seed in SEEDS:
        gains = [
            np.clip(change(replace(finding, grade=grade), seed=seed), 0, None).sum()
            for grade in GRADES
        ]
        assert gains[0] < gains[1] < gains[2]


def test_left_effusion_is_at_the_bottom_right_of_the_picture() -> None:
    difference = change(Finding("pleural effusion", "left", None, "moderate"), seed=3)
    y, x = np.unravel_index(int(difference.argmax()), difference.shape)
    assert x > SIZE / 2
    assert y > SIZE / 2


def test_bilateral_effusion_is_on_both_sides() -> None:
    difference = change(Finding("pleural effusion", "bilateral", None, "moderate"), seed=3)
    sums = [half.sum() for half in halves(difference).values()]
    assert min(sums) > 0.4 * max(sums) > 0


def test_edema_is_central_and_bilateral() -> None:
    difference = change(Finding("pulmonary edema", None, None, "moderate"), seed=3)
    columns = difference[40:80].sum(axis=0)
    assert columns[36:50].mean() > 2 * columns[12:24].mean()
    assert columns[78:92].mean() > 2 * columns[104:116].mean()


def test_a_large_pneumothorax_is_dark_at_the_side_and_dense_at_the_hilum() -> None:
    difference = change(Finding("pneumothorax", "right", None, "severe"), seed=3)
    assert difference[35:70, 18:26].mean() < -100
    assert difference[50:70, 42:50].mean() > 100


@pytest.mark.parametrize(
    ("grade", "ratio"), [(None, 0.455), ("mild", 0.55), ("moderate", 0.605), ("severe", 0.68)]
)
def test_the_cardiothoracic_ratio_follows_the_grade(grade: Grade | None, ratio: float) -> None:
    findings = (Finding("cardiomegaly", None, None, grade),) if grade else ()
    for seed in range(20):
        chest = build_chest(study(*findings, seed=seed))
        right, left = chest.heart_sides()
        assert (right + left) / (2 * chest.width) == pytest.approx(ratio, abs=0.036)


def test_a_big_heart_whitens_the_left_base_most() -> None:
    sums = halves(change(Finding("cardiomegaly", None, None, "severe"), seed=3)[64:100])
    assert sums["left"].sum() > 1.3 * sums["right"].sum() > 0


def test_hyperinflation_darkens_and_lowers_the_bases() -> None:
    difference = change(Finding("hyperinflation", None, None, "severe"), seed=3)
    assert difference[88:104, 24:44].mean() < -300


@pytest.mark.parametrize(("side", "sign"), [("left", 1), ("right", -1)])
def test_the_spine_bends_to_the_convex_side(side: Side, sign: int) -> None:
    difference = change(Finding("scoliosis", side, None, "severe"), seed=3)[54:70]
    towards = difference[:, 66:76].mean() - difference[:, 52:62].mean()
    assert sign * towards > 100


def test_a_central_line_ends_at_the_cavoatrial_junction() -> None:
    for side in ("left", "right"):
        bright = change(Finding("central line", side), seed=3) > 400
        rows, columns = np.nonzero(bright)
        assert 0.45 < rows.max() / SIZE < 0.62
        assert 0.40 < columns[rows == rows.max()].mean() / SIZE < 0.5
        start = columns[rows < 0.25 * SIZE].mean()
        assert (start > SIZE / 2) == (side == "left") or abs(start - SIZE / 2) < 8


def test_a_finding_leaves_the_rest_of_the_picture_as_it_was() -> None:
    difference = change(Finding("nodule", "left", "upper", "severe"), seed=3)
    assert np.array_equal(difference[:, : SIZE // 2], np.zeros((SIZE, SIZE // 2)))
    assert (difference != 0).mean() < 0.02
