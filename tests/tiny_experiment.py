"""A whole pipeline of random parts, and an experiment on its cases."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_bitower import make_cases, make_loaded_tower

from mrrag.data.records import Question, Record
from mrrag.learnt import Learnt
from mrrag.model.backbone import load_backbone
from mrrag.pipeline import Pipeline
from mrrag.retrieval.build import build_knowledge_base
from mrrag.retrieval.calibration import calibrate
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.study.experiment import Experiment, answer_all, choose_questions
from mrrag.study.heads import Heads
from mrrag.study.plan import Plan, cells_of
from mrrag.types import Steering, Weights

LEARNT = Learnt(Weights(0.5, 0.2, 0.3), Steering(1.0, (1,), "question+cue"))
PLAN = Plan((3,), (0.5,), ("rag_off", "rag", "mr_rag"), ablations=("masking",))
MADE_OF = {"model": "tiny"}


def make_heads(layers: int = 3, heads: int = 4, width: int = 12) -> Heads:
    """Return what might have been found of the heads of a model; by default the tiny LLaVA's."""
    rng = np.random.default_rng(0)
    direction = rng.standard_normal((layers, heads, width)).astype(np.float32)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    spread, probe, pasta = rng.random((3, layers, heads)).astype(np.float32)
    return Heads(direction, spread, probe, pasta)


ASKED = (
    "Is there pleural effusion left ?",
    "Is there no heart finding ?",
    "Is heart size normal ?",
)


def make_questions(cases: list[Record]) -> list[Question]:
    """Return three closed questions for each case, and an open one for every other."""
    rows = []
    for n, case in enumerate(cases):
        uid = case.document.id
        for m, text in enumerate(ASKED):
            answer = ("Yes", "No.")[(n + m) % 2]
            rows.append(Question(f"{uid}-{m}", uid, text, answer, "closed"))
        if n % 2:
            rows.append(Question(f"{uid}-open", uid, "Where is it ?", "left", "open"))
    return rows


def make_pipeline(folder: Path, checkpoint: Path) -> tuple[Pipeline, list[Record]]:
    """Return a pipeline whose knowledge base, built once, holds the cases that are asked about."""
    tower = make_loaded_tower(folder / "tower")
    cases = make_cases(folder / "images", 8)
    if not (folder / "kb").exists():
        build_knowledge_base(folder / "kb", cases, tower, thumbnail_size=16, workers=1)
    base = KnowledgeBase.load(folder / "kb", tower)
    calibration = calibrate(base)
    return Pipeline(load_backbone(checkpoint), tower, base, LEARNT, None, calibration), cases


def make_experiment(pipeline: Pipeline, cases: list[Record]) -> Experiment:
    """Return the whole plan on all closed questions."""
    cells = cells_of(PLAN, LEARNT, pipeline.backbone.layers)
    return Experiment(choose_questions(cases, make_questions(cases)), PLAN, tuple(cells), MADE_OF)


def answer(pipeline: Pipeline, cases: list[Record], run: Path, **options: Any) -> None:
    """Answer the whole plan in a run folder."""
    answer_all(pipeline, make_experiment(pipeline, cases), run, batch=8, **options)


def dying(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    """Yield the first batch, then kill this process."""
    for n, item in enumerate(items):
        if n == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield item


def answer_and_die(made: Path, checkpoint: Path, run: Path) -> None:
    """Answer a first batch of questions in a run folder, in a process that is then killed."""
    torch.set_num_threads(1)
    answer(*make_pipeline(made, checkpoint), run, ticker=dying)
