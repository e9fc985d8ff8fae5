"""On a GPU, the included model passes the whole self-test, captured step and all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mrrag.bench.self_test import captured_step, self_test
from mrrag.loading import load_pipeline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # torch warns that float32 products could be less exact.
    pytest.mark.filterwarnings("default"),
]


def test_every_check_applies_and_passes() -> None:
    pipeline = load_pipeline(device="auto")
    found = list(self_test(pipeline))
    assert all(check.passed for check in found), found
    uncaptured = replace(pipeline.backbone, capture=False)
    assert captured_step(uncaptured).passed is None
