"""Several knowledge bases on one page, each with the tower that built it, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsing
import pytest
import tiny_openclip
from tiny_bitower import write_data_set

from app.bench.server import Server
from mrrag.cli.main import parser

IDS = "[...document.querySelectorAll('.evidence-card')].map(c => c.dataset.id)"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A page over the bundled knowledge base and one that open_clip's tower built."""
    browsing.chromium_or_skip()
    folder = tmp_path_factory.mktemp("own")
    data = write_data_set(folder / "data", 12)
    tower = tiny_openclip.write_biomedclip(folder / "tower")
    own = folder / "my_reports"
    command = ["index", "--data", str(data), "--kb", str(own), "--split", "all"]
    arguments = parser().parse_args([*command, "--encoder", str(tower)])
    arguments.run(arguments)
    bundled = Path("assets") / "knowledge_base"
    yield from browsing.serve(tmp_path_factory, "--kb", str(bundled), "--kb", str(own))


def choose(page: Any, name: str) -> None:
    page.click("#base input")
    page.click(f"[role=option] >> text={name}")
    page.wait_for_function(
        "name => document.querySelector('#base-facts').innerText.includes(name)", arg=name
    )


def ask(page: Any) -> list[str]:
    page.click("#ask")
    page.wait_for_selector("#status .done")
    return list(page.evaluate(IDS))


def test_what_one_knowledge_base_gave_never_mixes_with_another(page: Any) -> None:
    page.click("button.sample >> nth=0")
    page.wait_for_selector(".film-frame img")
    facts = page.inner_text("#base-facts summary >> nth=0")
    assert facts == "Knowledge base: bundled, 2,400 reports"
    bundled = ask(page)
    choose(page, "my_reports")
    page.wait_for_function("document.querySelectorAll('.evidence-card').length === 0")
    assert page.locator(".answer").count() == 0
    page.click("#base-facts summary")
    facts = page.inner_text("#base-facts")
    assert "12 reports" in facts
    assert "not learnt for it" in facts
    own = ask(page)
    assert set(own) <= {f"d{n}" for n in range(12)}
    assert len(own) == 8
    # An Ask that still runs as another one is chosen ends with nothing on the page.
    page.click("#ask")
    choose(page, "bundled")
    page.wait_for_function(
        "/knowledge base was chosen/.test(document.querySelector('#status').innerText)"
    )
    page.wait_for_timeout(2000)
    assert page.locator(".evidence-card").count() == 0
    assert ask(page) == bundled
