"""An answered case made by hand, and what a page says of its model."""

from __future__ import annotations

import math

import numpy as np

from app.about import About
from app.sections.settings import Controls
from app.sections.visit import CaseState, Update
from mrrag.case import Case, Evidence, Settings
from mrrag.types import METHODS, Answer, AttentionTrace, Document, Image, Retrieved, Span, Weights

HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(2)> \"'& {{constructor}} ${alert(3)}"
ABOUT = About(
    model="a model",
    layers=4,
    weights=Weights(0.351, 0.504, 0.298),
    critical=(1, 2),
    strength=1.0,
    phantoms_only=True,
)
LEARNT_CONTROLS = Controls(
    k=3, alpha=0.35, beta=0.5, gamma=0.3, strength=1.0, layers=["1", "2"], form="ifa", noise=0
)
K = 3


def retrieved(
    rank: int, terms: tuple[float, float, float], report: str = "No effusion."
) -> Retrieved:
    return Retrieved(
        document=Document(f"d{rank}", report, "p", "s"),
        rank=rank,
        score=math.fsum(terms),
        cosines=(0.1, 0.2, 0.3),
        terms=terms,
        relevance=0.5,
        gap=0.05,
    )


def picture(rows: int = 40, columns: int = 60) -> Image:
    grey = np.linspace(0, 255, rows * columns).reshape(rows, columns).astype(np.uint8)
    return Image(display=grey, notes=("Shown as stored.",), tags={"Modality": "DX"})


def trace(seed: int, steered: tuple[int, ...] = ()) -> AttentionTrace:
    """Attention over BOS, a 2 × 2 image, three reports, a question and its cue."""
    names = ["other", "image", "report 1", "report 2", "report 3", "question", "cue"]
    lengths = [1, 4, 5, 5, 5, 3, 1]
    ends = np.cumsum(lengths).tolist()
    spans = tuple(
        Span(name, end - length, end)
        for name, length, end in zip(names, lengths, ends, strict=True)
    )
    keys = np.random.default_rng(seed).random((4, ends[-1])).astype(np.float32)
    keys /= keys.sum(axis=1, keepdims=True)
    columns = (*names[1:], names[0])
    mass = np.stack(
        [
            np.stack([k[s.start : s.stop].sum() for n in columns for s in spans if s.name == n])
            for k in keys
        ]
    )
    return AttentionTrace(
        spans=spans,
        names=columns,
        mass_LHS=np.repeat(mass[:, None], 2, axis=1).astype(np.float32),
        keys_LX=keys,
        grid=(2, 2),
        layers=steered,
    )


def answered_case(image: Image | None = None) -> CaseState:
    reports = tuple(retrieved(rank, (0.3, 0.2, 0.1 / rank)) for rank in range(1, K + 1))
    answers = {
        m: Answer(m, f"Yes, {m}.", 0.6, 0.3, f"<s>{'<image>' * 4} question", 4, 0.5)
        for m in METHODS
    }
    result = Case(
        question="Is there an effusion?",
        retrieved=reports,
        answers=answers,
        before=trace(0),
        after=trace(1, (1, 2)),
        settings=Settings(k=K),
        notes=(),
        seconds={},
        versions={},
    )
    evidence = Evidence(None, reports, ABOUT.weights, (), 0.1)  # type: ignore[arg-type]
    return CaseState(image or picture(), evidence, result)


def refused(update: Update) -> str:
    """Return the status line of an update, which must say why."""
    assert 'class="status problem"' in update["status"]
    return update["status"]
