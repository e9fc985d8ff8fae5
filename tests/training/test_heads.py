"""Probes, directions and the search for heads find what is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny_experiment import make_pipeline, make_questions
from tiny_llava import REPORTS, make, picture
from transformers import LlavaForConditionalGeneration

from mrrag.data.corpus import Corpus
from mrrag.model.answering import answer_batch
from mrrag.model.backbone import Backbone, embed, encode_images
from mrrag.model.prefill import Branch
from mrrag.study.arena import PASTA_REPORTS
from mrrag.study.evaluation import encode_items
from mrrag.study.heads import read_heads
from mrrag.training import heads as module
from mrrag.training.heads import answer_outputs, directions, find_heads, fit_probes, probe_accuracy
from mrrag.training.learn import split_questions


def clouds(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs [n, 1, 2, 5] of which head 1 alone tells right from wrong, along axis 2."""
    rng = np.random.default_rng(seed)
    outputs = rng.standard_normal((n, 1, 2, 5)).astype(np.float32)
    right = np.arange(n) % 2 == 0
    outputs[:, 0, 1, 2] += np.where(right, 3.0, -3.0).astype(np.float32)
    return outputs, right


def test_probes_are_logistic_regressions_and_find_the_head_that_knows() -> None:
    outputs, right = clouds(200, 0)
    weight, bias = fit_probes(outputs, right)
    for head in range(2):
        reference = LogisticRegression(max_iter=1000, tol=1e-8).fit(outputs[:, 0, head], right)
        np.testing.assert_allclose(weight[0, head], reference.coef_[0], atol=2e-3)
        assert bias[0, head] == pytest.approx(reference.intercept_[0], abs=2e-3)
    accuracy = probe_accuracy((outputs, right), clouds(100, 1))
    assert accuracy[0, 1] > 0.97
    assert 0.3 < accuracy[0, 0] < 0.7


def test_a_direction_is_between_the_means_and_has_the_spread_along_it() -> None:
    outputs, right = clouds(4000, 2)
    direction, spread = directions(outputs, right)
    np.testing.assert_allclose(np.linalg.norm(direction, axis=-1), 1, rtol=1e-5)
    assert direction[0, 1, 2] > 0.99
    assert spread[0, 1] == pytest.approx(np.hypot(3, 1), rel=0.03)
    flat = np.zeros((4, 1, 1, 3), np.float32)
    assert not np.isnan(directions(flat, np.array([True, False, True, False]))[0]).any()


def test_outputs_are_what_the_output_projection_reads_at_the_answer(
    tiny_llava: Backbone, tiny_llava_folder: Path
) -> None:
    stock = LlavaForConditionalGeneration.from_pretrained(tiny_llava_folder).eval()
    features = encode_images(tiny_llava, [picture()])
    branches = [Branch(make(tiny_llava, REPORTS[:n]), features) for n in (1, 3)]
    yes, no = answer_outputs(tiny_llava, branches)
    assert yes.shape == no.shape == (2, 3, 4, 12)
    seen: list[torch.Tensor] = []
    for layer in stock.model.language_model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _module, inputs: seen.append(inputs[0][0, -1])
        )
    table = stock.get_input_embeddings()
    for words, outputs in ((tiny_llava.yes_ids, yes), (tiny_llava.no_ids, no)):
        for b, branch in enumerate(branches):
            with torch.no_grad():
                rows = embed(tiny_llava, branch.prompt, features).clone()
                logits = stock(inputs_embeds=rows[None]).logits[0, -1]
                word = torch.tensor([max(words, key=lambda i: float(logits[i]))])
                seen.clear()
                stock(inputs_embeds=torch.cat([rows, table(word)])[None])
            whole = torch.stack(seen).view(3, 4, 12).numpy()
            np.testing.assert_allclose(outputs[b], whole, atol=1e-5)


def test_the_search_writes_a_file_that_evaluate_reads(
    tmp_path: Path, tiny_llava_folder: Path
) -> None:
    pipeline, cases = make_pipeline(tmp_path, tiny_llava_folder)
    corpus = Corpus(tuple(cases), {}, questions=tuple(make_questions(cases)))
    split = split_questions(corpus, pipeline.knowledge_base)
    path = tmp_path / "heads.safetensors"
    said = find_heads(pipeline, split, path, questions=6, k=3)
    found = read_heads(path, pipeline.backbone.fingerprint)
    assert said.count("layer") == 2 * module.SHOWN
    assert found.direction_LHD.shape == (3, 4, 12)
    # PASTA's score of one head is that of the questions asked under it.
    data = split.validation
    items = encode_items(pipeline, data.records, data.questions, limit=6)
    branches = module._branches(pipeline, items, 3, 1)
    emphasis = replace(PASTA_REPORTS, heads=((1, 2),))
    answers = answer_batch(pipeline.backbone, branches, emphases=(emphasis,))
    right = [
        yes if item.gold else no
        for item, yes, no in zip(items, answers.p_yes, answers.p_no, strict=True)
    ]
    assert found.pasta_LH[1, 2] == pytest.approx(np.mean(right), abs=1e-5)
    assert len({*found.pasta_LH.ravel().tolist()}) > 1
