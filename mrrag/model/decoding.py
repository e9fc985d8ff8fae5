"""Decoding: one token at a time, all branches as one batch.

IFA acts on prompt tokens alone, so that attention is stock here, but for rivals that also act
while the answer is written. On one CUDA device a step is captured as a graph.

It does not know how the prompt was read (:mod:`mrrag.model.prefill`).
Shape suffixes: B batch row, X key column, E embedding, V vocabulary.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mrrag.model.attention import SteeredPass
from mrrag.model.backbone import Backbone
from mrrag.model.families import text_of
from mrrag.model.prefill import CACHE, shift_of

logger = logging.getLogger(__name__)

# PyTorch registers a graph with the device's one random generator while it is captured: two
# captures at once, of two visitors, end the process.
_CAPTURING = threading.Lock()


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's cache with room for every token to come, so that its shape never changes."""

    keys: Tensor
    values: Tensor

    def __init__(self, layer: Any, room: int, column: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys = pad(layer.keys, (0, 0, 0, room))
        self.values = pad(layer.values, (0, 0, 0, room))
        self.is_initialized = True
        self.column = column

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token at the column and return the whole cache; the mask hides the rest."""
        column = self.column.to(self.keys.device)
        self.keys.index_copy_(2, column, key_states)
        self.values.index_copy_(2, column, value_states)
        return self.keys, self.values


def token_step(
    backbone: Backbone,
    cache: DynamicCache,
    mask_BX: Tensor,
    ids_B1: Tensor,
    room: int,
    steer: Callable[[Tensor], SteeredPass] | None = None,
) -> Callable[[], None]:
    """Return a function that feeds ``ids_B1`` and overwrites it with the next tokens.

    Every tensor that it reads or writes keeps its place and its shape, so that on one CUDA
    device the whole step is captured once as a graph and replayed: a step of a 7B model is
    about a thousand small kernels, which Python cannot launch as fast as the device runs
    them. Elsewhere, and where capture fails, the step runs uncaptured.

    Parameters
    ----------
    cache
        What was read. The function takes it over and enlarges its layers in place.
    mask_BX
        Which columns of ``cache`` hold tokens.
    room
        How many times the function may be called.
    steer
        From :func:`mrrag.model.emphasis.plan_writing`; None for stock attention.
    """
    # Without the wrappers that handle images: there are none from here on.
    text, head = text_of(backbone.model), backbone.model.lm_head
    device = backbone.device
    start = mask_BX.shape[1]
    # Kernels need a multiple of sixteen columns and would pad the mask in every layer and step.
    room += -(start + room) % 16
    # Additive: a mask of bools would be converted in every layer and step.
    hidden_B11X = ~pad(mask_BX.to(device), (0, room))[:, None, None]
    layers: list[Any] = cache.layers
    mask_B11X = hidden_B11X.to(layers[0].keys.dtype).masked_fill_(hidden_B11X, -torch.inf)
    sees: Any = 0.0
    options: dict[str, Any] = {}
    if steer is not None:  # it changes logits before the mask, and must know what a token sees
        mask_B11X, sees = ~hidden_B11X, True
        options["steered"] = steer(mask_B11X)
    positions_B1 = (mask_BX.sum(1, keepdim=True) + shift_of(cache)).to(device)
    column = torch.tensor([start], device=device)
    for i in range(len(layers)):  # one by one, so that the batch is never held twice
        layers[i] = RoomyLayer(layers[i], room, column)

    def step() -> None:
        mask_B11X.index_fill_(3, column, sees)
        hidden_B1E = text(
            input_ids=ids_B1,
            attention_mask=mask_B11X,
            position_ids=positions_B1,
            **{CACHE: cache},
            use_cache=True,
            **options,
        ).last_hidden_state
        ids_B1.copy_(head(hidden_B1E).argmax(-1))
        positions_B1.add_(1)
        column.add_(1)

    if not (backbone.capture and device.type == "cuda"):
        return step
    return captured(step)


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Return a step that is a CUDA graph from its second call on.

    The first call runs as it is, on a stream of its own: the trial run that capture needs,
    and a step like any other. Capturing runs nothing, so where it fails nothing has changed.
    """
    run: Callable[[], None] | None = None

    def call() -> None:
        nonlocal run
        if run is None:
            beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                step()
            torch.cuda.current_stream().wait_stream(beside)
            run = record
        else:
            run()

    def record() -> None:
        nonlocal run
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the device meanwhile, but none may capture.
            with _CAPTURING, torch.cuda.graph(graph, capture_error_mode="thread_local"):
                step()
            run = graph.replay
        except RuntimeError as error:
            logger.warning("Decoding without a CUDA graph, so slower: %s", error)
            run = step
        run()

    return call


@torch.inference_mode()
def decode(
    backbone: Backbone,
    cache: DynamicCache,
    mask_BX: Tensor,
    logits_BV: Tensor,
    *,
    max_new_tokens: int,
    steer: Callable[[Tensor], SteeredPass] | None = None,
) -> Iterator[list[int | None]]:
    """Decode greedily, all rows as one batch; yield a token per row at each step.

    A row that has ended yields None. The loop ends with the last row, after
    ``max_new_tokens``, or when the generator is closed. ``cache`` is taken over, and ``steer``
    is of :func:`token_step`.
    """
    ids_B1 = logits_BV.argmax(-1, keepdim=True)
    ended = [False] * len(ids_B1)
    advance: Callable[[], None] | None = None
    for count in range(1, max_new_tokens + 1):
        tokens = ids_B1.flatten().tolist()
        ended = [e or t in backbone.eos_ids for e, t in zip(ended, tokens, strict=True)]
        if all(ended):
            return
        yield [None if e else t for e, t in zip(ended, tokens, strict=True)]
        if count == max_new_tokens:
            return
        if advance is None:
            advance = token_step(backbone, cache, mask_BX, ids_B1, max_new_tokens - 1, steer)
        advance()
