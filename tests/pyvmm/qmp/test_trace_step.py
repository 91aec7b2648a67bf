# SPDX-License-Identifier: Apache-2.0
"""Step: the guest stops at an event, for a client that keeps reading, over a real socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pyvmm.machine import step
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm
from tests.pyvmm.qmp.qmp_scenarios import Serve, Streams, negotiate, receive
from tests.pyvmm.qmp.test_trace_commands import ask, refusal, value

NOTIFY: dict[str, int | str] = {"table": "balloon.notify", "register": "queue0", "value": 0}
AT_INFLATE = {"kinds": ["register_write"], "device": "balloon", "queue": "inflate"}


class Vcpu:
    """A vCPU that writes the notification register whenever it may enter the guest."""

    def __init__(self, vm: InMemoryVm) -> None:
        self.vm = vm
        self.entries = 0

    def run(self) -> None:
        while self.vm.hardware.gate.enter():
            self.entries += 1
            if self.vm.tracer.watched:
                self.vm.tracer.event("register_write", **NOTIFY)
            self.vm.hardware.gate.leave()


@contextmanager
def vcpu(vm: InMemoryVm) -> Iterator[Vcpu]:
    running = Vcpu(vm)
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        yield running
    finally:
        vm.hardware.gate.stop()
        thread.join(5)
    assert not thread.is_alive()


async def event(streams: Streams, name: str) -> dict[str, Any]:
    """Return the data of the next event called `name`; forget those before it."""
    while True:
        message = await asyncio.wait_for(receive(streams[0]), 5)
        if message.get("event") == name:
            return dict(message.get("data", {}))


async def until_running(vm: InMemoryVm) -> None:
    async with asyncio.timeout(5):
        while vm.status != "running" or vm.hardware.held:
            await asyncio.sleep(0.01)


async def step_client(path: Path, **arguments: Any) -> Streams:
    client = await negotiate(path)
    await value(client, "x-trace-start")
    assert await value(client, "x-trace-step", **(arguments or AT_INFLATE)) == {}
    return client


async def no_longer_held(vm: InMemoryVm) -> None:
    """Wait until Step does not hold the guest."""
    async with asyncio.timeout(5):
        while vm.hardware.held:
            await asyncio.sleep(0.01)


def test_the_vcpu_does_not_enter_the_guest_after_the_event(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await step_client(path)
        assert not vm.hardware.caught
        with vcpu(vm) as running:
            data = await event(client, "X_TRACE_STEP")
            assert (data["kind"], data["device"]) == ("register_write", "balloon")
            assert vm.status == "paused"
            assert (vm.hardware.devices_held, vm.hardware.caught) == (True, True)
            assert running.entries == 1
            await asyncio.sleep(0.1)
            assert running.entries == 1
            await value(client, "cont")
            await until_running(vm)
            async with asyncio.timeout(5):
                while running.entries < 10:  # armed for one event only
                    await asyncio.sleep(0.01)
            await value(client, "x-trace-step", **AT_INFLATE)
            await event(client, "X_TRACE_STEP")
            stopped_at = running.entries
            await asyncio.sleep(0.1)
            assert running.entries == stopped_at
        client[1].close()

    serve(scenario)


@pytest.mark.parametrize(
    ("arguments", "stops"),
    [
        ({"kinds": ["register_write"]}, True),
        ({"kinds": ["register_read", "register_write"], "device": "balloon"}, True),
        ({"kinds": ["register_write"], "device": "balloon", "queue": "inflate"}, True),
        ({"kinds": ["register_read"]}, False),
        ({"kinds": ["register_write"], "device": "rng"}, False),
        ({"kinds": ["register_write"], "queue": "deflate"}, False),
    ],
)
def test_only_an_event_that_was_chosen_stops_the_guest(
    serve: Serve, arguments: dict[str, Any], stops: bool
) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await step_client(path, **arguments)
        vm.tracer.event("register_write", **NOTIFY)
        await asyncio.sleep(0.05)
        assert vm.hardware.held == stops
        assert (vm.status == "paused") == stops
        client[1].close()

    serve(scenario)


def test_nothing_is_armed_after_an_empty_list(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await step_client(path)
        await value(client, "x-trace-step", kinds=[])
        assert vm.hardware.caught
        vm.tracer.event("register_write", **NOTIFY)
        await asyncio.sleep(0.05)
        assert vm.status == "running"
        client[1].close()

    serve(scenario)


def test_only_the_client_that_watches_may_stop_the_guest(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await negotiate(path)
        assert "not watched" in await refusal(client, "x-trace-step", **AT_INFLATE)
        await value(client, "x-trace-start")
        assert "'kinds' expects" in await refusal(client, "x-trace-step", kinds=[1])
        client[1].close()

    serve(scenario)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"kinds": ["chain", "chian", "b"]}, "No event has the kind 'b', 'chian'"),
        ({"kinds": ["balloon.status"]}, "No event has the kind 'balloon.status'"),
        ({"kinds": ["dropped"]}, "No event has the kind 'dropped'"),
        ({"kinds": ["chain"], "device": "ballon"}, "Device 'ballon' not found"),
        ({"kinds": ["chain"], "device": "x", "queue": "y"}, "Device 'x' not found"),
        ({"kinds": ["chain"], "queue": "nothing"}, "No device has a queue 'nothing'"),
        ({**AT_INFLATE, "queue": "request"}, "Device 'balloon' has no queue 'request'"),
        ({**AT_INFLATE, "device": "uart"}, "Device 'uart' has no queue 'inflate'"),
    ],
)
def test_step_at_an_event_that_cannot_be_is_refused(
    serve: Serve, arguments: dict[str, Any], why: str
) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await negotiate(path)
        await value(client, "x-trace-start")
        error = (await ask(client, "x-trace-step", **arguments))["error"]
        assert error["desc"] == why
        found = "DeviceNotFound" if "not found" in why else "GenericError"
        assert error["class"] == found
        assert vm.hardware.caught
        client[1].close()

    serve(scenario)


def test_step_at_a_kind_of_a_device_that_has_emitted_it(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await negotiate(path)
        await value(client, "x-trace-start")
        vm.tracer.event("rng.tick", value=1)
        await value(client, "x-trace-step", kinds=["tick"], device="rng")
        vm.tracer.event("rng.tick", value=2)
        assert (await event(client, "X_TRACE_STEP"))["kind"] == "tick"
        client[1].close()

    serve(scenario)


@pytest.mark.parametrize("how", ["disconnects", "stops to watch", "resumes it"])
@pytest.mark.parametrize("taken_over", [False, True])
def test_a_pause_of_the_client_that_watches_ends_with_it_unless_another_has_paused_too(
    serve: Serve, how: str, taken_over: bool
) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client, other = await step_client(path), await negotiate(path)
        await value(client, "x-trace-step", kinds=[], pause=True)
        assert (vm.status, vm.hardware.caught) == ("paused", False)  # Step is armed as before
        if taken_over:
            await value(other, "stop")
        if how == "disconnects":
            client[1].close()
        elif how == "stops to watch":
            await value(client, "x-trace-stop")
        else:
            await value(client, "x-trace-step", kinds=[], resume=True)
        async with asyncio.timeout(5):
            while not vm.hardware.caught:
                await asyncio.sleep(0.01)
        assert vm.status == ("paused" if taken_over else "running")
        client[1].close()
        other[1].close()

    serve(scenario)


def test_a_pause_of_a_client_that_no_longer_reads_ends(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "LEASE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(step, "LEASE_POLL_S", 0.05)

    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await step_client(path, kinds=[], pause=True)
        assert vm.status == "paused"
        await until_running(vm)
        client[1].close()

    serve(scenario)


@pytest.mark.parametrize("how", ["disconnects", "stops to watch"])
def test_the_guest_runs_when_the_client_is_gone(serve: Serve, how: str) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await step_client(path)
        vm.tracer.event("register_write", **NOTIFY)
        await event(client, "X_TRACE_STEP")
        if how == "disconnects":
            client[1].close()
        else:
            await value(client, "x-trace-stop")
        await until_running(vm)
        assert not vm.hardware.devices_held
        client[1].close()

    serve(scenario)


def test_the_guest_runs_when_the_lease_ends(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "LEASE_TIMEOUT_S", 0.6)
    monkeypatch.setattr(step, "LEASE_POLL_S", 0.05)

    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await step_client(path)
        vm.tracer.event("register_write", **NOTIFY)
        await event(client, "X_TRACE_STEP")
        for timeout in (0, 0.9, 0):  # a client that reads keeps the guest stopped
            await value(client, "x-trace-read", timeout=timeout)
            await asyncio.sleep(0.3)
            assert vm.status == "paused"
        await event(client, "RESUME")
        await until_running(vm)
        await value(client, "x-trace-step", **AT_INFLATE)
        await value(client, "x-trace-read", timeout=0)
        await asyncio.sleep(1)
        assert vm.hardware.caught  # it was armed only
        client[1].close()

    serve(scenario)


def test_the_guest_stays_paused_when_another_client_asks_for_that(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client, other = await step_client(path), await negotiate(path)
        vm.tracer.event("register_write", **NOTIFY)
        await event(client, "X_TRACE_STEP")
        await value(other, "stop")
        client[1].close()
        await no_longer_held(vm)
        assert vm.status == "paused"
        await value(other, "cont")
        other[1].close()

    serve(scenario)


def test_a_guest_that_was_paused_before_stays_paused(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client, other = await step_client(path), await negotiate(path)
        await value(other, "stop")
        vm.tracer.event("register_write", **NOTIFY)  # the event loop emits it
        await event(client, "X_TRACE_STEP")
        client[1].close()
        await no_longer_held(vm)
        assert vm.status == "paused"
        other[1].close()

    serve(scenario)


def test_a_guest_that_was_paused_after_an_earlier_step_stays_paused(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client, other = await step_client(path), await negotiate(path)
        vm.tracer.event("register_write", **NOTIFY)
        await event(client, "X_TRACE_STEP")
        await value(other, "cont")
        await value(other, "stop")
        await value(client, "x-trace-step", **AT_INFLATE)
        vm.tracer.event("register_write", **NOTIFY)
        await event(client, "X_TRACE_STEP")
        client[1].close()
        await no_longer_held(vm)
        assert vm.status == "paused"
        other[1].close()

    serve(scenario)


@pytest.mark.parametrize("paused", [False, True])
def test_disarming_resumes_only_a_guest_that_step_has_stopped(serve: Serve, paused: bool) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client, other = await step_client(path), await negotiate(path)
        vm.tracer.event("register_write", **NOTIFY)
        await event(client, "X_TRACE_STEP")
        if paused:
            await value(other, "stop")
        await value(client, "x-trace-step", kinds=[])
        assert vm.status == "paused"
        await value(client, "x-trace-step", kinds=[], resume=True)
        assert vm.status == ("paused" if paused else "running")
        assert not vm.hardware.held
        other[1].close()
        client[1].close()

    serve(scenario)


def test_the_lease_ends_after_a_snapshot(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "LEASE_POLL_S", 0.02)
    saving = [True]
    monkeypatch.setattr(InMemoryVm, "saving", property(lambda vm: saving[0]))

    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await step_client(path)
        vm.tracer.event("register_write", **NOTIFY)
        await event(client, "X_TRACE_STEP")
        client[1].close()
        await asyncio.sleep(0.2)
        assert vm.status == "paused"
        saving[0] = False
        await until_running(vm)

    serve(scenario)


@pytest.mark.parametrize("status", ["postmigrate", "shutdown"])
def test_a_guest_that_has_migrated_or_ended_is_not_resumed(serve: Serve, status: Any) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await step_client(path)
        vm.tracer.event("register_write", **NOTIFY)
        await event(client, "X_TRACE_STEP")
        vm.set_status(status)
        client[1].close()
        await asyncio.sleep(0.1)
        assert vm.status == status

    serve(scenario)
