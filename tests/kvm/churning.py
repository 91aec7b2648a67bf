# SPDX-License-Identifier: Apache-2.0
"""A guest that would notice if anything of it were lost.

Its `pattern` program rewrites all of a large allocation all the time, on every processor, and
compares every word right before it is rewritten (guest_images/src/background.h). Memory that came
back old, or not at all, is found at the latest when that page has its turn again, and nothing mends
it before. The program also watches its clock, and prints a beat ten times a second: two copies of a
guest that run both say the same beat.
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

LOST = 70
"""The status then; `tests.with_kvm` knows it."""
SEED = 7
BEAT_MS = 100
REST_PERCENTAGE = 80
PATTERN_MIB = int(os.environ.get("LONG_MIB", "512"))
"""What is rewritten by guests that are moved or saved twenty times in a row."""
MEMORY_MIB = 2 * PATTERN_MIB + 96
SMALL_PATTERN_MIB, SMALL_MEMORY_MIB = 16, 96
"""For guests that faults are tried on."""
BALLOON_MIB = (PATTERN_MIB * 3 // 8, PATTERN_MIB * 5 // 8)
"""About half of what such a guest can do without; on its way between them while it moves."""
TIMEOUT_S = 60.0
_UPTIME = "cut -d' ' -f1 /proc/uptime"


@dataclass(frozen=True)
class Report:
    """What `pattern` says of its churning."""

    rounds: int
    bytes: int
    wrong: int
    kb_per_s: int
    step_us: int
    backward_us: int

    @classmethod
    def read(cls, text: str) -> Report:
        words = text.split()
        return cls(**dict(zip(words[::2], map(int, words[1::2]), strict=True)))

    def checked(self) -> Report:
        """It, if nothing is wrong; else the whole run ends, and no new lab excuses it."""
        if self.wrong or self.backward_us:
            pytest.exit(f"the guest has lost something: {self}", LOST)
        return self


async def churning(guest: GuestSession, mib: int) -> None:
    """Have a guest that has just been started do all that, for once around at least."""
    print(f"guest up after {await guest.wait_for_user_space()} s", flush=True)
    await guest.shell("stty -echo")  # what we type would come in the middle of a beat
    await guest.command(f"alloc {mib}")
    await guest.command(f"churn {SEED}")
    await guest.command(f"beat {BEAT_MS}")
    print(await goes_on(guest, mib=mib), flush=True)


async def goes_on(guest: GuestSession, since: Report | None = None, mib: int = 4) -> Report:
    """Wait until it has compared that much more than when it said `since`; nothing is wrong."""
    rest(guest)
    wanted = (since.bytes if since else 0) + mib * MIB
    while (report := Report.read(await guest.command("report")).checked()).bytes < wanted:
        await asyncio.sleep(0.05)
    return report


def rest(guest: GuestSession) -> None:
    """Have its processors rest for most of their time, as in a migration that has to converge.

    They are never idle, and the lab has one processor for everything.
    """
    guest.machine.throttle(REST_PERCENTAGE)


async def beats_on(guest: GuestSession) -> None:
    """Wait for its next beat."""
    before = len(beats(guest.console.text))
    async with asyncio.timeout(TIMEOUT_S):
        while len(beats(guest.console.text)) <= before:
            await asyncio.sleep(0.02)


async def uptime(guest: GuestSession) -> float:
    return float(await guest.shell(_UPTIME))


def aim_balloon(guest: GuestSession, mib: int) -> None:
    """Have the balloon on its way to another size."""
    guest.machine.set_balloon_target(guest.machine.ram_bytes - mib * MIB)


async def balloon_reaches(guest: GuestSession, mib: int) -> None:
    """Wait for that, with processors at work: a request goes from one of them to another, and four
    that rest in the lab take 25 times as long for it."""
    guest.machine.throttle(0)
    await guest.resize_balloon(mib * MIB // PAGE_BYTES)
    rest(guest)


async def all_is_well(guest: GuestSession) -> Report:
    """Compare everything once more, and power off."""
    guest.machine.throttle(0)
    report = Report.read(await guest.command("still")).checked()
    guest.console.send_line("quit")
    assert (await guest.wait_for_exit()).ending is ExitReason.POWEROFF
    counters = guest.machine.balloon.counters
    assert counters.inflate.bad_payloads == counters.deflate.bad_payloads == 0
    return report


def beats(text: str) -> list[int]:
    """The beats in what a guest has printed, in their order; one that is being printed is none."""
    return [int(number) for number in re.findall(r"(?m)^beat (\d+)\r?\n", text)]


def assert_one_life(*texts: str) -> None:
    """What the guest printed here, then there, is what one guest prints: no beat twice, none lost.

    A line may have begun here and ended there.
    """
    text = "".join(texts)
    counted = beats(text)
    for before, number in itertools.pairwise(counted):
        at = text.find(f"beat {before}")
        assert number == before + 1, (before, number, text[at : at + 200], len(texts[0]) - at)


def spread(values: Sequence[float], unit: str) -> str:
    """Least, median and greatest."""
    return f"{min(values):.0f}/{median(values):.0f}/{max(values):.0f} {unit}"
