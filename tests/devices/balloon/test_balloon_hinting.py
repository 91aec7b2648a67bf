# SPDX-License-Identifier: Apache-2.0
"""Free page hints (5.5.6.5): collected by command id, bounded, and never discarded."""

from __future__ import annotations

import struct

import pytest

from devices.balloon import hinting
from devices.balloon.dialects import STANDARD, Role
from devices.balloon.hinting import DONE, STOP, HintingResult
from devices.testing.balloon.driver import BalloonDriver
from devices.testing.driver_queue import Used
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

HINTS = 3
COMMAND_ID_OFFSET = 8


class Hinter:
    """A driver with a free page queue, and its device."""

    def __init__(self) -> None:
        self.driver: BalloonDriver = BalloonDriver(
            STANDARD, offered=STANDARD.features.known
        ).start()
        self.balloon = self.driver.board.balloon
        self.hinting = self.balloon.hinting
        self.results: list[HintingResult] = []

    @property
    def field(self) -> int:
        return self.driver.read_config(COMMAND_ID_OFFSET)

    def begin(self) -> int:
        """Start a round and send its command id as the driver does."""
        self.hinting.start(self.results.append)
        self.command(self.field)
        return self.field

    def command(self, command_id: int) -> None:
        self.send(struct.pack("<I", command_id))

    def send(self, text: bytes = b"", *writable: tuple[int, int]) -> list[Used]:
        queue = self.driver.queues[HINTS]
        queue.add([text] if text else [], writable_segments=writable)
        self.driver.notify(HINTS)
        self.driver.board.serve()
        used = queue.take_used()
        assert [each.length for each in used] == [0], "the buffer is returned, nothing written"
        return used

    def hint(self, *writable: tuple[int, int]) -> None:
        self.send(b"", *writable)

    @property
    def bad_payloads(self) -> int:
        return self.driver.board.tracer.names.count("balloon.bad_payload")


@pytest.fixture
def hinter() -> Hinter:
    return Hinter()


def runs(*ranges: tuple[int, int]) -> PageRuns:
    return PageRuns((gpa // PAGE_BYTES, size // PAGE_BYTES) for gpa, size in ranges)


@pytest.mark.conformance("5.5.6.5.2-1", "5.5.6.5.2-6", "5.5.4-2")
def test_a_round_collects_the_hinted_pages(hinter: Hinter) -> None:
    assert hinter.field == STOP
    hinter.hinting.start(hinter.results.append)
    assert hinter.driver.board.msi.triggered[-1] == 0, "configuration change"
    assert hinter.field >= 2
    hinter.command(hinter.field)
    hinter.hint((4 * MIB, 4 * MIB))
    hinter.hint((12 * MIB, MIB), (16 * MIB, MIB))
    assert hinter.results == []
    hinter.command(STOP)
    assert hinter.results == [HintingResult.COMPLETE]
    assert hinter.field == STOP
    assert hinter.hinting.pages == runs((4 * MIB, 4 * MIB), (12 * MIB, MIB), (16 * MIB, MIB))
    hinter.hinting.finish()
    assert hinter.field == DONE
    assert not hinter.hinting.pages


@pytest.mark.conformance("5.5.6.5.2-5")
def test_hinted_pages_keep_their_contents(hinter: Hinter) -> None:
    hinter.driver.memory.write(4 * MIB, b"kept" * MIB)
    hinter.begin()
    hinter.hint((4 * MIB, 4 * MIB))
    hinter.command(STOP)
    hinter.hinting.finish()
    assert hinter.driver.memory.read(4 * MIB, 4 * MIB) == b"kept" * MIB
    assert hinter.driver.board.ram.discarded == []


@pytest.mark.conformance("5.5.6.5.2-2")
def test_each_round_has_its_own_id_and_adds_its_hints(hinter: Hinter) -> None:
    first = hinter.begin()
    hinter.hint((0, MIB))
    hinter.command(STOP)
    second = hinter.begin()
    assert second not in (first, STOP, DONE)
    hinter.hint((2 * MIB, MIB))
    hinter.command(STOP)
    assert hinter.results == [HintingResult.COMPLETE] * 2
    assert hinter.hinting.pages == runs((0, MIB), (2 * MIB, MIB))


def test_command_ids_wrap_past_the_reserved_ones(hinter: Hinter) -> None:
    hinter.hinting.last_id = 2**32 - 2  # after four billion rounds
    for expected in (2**32 - 1, 2):
        assert hinter.begin() == expected
        hinter.command(STOP)


def test_only_whole_pages_are_taken_as_hints(hinter: Hinter) -> None:
    hinter.begin()
    hinter.hint((1, PAGE_BYTES), (3 * PAGE_BYTES + 1, 3 * PAGE_BYTES))
    assert list(hinter.hinting.pages) == [(4, 2)]


# Hints outside a round are ignored (5.5.6.5.2).


@pytest.mark.conformance("5.5.6.5.2-3")
def test_hints_outside_a_round_are_ignored(hinter: Hinter) -> None:
    hinter.hint((0, MIB))
    hinter.command(7)
    hinter.hint((0, MIB))
    hinter.command(STOP)
    hinter.command(DONE)
    assert not hinter.hinting.pages
    assert hinter.hinting.ignored == 2
    assert hinter.bad_payloads == 0


@pytest.mark.conformance("5.5.6.5.2-3")
@pytest.mark.parametrize("wrong", [STOP, DONE, 1000])
def test_hints_before_the_command_id_or_under_another_are_ignored(
    hinter: Hinter, wrong: int
) -> None:
    hinter.hinting.start(hinter.results.append)
    hinter.hint((0, MIB))
    hinter.command(wrong)
    hinter.hint((0, MIB))
    assert hinter.results == [], "the end of a round that it has not begun belongs to another round"
    assert not hinter.hinting.pages
    hinter.command(hinter.field)
    hinter.hint((MIB, MIB))
    hinter.command(wrong + 1000)
    hinter.hint((0, MIB))
    assert hinter.hinting.pages == runs((MIB, MIB))


@pytest.mark.conformance("5.5.6.5.2-3")
def test_hints_after_stop_are_ignored(hinter: Hinter) -> None:
    hinter.begin()
    hinter.command(STOP)
    hinter.hint((0, MIB))
    hinter.command(STOP)
    assert hinter.results == [HintingResult.COMPLETE]
    assert not hinter.hinting.pages


@pytest.mark.conformance("5.5.6.5.2-1", "5.5.6.5.2-3")
def test_the_device_may_stop_a_round_and_start_another(hinter: Hinter) -> None:
    first = hinter.begin()
    hinter.hint((0, MIB))
    hinter.hinting.stop()
    assert (hinter.results, hinter.field) == ([HintingResult.STOPPED], STOP)
    hinter.hint((2 * MIB, MIB))
    hinter.hinting.stop()
    assert hinter.hinting.pages == runs((0, MIB)), "hints from before the stop stay"
    hinter.hinting.start(hinter.results.append)
    hinter.command(STOP)  # the driver's end of the first round is late
    hinter.command(first)
    hinter.hint((4 * MIB, MIB))
    hinter.command(hinter.field)
    hinter.hint((6 * MIB, MIB))
    hinter.command(STOP)
    assert hinter.results == [HintingResult.STOPPED, HintingResult.COMPLETE]
    assert hinter.hinting.pages == runs((0, MIB), (6 * MIB, MIB))


@pytest.mark.conformance("5.5.6.5.2-6")
def test_finishing_ends_a_round(hinter: Hinter) -> None:
    hinter.begin()
    hinter.hint((0, MIB))
    hinter.hinting.finish()
    assert (hinter.results, hinter.field) == ([HintingResult.STOPPED], DONE)
    hinter.hint((0, MIB))
    assert not hinter.hinting.pages


# Abuse.


@pytest.mark.parametrize("text", [b"\2", b"\2\0\0", b"\2\0\0\0\0"])
def test_command_ids_of_another_length_are_refused(hinter: Hinter, text: bytes) -> None:
    hinter.hinting.start(hinter.results.append)
    hinter.send(text)
    hinter.hint((0, MIB))
    assert hinter.bad_payloads == 1
    assert not hinter.hinting.pages


def test_a_buffer_with_both_command_and_pages_is_refused(hinter: Hinter) -> None:
    hinter.hinting.start(hinter.results.append)
    hinter.send(struct.pack("<I", hinter.field), (0, MIB))
    assert hinter.bad_payloads == 1
    assert not hinter.hinting.pages


@pytest.mark.conformance("5.5.6.5.2-1")
def test_the_hints_of_an_endless_round_are_bounded(
    hinter: Hinter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hinting, "MAX_RUNS", 100)
    hinter.begin()
    for first in range(0, 400, 50):
        hinter.hint(*((2 * page * PAGE_BYTES, PAGE_BYTES) for page in range(first, first + 50)))
    assert hinter.results == [HintingResult.STOPPED]
    assert hinter.field == STOP
    assert len(hinter.hinting.pages) == 150, "one buffer more than the bound, and no further one"


def test_repeated_hints_are_stored_once(hinter: Hinter) -> None:
    hinter.begin()
    for _ in range(1000):
        hinter.hint((0, 8 * MIB))
    assert list(hinter.hinting.pages) == [(0, 2048)]


@pytest.mark.conformance("5.5.6.5.2-2")
def test_a_reset_ends_the_round_and_drops_its_hints(hinter: Hinter) -> None:
    hinter.begin()
    hinter.hint((0, MIB))
    hinter.driver.reset()
    assert hinter.results == [HintingResult.RESET]
    assert not hinter.hinting.pages
    assert hinter.field == STOP
    hinter.driver.start()
    assert hinter.begin() > 2, "an id of before the reset must mean nothing"


def test_a_reset_after_finish_does_not_end_the_round_again(hinter: Hinter) -> None:
    hinter.begin()
    hinter.hinting.finish()
    hinter.driver.reset()
    assert hinter.field == STOP
    assert hinter.results == [HintingResult.STOPPED]


def test_the_queue_does_not_exist_without_its_feature() -> None:
    driver = BalloonDriver(STANDARD).start()
    assert not driver.board.balloon.has_live(Role.FREE_PAGE_HINT)
    driver.reset()
