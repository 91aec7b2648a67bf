# SPDX-License-Identifier: Apache-2.0
"""Transfer the state of a running Linux between machines; only the time it takes is visible."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from pyvmm.harness.guest_session import GuestSession
from pyvmm.machine.exit_result import ExitReason
from pyvmm.machine.machine import Machine
from pyvmm.machine.platform import Platform
from pyvmm.trace.logging import LogTracer
from pyvmm.units import MIB
from pyvmm.vm import VirtualMachine
from tests.kvm.fixture_types import RunGuest

pytestmark = pytest.mark.kvm

GUEST_MIB = 96
PATTERN_MIB = 24
VERIFIED = f"verified {PATTERN_MIB * MIB} wrong 0"
TRANSFERS = 3
FROZEN_S = 4.0
UPTIME = "cut -d' ' -f1 /proc/uptime"
WATCH = "while read -r up idle </proc/uptime; do echo $up; usleep 20000; done"
TROUBLE = re.compile("stall|lockup|warning|oops|hung|backwards|unstable", re.IGNORECASE)


async def transfer(guest: GuestSession, stack: AsyncExitStack, frozen_s: float = 0) -> GuestSession:
    """Transfer the guest to a new machine, paused for at least `frozen_s` seconds.

    The old machine stays paused and its creator closes it; `stack` closes the new one.
    """
    old, console = guest.vm, guest.console
    machine = Machine(Platform(old.config, console_output=console.queue, tracer=LogTracer()))
    new = VirtualMachine(machine, on_console_room=console.send_pending)
    old.pause()
    with old.quiescent():
        records = old.save_parts()
        await asyncio.sleep(frozen_s)
        copy_ram(old, new)
        new.restore_parts(records)
    console.connect(new.console_input)
    session = GuestSession(new, console)
    stack.push_async_callback(session.close)
    return session


def copy_ram(old: VirtualMachine, new: VirtualMachine) -> None:
    for gpa, length in old.ram.memory.regions:
        for at in range(gpa, gpa + length, MIB):
            chunk = old.ram.memory.read(at, min(MIB, gpa + length - at))
            if chunk.count(0) != len(chunk):
                new.ram.memory.write(at, chunk)


async def uptime(guest: GuestSession) -> float:
    return float(await guest.shell(UPTIME))


async def timer_interrupts(guest: GuestSession) -> list[int]:
    """Return the number of local APIC timer interrupts of each processor."""
    words = (await guest.shell("grep LOC: /proc/interrupts")).split()
    return [int(word) for word in words[1:] if word.isdigit()]


@pytest.mark.parametrize("vcpus", [1, 4])
def test_a_guest_continues_on_another_machine(run_guest: RunGuest, vcpus: int) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        boot_log = await guest.shell("dmesg")
        for command in (f"alloc {PATTERN_MIB}", "fill 3"):
            await guest.command(command)
        for cpu in range(vcpus):
            await guest.shell(f"taskset {1 << cpu:x} sh -c '{WATCH}' >/clock{cpu} 2>&1 &")
        async with AsyncExitStack() as stack:
            for _ in range(TRANSFERS):
                await guest.shell("sleep 0.2")
                before = await uptime(guest), await timer_interrupts(guest)
                guest = await transfer(guest, stack)
                await guest.shell("sleep 0.2")
                after = await uptime(guest), await timer_interrupts(guest)
                assert after[0] >= before[0] + 0.2
                assert len(after[1]) == vcpus
                assert all(new > old for old, new in zip(before[1], after[1], strict=True))
            assert await guest.command("verify 3") == VERIFIED
            for cpu in range(vcpus):
                assert int(await guest.shell(f"wc -l </clock{cpu}")) > 3 * TRANSFERS
                await guest.shell(
                    f"sort -n -c /clock{cpu}"
                )  # fails if the clock ever went backwards
            assert int(await guest.shell("grep -c ^processor /proc/cpuinfo")) == vcpus
            log = await guest.shell("dmesg")
            assert [
                line for line in log[len(boot_log) :].splitlines() if TROUBLE.search(line)
            ] == []
            guest.console.send_line("quit")
            assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF

    run_guest(scenario, memory_mib=GUEST_MIB, vcpus=vcpus)


def test_the_guests_clock_does_not_count_the_transfer(
    run_guest: RunGuest, figure: Callable[[str], None]
) -> None:
    """Time does not pass for a paused guest, so none of its time-outs expires."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        async with AsyncExitStack() as stack:
            begin = time.monotonic()
            before = await uptime(guest)
            guest = await transfer(guest, stack, FROZEN_S)
            after = await uptime(guest)
            passed = time.monotonic() - begin
            figure(
                f"transferred in {passed:.1f} s, {FROZEN_S} of them idle;"
                f" {after - before:.2f} s in the guest"
            )
            assert 0 <= after - before < passed - FROZEN_S + 0.01
            await guest.shell("sleep 1")
            assert await uptime(guest) >= after + 1

    run_guest(scenario, memory_mib=GUEST_MIB)
