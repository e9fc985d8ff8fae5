"""Which heads matter: ITI's probes and directions, and PASTA's search for heads.

ITI (NeurIPS 2023): an answer, yes or no, is written behind the prompt, and every head's output
at that token is kept. A linear probe of each head tells right answers from wrong ones, on
training questions; the heads with the best probes on validation questions are shifted along the
difference of the two means. PASTA (ICLR 2024): each head is steered alone on validation
questions, with half of the reports irrelevant, and those in which that helps most are kept.
Shape suffixes: N answer, B batch row, L layer, H head, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from mrrag.forms import lambdas
from mrrag.model.answering import answer_batch, heads_of
from mrrag.model.attention import SteeredPass
from mrrag.model.backbone import Backbone, embed
from mrrag.model.prefill import Branch, fork, layout, prefill_batch, run_batch
from mrrag.pipeline import Pipeline
from mrrag.study.arena import PASTA_REPORTS
from mrrag.study.evaluation import (
    BATCH,
    EncodedItem,
    Ticker,
    branch_of,
    encode_items,
    evidence_for,
    no_ticker,
    noise_seed,
)
from mrrag.study.heads import Heads, best_heads, write_heads
from mrrag.training.learn import QuestionSplit
from mrrag.types import FloatArray

SHOWN = 3  # heads that are named in the summary


def find_heads(
    pipeline: Pipeline,
    split: QuestionSplit,
    path: Path,
    *,
    questions: int,
    k: int = 8,
    ticker: Ticker = no_ticker,
) -> str:
    """Find what there is to know of each head, write it to ``path``, and say it in words.

    Parameters
    ----------
    questions
        Maximum number of training and of validation questions.
    k
        Reports in a prompt.
    """
    train, held_out = (
        encode_items(pipeline, data.records, data.questions, limit=questions, ticker=ticker)
        for data in (split.train, split.validation)
    )
    learnt, checked = (head_outputs(pipeline, items, k, ticker) for items in (train, held_out))
    probe_LH = probe_accuracy(learnt, checked)
    both = (np.concatenate(parts) for parts in zip(learnt, checked, strict=True))
    direction_LHD, spread_LH = directions(*both)
    pasta_LH = steer_each_head(pipeline, held_out, k, ticker)
    heads = Heads(direction_LHD, spread_LH, probe_LH, pasta_LH)
    about = {
        "model": pipeline.backbone.fingerprint,
        "knowledge_base": pipeline.knowledge_base.fingerprint,
        "questions": {"train": len(train), "validation": len(held_out)},
        "k": k,
        "learnt_from": split.describe(),
    }
    write_heads(path, heads, about)
    said = {
        "Best probes, share of answers judged rightly": probe_LH,
        "Best for PASTA, mean P(right answer)": pasta_LH,
    }
    return "\n".join(f"{what}: {_best_in_words(score_LH)}" for what, score_LH in said.items())


def _best_in_words(score_LH: FloatArray) -> str:
    best = best_heads(score_LH, SHOWN / score_LH.size)
    ranked = sorted(best, key=lambda pair: -score_LH[pair])
    return ", ".join(f"layer {n} head {h} ({score_LH[n, h]:.3f})" for n, h in ranked)


def _branches(
    pipeline: Pipeline, items: Sequence[EncodedItem], k: int, noise: int = 0, first: int = 0
) -> list[Branch]:
    branches = []
    for n, item in enumerate(items, start=first):
        weights = pipeline.learnt.weights
        found = evidence_for(pipeline, item, weights, k, noise, noise_seed(0, n))
        branch = branch_of(pipeline, item, [r.document.report for r in found])
        branches.append(replace(branch, relevance=lambdas(found, "ifa")))
    return branches


Outputs = tuple[FloatArray, npt.NDArray[np.bool_]]  # [N, L, H, D] and whether right, [N]


def head_outputs(
    pipeline: Pipeline, items: Sequence[EncodedItem], k: int, ticker: Ticker = no_ticker
) -> Outputs:
    """Return every head's output at the answer, with yes and with no behind each prompt."""
    starts = range(0, len(items), BATCH)
    outputs, right = [], []
    for start in ticker(starts, len(starts), "reading heads"):
        rows = items[start : start + BATCH]
        outputs += answer_outputs(pipeline.backbone, _branches(pipeline, rows, k))
        gold = np.array([item.gold for item in rows])
        right += [gold == 1, gold == 0]
    return np.concatenate(outputs), np.concatenate(right)


@torch.inference_mode()
def answer_outputs(backbone: Backbone, branches: Sequence[Branch]) -> list[FloatArray]:
    """Return heads' outputs [B, L, H, D] at the word yes behind each prompt, and at no.

    Of the tokens that are the word, a prompt gets the one that the model finds most probable.
    """
    mask_BX = layout([branch.prompt for branch in branches])
    cache = prefill_batch(backbone, branches)
    suffixes = [b.suffix(embed(backbone, b.prompt, b.features)) for b in branches]
    logits_BV = run_batch(backbone, suffixes, cache, mask_BX)
    table = backbone.model.get_input_embeddings()
    ones_B1 = torch.ones(len(branches), 1, device=backbone.device)
    outputs = []
    for words in (backbone.yes_ids, backbone.no_ids):
        ids = torch.tensor([*words], device=logits_BV.device)
        word_B = ids[logits_BV[:, ids].argmax(-1)].to(backbone.device)
        seen: list[Tensor] = []
        watched = SteeredPass(ones_B1, outputs=seen)
        mask = pad(mask_BX, (0, 1), value=True)
        run_batch(backbone, [*table(word_B[:, None])], fork(cache), mask, watched)
        stacked_BLHD = torch.stack([layer.float().cpu() for layer in seen], 1)
        outputs.append(stacked_BLHD.numpy())
    return outputs


def probe_accuracy(train: Outputs, validation: Outputs) -> FloatArray:
    """Fit a logistic regression for each head; return its accuracy on validation, [L, H]."""
    weight_LHD, bias_LH = fit_probes(*train)
    outputs_NLHD, right_N = validation
    logits_NLH = np.einsum("nlhd,lhd->nlh", outputs_NLHD, weight_LHD) + bias_LH
    judged: FloatArray = ((logits_NLH > 0) == right_N[:, None, None]).mean(0).astype(np.float32)
    return judged


def fit_probes(
    outputs_NLHD: FloatArray, right_N: npt.NDArray[np.bool_]
) -> tuple[FloatArray, FloatArray]:
    """Return logistic regressions of all heads: ½·|w|² + Σ log-loss is least; [L, H, D], [L, H]."""
    z_NLHD = torch.from_numpy(outputs_NLHD).double()
    sign_N11 = torch.from_numpy(np.where(right_N, 1.0, -1.0))[:, None, None]
    weight_LHD = torch.zeros(z_NLHD.shape[1:], dtype=torch.double, requires_grad=True)
    bias_LH = torch.zeros(z_NLHD.shape[1:3], dtype=torch.double, requires_grad=True)
    search = torch.optim.LBFGS(
        [weight_LHD, bias_LH], max_iter=1000, line_search_fn="strong_wolfe", tolerance_change=1e-12
    )

    def loss() -> Tensor:
        search.zero_grad()
        margin_NLH = sign_N11 * (torch.einsum("nlhd,lhd->nlh", z_NLHD, weight_LHD) + bias_LH)
        total = weight_LHD.square().sum() / 2 + softplus(-margin_NLH).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    search.step(loss)  # type: ignore[no-untyped-call]
    return weight_LHD.detach().float().numpy(), bias_LH.detach().float().numpy()


def directions(
    outputs_NLHD: FloatArray, right_N: npt.NDArray[np.bool_]
) -> tuple[FloatArray, FloatArray]:
    """Return the unit vectors between the means, and the outputs' deviation along them."""
    between_LHD = outputs_NLHD[right_N].mean(0) - outputs_NLHD[~right_N].mean(0)
    length_LH1 = np.linalg.norm(between_LHD, axis=-1, keepdims=True)
    direction_LHD = between_LHD / np.where(length_LH1 > 0, length_LH1, 1)
    spread_LH = np.einsum("nlhd,lhd->nlh", outputs_NLHD, direction_LHD).std(0)
    return direction_LHD.astype(np.float32), spread_LH.astype(np.float32)


def steer_each_head(
    pipeline: Pipeline, items: Sequence[EncodedItem], k: int, ticker: Ticker = no_ticker
) -> FloatArray:
    """Return the mean P(right answer) under PASTA in each head alone, [L, H].

    Half of the reports are irrelevant, since PASTA is to look away from them.
    """
    backbone = pipeline.backbone
    pairs = [(n, h) for n in range(backbone.layers) for h in range(heads_of(backbone))]
    sums_LH = np.zeros((backbone.layers, heads_of(backbone)))
    starts = range(0, len(items), BATCH)
    for start in ticker(starts, len(starts), "steering heads"):
        rows = items[start : start + BATCH]
        branches = _branches(pipeline, rows, k, k // 2, start)
        cache = prefill_batch(backbone, branches)
        gold = np.array([item.gold for item in rows])
        for pair in pairs:
            emphases = (replace(PASTA_REPORTS, heads=(pair,)),)
            answer = answer_batch(backbone, branches, emphases=emphases, cache=cache)
            sums_LH[pair] += np.where(gold == 1, answer.p_yes, answer.p_no).sum()
    mean_LH: FloatArray = (sums_LH / len(items)).astype(np.float32)
    return mean_LH
