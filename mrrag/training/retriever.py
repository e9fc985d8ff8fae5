"""Train a bi-tower by contrastive learning, from any start (:mod:`mrrag.training.starts`).

There are three losses. Image ↔ report is symmetric InfoNCE over the batch, as in CLIP. Question
↔ report is the same; without it, the question-report similarity (γ) would come from a text
tower that never saw a question. Sentences of a report are dropped at random (ConVIRT samples
one), so that the tower cannot rely on a report's length or first sentence.

The third is fact-aware (FactMM-RAG). A report that names few findings is a weak label for its
image, so studies with similar problems count as positives of one another too, in proportion to
the Jaccard index of their problems, image ↔ report and image ↔ image. Where a data set has no
labels, the problems are the findings that its reports affirm (:mod:`mrrag.data.findings`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mrrag.data.findings import FINDINGS, mentions
from mrrag.errors import SettingsError
from mrrag.files import write_atomic
from mrrag.retrieval.bi_tower import BiTower
from mrrag.retrieval.open_clip import OpenClip
from mrrag.training.augment import AUGMENTATIONS
from mrrag.training.data import DataSet, cached_pixels, require_cases
from mrrag.training.loop import EarlyStop, claim_run, fit, record_run
from mrrag.training.starts import RetrieverOptions, save_tower
from mrrag.training.vision import labels_of

logger = logging.getLogger(__name__)

UNREADABLE = "unreadable.txt"

QUESTION_WEIGHT = 0.5
AGREEMENT_TEMPERATURE = 0.1
WATCHED = "own_report"  # the figure of early stopping
EVALUATIONS = 20  # in a stage
VALIDATION_CASES = 1024  # at most
TEXTS_TOGETHER = 32


def drop_sentences(report: str, rng: np.random.Generator, keep: float) -> str:
    """Return the report with each sentence kept with probability ``keep``; at least one is."""
    sentences = [s for s in report.replace("\n", " ").split(". ") if s]
    chosen = [s for s in sentences if rng.random() < keep]
    if not chosen:
        chosen = [sentences[int(rng.integers(len(sentences)))]]
    return ". ".join(chosen)


def problems_of(data: DataSet) -> list[tuple[str, ...]]:
    """Return the problems of every case: its labels, or the findings that its report affirms.

    The findings are taken where no case of the data set has a label.
    """
    named = [record.problems for record in data.records]
    if any(named):
        return named
    return [
        tuple({m.finding: None for m in mentions(report, FINDINGS) if m.stance == "affirmed"})
        for report in data.reports
    ]


def contrast(
    left_ND: Tensor, right_ND: Tensor, scale: Tensor, target_NN: Tensor | None = None
) -> Tensor:
    """Return the symmetric InfoNCE loss of a batch, nats.

    The positive of row n is row n of the other side, or all its rows with the probabilities
    ``target_NN`` (symmetric before its rows were normalised).
    """
    logits_NN = scale * left_ND @ right_ND.T
    own_N = torch.arange(len(logits_NN), device=logits_NN.device)
    target = own_N if target_NN is None else target_NN
    return 0.5 * (
        nn.functional.cross_entropy(logits_NN, target)
        + nn.functional.cross_entropy(logits_NN.T, target)
    )


def agreement(labels_NF: Tensor) -> Tensor:
    """Return the Jaccard index of the problems of all pairs of studies, [N, N]; 1 without any."""
    both_NN = labels_NF @ labels_NF.T
    either_NN = labels_NF.sum(1)[:, None] + labels_NF.sum(1)[None, :] - both_NN
    return torch.where(either_NN > 0, both_NN / either_NN.clamp(min=1), 1.0)


def fact_loss(v_ND: Tensor, t_ND: Tensor, labels_NF: Tensor, scale: Tensor) -> Tensor:
    """Return the fact-aware loss, nats: image ↔ report, and image ↔ other images."""
    log_share_NN = agreement(labels_NF) / AGREEMENT_TEMPERATURE
    itself_NN = torch.eye(len(v_ND), dtype=torch.bool, device=v_ND.device)
    others_NN = log_share_NN.masked_fill(itself_NN, -torch.inf).softmax(-1)
    alike_NN = (scale * v_ND @ v_ND.T).masked_fill(itself_NN, torch.finfo(torch.float32).min)
    return contrast(v_ND, t_ND, scale, log_share_NN.softmax(-1)) + nn.functional.cross_entropy(
        alike_NN, others_NN
    )


@dataclass(frozen=True)
class _ContrastiveTask:
    """The loss and the validation figures of both stages."""

    tower: BiTower | OpenClip
    data: DataSet
    pixels: npt.NDArray[np.float16]
    problems: Sequence[tuple[str, ...]]
    labels_NF: Tensor  # the same, on the tower's device
    options: RetrieverOptions

    def loss_at(self, step: int, *, pairs: float, facts: float) -> Tensor:
        """Return the loss of a step, which draws its own batch, with the weights of two losses."""
        train = self.data.rows("train")
        batch = min(self.options.batch, len(train))
        rng = np.random.default_rng((self.options.seed, step, *([] if pairs else [1])))
        rows = np.sort(rng.choice(train, size=batch, replace=False))
        augment = AUGMENTATIONS[self.options.augment]
        shown = augment(torch.from_numpy(self.pixels[rows].astype(np.float32)), rng)
        reports = self.data.reports
        texts = [drop_sentences(reports[n], rng, self.options.keep) for n in rows]
        asked = [n for n in range(batch) if self.data.questions[rows[n]]]
        questions = []
        for n in asked:
            choices = self.data.questions[rows[n]]
            questions.append(choices[int(rng.integers(len(choices)))].question)
        v_ND = self._encode_pixels(shown)
        t_ND = self._encode_texts(texts)
        scale = self.tower.logit_scale.exp().clamp(max=50.0)
        loss = torch.zeros((), device=v_ND.device)
        if pairs:
            loss = loss + pairs * contrast(v_ND, t_ND, scale)
        if facts:
            loss = loss + facts * fact_loss(v_ND, t_ND, self.labels_NF[rows], scale)
        if not questions:
            return loss
        return loss + QUESTION_WEIGHT * contrast(self._encode_texts(questions), t_ND[asked], scale)

    def _encode_pixels(self, pixels_NCYX: Tensor) -> Tensor:
        device = self.labels_NF.device
        with _mixed_precision(device):
            return self.tower.encode_pixels(pixels_NCYX.to(device)).float()

    def _encode_texts(self, texts: list[str]) -> Tensor:
        """Encode texts, unit vectors [N, D]; short ones together, so that they need no padding."""
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        device = self.labels_NF.device
        parts = []
        for rows in np.array_split(order, -(-len(texts) // TEXTS_TOGETHER)):
            ids_NT, mask_NT = self.tower.tokenize([texts[n] for n in rows])
            with _mixed_precision(device):
                parts.append(self.tower.encode_ids(ids_NT.to(device), mask_NT.to(device)).float())
        return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(device)]

    def evaluate(self) -> Mapping[str, float]:
        """Return the figures described in :func:`train_retriever`."""
        rows = self.data.rows("validation")
        rows = rows[:: -(-len(rows) // VALIDATION_CASES)]
        pixels = (torch.from_numpy(self.pixels[c].astype(np.float32)) for c in _chunks(rows))
        v_ND = torch.cat([self._encode_pixels(chunk).cpu() for chunk in pixels])
        reports = self.data.reports
        t_ND = torch.cat([self._encode_texts([reports[n] for n in c]).cpu() for c in _chunks(rows)])
        similarity_NN = v_ND @ t_ND.T
        own_N1 = similarity_NN.diagonal()[:, None]
        above_N = (similarity_NN > own_N1).float().sum(1)
        figures = {
            "recall_at_10": float((above_N < 10).float().mean()),
            "own_report": 1 - float(above_N.mean()) / (len(rows) - 1),
        }
        if self.labels_NF.any():
            figures["neighbour_jaccard"] = self._neighbour_jaccard(v_ND, rows)
        return figures | {"scale": float(self.tower.logit_scale.exp())}

    def _neighbour_jaccard(self, v_ND: Tensor, rows: npt.NDArray[np.int64]) -> float:
        """Return the mean agreement of images with their nearest one of another patient."""
        similarity = v_ND @ v_ND.T
        patients = self.data.patients[rows]
        similarity[torch.from_numpy(patients[:, None] == patients[None, :])] = -2.0
        problems = [set(self.problems[n]) for n in rows]
        agreements = [
            len(a & problems[j]) / len(a | problems[j]) if a | problems[j] else 1.0
            for a, j in zip(problems, similarity.argmax(1).numpy(), strict=True)
        ]
        return float(np.mean(agreements))


def _mixed_precision(device: torch.device) -> torch.autocast:
    """Compute in bfloat16 where it is safe, on a GPU; in float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _chunks(rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    return np.array_split(rows, max(1, len(rows) // 128))


def _task(
    tower: BiTower | OpenClip,
    data: DataSet,
    pixels: npt.NDArray[np.float16],
    options: RetrieverOptions,
) -> _ContrastiveTask:
    problems = problems_of(data)
    labels_NF = torch.from_numpy(labels_of(problems)[0]).to(tower.logit_scale.device)
    return _ContrastiveTask(tower, data, pixels, problems, labels_NF, options)


def train_retriever(
    directory: Path,
    tower: BiTower | OpenClip,
    data: DataSet,
    pixels: npt.NDArray[np.float16],
    options: RetrieverOptions,
) -> None:
    """Train the tower in place, on its device; it ends with its best weights.

    ``options.steps`` on pairs, and on facts with ``options.fact_weight``; then
    ``options.fact_steps`` on facts alone, at half the learning rate. Where no problems are
    known, facts are left out. Data sets without questions are trained on pairs alone.

    Figures on the validation split: ``own_report``, the share of the split's other reports
    that are further from an image than its own report is (0.5 at random), by which the best
    weights are chosen; ``recall_at_10``, how often its own report is among the ten nearest;
    and ``neighbour_jaccard``, the mean Jaccard index of an image's problems with those of the
    nearest image of another patient.
    """
    # Convolutions are faster so, by a quarter on a CPU; only the order in memory changes.
    tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = _task(tower, data, pixels, options)
    known = bool(task.labels_NF.any())
    weights = ((1.0, options.fact_weight if known else 0.0), (0.0, 1.0))
    counts = (options.steps, options.fact_steps if known else 0)
    rates = (options.learning_rate, options.learning_rate / 2)
    early_stop = EarlyStop(WATCHED, options.patience) if options.patience else None
    for stage, (pairs, facts), steps, rate in zip(
        _stages(directory), weights, counts, rates, strict=True
    ):
        if steps:
            fit(
                stage,
                tower,
                partial(task.loss_at, pairs=pairs, facts=facts),
                steps=steps,
                peak_lr=rate,
                weight_decay=options.weight_decay,
                evaluate=task.evaluate,
                evaluate_every=max(1, steps // EVALUATIONS),
                early_stop=early_stop,
            )


def _stages(directory: Path) -> tuple[Path, Path]:
    """Return the run folders of the two stages: pairs, facts."""
    return directory, directory.with_name(directory.name + "-facts")


def record_stages(
    directory: Path, data: DataSet, config: Mapping[str, object], *, seed: int = 0
) -> None:
    """Write the settings, data and plot of each stage to its run folder."""
    for stage in _stages(directory):
        if stage.exists():
            lines = ("loss", "recall_at_10", "own_report", "neighbour_jaccard")
            about = data.describe()
            record_run(stage, config=config, seed=seed, data=about, x="step", lines=lines)


def train_tower(
    directory: Path,
    tower: BiTower | OpenClip,
    data: DataSet,
    options: RetrieverOptions,
    output: Path,
) -> str:
    """Train a tower, on its device, in the run folder ``directory``; save it to ``output``.

    A stopped run resumes and ends like an uninterrupted one on the same kind of machine. Cases
    whose image cannot be read are left out, and listed in ``unreadable.txt``.

    Returns
    -------
    str
        The validation figures of the weights that were kept, in words.

    Raises
    ------
    SettingsError
        If the run folder belongs to a run with other settings; names those that differ. If a
        setting is out of range.
    """
    check_options(options)
    config = {**asdict(options), "tower": tower.fingerprint}
    claim_run(directory, config=config, seed=options.seed, data=data.describe())
    pixels, unreadable = cached_pixels(
        directory / "pixels.npy", [case.image_path for case in data.records], tower.prepare
    )
    if unreadable:
        names = "".join(f"{data.records[n].document.id}\n" for n in unreadable)
        write_atomic(directory / UNREADABLE, names)
        logger.warning(
            "%d images cannot be read; their cases are left out and listed in %s",
            len(unreadable),
            directory / UNREADABLE,
        )
        data = require_cases(data.without(unreadable))
    train_retriever(directory / "pairs", tower, data, pixels, options)
    record_stages(directory / "pairs", data, config, seed=options.seed)
    save_tower(tower, output)
    with torch.inference_mode():
        figures = _task(tower.eval(), data, pixels, options).evaluate()
    return (
        f"On validation images, a study's own report is nearer than {figures['own_report']:.1%} "
        f"of the others (50 % at random), and among the ten nearest for "
        f"{figures['recall_at_10']:.1%}."
    )


def check_options(options: RetrieverOptions) -> None:
    """Raise :class:`SettingsError` if a number of the options is out of range."""
    lowest = {"steps": 0, "fact_steps": 0, "batch": 2, "patience": 0, "fact_weight": 0}
    for name, least in lowest.items():
        if getattr(options, name) < least:
            raise SettingsError(f"{name} is {getattr(options, name)}; it must be at least {least}.")
    if options.steps + options.fact_steps < 1:
        raise SettingsError("There is no step to train. Give --steps or --fact-steps.")
    if not 0 < options.learning_rate <= 1:
        raise SettingsError(
            f"The learning rate is {options.learning_rate}; it must be above 0 and at most 1."
        )
