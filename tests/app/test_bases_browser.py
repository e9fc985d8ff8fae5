"""Several knowledge bases and models on one page, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsing
import pytest
import tiny_openclip
from tiny_bitower import write_data_set
from tiny_families import TINY

from app.bench.server import Server
from mrrag.cli.main import parser

IDS = "[...document.querySelectorAll('.evidence-card')].map(c => c.dataset.id)"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A page with another model, over the bundled base and one that open_clip's tower built."""
    browsing.chromium_or_skip()
    folder = tmp_path_factory.mktemp("own")
    data = write_data_set(folder / "data", 12)
    tower = tiny_openclip.write_biomedclip(folder / "tower")
    own = folder / "my_reports"
    command = ["index", "--data", str(data), "--kb", str(own), "--split", "all"]
    arguments = parser().parse_args([*command, "--encoder", str(tower)])
    arguments.run(arguments)
    other = folder / "tiny-smolvlm"
    other.mkdir()
    TINY["smolvlm"].write(other)
    models = ["--model", "bundled", "--model", str(other)]
    bundled = Path("assets") / "knowledge_base"
    bases = ["--kb", str(bundled), "--kb", str(own)]
    yield from browsing.serve(tmp_path_factory, *models, *bases)


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


def test_another_model_is_loaded_on_a_press_and_answers_only_who_chose_it(
    page: Any, profile: Any, server: Server
) -> None:
    shown = "document.querySelector('#header').innerText.includes('tiny-smolvlm')"
    browsing.have_answers(page)
    page.click("#models button.label-wrap")
    page.click(".offer button")
    page.wait_for_selector("#model input")
    assert page.locator(".evidence-card").count() == 8  # loading it has changed nothing else
    assert not page.evaluate(shown)
    page.click("#model input")
    page.click("[role=option] >> text=tiny-smolvlm")
    page.wait_for_function(shown)
    page.wait_for_function("document.querySelectorAll('.evidence-card').length === 0")
    page.click("#settings button.label-wrap")
    page.wait_for_selector("#layers input")
    assert page.locator("#layers input").count() == 3
    ask(page)
    assert "tiny-smolvlm@" in page.inner_text("#answers")
    others = profile.new_page()
    others.goto(server.address)
    others.wait_for_selector(browsing.OPENED)
    assert not others.evaluate(shown)
    others.close()
