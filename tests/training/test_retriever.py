"""The bi-tower's losses: what belongs together, and how much."""

import pytest
import torch

from mrrag.training.retriever import agreement, contrast, fact_loss

LABELS = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


def test_agreement_is_the_share_of_common_problems() -> None:
    expected = torch.tensor(
        [[1.0, 0.5, 0, 0], [0.5, 1.0, 0, 0], [0, 0, 1.0, 1.0], [0, 0, 1.0, 1.0]]
    )
    assert torch.equal(agreement(LABELS), expected)


def test_one_hot_targets_are_plain_contrast() -> None:
    left, right = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)).unbind()
    scale = torch.tensor(3.0)
    assert contrast(left, right, scale, torch.eye(4)) == pytest.approx(
        float(contrast(left, right, scale))
    )


def test_images_of_agreeing_studies_lose_least_when_they_are_alike() -> None:
    scale = torch.tensor(10.0)
    together = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0, 0, 1.0]])
    apart = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0], [0, 0, 1.0]])
    assert fact_loss(together, together, LABELS, scale) < fact_loss(apart, apart, LABELS, scale)


def test_an_image_is_not_its_own_neighbour() -> None:
    v = torch.nn.functional.normalize(
        torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), dim=1
    ).requires_grad_()
    loss = fact_loss(v, v.detach(), LABELS, torch.tensor(10.0))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(v.grad).all()
