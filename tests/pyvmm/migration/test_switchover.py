# SPDX-License-Identifier: Apache-2.0
"""The switchover: what is prepared, what is left out of it, and how long its steps take."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import threading
from typing import TYPE_CHECKING, cast

import pytest

from pyvmm.machine.catalogue import CATALOGUE
from pyvmm.machine.exit_result import ExitResult
from pyvmm.machine.machine import Machine
from pyvmm.machine.platform import Platform
from pyvmm.memory.dirty_log import KvmDirtyLog
from pyvmm.migration.collection import collection_deferred
from pyvmm.migration.errors import LinkBroken, PeerAborted
from pyvmm.migration.incoming import _IncomingTarget
from pyvmm.migration.link import Link
from pyvmm.migration.loop_calls import call_on_loop
from pyvmm.migration.messages import Commit, Failed, FromDestination, RoundAck, Welcome
from pyvmm.migration.progress import MigrationProgress
from pyvmm.migration.source import SourceMigration
from pyvmm.migration.source_channel import SourceChannel
from pyvmm.migration.timeouts import TIMEOUTS
from pyvmm.trace.logging import LogTracer
from pyvmm_native.serial import ByteQueue
from tests.pyvmm.migration.incoming_vm import EndingVm
from tests.pyvmm.migration.migration_guest import (
    FakeTarget,
    MigrationResult,
    PageWrite,
    WritingGuest,
    config_of,
    migrate,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer


needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.W_OK), reason="there is no KVM")


def guest() -> WritingGuest:
    return WritingGuest(config_of(64), [PageWrite(1, 1), PageWrite(2, 2)])


def test_the_steps_of_the_downtime_are_reported_in_order() -> None:
    result = migrate(guest(), FakeTarget())
    downtime = result.progress.downtime
    assert downtime is not None
    assert list(downtime.steps) == ["stop", "save", "pages", "restore", "start"]
    assert result.progress.downtime_s is not None
    assert 0 < sum(downtime.steps.values()) <= result.progress.downtime_s


def test_a_step_that_has_not_ended_is_missing() -> None:
    def fail() -> None:
        raise AssertionError("restored wrongly")

    result = migrate(guest(), FakeTarget(on_restore=fail))
    assert result.source_error is not None
    assert result.progress.downtime is not None
    assert list(result.progress.downtime.steps) == ["stop", "save", "pages"]


def test_the_last_round_does_not_protect_pages_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class LateWriter(WritingGuest):
        def stop(self) -> bool:
            self.write([PageWrite(5, 5)])
            return super().stop()

    moved, running = LateWriter(config_of(64), [PageWrite(1, 1)]), list[bool]()
    clear = KvmDirtyLog.clear

    def observed(log: KvmDirtyLog, start_pfn: int, pages: int) -> None:
        running.append(moved.running)
        clear(log, start_pfn, pages)

    monkeypatch.setattr(KvmDirtyLog, "clear", observed)
    target = FakeTarget()
    result = migrate(moved, target)
    assert result.source_error is None
    assert running
    assert all(running)
    assert target.ram is not None
    assert target.ram.page(5)[:1] == b"\x05"


def test_the_state_is_sent_in_one_piece() -> None:
    sent_at = list[int]()

    def watch(source: SourceMigration, result: MigrationResult) -> None:
        if not moved.running:
            sent_at.append(result.progress.sent_bytes)

    moved = guest()
    result = migrate(moved, FakeTarget(), watch=watch)
    assert result.source_error is None
    assert len(sent_at) == 2  # the state and the commit


class AbortedLink:
    """A `Link` whose other side has sent `replies`, and takes nothing any more."""

    deadline = math.inf

    def __init__(self, *replies: FromDestination) -> None:
        self._data = b"".join(reply.record().encode() for reply in replies)

    def send(self, data: Buffer) -> None:
        raise LinkBroken("the connection failed: Broken pipe")

    def receive(self, at_most: int) -> bytes:
        data, self._data = self._data[:at_most], self._data[at_most:]
        return data


@pytest.mark.parametrize("replies", [(), (RoundAck(1),)])
def test_the_reason_of_an_abort_is_reported_rather_than_the_broken_connection(
    replies: tuple[FromDestination, ...],
) -> None:
    link = AbortedLink(Welcome(), *replies, Failed("no room here"))
    channel = SourceChannel(cast(Link, link), MigrationProgress(), TIMEOUTS)
    channel.expect(Welcome)
    with pytest.raises(PeerAborted, match="no room here"):
        channel.send(Commit())


def test_a_connection_that_breaks_without_an_abort_is_reported() -> None:
    channel = SourceChannel(
        cast(Link, AbortedLink(Welcome(), RoundAck(1))), MigrationProgress(), TIMEOUTS
    )
    channel.expect(Welcome)
    with pytest.raises(LinkBroken, match="Broken pipe"):
        channel.send(Commit())


def test_no_garbage_is_collected_during_the_switchover() -> None:
    enabled: dict[str, bool] = {}

    class ObservedGuest(WritingGuest):
        def stop(self) -> bool:
            enabled["stop"] = gc.isenabled()
            return super().stop()

        def run_next(self) -> None:
            if self.running:
                enabled.setdefault("pre-copy", gc.isenabled())
            super().run_next()

    class ObservedTarget(FakeTarget):
        def start(self, *, running: bool) -> None:
            enabled["start"] = gc.isenabled()
            super().start(running=running)

    assert gc.isenabled()
    result = migrate(ObservedGuest(config_of(64), [PageWrite(1, 1)]), ObservedTarget())
    assert result.source_error is None
    assert enabled["start"] is enabled["stop"] is False
    assert enabled["pre-copy"]
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        with collection_deferred():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_call_on_the_loop_returns_or_raises_as_the_function_does() -> None:
    async def main() -> tuple[object, threading.Thread]:
        loop = asyncio.get_running_loop()
        thread = await asyncio.to_thread(call_on_loop, loop, threading.current_thread)
        with pytest.raises(ValueError, match="invalid literal"):
            await asyncio.to_thread(call_on_loop, loop, lambda: int("x"))
        return thread, threading.current_thread()

    ran_in, loop_thread = asyncio.run(main())
    assert ran_in is loop_thread


def test_an_incoming_guest_runs_before_its_devices_are_served() -> None:
    calls = list[str]()

    class ObservedVm(EndingVm):
        def start(self) -> None:
            calls.append("start")

        async def run(self) -> ExitResult:
            calls.append("run")
            return await super().run()

    async def main() -> None:
        target = _IncomingTarget(asyncio.get_running_loop(), ObservedVm, CATALOGUE)  # type: ignore[arg-type]
        await asyncio.to_thread(target.create_machine, config_of(64))
        await asyncio.to_thread(lambda: target.start(running=True))
        assert target.running is not None
        await target.running

    asyncio.run(main())
    assert calls == ["start", "run"]


def test_the_dirty_log_stays_on_only_for_a_guest_that_has_moved() -> None:
    moved = guest()
    assert migrate(moved, FakeTarget()).source_error is None
    assert moved.logging

    def fail() -> None:
        raise AssertionError("restored wrongly")

    stayed = guest()
    assert migrate(stayed, FakeTarget(on_restore=fail)).source_error is not None
    assert not stayed.logging


@needs_kvm
def test_the_vcpu_threads_of_an_incoming_machine_wait_outside_the_guest() -> None:
    output = ByteQueue(lambda: None, 1 << 20)
    machine = Machine(Platform(config_of(64), console_output=output, tracer=LogTracer()))
    try:
        machine.prepare_incoming()
        threads = machine.vcpu_threads
        idents = [thread.ident for thread in threads]
        assert all(thread.is_alive() for thread in threads)
        assert machine.gate.wait_until_empty(0)
        machine.restore_parts(machine.save_parts())
        machine.start(paused=True)
        assert [thread.ident for thread in threads] == idents
        assert not any(sum(thread.exits.counts) for thread in threads)
    finally:
        machine.close()
    assert not any(thread.is_alive() for thread in threads)


@needs_kvm
def test_a_machine_is_not_started_before_it_is_restored() -> None:
    output = ByteQueue(lambda: None, 1 << 20)
    machine = Machine(Platform(config_of(64), console_output=output, tracer=LogTracer()))
    try:
        machine.prepare_incoming()
        with pytest.raises(RuntimeError, match="neither booted nor restored"):
            machine.start()
    finally:
        machine.close()
