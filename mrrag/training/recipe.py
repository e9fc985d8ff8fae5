"""The recipe of the bundled model, step by step; each step is one command and resumes.

tokenizer → retriever → (knowledge base) → model: tower, reading, weighing; then what is
learnt for any model on any knowledge base (:mod:`mrrag.training.learn`). A step that is
finished is not done again: delete its run folder to have it so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mrrag.errors import CorpusError
from mrrag.learnt import ALIKE, Learnt, write_learnt
from mrrag.model.prompt import REPORTS_HEADING
from mrrag.phantom.report import TOPICS
from mrrag.pipeline import Pipeline, load_pipeline
from mrrag.retrieval.encoders import BiTower, load_bitower, pixels_of
from mrrag.study.evaluation import EncodedItem, Ticker, read_questions_of
from mrrag.training.data import DataSet, cached_pixels
from mrrag.training.llava import Vectors, build_llava, train_reading, train_weighing
from mrrag.training.retriever import build_tower, record_stages, train_retriever
from mrrag.training.tokenizer import train_tokenizer
from mrrag.training.vision import labels_of, model_pixels, patch_features, train_vision
from mrrag.types import BUNDLED, Image, Steering

logger = logging.getLogger(__name__)

KNOWLEDGE_BASE_CASES = 2400
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
    """The tokenizer of both towers and the decoder, from the training split's texts."""
    rows = data.rows("train")
    texts = [data.records[n].document.report for n in rows]
    texts += [t for n in rows for q in data.questions[n] for t in (q.question, q.answer)]
    numbers = " ".join(f"{k}." for k in range(1, 51))
    return train_tokenizer([*texts, *(f"[INST] {REPORTS_HEADING}{numbers} [/INST]",) * 50])


def knowledge_base_rows(data: DataSet) -> npt.NDArray[np.int64]:
    """The training cases whose reports may be retrieved; half of them at most.

    The adapter learns from questions about the others.
    """
    train = data.rows("train")
    return train[: min(KNOWLEDGE_BASE_CASES, len(train) // 2)]


def make_retriever(data: DataSet, runs: Path, assets: Path, steps: int, fact_steps: int) -> None:
    """Train the bi-tower and write it to ``assets/encoder``."""
    tower = build_tower(tokenizer_of(data))
    pixels = _pixels(
        data,
        runs / "cache" / f"retriever-{tower.image_size}.npy",
        partial(pixels_of, size=tower.image_size),
    )
    train_retriever(runs / "retriever", tower, data, pixels, steps=steps, fact_steps=fact_steps)
    tower.save(assets / "encoder")
    config = {"steps": steps, "fact_steps": fact_steps, "tower": tower.fingerprint}
    record_stages(runs / "retriever", data, config)


def vectors_of(data: DataSet, tower: BiTower, runs: Path) -> Vectors:
    """Encode every image, report and question of the data set; kept in the run folder."""
    path = runs / "cache" / f"vectors-{tower.fingerprint[:12]}.safetensors"
    counts = [len(q) for q in data.questions]
    first = np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.int64)
    if not path.exists():
        pixels = np.load(
            runs / "cache" / f"retriever-{tower.image_size}.npy", mmap_mode="r", allow_pickle=False
        )
        with torch.inference_mode():
            images = [
                tower.encode_pixels(torch.from_numpy(pixels[i : i + 64].astype(np.float32)))
                for i in range(0, len(pixels), 64)
            ]
        questions = [q.question for row in data.questions for q in row]
        state = {
            "images": torch.cat(images),
            "reports": torch.from_numpy(tower.texts(data.reports)),
            "questions": torch.from_numpy(tower.texts(questions)),
        }
        save_file(state, path)
    state = load_file(path)
    return Vectors(
        state["images"].numpy(), state["reports"].numpy(), state["questions"].numpy(), first
    )


def features_of(data: DataSet, model: LlavaForConditionalGeneration, runs: Path) -> Tensor:
    """The frozen tower's patch features of every image, float16 [N, P, D]."""
    pixels = _model_pixels(data, model, runs)
    with torch.inference_mode():
        return torch.cat(
            [
                patch_features(
                    model, torch.from_numpy(pixels[i : i + 64].astype(np.float32))
                ).half()
                for i in range(0, len(pixels), 64)
            ]
        )


def _model_pixels(
    data: DataSet, model: LlavaForConditionalGeneration, runs: Path
) -> npt.NDArray[np.float16]:
    side = model.model.vision_tower.config.image_size
    return _pixels(data, runs / "cache" / f"model-{side}.npy", partial(model_pixels, side))


def _pixels(
    data: DataSet, cache: Path, prepare: Callable[[Sequence[Image]], npt.NDArray[np.float32]]
) -> npt.NDArray[np.float16]:
    """Every image of the world, all of which must be there."""
    pixels, unreadable = cached_pixels(cache, [c.image_path for c in data.records], prepare)
    if unreadable:
        cache.unlink()
        raise CorpusError(
            f"{len(unreadable)} images cannot be read, {data.records[unreadable[0]].image_path} for "
            "one. Draw the world again with `python -m mrrag phantom`."
        )
    return pixels


def make_tower(data: DataSet, runs: Path, steps: int) -> None:
    """Train the small LLaVA's vision tower."""
    model = build_llava(tokenizer_of(data))
    labels, _ = labels_of([c.problems for c in data.records])
    pixels = _model_pixels(data, model, runs)
    train_vision(
        runs / "vision",
        model,
        pixels,
        labels,
        data.rows("train"),
        data.rows("validation"),
        steps=steps,
    )
    save_file(_tensors(model.model.vision_tower), runs / "vision" / "tower.safetensors")


def make_reader(data: DataSet, runs: Path, steps: int) -> None:
    """Stage 1 of the decoder: reading one report."""
    tokenizer = tokenizer_of(data)
    model = build_llava(tokenizer)
    train_reading(runs / "read", model, tokenizer, data, steps=steps)
    save_file(_tensors(model), runs / "read" / "model.safetensors")


def make_model(data: DataSet, runs: Path, assets: Path, steps: int) -> None:
    """Stage 2 of the decoder, then the whole model to ``assets/llava``."""
    tokenizer = tokenizer_of(data)
    model = build_llava(tokenizer)
    model.load_state_dict(load_file(runs / "read" / "model.safetensors"))
    model.model.vision_tower.load_state_dict(load_file(runs / "vision" / "tower.safetensors"))
    tower = load_bitower(assets / "encoder")
    train_weighing(
        runs / "weigh",
        model,
        tokenizer,
        data,
        features_of(data, model, runs),
        vectors_of(data, tower, runs),
        knowledge_base_rows(data),
        steps=steps,
    )
    save_model(model, tokenizer, assets / "llava")


def save_model(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> None:
    """Write the checkpoint, halved, in files a Space can hold, with what it knows about."""
    halved: torch.nn.Module = model
    halved.half()
    model.save_pretrained(directory, max_shard_size="9MB")
    halved.float()
    tokenizer.save_pretrained(directory)
    scope = {"terms": SCOPE_TERMS, "message": SCOPE_MESSAGE}
    (directory / "scope.json").write_text(json.dumps(scope, indent=2) + "\n", encoding="utf-8")


def _tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}


def asked_of(
    pipeline: Pipeline,
    data: DataSet,
    rows: npt.NDArray[np.int64],
    questions: int,
    ticker: Ticker,
) -> list[EncodedItem]:
    """Up to so many yes/no questions about these cases, encoded."""
    return read_questions_of(
        pipeline,
        [data.records[n] for n in rows],
        [data.questions[n] for n in rows],
        limit=questions,
        ticker=ticker,
    )


def bundled_pipeline(assets: Path) -> Pipeline:
    """The pipeline, before anything has been learnt too: equal weights, no layers."""
    path = assets / "learnt.json"
    if not path.exists():
        write_learnt(path, Learnt(ALIKE, Steering(1.0, rows="question+cue")), model=BUNDLED)
    return load_pipeline(assets)
