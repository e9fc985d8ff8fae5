"""Rivals of IFA that change attention: PAI, PASTA, SpotLight, ALFAR, MAD-RAG, and ITI.

Each is a transform of attention logits with the signature of :mod:`mrrag.model.steering`,
and columns of the prompt on which it acts. They act in the prompt's last tokens (question
and cue), since what comes before is read once for all ways of answering. Those that were
published so can act in every token of the answer, too; a yes or no is read at the first, and
does not change by it.

ITI shifts the outputs of heads in the last token, and leaves attention as it is.

No transform knows what a report is worth. Where several act in one pass, their columns
must not overlap.
Shape suffixes: B batch row, H head, Q trailing query row, X key column.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import pad

from mrrag.errors import SettingsError
from mrrag.model.attention import Probe, SteeredPass
from mrrag.model.prompt import Prompt
from mrrag.model.steering import (
    Edit,
    Transform,
    align,
    below_mean,
    ifa,
    question_rows,
    report_keys,
)
from mrrag.types import Emphasis, Shift

SMALLEST_SHARE = 1e-6  # of attention; a logarithm of less is of no use


def add(logits: Tensor, amount: Tensor, _region: Tensor) -> Tensor:
    """Add the amount: Ã' = Ã + ln α. PASTA, with α < 1 on all that is not highlighted."""
    return logits + amount


def scale(logits: Tensor, amount: Tensor, _region: Tensor) -> Tensor:
    """Multiply: Ã' = Ã·(1 + amount). ALFAR's on the image, with an amount below zero.

    A negative logit is moved the other way, as in the published equation.
    """
    return logits * (1 + amount)


def scale_by_question(logits: Tensor, amount: Tensor, meet: Tensor) -> Tensor:
    """Multiply by what the question asks: Ã' = Ã·(1 + α·w_x). ALFAR's on the reports.

    w is the softmax over the words of all reports of Σ_u Ã[u, x], u being the question's rows.
    The paper sums Ã[x, u], which needs the question before the reports; here it comes after.
    ``meet`` is True where question rows meet report columns.
    """
    sums_BH1X = (logits * meet).sum(-2, keepdim=True)
    columns_B11X = meet.any(-2, keepdim=True)
    least = torch.finfo(logits.dtype).min
    weights_BH1X = sums_BH1X.masked_fill(~columns_B11X, least).softmax(-1)
    return logits * (1 + amount * weights_BH1X)


def floor(logits: Tensor, target: Tensor, visible: Tensor) -> Tensor:
    """Raise a span's share of the attention to at least ψ (SpotLight).

    The span is where ψ is above zero. Its share p is the mean over the rows and heads that act,
    and Ã' = Ã + max(0, logit ψ − logit p) on it: one number for a prompt and a layer. The
    published bias, ln(ψ/p), reaches ψ/(ψ + 1 − p) only. ``visible`` is True where a row may look.
    """
    span = (target > 0).expand_as(logits)
    least = torch.finfo(logits.dtype).min
    total_BHQ = logits.masked_fill(~visible, least).logsumexp(-1)
    share_BHQ = (logits.masked_fill(~span, least).logsumexp(-1) - total_BHQ).exp()
    acting_BHQ = span.any(-1)
    share_B = (share_BHQ * acting_BHQ).sum((1, 2)) / acting_BHQ.sum((1, 2)).clamp(min=1)
    target_B = target.amax((1, 2, 3))
    logit_B = [t.clamp(SMALLEST_SHARE, 1 - SMALLEST_SHARE).logit() for t in (target_B, share_B)]
    bias_B = (logit_B[0] - logit_B[1]).clamp(min=0)
    return logits + bias_B[:, None, None, None] * span


def mix(logits: Tensor, amount: Tensor, asked: Tensor) -> Tensor:
    """Mix a row's attention with where the first question looks: A' = (1 − m)·A + m·Ā (MAD-RAG).

    Ā is the mean, over the rows of the question that stands before the reports, of their attention
    on the image, normalised on it. ``asked`` is True where these rows meet the image; where there
    are none, attention stays as it is. The amount is m in every column that a row sees.
    """
    least = torch.finfo(logits.dtype).min
    # Few rows of a long prompt ask or look; the others need no probabilities.
    asks_Q, looks_Q = (some.any(-1).any(0).any(0) for some in (asked, amount > 0))
    asked, amount = asked[:, :, asks_Q], amount[:, :, looks_Q]
    asks_BHQX = logits[:, :, asks_Q].masked_fill(~asked, least).softmax(-1) * asked
    rows_B111 = asked.any(-1, keepdim=True).sum(-2, keepdim=True).clamp(min=1)
    first_BH1X = asks_BHQX.sum(-2, keepdim=True) / rows_B111
    looking_BHQX, m = logits[:, :, looks_Q], amount.amax(-1, keepdim=True)
    seen_BHQX = (amount > 0).expand_as(looking_BHQX)
    own_BHQX = looking_BHQX.masked_fill(~seen_BHQX, least).softmax(-1)
    # The softmax that follows gives back the probabilities of which these are the logarithms.
    mixed_BHQX = torch.log((1 - m) * own_BHQX + m * first_BH1X)
    changed_BHQX = logits.clone()
    changed_BHQX[:, :, looks_Q] = torch.where(seen_BHQX, mixed_BHQX, looking_BHQX)
    return changed_BHQX


TRANSFORMS: dict[str, Transform] = {
    "raise": ifa,  # PAI's rule is IFA's: Ã' = Ã + α·|Ã|
    "add": add,
    "scale": scale,
    "scale by question": scale_by_question,
    "floor": floor,
    "mix": mix,
}
SHARES = ("floor", "mix")  # whose amount is a share of the attention
# What needs no other row than its own, so that it can act while an answer is written.
OF_ONE_ROW = ("raise", "add", "scale", "floor")


# Columns: how much of the amount each prompt token gets; float32 [tokens]


def image_columns(prompt: Prompt, _relevance: Sequence[float]) -> Tensor:
    """Mark the image's tokens."""
    marked = torch.zeros(len(prompt.ids))
    for span in prompt.spans:
        if span.name == "image":
            marked[span.start : span.stop] = 1
    return marked


def report_columns(prompt: Prompt, _relevance: Sequence[float]) -> Tensor:
    """Mark the words of all reports."""
    return report_keys(prompt, [1.0] * len(prompt.reports))


def relevance_columns(prompt: Prompt, relevance: Sequence[float]) -> Tensor:
    """Give the words of each report its relevance."""
    return report_keys(prompt, relevance)


def outside_reports(prompt: Prompt, relevance: Sequence[float]) -> Tensor:
    """Mark all but the relevant reports and the first token; nothing where there is no report.

    Relevant are those whose relevance is at least the mean. The first token is left alone, since
    attention that has no other place goes there.
    """
    if not prompt.reports:
        return torch.zeros(len(prompt.ids))
    hidden = below_mean(relevance)
    kept = [float(k not in hidden) for k in range(1, len(prompt.reports) + 1)]
    marked = 1 - report_keys(prompt, kept)
    marked[0] = 0
    return marked


def outside_image_and_reports(prompt: Prompt, relevance: Sequence[float]) -> Tensor:
    """Mark all but the image, the relevant reports and the first token."""
    return outside_reports(prompt, relevance) * (1 - image_columns(prompt, relevance))


def every_column(prompt: Prompt, _relevance: Sequence[float]) -> Tensor:
    """Mark every token."""
    return torch.ones(len(prompt.ids))


COLUMNS: dict[str, Callable[[Prompt, Sequence[float]], Tensor]] = {
    "all": every_column,
    "image": image_columns,
    "reports": report_columns,
    "relevance": relevance_columns,
    "all but relevant reports": outside_reports,
    "all but image and relevant reports": outside_image_and_reports,
}


# Rows: which tokens look; bool [tokens]


def last_row(prompt: Prompt) -> Tensor:
    """Mark the last token, from which the answer is read."""
    return torch.arange(len(prompt.ids)) == len(prompt.ids) - 1


LOOKING: dict[str, Callable[[Prompt], Tensor]] = {
    "last": last_row,
    "question+cue": lambda prompt: question_rows(prompt, "question+cue"),
}


def first_question(prompt: Prompt) -> Tensor:
    """Mark the question that stands before the reports; bool [tokens]."""
    marked = torch.zeros(len(prompt.ids), dtype=torch.bool)
    for span in prompt.spans:
        if span.name == "first question":
            marked[span.start : span.stop] = True
    return marked


def _asked_from(prompt: Prompt) -> int:
    """Return where the first token stands that asks."""
    return min(s.start for s in prompt.spans if s.name in ("first question", "question"))


def plan_emphasis(
    prompts: Sequence[Prompt],
    relevance: Sequence[Sequence[float]],
    mask_BX: Tensor,
    emphases: Sequence[Emphasis],
    layers: int,
    heads: int,
    *,
    shift: Shift | None = None,
    plain: Collection[int] = (),
    watched: bool = False,
    device: torch.device | str = "cpu",
) -> SteeredPass | None:
    """Plan a pass over a batch of prompts under a rival's changes of attention.

    Parameters
    ----------
    relevance
        For each prompt, IFA's λ of each of its reports.
    mask_BX
        True where a key column of the batch holds a token, as in
        :func:`mrrag.model.attention.plan_pass`.
    layers, heads
        How many the model has.
    shift
        What is added to heads' outputs in each prompt's last token.
    plain
        The prompts, counted from 0, in which nothing is changed.
    watched
        Whether to record what the last row's attention on image and reports is, in this order.

    Returns
    -------
    SteeredPass or None
        None where nothing is changed and nothing recorded.

    Raises
    ------
    SettingsError
        Where a name is unknown, an amount is not finite, a floor or a mixture's part is outside 0
        to 1, or a head is none of the model's.
    """
    for emphasis in emphases:
        _check(emphasis, layers, heads)
    Q = max(len(prompt.ids) - _asked_from(prompt) for prompt in prompts)
    X = mask_BX.shape[1]
    visible_BQX = mask_BX[:, None, None] & torch.ones(Q, X, dtype=torch.bool).tril(X - Q)

    def columns_BX(name: str) -> Tensor:
        return _columns(name, prompts, relevance, mask_BX)

    def rows_BQ(rows: Callable[[Prompt], Tensor]) -> Tensor:
        return align([rows(p) for p in prompts], mask_BX)[:, -Q:]

    def meet(rows: Tensor, columns: Tensor) -> Tensor:
        return (rows[:, :, None] * columns[:, None, :])[:, None]

    acts_B = torch.tensor([b not in plain for b in range(len(prompts))])
    question_BQ = rows_BQ(lambda prompt: question_rows(prompt, "question"))
    asked_BQX = meet(question_BQ, columns_BX("reports") > 0)
    regions = {
        "floor": visible_BQX,
        "mix": meet(rows_BQ(first_question), columns_BX("image") > 0),
    }
    edits: list[Edit] = []
    for emphasis in emphases:
        # A token's amount reaches only rows that may see it.
        lam = meet(rows_BQ(LOOKING[emphasis.rows]), emphasis.amount * columns_BX(emphasis.columns))
        lam = lam.where(visible_BQX & acts_B[:, None, None, None], 0)
        if not lam.any():
            continue
        region = regions.get(emphasis.transform, asked_BQX)
        transform = TRANSFORMS[emphasis.transform]
        edits += [
            Edit(transform, lam, region, frozenset(where), which)
            for where, which in _places(emphasis, layers)
        ]
    probe = None
    if watched:
        spans_BXS = torch.stack([columns_BX("image"), columns_BX("reports")], -1)
        probe = Probe(spans_BXS.to(device))
    shifts = _shifts(shift, acts_B, layers, heads, device) if shift else {}
    if not edits and probe is None and not shifts:
        return None
    last_BQ = rows_BQ(last_row).to(device)
    untouched = [int((edit.lam_BQX != 0).any(-1).any(0).any(0).int().argmax()) for edit in edits]
    moved = tuple(edit.to(device) for edit in edits)
    return SteeredPass(last_BQ, moved, probe, shifts=shifts, changed=Q - min(untouched, default=0))


def plan_writing(
    prompts: Sequence[Prompt],
    relevance: Sequence[Sequence[float]],
    mask_BX: Tensor,
    emphases: Sequence[Emphasis],
    layers: int,
    heads: int,
    *,
    plain: Collection[int] = (),
) -> Callable[[Tensor], SteeredPass] | None:
    """Plan the pass over one token of each answer, for changes of attention that act there, too.

    They act on the prompt's columns; no token of an answer is raised or lowered (PASTA's code).
    The parameters are those of :func:`plan_emphasis`.

    Returns
    -------
    callable or None
        Returns the plan, given which columns the token sees: bool [B, 1, 1, X or more]. The plan
        keeps this mask, so that a step may mark more columns in it and use the plan again. None
        where attention is stock.

    Raises
    ------
    SettingsError
        Where a change needs the question's rows, which are not there any more.
    """
    acts_B111 = torch.tensor([b not in plain for b in range(len(prompts))])[:, None, None, None]
    planned: list[tuple[Transform, Tensor, frozenset[int]]] = []
    for emphasis in (emphasis for emphasis in emphases if emphasis.writing):
        if emphasis.transform not in OF_ONE_ROW:
            raise SettingsError(
                f"A change of attention names {emphasis.transform!r} while the answer is written. "
                f"There it can be one of: {', '.join(OF_ONE_ROW)}."
            )
        columns_BX = _columns(emphasis.columns, prompts, relevance, mask_BX)
        lam_B11X = acts_B111 * emphasis.amount * columns_BX[:, None, None]
        for where, which in _places(emphasis, layers) if lam_B11X.any() else ():
            chosen_H11 = torch.tensor([float(not which or h in which) for h in range(heads)])
            lam_BH1X = lam_B11X * chosen_H11[:, None, None]
            planned.append((TRANSFORMS[emphasis.transform], lam_BH1X, frozenset(where)))
    if not planned:
        return None

    def steer(sees_B11X: Tensor) -> SteeredPass:
        device, more = sees_B11X.device, sees_B11X.shape[-1] - mask_BX.shape[1]
        edits = [
            Edit(transform, pad(lam_BH1X, (0, more)).to(device), sees_B11X, where)
            for transform, lam_BH1X, where in planned
        ]
        rows_BQ = torch.ones(len(prompts), 1, dtype=torch.bool, device=device)
        return SteeredPass(rows_BQ, tuple(edits))

    return steer


def _columns(
    name: str, prompts: Sequence[Prompt], relevance: Sequence[Sequence[float]], mask_BX: Tensor
) -> Tensor:
    of = COLUMNS[name]
    return align([of(p, lam) for p, lam in zip(prompts, relevance, strict=True)], mask_BX)


def _shifts(
    shift: Shift, acts_B: Tensor, layers: int, heads: int, device: torch.device | str
) -> dict[int, Tensor]:
    """Return α·σ·θ by layer, zero where nothing is added: float32 [B, H, D]."""
    _check_heads([(layer, head) for layer, head, _ in shift.vectors], layers, heads)
    shifts: dict[int, Tensor] = {}
    for layer, head, values in shift.vectors if shift.amount else ():
        added_BHD = shifts.setdefault(layer, torch.zeros(len(acts_B), heads, len(values)))
        added_BHD[acts_B, head] += shift.amount * torch.tensor(values)
    return {layer: added_BHD.to(device) for layer, added_BHD in shifts.items()}


def _places(
    emphasis: Emphasis, layers: int
) -> list[tuple[range | tuple[int, ...], tuple[int, ...]]]:
    """Return sets of layers, each with the heads in which to act there; no heads are all."""
    if not emphasis.heads:
        return [(range(emphasis.first_layer, layers), ())]
    return [
        ((layer,), tuple(head for _, head in pairs))
        for layer, pairs in groupby(sorted(emphasis.heads), key=lambda pair: pair[0])
        if layer >= emphasis.first_layer
    ]


def _check(emphasis: Emphasis, layers: int, heads: int) -> None:
    for name, known in (
        (emphasis.transform, [*TRANSFORMS]),
        (emphasis.columns, [*COLUMNS]),
        (emphasis.rows, [*LOOKING]),
    ):
        if name not in known:
            raise SettingsError(
                f"A change of attention names {name!r}. Choose one of: {', '.join(known)}."
            )
    amount = torch.tensor(emphasis.amount)
    if not amount.isfinite() or (emphasis.transform in SHARES and not 0 <= amount < 1):
        raise SettingsError(
            f"A change of attention has the amount {emphasis.amount}. It must be finite, and for "
            "a floor or a mix at least 0 and below 1."
        )
    _check_heads(emphasis.heads, layers, heads)


def _check_heads(chosen: Collection[tuple[int, int]], layers: int, heads: int) -> None:
    for layer, head in chosen:
        if not (0 <= layer < layers and 0 <= head < heads):
            raise SettingsError(
                f"Head {head} of layer {layer} was asked for; this model has layers 0 to "
                f"{layers - 1}, each with heads 0 to {heads - 1}."
            )
