"""Pack several questions behind one prompt prefix, for training.

The questions about a case share its prefix (image and reports). They are laid side by side
behind it, and each attends to the prefix and to itself only. This gives the logits of separate
sequences at a fraction of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mrrag.data.records import Question
from mrrag.model.prompt import build_prompt

IGNORE = -100


@dataclass(frozen=True)
class CachedTokenizer:
    """A memoising tokenizer: the same reports and questions recur throughout training."""

    tokenizer: PreTrainedTokenizerFast
    cache: dict[tuple[str, bool], list[int]] = field(default_factory=dict)

    @property
    def bos_token_id(self) -> int | None:
        """As in the tokenizer."""
        bos: int | None = self.tokenizer.bos_token_id
        return bos

    @property
    def all_special_tokens(self) -> list[str]:
        """As in the tokenizer."""
        return list(self.tokenizer.all_special_tokens)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text."""
        key = (text, add_special_tokens)
        if key not in self.cache:
            self.cache[key] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return self.cache[key]


@dataclass(frozen=True)
class Packed:
    """A prefix and the questions behind it; see :meth:`Packer.pack`.

    ``block`` is 0 for the prefix and n for question n. ``labels`` holds the answer tokens at
    the positions that predict them, :data:`IGNORE` elsewhere. ``study`` is the row of the image
    features.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    block: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    image_start: int
    study: int


@dataclass(frozen=True)
class Packer:
    """Packs questions for one model; ``image_tokens`` is 0 for prompts without an image."""

    tokenizer: CachedTokenizer
    eos_token_id: int
    image_token_id: int
    image_tokens: int

    @classmethod
    def of(
        cls,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        image_tokens: int,
    ) -> Packer:
        """Return the packer of a model and its tokenizer."""
        eos = int(tokenizer.eos_token_id)
        return cls(CachedTokenizer(tokenizer), eos, model.config.image_token_id, image_tokens)

    def pack(self, reports: Sequence[str], questions: Sequence[Question], study: int) -> Packed:
        """Lay the questions and their answers side by side behind one prefix.

        ``study`` is the row of the features that replace the image placeholders.
        """
        ids: list[int] = []
        positions: list[int] = []
        block: list[int] = []
        labels: list[int] = []
        image_start = 0
        for n, question in enumerate(questions, start=1):
            prompt = build_prompt(
                self.tokenizer,
                question.question,
                reports,
                image_token_id=self.image_token_id,
                image_tokens=self.image_tokens,
            )
            start = prompt.suffix_start
            if n == 1:
                ids += prompt.ids[:start]
                positions += range(start)
                block += [0] * start
                labels += [IGNORE] * start
                image_start = prompt.span("image").start if self.image_tokens else 0
            suffix = list(prompt.ids[start:])
            reply = self.tokenizer.encode(question.answer, add_special_tokens=False)
            answer = [*reply, self.eos_token_id]
            ids += suffix + answer[:-1]
            positions += range(start, start + len(suffix) + len(answer) - 1)
            block += [n] * (len(suffix) + len(answer) - 1)
            labels += [IGNORE] * (len(suffix) - 1) + answer
        return Packed(
            ids=np.array(ids),
            positions=np.array(positions),
            block=np.array(block),
            labels=np.array(labels),
            image_start=image_start,
            study=study,
        )


def packed_logits(
    model: LlavaForConditionalGeneration,
    batch: Sequence[Packed],
    features_NPD: Tensor | None,
    image_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Return logits [M, V] and labels [M] at the M positions that predict an answer token.

    Parameters
    ----------
    features_NPD
        The vision tower's selected patch features of every study, before the projector;
        None where the batch has no images.
    image_tokens
        Number of image placeholders in each prompt.
    """
    length = max(len(p.ids) for p in batch)
    device = model.lm_head.weight.device

    def padded(rows: Sequence[npt.NDArray[np.int64]], value: int) -> Tensor:
        out = np.full((len(rows), length), value, dtype=np.int64)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return torch.from_numpy(out).to(device)

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
    # A position attends to the prefix and its own question, never to another question.
    query, key = block_BX[:, :, None], block_BX[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
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
    """Return the cross-entropy over answer tokens, nats per token."""
    logits_MV, labels_M = packed_logits(model, batch, features_NPD, image_tokens)
    return nn.functional.cross_entropy(logits_MV, labels_M)


def closed_accuracy(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    packed: Sequence[Packed],
    features_NPD: Tensor | None,
    batch: int,
) -> float:
    """Return the share of yes/no questions whose right first token is the more probable."""
    yes, no = (tokenizer.encode(w, add_special_tokens=False)[0] for w in ("Yes", "No"))
    image_tokens = 0 if features_NPD is None else features_NPD.shape[1]
    right = total = 0
    for start in range(0, len(packed), batch):
        rows = packed[start : start + batch]
        logits_MV, labels_M = packed_logits(model, rows, features_NPD, image_tokens)
        closed = (labels_M == yes) | (labels_M == no)
        said_yes = logits_MV[closed, yes] > logits_MV[closed, no]
        right += int((said_yes == (labels_M[closed] == yes)).sum())
        total += int(closed.sum())
    return right / max(1, total)
