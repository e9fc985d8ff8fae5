"""Train the bi-tower by contrastive learning.

The first stage has two losses, each symmetric InfoNCE over the batch as in CLIP: image ↔
report, and question ↔ report. Without the second, the question-report similarity (γ) would
come from a text tower that never saw a question. Sentences of a report are dropped at random
(ConVIRT samples one), so that the tower cannot rely on a report's length or first sentence.

The second stage is fact-aware (FactMM-RAG). A report that names few findings is a weak label
for its image, so studies with similar problems count as positives of one another too, in
proportion to the Jaccard index of their problems, image ↔ report and image ↔ image.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedTokenizerFast, ResNetConfig

from mrrag.files import write_atomic
from mrrag.retrieval.bi_tower import BERT, RESNET, BiTower, paper_tower
from mrrag.training.data import DataSet, cached_pixels, require_cases
from mrrag.training.loop import claim_run, fit, record_run
from mrrag.training.vision import jitter, labels_of

logger = logging.getLogger(__name__)

UNREADABLE = "unreadable.txt"

QUESTION_WEIGHT = 0.5
AGREEMENT_TEMPERATURE = 0.1


def build_tower(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> BiTower:
    """Return a randomly initialised small bi-tower; it sees four times the model's pixels."""
    torch.manual_seed(seed)
    image = ResNetConfig(
        num_channels=1,
        embedding_size=24,
        hidden_sizes=[32, 64, 128, 192],
        depths=[1, 1, 1, 1],
        layer_type="basic",
    )
    text = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BiTower(
        image,
        text,
        tokenizer,
        dimension=128,
        image_size=128,
        max_text_tokens=192,
        name="phantom-bitower",
    )


def drop_sentences(report: str, rng: np.random.Generator, keep: float = 0.85) -> str:
    """Return the report without some of its sentences; at least one is kept."""
    sentences = [s for s in report.replace("\n", " ").split(". ") if s]
    chosen = [s for s in sentences if rng.random() < keep]
    if not chosen:
        chosen = [sentences[int(rng.integers(len(sentences)))]]
    return ". ".join(chosen)


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

    tower: BiTower
    data: DataSet
    pixels: npt.NDArray[np.float16]
    labels_NF: Tensor  # problems, on the tower's device
    batch: int
    seed: int

    def loss_at(self, step: int, *, facts: bool) -> Tensor:
        """Return the loss of a step, which draws its own batch; ``facts`` is the second stage."""
        rng = np.random.default_rng((self.seed, step, *([1] if facts else [])))
        rows = np.sort(rng.choice(self.data.rows("train"), size=self.batch, replace=False))
        shown = jitter(torch.from_numpy(self.pixels[rows].astype(np.float32)), rng)
        reports = self.data.reports
        texts = [drop_sentences(reports[n], rng) for n in rows]
        asked = [n for n in range(self.batch) if self.data.questions[rows[n]]]
        questions = []
        for n in asked:
            choices = self.data.questions[rows[n]]
            questions.append(choices[int(rng.integers(len(choices)))].question)
        v_ND = self.tower.encode_pixels(shown.to(self.labels_NF.device))
        t_ND = self._encode_texts(texts)
        scale = self.tower.logit_scale.exp().clamp(max=50.0)
        if facts:
            loss = fact_loss(v_ND, t_ND, self.labels_NF[rows], scale)
        else:
            loss = contrast(v_ND, t_ND, scale)
        if not questions:
            return loss
        return loss + QUESTION_WEIGHT * contrast(self._encode_texts(questions), t_ND[asked], scale)

    def _encode_texts(self, texts: list[str]) -> Tensor:
        ids_NT, mask_NT = self.tower.tokenize(texts)
        device = self.labels_NF.device
        return self.tower.encode_ids(ids_NT.to(device), mask_NT.to(device))

    def evaluate(self) -> Mapping[str, float]:
        """Return the figures described in :func:`train_retriever`."""
        validation = self.data.rows("validation")
        v_ND = torch.cat([self._encode_images(rows) for rows in _chunks(validation)])
        reports = self.data.reports
        t_ND = torch.from_numpy(self.tower.texts([reports[n] for n in validation]))
        order = (v_ND @ t_ND.T).argsort(dim=1, descending=True)
        rank = (order == torch.arange(len(order))[:, None]).float().argmax(1)
        figures = {"recall_at_10": float((rank < 10).float().mean())}
        if self.labels_NF.any():
            figures["neighbour_jaccard"] = self._neighbour_jaccard(v_ND, validation)
        return figures | {"scale": float(self.tower.logit_scale.exp())}

    def _encode_images(self, rows: npt.NDArray[np.int64]) -> Tensor:
        shown = torch.from_numpy(self.pixels[rows].astype(np.float32))
        return self.tower.encode_pixels(shown.to(self.labels_NF.device)).cpu()

    def _neighbour_jaccard(self, v_ND: Tensor, rows: npt.NDArray[np.int64]) -> float:
        """Return the mean agreement of images with their nearest one of another patient."""
        similarity = v_ND @ v_ND.T
        patients = self.data.patients[rows]
        similarity[torch.from_numpy(patients[:, None] == patients[None, :])] = -2.0
        problems = [set(self.data.records[n].problems) for n in rows]
        agreements = [
            len(a & problems[j]) / len(a | problems[j]) if a | problems[j] else 1.0
            for a, j in zip(problems, similarity.argmax(1).numpy(), strict=True)
        ]
        return float(np.mean(agreements))


def _chunks(rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    return np.array_split(rows, max(1, len(rows) // 128))


def train_retriever(
    directory: Path,
    tower: BiTower,
    data: DataSet,
    pixels: npt.NDArray[np.float16],
    *,
    steps: int,
    fact_steps: int,
    batch: int = 96,
    peak_lr: float = 1e-3,
    seed: int = 0,
) -> None:
    """Train the tower in place, on its device: ``steps`` on pairs, ``fact_steps`` on facts.

    The second stage has half the learning rate, and is left out where the data set names no
    problems. Figures on the validation split: recall@10 of a study's own report, given its
    image, among all reports of the split, and the mean Jaccard index of an image's problems
    with those of the nearest image of another patient.
    """
    labels = torch.from_numpy(labels_of([r.problems for r in data.records])[0])
    labels_NF = labels.to(tower.logit_scale.device)
    if not labels_NF.any():
        fact_steps = 0
    batch = min(batch, len(data.rows("train")))
    task = _ContrastiveTask(tower, data, pixels, labels_NF, batch, seed)
    stages = zip(_stages(directory), (False, True), (steps, fact_steps), strict=True)
    for stage, facts, count in stages:
        if count:
            fit(
                stage,
                tower,
                partial(task.loss_at, facts=facts),
                steps=count,
                peak_lr=peak_lr / 2 if facts else peak_lr,
                evaluate=task.evaluate,
                evaluate_every=250,
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
            lines = ("loss", "recall_at_10", "neighbour_jaccard")
            about = data.describe()
            record_run(stage, config=config, seed=seed, data=about, x="step", lines=lines)


@dataclass(frozen=True)
class RetrieverOptions:
    """Settings of training from pretrained weights; the paper states none of them.

    Attributes
    ----------
    image_tower, text_tower : str
        A ResNet and a BERT: a name on the hub, or a folder.
    image_revision, text_revision : str or None
        Branch, tag or commit on the hub.
    dimension, image_size, text_tokens : int
        As in :class:`mrrag.retrieval.encoders.BiTower`.
    learning_rate : float
        Peak; that of ConVIRT, which starts from such weights too.
    """

    image_tower: str = RESNET
    text_tower: str = BERT
    image_revision: str | None = None
    text_revision: str | None = None
    dimension: int = 512
    image_size: int = 224
    text_tokens: int = 256
    steps: int = 1000
    fact_steps: int = 600
    batch: int = 96
    learning_rate: float = 1e-4
    seed: int = 0


def train_from_pretrained(
    directory: Path, data: DataSet, options: RetrieverOptions, output: Path, *, device: str = "cpu"
) -> None:
    """Train a tower from pretrained weights in the run folder ``directory``; save it to ``output``.

    A stopped run resumes and ends like an uninterrupted one on the same kind of machine. Cases
    whose image cannot be read are left out, and listed in ``unreadable.txt``.

    Raises
    ------
    ModelError
        If the weights cannot be loaded, or have other architectures.
    SettingsError
        If the run folder belongs to a run with other settings; names those that differ.
    """
    tower = paper_tower(
        options.image_tower,
        options.text_tower,
        resnet_revision=options.image_revision,
        bert_revision=options.text_revision,
        dimension=options.dimension,
        image_size=options.image_size,
        max_text_tokens=options.text_tokens,
        name=output.name,
        seed=options.seed,
    )
    claim_run(directory, config=asdict(options), seed=options.seed, data=data.describe())
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
    train_retriever(
        directory / "pairs",
        tower.to(device),
        data,
        pixels,
        steps=options.steps,
        fact_steps=options.fact_steps,
        batch=options.batch,
        peak_lr=options.learning_rate,
        seed=options.seed,
    )
    record_stages(directory / "pairs", data, asdict(options), seed=options.seed)
    tower.save(output)
