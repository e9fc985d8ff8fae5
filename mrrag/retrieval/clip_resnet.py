"""CLIP's ResNet, which transformers lacks, under its published names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Heads of attention are 64 wide in every size that is published, timm's and BERT's too.
HEAD_WIDTH = 64


class ModifiedResNet(nn.Module):
    """CLIP's ResNet (Radford et al. 2021, section 2.4).

    Against the usual ResNet: three convolutions as a stem, average pooling before every
    strided step (He et al. 2019, ResNet-D; Zhang 2019), and attention over places in place
    of global pooling.

    Parameters
    ----------
    depths
        Blocks of each of the four stages.
    dimension
        D of the vectors.
    image_size
        Side of the square it reads, px; a multiple of 32.
    width
        Channels after the stem.
    """

    def __init__(
        self, depths: Sequence[int], dimension: int, image_size: int, width: int = 64
    ) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        channels = width
        for stage, depth in enumerate(depths):
            planes = width * 2**stage
            blocks = []
            for n in range(depth):
                blocks.append(_Bottleneck(channels, planes, 2 if stage and not n else 1))
                channels = 4 * planes
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.attnpool = _AttentionPool((image_size // 32) ** 2, channels, dimension)

    def forward(self, pixels_NCYX: Tensor) -> Tensor:
        """Encode pixels, float32 [N, 3, Y, X], as [N, D]."""
        x = torch.relu(self.bn1(self.conv1(pixels_NCYX)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)))
        x = nn.functional.avg_pool2d(x, 2)
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        pooled: Tensor = self.attnpool(x)
        return pooled


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.stride = stride
        self.downsample: nn.Module | None = None
        if stride > 1 or channels != 4 * planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        inner = torch.relu(self.bn2(self.conv2(inner)))
        inner = self.bn3(self.conv3(nn.functional.avg_pool2d(inner, self.stride)))
        if self.downsample is not None:
            x = self.downsample(nn.functional.avg_pool2d(x, self.stride))
        return torch.relu(inner + x)


class _AttentionPool(nn.Module):
    """One query, the mean over all places, attends to itself and to every place."""

    def __init__(self, places: int, channels: int, dimension: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(places + 1, channels) * 0.02)
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, dimension)

    def forward(self, x_NEYX: Tensor) -> Tensor:
        x_NPE = x_NEYX.flatten(2).transpose(1, 2)
        x_NPE = torch.cat([x_NPE.mean(1, keepdim=True), x_NPE], dim=1) + self.positional_embedding
        q, k, v = (
            y.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)
            for y in (self.q_proj(x_NPE[:, :1]), self.k_proj(x_NPE), self.v_proj(x_NPE))
        )
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        pooled: Tensor = self.c_proj(out.transpose(1, 2).flatten(1))
        return pooled
