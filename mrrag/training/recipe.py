"""The recipe of the bundled model, step by step; each step is one command and resumes.

tokenizer → retriever → (knowledge base) → model: tower, reading, weighing → adapter →
critical layers. A step that is finished is not done again: delete its run folder to
have it so.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mrrag.encoders import BiTower, load_bitower, pixels_of
from mrrag.evaluation import Asked, Ticker, read_questions_of, run
from mrrag.phantom.report import TOPICS
from mrrag.pipeline import Pipeline, load_pipeline
from mrrag.plan import PLAIN
from mrrag.prompt import REPORTS_HEADING
from mrrag.training.adapter import (
    NEGATIVES,
    Candidates,
    build_training_set,
    score_candidates,
    train_adapter,
    uncertainty,
)
from mrrag.training.data import DataSet, cached_pixels, describe, read_data_set
from mrrag.training.layers import sweep_layers, try_steering
from mrrag.training.llava import Vectors, build_llava, train_reading, train_weighing
from mrrag.training.loop import record_run
from mrrag.training.retriever import build_tower, train_retriever
from mrrag.training.tokenizer import train_tokenizer
from mrrag.training.vision import labels_of, model_pixels, patch_features, train_vision
from mrrag.types import Weights

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
    texts = [data.cases[n].document.report for n in rows]
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
    pixels = cached_pixels(
        runs / "cache" / f"retriever-{tower.image_size}.npy",
        [c.image_path for c in data.cases],
        partial(pixels_of, size=tower.image_size),
    )
    train_retriever(runs / "retriever", tower, data, pixels, steps=steps, fact_steps=fact_steps)
    tower.save(assets / "encoder")
    for name, count in (("retriever", steps), ("retriever-facts", fact_steps)):
        record_run(
            runs / name,
            config={"steps": count, "tower": tower.fingerprint},
            seed=0,
            data=describe(data),
            x="step",
            lines=("loss", "recall_at_10", "neighbour_jaccard"),
        )


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
    paths = [c.image_path for c in data.cases]
    return cached_pixels(runs / "cache" / f"model-{side}.npy", paths, partial(model_pixels, side))


def make_tower(data: DataSet, runs: Path, steps: int) -> None:
    """Train the small LLaVA's vision tower."""
    model = build_llava(tokenizer_of(data))
    labels, _ = labels_of([c.problems for c in data.cases])
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


def accuracy_with(
    pipeline: Pipeline, items: list[Asked], weights: Weights, k: int, label: str, ticker: Ticker
) -> float:
    """Accuracy of plain RAG with the reports that these weights retrieve."""
    (outcome,) = run(pipeline, items, weights, [PLAIN], k=k, label=label, ticker=ticker)
    return float(np.mean(outcome.said == np.array([item.gold for item in items])))


def make_adapter(
    data_directory: Path, runs: Path, assets: Path, questions: int, ticker: Ticker, k: int = 8
) -> dict[str, object]:
    """Learn α, β, γ on training questions about cases outside the knowledge base.

    The number of negatives is the one with which plain RAG is best on validation questions.
    """
    data = read_data_set(data_directory)
    pipeline = _pipeline(assets)
    outside = data.rows("train")[len(knowledge_base_rows(data)) :]
    made_of = (pipeline.backbone.fingerprint, pipeline.knowledge_base.fingerprint)
    kept = runs / "adapter" / f"d_train-{made_of[0][:8]}-{made_of[1][:8]}-{questions}.safetensors"
    if not kept.exists():
        items = asked_of(pipeline, data, outside, questions, ticker)
        scored = score_candidates(pipeline, items, ticker=ticker)
        kept.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            "cosines": torch.from_numpy(scored.cosines_QN3),
            "confidence": torch.from_numpy(scored.confidence_QN),
        }
        save_file(tensors, kept)
    stored = load_file(kept)
    scored = Candidates(stored["cosines"].numpy(), stored["confidence"].numpy())
    held_out = asked_of(pipeline, data, data.rows("validation"), questions, ticker)
    adapters = {m: train_adapter(build_training_set(scored, m)) for m in NEGATIVES}
    accuracies = {
        m: accuracy_with(pipeline, held_out, adapter.weights, k, f"m = {m}", ticker)
        for m, adapter in adapters.items()
    }
    best = max(accuracies, key=lambda m: accuracies[m])
    adapter = adapters[best]
    learnt = _read_learnt(assets)
    learnt["weights"] = asdict(adapter.weights)
    learnt["adapter"] = asdict(adapter) | {
        "split": "train",
        "positives": "the document with which the model is most confident of the right answer",
        "negatives": best,
        "trials": [
            {"negatives": m, "weights": asdict(adapters[m].weights), "validation_accuracy": a}
            for m, a in accuracies.items()
        ],
        "validation_questions": len(held_out),
        "model": made_of[0],
        "knowledge_base": made_of[1],
    }
    _write_learnt(assets, learnt)
    rows = []
    for m, a in adapters.items():
        row = {"negatives": m, "validation_accuracy": accuracies[m]} | asdict(a.weights)
        for name, (low, high) in zip(asdict(a.weights), a.intervals, strict=True):
            row |= {f"{name}_low": low, f"{name}_high": high, f"{name}_half": (high - low) / 2}
        rows.append(row | {"loss": a.loss, "validation_loss": a.validation_loss})
    record_run(
        runs / "adapter",
        config={"questions": questions, "k": k, "model": made_of[0], "knowledge_base": made_of[1]},
        seed=0,
        data=describe(data),
        rows=rows,
        x="negatives",
        lines=("alpha", "beta", "gamma", "validation_accuracy"),
        errors={name: f"{name}_half" for name in ("alpha", "beta", "gamma")},
    )
    logger.info("%s", uncertainty(adapter))
    return asdict(adapter)


def make_layers(
    data_directory: Path, runs: Path, assets: Path, questions: int, ticker: Ticker, k: int = 8
) -> dict[str, object]:
    """Sweep the layers and choose IFA's setting, both on validation questions."""
    data = read_data_set(data_directory)
    pipeline = _pipeline(assets)
    items = asked_of(pipeline, data, data.rows("validation"), questions, ticker)
    weights = pipeline.learnt.weights
    sweep = sweep_layers(pipeline, items, weights, k=k, ticker=ticker)
    critical = sweep.critical()
    order = sorted(range(len(sweep.drops)), key=lambda layer: -sweep.drops[layer])
    sets = sorted({tuple(sorted(order[:n])) for n in (1, 2)} | {critical})
    noise = (0, k // 4, k // 2, 3 * k // 4)
    trials = try_steering(pipeline, items, weights, sets, k=k, noise=noise, ticker=ticker)
    best = max(trials, key=lambda t: sum(t.gains))
    learnt = _read_learnt(assets)
    learnt |= {"layers": list(best.layers), "strength": best.strength, "rows": best.rows}
    learnt["sweep"] = asdict(sweep) | {
        "split": "validation",
        "critical": list(critical),
        "noise": list(noise),
        "trials": [asdict(t) for t in trials],
        "model": pipeline.backbone.fingerprint,
    }
    _write_learnt(assets, learnt)
    record_run(
        runs / "layers",
        config={"questions": questions, "k": k, "model": pipeline.backbone.fingerprint},
        seed=0,
        data=describe(data),
        rows=[
            {"layer": layer, "drop": drop, "standard_error": error}
            for layer, (drop, error) in enumerate(zip(sweep.drops, sweep.errors, strict=True))
        ],
        x="layer",
        lines=("drop",),
        errors={"drop": "standard_error"},
    )
    return {"sweep": asdict(sweep), "chosen": asdict(best)}


def asked_of(
    pipeline: Pipeline,
    data: DataSet,
    rows: npt.NDArray[np.int64],
    questions: int,
    ticker: Ticker,
) -> list[Asked]:
    """Up to so many yes/no questions about these cases, encoded."""
    return read_questions_of(
        pipeline,
        [data.cases[n] for n in rows],
        [data.questions[n] for n in rows],
        limit=questions,
        ticker=ticker,
    )


def _pipeline(assets: Path) -> Pipeline:
    """The pipeline, before anything has been learnt too: equal weights, no layers."""
    if not (assets / "learnt.json").exists():
        third = 1 / 3
        start = {"weights": asdict(Weights(third, third, third)), "layers": [], "strength": 1.0}
        _write_learnt(assets, start | {"rows": "question+cue"})
    return load_pipeline(assets)


def _read_learnt(assets: Path) -> dict[str, object]:
    stored: dict[str, object] = json.loads((assets / "learnt.json").read_text(encoding="utf-8"))
    return stored


def _write_learnt(assets: Path, learnt: dict[str, object]) -> None:
    text = json.dumps(learnt, indent=2) + "\n"
    (assets / "learnt.json").write_text(text, encoding="utf-8")
