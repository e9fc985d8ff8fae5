"""Decoding in place, and captured, gives the tokens of a growing cache."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_llava import make, three
from torch import Tensor

from mrrag.model.backbone import (
    Backbone,
    embed,
)
from mrrag.model.decoding import captured, decode, token_step
from mrrag.model.prefill import (
    fork,
    prefill,
    right_aligned,
    run_batch,
)


def test_decoding_in_place_is_decoding_with_a_growing_cache(
    tiny_llava: Backbone, features: Tensor
) -> None:
    embeds = [embed(tiny_llava, branch.prompt, features) for branch in three(tiny_llava, features)]
    mask = right_aligned([len(e) for e in embeds])
    cache = prefill(tiny_llava, embeds[0][:0])
    logits = run_batch(tiny_llava, embeds, cache, mask)
    length = cache.get_seq_length()
    unending = replace(tiny_llava, eos_ids=())
    tokens = list(decode(unending, fork(cache), mask, logits, max_new_tokens=9))
    assert cache.get_seq_length() == length
    for _ in range(9):
        ids = logits.argmax(-1)
        assert ids.tolist() == tokens.pop(0)
        token = tiny_llava.model.get_input_embeddings()(ids)[:, None]
        mask = torch.nn.functional.pad(mask, (0, 1), value=True)
        logits = run_batch(tiny_llava, list(token), cache, mask)


@pytest.mark.parametrize("works", [True, False])
def test_a_captured_step_takes_every_step_once(
    tiny_llava: Backbone, features: Tensor, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """The graph is stood in for by the step itself: what is tested is what surrounds it."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(wait_stream=lambda _: None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: torch.cuda.Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    capturing = False

    class Graph:
        def replay(self) -> None:
            inner()

    @contextlib.contextmanager
    def capture(graph: Graph, **_: object) -> Any:
        nonlocal capturing
        if not works:
            raise RuntimeError("operation not permitted when stream is capturing")
        capturing = True
        yield
        capturing = False

    def taken() -> None:
        if not capturing:  # a step that is being captured is recorded and does not run
            inner()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    embeds = embed(tiny_llava, make(tiny_llava), features)
    with torch.inference_mode():
        cache = prefill(tiny_llava, embeds)
        mask = right_aligned([len(embeds)])
        plain, replayed = torch.tensor([[5]]), torch.tensor([[5]])
        step = token_step(tiny_llava, fork(cache), mask, plain, room=4)
        inner = token_step(tiny_llava, fork(cache), mask, replayed, room=4)
        again = captured(taken)
        for _ in range(4):
            step()
            again()
            assert plain.tolist() == replayed.tolist()


def test_two_threads_never_capture_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(wait_stream=lambda _: None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: torch.cuda.Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    active: list[int] = []
    most = 0

    @contextlib.contextmanager
    def capture(*_: object, **__: object) -> Any:
        nonlocal most
        active.append(1)
        most = max(most, len(active))
        time.sleep(0.05)
        yield
        active.pop()

    monkeypatch.setattr(torch.cuda, "graph", capture)

    def visit(_: int) -> None:
        step = captured(lambda: None)
        step()
        step()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(visit, range(3)))
    assert most == 1
