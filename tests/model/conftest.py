"""The image features and the stock model that the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_llava import picture
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from mrrag.model.backbone import Backbone, encode_images


@pytest.fixture(scope="module")
def features(tiny_llava: Backbone) -> Tensor:
    return encode_images(tiny_llava, [picture()])


@pytest.fixture(scope="module")
def stock(tiny_llava_folder: Path) -> LlavaForConditionalGeneration:
    """The same checkpoint as transformers runs it, without anything of ours."""
    return LlavaForConditionalGeneration.from_pretrained(tiny_llava_folder).eval()
