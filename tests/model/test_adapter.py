"""A LoRA adapter is its product of matrices, added once; what does not fit is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_llava import make, picture
from torch import Tensor

from mrrag.errors import ModelError, SettingsError
from mrrag.model.adapter import fingerprint_with, fit
from mrrag.model.answering import answer_batch
from mrrag.model.backbone import Backbone, encode_images, load_backbone
from mrrag.model.prefill import Branch

RANK, ALPHA = 2, 6.0
PLACES = ("layers.0.self_attn.q_proj", "layers.2.mlp.down_proj")
TODAY = "model.language_model."


def matrices(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B for two layers of the tiny LLaVA."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {PLACES[0]: (32, 48), PLACES[1]: (48, 32)}
    return {
        place: (
            torch.randn(RANK, width, generator=generator) / 3,
            torch.randn(height, RANK, generator=generator) / 3,
        )
        for place, (width, height) in sizes.items()
    }


def write(folder: Path, prefix: str = TODAY, drop: str = "", **config: Any) -> Path:
    """Write an adapter as peft does, under names that begin with ``prefix``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for place, pair in matrices().items():
        for half, values in zip("AB", pair, strict=True):
            tensors[f"base_model.model.{prefix}{place}.lora_{half}.weight"] = values
    tensors = {name: values for name, values in tensors.items() if not drop or drop not in name}
    save_file(tensors, folder / "adapter_model.safetensors")
    made = {"peft_type": "LORA", "bias": "none", "r": RANK, "lora_alpha": ALPHA} | config
    (folder / "adapter_config.json").write_text(json.dumps(made))
    return folder


def p_yes(backbone: Backbone) -> float:
    branch = Branch(make(backbone), encode_images(backbone, [picture()]))
    return float(answer_batch(backbone, [branch]).p_yes[0])


@pytest.mark.parametrize("prefix", [TODAY, "language_model.model.", "model."])
@pytest.mark.parametrize(("rslora", "factor"), [(False, ALPHA / RANK), (True, ALPHA / RANK**0.5)])
def test_weights_are_changed_by_the_scaled_product_and_no_others(
    tiny_llava_folder: Path, tmp_path: Path, prefix: str, rslora: bool, factor: float
) -> None:
    plain = load_backbone(tiny_llava_folder)
    adapted = load_backbone(
        tiny_llava_folder, adapter=write(tmp_path / "tuned", prefix, use_rslora=rslora)
    )
    before, after = (b.model.state_dict() for b in (plain, adapted))
    assert [*before] == [*after]
    pairs = {f"{TODAY}{place}.weight": pair for place, pair in matrices().items()}
    for name, weight in before.items():
        if name in pairs:
            low, high = pairs[name]
            torch.testing.assert_close(after[name], weight + factor * high @ low)
        else:
            assert torch.equal(after[name], weight)
    assert not any(p.requires_grad for p in adapted.model.parameters())
    assert p_yes(adapted) != pytest.approx(p_yes(plain), abs=1e-4)
    assert adapted.fingerprint != plain.fingerprint
    assert adapted.name == f"{plain.name} with tuned"


def test_an_adapter_of_nothing_changes_no_bit(tiny_llava_folder: Path, tmp_path: Path) -> None:
    plain = load_backbone(tiny_llava_folder)
    adapted = load_backbone(tiny_llava_folder, adapter=write(tmp_path, lora_alpha=0))
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(adapted.model.state_dict()[name], weight)


def test_another_adapter_is_another_model(tmp_path: Path) -> None:
    first = write(tmp_path / "first")
    again, other = write(tmp_path / "again"), write(tmp_path / "other", lora_alpha=7.0)
    known = [fingerprint_with("abc", folder) for folder in (first, again, other)]
    assert known[0] == known[1] != known[2]
    assert known[0] != fingerprint_with("abd", first)


def test_what_does_not_fit_is_refused_by_name(tiny_llava: Backbone) -> None:
    down, up = torch.ones(2, 32), torch.ones(48, 2)
    name = f"base_model.model.{TODAY}layers.0.self_attn.q_proj"
    absent = "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"
    for stored, says in (
        ({absent: down}, "layers.9"),
        ({"base_model.model.lm_head.modules_to_save.weight": down}, "lm_head"),
        ({f"{name}.lora_A.weight": torch.ones(2, 31), f"{name}.lora_B.weight": up}, "2×31"),
        ({f"{name}.lora_A.weight": torch.ones(3, 32), f"{name}.lora_B.weight": up}, "3×32"),
        ({f"{name}.lora_A.weight": down}, "other half"),
        ({}, "none at all"),
    ):
        with pytest.raises(ModelError, match=says):
            fit(tiny_llava.model, stored, 2, "tuned")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "LOHA"}, "peft_type = 'LOHA'"),
        ({"use_dora": True}, "use_dora = True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"r": 0}, "r = 0"),
        ({"lora_alpha": None}, "lora_alpha = None"),
    ],
)
def test_what_is_not_plain_lora_is_refused(
    tiny_llava_folder: Path, tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        load_backbone(tiny_llava_folder, adapter=write(tmp_path, **config))


def test_other_files_are_refused(tiny_llava_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        load_backbone(tiny_llava_folder, adapter=tiny_llava_folder)
    pickled = write(tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(ModelError, match="safetensors alone"):
        load_backbone(tiny_llava_folder, adapter=pickled)
    with pytest.raises(SettingsError, match="--quantize int8"):
        load_backbone(tiny_llava_folder, adapter=pickled, quantize="int8")
