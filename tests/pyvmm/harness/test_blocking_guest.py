# SPDX-License-Identifier: Apache-2.0
"""`Guest` around a session without a machine: its thread, its ends, and where it cannot run."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pyvmm.guest_agent.errors import AgentFailed
from pyvmm.harness import Guest, KvmUnusable, blocking_guest
from pyvmm.machine.kvm_probe import KvmFitness, Verdict


class FakeSession:
    """A session whose agent answers unless `silent`.

    `events` has what was done with it, `options` those with which it was opened.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.silent = False
        self.begun = threading.Event()

    @asynccontextmanager
    async def open(self, *arguments: object, **options: object) -> AsyncIterator[FakeSession]:
        self.events.append("open")
        self.options = options
        try:
            yield self
        finally:
            self.events.append("close")

    async def wait_for_agent(self, timeout_s: float) -> None:
        if self.silent:
            raise AgentFailed("no agent has answered")

    async def run(self, arguments: object, **options: object) -> None:
        self.begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.events.append("cancelled")
            raise


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    fake = FakeSession()
    monkeypatch.setattr(blocking_guest, "check_kvm", lambda: None)
    monkeypatch.setattr(blocking_guest, "guest_session", fake.open)
    monkeypatch.setattr(blocking_guest, "restored_session", fake.open)
    configured: Any = lambda image, **options: (None, b"")  # noqa: E731
    monkeypatch.setattr(blocking_guest, "config_with_agent", configured)
    return fake


def loop_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "guest"]


@pytest.mark.parametrize("start", [Guest, Guest.restore])
def test_a_guest_that_does_not_answer_is_closed(
    session: FakeSession, start: Callable[[Path], Guest]
) -> None:
    session.silent = True
    with pytest.raises(AgentFailed):
        start(Path("image"))
    assert session.events == ["open", "close"]
    assert loop_threads() == []


def test_a_restored_guest_gets_the_huge_pages_that_were_chosen(session: FakeSession) -> None:
    Guest.restore("guest.snapshot", hugepages="hugetlbfs").close()
    assert session.options["hugepages"] == "hugetlbfs"


@pytest.mark.parametrize("start", [Guest, Guest.restore])
def test_a_guest_is_recorded_in_the_file_that_was_chosen(
    session: FakeSession, start: Callable[..., Guest]
) -> None:
    start("image", record="guest.rec").close()
    assert session.options["record"] == Path("guest.rec")
    start("image").close()
    assert session.options["record"] is None


def test_a_keyboard_interrupt_cancels_the_command_and_closes_the_guest(
    session: FakeSession,
) -> None:
    main = threading.get_ident()

    def interrupt() -> None:
        session.begun.wait()
        signal.pthread_kill(main, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt), Guest("image") as guest:
        guest.run(["sleep", "60"])
    interrupter.join()
    assert session.events == ["open", "cancelled", "close"]
    assert loop_threads() == []


def test_a_closed_guest_refuses_commands_and_a_second_close_does_nothing(
    session: FakeSession,
) -> None:
    guest = Guest("image")
    guest.close()
    guest.close()
    with pytest.raises(RuntimeError, match="has ended"):
        guest.run(["true"])
    assert session.events == ["open", "close"]


def test_an_unusable_kvm_is_reported_with_the_remedy_before_anything_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitness = KvmFitness(Verdict.MISSING, "there is no /dev/kvm")
    monkeypatch.setattr(blocking_guest, "in_lab", lambda: False)
    monkeypatch.setattr(blocking_guest, "probe_host_kvm", lambda: fitness)
    with pytest.raises(KvmUnusable, match="cannot be used: there is no /dev/kvm") as raised:
        Guest("missing")
    assert "pyvmm lab -- PROGRAM" in raised.value.__notes__[0]
