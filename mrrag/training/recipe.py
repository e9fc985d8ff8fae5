"""The recipe of the bundled model, step by step. Each step is one command, and resumes.

tokenizer → retriever → (knowledge base) → model: vision tower, reading, describing; then what is
learnt for any model on any knowledge base (:mod:`mrrag.training.learn`). Finished training is
not repeated; delete a run folder to train again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mrrag.data.images import read_image
from mrrag.data.readers.rows import join_sections
from mrrag.errors import CorpusError
from mrrag.files import write_atomic
from mrrag.learnt import ALIKE, Learnt, write_learnt
from mrrag.loading import load_pipeline
from mrrag.model.backbone import load_backbone
from mrrag.model.prompt import REPORTS_HEADING
from mrrag.model.world import World, measure_world, save_world
from mrrag.phantom.report import TOPICS, write_report
from mrrag.phantom.world import draw_studies
from mrrag.pipeline import Pipeline
from mrrag.retrieval.bi_tower import pixels_of
from mrrag.retrieval.knowledge_base import KnowledgeBase, load_encoder_of
from mrrag.training.data import DataSet, cached_pixels
from mrrag.training.decoder import train_describing, train_reading
from mrrag.training.llava import build_llava
from mrrag.training.retriever import check_options, record_stages, train_retriever
from mrrag.training.starts import BUNDLED_RECIPE, build_tower
from mrrag.training.tokenizer import train_tokenizer
from mrrag.training.vision import labels_of, model_pixels, patch_features, train_vision
from mrrag.types import BUNDLED, Image, Steering

logger = logging.getLogger(__name__)

KNOWLEDGE_BASE_CASES = 2400
TRAINED_ON = "synthetic chest radiographs"
SCOPE_TERMS = (
    *TOPICS,
    *("heart", "lung", "chest", "pleural", "effusion", "fluid", "rib", "spine", "opacity", "line"),
    *("finding", "abnormality", "abnormal", "normal", "cardiac", "pneumonia", "catheter", "device"),
)
SCOPE_MESSAGE = (
    "This demo model only knows twelve findings on synthetic chest radiographs: "
    "cardiomegaly, pleural effusion, pneumothorax, consolidation, nodule, pulmonary edema, "
    "atelectasis, hyperinflation, pacemaker, central line, rib fracture and scoliosis. "
    "It cannot answer this question."
)


def tokenizer_of(data: DataSet) -> PreTrainedTokenizerFast:
    """Train the tokenizer of bi-tower and decoder on the texts of the training split."""
    rows = data.rows("train")
    texts = [data.records[n].document.report for n in rows]
    texts += [t for n in rows for q in data.questions[n] for t in (q.question, q.answer)]
    numbers = " ".join(f"{k}." for k in range(1, 51))
    return train_tokenizer([*texts, *(f"[INST] {REPORTS_HEADING}{numbers} [/INST]",) * 50])


def knowledge_base_rows(data: DataSet) -> npt.NDArray[np.int64]:
    """Return the rows of the training cases in the knowledge base, at most half of them.

    The adapter learns from questions about the others.
    """
    train = data.rows("train")
    return train[: min(KNOWLEDGE_BASE_CASES, len(train) // 2)]


def make_retriever(
    data: DataSet, runs: Path, assets: Path, steps: int | None = None, fact_steps: int | None = None
) -> None:
    """Train the bi-tower and save it to ``assets/encoder``; None takes the recipe's steps."""
    options = replace(
        BUNDLED_RECIPE,
        steps=BUNDLED_RECIPE.steps if steps is None else steps,
        fact_steps=BUNDLED_RECIPE.fact_steps if fact_steps is None else fact_steps,
    )
    check_options(options)
    tower = build_tower(tokenizer_of(data))
    pixels = _pixels(
        data,
        runs / "cache" / f"retriever-{tower.image_size}.npy",
        partial(pixels_of, size=tower.image_size),
    )
    train_retriever(runs / "retriever", tower, data, pixels, options)
    tower.save(assets / "encoder")
    record_stages(runs / "retriever", data, {**asdict(options), "tower": tower.fingerprint})


def _batches(pixels: npt.NDArray[np.float16]) -> Iterator[Tensor]:
    """Yield the images in batches of 64, in float32."""
    for start in range(0, len(pixels), 64):
        yield torch.from_numpy(pixels[start : start + 64].astype(np.float32))


def features_of(data: DataSet, model: LlavaForConditionalGeneration, runs: Path) -> Tensor:
    """Return the frozen tower's patch features of every image, float16 [N, P, D]."""
    pixels = _model_pixels(data, model, runs)
    with torch.inference_mode():
        return torch.cat([patch_features(model, batch).half() for batch in _batches(pixels)])


def _model_pixels(
    data: DataSet, model: LlavaForConditionalGeneration, runs: Path
) -> npt.NDArray[np.float16]:
    side = model.model.vision_tower.config.image_size
    return _pixels(data, runs / "cache" / f"model-{side}.npy", partial(model_pixels, side))


def _pixels(
    data: DataSet, cache: Path, prepare: Callable[[Sequence[Image]], npt.NDArray[np.float32]]
) -> npt.NDArray[np.float16]:
    """Return every image as an encoder reads it.

    Raises
    ------
    CorpusError
        If an image cannot be read.
    """
    paths = [record.image_path for record in data.records]
    pixels, unreadable = cached_pixels(cache, paths, prepare)
    if unreadable:
        cache.unlink()
        raise CorpusError(
            f"{len(unreadable)} images cannot be read; the first is {paths[unreadable[0]]}. "
            "Draw the world again with `python -m mrrag phantom`."
        )
    return pixels


def written_anew(data: DataSet, patients: int, seed: int) -> Callable[[int, int], str]:
    """Return how a case's report is written anew: the row of a case, a copy's number → a report.

    The studies are drawn again from the world's seed.

    Raises
    ------
    CorpusError
        If the data set is of another world.
    """
    studies = draw_studies(patients, seed)

    def report(n: int, copy: int) -> str:
        written = write_report(studies[int(data.records[n].document.study)], copy)
        return join_sections(written.findings, written.impression)

    if len(studies) != len(data.records) or report(0, 0) != data.reports[0]:
        raise CorpusError(
            f"{data.directory} is another world than that of the included model, whose reports are "
            f"written anew for training. Draw it by `python -m mrrag phantom DIR --patients "
            f"{patients} --seed {seed}`."
        )
    return report


def make_tower(data: DataSet, runs: Path, steps: int, seed: int = 0) -> None:
    """Train the vision tower of the small LLaVA."""
    model = build_llava(tokenizer_of(data), seed)
    labels, _ = labels_of([record.problems for record in data.records])
    pixels = _model_pixels(data, model, runs)
    train_vision(
        runs / "vision",
        model,
        pixels,
        labels,
        data.rows("train"),
        data.rows("validation"),
        steps=steps,
        seed=seed,
    )
    _save_weights(model.model.vision_tower, runs / "vision" / "tower.safetensors")


def make_reader(data: DataSet, runs: Path, steps: int, seed: int = 0) -> None:
    """Train stage 1 of the decoder: reading one report."""
    tokenizer = tokenizer_of(data)
    model = build_llava(tokenizer, seed)
    _to_device(model)
    train_reading(runs / "read", model, tokenizer, data, steps=steps, seed=seed)
    _save_weights(model, runs / "read" / "model.safetensors")


def make_model(
    data: DataSet,
    runs: Path,
    assets: Path,
    anew: Callable[[int, int], str],
    steps: int,
    seed: int = 0,
) -> None:
    """Train stage 2 of the decoder, and save the whole model to ``assets/llava``.

    ``anew`` is what :func:`written_anew` returned.
    """
    tokenizer = tokenizer_of(data)
    model = build_llava(tokenizer, seed)
    model.load_state_dict(load_file(runs / "read" / "model.safetensors"))
    model.model.vision_tower.load_state_dict(load_file(runs / "vision" / "tower.safetensors"))
    features_NPD = features_of(data, model, runs)
    device = _to_device(model)
    train_describing(
        runs / "describe",
        model,
        tokenizer,
        data,
        features_NPD.to(device),
        anew,
        steps=steps,
        seed=seed,
    )
    save_model(model, tokenizer, assets / "llava")


def _to_device(module: torch.nn.Module) -> str:
    """Move a module in place to a GPU, where there is one; return where it is."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module.to(device)
    return device


def save_model(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> None:
    """Save the checkpoint in float16, in files below 10 MB, with the scope of its knowledge."""
    halved: torch.nn.Module = model
    halved.cpu().half()
    model.save_pretrained(directory, max_shard_size="9MB")
    halved.float()
    tokenizer.save_pretrained(directory)
    scope = {"terms": SCOPE_TERMS, "message": SCOPE_MESSAGE}
    write_atomic(directory / "scope.json", json.dumps(scope, indent=2) + "\n")


def make_world(assets: Path) -> World:
    """Summarise the bundled training pictures for the model of ``assets``, beside it.

    They are those of the bundled knowledge base, all of the training split.
    """
    directory = assets / "knowledge_base"
    base = KnowledgeBase.load(directory, load_encoder_of(directory, assets / "encoder"))
    images = [read_image(base.thumbnail(i)) for i in range(len(base))]
    backbone = load_backbone(assets / "llava")
    world = measure_world(backbone, images, np.asarray(base.documents.patients), TRAINED_ON)
    save_world(world, assets / "llava")
    return world


def _save_weights(module: torch.nn.Module, path: Path) -> None:
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()
    }
    write_atomic(path, save(tensors))


def bundled_pipeline(assets: Path) -> Pipeline:
    """Load the bundled pipeline; before anything was learnt, with equal weights and no layers."""
    path = assets / "learnt.json"
    if not path.exists():
        write_learnt(path, Learnt(ALIKE, Steering(1.0, rows="question+cue")), model=BUNDLED)
    return load_pipeline(assets)
