# SPDX-License-Identifier: Apache-2.0
"""The shell of the page, timeline and handshake, as a person uses them.

`page_host` fails a test in which the console has a message, a policy is violated, or a request
leaves the origin.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from bench.busy_queue import busy_queue
from tests.scope.page_host import PageHost
from tests.scope.recordings import board_batches, chunks, hostile_batches

Host = Callable[..., PageHost]

CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const luminance = (name) => {
    canvas.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((byte) => byte / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratios = {};
  for (const under of ["--surface", "--raised"]) {
    const marks = [1, 2, 3, 4, 5, 6, 7].map((number) => `c${number}`);
    for (const over of ["text", "muted", "accent", "error", "selected", ...marks]) {
      const [low, high] = [luminance(under), luminance(`--${over}`)].sort((a, b) => a - b);
      ratios[`${over} on ${under}`] = (high + 0.05) / (low + 0.05);
    }
  }
  return ratios;
}"""

LAYOUT = """async () => {
  const { layout } = await import("/TOKEN/page/timeline_drawing.js");
  return layout(document.querySelector(".timeline-canvas").clientWidth, 6);
}"""
NEXT_FRAME = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def selected_kind(page: Page) -> str:
    return page.locator("#details h2").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_have_the_contrast_of_wcag_aa(page_host: Host, scheme: str) -> None:
    page = page_host(chunks(board_batches()), color_scheme=scheme).open()
    for toggled in (False, True):
        if toggled:
            page.click("#theme")
        assert {
            pair: ratio for pair, ratio in page.evaluate(CONTRASTS).items() if ratio < 4.5
        } == {}


def test_tabs_are_reached_by_numbers_arrows_and_address(page_host: Host) -> None:
    page = page_host(chunks(board_batches())).open("handshake")
    tabs = page.get_by_role("tab")
    names = tabs.all_inner_texts()
    assert names[:3] == ["Timeline", "Queues", "Handshake"]
    for number, name in enumerate(names, 1):
        page.keyboard.press(str(number))
        tab = page.get_by_role("tab", selected=True)
        page.wait_for_function(
            "(name) => document.querySelector('[role=tab][aria-selected=true]').innerText === name",
            arg=name,
        )
        panel = page.locator(f"#{tab.get_attribute('aria-controls')}")
        assert panel.get_attribute("role") == "tabpanel"
        assert panel.is_visible()
    tabs.last.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#tab-timeline[aria-selected=true]")


def test_keys_select_events_and_jump_to_a_kind(page_host: Host) -> None:
    page = page_host(chunks(board_batches())).open()
    page.keyboard.press("j")
    page.wait_for_selector("#details h2")
    page.keyboard.press("/")
    page.keyboard.type("queue_live")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#details h2').innerText === 'queue_live'")
    assert page.locator("#details .place").inner_text() == "balloon inflate"
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => document.querySelector('#details .place').innerText === 'balloon deflate'"
    )
    assert page.locator(".event-list .row[aria-selected=true]").count() == 1


def test_keys_zoom_the_timeline_and_show_all_of_it(page_host: Host) -> None:
    page = page_host(chunks(board_batches())).open()
    page.wait_for_selector(".timeline-canvas[aria-label^='179 events in 6 lanes']")
    page.keyboard.press("End")
    page.keyboard.press("+")
    page.wait_for_selector(".timeline-canvas:not([aria-label^='179 events'])")
    page.keyboard.press("0")
    page.wait_for_selector(".timeline-canvas[aria-label^='179 events in 6 lanes']")


@pytest.mark.parametrize(("row", "queue"), [(1, "inflate"), (2, "deflate")])
def test_a_click_in_a_lane_selects_an_event_of_the_lane(
    page_host: Host, row: int, queue: str
) -> None:
    page = page_host(chunks(board_batches())).open()
    page.wait_for_selector(".timeline-canvas[aria-label^='179 events in 6 lanes']")
    lane = page.evaluate(LAYOUT)
    y = lane["top"] + (row + 0.5) * lane["row"]
    place = page.locator("#details .place")
    # Events are where the clock has put them: the newest one is near the right end.
    for x in range(int(lane["left"] + lane["width"]) - 1, int(lane["left"]), -10):
        page.locator(".timeline-canvas").click(position={"x": x, "y": y})
        page.evaluate(NEXT_FRAME)
        if place.count():
            break
    assert place.inner_text() == f"balloon {queue}"


def test_the_list_is_filtered_by_place_and_text(page_host: Host) -> None:
    page = page_host(chunks(board_batches())).open()
    page.select_option(".toolbar select >> nth=2", "used")
    page.wait_for_selector("text=6 of 179")
    page.fill(".toolbar input[type=search]", "used_index=2")
    page.wait_for_selector("text=2 of 179")


def test_the_handshake_shows_the_steps_in_order_and_selects_them(page_host: Host) -> None:
    page = page_host(chunks(board_batches())).open("handshake")
    labels = page.locator(".handshake .label").all_inner_texts()
    assert labels == [
        "Reset",
        "ACKNOWLEDGE",
        "DRIVER",
        "Features offered",
        "Features accepted",
        "FEATURES_OK",
        "DRIVER_OK",
        "Queue inflate",
        "Queue deflate",
        "Queue 2",
    ]
    assert "VERSION_1" in page.locator(".feature.accepted").all_inner_texts()
    page.click("text=FEATURES_OK")
    page.wait_for_function("() => document.querySelector('#details h2')?.innerText === 'status'")


@pytest.mark.parametrize("view", ["timeline", "queues", "handshake", "memory", "registers"])
def test_hostile_names_are_text_and_nothing_else(page_host: Host, view: str) -> None:
    page = page_host(chunks(hostile_batches())).open(view)
    for _ in range(9):
        page.keyboard.press("j")
    page.wait_for_selector("#details h2")
    assert page.locator("img, #details script, #views script").count() == 0
    text = page.locator("body").inner_text()
    assert not {"\x1b", "\u202e", "\0"} & set(text)


def test_many_events_scroll_and_zoom_without_losing_any(page_host: Host) -> None:
    page = page_host(chunks(busy_queue(200_000))).open()
    page.keyboard.press("End")
    page.wait_for_function("() => document.querySelector('#details h2')?.innerText === 'used'")
    assert "199" in page.locator("#details dl.facts").inner_text()
    assert selected_kind(page) == "used"
    for key in "+++hhll---":
        page.keyboard.press(key)
    assert page.locator(".event-list .row").count() < 100
