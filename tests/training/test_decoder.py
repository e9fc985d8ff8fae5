"""The decoder is taught with reports of the study itself, and with no other."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mrrag.cli.main import main
from mrrag.data.records import Question, Record
from mrrag.phantom.write import write_data_set
from mrrag.training import decoder
from mrrag.training.data import DataSet, read_data_set
from mrrag.training.decoder import train_describing, train_reading
from mrrag.training.llava import build_llava
from mrrag.training.loop import claim_run
from mrrag.types import Document


@pytest.fixture(scope="module")
def tokenizer(tiny_llava_folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tiny_llava_folder)


def cases(count: int = 6) -> DataSet:
    splits = ["train"] * (count - 2) + ["validation"] * 2
    records = tuple(
        Record(
            Document(str(n), f"The heart is {n}.", f"p{n}", str(n), split=split),
            Path(f"{n}.png"),
            (),
        )
        for n, split in enumerate(splits)
    )
    questions = tuple(
        (Question(f"{n}.0", str(n), "Is the heart enlarged?", "Yes.", "closed"),)
        for n in range(count)
    )
    return DataSet(records, questions)


def features(data: DataSet) -> torch.Tensor:
    return torch.zeros(len(data.records), 64, 128).half()


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    return build_llava(tokenizer)


def test_every_report_is_one_of_the_study_written_anew(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, model: LlavaForConditionalGeneration
) -> None:
    data = cases()
    asked: list[tuple[int, int]] = []
    shown: list[tuple[int, tuple[str, ...]]] = []
    pack = decoder.Packer.pack

    def written_anew(n: int, copy: int) -> str:
        asked.append((n, copy))
        return f"Study {n}, copy {copy}."

    def spy(self: decoder.Packer, reports: list[str], questions: object, study: int) -> object:
        shown.append((study, tuple(reports)))
        return pack(self, reports, questions, study)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder.Packer, "pack", spy)
        train_describing(
            tmp_path,
            model,
            tokenizer,
            data,
            features(data),
            written_anew,
            steps=6,
            batch=2,
            max_k=3,
        )
    assert {len(reports) for _, reports in shown} == {0, 1, 2, 3}
    assert all(copy > 0 for _, copy in asked)  # never the report of the data set
    assert all(report.startswith(f"Study {n},") for n, reports in shown for report in reports)
    trained = [n for n, reports in shown if reports]
    assert set(trained) <= set(range(6))
    assert len({copy for _, copy in asked}) > len(asked) / 2  # not the same copy again and again


def test_the_same_seed_gives_the_same_decoder(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = cases()

    def weights(name: str, seed: int) -> np.ndarray:
        model = build_llava(tokenizer, seed)
        train_reading(tmp_path / name, model, tokenizer, data, steps=2, batch=2, seed=seed)
        return model.lm_head.weight.detach().numpy()

    np.testing.assert_array_equal(weights("a", 0), weights("b", 0))
    assert not np.array_equal(weights("c", 1), weights("d", 0))


def test_another_seed_does_not_go_on_in_the_run_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data_set(tmp_path / "world", patients=4, seed=1, size=64, workers=1)
    data = read_data_set(tmp_path / "world")
    claim_run(tmp_path / "model", config={}, seed=0, data=data.describe())
    command = ["mrrag", "train-model", "--data", str(tmp_path / "world"), "--runs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--seed", "1"])
    assert main() == 1
    assert "holds another run: seed differ" in capsys.readouterr().err
