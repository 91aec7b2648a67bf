# SPDX-License-Identifier: Apache-2.0
"""The switchover: what is prepared, what is left out of it, and how long its steps take."""

from __future__ import annotations

import asyncio
import gc
import os
import threading

import pytest

from pyvmm.machine.machine import Machine
from pyvmm.memory.dirty_log import KvmDirtyLog
from pyvmm.migration.collection import collection_deferred
from pyvmm.migration.loop_calls import call_on_loop
from pyvmm.trace.logging import LogTracer
from pyvmm_native.serial import ByteQueue
from tests.pyvmm.migration.migration_guest import (
    FakeTarget,
    PageWrite,
    WritingGuest,
    config_of,
    migrate,
)

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


@needs_kvm
def test_the_vcpu_threads_of_an_incoming_machine_wait_outside_the_guest() -> None:
    output = ByteQueue(lambda: None, 1 << 20)
    machine = Machine(config_of(64), console_output=output, tracer=LogTracer())
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
    machine = Machine(config_of(64), console_output=output, tracer=LogTracer())
    try:
        machine.prepare_incoming()
        with pytest.raises(RuntimeError, match="neither booted nor restored"):
            machine.start()
    finally:
        machine.close()
