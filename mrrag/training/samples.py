"""Choose and write the sample cases that the page offers.

They come from the held-out split, and are chosen for what they show: retrieval mending
an answer, IFA mending one, a case that all three get wrong, a question that the model
declines. What a case shows was measured when it was chosen and is said in its note; the
page computes it again, live.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mrrag.phantom.dicom import dicom_bytes, png_bytes
from mrrag.phantom.render import render
from mrrag.phantom.world import Study
from mrrag.pipeline import Pipeline
from mrrag.study.evaluation import EncodedItem, Ticker, no_ticker, run
from mrrag.study.plan import ANSWER_TOKENS, effective
from mrrag.types import PLAIN

SIZE = 512


@dataclass(frozen=True)
class SampleCase:
    """One sample case, before it is written."""

    study: int
    title: str
    question: str
    note: str
    noise: int = 0


def choose(
    pipeline: Pipeline, items: Sequence[EncodedItem], *, k: int = 8, ticker: Ticker = no_ticker
) -> list[SampleCase]:
    """Pick one case for each behaviour worth showing; a behaviour not found is left out."""
    learnt = pipeline.learnt
    steered = effective(learnt.steering)
    ask = partial(run, pipeline, k=k, max_new_tokens=ANSWER_TOKENS)
    noise = k // 2
    (off,) = ask(items, None, [PLAIN], label="samples", ticker=ticker)
    rag, steered_rag = ask(items, learnt.weights, [PLAIN, steered], label="samples", ticker=ticker)
    # The page draws its noise with seed 0, so the same is done here, question by question.
    noisy_rag, noisy_ifa = (np.empty(len(items)) for _ in range(2))
    for i, item in enumerate(ticker(items, len(items), "samples with noise")):
        pair = ask([item], learnt.weights, [PLAIN, steered], noise=noise)
        noisy_rag[i], noisy_ifa[i] = pair[0].said[0], pair[1].said[0]
    gold = np.array([item.gold for item in items])
    yes = gold == 1
    right = {
        "off": off.said == gold,
        "rag": rag.said == gold,
        "ifa": steered_rag.said == gold,
        "noisy rag": noisy_rag == gold,
        "noisy ifa": noisy_ifa == gold,
    }
    used: set[str] = set()
    samples: list[SampleCase] = []

    def add(title: str, note: str, mask: np.ndarray, *, order: np.ndarray, noise: int = 0) -> None:
        for i in order[mask[order]]:
            study = items[i].case.document.study
            if study not in used:
                used.add(study)
                samples.append(
                    SampleCase(int(study), title, items[i].question.question, note, noise)
                )
                return

    doubt = -np.abs(off.p_yes - 0.5)  # most decided first
    decided = np.argsort(doubt)
    every = right["off"] & right["rag"] & right["ifa"]
    add(
        "A clear case",
        "All three answers are right, and the retrieved reports agree.",
        every & yes,
        order=decided,
    )
    add(
        "Retrieval mends a miss",
        "Without reports the model misses the finding; with them it does not.",
        ~right["off"] & right["rag"] & right["ifa"] & yes,
        order=decided,
    )
    add(
        "Retrieval mends a false alarm",
        "Without reports the model sees what is not there; with them it does not.",
        ~right["off"] & right["rag"] & right["ifa"] & ~yes,
        order=decided,
    )
    add(
        "IFA mends an answer",
        "RAG and MR-RAG read the same reports; only MR-RAG answers rightly.",
        ~right["rag"] & right["ifa"],
        order=np.argsort(np.abs(rag.p_yes - gold) * -1),
    )
    add(
        "Noise misleads, IFA holds",
        f"{noise} of the reports are drawn at random: RAG is misled by them, MR-RAG is not.",
        right["rag"] & ~right["noisy rag"] & right["noisy ifa"],
        order=decided,
        noise=noise,
    )
    add(
        "Retrieval misleads",
        "Without reports the model is right; with them it is not. It happens, though less often.",
        right["off"] & ~right["rag"] & ~right["ifa"],
        order=decided,
    )
    add(
        "All three are wrong",
        "Neither the model's eye nor the reports help here: a failure, shown as it is.",
        ~right["off"] & ~right["rag"] & ~right["ifa"],
        order=decided,
    )
    wide = [i for i in decided if len(items[i].case.problems) >= 2 and every[i]]
    for title, note in (
        ("An open question", "Asked to describe the picture, not to say yes or no."),
        ("Outside its world", "The model knows twelve findings. This is none of them: it says so."),
    ):
        study = next(s for i in wide if (s := items[i].case.document.study) not in used)
        used.add(study)
        question = (
            "Describe the findings." if title == "An open question" else "What is the blood type?"
        )
        samples.append(SampleCase(int(study), title, question, note))
    return samples


def write_samples(directory: Path, samples: Sequence[SampleCase], studies: Sequence[Study]) -> None:
    """Write the pictures, DICOM and PNG of both kinds each, and ``cases.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, sample in enumerate(samples, start=1):
        study = studies[sample.study]
        pixels = render(study, SIZE)
        stem = f"case-{number}"
        if number % 4 == 0:
            name, data = f"{stem}.png", png_bytes(pixels, bits=8)
        elif number % 4 == 3:
            name, data = f"{stem}.png", png_bytes(pixels, bits=16)
        elif number % 4 == 2:
            name, data = f"{stem}.dcm", dicom_bytes(study, pixels, "MONOCHROME1")
        else:
            name, data = f"{stem}.dcm", dicom_bytes(study, pixels, "MONOCHROME2")
        (directory / name).write_bytes(data)
        listed.append(
            {
                "file": name,
                "title": sample.title,
                "question": sample.question,
                "note": sample.note,
                "noise": sample.noise,
            }
        )
    text = json.dumps(listed, indent=2, ensure_ascii=False) + "\n"
    (directory / "cases.json").write_text(text, encoding="utf-8")
