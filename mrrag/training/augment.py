"""Small changes of an image that leave its findings as they are; never mirrored.

In a mirrored chest the heart is on the right: another finding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mrrag.training.vision import jitter

TURN = np.radians(4.0)  # standard deviations: rotation, ln scale, ln ratio of the sides
SCALE = 0.05
RATIO = 0.04
SHIFT = 0.04  # at most, as a share of the side
CONTRAST = 0.15
BRIGHTNESS = 0.15
CURVE = 0.08
NOISE = 0.05


def move(pixels_NCYX: Tensor, rng: np.random.Generator) -> Tensor:
    """Turn, stretch and shift standardised images; change their brightness, contrast and curve.

    Parameters
    ----------
    pixels_NCYX : float32
        Standardised to mean 0 and standard deviation 1; zero outside the picture.
    """
    count = len(pixels_NCYX)
    angle, scale, ratio = rng.normal(0.0, [[TURN], [SCALE], [RATIO]], (3, count))
    shift_x, shift_y = rng.uniform(-2 * SHIFT, 2 * SHIFT, (2, count))  # the side is 2 wide
    cos, sin, wide, high = np.cos(angle), np.sin(angle), np.exp(scale + ratio), np.exp(scale)
    high = high / np.exp(ratio)
    rows = [[cos * wide, -sin * high, shift_x], [sin * wide, cos * high, shift_y]]
    matrices = torch.from_numpy(np.array(rows, np.float32).transpose(2, 0, 1).copy())
    grid = nn.functional.affine_grid(matrices, list(pixels_NCYX.shape), align_corners=False)
    moved = nn.functional.grid_sample(pixels_NCYX, grid, align_corners=False)
    gain, offset, curve = (
        torch.from_numpy(rng.normal(0.0, spread, (count, 1, 1, 1)).astype(np.float32))
        for spread in (CONTRAST, BRIGHTNESS, CURVE)
    )
    # Bounded, so that brighter stays brighter up to three standard deviations.
    curved = moved + curve.clamp(-2 * CURVE, 2 * CURVE) * (moved * moved - 1)
    noise = torch.from_numpy(rng.standard_normal(moved.shape, dtype=np.float32)) * NOISE
    return curved * gain.exp() + offset + noise


# Name → function of standardised pixels [N, C, Y, X] and a random generator.
AUGMENTATIONS: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "shift": jitter,
    "move": move,
}
