"""The bi-tower: vectors of one space, and a file that is what it says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_bitower import CASED, WORDS, make_images, make_tower, write_public_weights
from transformers import (
    BertConfig,
    BertModel,
    ResNetModel,
)

from mrrag.errors import ModelError
from mrrag.retrieval.bi_tower import BiTower, paper_tower, pixels_of
from mrrag.retrieval.encoders import describe_encoder, load_described_encoder, load_encoder
from mrrag.types import Image


def test_pixels_are_standardised_and_padded_with_zeros() -> None:
    pixels = pixels_of([Image(np.tile(np.arange(0, 200, 5, dtype=np.uint8), (20, 1)))], 40)
    assert pixels.shape == (1, 1, 40, 40)
    assert pixels.dtype == np.float32
    assert np.all(pixels[0, 0, :10] == 0)
    assert np.all(pixels[0, 0, 30:] == 0)
    inside = pixels[0, 0, 10:30]
    assert abs(inside.mean()) < 1e-5
    assert abs(inside.std() - 1) < 1e-5


def test_pixels_do_not_depend_on_a_linear_change_of_window() -> None:
    grey = np.random.default_rng(1).integers(0, 100, (32, 32), dtype=np.uint8)
    brighter = (grey * 2 + 30).astype(np.uint8)
    plain, windowed = pixels_of([Image(grey), Image(brighter)], 32)
    np.testing.assert_allclose(plain, windowed, atol=1e-5)


def test_blank_and_extreme_pictures_are_finite() -> None:
    blank = Image(np.full((50, 20), 255, dtype=np.uint8))
    sliver = Image(np.arange(3000, dtype=np.uint16).astype(np.uint8).reshape(3000, 1))
    pixels = pixels_of([blank, sliver], 32)
    assert np.all(pixels[0] == 0)
    assert np.all(np.isfinite(pixels))


def test_colour_is_read_by_grey_and_by_colour_towers() -> None:
    colour = Image(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    assert pixels_of([colour], 32).shape == (1, 1, 32, 32)
    grey = make_images(1)[0]
    for channels in (1, 3):
        vectors = make_tower(channels).images([colour, grey])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    with pytest.raises(ModelError, match="1 or 3 channels"):
        pixels_of([grey], 32, channels=2)


def test_vectors_are_unit_and_do_not_depend_on_the_batch() -> None:
    tower = make_tower()
    images, texts = make_images(5), ["no finding", "left pleural effusion is there", "heart"]
    for together, one in (
        (tower.images(images, batch=2), [tower.images([i])[0] for i in images]),
        (tower.texts(texts), [tower.texts([t])[0] for t in texts]),
    ):
        assert together.dtype == np.float32
        assert together.shape[1] == tower.dimension
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(together, np.stack(one), atol=1e-5)
    assert tower.images([]).shape == tower.texts([]).shape == (0, tower.dimension)


def test_long_text_is_cut_and_empty_text_is_refused() -> None:
    tower = make_tower()
    cut = tower.texts(["heart " * 400, "heart " * 16])
    np.testing.assert_allclose(cut[0], cut[1], atol=1e-6)
    with pytest.raises(ModelError, match="empty"):
        tower.texts(["heart", " "])


def test_encoding_in_training_mode_is_refused() -> None:
    tower = make_tower().train()
    with pytest.raises(RuntimeError, match="eval"):
        tower.images(make_images(1))


def test_contrastive_gradients_reach_both_towers() -> None:
    tower = make_tower().train()
    pixels = torch.from_numpy(pixels_of(make_images(4), tower.image_size))
    ids, mask = tower.tokenize(["no finding", "effusion", "heart", "normal size"])
    logits = tower.logit_scale.exp() * tower.encode_pixels(pixels) @ tower.encode_ids(ids, mask).T
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    for name, parameter in tower.named_parameters():
        # BERT's token types are of its interface; only their first row is ever read.
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("float16", [True, False])
def test_save_and_load_gives_the_same_space(tmp_path: Path, float16: bool) -> None:
    tower = make_tower()
    tower.save(tmp_path, float16=float16)
    loaded = load_encoder(tmp_path)
    assert loaded.name == tower.name
    assert loaded.dimension == tower.dimension
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    tolerance = 5e-3 if float16 else 1e-6
    images = make_images(3)
    np.testing.assert_allclose(loaded.images(images), tower.images(images), atol=tolerance)
    np.testing.assert_allclose(loaded.texts(WORDS), tower.texts(WORDS), atol=tolerance)


def test_fingerprint_pins_the_files_and_is_lost_by_training(tmp_path: Path) -> None:
    tower = make_tower()
    assert tower.fingerprint == ""
    tower.save(tmp_path / "a")
    used = load_encoder(tmp_path / "a")
    used.texts(["heart size", "normal"])  # use must not leave its padding in the files
    used.save(tmp_path / "b")
    make_tower(seed=1).save(tmp_path / "c")
    a, b, c = (load_encoder(tmp_path / name) for name in "abc")
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert len(a.fingerprint) == 64
    assert a.eval().fingerprint == b.fingerprint
    assert a.train().fingerprint == ""


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    tower = make_tower()
    tower.save(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)

    renamed = dict(state)
    renamed["image_projection.w"] = renamed.pop("image_projection.weight")
    save_file(renamed, path)
    with pytest.raises(ModelError, match=r"1 tensors missing \(image_projection.weight\)"):
        load_encoder(tmp_path)

    save_file({**state, "image_projection.weight": torch.zeros(3, 16)}, path)
    with pytest.raises(ModelError, match="shape"):
        load_encoder(tmp_path)

    save_file({**state, "logit_scale": torch.tensor(float("nan"))}, path)
    with pytest.raises(ModelError, match="not finite"):
        load_encoder(tmp_path)

    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_encoder(tmp_path)

    path.unlink()
    with pytest.raises(ModelError, match=r"lacks model\.safetensors"):
        load_encoder(tmp_path)


def test_damaged_configuration_is_refused(tmp_path: Path) -> None:
    make_tower().save(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for damage, message in (
        ("{", "cannot be read"),
        (json.dumps({**config, "format": 99}), "Update MR-RAG"),
        (json.dumps({k: v for k, v in config.items() if k != "dimension"}), "dimension"),
        (json.dumps({**config, "max_text_tokens": 17}), "1 to 16"),
        ("[]", "holds no object"),
        ("[" * 10**5, "nested too deeply"),
        (json.dumps({**config, "format": "1"}), "format is a text"),
        (json.dumps({**config, "name": ["tower"]}), "name is a list"),
        (json.dumps({**config, "image_size": 10**9}), "image_size is 1000000000"),
        (json.dumps({**config, "image": None}), "image is null"),
        (json.dumps({**config, "image": {"depths": [10**9]}}), r"image\.depths\[0\] is 1000000000"),
        (
            json.dumps({**config, "text": {"layer_norm_eps": math.nan}}),
            "layer_norm_eps is nan",
        ),
        # Terabytes, which are never asked for: the weights have other shapes.
        (json.dumps({**config, "text": {"hidden_size": 49_152, "num_hidden_layers": 200}}), "miss"),
    ):
        path.write_text(damage)
        with pytest.raises(ModelError, match=message):
            load_encoder(tmp_path)


def test_tokenizer_that_does_not_fit_is_refused() -> None:
    tower = make_tower()
    small = BertConfig(vocab_size=4, hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    with pytest.raises(ModelError, match="not of one model"):
        BiTower(
            tower.image_config,
            small,
            tower.tokenizer,
            dimension=4,
            image_size=32,
            max_text_tokens=8,
            name="x",
        )


def test_the_papers_tower_begins_from_public_weights_and_is_kept(tmp_path: Path) -> None:
    resnet, bert = write_public_weights(tmp_path, CASED)
    tower = paper_tower(resnet, bert, dimension=6, image_size=32, max_text_tokens=8)
    pixels = torch.from_numpy(tower.prepare(make_images(2)))
    assert pixels.shape == (2, 3, 32, 32)
    image = ResNetModel.from_pretrained(resnet)
    ids, mask = tower.tokenize(["No Pleural effusions.", "no"])
    text = BertModel.from_pretrained(bert, use_safetensors=False)
    with torch.inference_mode():
        wanted = image(pixels).last_hidden_state
        torch.testing.assert_close(tower.image_tower(pixels).last_hidden_state, wanted)
        wanted = text(input_ids=ids, attention_mask=mask)[0]
        got = tower.text_tower(input_ids=ids, attention_mask=mask)[0]
        torch.testing.assert_close(got, wanted)
    # Capitals stay where the vocabulary has them, and [CLS] and [SEP] are there.
    assert ids[0].tolist() == [2, 4, 6, 7, 8, 9, 3]
    assert tower.fingerprint == ""
    same = paper_tower(resnet, bert, dimension=6, image_size=32, max_text_tokens=8)
    torch.testing.assert_close(same.text_projection.weight, tower.text_projection.weight)

    tower.save(tmp_path / "encoder", float16=False)
    loaded = load_encoder(tmp_path / "encoder")
    assert loaded.name == "resnet50-bioclinicalbert"
    np.testing.assert_allclose(
        loaded.images(make_images(2)), tower.images(make_images(2)), atol=1e-6
    )
    texts = ["No Pleural effusions.", "no"]
    np.testing.assert_allclose(loaded.texts(texts), tower.texts(texts), atol=1e-6)


def test_a_vocabulary_without_capitals_is_read_in_lower_case(tmp_path: Path) -> None:
    resnet, bert = write_public_weights(tmp_path, [w if w[0] == "[" else w.lower() for w in CASED])
    (Path(bert) / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nno\npleural\n")
    tower = paper_tower(resnet, bert, dimension=6, image_size=32, max_text_tokens=8)
    assert tower.tokenize(["No PLEURAL"])[0].tolist() == [[2, 4, 5, 3]]


def test_public_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    resnet, bert = write_public_weights(tmp_path, CASED)
    with pytest.raises(ModelError, match="is a bert, and a resnet is needed"):
        paper_tower(bert, resnet)
    weights = Path(bert) / "pytorch_model.bin"
    state = torch.load(weights, weights_only=True)
    torch.save({k: v for k, v in state.items() if "intermediate" not in k}, weights)
    with pytest.raises(ModelError, match="2 tensors missing"):
        paper_tower(resnet, bert)
    weights.unlink()
    with pytest.raises(ModelError, match=r"lacks model.safetensors or pytorch_model.bin"):
        paper_tower(resnet, bert)
    with pytest.raises(ModelError, match="not found"):
        paper_tower("nowhere", bert)


def test_a_manifest_leads_back_to_a_folder_beside_it(tmp_path: Path) -> None:
    make_tower().save(tmp_path / "encoder")
    entry = describe_encoder(load_encoder(tmp_path / "encoder"), tmp_path / "knowledge_base")
    assert entry["source"] == "../encoder"
    again = load_described_encoder(entry, tmp_path / "knowledge_base")
    assert again.fingerprint == entry["fingerprint"]
