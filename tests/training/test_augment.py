"""Changed images show the same findings on the same side."""

import numpy as np
import pytest
import torch

from mrrag.training.augment import AUGMENTATIONS


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_what_is_on_the_left_stays_on_the_left(name: str) -> None:
    pixels = torch.zeros(64, 1, 32, 32)
    pixels[..., 10:22, 4:12] = 3.0
    changed = AUGMENTATIONS[name](pixels, np.random.default_rng(0))
    left, right = changed[..., :16].mean((1, 2, 3)), changed[..., 16:].mean((1, 2, 3))
    assert changed.shape == pixels.shape
    assert bool((left > right + 0.1).all())
    assert not torch.equal(changed[0], changed[1])
    assert torch.equal(changed, AUGMENTATIONS[name](pixels, np.random.default_rng(0)))


def test_images_are_moved_about_their_own_place() -> None:
    pixels = torch.zeros(512, 1, 32, 32)
    pixels[..., 12:20, 12:20] = 3.0
    mean = AUGMENTATIONS["move"](pixels, np.random.default_rng(0)).mean((0, 1))
    weight = torch.where(mean > mean.max() / 2, mean, 0.0)
    places = torch.arange(32.0)
    assert float((weight.sum(0) * places).sum() / weight.sum()) == pytest.approx(15.5, abs=0.3)
    assert float((weight.sum(1) * places).sum() / weight.sum()) == pytest.approx(15.5, abs=0.3)
