"""Choose and write the sample cases that the page offers.

They come from the held-out split, one for each behaviour worth showing: retrieval corrects an
answer, IFA corrects one, all answers are wrong, the model declines. The title and note of a
case say what was measured when it was chosen; the page computes it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mrrag.files import write_atomic
from mrrag.phantom.dicom import dicom_bytes, png_bytes
from mrrag.phantom.render import render
from mrrag.phantom.world import Study
from mrrag.pipeline import Pipeline
from mrrag.study.evaluation import EncodedItem, Ticker, answer_items, no_ticker
from mrrag.study.plan import ANSWER_TOKENS, effective
from mrrag.types import PLAIN

SIZE = 512

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SampleCase:
    """A sample case, before it is written."""

    study: int
    title: str
    question: str
    note: str
    noise: int = 0


@dataclass(frozen=True)
class Measured:
    """What each way of answering gave for N questions: flags [N] of right answers.

    ``yes`` flags the questions whose answer is yes, ``several`` the cases with several problems.
    ``certainty`` [N] is how far the first answer without reports is from undecided, and
    ``rag_error`` [N] how far plain RAG's probability of yes is from the truth.
    """

    off: Flags
    rag: Flags
    mr_rag: Flags
    noisy_rag: Flags
    noisy_mr_rag: Flags
    yes: Flags
    several: Flags
    certainty: npt.NDArray[np.floating]
    rag_error: npt.NDArray[np.floating]

    @property
    def all_right(self) -> Flags:
        """Flags of the questions that all three answer correctly."""
        return self.off & self.rag & self.mr_rag


@dataclass(frozen=True)
class Behaviour:
    """A behaviour worth showing.

    Attributes
    ----------
    shown : callable
        Flags the questions that show it.
    rank : callable
        The questions with the largest value are preferred.
    noisy : bool
        Whether half of the reports are drawn at random; ``note`` may name their number.
    question : str
        Asked instead of the question that was measured.
    """

    title: str
    note: str
    shown: Callable[[Measured], Flags]
    rank: Callable[[Measured], npt.NDArray[np.floating]] = lambda m: m.certainty
    noisy: bool = False
    question: str = ""


BEHAVIOURS = (
    Behaviour(
        "A clear case",
        "All three answers are right, and the retrieved reports agree.",
        lambda m: m.all_right & m.yes,
    ),
    Behaviour(
        "Retrieval corrects a missed finding",
        "Without reports the model misses the finding; with reports it does not.",
        lambda m: ~m.off & m.rag & m.mr_rag & m.yes,
    ),
    Behaviour(
        "Retrieval corrects a false positive",
        "Without reports the model sees a finding that is absent; with reports it does not.",
        lambda m: ~m.off & m.rag & m.mr_rag & ~m.yes,
    ),
    Behaviour(
        "IFA corrects an answer",
        "RAG and MR-RAG read the same reports; only MR-RAG answers correctly.",
        lambda m: ~m.rag & m.mr_rag,
        rank=lambda m: m.rag_error,
    ),
    Behaviour(
        "IFA resists irrelevant reports",
        "{noise} of the reports are drawn at random: they mislead RAG, but not MR-RAG.",
        lambda m: m.rag & ~m.noisy_rag & m.noisy_mr_rag,
        noisy=True,
    ),
    Behaviour(
        "Retrieval misleads",
        "Without reports the model is right; with reports it is wrong. This happens, though less "
        "often.",
        lambda m: m.off & ~m.rag & ~m.mr_rag,
    ),
    Behaviour(
        "All three are wrong",
        "Neither the picture nor the reports lead the model to the right answer.",
        lambda m: ~m.off & ~m.rag & ~m.mr_rag,
    ),
    Behaviour(
        "An open question",
        "Asks for a description of the picture, not for yes or no.",
        lambda m: m.all_right & m.several,
        question="Describe the findings.",
    ),
    Behaviour(
        "Outside the model's scope",
        "The model knows twelve findings. This is none of them, so it declines to answer.",
        lambda m: m.all_right & m.several,
        question="What is the blood type?",
    ),
)


def choose(
    pipeline: Pipeline, items: Sequence[EncodedItem], *, k: int = 8, ticker: Ticker = no_ticker
) -> list[SampleCase]:
    """Return one case for each behaviour, of different studies.

    A behaviour that no question shows is left out.
    """
    noise = k // 2
    measured = _measure(pipeline, items, k, noise, ticker)
    used: set[str] = set()
    samples: list[SampleCase] = []
    for behaviour in BEHAVIOURS:
        order = np.argsort(-behaviour.rank(measured))
        for i in order[behaviour.shown(measured)[order]]:
            study = items[i].case.document.study
            if study not in used:
                used.add(study)
                samples.append(
                    SampleCase(
                        study=int(study),
                        title=behaviour.title,
                        question=behaviour.question or items[i].question.question,
                        note=behaviour.note.format(noise=noise),
                        noise=noise if behaviour.noisy else 0,
                    )
                )
                break
    return samples


def _measure(
    pipeline: Pipeline, items: Sequence[EncodedItem], k: int, noise: int, ticker: Ticker
) -> Measured:
    learnt = pipeline.learnt
    steerings = [PLAIN, effective(learnt.steering)]
    answer = partial(answer_items, pipeline, k=k, max_new_tokens=ANSWER_TOKENS)
    (off,) = answer(items, None, [PLAIN], label="samples", ticker=ticker)
    rag, mr_rag = answer(items, learnt.weights, steerings, label="samples", ticker=ticker)
    noisy = np.empty((2, len(items)), dtype=np.int8)
    # One question at a time: each then has the seed 0, as on the page.
    for i, item in enumerate(ticker(items, len(items), "samples with noise")):
        outcomes = answer([item], learnt.weights, steerings, noise=noise)
        noisy[:, i] = [outcome.predicted[0] for outcome in outcomes]
    gold = np.array([item.gold for item in items])
    return Measured(
        off=off.predicted == gold,
        rag=rag.predicted == gold,
        mr_rag=mr_rag.predicted == gold,
        noisy_rag=noisy[0] == gold,
        noisy_mr_rag=noisy[1] == gold,
        yes=gold == 1,
        several=np.array([len(item.case.problems) >= 2 for item in items]),
        certainty=np.abs(off.p_yes - 0.5),
        rag_error=np.abs(rag.p_yes - gold),
    )


def write_samples(directory: Path, samples: Sequence[SampleCase], studies: Sequence[Study]) -> None:
    """Write the images, as DICOM and PNG files of two kinds each, and ``cases.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, sample in enumerate(samples, start=1):
        study = studies[sample.study]
        pixels = render(study, SIZE)
        suffix, data = (
            (".png", png_bytes(pixels, bits=8)),
            (".dcm", dicom_bytes(study, pixels, "MONOCHROME2")),
            (".dcm", dicom_bytes(study, pixels, "MONOCHROME1")),
            (".png", png_bytes(pixels, bits=16)),
        )[number % 4]
        name = f"case-{number}{suffix}"
        write_atomic(directory / name, data)
        row = {"file": name, "title": sample.title, "question": sample.question}
        rows.append(row | {"note": sample.note, "noise": sample.noise})
    text = json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    write_atomic(directory / "cases.json", text)
