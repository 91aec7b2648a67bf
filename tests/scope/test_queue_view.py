# SPDX-License-Identifier: Apache-2.0
"""The queue view shows what the driver wrote: descriptors, rings, indices and owners."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from devices.testing import ALL_FEATURES
from devices.testing.driver import EVENT_IDX, INDIRECT_DESC
from tests.scope.board_guest import BoardGuest
from tests.scope.board_page import board_page

SHOWN = """() => {
  const arcs = (id) => [...document.querySelectorAll(`[data-ring=${id}] .arc`)]
    .filter((arc) => arc.dataset.head !== "")
    .map((arc) => [Number(arc.dataset.slot), arc.dataset.owner, Number(arc.dataset.head)]);
  const pointers = [...document.querySelectorAll("[data-ring] [data-pointer]")].map((each) => [
    `${each.closest("[data-ring]").dataset.ring} ${each.dataset.pointer}`,
    Number(each.dataset.value)]);
  const rows = [...document.querySelectorAll("table.buffers tbody tr")].map((row) =>
    [Number(row.dataset.head), row.dataset.owner]);
  return {descriptors: arcs("descriptors"), available: arcs("available"), used: arcs("used"),
    pointers: Object.fromEntries(pointers), buffers: rows};
}"""
"""Returns what the rings and the table of buffers show."""


def shown(page: Page, heads: int) -> dict[str, Any]:
    """Return what is shown once `heads` buffers are."""
    page.wait_for_function(
        "count => document.querySelectorAll('table.buffers tbody tr').length === count", arg=heads
    )
    found: dict[str, Any] = page.evaluate(SHOWN)
    return found


def owners(found: dict[str, Any], ring: str = "descriptors") -> dict[int, tuple[str, int]]:
    return {slot: (owner, head) for slot, owner, head in found[ring]}


def filled(guest: BoardGuest) -> list[int]:
    """Bring one buffer into each state; return the heads: used, in the device, available."""
    used = guest.send(b"first")
    guest.keeper.finish()
    kept = guest.send(b"a", b"long", b"chain", writable=40)
    return [used, kept, guest.queue.add([b"waits"], [8])]


def test_each_descriptor_has_its_owner_and_chain(browser: Browser) -> None:
    guest = BoardGuest()
    used, kept, waiting = filled(guest)
    with board_page(browser, guest, "queues/keeper/kept") as page:
        found = shown(page, 3)
    assert owners(found) == {
        **dict.fromkeys((0, 1), ("used", used)),
        **dict.fromkeys((2, 3, 4, 5), ("device", kept)),
        **dict.fromkeys((6, 7), ("available", waiting)),
    }
    assert owners(found, "available")[1] == ("device", kept)
    assert owners(found, "available")[2] == ("available", waiting)
    assert owners(found, "used") == {0: ("used", used)}
    assert found["buffers"] == [[waiting, "available"], [kept, "device"], [used, "used"]]


@pytest.mark.parametrize("features", [ALL_FEATURES, ALL_FEATURES & ~EVENT_IDX])
def test_indices_are_those_in_guest_memory(browser: Browser, features: int) -> None:
    guest = BoardGuest(features=features)
    filled(guest)
    with board_page(browser, guest, "queues/keeper/kept") as page:
        pointers = shown(page, 3)["pointers"]
    queue = guest.queue
    assert pointers["available idx"] == queue.avail_idx == 3
    assert pointers["available next"] == 2
    assert pointers["used idx"] == queue.used_idx == 1
    assert pointers["available avail_event"] == queue.avail_event


def test_indices_and_chains_continue_after_the_index_has_wrapped(browser: Browser) -> None:
    guest = BoardGuest(size=4, start_index=65533)
    guest.pass_through(4)
    head = guest.send(b"after")
    with board_page(browser, guest, "queues/keeper/kept") as page:
        found = shown(page, 2)
    assert (found["pointers"]["available idx"], found["pointers"]["used idx"]) == (2, 1)
    assert owners(found, "available")[1] == ("device", head)


def test_an_indirect_chain_and_its_bytes_are_shown_with_the_clause(browser: Browser) -> None:
    guest = BoardGuest()
    assert guest.driver.features & INDIRECT_DESC
    head = guest.send(b"hello", b"x" * 40, writable=24, indirect=True)
    with board_page(browser, guest, "queues/keeper/kept") as page:
        assert owners(shown(page, 1)) == {head: ("device", head)}
        page.locator("[data-ring=descriptors] [data-owner=device]").click()
        page.wait_for_selector(".buffer .hex")
        text = page.locator(".buffer").inner_text()
        marked = page.locator(".buffer .marked")
        page.locator("tr.decoded").first.hover()
        assert marked.all_inner_texts() == ["68 ", "65 ", "6c ", "6c "]
    assert "INDIRECT" in text
    assert "hello" in text
    assert "VIRTIO 1.2, 2.7.4" in text
    assert "<b>68656c6c\\u{1b}[1m" in text, "text from the codec is text, with escapes"


@pytest.mark.parametrize("size", [256, 1024])
def test_a_large_queue_collapses_what_is_not_in_use(browser: Browser, size: int) -> None:
    guest = BoardGuest(size=size)
    heads = [guest.send(b"some") for _ in range(20)]
    with board_page(browser, guest, "queues/keeper/kept") as page:
        found = shown(page, 20)
        arcs = page.locator("[data-ring=descriptors] .arc").count()
    assert {head for _, _, head in found["descriptors"]} == set(heads)
    assert arcs < 60


def test_a_recording_shows_the_queue_at_the_selected_event(browser: Browser) -> None:
    guest = BoardGuest(features=ALL_FEATURES)
    used, kept, _ = filled(guest)
    guest.live = False
    with board_page(browser, guest, "queues/keeper/kept") as page:
        page.keyboard.press("End")
        found = shown(page, 2)
        assert owners(found)[0] == ("used", used)
        assert [owners(found)[slot] for slot in (2, 3, 4, 5)] == [("device", kept)] * 4
        assert found["pointers"]["used idx"] == 1
        assert found["pointers"]["available next"] == 2
        assert "available idx" not in found["pointers"], "events do not have the driver's index"
        # Before the first buffer was returned it was in the device.
        page.keyboard.press("/")
        page.keyboard.type("used")
        page.keyboard.press("Shift+Enter")
        page.keyboard.press("Escape")
        page.keyboard.press("k")
        page.wait_for_function("document.querySelector('table.buffers [data-owner=used]') === null")
        assert owners(shown(page, 1))[0] == ("device", used)


def test_a_chain_in_the_table_can_be_chosen_by_keys(browser: Browser) -> None:
    guest = BoardGuest()
    filled(guest)
    with board_page(browser, guest, "queues/keeper/kept") as page:
        shown(page, 3)
        page.locator("table.buffers tbody tr").nth(1).focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(".buffer .hex")
        assert page.locator(".buffer h3").inner_text() == "Buffer 2"
        arc = page.locator("[data-ring=used] .arc").first
        arc.focus()
        page.keyboard.press("ArrowRight")
        label = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert label.startswith("slot 1")


def test_a_hostile_available_index_is_a_fault_not_a_walk(browser: Browser) -> None:
    guest = BoardGuest()
    filled(guest)
    guest.queue.set_avail_idx(40000)
    guest.queue.set_desc(2, (1 << 64) - 1, 0xFFFFFFFF, 0xFFFF, 2)
    with board_page(browser, guest, "queues/keeper/kept") as page:
        page.wait_for_function(
            "document.querySelector('#view-queues [role=status]').textContent"
            ".includes('ahead of the device')"
        )


def test_an_address_of_64_bits_is_shown_exactly(browser: Browser) -> None:
    guest = BoardGuest()
    gpa = 2**64 - 2**10 + 1
    guest.keeper.memory.write(guest.queue.desc_gpa, gpa.to_bytes(8, "little"))
    with board_page(browser, guest, "queues/keeper/kept") as page:
        page.wait_for_selector("[data-ring=descriptors] .arc")
        page.locator("summary", has_text="Descriptor table").click()
        assert f"{gpa:#x}" in page.locator("details table").last.inner_text()
