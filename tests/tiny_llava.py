"""What the tests of the model ask a tiny LLaVA (see conftest): prompts, branches, pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from mrrag.model.answering import Step, answer_branches
from mrrag.model.backbone import Backbone
from mrrag.model.prefill import Branch
from mrrag.model.prompt import Prompt
from mrrag.types import Image, Steering

QUESTION = "Is there a pleural effusion?"
REPORTS = ("The heart is enlarged.", "The lungs are clear.", "There is no pneumothorax.")
LAMBDAS = (0.0, 0.4, 1.0)
STEERED = Steering(1.0, (1, 2))


def picture(seed: int = 0, shape: tuple[int, ...] = (40, 30)) -> Image:
    display = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image(display=display)


def make(
    backbone: Backbone, reports: tuple[str, ...] = REPORTS, question: str = QUESTION
) -> Prompt:
    return backbone.prompt(question, reports)


def three(backbone: Backbone, features: Tensor | None) -> list[Branch]:
    return [
        Branch(make(backbone, ()), features),
        Branch(make(backbone), features),
        Branch(make(backbone), features, LAMBDAS),
    ]


def last(
    backbone: Backbone, branches: list[Branch], steering: Steering = STEERED, **more: Any
) -> Step:
    options = {"max_new_tokens": 6} | more
    return list(answer_branches(backbone, branches, steering, **options))[-1]
