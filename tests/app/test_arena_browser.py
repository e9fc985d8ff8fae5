"""The arena in a real browser: by keyboard alone, on a wide and on a narrow screen."""

from __future__ import annotations

from typing import Any

DONE = "/arena is done/.test(document.querySelector('#status').innerText)"
NAMES = "[...document.querySelectorAll('table.arena > tbody')].map(row => row.dataset.name)"
FOCUSED = "document.activeElement.dataset.sort"
ALONE = "/by this report alone/.test(document.querySelector('.evidence-card').innerText)"
UNTICKED = ("rag_off", "pai", "spotlight", "cad", "vote", "mmed_gap_ifa")


def press(page: Any, selector: str, key: str = "Enter") -> None:
    """Press a key on a control, without a pointer."""
    page.locator(selector).first.focus()
    page.keyboard.press(key)


def changes(page: Any) -> list[float]:
    """Return the changes against plain RAG, row by row; plain RAG has none."""
    shown = page.locator("table.arena td[data-label=Change]").all_inner_texts()
    return [float(text.replace("−", "-")) for text in shown if text.strip() != "–"]


def test_the_arena_is_opened_ticked_run_sorted_and_read_by_keyboard(page: Any) -> None:
    press(page, "button.sample[data-sample='4']")
    page.wait_for_selector(".film-frame img")
    press(page, "#ask")
    page.wait_for_selector("#status .done")
    assert page.locator("table.arena").count() == 0
    press(page, "#arena-panel > button")
    page.wait_for_selector("#arena-run")
    for name in UNTICKED:
        press(page, f"#arena-methods input[name={name}]", "Space")
    press(page, "#arena-run")
    page.wait_for_function(DONE)
    assert page.evaluate(NAMES) == ["rag", "mr_rag", "replug", "top_report"]
    page.wait_for_function(ALONE)  # on the first card
    for key in ("Tab", "Tab", "Tab", "Tab", "Tab"):  # over the other button, to the fourth heading
        page.keyboard.press(key)
    assert page.evaluate(FOCUSED) == "change"
    for order in ("ascending", "descending"):
        page.keyboard.press("Enter")
        page.wait_for_selector(f"th[aria-sort={order}] button[data-sort=change]")
        assert page.evaluate(FOCUSED) == "change"
        assert changes(page) == sorted(changes(page), reverse=order == "descending")
        assert page.evaluate(NAMES)[-1] == "rag"  # it has no change
    press(page, "button[aria-controls=arena-maps-mr_rag]")
    page.wait_for_selector("#arena-maps-mr_rag .heat-table")

    page.set_viewport_size({"width": 390, "height": 844})
    press(page, "#arena-curves")
    page.wait_for_selector("#curve-strength .scatterlayer .trace")
    page.wait_for_function("/curves are done/.test(document.querySelector('#status').innerText)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for button in ("method", "seconds"):  # the headings are a line of buttons
        assert page.locator(f"button[data-sort={button}]").is_visible()

    press(page, "button.sample[data-sample='0']")
    page.wait_for_function("!document.querySelector('table.arena, .answer')")
    assert page.locator("#arena-run:visible").count() == 0
