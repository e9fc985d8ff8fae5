"""``audit`` on a knowledge base of random parts, from the command to the page's panel."""

import argparse
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from tiny_bitower import make_loaded_tower

from app.about import read_about
from mrrag.cli.main import parser
from mrrag.data.records import Record
from mrrag.errors import SettingsError
from mrrag.files import ASSETS
from mrrag.learnt import Learnt, load_learnt, write_learnt
from mrrag.report.audit_panel import audit_panel, read_audit
from mrrag.retrieval.build import build_knowledge_base
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.types import Document, Steering, Weights

STUDIES = 40


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A knowledge base in which every third picture is bright and has an effusion."""
    folder = tmp_path_factory.mktemp("audit")
    tower = make_loaded_tower(folder / "tower")
    rng = np.random.default_rng(0)
    records = []
    for n in range(STUDIES):
        ill = n % 3 == 0
        shade = rng.integers(0, 80, (32, 32)).astype(np.uint8)
        shade[16:] += np.uint8(150 if ill else 0)
        path = folder / f"{n}.png"
        PIL.Image.fromarray(shade).save(path)
        report = f"{'Left' if ill else 'No'} pleural effusion. Study {n}."
        records.append(Record(Document(str(n), report, f"p{n}", f"s{n}"), path))
    build_knowledge_base(folder / "kb", records, tower, thumbnail_size=32, workers=1)
    return folder / "kb"


def run(*arguments: str) -> argparse.Namespace:
    args = parser().parse_args(["audit", *arguments])
    args.run(args)
    return args


def test_an_audit_is_printed_stored_and_shown(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--kb", str(base), "--html", str(tmp_path / "audit.html"), "--choose-weights")
    printed = capsys.readouterr().out
    assert "AUROC" in printed
    stored = json.loads((base / "audit.json").read_text())
    assert stored["queries"] == stored["documents"] == STUDIES
    assert [f["name"] for f in stored["findings"]] == ["pleural effusion"]
    assert stored["base_rates"]["pleural effusion"] == 14 / STUDIES
    # The two kinds of picture differ in brightness, so pixels must tell them apart.
    assert stored["systems"]["pixels"]["auroc"]["value"] > 0.95
    assert stored["systems"]["gamma"]["auroc"]["value"] < 0.7
    assert (base / "learnt.json").exists() == stored["chosen"]["better"]
    panel = audit_panel(read_audit(base))
    assert panel.startswith("<details")  # closed at first
    assert "plain pixels" in panel
    assert "plain pixels" in (tmp_path / "audit.html").read_text()
    KnowledgeBase.load(base, make_loaded_tower(base.parent / "tower"))  # still loads


def test_chosen_weights_replace_those_that_they_beat_and_nothing_else(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = base / "learnt.json"
    steering = Steering(0.5, (1, 2), "question", form="balanced")
    write_learnt(path, Learnt(Weights(0.0, 0.0, 1.0), steering), model="theirs")
    run("--kb", str(base), "--choose-weights")
    assert f"written to {path}" in capsys.readouterr().out
    learnt = load_learnt(path)
    assert learnt.weights.beta > 0.5  # only the images tell who is ill
    assert (learnt.steering, learnt.model) == (steering, "theirs")
    assert len(learnt.studies) == STUDIES // 2
    assert read_about(ASSETS, knowledge_base=base).base.chosen
    path.unlink()


def test_an_audit_of_another_state_or_a_damaged_one_is_not_shown(base: Path) -> None:
    run("--kb", str(base), "--json")
    path = base / "audit.json"
    whole = json.loads(path.read_text())
    needed = ("fingerprint", "documents", "weights", "systems", "differences", "by_finding")
    hostile = [
        *({**whole, name: None} for name in needed),
        whole | {"fingerprint": "0" * 64},
        whole | {"queries": "<script>"},
        [],
    ]
    for value in hostile:
        path.write_text(json.dumps(value))
        assert read_audit(base) is None, value
    path.write_text("[" * 100_000)
    assert read_audit(base) is None
    path.unlink()
    panel = audit_panel(read_audit(base), "my base")
    assert "mrrag audit --kb my base" in panel


def test_a_name_in_an_audit_is_escaped(base: Path) -> None:
    run("--kb", str(base), "--json")
    path = base / "audit.json"
    path.write_text(path.read_text().replace("pleural effusion", "<img src=x>"))
    panel = audit_panel(read_audit(base))
    assert "&lt;img" in panel
    assert "<img" not in panel


def test_what_cannot_be_audited_is_said(base: Path) -> None:
    with pytest.raises(SettingsError, match="K is 40"):
        run("--kb", str(base), "--k", "40")
    with pytest.raises(SettingsError, match="at least 8"):
        run("--kb", str(base), "--queries", "9")
    with pytest.raises(SettingsError, match="bundled"):
        run("--choose-weights")
