"""Text from strangers in a real Chromium: reports and tags that would be code are read as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import HOSTILE, RAMP, WINDOW, ask, chromium_or_skip, pick, serve, upload
from pydicom.config import disable_value_validation
from tiny_dicom import make_dicom

from app.bench.server import Server
from mrrag.cli.main import parser

ROOT = Path(__file__).resolve().parents[2]
REPORTS = 8
LONG = 2**20  # characters, of one of them


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A page over a knowledge base of hostile reports, one of them a megabyte."""
    chromium_or_skip()
    folder = tmp_path_factory.mktemp("hostile")
    picture = (ROOT / "sample_cases" / "case-4.png").read_bytes()
    rows = []
    for n in range(REPORTS):
        (folder / f"{n}.png").write_bytes(picture + bytes(n))
        report = f"No pleural effusion. {HOSTILE} " + "opacity " * (LONG // 8 * (n == 3))
        rows.append({"image": f"{n}.png", "report": report, "id": f"{n}{HOSTILE}", "patient": n})
    (folder / "cases.jsonl").write_text("\n".join(map(json.dumps, rows)))
    built = folder / "kb"
    arguments = parser().parse_args(["index", "--data", str(folder), "--kb", str(built)])
    arguments.run(arguments)
    yield from serve(tmp_path_factory, "--kb", str(built))


def nothing_ran(page: Any) -> bool:
    """Whether no hostile text was taken for code, nor became an element."""
    return bool(page.evaluate("window.hurt === undefined && !document.querySelector('img[src=x]')"))


def test_hostile_reports_are_text(page: Any) -> None:
    pick(page)
    ask(page, "Is there a pleural effusion?")
    assert page.locator(".evidence-card").count() == REPORTS
    assert HOSTILE in page.locator(".evidence-card").first.inner_text()
    assert nothing_ran(page)


def test_hostile_tags_are_text_or_not_shown(page: Any, tmp_path: Path) -> None:
    tags = {
        "PatientName": HOSTILE[:60],
        "StudyDescription": HOSTILE[:60],
        "Modality": "${hurt=1}",
        "ViewPosition": "<i>{{1}}",
        "ImageComments": HOSTILE + "x" * 2**20,
    }
    with disable_value_validation():  # nor does an attacker heed it
        upload(page, tmp_path, make_dicom(RAMP, **WINDOW | tags))
    assert "240 x 200" in page.inner_text(".film-tags")
    for text in ("hurt", "{{1}}", "xxxx"):
        assert text not in page.inner_text("#case")
    assert nothing_ran(page)
