"""Training goes on from any tower, heeds every option or refuses it, and leaves assets alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_bitower import make_images, make_tower, write_data_set
from tiny_openclip import (
    resnet_state,
    write_biomedclip,
    write_resnet_base,
    write_training_checkpoint,
)

from mrrag.cli.main import parser
from mrrag.data.corpus import read_corpus
from mrrag.errors import SettingsError
from mrrag.files import ASSETS
from mrrag.retrieval.encoders import load_bitower, load_encoder
from mrrag.retrieval.open_clip_writer import save_open_clip
from mrrag.training.data import DataSet, split_for_training
from mrrag.training.retriever import problems_of, train_tower
from mrrag.training.starts import RetrieverOptions, options_for, start_tower


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Thirty cases without a question."""
    folder = write_data_set(tmp_path_factory.mktemp("data"), 30)
    return split_for_training(read_corpus(folder), folder)


def train(folder: Path, data: DataSet, options: RetrieverOptions) -> str:
    tower, kept = start_tower(options, data, "encoder", assets=ASSETS)
    train_tower(folder / "run", tower, data, options, folder / "encoder")
    return kept


def test_a_small_tower_is_trained_without_questions_or_labels(
    tmp_path: Path, data: DataSet
) -> None:
    given = {"steps": 2, "batch": 4, "image_size": 32, "vocabulary": 300, "dimension": 8}
    kept = train(tmp_path, data, options_for("small", given))
    assert kept.startswith("random weights")
    tower = load_bitower(tmp_path / "encoder")
    assert (tower.name, tower.image_size, tower.dimension) == ("encoder", 32, 8)
    assert len(tower.tokenizer) <= 300
    names = {name for problems in problems_of(data) for name in problems}
    assert "pleural effusion" in names  # affirmed by a report; the data set names no problem


def test_the_bundled_tower_lends_its_image_half(data: DataSet) -> None:
    options = options_for("bundled", {"vocabulary": 300})
    tower, kept = start_tower(options, data, "encoder", assets=ASSETS)
    bundled = load_bitower(ASSETS / "encoder")
    assert kept.startswith("the image half of phantom-bitower is kept; the text half is new")
    images = make_images(2)
    assert (tower.eval().images(images) == bundled.images(images)).all()
    assert len(tower.tokenizer) <= 300 < len(bundled.tokenizer)


def test_a_saved_tower_goes_on_with_all_its_weights(tmp_path: Path, data: DataSet) -> None:
    make_tower().save(tmp_path / "before")
    start = str(tmp_path / "before")
    tower, kept = start_tower(options_for(start, {}), data, "encoder", assets=ASSETS)
    before = load_encoder(start)
    assert kept.startswith("all weights and the tokenizer of tiny tower 0")
    assert (tower.texts(["no effusion"]) == before.texts(["no effusion"])).all()
    train(tmp_path, data, options_for(start, {"steps": 2, "batch": 4, "learning_rate": 0.01}))
    after = load_encoder(tmp_path / "encoder")
    assert not (after.texts(["no effusion"]) == before.texts(["no effusion"])).all()


def write_resnet(folder: Path) -> Path:
    checkpoint = write_training_checkpoint(folder / "open_clip_pytorch_model.bin", resnet_state())
    return write_resnet_base(checkpoint.parent)


@pytest.mark.parametrize("write", [write_biomedclip, write_resnet])
def test_a_tower_of_open_clip_is_trained_and_saved_as_it_is_published(
    tmp_path: Path, data: DataSet, write: Callable[[Path], Path]
) -> None:
    start = str(write(tmp_path / "before"))
    before = load_encoder(start)
    save_open_clip(before, tmp_path / "copy")
    copy = load_encoder(tmp_path / "copy")
    images, texts = make_images(2), ["no effusion", "heart size normal"]
    assert (copy.images(images) == before.images(images)).all()
    assert (copy.texts(texts) == before.texts(texts)).all()
    few = data.subset([*data.rows("train")[:4], *data.rows("validation")[:2]])
    train(tmp_path, few, options_for(start, {"steps": 1, "batch": 2}))
    after = load_encoder(tmp_path / "encoder")
    assert not (after.images(images) == before.images(images)).all()


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["--vocabulary", "9", "--start", "public"], "--vocabulary cannot be used with --start"),
        (["--image-tower", "x", "--start", "small"], "--image-tower cannot be used with --start"),
        (["--image-size", "9", "--start", "bundled"], "--image-size cannot be used"),
        (["--dimension", "9", "--start", "some/tower"], "its tokenizer are its own"),
        (["--revision", "v1"], "--revision cannot be used with --start bundled"),
        (["--assets", "elsewhere", "--start", "small"], "--assets goes with --start bundled"),
        (["--batch", "1"], "batch is 1; it must be at least 2"),
        (["--steps", "0"], "no step to train"),
        (["--learning-rate", "-1"], "must be above 0"),
        (["--recipe", "bundled", "--output", "x", "--seed", "3"], "--output, --seed cannot be"),
        (["--recipe", "bundled", "--vqa"], "--vqa cannot be used with --recipe bundled"),
        (["--output", "x", "--start", "x"], "x is also where training starts"),
    ],
)
def test_what_a_start_does_not_heed_is_refused_by_name(arguments: list[str], refused: str) -> None:
    args = parser().parse_args(["train-retriever", "--data", "nowhere", *arguments])
    with pytest.raises(SettingsError, match=refused):
        args.run(args)


def test_the_command_writes_to_its_output_and_not_to_assets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_data_set(tmp_path / "data", 30)
    before = (ASSETS / "encoder" / "model.safetensors").stat().st_mtime_ns
    command = ["train-retriever", "--data", str(folder), "--runs", str(tmp_path / "runs")]
    sizes = ["--start", "small", "--image-size", "32", "--vocabulary", "300"]
    args = parser().parse_args([*command, *sizes, "--steps", "1", "--batch", "4"])
    args.run(args)
    said = capsys.readouterr().out
    assert "30 cases with a report" in said
    assert "Start: random weights" in said
    assert "a study's own report is nearer than" in said
    assert load_bitower(tmp_path / "runs" / "encoder").image_size == 32
    assert (ASSETS / "encoder" / "model.safetensors").stat().st_mtime_ns == before


def test_texts_of_any_length_are_encoded_alike_alone_and_together(data: DataSet) -> None:
    from mrrag.training.retriever import _task

    options = options_for("small", {"image_size": 32, "vocabulary": 300})
    tower, _ = start_tower(options, data, "encoder", assets=ASSETS)
    tower.eval()
    task = _task(tower, data, None, options)  # type: ignore[arg-type]
    texts = [" ".join(["no effusion"] * (1 + n * 7 % 40)) for n in range(70)]
    with torch.inference_mode():
        together = task._encode_texts(texts)
    assert torch.allclose(together, torch.from_numpy(tower.texts(texts)), atol=1e-5)
