"""The small LLaVA: built, and taught in stages to read reports, then reports and image.

It has the classes of LLaVA-Med 1.5 (a CLIP tower, a two-layer projector, a Mistral
decoder), so one code path serves both. Its stages, after the tower
(:mod:`mrrag.training.vision`):

1. *read*: a study's own report, no image. A transformer this small finds "where in the
   report does it say what I was asked" only in short, clean sequences.
2. *weigh*: the image and 0 to K reports of other patients, retrieved and irrelevant
   mixed in random order, so that a report's place says nothing and its content must be
   held against the image and the other reports.

Several questions share one prefix: they sit behind it side by side, each seeing the
prefix and itself alone, which is what separate sequences would see, at a fraction of
the cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedTokenizerFast,
)

from mrrag.model.prompt import Tokenizer, build_prompt
from mrrag.training.data import DataSet
from mrrag.training.loop import fit
from mrrag.types import FloatArray

IGNORE = -100
# Shares of irrelevant reports in training. Evaluation goes further (three quarters), so that
# the model is also seen where it was not taught.
NOISE = (0.0, 0.25, 0.5)


def build_llava(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlavaForConditionalGeneration:
    """A randomly initialised small LLaVA.

    Its eye is weak by design: 64 × 64 px, where the retriever sees far more. That is the
    paper's situation (a general model beside a specialised retriever), and what gives
    retrieval something to add.
    """
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
            projection_dim=128,
        ),
        text_config=MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=4096,
            sliding_window=None,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.get_vocab()["<image>"],
        image_seq_length=64,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


@dataclass(frozen=True)
class CachedTokenizer:
    """A tokenizer that remembers: the same reports and questions come by many times."""

    tokenizer: PreTrainedTokenizerFast
    seen: dict[str, list[int]] = field(default_factory=dict)

    @property
    def bos_token_id(self) -> int | None:
        """As of the tokenizer."""
        bos: int | None = self.tokenizer.bos_token_id
        return bos

    @property
    def all_special_tokens(self) -> list[str]:
        """As of the tokenizer."""
        return list(self.tokenizer.all_special_tokens)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """As of the tokenizer, without special tokens."""
        assert not add_special_tokens
        if text not in self.seen:
            self.seen[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self.seen[text]


@dataclass(frozen=True)
class Packed:
    """One prefix and the questions behind it, as plain numbers; see :func:`pack`.

    ``block`` is 0 for the prefix and n for question n; ``labels`` holds the answer
    tokens at the position that predicts them, :data:`IGNORE` elsewhere.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    block: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    image_start: int
    study: int


def pack(
    tokenizer: Tokenizer,
    eos_token_id: int,
    reports: Sequence[str],
    questions: Sequence[tuple[str, str]],
    *,
    image_token_id: int,
    image_tokens: int,
    study: int,
) -> Packed:
    """Lay the questions side by side behind one prefix.

    Parameters
    ----------
    questions
        Pairs of question and answer.
    study
        Which study's image fills the placeholders.
    """
    ids: list[int] = []
    positions: list[int] = []
    block: list[int] = []
    labels: list[int] = []
    image_start = 0
    for n, (question, reply) in enumerate(questions, start=1):
        prompt = build_prompt(
            tokenizer,
            question,
            reports,
            image_token_id=image_token_id,
            image_tokens=image_tokens,
        )
        start = prompt.suffix_start
        if n == 1:
            ids += prompt.ids[:start]
            positions += range(start)
            block += [0] * start
            labels += [IGNORE] * start
            image_start = prompt.span("image").start if image_tokens else 0
        asked = list(prompt.ids[start:])
        answered = [*tokenizer.encode(reply, add_special_tokens=False), eos_token_id]
        ids += asked + answered[:-1]
        positions += range(start, start + len(asked) + len(answered) - 1)
        block += [n] * (len(asked) + len(answered) - 1)
        labels += [IGNORE] * (len(asked) - 1) + answered
    return Packed(
        np.array(ids), np.array(positions), np.array(block), np.array(labels), image_start, study
    )


def packed_logits(
    model: LlavaForConditionalGeneration,
    batch: Sequence[Packed],
    features_NPD: Tensor | None,
    image_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Logits [M, V] and labels [M] at the M positions that predict an answer token.

    Parameters
    ----------
    features_NPD
        The vision tower's selected patch features of every study (before the
        projector), or None where the batch has no images.
    """
    length = max(len(p.ids) for p in batch)

    def padded(rows: Sequence[npt.NDArray[np.int64]], value: int) -> Tensor:
        out = np.full((len(rows), length), value, dtype=np.int64)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return torch.from_numpy(out)

    ids_BX = padded([p.ids for p in batch], 0)
    positions_BX = padded([p.positions for p in batch], 0)
    block_BX = padded([p.block for p in batch], -1)
    labels_BX = padded([p.labels for p in batch], IGNORE)
    inner = model.model
    embeds_BXD = inner.language_model.embed_tokens(ids_BX)
    if features_NPD is not None:
        rows = features_NPD[torch.tensor([p.study for p in batch])].float()
        projected_BPD = inner.multi_modal_projector(rows).to(embeds_BXD.dtype)
        start = batch[0].image_start
        embeds_BXD = torch.cat(
            (embeds_BXD[:, :start], projected_BPD, embeds_BXD[:, start + image_tokens :]), dim=1
        )
    # A row sees the prefix and its own question, never another question behind it.
    query, key = block_BX[:, :, None], block_BX[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask_BQX = causal & ((key == 0) | (key == query))
    states_BXD = inner.language_model(
        inputs_embeds=embeds_BXD,
        attention_mask=mask_BQX[:, None],
        position_ids=positions_BX,
        use_cache=False,
    ).last_hidden_state
    chosen = labels_BX != IGNORE
    return model.lm_head(states_BXD[chosen]), labels_BX[chosen]


def answer_loss(
    model: LlavaForConditionalGeneration,
    batch: Sequence[Packed],
    features_NPD: Tensor | None,
    image_tokens: int,
) -> Tensor:
    """Cross-entropy over answer tokens, nats per token."""
    logits_MV, labels_M = packed_logits(model, batch, features_NPD, image_tokens)
    return nn.functional.cross_entropy(logits_MV, labels_M)


class Decoder(nn.Module):
    """What is trained after the tower: projector, decoder and head; the tower stays frozen."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.projector = model.model.multi_modal_projector
        self.text = model.model.language_model
        self.head = model.lm_head


@dataclass(frozen=True)
class Vectors:
    """Unit vectors of a data set under the frozen bi-tower, for choosing reports.

    ``questions_MD`` are those of ``data.questions``, case after case, and
    ``first_question[n]`` is where case n's begin.
    """

    images_ND: FloatArray
    reports_ND: FloatArray
    questions_MD: FloatArray
    first_question: npt.NDArray[np.int64]


def choose_reports(
    data: DataSet,
    vectors: Vectors,
    pool: npt.NDArray[np.int64],
    study: int,
    question: int,
    rng: np.random.Generator,
    *,
    k: int,
    noise: int,
    weights: tuple[float, float, float],
) -> list[int]:
    """Numbers of ``k`` cases of ``pool``, best first: retrieved by MCR, then ``noise`` at random.

    The study's own patient is never among them.
    """
    alpha, beta, gamma = weights
    v, t = vectors.images_ND[study], vectors.questions_MD[vectors.first_question[study] + question]
    score = vectors.reports_ND[pool] @ (alpha * v + gamma * t) + vectors.images_ND[pool] @ (
        beta * v
    )
    own = data.patients[pool] == data.patients[study]
    score[own] = -np.inf
    best = np.argpartition(-score, k - 1)[:k] if k else np.array([], dtype=np.int64)
    best = best[np.argsort(-score[best])]
    retrieved = best[: k - noise]
    rest = np.setdiff1d(np.flatnonzero(~own), retrieved)
    drawn = rng.choice(rest, size=noise, replace=False)
    return [int(pool[i]) for i in (*retrieved, *drawn)]


def train_reading(
    directory: Path,
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    data: DataSet,
    *,
    steps: int = 1200,
    batch: int = 48,
    seed: int = 0,
) -> None:
    """Stage 1, in place: answer from the study's own report, no image."""
    packer = CachedTokenizer(tokenizer)

    def sample(n: int) -> Packed:
        return pack(
            packer,
            int(tokenizer.eos_token_id),
            [data.records[n].document.report],
            [(q.question, q.answer) for q in data.questions[n]],
            image_token_id=model.config.image_token_id,
            image_tokens=0,
            study=n,
        )

    asked = {s: [n for n in data.rows(s) if data.questions[n]] for s in ("train", "validation")}
    lengths = np.array([len(sample(n).ids) for n in asked["train"]])

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        # Sequences of about one length: padding costs as much as text.
        size = min(8 * batch, len(lengths))
        pool = rng.choice(len(lengths), size=size, replace=False)
        pool = pool[np.argsort(lengths[pool])]
        start = int(rng.integers(max(1, size // batch))) * batch
        chosen = [asked["train"][i] for i in pool[start : start + batch]]
        return answer_loss(model, [sample(n) for n in chosen], None, 0)

    def evaluate() -> Mapping[str, float]:
        held_out = [sample(n) for n in asked["validation"][:512]]
        batches = [held_out[i : i + 64] for i in range(0, len(held_out), 64)]
        return {"closed_accuracy": closed_accuracy(model, tokenizer, batches, None)}

    fit(
        directory,
        Decoder(model),
        loss_at,
        steps=steps,
        peak_lr=2e-3,
        evaluate=evaluate,
        evaluate_every=100,
    )


def train_weighing(
    directory: Path,
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    data: DataSet,
    features_NPD: Tensor,
    vectors: Vectors,
    pool: npt.NDArray[np.int64],
    *,
    steps: int = 2400,
    batch: int = 16,
    max_k: int = 8,
    seed: int = 0,
) -> None:
    """Stage 2, in place: answer from the image and 0 to ``max_k`` reports of others.

    Parameters
    ----------
    features_NPD
        :func:`mrrag.training.vision.patch_features` of every case.
    pool
        The cases whose reports may be retrieved.
    """
    packer = CachedTokenizer(tokenizer)
    image_tokens = features_NPD.shape[1]

    def sample(n: int, k: int, noise: int, rng: np.random.Generator, shuffle: bool) -> Packed:
        question = int(rng.integers(len(data.questions[n])))
        a, b, c = (float(w) for w in rng.dirichlet((2.0, 2.0, 2.0)))
        chosen = choose_reports(
            data, vectors, pool, n, question, rng, k=k, noise=noise, weights=(a, b, c)
        )
        if shuffle:
            rng.shuffle(chosen)
        return pack(
            packer,
            int(tokenizer.eos_token_id),
            [data.records[i].document.report for i in chosen],
            [(q.question, q.answer) for q in data.questions[n]],
            image_token_id=model.config.image_token_id,
            image_tokens=image_tokens,
            study=n,
        )

    asked = {s: [n for n in data.rows(s) if data.questions[n]] for s in ("train", "validation")}

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        # One K a batch, so that its sequences are of about one length; none now and then.
        k = 0 if rng.random() < 0.1 else int(rng.integers(1, max_k + 1))
        size = batch * max_k // max(k, max_k // 3)
        batch_rows = rng.choice(asked["train"], size=size, replace=False)
        noise = [round(k * float(rng.choice(NOISE))) for _ in batch_rows]
        packed = [
            sample(n, k, drawn, rng, shuffle=True)
            for n, drawn in zip(batch_rows, noise, strict=True)
        ]
        return answer_loss(model, packed, features_NPD, image_tokens)

    def evaluate() -> Mapping[str, float]:
        figures = {}
        for name, k, noise in (("k0", 0, 0), ("k8", max_k, 0), ("k8_half", max_k, max_k // 2)):
            rng = np.random.default_rng(seed)
            packed = [sample(n, k, noise, rng, shuffle=True) for n in asked["validation"][:320]]
            batches = [packed[i : i + 32] for i in range(0, len(packed), 32)]
            figures[name] = closed_accuracy(model, tokenizer, batches, features_NPD)
        return figures

    fit(
        directory,
        Decoder(model),
        loss_at,
        steps=steps,
        peak_lr=1e-3,
        evaluate=evaluate,
        evaluate_every=200,
    )


def closed_accuracy(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    batches: Sequence[Sequence[Packed]],
    features_NPD: Tensor | None,
) -> float:
    """Share of yes/no questions whose first answer token is the more probable of the two."""
    yes, no = (tokenizer.encode(w, add_special_tokens=False)[0] for w in ("Yes", "No"))
    image_tokens = 0 if features_NPD is None else features_NPD.shape[1]
    right = asked = 0
    for batch in batches:
        logits_MV, labels_M = packed_logits(model, batch, features_NPD, image_tokens)
        closed = (labels_M == yes) | (labels_M == no)
        said_yes = logits_MV[closed, yes] > logits_MV[closed, no]
        right += int((said_yes == (labels_M[closed] == yes)).sum())
        asked += int(closed.sum())
    return right / max(1, asked)
