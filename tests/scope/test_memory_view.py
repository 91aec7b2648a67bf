# SPDX-License-Identifier: Apache-2.0
"""The memory view: RAM by page state, over time, and what a recording tells of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from playwright.sync_api import Browser, Page

from pyvmm_native import PAGE_BYTES
from pyvmm_native.events import EventBuffer
from tests.scope.board_guest import CELL_BYTES, RAM_BYTES, BoardGuest
from tests.scope.board_page import board_page
from tests.scope.page_host import PageHost, source_document
from tests.scope.recordings import chunks, report_batches, taken

MIB = 1 << 20


def legend(page: Page) -> dict[str, int]:
    """Return the bytes in each state, once the map is drawn."""
    page.wait_for_selector(".memory-legend tr[data-state]")
    rows = page.locator(".memory-legend tr[data-state]").all()
    return {
        str(row.get_attribute("data-state")): int(row.get_attribute("data-bytes") or 0)
        for row in rows
    }


def test_pages_are_counted_once_in_the_state_that_says_most(browser: Browser) -> None:
    guest = BoardGuest()
    guest.cells[0][1:] = [512, 0, 0, 0, 512]
    guest.cells[1][1:] = [100, 412, 0, 0, 0]
    guest.cells[2][1:] = [500, 0, 100, 12, 0]
    with board_page(browser, guest, "memory") as page:
        found = legend(page)
        page.locator(".memory-map").focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "document.querySelector('.memory-place').innerText.startsWith('0x200000')"
        )
        place = page.locator(".memory-place").inner_text()
    assert sum(found.values()) == RAM_BYTES
    pages = {name: count // PAGE_BYTES for name, count in found.items()}
    assert pages["huge"] == 512
    assert pages["balloon"] == 412
    assert pages["unused"] == 100
    assert pages["resident"] == 100 + 400
    assert place == "0x200000 to 0x3fffff (2 MiB): 412 balloon, 100 resident pages"


def test_the_slider_shows_an_earlier_sample(browser: Browser) -> None:
    guest = BoardGuest()
    guest.cells[0][1:] = [512, 0, 0, 0, 0]
    with board_page(browser, guest, "memory") as page:
        assert legend(page)["balloon"] == 0
        guest.sent_to_page({"type": "stats", "rss-bytes": 0, "balloon-actual": CELL_BYTES})
        guest.cells[0][1:] = [0, 512, 0, 0, 0]
        page.wait_for_selector(f".memory-legend tr[data-state=balloon][data-bytes='{CELL_BYTES}']")
        chart = page.locator(".line-chart").get_attribute("aria-label") or ""
        assert "balloon 2 MiB" in chart
        assert "RSS 0 bytes" in chart
        page.locator(".memory-time input").focus()
        page.keyboard.press("Home")
        page.wait_for_selector(".memory-legend tr[data-state=balloon][data-bytes='0']")
        assert legend(page)["resident"] == CELL_BYTES


def test_a_recording_tells_where_rings_and_reported_pages_are(browser: Browser) -> None:
    guest = BoardGuest()
    guest.live = False
    guest.send(b"request", writable=8 * PAGE_BYTES)
    guest.buffer.event("balloon.actual", pages=256)
    with board_page(browser, guest, "memory") as page:
        page.keyboard.press("End")
        page.wait_for_function(
            "document.querySelector('.line-chart')?.ariaLabel.includes('balloon 1 MiB')"
        )
        found = legend(page)
        assert 9 * PAGE_BYTES <= found["buffers"] <= 16 * PAGE_BYTES
        assert found["reported"] == 0
        assert sum(found.values()) == RAM_BYTES
        assert "not recorded" in page.locator("#view-memory .hint").inner_text()
        page.keyboard.press("Home")
        page.wait_for_selector(".memory-legend tr[data-state=buffers][data-bytes='0']")


def test_a_recording_tells_which_pages_were_reported_as_free(
    page_host: Callable[..., PageHost],
) -> None:
    recording = chunks(report_batches((2 * MIB, MIB), (9 * MIB, PAGE_BYTES)))
    source = {**source_document(), "memory": RAM_BYTES, "ram": [[0, RAM_BYTES]]}
    page = page_host(recording, {"source": source}).open("memory")
    page.wait_for_selector(
        f".memory-legend tr[data-state=reported][data-bytes='{MIB + PAGE_BYTES}']"
    )
    assert legend(page)["buffers"] < MIB, "reported pages are no buffers"


def test_a_recording_without_the_size_of_ram_has_no_map(
    page_host: Callable[..., PageHost],
) -> None:
    page = page_host(chunks(report_batches((2 * MIB, MIB)))).open("memory")
    page.wait_for_selector(".memory-place:has-text('there is no map of it')")


def test_a_balloon_that_changed_very_often_has_a_chart(page_host: Callable[..., PageHost]) -> None:
    buffer = EventBuffer()
    buffer.start(8 << 20)
    for pages in range(200_000):
        buffer.event("balloon.actual", pages=pages % 256)
    buffer.event("balloon.actual", pages=256)
    page = page_host(chunks([taken(buffer)])).open("memory")
    page.wait_for_selector(".line-chart[aria-label='Over time: balloon 1 MiB']")


def test_the_chart_of_a_recording_has_the_times_of_the_timeline(
    page_host: Callable[..., PageHost],
) -> None:
    buffer = EventBuffer()
    buffer.start()
    for name in ("balloon.target", "balloon.actual", "balloon.actual"):
        buffer.event(name, pages=256)
        time.sleep(0.05)
    page = page_host(chunks([taken(buffer)])).open("memory")
    points = page.locator(".line-chart polyline").get_attribute("points") or ""
    first, last = (float(point.partition(",")[0]) for point in points.split())
    left = float(page.locator(".line-chart line.grid >> nth=0").get_attribute("x1") or 0)
    assert (first - left) / (last - left) == pytest.approx(0.5, abs=0.3)


def test_samples_over_time_are_thinned_evenly(page_host: Callable[..., PageHost]) -> None:
    page = page_host().modules("memory_state")
    kept = page.evaluate(
        """(limit) => {
          let samples = new window.memory_state.Samples(limit);
          const kept = [];
          for (let i = 0; i < 500; i++) {
            if (i % 50 === 0) samples = samples.clone();
            samples.add(i);
            kept.push([...samples.list]);
          }
          return kept;
        }""",
        10,
    )
    for newest, samples in enumerate(kept):
        assert samples[-1] == newest
        steps = {late - early for early, late in pairwise(samples[:-1])}
        assert len(steps) <= 1, samples
        assert samples[0] == 0
        assert len(samples) >= min(newest + 1, 6)
        assert len(samples) <= 10
