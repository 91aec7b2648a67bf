# SPDX-License-Identifier: Apache-2.0
"""Step: what the page asks of the server, and what it says while the guest is stopped."""

from __future__ import annotations

from playwright.sync_api import Browser, Page

from pyvmm.trace.kinds import KINDS
from pyvmm.trace.recording_format import decode_chunk, decode_chunk_header
from pyvmm.trace.stream import events_of
from tests.scope.board_guest import BoardGuest, Json
from tests.scope.board_page import board_page


def asked(guest: BoardGuest) -> list[Json]:
    """Return the messages of the page, except that it is alive."""
    return [message for message in guest.messages if message["type"] != "alive"]


def stop_at(guest: BoardGuest, page: Page, kind: str) -> int:
    """Let the guest stop at its last event of `kind`; return the number of the event."""
    chunk = guest.take_chunk()
    header = decode_chunk_header(chunk)
    assert header is not None
    events = [each for each in events_of(decode_chunk(header, chunk)) if each.kind == kind]
    stop = {"seq": events[-1].seq, "kind": kind, "device": "keeper", "queue": "kept"}
    guest.sent_to_page({"type": "step", **stop})  # before its chunk, as it can happen
    guest.sent_to_page(chunk)
    page.wait_for_selector("#step[data-state=stopped]")
    page.wait_for_function(f"document.querySelector('#details h2')?.textContent === '{kind}'")
    return events[-1].seq


def test_the_guest_stops_at_an_event_and_its_queue_is_that_in_memory(browser: Browser) -> None:
    guest = BoardGuest()
    with board_page(browser, guest, "queues/keeper/kept") as page:
        page.select_option("#step select >> nth=0", "chain")
        page.select_option("#step select >> nth=1", label="keeper kept")
        page.keyboard.press("Escape")
        page.locator("#step button").first.click()
        armed = {"type": "step", "kinds": ["chain"], "device": "keeper", "queue": "kept"}
        assert asked(guest) == [armed]
        page.wait_for_selector("#step[data-state=arming]")
        guest.sent_to_page({"type": "armed"})
        page.wait_for_selector("#step[data-state=armed]")
        assert "stops at the next chain of keeper kept" in page.locator("#step").inner_text()
        guest.send(b"request")
        waiting = guest.queue.add([b"not taken"], [8])
        seq = stop_at(guest, page, "chain")
        text = page.locator("#step").inner_text()
        assert f"Stopped at chain of keeper kept, event {seq}" in text
        assert "10 s" in text, "the lease is said"
        page.wait_for_selector(f"table.buffers tr[data-head='{waiting}'][data-owner=available]")
        page.locator("#step button").first.click()
        assert asked(guest)[1:] == [armed, {"type": "resume"}]
        page.wait_for_selector("#step[data-state=arming]")


def test_keys_arm_step_and_let_the_guest_run(browser: Browser) -> None:
    guest = BoardGuest()
    with board_page(browser, guest) as page:
        page.keyboard.press("s")
        page.keyboard.press("s")
        assert asked(guest) == [{"type": "step", "kinds": ["notified"]}], "armed once"
        page.keyboard.press("r")
        page.wait_for_selector("#step[data-state=off]")
        assert asked(guest)[1:] == [{"type": "disarm"}]
        kinds = page.locator("#step select >> nth=0").locator("option").all_inner_texts()
        # Events that were lost are none at which a guest can be stopped.
        assert {*kinds} == {kind.name for kind in KINDS} - {"dropped"}
        page.keyboard.press("s")
        guest.send(b"request")
        stop_at(guest, page, "register_write")
        page.keyboard.press("r")
        page.wait_for_selector("#step[data-state=off]")
        assert asked(guest)[3:] == [{"type": "disarm"}, {"type": "resume"}]


def test_a_guest_that_another_client_resumes_is_no_longer_stopped(browser: Browser) -> None:
    guest = BoardGuest()
    with board_page(browser, guest) as page:
        page.keyboard.press("s")
        guest.send(b"request")
        stop_at(guest, page, "chain")
        guest.sent_to_page({"type": "status", "status": "running"})
        page.wait_for_selector("#step[data-state=off]")


def test_a_refused_step_is_not_armed(browser: Browser) -> None:
    guest = BoardGuest()
    with board_page(browser, guest) as page:
        page.keyboard.press("s")
        page.wait_for_selector("#step[data-state=arming]")
        guest.sent_to_page({"type": "status", "error": "a migration runs"})
        page.wait_for_selector("#step[data-state=off]")
        assert "a migration runs" in page.locator("#notes").inner_text()


def test_a_recording_has_no_step(browser: Browser) -> None:
    guest = BoardGuest()
    guest.live = False
    with board_page(browser, guest) as page:
        assert page.locator("#step").is_hidden()
