# SPDX-License-Identifier: Apache-2.0
"""Saving and restoring the balloon: state that is kept, dropped or refused, one test for each.

`tests/devices/balloon/test_saved_balloon.py` shows that all else is as before the save.
"""

from __future__ import annotations

from typing import Any

import pytest

from devices.balloon.dialects import BITMAP, STANDARD, Role
from devices.balloon.hinting import HintingResult
from devices.balloon.misc import MiscCommand, MiscResponse, RequestStatus
from devices.balloon.stats import StatsReport
from devices.state import Fields, StateError, encode
from devices.testing.balloon.driver import INFLATE, STATS, BalloonBoard, BalloonDriver
from devices.testing.balloon.hinting import DONE as HINTS_DONE
from devices.testing.balloon.hinting import HintGuest
from devices.testing.balloon.misc import MISC, MiscDriver, MiscGuest
from devices.testing.balloon.requests import pfn_array
from devices.testing.balloon.stats import StatsGuest
from devices.testing.board import APERTURE
from devices.testing.driver import DRIVER_OK, NEEDS_RESET, NO_VECTOR, NOTIFY_CFG
from devices.testing.driver_queue import NO_INTERRUPT, WRITE
from devices.testing.states import transfer_state
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES

ACTUAL = 4
CONFIG_VECTOR = 0


def moved(driver: BalloonDriver) -> BalloonBoard:
    """Restore the driver's board into a new one, serve it, and continue the driver there."""
    new = restored(driver)
    new.serve()
    return new


def restored(driver: BalloonDriver) -> BalloonBoard:
    """Restore as `moved` does, without serving the new board."""
    old = driver.board
    balloon = old.balloon
    new = BalloonBoard(balloon.dialect, ram=old.ram, offered=balloon.offered)
    transfer_state(old.transport, new.transport)
    driver.board = new
    return new


# --- State that is kept -----------------------------------------------------------------------
def test_target_actual_and_counters_are_restored() -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.board.balloon.set_target(500)
    driver.send(INFLATE, [pfn_array([100, 101])])
    driver.write_config(ACTUAL, 4, 2)
    old = driver.board.balloon
    before = old.counters
    new = moved(driver).balloon
    assert (new.num_pages, new.actual) == (500, 2)
    assert new.counters.inflate == before.inflate
    assert new.counters.discarded_bytes == 2 * PAGE_BYTES
    driver.send(INFLATE, [pfn_array([102])])
    assert new.counters.inflate.pages == 3
    driver.reset()
    assert (new.num_pages, new.actual) == (500, 0)


def test_a_request_not_served_before_the_save_is_served_after_it() -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.queues[INFLATE].add([pfn_array([100])])
    driver.notify(INFLATE)  # and not served
    board = moved(driver)
    assert [used.length for used in driver.queues[INFLATE].take_used()] == [0]
    assert board.balloon.counters.inflate.pages == 1


def test_a_restore_repeats_interrupts_unless_the_driver_suppressed_them() -> None:
    driver = BalloonDriver(STANDARD).start(features=~(1 << 29))  # without EVENT_IDX
    driver.queues[STATS].set_avail_flags(NO_INTERRUPT)
    board = restored(driver)
    vectors = {queue + 1 for queue in driver.queues if queue != STATS} | {CONFIG_VECTOR}
    assert sorted(board.msi.triggered) == sorted(vectors)
    assert board.msi.routes == driver.board.msi.routes
    assert all(board.msi.routes[each] == (0xFEE0_0000, 0x40 + each) for each in vectors)


def test_a_queue_not_enabled_stays_disabled() -> None:
    driver = BalloonDriver(STANDARD).start(queues=[0, 1])
    board = restored(driver)
    assert sorted(set(board.msi.triggered)) == [CONFIG_VECTOR, 1, 2]
    assert board.notifiers.assigned.keys() == {0, 1}


def test_a_restore_asserts_intx_again() -> None:
    driver = BalloonDriver(STANDARD).start(msix=False)
    driver.send(INFLATE, [pfn_array([100])])
    assert driver.board.line.level
    board = restored(driver)
    assert board.line.level
    assert driver.read_isr() & 1
    assert not board.line.level


def test_isr_status_and_line_are_restored() -> None:
    state: Any = BalloonBoard(STANDARD).transport.save_state()
    state["interrupts"]["isr_status"] = 1
    new = BalloonBoard(STANDARD)
    new.transport.restore_state(Fields("balloon", state))
    assert new.line.level
    assert new.transport.interrupts.read_isr() == 1


def test_a_pending_masked_vector_stays_pending() -> None:
    driver = BalloonDriver(STANDARD).start()
    table = driver.bars[2]
    driver.board.mmio.write(table + 16 * (INFLATE + 1) + 12, 4, 1)
    driver.send(INFLATE, [pfn_array([100])])
    board = moved(driver)
    assert INFLATE + 1 not in board.msi.triggered
    board.mmio.write(table + 16 * (INFLATE + 1) + 12, 4, 0)
    assert board.msi.triggered[-1] == INFLATE + 1


def test_needs_reset_is_restored_and_notified_again() -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.queues[INFLATE].set_avail_idx(1000)
    driver.notify(INFLATE)
    driver.board.serve()
    assert driver.status & NEEDS_RESET
    board = restored(driver)
    assert driver.status & NEEDS_RESET
    assert board.msi.triggered == [CONFIG_VECTOR]
    assert not board.notifiers.assigned
    driver.reset()
    driver.start()
    assert driver.send(INFLATE, [pfn_array([100])])


def test_nothing_is_served_until_bus_mastering_is_enabled() -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.queues[INFLATE].add([pfn_array([100])])
    driver.write_pci(0x04, 2, 0b010)
    board = moved(driver)
    assert board.msi.triggered == []
    assert driver.queues[INFLATE].take_used() == []
    driver.write_pci(0x04, 2, 0b110)
    board.serve()
    assert driver.queues[INFLATE].take_used()


def test_no_notifier_is_assigned_until_memory_space_is_enabled() -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.write_pci(0x04, 2, 0b100)
    board = moved(driver)
    assert (board.function.bar_gpa(0), board.notifiers.assigned) == (None, {})
    driver.write_pci(0x04, 2, 0b110)
    assert board.notifiers.assigned[INFLATE] == driver.structure_gpa(NOTIFY_CFG)


@pytest.mark.parametrize("first", [0, 2])
def test_of_two_bars_at_one_address_the_first_stays_decoded(first: int) -> None:
    driver = BalloonDriver(STANDARD).start()
    other = 2 - first
    gpa = APERTURE[0] + 16 * MIB
    for bar in (first, other):
        driver.write_pci(0x10 + 4 * bar, 4, gpa)
    assert driver.board.function.bar_gpa(first) == gpa
    board = moved(driver)
    assert (board.function.bar_gpa(first), board.function.bar_gpa(other)) == (gpa, None)


def test_a_device_that_was_never_probed_is_restored() -> None:
    driver = BalloonDriver(BITMAP)
    driver.board.balloon.set_target(7)
    board = restored(driver)
    assert board.balloon.num_pages == 7
    assert not board.msi.triggered
    driver.start()
    assert board.balloon.has_live(Role.MISC)


def test_a_half_negotiated_device_is_restored() -> None:
    driver = BalloonDriver(BITMAP).probe()
    driver.negotiate()
    driver.write_common("queue_select", 1)
    driver.write_common("queue_size", 32)
    moved(driver)
    assert driver.read_common("queue_size") == 32
    for queue in driver.existing_queues():
        driver.set_up_queue(queue)
    assert driver.add_status(DRIVER_OK) & DRIVER_OK


def test_a_saved_balloon_is_small() -> None:
    assert len(encode(BalloonDriver(STANDARD).start().board.transport.save_state())) < 8 * 1024


# --- Requests to the driver -------------------------------------------------------------------
def test_a_stats_buffer_in_flight_requests_statistics_after_the_restore() -> None:
    guest = StatsGuest(BITMAP).start()
    guest.board = moved(guest.driver)
    reports: list[StatsReport] = []
    guest.board.balloon.stats.report_received.add(reports.append)
    assert guest.board.balloon.request_stats()
    assert guest.respond()
    assert [report.requests for report in reports] == [1]


def test_a_report_not_served_before_the_save_arrives_unrequested() -> None:
    guest = StatsGuest(BITMAP).start()
    guest.board.balloon.request_stats()
    guest.board = moved(guest.driver)
    assert not guest.board.balloon.request_stats()  # until the driver has responded
    reports: list[StatsReport] = []
    guest.board.balloon.stats.report_received.add(reports.append)
    assert guest.respond()
    assert len(reports) == 1
    assert guest.board.balloon.request_stats()


def test_a_misc_buffer_in_flight_carries_a_request_with_a_new_id() -> None:
    guest = MiscGuest((0, 64 * MIB)).start()
    guest.board.balloon.misc.request(MiscCommand.SYNC, lambda response: None)
    guest.respond()
    board = guest.board = moved(guest.driver)
    responses: list[MiscResponse] = []
    board.balloon.misc.request(MiscCommand.GET_UNUSED_PAGES, responses.append)
    guest.respond()
    assert [request.id for request in guest.requests] == [1, 2]
    assert [response.status for response in responses] == [RequestStatus.COMPLETE]
    assert responses[0].pages.pages == len(guest.unused)


def test_the_response_to_a_request_from_before_the_save_is_late() -> None:
    guest = MiscGuest((0, 64 * MIB)).start()
    old: list[MiscResponse] = []
    guest.board.balloon.misc.request(MiscCommand.GET_UNUSED_PAGES, old.append)
    board = guest.board = moved(guest.driver)
    new: list[MiscResponse] = []
    board.balloon.misc.request(MiscCommand.SYNC, new.append)
    guest.respond()  # the old request, and a buffer for the new one
    assert board.balloon.misc.late_messages == 2
    guest.respond()
    assert [response.status for response in new] == [RequestStatus.COMPLETE]
    assert (old, [request.id for request in guest.requests]) == ([], [1, 2])


def test_a_buffer_in_flight_ignores_later_writes_to_its_descriptors() -> None:
    guest = MiscGuest((0, 64 * MIB)).start()
    queue = guest.driver.queues[MISC]
    chain = guest.board.balloon.misc._buffer
    assert chain is not None
    queue.set_desc(chain.head, 1 << 50, 16, WRITE)
    board = moved(guest.driver)
    board.balloon.misc.request(MiscCommand.SYNC, lambda response: None)
    assert [request.cmd for request in guest.misc.take_requests()] == [MiscCommand.SYNC]


@pytest.mark.parametrize("open_round", [True, False], ids=["open", "over"])
def test_a_restore_returns_hinted_pages_to_the_driver(open_round: bool) -> None:
    guest = HintGuest()
    guest.endless = open_round
    endings: list[HintingResult] = []
    guest.board.balloon.hinting.start(endings.append)
    guest.respond()
    assert guest.hinted
    board = guest.board = moved(guest.driver)
    assert CONFIG_VECTOR in board.msi.triggered
    assert guest.driver.read_config(8) == HINTS_DONE
    guest.respond()
    assert not guest.hinted
    assert not board.balloon.hinting.pages
    assert len(endings) == (0 if open_round else 1)
    guest.endless = False
    board.balloon.hinting.start(endings.append)
    guest.respond()
    assert endings[-1] is HintingResult.COMPLETE
    assert guest.rounds == 2


# --- States that are refused ------------------------------------------------------------------
def refusal(board: BalloonBoard, state: Any) -> str:
    before = encode(board.transport.save_state())
    with pytest.raises(StateError) as caught:
        board.transport.restore_state(Fields("virtio_balloon", state))
    assert encode(board.transport.save_state()) == before
    return str(caught.value)


def test_a_state_of_another_dialect_is_refused() -> None:
    state = BalloonDriver(BITMAP).start().board.transport.save_state()
    assert refusal(BalloonBoard(STANDARD), state) == (
        "virtio_balloon.device: dialect is 'bitmap' in the saved state and 'standard' here"
    )


def test_a_state_with_other_features_is_refused() -> None:
    state = (
        BalloonDriver(STANDARD, offered=STANDARD.features.known)
        .start()
        .board.transport.save_state()
    )
    why = refusal(BalloonBoard(STANDARD), state)
    assert why.startswith("virtio_balloon.device: offered is MUST_TELL_HOST|STATS_VQ|DEFLATE_ON_")
    assert why.endswith("in the saved state and MUST_TELL_HOST|STATS_VQ|PAGE_POISON|"
                        "INDIRECT_DESC|EVENT_IDX|VERSION_1|RING_RESET here")  # fmt: skip


def test_a_state_with_a_target_larger_than_ram_is_refused() -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.board.balloon.set_target(64 * MIB // PAGE_BYTES)
    state: Any = driver.board.transport.save_state()
    state["device"]["own"]["num_pages"] += 1
    assert "num_pages is 16385, not from 0 to 16384" in refusal(BalloonBoard(STANDARD), state)


def test_queues_have_no_roles_before_the_driver_has_chosen() -> None:
    state: Any = BalloonBoard(STANDARD).transport.save_state()
    state["device"]["own"]["queue_numbers"] = [0, 1]
    assert "queue_numbers cannot be [0, 1]" in refusal(BalloonBoard(STANDARD), state)


def set_at(state: Any, path: str, value: object) -> None:
    *way, last = (int(step) if step.isdigit() else step for step in path.split("/"))
    for step in way:
        state = state[step]
    state[last] = value


IN_FLIGHT = {"head": 0, "gpas": [0], "lengths": [16]}


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("device/status", 4, "status cannot be 0x4"),
        ("device/status", 0x10, "status cannot be 0x10"),
        ("device/status", 3 | NEEDS_RESET, "status cannot be 0x43"),
        ("device/status", 11, "queues[0]: indices are present before DRIVER_OK"),
        ("device/accepted", 1 << 3 | 1 << 32 | 1 << 63, "accepted that was not offered"),
        ("device/accepted", 1 << 32, "PAGE_BITMAP was not accepted"),
        ("device/generation", 256, "generation is 256"),
        ("device/queues/0/size", 3, "size cannot be 3"),
        ("device/queues/0/size", 256, "size cannot be 256"),
        ("device/queues/0/enabled", False, "of a queue that is not enabled"),
        ("device/queues/0/indices", [1], "are not two"),
        ("device/queues/0/indices", [], "are missing from a live queue"),
        ("device/queues/0/indices", [0, 1 << 16], "indices is 65536"),
        ("device/queues/0/desc_gpa", 1 << 40, "is not in guest RAM"),
        ("device/queues/0/used_gpa", 0, "used_gpa is not known here"),
        ("device/own/queue_numbers", [0, 1, 3], "cannot be [0, 1, 3]"),
        ("device/own/queue_numbers", [], "is a buffer of a queue that is not live"),
        (
            "device/own/stats/in_flight",
            [IN_FLIGHT, IN_FLIGHT],
            "in_flight has 2 items, more than 1",
        ),
        ("device/own/misc/buffer", [IN_FLIGHT | {"head": 128}], "descriptor 128 in a queue of 128"),
        ("device/own/misc/buffer", [IN_FLIGHT | {"gpas": [1 << 40]}], "outside guest RAM"),
        ("device/own/misc/buffer", [IN_FLIGHT | {"lengths": [15]}], "of 15 bytes is too small"),
        ("device/own/misc/last_id", (1 << 64) - 1, "last_id is"),
        ("interrupts/config_vector", 5, "config_vector is beyond the 5 vectors of the table"),
        ("interrupts/queue_vectors", [NO_VECTOR] * 3, "queue_vectors has 3 items and not 4"),
        ("msix/pending", bytes([0x20] + 7 * [0]), "pending is set for more than 5 vectors"),
        ("msix/table/control0", 2, "control0 cannot be 0x2"),
        ("msix/capability/message_control", 7, "message_control cannot be 0x7"),
        ("function/bars", [0x10, 0], "bars cannot have BAR 0 at 0x10"),
        ("function/device_id", 1, "device_id is 1 in the saved state"),
    ],
)
def test_impossible_states_are_refused(path: str, value: object, why: str) -> None:
    driver = BalloonDriver(BITMAP).start()
    misc = MiscDriver(driver)
    misc.offer_buffer()
    driver.send(STATS, [b""])
    state: Any = driver.board.transport.save_state()
    set_at(state, path, value)
    assert why in refusal(BalloonBoard(BITMAP), state)
