# SPDX-License-Identifier: Apache-2.0
"""The source prepares the migration while the destination creates its machine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.memory.precopy import UnusedPages
from pyvmm.migration.errors import Cancelled
from pyvmm.migration.progress import Settings
from pyvmm.migration.source import SourceMigration
from tests.pyvmm.migration.migration_guest import (
    FakeTarget,
    MigrationResult,
    PageWrite,
    PlainRam,
    WritingGuest,
    check_memory,
    config_of,
    migrate,
    nothing,
)

CONFIG = config_of(64)
BEFORE = [PageWrite(pfn, 1) for pfn in range(8)]
UNUSED = range(4, 8)
WAIT_S = 20


class CreatingTarget(FakeTarget):
    """Calls `on_create` while the source waits for its machine."""

    def __init__(self, on_create: Callable[[], None] = nothing) -> None:
        super().__init__()
        self._on_create = on_create

    def create_machine(self, config: MachineConfig) -> PlainRam:
        self._on_create()
        return super().create_machine(config)


class LateGuest(WritingGuest):
    """Is asked for its unused pages, and answers when `answer` is called, on any thread."""

    def __init__(self) -> None:
        super().__init__(CONFIG, BEFORE, unused=UNUSED)
        self.asked = threading.Event()
        self.logged_when_asked = False
        self.request: Future[UnusedPages] = Future()

    def request_unused_pages(self, timeout_s: float) -> Future[UnusedPages]:
        self.logged_when_asked = self.logging
        self.asked.set()
        return self.request

    def answer(self) -> None:
        self.request.set_result(super().request_unused_pages(0).result())


@pytest.mark.parametrize("streams", [1, 2])
def test_the_guest_is_asked_while_the_destination_creates_its_machine(streams: int) -> None:
    guest = LateGuest()

    def created() -> None:
        assert guest.asked.wait(WAIT_S)
        guest.answer()
        guest.write([PageWrite(5, 9)])

    target = CreatingTarget(created)
    result = migrate(guest, target, Settings(streams=streams))
    assert (result.source_error, result.target_error) == (None, None)
    assert guest.logged_when_asked
    assert guest.left_out == {4, 6, 7}
    assert result.progress.skipped_pages == 3
    assert target.ram is not None
    assert target.ram.page(5)[:1] == b"\x09"
    assert not any(target.ram.page(4))
    check_memory(guest, target.ram)


def test_an_answer_after_the_destination_is_ready_is_waited_for() -> None:
    guest = LateGuest()
    timer = threading.Timer(0.1, guest.answer)
    timer.start()
    result = migrate(guest, CreatingTarget())
    timer.join()
    assert result.source_error is None
    assert result.progress.skipped_pages == len(UNUSED)


def test_a_refusal_of_the_destination_ends_the_request_and_the_log() -> None:
    guest = LateGuest()

    def refuse() -> None:
        assert guest.asked.wait(WAIT_S)
        raise UserError("no memory here")

    result = migrate(guest, CreatingTarget(refuse))
    assert str(result.source_error) == "the destination has aborted: no memory here"
    assert guest.request.cancelled()
    assert not guest.logging
    assert guest.stops == 0
    assert guest.running


@pytest.mark.parametrize("early", [False, True])
def test_a_cancellation_ends_the_wait_for_the_answer(early: bool) -> None:
    """Also one that was too early to know of the request, while the welcome still arrives."""
    sources = list[SourceMigration]()

    class Unanswered(Future[UnusedPages]):
        def result(self, timeout: float | None = None) -> UnusedPages:
            if not early:
                threading.Timer(0.1, sources[0].cancel).start()
            return super().result(WAIT_S)

    class SilentGuest(LateGuest):
        def request_unused_pages(self, timeout_s: float) -> Future[UnusedPages]:
            if early:
                sources[0]._cancelled.set()
            return super().request_unused_pages(timeout_s)

    guest = SilentGuest()
    guest.request = Unanswered()

    def watch(source: SourceMigration, result: MigrationResult) -> None:
        sources.append(source)

    result = migrate(guest, CreatingTarget(), watch=watch)
    assert isinstance(result.source_error, Cancelled)
    assert guest.request.cancelled()
    assert not guest.logging
    assert guest.running
