"""The bi-tower's losses, and a run from public weights."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from tiny_bitower import CASED, write_data_set, write_public_weights

from mrrag.cli.main import parser
from mrrag.data.corpus import read_corpus
from mrrag.errors import CorpusError, ModelError, SettingsError
from mrrag.retrieval.bi_tower import paper_tower
from mrrag.retrieval.encoders import load_encoder
from mrrag.training import loop
from mrrag.training.data import DataSet, split_for_training
from mrrag.training.loop import learning_rate
from mrrag.training.retriever import agreement, contrast, fact_loss, train_tower
from mrrag.training.starts import DEFAULTS, RetrieverOptions, start_tower

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


def options(folder: Path, **changes: object) -> RetrieverOptions:
    image, text = write_public_weights(folder, CASED)
    small = replace(
        DEFAULTS["public"],
        image_tower=image,
        text_tower=text,
        dimension=6,
        image_size=32,
        text_tokens=8,
        batch=8,
        steps=4,
        learning_rate=0.05,
        patience=0,
    )
    return replace(small, **changes)


def train(run: Path, data: DataSet, chosen: RetrieverOptions, output: Path) -> str:
    tower, _ = start_tower(chosen, data, output.name, assets=Path())
    return train_tower(run, tower, data, chosen, output)


def test_a_tower_from_public_weights_learns_and_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_data_set(tmp_path / "data", 30)
    data = split_for_training(read_corpus(folder), folder)
    train(tmp_path / "whole", data, options(tmp_path), tmp_path / "encoder")
    whole = load_encoder(tmp_path / "encoder")
    begun = paper_tower(
        *write_public_weights(tmp_path, CASED), dimension=6, image_size=32, max_text_tokens=8
    )
    assert not torch.allclose(whole.text_projection.weight, begun.text_projection.weight, atol=1e-4)

    def stopped(step: int, **schedule: float) -> float:
        if step == 2:
            raise KeyboardInterrupt
        return learning_rate(step, **schedule)

    every_step = partial(loop.fit, checkpoint_seconds=0)
    monkeypatch.setattr("mrrag.training.retriever.fit", every_step)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "learning_rate", stopped)
        train(tmp_path / "broken", data, options(tmp_path), tmp_path / "encoder2")
    assert not (tmp_path / "encoder2").exists()
    train(tmp_path / "broken", data, options(tmp_path), tmp_path / "encoder2" / "encoder")
    assert load_encoder(tmp_path / "encoder2" / "encoder").fingerprint == whole.fingerprint

    with pytest.raises(SettingsError, match="holds another run: steps, seed differ"):
        train(tmp_path / "whole", data, options(tmp_path, steps=9, seed=1), tmp_path / "x")


def test_a_case_whose_image_cannot_be_read_is_left_out_and_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_data_set(tmp_path / "data", 30)
    data = split_for_training(read_corpus(folder), folder)
    first = data.rows("train")[0]
    data.records[first].image_path.write_bytes(b"no image")
    train(tmp_path / "run", data, options(tmp_path), tmp_path / "encoder")
    listed = (tmp_path / "run" / "unreadable.txt").read_text().split()
    assert listed == [data.records[first].document.id]
    assert "1 images cannot be read" in caplog.text
    config = json.loads((tmp_path / "run" / "pairs" / "config.json").read_text())
    assert config["data"]["cases"] == 30
    assert (tmp_path / "run" / "pairs" / "plot.html").exists()
    for row in data.rows("train")[1:]:
        data.records[row].image_path.write_bytes(b"no image")
    with pytest.raises(CorpusError, match="0 cases with a report and an image to train on"):
        train(tmp_path / "none", data, options(tmp_path), tmp_path / "encoder")


def test_without_a_network_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = write_data_set(tmp_path / "data", 12)
    command = ["train-retriever", "--data", str(folder), "--runs", str(tmp_path / "runs")]
    arguments = parser().parse_args([*command, "--text-tower", "emilyalsentzer/Bio_ClinicalBERT"])
    with pytest.raises(ModelError, match=r"hub cannot be reached, and microsoft/resnet-50 "):
        arguments.run(arguments)


def test_problems_are_learnt_from_where_they_are_named(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path / "data", 30)
    read = read_corpus(folder)
    named = tuple(
        replace(case, problems=("effusion",) if n % 3 else ())
        for n, case in enumerate(read.records)
    )
    data = split_for_training(replace(read, records=named), folder)
    train(tmp_path / "run", data, options(tmp_path, steps=1, fact_steps=2), tmp_path / "encoder")
    metrics = (tmp_path / "run" / "pairs-facts" / "metrics.csv").read_text().splitlines()
    assert metrics[0].startswith("step,loss,recall_at_10")
    assert metrics[-1].startswith("2,")


def test_whole_patients_are_held_out_where_no_split_is_for_validation(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path / "data", 40)
    table = folder / "reports.csv"
    table.write_text(table.read_text().replace(",validation", ",").replace(",train", ","))
    data = split_for_training(read_corpus(folder), folder)
    train, held = (set(data.patients[data.rows(name)]) for name in ("train", "validation"))
    assert not train & held
    assert (len(train), len(held)) == (18, 2)
    few = write_data_set(tmp_path / "few", 2)
    with pytest.raises(CorpusError, match="two of each are needed"):
        split_for_training(read_corpus(few), few)
