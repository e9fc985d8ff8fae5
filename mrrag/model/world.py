"""The pictures that a model was trained on, so that it can say which ones are unlike them.

A model answers any picture, and as surely as those that it knows. So each picture is held
against a summary of the training pictures, ``world.safetensors`` beside the checkpoint. A
picture is outside where one of two distances is larger than for nearly all of them:

- of the vision tower's features, pooled over patches, in whitened space (Mahalanobis distance:
  Lee et al., 2018, https://arxiv.org/abs/1807.03888);
- of the small picture from the principal components of the small training pictures.

Both start from the vision tower's input, so the format of the file does not matter. A
checkpoint without the file (LLaVA-Med) has no such limit.
Shape suffixes: N picture, F feature, D pixel of the small picture, C component.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mrrag.errors import ModelError
from mrrag.files import write_atomic
from mrrag.model.backbone import Backbone, pixel_values
from mrrag.types import Image

__all__ = ["WORLD", "World", "is_outside", "load_world", "measure_world", "save_world"]

WORLD = "world.safetensors"
SIDE = 32  # px, of the small picture
COMPONENTS = 64
RARE = 0.5  # per cent of training pictures beyond either limit
RIDGE = 0.01  # of the mean variance, so that directions without any do not decide alone
BATCH = 64
AGREE = 0.05  # of its norm: by how much number formats may move the probe's features
# The probe's features tell whether the file was measured with this very vision tower.
PROBE = Image(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
AGAIN = "Restore the file, or measure it again with `python -m mrrag measure-world`."


@dataclass(frozen=True)
class World:
    """A summary of the pictures that a model was trained on; tensors are float32, on the CPU.

    Attributes
    ----------
    trained_on : str
        What they are, for a sentence: "synthetic chest radiographs".
    center_F, whitening_FF
        Mean and inverse square root of the covariance of the pooled features.
    small_D, components_CD
        Mean and principal components of the small pictures.
    limits_2
        The largest usual distance in features, and from the components.
    probe_F
        The pooled features of a fixed picture.
    """

    trained_on: str
    center_F: Tensor
    whitening_FF: Tensor
    small_D: Tensor
    components_CD: Tensor
    limits_2: Tensor
    probe_F: Tensor

    @property
    def warning(self) -> str:
        """What to say of a picture that is outside."""
        return (
            "This picture is unlike those the answering model was trained on "
            f"({self.trained_on} only). Its answers mean nothing for this picture."
        )


TENSORS = ("center_F", "whitening_FF", "small_D", "components_CD", "limits_2", "probe_F")


def is_outside(backbone: Backbone, world: World, image: Image) -> bool:
    """Return whether a picture is unlike those that the model was trained on."""
    features_NF, small_ND = _read(backbone, [image])
    usual = _distances(world, features_NF, small_ND) <= world.limits_2  # false for NaN too
    return not bool(usual.all())


def measure_world(
    backbone: Backbone,
    images: Sequence[Image],
    patients: npt.NDArray[np.int64],
    trained_on: str,
) -> World:
    """Summarise training pictures; ``patients`` has a number for each of them.

    The mean, the covariance and the components are of one half of the patients, and the
    limits are what 99.5 of 100 pictures of the other half keep within.
    """
    parts = [_read(backbone, images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    features_NF, small_ND = (torch.cat(part) for part in zip(*parts, strict=True))
    first_N = torch.from_numpy(np.isin(patients, np.unique(patients)[::2]))
    center_F, whitening_FF = _whitening(features_NF[first_N])
    small_D = small_ND[first_N].mean(0)
    _, directions_DD = torch.linalg.eigh(torch.cov((small_ND[first_N] - small_D).T.double()))
    components_CD = directions_DD.T[-COMPONENTS:].float()
    probe_F = _read(backbone, [PROBE])[0][0]
    nothing_2 = torch.zeros(2)
    world = World(trained_on, center_F, whitening_FF, small_D, components_CD, nothing_2, probe_F)
    distances_N2 = _distances(world, features_NF[~first_N], small_ND[~first_N])
    limits_2 = torch.quantile(distances_N2, 1 - RARE / 100, dim=0)
    return World(trained_on, center_F, whitening_FF, small_D, components_CD, limits_2, probe_F)


@torch.inference_mode()
def _read(backbone: Backbone, images: Sequence[Image]) -> tuple[Tensor, Tensor]:
    """Return pooled features [N, F] and small pictures of mean 0 and norm 1 [N, D]."""
    pixels_NCYX = pixel_values(backbone, images)
    layer = backbone.model.config.vision_feature_layer
    tower = backbone.model.model.vision_tower
    states = tower(pixels_NCYX, output_hidden_states=True).hidden_states
    chosen = states[layer if isinstance(layer, int) else layer[-1]].float()
    rows, columns = backbone.grid_of(images[0])
    patches = chosen[:, -rows * columns :]  # without a class token
    pooled_NF = torch.cat([patches.mean(1), patches.std(1)], dim=1)
    small_ND = adaptive_avg_pool2d(pixels_NCYX.float().mean(1), SIDE).flatten(1)
    small_ND = small_ND - small_ND.mean(1, keepdim=True)
    # A picture of one grey has no norm.
    small_ND = small_ND / small_ND.norm(dim=1, keepdim=True).clamp(min=1e-3)
    return pooled_NF.cpu(), small_ND.cpu()


def _distances(world: World, features_NF: Tensor, small_ND: Tensor) -> Tensor:
    """Return the distances of features and of small pictures, [N, 2]."""
    whitened_NF = (features_NF - world.center_F) @ world.whitening_FF
    offset_ND = small_ND - world.small_D
    rest_ND = offset_ND - (offset_ND @ world.components_CD.T) @ world.components_CD
    return torch.stack([whitened_NF.norm(dim=1), rest_ND.norm(dim=1)], dim=1)


def _whitening(features_NF: Tensor) -> tuple[Tensor, Tensor]:
    variances, directions = torch.linalg.eigh(torch.cov(features_NF.T.double()))
    variances = variances.clamp(min=0) + RIDGE * variances.mean()
    return features_NF.mean(0), (directions / variances.sqrt()).float()


# The file


def save_world(world: World, checkpoint: Path) -> None:
    """Write ``world.safetensors`` into a checkpoint's folder."""
    tensors = {name: getattr(world, name).contiguous() for name in TENSORS}
    write_atomic(checkpoint / WORLD, save(tensors, {"trained_on": world.trained_on}))


def load_world(checkpoint: str | Path, backbone: Backbone) -> World | None:
    """Read and check ``world.safetensors`` in the folder of a model; None where there is none.

    Raises
    ------
    ModelError
        Where the file is damaged, or was measured with another vision tower.
    """
    path = Path(checkpoint).expanduser() / WORLD
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            trained_on = (file.metadata() or {})["trained_on"][:200]
            tensors = {name: file.get_tensor(name) for name in TENSORS}
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{path.parent.name}/{WORLD} cannot be read ({error}). {AGAIN}") from None
    probe_F = _read(backbone, [PROBE])[0][0]
    features, pixels = len(probe_F), SIDE * SIDE
    components = tensors["components_CD"].shape[0] if tensors["components_CD"].ndim else 0
    shapes = ((features,), (features, features), (pixels,), (components, pixels), (2,), (features,))
    for (name, tensor), shape in zip(tensors.items(), shapes, strict=True):
        fits = tuple(tensor.shape) == shape and tensor.dtype == torch.float32
        if not fits or not tensor.isfinite().all():
            raise ModelError(
                f"In {path.parent.name}/{WORLD}, {name} is {tensor.dtype} {tuple(tensor.shape)}. "
                f"Allowed: finite float32 of {shape}. {AGAIN}"
            )
    if (tensors["probe_F"] - probe_F).norm() > AGREE * probe_F.norm():
        raise ModelError(
            f"{path.parent.name}/{WORLD} was measured with another vision tower than the one "
            f"loaded. {AGAIN}"
        )
    return World(trained_on, **tensors)
