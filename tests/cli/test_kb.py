"""A knowledge base in Milvus by its address: copied, described, audited and asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_bitower import make_cases
from tiny_milvus import need_milvus

from app.about import read_about
from mrrag.cli.main import parser
from mrrag.errors import SettingsError
from mrrag.files import ASSETS
from mrrag.learnt import learnt_path
from mrrag.retrieval.address import MilvusCollection, place_of
from mrrag.retrieval.build import build_knowledge_base
from mrrag.retrieval.encoders import load_encoder
from mrrag.retrieval.milvus_notes import read_notes


def run(*words: object) -> None:
    args = parser().parse_args([str(word) for word in words])
    args.run(args)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_milvus()
    path = tmp_path_factory.mktemp("kb")
    encoder = load_encoder(ASSETS / "encoder")
    build_knowledge_base(path / "kb", make_cases(path, 6), encoder, thumbnail_size=24)
    learnt = json.loads((ASSETS / "learnt.json").read_text())
    weights = {"alpha": 0.5, "beta": 0.25, "gamma": 0.25}
    (path / "kb" / "learnt.json").write_text(json.dumps(learnt | {"weights": weights}))
    return path / "kb"


def test_a_copied_knowledge_base_is_described_as_its_folder(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"milvus:{tmp_path}/base.db/chest"
    run("kb", "copy", folder, address)
    said = capsys.readouterr().out
    assert said.startswith(f"6 documents at {address}, fingerprint ")
    ours = read_about(ASSETS, knowledge_base=place_of(address))
    theirs = read_about(ASSETS, knowledge_base=folder)
    assert ours.weights == theirs.weights
    assert ours.weights.alpha == 0.5
    assert (ours.base.name, theirs.base.name) == ("chest", "kb")
    assert ours.base.documents == theirs.base.documents == 6
    assert ours.base.sources == theirs.base.sources
    run("kb", "copy", address, tmp_path / "back")
    assert capsys.readouterr().out.split()[-1] == said.split()[-1]
    assert json.loads((tmp_path / "back" / "learnt.json").read_text())["weights"]["alpha"] == 0.5


def test_an_audit_goes_along_with_a_copy(tmp_path: Path, folder: Path) -> None:
    audit = {"fingerprint": "of the folder", "words": "kept"}
    (folder / "audit.json").write_text(json.dumps(audit))
    place = MilvusCollection(str(tmp_path / "base.db"), "chest")
    run("kb", "copy", folder, place)
    (folder / "audit.json").unlink()
    assert read_notes(place).others["audit.json"] == audit
    assert read_about(ASSETS, knowledge_base=place).base.audit is None  # it is of another one


def test_what_goes_with_one_kind_of_place_only_is_said(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SettingsError, match="is a folder, whose index is always exact"):
        run("kb", "copy", folder, tmp_path / "other", "--index-type", "HNSW")
    with pytest.raises(SettingsError, match=r"written to a folder.*mrrag kb copy"):
        learnt_path("bundled", MilvusCollection("base.db", "chest"), ASSETS)


def test_an_address_that_is_none_ends_the_command_with_a_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["ask", "x.png", "Is it?", "--kb", "milvus:chest"])
    assert "is no address of a collection" in capsys.readouterr().err
