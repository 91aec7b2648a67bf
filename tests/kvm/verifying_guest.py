# SPDX-License-Identifier: Apache-2.0
"""A guest that continuously verifies its own memory, its clock and that only one copy of it runs.

Its `pattern` program rewrites a large allocation in a loop on every vCPU and compares each word
before it overwrites it (guest_images/src/background.h), so a stale or missing page is found in the
next pass at the latest and cannot be repaired before. The program also checks that its clock never
goes backwards, and prints a numbered heartbeat ten times a second: if two copies of a guest run,
both print the same number.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import pytest

from pyvmm.harness.guest_session import GuestSession
from pyvmm.machine.exit_result import ExitReason
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES

GUEST_CORRUPTED = 70
"""Exit status of a test run whose guest found a wrong byte; `tests.with_kvm` never retries it."""
SEED = 7
HEARTBEAT_MS = 100
THROTTLE_PERCENTAGE = 80
PATTERN_MIB = int(os.environ.get("LONG_MIB", "512"))
"""Rewritten by guests that are migrated or saved many times in a row."""
MEMORY_MIB = 2 * PATTERN_MIB + 96
SMALL_PATTERN_MIB, SMALL_MEMORY_MIB = 16, 96
"""For guests into whose migrations and snapshots faults are injected."""
BALLOON_MIB = (PATTERN_MIB * 3 // 8, PATTERN_MIB * 5 // 8)
"""The balloon alternates between these two sizes, and is between them during each migration."""
TIMEOUT_S = 60.0
_UPTIME = "cut -d' ' -f1 /proc/uptime"


@dataclass(frozen=True)
class VerificationReport:
    """The counters of the verifying threads, as the `report` command of `pattern` prints them."""

    rounds: int
    bytes: int
    wrong: int
    kb_per_s: int
    step_us: int
    backward_us: int

    @classmethod
    def read(cls, text: str) -> VerificationReport:
        words = text.split()
        return cls(**dict(zip(words[::2], map(int, words[1::2]), strict=True)))

    def require_intact(self) -> VerificationReport:
        """Return self if nothing is wrong; else end the whole run, which is not retried."""
        if self.wrong or self.backward_us:
            pytest.exit(f"the guest has lost data: {self}", GUEST_CORRUPTED)
        return self


async def start_verifying(guest: GuestSession, mib: int) -> None:
    """Start the verifying threads and the heartbeat in a booting guest; wait for one full pass."""
    print(f"guest up after {await guest.wait_for_user_space()} s", flush=True)
    await guest.shell("stty -echo")  # echoed input would appear inside a heartbeat line
    await guest.command(f"alloc {mib}")
    await guest.command(f"churn {SEED}")
    await guest.command(f"beat {HEARTBEAT_MS}")
    print(await verify_more(guest, mib=mib), flush=True)


async def verify_more(
    guest: GuestSession, since: VerificationReport | None = None, mib: int = 4
) -> VerificationReport:
    """Wait until the guest has verified `mib` MiB more than at `since`; return its new report."""
    throttle(guest)
    target_bytes = (since.bytes if since else 0) + mib * MIB
    while (
        report := VerificationReport.read(await guest.command("report")).require_intact()
    ).bytes < target_bytes:
        await asyncio.sleep(0.05)
    return report


def throttle(guest: GuestSession) -> None:
    """Throttle the vCPUs as auto-converge does: they never idle, and the lab has one processor."""
    guest.vm.throttle(THROTTLE_PERCENTAGE)


async def wait_for_heartbeat(guest: GuestSession) -> None:
    """Wait until the guest prints another heartbeat."""
    before = len(heartbeats(guest.console.text))
    async with asyncio.timeout(TIMEOUT_S):
        while len(heartbeats(guest.console.text)) <= before:
            await asyncio.sleep(0.02)


async def uptime(guest: GuestSession) -> float:
    """Return the guest's uptime in seconds."""
    return float(await guest.shell(_UPTIME))


def set_balloon_target(guest: GuestSession, mib: int) -> None:
    """Ask for a balloon of `mib` MiB without waiting for the driver."""
    guest.vm.set_balloon_target(guest.vm.ram_bytes - mib * MIB)


async def wait_for_balloon(guest: GuestSession, mib: int) -> None:
    """Inflate or deflate to `mib` MiB, unthrottled.

    Each request wakes another vCPU, so four throttled vCPUs in the lab take 25 times as long.
    """
    guest.vm.throttle(0)
    await guest.resize_balloon(mib * MIB // PAGE_BYTES)
    throttle(guest)


async def verify_and_power_off(guest: GuestSession) -> VerificationReport:
    """Stop the verifying threads, verify all of the pattern a last time, and power off."""
    guest.vm.throttle(0)
    report = VerificationReport.read(await guest.command("stop")).require_intact()
    guest.console.send_line("quit")
    assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF
    counters = guest.vm.balloon.counters
    assert counters.inflate.bad_payloads == counters.deflate.bad_payloads == 0
    return report


def heartbeats(text: str) -> list[int]:
    """Return the numbers of all complete heartbeat lines in `text`, in order."""
    return [int(number) for number in re.findall(r"(?m)^beat (\d+)\r?\n", text)]


def assert_heartbeats_contiguous(*texts: str) -> None:
    """Assert that consecutive outputs are those of one guest: no heartbeat twice, none lost.

    A line may begin in one text and end in the next.
    """
    text = "".join(texts)
    for before, number in itertools.pairwise(heartbeats(text)):
        at = text.find(f"beat {before}")
        assert number == before + 1, (before, number, text[at : at + 200], len(texts[0]) - at)


def min_median_max(values: Sequence[float], unit: str) -> str:
    """Format the least, the median and the greatest of `values`."""
    return f"{min(values):.0f}/{median(values):.0f}/{max(values):.0f} {unit}"
