"""The bi-tower, taught by contrast: an image and its own report, against a batch of others.

Two losses, each symmetric InfoNCE over the batch as in CLIP: image ↔ report, and
question ↔ report, without which the question–report similarity γ would come from a text
tower that never saw a question. Reports are shown with sentences left out at random
(ConVIRT samples one), so that the tower cannot live off a report's length or opening.

A second stage is fact-aware (FactMM-RAG): a report that names little is a poor label for
its image, so studies whose problems agree are positives of one another too, in the
measure in which they agree, image ↔ report and image ↔ image.
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

from mrrag.retrieval.encoders import BERT, RESNET, BiTower, paper_tower
from mrrag.training.data import DataSet, cached_pixels, checked, describe
from mrrag.training.loop import claim_run, fit, record_run
from mrrag.training.vision import jitter, labels_of

logger = logging.getLogger(__name__)

UNREADABLE = "unreadable.txt"

QUESTION_WEIGHT = 0.5
AGREEMENT_TEMPERATURE = 0.1


def build_tower(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> BiTower:
    """A randomly initialised small bi-tower, seeing four times the model's pixels."""
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
    """The report without some of its sentences; at least one stays."""
    sentences = [s for s in report.replace("\n", " ").split(". ") if s]
    chosen = [s for s in sentences if rng.random() < keep]
    if not chosen:
        chosen = [sentences[int(rng.integers(len(sentences)))]]
    return ". ".join(chosen)


def contrast(
    left_ND: Tensor, right_ND: Tensor, scale: Tensor, target_NN: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE over a batch, nats.

    Row n of one side belongs to row n of the other, or to the rows of the other in the
    shares ``target_NN`` (symmetric before its rows were normalised).
    """
    logits_NN = scale * left_ND @ right_ND.T
    own_N = torch.arange(len(logits_NN), device=logits_NN.device)
    target = own_N if target_NN is None else target_NN
    return 0.5 * (
        nn.functional.cross_entropy(logits_NN, target)
        + nn.functional.cross_entropy(logits_NN.T, target)
    )


def agreement(labels_NF: Tensor) -> Tensor:
    """Jaccard index of the problems of each two studies, [N, N]; two without any agree."""
    both_NN = labels_NF @ labels_NF.T
    either_NN = labels_NF.sum(1)[:, None] + labels_NF.sum(1)[None, :] - both_NN
    return torch.where(either_NN > 0, both_NN / either_NN.clamp(min=1), 1.0)


def fact_loss(v_ND: Tensor, t_ND: Tensor, labels_NF: Tensor, scale: Tensor) -> Tensor:
    """Fact-aware contrast, nats: image ↔ report, and image ↔ image without itself."""
    log_share_NN = agreement(labels_NF) / AGREEMENT_TEMPERATURE
    itself_NN = torch.eye(len(v_ND), dtype=torch.bool, device=v_ND.device)
    others_NN = log_share_NN.masked_fill(itself_NN, -torch.inf).softmax(-1)
    alike_NN = (scale * v_ND @ v_ND.T).masked_fill(itself_NN, torch.finfo(torch.float32).min)
    return contrast(v_ND, t_ND, scale, log_share_NN.softmax(-1)) + nn.functional.cross_entropy(
        alike_NN, others_NN
    )


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
    """Train the tower in place, where it is: ``steps`` by pairs, then ``fact_steps`` by facts.

    The second stage has half the learning rate, and is left out where the data set names
    no problems. Figures, on the validation split: recall@10 of a study's own report from
    its image, among all of the split's, and the mean Jaccard index of an image's problems
    with those of the nearest image of another patient.
    """
    train, validation = data.rows("train"), data.rows("validation")
    batch = min(batch, len(train))
    reports = data.reports
    device = tower.logit_scale.device
    labels = torch.from_numpy(labels_of([c.problems for c in data.records])[0]).to(device)
    if not labels.any():
        fact_steps = 0

    def encode_texts(texts: list[str]) -> Tensor:
        ids_NT, mask_NT = tower.tokenize(texts)
        return tower.encode_ids(ids_NT.to(device), mask_NT.to(device))

    def loss_at(step: int, facts: bool) -> Tensor:
        rng = np.random.default_rng((seed, step, *([1] if facts else [])))
        rows = np.sort(rng.choice(train, size=batch, replace=False))
        shown = jitter(torch.from_numpy(pixels[rows].astype(np.float32)), rng)
        texts = [drop_sentences(reports[n], rng) for n in rows]
        asked = [n for n in range(batch) if data.questions[rows[n]]]
        questions = [
            data.questions[rows[n]][int(rng.integers(len(data.questions[rows[n]])))].question
            for n in asked
        ]
        v_ND = tower.encode_pixels(shown.to(device))
        t_ND = encode_texts(texts)
        scale = tower.logit_scale.exp().clamp(max=50.0)
        pair = fact_loss(v_ND, t_ND, labels[rows], scale) if facts else contrast(v_ND, t_ND, scale)
        if not questions:
            return pair
        return pair + QUESTION_WEIGHT * contrast(encode_texts(questions), t_ND[asked], scale)

    def evaluate() -> Mapping[str, float]:
        v_ND = torch.cat(
            [
                tower.encode_pixels(
                    torch.from_numpy(pixels[rows].astype(np.float32)).to(device)
                ).cpu()
                for rows in np.array_split(validation, max(1, len(validation) // 128))
            ]
        )
        t_ND = torch.from_numpy(tower.texts([reports[n] for n in validation]))
        order = (v_ND @ t_ND.T).argsort(dim=1, descending=True)
        rank = (order == torch.arange(len(order))[:, None]).float().argmax(1)
        alike = v_ND @ v_ND.T
        patients = data.patients[validation]
        alike[torch.from_numpy(patients[:, None] == patients[None, :])] = -2.0
        nearest = alike.argmax(1).numpy()
        problems = [set(data.records[n].problems) for n in validation]
        same = [
            len(a & problems[j]) / len(a | problems[j]) if a | problems[j] else 1.0
            for a, j in zip(problems, nearest, strict=True)
        ]
        figures = {"recall_at_10": float((rank < 10).float().mean())}
        if labels.any():
            figures["neighbour_jaccard"] = float(np.mean(same))
        return figures | {"scale": float(tower.logit_scale.exp())}

    stages = zip(_stages(directory), (False, True), (steps, fact_steps), strict=True)
    for stage, facts, count in stages:
        if count:
            fit(
                stage,
                tower,
                partial(loss_at, facts=facts),
                steps=count,
                peak_lr=peak_lr / 2 if facts else peak_lr,
                evaluate=evaluate,
                evaluate_every=250,
            )


def _stages(directory: Path) -> tuple[Path, Path]:
    """The run folders of the two stages: by pairs, by facts."""
    return directory, directory.with_name(directory.name + "-facts")


def record_stages(
    directory: Path, data: DataSet, config: Mapping[str, object], *, seed: int = 0
) -> None:
    """Leave in the stages' run folders what they were, with their plots."""
    for stage in _stages(directory):
        if stage.exists():
            lines = ("loss", "recall_at_10", "neighbour_jaccard")
            about = describe(data)
            record_run(stage, config=config, seed=seed, data=about, x="step", lines=lines)


@dataclass(frozen=True)
class RetrieverOptions:
    """How a tower is begun from public weights and taught; the paper gives none of it.

    Attributes
    ----------
    image_tower, text_tower : str
        A ResNet and a BERT, by a name on the hub or a folder.
    image_revision, text_revision : str or None
        Branch, tag or commit on the hub.
    dimension, image_size, text_tokens : int
        As of :class:`mrrag.retrieval.encoders.BiTower`.
    learning_rate : float
        At its peak; ConVIRT's, which begins from such weights too.
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


def train_from_public(
    directory: Path, data: DataSet, lesson: RetrieverOptions, output: Path, *, device: str = "cpu"
) -> None:
    """Train a tower from public weights in the run folder ``directory``; write it to ``output``.

    The run folder says in ``config.json`` what it is a run of. A run that was stopped goes
    on, and ends as an undisturbed one on the same kind of machine. Cases whose image cannot
    be read are left out, and listed in ``unreadable.txt``.

    Raises
    ------
    ModelError
        Where the weights cannot be had, or are of other classes.
    SettingsError
        Where the run folder is of another run, with what differs.
    """
    tower = paper_tower(
        lesson.image_tower,
        lesson.text_tower,
        resnet_revision=lesson.image_revision,
        bert_revision=lesson.text_revision,
        dimension=lesson.dimension,
        image_size=lesson.image_size,
        max_text_tokens=lesson.text_tokens,
        name=output.name,
        seed=lesson.seed,
    )
    claim_run(directory, config=asdict(lesson), seed=lesson.seed, data=describe(data))
    pixels, unreadable = cached_pixels(
        directory / "pixels.npy", [case.image_path for case in data.records], tower.prepare
    )
    if unreadable:
        names = "".join(f"{data.records[n].document.id}\n" for n in unreadable)
        (directory / UNREADABLE).write_text(names, encoding="utf-8")
        logger.warning(
            "%d images cannot be read; their cases are left out, and listed in %s",
            len(unreadable),
            directory / UNREADABLE,
        )
        data = checked(data.without(unreadable))
    train_retriever(
        directory / "pairs",
        tower.to(device),
        data,
        pixels,
        steps=lesson.steps,
        fact_steps=lesson.fact_steps,
        batch=lesson.batch,
        peak_lr=lesson.learning_rate,
        seed=lesson.seed,
    )
    record_stages(directory / "pairs", data, asdict(lesson), seed=lesson.seed)
    tower.save(output)
