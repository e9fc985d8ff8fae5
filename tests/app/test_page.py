"""The page as it is built and served, without a browser."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.state_holder import SessionState
from tiny_case import ABOUT, picture

from app import frame
from app.about import read_about
from app.backend import Backend
from app.internals import REST_SECONDS
from app.launch import STYLES, allowed_hosts, launch_options
from app.layout import components, lay_out
from app.models import Models
from app.page import build_page
from app.sections.visit import Update
from app.serve import parse_arguments
from app.theme import theme
from app.waiting import PLACES
from mrrag.errors import ModelError
from mrrag.report import cards
from mrrag.report.pictures import shrink


def test_missing_assets_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"learnt\.json"):
        read_about(tmp_path)


def test_the_page_is_served_to_this_machine_alone_and_quietly() -> None:
    options = launch_options("127.0.0.1", None)
    assert options["server_name"] == "127.0.0.1"
    off = ("share", "show_error", "run_history", "enable_monitoring", "mcp_server", "pwa", "debug")
    assert not any(options[name] for name in off)
    assert options["footer_links"] == []
    assert options["allowed_paths"] == []
    assert options["app_kwargs"]["openapi_url"] is None  # without it there are no docs either
    assert options["auth"] is None
    assert 0 < options["max_file_size"] <= 128 * 2**20
    assert options["strict_cors"]
    assert options["state_session_capacity"] <= 1000


def test_only_own_names_may_address_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert allowed_hosts("127.0.0.1") == ["127.0.0.1", "localhost"]
    assert allowed_hosts("10.0.0.5", ["reading-room.example"])[2:] == [
        "10.0.0.5",
        "reading-room.example",
    ]
    assert socket.gethostname() in allowed_hosts("0.0.0.0")
    assert "*" not in allowed_hosts("0.0.0.0")
    monkeypatch.setenv("SPACE_ID", "someone/space")
    assert allowed_hosts("0.0.0.0") == ["*"]


def test_no_handler_is_documented_and_the_queue_is_bounded() -> None:
    async def build() -> Any:
        return build_page(Models([Backend(ABOUT, Future())]), ())

    page = asyncio.run(build())  # outside a loop gradio makes several and closes none
    assert all(fn.api_visibility == "private" for fn in page.fns.values())
    assert page.delete_cache is not None
    assert page.analytics_enabled is False
    assert page._queue.max_size == 128


def test_an_idle_page_looks_for_events_less_often_than_gradio_would() -> None:
    async def pauses() -> tuple[float, float]:
        with gr.Blocks() as gradios:
            pass
        page = build_page(Models([Backend(ABOUT, Future())]), ())
        return gradios.queue()._queue.sleep_when_free, page._queue.sleep_when_free

    gradios, ours = asyncio.run(pauses())
    assert gradios < ours == REST_SECONDS


def test_nothing_of_what_a_visit_was_shown_is_kept_beside_its_states() -> None:
    async def show() -> str:
        page = build_page(Models([Backend(ABOUT, Future())]), ())
        state = SessionState(page)
        on_ask = next(fn for fn in page.fns.values() if fn.name == "on_ask")
        status = next(part for part in on_ask.outputs if part.elem_id == "status")
        for _ in range(3):
            shown = await page.postprocess_data(on_ask, {status: "Zebedee"}, state)
            assert "Zebedee" in shown
        assert set(state.blocks_config.blocks) == set(page.blocks)
        return str(list(state.components))

    assert "Zebedee" not in asyncio.run(show())


def test_what_an_update_leaves_alone_is_neither_made_anew_nor_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[object] = []

    async def show() -> None:
        page = build_page(Models([Backend(ABOUT, Future())]), ())
        state = SessionState(page)
        on_ask = next(fn for fn in page.fns.values() if fn.name == "on_ask")
        status = next(part for part in on_ask.outputs if part.elem_id == "status")
        kept = next(part for part in on_ask.outputs if part.stateful)
        monkeypatch.setattr(gr.HTML, "__init__", lambda *_, **__: made.append(1))
        sent = await page.postprocess_data(on_ask, {status: "new", kept: "a case"}, state)
        for part, value in zip(on_ask.outputs, sent, strict=True):
            left = None if part.stateful else gr.skip()
            assert value == ("new" if part is status else left)
        assert state[kept._id] == "a case"
        again = await page.postprocess_data(on_ask, {status: gr.skip()}, state)
        assert again[on_ask.outputs.index(status)] == gr.skip()
        assert state[kept._id] == "a case"

    asyncio.run(show())
    assert made == []


def test_the_line_counts_the_questions_ahead() -> None:
    assert "1 question is ahead" in frame.queue_line(1)
    assert "2 questions are ahead" in frame.queue_line(2)


def test_waiting_questions_leave_gradio_threads_for_all_else() -> None:
    # gradio begins as many events at once as it has threads; waiting questions have begun.
    assert launch_options("127.0.0.1", None)["max_threads"] >= PLACES + 8


def test_fonts_and_styles_come_from_this_machine() -> None:
    style = "".join(path.read_text(encoding="utf-8") for path in STYLES)
    assert "http" not in style
    assert "@import" not in style
    assert theme()._stylesheets == []


def test_a_small_picture_is_shown_pixel_for_pixel() -> None:
    pixels = picture().display
    assert shrink(pixels, 1024) is pixels
    assert max(shrink(pixels, 30).shape) == 30


def test_the_page_does_not_wait_for_torch() -> None:
    """Importing torch takes seconds, in which the page is already served."""
    check = "import sys, app.page; sys.exit('torch' in sys.modules)"
    root = Path(cards.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", check], cwd=root, check=False).returncode == 0


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two hex colours (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("selector", [":root", ".dark"])
def test_text_contrasts_with_its_ground(selector: str) -> None:
    style = "".join(path.read_text(encoding="utf-8") for path in STYLES)
    block = re.search(rf"^{re.escape(selector)} {{(.*?)^}}", style, re.S | re.M)
    assert block is not None
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block.group(1)))
    pairs = [
        ("ink", "panel"), ("ink", "sunk"), ("quiet", "panel"), ("quiet", "sunk"),
        ("accent", "panel"), ("accent", "sunk"), ("on-accent", "accent"), ("on-alpha", "alpha"),
        ("on-beta", "beta"), ("on-gamma", "gamma"), ("changed", "changed-ground"),
        ("quiet", "same-ground"), ("warn", "warn-ground"),
    ]  # fmt: skip
    for text, ground in pairs:
        assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)


def test_every_component_that_an_update_may_name_is_on_the_page_once() -> None:
    async def build() -> dict[str, gr.blocks.Block]:
        with gr.Blocks():
            return components(lay_out([ABOUT], ()))

    named = asyncio.run(build())  # in a loop, as above
    assert list(named) == list(Update.__annotations__)
    assert len(set(map(id, named.values()))) == len(named)


def test_a_sub_path_is_a_path_or_a_whole_address(capsys: pytest.CaptureFixture[str]) -> None:
    for given, path in (("/xray/", "/xray"), ("", ""), ("/", "")):
        assert parse_arguments(["--root-path", given]).root_path == path
    whole = "https://example.org:8443/a/b"
    assert parse_arguments(["--root-path", whole]).root_path == whole
    for bad in ("xray", "/x y", "javascript:alert(1)", "//evil.example", "https://", "/a?b"):
        with pytest.raises(SystemExit):
            parse_arguments(["--root-path", bad])
        assert "is not a path" in capsys.readouterr().err
    assert launch_options("127.0.0.1", None, root_path="/xray")["root_path"] == "/xray"
