"""PyTorch's own norms give what transformers' give."""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from mrrag.model.norms import use_native_norms


def two_norms(kind: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    norms = nn.Sequential(kind(24), nn.Sequential(kind(24)))
    for parameter in norms.parameters():
        nn.init.normal_(parameter)
    return norms


def test_native_norms_share_the_weights_and_give_the_same() -> None:
    x = torch.randn(3, 5, 24)
    for kind in (MistralRMSNorm, Qwen2RMSNorm):
        norms = two_norms(kind)
        before, weights = norms(x), list(norms.parameters())
        assert use_native_norms(norms) == 2
        assert not any(isinstance(module, kind) for module in norms.modules())
        assert all(a is b for a, b in zip(norms.parameters(), weights, strict=True))
        torch.testing.assert_close(norms(x), before, rtol=1e-6, atol=1e-6)


def test_native_norms_round_as_the_dtype_asks() -> None:
    norms = two_norms(MistralRMSNorm).bfloat16()
    x = torch.randn(3, 5, 24, dtype=torch.bfloat16)
    before = norms(x)
    use_native_norms(norms)
    assert norms(x).dtype == torch.bfloat16
    torch.testing.assert_close(norms(x), before, rtol=2e-2, atol=2e-2)


def test_norms_of_another_form_stay() -> None:
    norms = two_norms(Gemma3RMSNorm)
    assert use_native_norms(norms) == 0
    assert isinstance(norms[0], Gemma3RMSNorm)
