"""The figures of a layer are those of its attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_experiment import make_pipeline, make_questions
from transformers import LlavaForConditionalGeneration

from mrrag.pipeline import Pipeline
from mrrag.study.evaluation import EncodedItem, branch_of, encode_questions, evidence_for
from mrrag.study.experiment import choose_questions
from mrrag.study.sink import measure_sink, sink_json, sink_text


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tiny_llava_folder: Path
) -> tuple[Pipeline, list[EncodedItem]]:
    pipeline, cases = make_pipeline(tmp_path_factory.mktemp("sink"), tiny_llava_folder)
    asked = choose_questions(cases, make_questions(cases)).items
    return pipeline, encode_questions(pipeline, [(i.case, i.question) for i in asked[:3]])


def test_attention_on_first_token_and_reports_is_that_of_eager_attention(
    made: tuple[Pipeline, list[EncodedItem]], tiny_llava_folder: Path
) -> None:
    pipeline, items = made
    stock = LlavaForConditionalGeneration.from_pretrained(
        tiny_llava_folder, attn_implementation="eager"
    ).eval()
    item = items[0]
    found = evidence_for(pipeline, item, pipeline.learnt.weights, 2)
    branch = branch_of(pipeline, item, [r.document.report for r in found])
    prompt = branch.prompt
    embeds = stock.get_input_embeddings()(torch.tensor([prompt.ids]))
    image = prompt.span("image")
    embeds[0, image.start : image.stop] = branch.features
    with torch.inference_mode():
        out = stock.model.language_model(inputs_embeds=embeds, output_attentions=True)
    rows = [
        n for s in prompt.spans if s.name in ("question", "cue") for n in range(s.start, s.stop)
    ]
    columns = [n for s in prompt.reports for n in range(s.start, s.stop)]
    flows = measure_sink(pipeline, [item], 2)
    assert len(flows) == pipeline.backbone.layers
    for flow, weights in zip(flows, out.attentions, strict=True):
        seen = weights[0][:, rows].mean(1)
        assert flow.first == pytest.approx(float(seen[:, 0].mean()), abs=1e-5)
        assert flow.first_most == pytest.approx(float(seen[:, 0].max()), abs=1e-5)
        assert flow.reports == pytest.approx(float(seen[:, columns].sum(-1).mean()), abs=1e-5)


def test_logits_on_reports_are_those_before_the_softmax(
    made: tuple[Pipeline, list[EncodedItem]],
) -> None:
    pipeline, items = made
    for flow in measure_sink(pipeline, items, 2):
        assert 0 < flow.positive < 1
        assert flow.logit_sd > 0
        assert np.isfinite([flow.logit, flow.first_logit]).all()


def test_a_batch_gives_the_mean_of_its_questions(
    made: tuple[Pipeline, list[EncodedItem]],
) -> None:
    pipeline, items = made
    single = [measure_sink(pipeline, [item], 2) for item in items]
    together = measure_sink(pipeline, items, 2)
    for layer, flow in enumerate(together):
        expected = np.mean([flows[layer].reports for flows in single])
        assert flow.reports == pytest.approx(expected, abs=1e-5)


def test_table_and_json_have_every_layer(made: tuple[Pipeline, list[EncodedItem]]) -> None:
    pipeline, items = made
    flows = measure_sink(pipeline, items, 2)
    assert len(sink_text(flows, 3, 2).splitlines()) == 2 + len(flows)
    assert [row["layer"] for row in sink_json(flows, 3, 2)["layers"]] == [f.layer for f in flows]
