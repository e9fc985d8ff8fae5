"""OPERA: beam search that distrusts tokens on which later tokens lean (CVPR 2024).

At each step every beam's most probable tokens are fed, and each is judged by its own row of the
last layer's attention, ω: the maximum over the heads, normalised. A long answer that leans ever
more on one of its own tokens is punished, and a candidate that looks at the image is rewarded
while the answer is short. Where all beams lean on one place for long, decoding goes back there and
chooses other tokens.

The published code keeps the last layer's attention maps of each beam and candidate. All that it
needs of them is one running sum for each token of the answer, which is kept here in logarithms
and float32; published, it is a product in float16 that overflows. A candidate's pass is its next
step's, so it runs once.

The search knows no model: :func:`search` is given two functions that read tokens.
Shape suffixes: B beam, C candidate of a beam, R candidate of all beams (B·C), T token of the
answer, X key column, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from mrrag.errors import SettingsError
from mrrag.model.answering import AnswerBatch, text_of
from mrrag.model.attention import Probe, SteeredPass
from mrrag.model.backbone import Backbone, embed
from mrrag.model.emphasis import COLUMNS
from mrrag.model.prefill import (
    Branch,
    fork,
    layout,
    prefill_batch,
    run_batch,
    set_shift,
    shift_of,
)
from mrrag.model.steering import align
from mrrag.types import Opera

EARLY = 10  # up to this many tokens the image counts, and a place before is never gone back to
FACTOR = math.log(1e-7)  # of the published product
MOST = math.log(1e4)  # the logarithm of the largest penalty; a greater one changes nothing


@dataclass(frozen=True)
class LastRow(Probe):
    """Keep the last row's attention in the last layer that was read; max over heads, to sum 1."""

    spans_BXS: Tensor = field(default_factory=lambda: torch.empty(0))
    rows: list[Tensor] = field(default_factory=list)

    def record(self, weights_BHQX: Tensor, question_BQ: Tensor) -> None:
        """Take the place of the layer before."""
        row_BX = weights_BHQX[:, :, -1].amax(1)
        self.rows[:] = [row_BX / row_BX.sum(-1, keepdim=True)]


@dataclass(frozen=True)
class Beams:
    """What has been written, best beam first.

    Attributes
    ----------
    ids_BT : int64
    score_B : float32
        Sum of log-probabilities.
    lean_BT : float32
        For each token, Σ ln(σ₀·ω) over the rows of the tokens from it on.
    places_BT : int64
        At each step, the token on which most candidates leaned.
    ended : tuple of (float, tuple of int)
        Answers that have ended, best first, each with its score by length.
    """

    ids_BT: Tensor
    score_B: Tensor
    lean_BT: Tensor
    places_BT: Tensor
    ended: tuple[tuple[float, tuple[int, ...]], ...] = ()


# Reads one more token in each row that is named: of a state, the rows and their next tokens, it
# makes the state of these, logits [R, V] and ω [R, columns].
Feed = Callable[[Any, Tensor, Tensor], tuple[Any, Tensor, Tensor]]
# Reads whole answers [B, T] after the prompt, into a state and logits [B, V].
Again = Callable[[Tensor], tuple[Any, Tensor]]


@torch.inference_mode()
def answer_beams(
    backbone: Backbone,
    branches: Sequence[Branch],
    opera: Opera,
    *,
    cache: DynamicCache | None = None,
    max_new_tokens: int = 0,
) -> AnswerBatch:
    """Answer prompts by OPERA: they are read as one batch, and written one after the other.

    P(yes) and P(no) are those of the first token among its candidates, after the reward; other
    tokens have none. With ``max_new_tokens`` 0 nothing is written.

    Parameters
    ----------
    cache
        As of :func:`mrrag.model.answering.answer_batch`.

    Raises
    ------
    SettingsError
        Where there are fewer than two beams or no candidates, or a number is not allowed.
    """
    _check(opera)
    mask_BX = layout([branch.prompt for branch in branches])
    read = prefill_batch(backbone, branches) if cache is None else fork(cache)
    suffixes = [b.suffix(embed(backbone, b.prompt, b.features)) for b in branches]
    logits_BV = run_batch(backbone, suffixes, read, mask_BX).to(backbone.device)
    worth = [
        torch.stack([COLUMNS[name](b.prompt, b.relevance) for name in opera.looks]).sum(0)
        for b in branches
    ]
    worth_BX = align(worth, mask_BX).to(backbone.device)
    p_BV, texts = [], []
    for b in range(len(branches)):
        feed, again = readers(backbone, _row(read, b), mask_BX[b : b + 1])
        p_V, ids = search(
            opera,
            (_row(read, b), logits_BV[b : b + 1]),
            feed,
            again,
            worth_BX[b],
            eos_ids=backbone.eos_ids,
            max_new_tokens=max_new_tokens,
        )
        p_BV.append(p_V)
        texts.append(text_of(backbone, [i for i in ids if i not in backbone.eos_ids], done=True))
    first_BV = torch.stack(p_BV)
    return AnswerBatch(
        first_BV[:, list(backbone.yes_ids)].sum(-1).numpy(),
        first_BV[:, list(backbone.no_ids)].sum(-1).numpy(),
        first_BV.argmax(-1).numpy(),
        tuple(texts),
    )


def _check(opera: Opera) -> None:
    if opera.beams < 2 or opera.candidates < 1:
        raise SettingsError(
            f"OPERA was given {opera.beams} beams with {opera.candidates} candidates each. It "
            "needs at least 2 beams, since beams are compared, and 1 candidate."
        )
    if not (math.isfinite(opera.weight) and opera.weight >= 0 < opera.scale < math.inf):
        raise SettingsError(
            f"OPERA was given the weight {opera.weight} and the scale {opera.scale}. The weight "
            "must be zero or more, the scale above zero, and both finite."
        )


def _row(cache: DynamicCache, b: int) -> DynamicCache:
    """Return one row of a batch, which stays as it is."""
    row, shift = fork(cache), shift_of(cache)
    row.batch_select_indices(torch.tensor([b]))
    if isinstance(shift, Tensor):
        set_shift(row, [int(shift[b])])
    return row


def readers(backbone: Backbone, prompt: DynamicCache, mask_1X: Tensor) -> tuple[Feed, Again]:
    """Return the two functions that read an answer's tokens after a prompt of one row."""
    device, table = backbone.device, backbone.model.get_input_embeddings()

    def run(cache: DynamicCache, ids_RT: Tensor, steered: SteeredPass | None = None) -> Tensor:
        written = cache.get_seq_length() + ids_RT.shape[1] - mask_1X.shape[1]
        mask_RX = pad(mask_1X.expand(len(ids_RT), -1), (0, written), value=True)
        return run_batch(backbone, [*table(ids_RT)], cache, mask_RX, steered).to(device)

    def feed(cache: DynamicCache, rows_R: Tensor, ids_R: Tensor) -> tuple[Any, Tensor, Tensor]:
        cache, probe = fork(cache), LastRow()
        cache.batch_select_indices(rows_R)
        last = SteeredPass(torch.ones(len(rows_R), 1, device=device), probe=probe)
        logits_RV = run(cache, ids_R[:, None], last)
        return cache, logits_RV, probe.rows[0].to(device)

    def again(ids_BT: Tensor) -> tuple[Any, Tensor]:
        cache = fork(prompt)
        cache.batch_repeat_interleave(len(ids_BT))
        return cache, run(cache, ids_BT)

    return feed, again


@dataclass(frozen=True)
class Step:
    """The candidates of one step, each of which has been fed.

    Attributes
    ----------
    logp_BC : float32
        Log-probabilities among a beam's candidates after the penalty; −∞ for what is barred.
    lean_RT, place_B
        As of :class:`Beams`, with this step.
    state, logits_RV
        What was read, and what follows it.
    """

    ids_BC: Tensor
    logp_BC: Tensor
    lean_RT: Tensor
    place_B: Tensor
    state: Any
    logits_RV: Tensor


Pairs = set[tuple[int, int]]  # of a beam and a token


def search(
    opera: Opera,
    prompt: tuple[Any, Tensor],
    feed: Feed,
    again: Again,
    watched_X: Tensor,
    *,
    eos_ids: Sequence[int],
    max_new_tokens: int,
) -> tuple[Tensor, tuple[int, ...]]:
    """Write one answer.

    Parameters
    ----------
    prompt
        The state after the prompt, one row, and logits [1, V].
    watched_X
        What a candidate's attention on each of the prompt's columns is worth.

    Returns
    -------
    (float32 [V], tuple of int)
        The first token's distribution, on the CPU; the answer's ids, none with
        ``max_new_tokens`` 0.
    """
    state, logits_BV = prompt
    nothing, rows_B = watched_X.new_zeros(1, 0), watched_X.new_zeros(1).long()
    beams = Beams(nothing.long(), watched_X.new_zeros(1), nothing, nothing.long())
    past: list[tuple[Beams, Pairs]] = []  # before each token, and what was then chosen
    barred: dict[int, Pairs] = {}
    returns: Counter[int] = Counter()
    first_V: Tensor | None = None
    while True:
        refused = barred.get(len(past), set())
        step = judge(opera, beams, (state, rows_B), logits_BV, feed, watched_X, refused)
        if first_V is None:
            first_V = torch.zeros(logits_BV.shape[1])
            first_V[step.ids_BC[0].cpu()] = step.logp_BC[0].exp().cpu()
            if not max_new_tokens:
                return first_V, ()
        back = place_to_return(beams, step, opera, returns)
        if back is not None and back < len(past):
            before, chosen = past[back]
            refused = barred.get(back, set()) | chosen
            if len(refused) < step.ids_BC.shape[1] * len(before.ids_BT):
                returns[back] += 1
                # Further on, other beams will have other tokens behind them.
                barred = {t: pairs for t, pairs in barred.items() if t < back} | {back: refused}
                beams, rows_B = before, torch.arange(len(before.ids_BT), device=rows_B.device)
                state, logits_BV = again(beams.ids_BT)
                del past[back:]
                continue
        before = beams
        beams, rows_B, chosen, done = choose(opera, before, step, eos_ids, max_new_tokens)
        past.append((before, chosen))
        if done:
            return first_V, beams.ended[0][1]
        state, logits_BV = step.state, step.logits_RV[rows_B]


def judge(
    opera: Opera,
    beams: Beams,
    read: tuple[Any, Tensor],
    logits_BV: Tensor,
    feed: Feed,
    watched_X: Tensor,
    refused: Pairs,
) -> Step:
    """Feed each beam's candidates and judge them; ``read`` is a state and the beams' rows in it."""
    state, rows_B = read
    C, X = min(opera.candidates, logits_BV.shape[1]), len(watched_X)
    logits_BC, ids_BC = logits_BV.topk(C)
    state, logits_RV, row_RX = feed(state, rows_B.repeat_interleave(C), ids_BC.flatten())
    lean_RT = lean(beams.lean_BT.repeat_interleave(C, 0), row_RX[:, X:], opera.scale)
    most_R, place_R = lean_RT.max(-1)
    if lean_RT.shape[1] <= EARLY:
        penalty_R = -(row_RX[:, :X] @ watched_X)
    else:
        penalty_R = (most_R + FACTOR).clamp(max=MOST).exp()
    judged_BC = logits_BC - opera.weight * penalty_R.view(-1, C)
    for b, token in refused:
        judged_BC[b][ids_BC[b] == token] = -torch.inf
    # A beam of which all is barred has NaN everywhere.
    logp_BC = judged_BC.log_softmax(-1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    place_B = place_R.view(-1, C).mode(-1).values
    return Step(ids_BC, logp_BC, lean_RT, place_B, state, logits_RV)


def lean(lean_RT: Tensor, row_RT: Tensor, scale: float) -> Tensor:
    """Add a row of attention on the answer's tokens, the last of which is its own, to the sums.

    φ_j = 1e-7·∏_{i ≥ j} σ₀·ω_i[j] is exp(sum + ln 1e-7).
    """
    return pad(lean_RT, (0, 1)) + torch.log(scale * row_RT)


def place_to_return(
    beams: Beams, step: Step, opera: Opera, returns: Mapping[int, int]
) -> int | None:
    """Return the token that is to be chosen anew, or None.

    It is the one after the place on which most candidates of most beams lean, if each beam leant
    on it in more than ``threshold`` steps. A token is chosen anew at most as often as there are
    candidates, and then the one before it, once.
    """
    place = int(step.place_B.mode().values)
    places_BT = torch.cat([beams.places_BT, step.place_B[:, None]], 1)
    often_B = (places_BT == place).sum(1) > opera.threshold
    if place < EARLY or not often_B.all():
        return None
    if returns[place + 1] < opera.candidates:
        return place + 1
    return place if not returns[place] else None


def choose(
    opera: Opera, beams: Beams, step: Step, eos_ids: Sequence[int], max_new_tokens: int
) -> tuple[Beams, Tensor, Pairs, bool]:
    """Take the best candidates of all beams, as transformers' beam search does.

    Returns
    -------
    (Beams, int64 [B], set of (int, int), bool)
        What is written now; its rows in the step's state; the old beams and the tokens that were
        taken; whether no beam can do better than what has ended.
    """
    n, C = opera.beams, step.ids_BC.shape[1]
    length = beams.ids_BT.shape[1] + 1
    pool_R = (beams.score_B[:, None] + step.logp_BC).flatten()
    # Enough for n that go on, even if every beam may end.
    score_R, row_R = pool_R.topk(min(max(2, 1 + len(eos_ids)) * n, len(pool_R)))
    row_R = row_R[score_R > -torch.inf]
    score_R = score_R[: len(row_R)]
    beam_R, token_R = row_R // C, step.ids_BC.flatten()[row_R]
    ids_RT = torch.cat([beams.ids_BT[beam_R], token_R[:, None]], 1)
    eos = torch.tensor([*eos_ids], device=token_R.device)
    over_R = torch.isin(token_R, eos) | (length >= max_new_tokens)
    now = [
        (score / length, tuple(ids))
        for score, ids, over in zip(
            score_R[:n].tolist(), ids_RT[:n].tolist(), over_R[:n].tolist(), strict=True
        )
        if over
    ]
    ended = tuple(sorted([*beams.ended, *now], key=lambda answer: -answer[0])[:n])
    go = (~over_R).nonzero().flatten()[:n]
    written = Beams(
        ids_RT[go],
        score_R[go],
        step.lean_RT[row_R[go]],
        torch.cat([beams.places_BT, step.place_B[:, None]], 1)[beam_R[go]],
        ended,
    )
    pairs = {*zip(beam_R[go].tolist(), token_R[go].tolist(), strict=True)}
    full = len(ended) == n and len(go) and float(score_R[go[0]]) / length <= ended[-1][0]
    return written, row_R[go], pairs, not len(go) or bool(full)
