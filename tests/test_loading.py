"""A model, a knowledge base and its encoder are loaded together, or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_openclip
from tiny_bitower import CASED, make_tower, write_data_set, write_public_weights

from mrrag.case import Case, Settings
from mrrag.cli.main import parser
from mrrag.data.images import load_image
from mrrag.errors import KnowledgeBaseError, ModelError
from mrrag.evidence import find_evidence
from mrrag.files import ASSETS
from mrrag.loading import load_pipeline
from mrrag.pipeline import answer
from mrrag.retrieval.bi_tower import paper_tower
from mrrag.types import Query

SAMPLES = ASSETS.parent / "sample_cases"


@pytest.mark.parametrize("value", [{"form": "another"}, {"rows": "everything"}])
def test_learnt_values_that_mean_nothing_are_refused_before_any_question(
    tmp_path: Path, value: dict[str, str]
) -> None:
    assets = shutil.copytree(ASSETS, tmp_path / "assets")
    stored = json.loads((assets / "learnt.json").read_text(encoding="utf-8"))
    (assets / "learnt.json").write_text(json.dumps(stored | value), encoding="utf-8")
    with pytest.raises(ModelError, match=f"'{next(iter(value.values()))}'.+find-layers"):
        load_pipeline(assets)


def test_a_learnt_layer_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    base = shutil.copytree(ASSETS / "knowledge_base", tmp_path / "kb")
    stored = json.loads((ASSETS / "learnt.json").read_text(encoding="utf-8"))
    (base / "learnt.json").write_text(json.dumps(stored | {"layers": [0, 99]}))
    with pytest.raises(ModelError, match=r"layer 99\. This model has layers 0 to \d+\. Run"):
        load_pipeline(knowledge_base=base)


def write_bitower(folder: Path) -> list[str]:
    make_tower().save(folder / "tower")
    return ["--encoder", str(folder / "tower")]


def write_paper_tower(folder: Path) -> list[str]:
    tower = paper_tower(
        *write_public_weights(folder, CASED), dimension=6, image_size=32, max_text_tokens=8
    )
    tower.save(folder / "tower")
    return ["--encoder", str(folder / "tower")]


def write_biomedclip(folder: Path) -> list[str]:
    return ["--encoder", str(tiny_openclip.write_biomedclip(folder / "tower"))]


def write_trained_resnet(folder: Path) -> list[str]:
    base = tiny_openclip.write_resnet_base(folder / "base")
    weights = folder / "tower" / "epoch_360.pt"
    tiny_openclip.write_training_checkpoint(weights, tiny_openclip.resnet_state())
    return ["--encoder", str(weights), "--encoder-base", str(base)]


@pytest.mark.parametrize(
    "write", [write_bitower, write_paper_tower, write_biomedclip, write_trained_resnet]
)
def test_a_knowledge_base_is_asked_with_the_tower_that_built_it(
    tmp_path: Path, write: Callable[[Path], list[str]]
) -> None:
    kb = tmp_path / "kb"
    command = ["index", "--data", str(write_data_set(tmp_path / "data", 9)), "--kb", str(kb)]
    arguments = parser().parse_args([*command, "--split", "all", *write(tmp_path)])
    arguments.run(arguments)
    pipeline = load_pipeline(knowledge_base=kb)
    query = Query(load_image(SAMPLES / "case-1.dcm"), "Is there a pleural effusion?")
    evidence = find_evidence(pipeline, query, Settings(k=3))
    *_, case = answer(pipeline, query, evidence, Settings(k=3))
    assert isinstance(case, Case)
    assert len(case.retrieved) == 3
    made_with = pipeline.knowledge_base.manifest["encoder"]
    assert made_with["name"] != "phantom-bitower"
    assert made_with["source"].startswith("../tower")
    assert case.versions["encoder"] == f"{made_with['name']}@{made_with['fingerprint'][:12]}"
    # An update asks for no tower: it is that of the knowledge base.
    arguments = parser().parse_args([*command, "--split", "all", "--update"])
    arguments.run(arguments)
    assert load_pipeline(knowledge_base=kb).encoder.fingerprint == pipeline.encoder.fingerprint
    (tmp_path / "tower").rename(tmp_path / "away")
    with pytest.raises(
        KnowledgeBaseError,
        match=rf'The knowledge base in {kb} needs the encoder "{pipeline.encoder.name}" that it '
        r"was built with\. .* is no longer in .*tower.*\. Put it back there, or build",
    ):
        load_pipeline(knowledge_base=kb)


def test_the_bundled_tower_is_known_wherever_a_knowledge_base_is_copied_to(tmp_path: Path) -> None:
    command = ["index", "--data", str(write_data_set(tmp_path / "data", 3))]
    arguments = parser().parse_args([*command, "--kb", str(tmp_path / "deep" / "kb")])
    arguments.run(arguments)
    (tmp_path / "deep" / "kb").rename(tmp_path / "kb")
    assert load_pipeline(knowledge_base=tmp_path / "kb").encoder.name == "phantom-bitower"
