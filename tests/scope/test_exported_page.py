# SPDX-License-Identifier: Apache-2.0
"""`pyvmm recording export --format html`: the page works from a file, with every view."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from devices.testing.ram import DEFAULT_RAM_BYTES
from pyvmm.trace.recording_file import RecordingFile
from pyvmm_native.events import Batch
from tests.pyvmm.cli.test_cli import run_main
from tests.scope.exported_page import exported_page
from tests.scope.recordings import (
    HOSTILE,
    board_batches,
    dropping_batch,
    hostile_batches,
    report_batches,
)

Export = Callable[..., Path]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Return a function that exports a recording of batches, and returns the path of the page."""

    def export(
        batches: list[Batch], *options: str, name: str = "boot.rec", ram_bytes: int = 0
    ) -> Path:
        recording, page = tmp_path / name, tmp_path / "boot.html"
        file = RecordingFile(recording)
        file.commit()
        if ram_bytes:
            file.note_ram(ram_bytes)
        for batch in batches:
            file.write(batch)
        file.close()
        command = ["recording", "export", str(recording), "--format", "html"]
        assert run_main([*command, "--output", str(page), *options]) == 0
        return page

    return export


def text_of(page: Page, selector: str) -> str:
    return page.locator(selector).inner_text()


def test_every_view_of_a_recording_works_from_a_file(browser: Browser, export: Export) -> None:
    with exported_page(browser, export(board_batches())) as page:
        assert text_of(page, "#source-name") == "boot.rec"
        assert text_of(page, "#counts") == "179 events"
        page.wait_for_selector(".timeline-canvas[aria-label^='179 events in 6 lanes']")
        page.keyboard.press("End")
        page.wait_for_selector("#details h2")

        page.keyboard.press("2")
        page.wait_for_selector("#view-queues[data-state=events] tr[data-owner=used]")
        assert page.locator("#view-queues option").all_inner_texts() == [
            "balloon inflate",
            "balloon deflate",
            "balloon queue 2",
        ]
        assert "from events" in text_of(page, "#view-queues .toolbar")

        page.keyboard.press("3")
        page.wait_for_selector("#view-handshake .label >> text=DRIVER_OK")

        page.keyboard.press("5")
        page.wait_for_selector("tr[data-register=device_status][data-value='0xf']")


def test_the_memory_view_has_the_pages_that_were_reported(browser: Browser, export: Export) -> None:
    path = export(report_batches((4 << 20, 2 << 20)), ram_bytes=DEFAULT_RAM_BYTES)
    with exported_page(browser, path, "memory") as page:
        page.wait_for_selector(f"tr[data-state=reported][data-bytes='{2 << 20}']")


def test_the_page_keeps_numbers_and_missing_events(browser: Browser, export: Export) -> None:
    batch = dropping_batch()
    with exported_page(browser, export([batch])) as page:
        assert f"{batch.dropped} missing" in text_of(page, "#counts")
        assert "events are missing, as they came too fast" in text_of(page, "#notes")


@pytest.mark.parametrize("view", ["timeline", "queues", "handshake", "memory", "registers"])
def test_hostile_names_are_text_and_nothing_else(
    browser: Browser, export: Export, view: str
) -> None:
    name = HOSTILE.replace("/", "").replace("\0", "")
    with exported_page(browser, export(hostile_batches(), name=name), view) as page:
        for _ in range(9):
            page.keyboard.press("j")
        page.wait_for_selector("#details h2")
        assert page.locator("img, #details script, #views script").count() == 0
        text = text_of(page, "body")
        assert not {"\x1b", "\u202e", "\0"} & set(text)
        assert "<script>" in text_of(page, "#source-name")


def test_an_address_beyond_2_to_the_53_is_exact(browser: Browser, export: Export) -> None:
    with exported_page(browser, export(hostile_batches(), "--kind", "descriptor")) as page:
        page.keyboard.press("Home")
        page.wait_for_selector("#details dl.fields >> text='0x8000000000000000'")


def test_options_choose_the_events_of_the_page(browser: Browser, export: Export) -> None:
    batches = board_batches()
    chosen = ("--queue", "deflate", "--kind", "used", "--kind", "chain")
    with exported_page(browser, export(batches, *chosen)) as page:
        assert text_of(page, "#counts") == "6 events"
        assert "numbers of their own" in text_of(page, "#notes")
        assert text_of(page, ".event-list").count("balloon deflate") == 6
    with exported_page(browser, export(batches, "--since", "86400")) as page:
        assert text_of(page, "#counts") == "0 events"


def test_chosen_events_have_the_times_of_the_recording(browser: Browser, export: Export) -> None:
    batches = board_batches()

    def time_of_last(*options: str) -> str:
        with exported_page(browser, export(batches, *options)) as page:
            page.keyboard.press("End")
            page.wait_for_selector("#details h2 >> text=used")
            return page.locator("#details dl.facts dd").first.inner_text()

    page_of_all = time_of_last("--kind", "used", "--kind", "chain", "--kind", "status")
    assert page_of_all == time_of_last("--kind", "used")
