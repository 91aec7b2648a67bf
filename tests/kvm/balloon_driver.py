# SPDX-License-Identifier: Apache-2.0
"""The guest's side of a balloon: the driver's counters and restarts, the guest's free memory."""

from __future__ import annotations

import re

from pyvmm.harness.guest_session import GuestSession
from pyvmm.machine.exit_result import ExitReason
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES

MIB_PAGES = MIB // PAGE_BYTES
DRIVER = "/sys/bus/virtio/drivers/virtio_balloon"
SMALL_PAGES_ONLY = "echo never > /sys/kernel/mm/transparent_hugepage/enabled"

# pm_test suspends and resumes devices only: nothing could wake a guest from a real suspend.
SUSPEND = (
    "echo 0 > /sys/module/suspend/parameters/pm_test_delay;"
    " echo devices > /sys/power/pm_test; echo freeze > /sys/power/state"
)
DEVICE = f"basename {DRIVER}/virtio*"
REBIND = f"device=$({DEVICE}); cd {DRIVER}; echo $device > unbind; echo $device > bind"

TIMES = "/sys/module/virtio_balloon_times/parameters"


async def vmstat(guest: GuestSession, name: str) -> int:
    """Return a counter of the guest's /proc/vmstat."""
    return int(await guest.shell(f"sed -n 's/^{name} //p' /proc/vmstat"))


async def total_kib(guest: GuestSession) -> int:
    """Return MemTotal, from which Linux subtracts each page in the balloon."""
    words = (await guest.command("meminfo")).split()
    return int(words[words.index("total_kib") + 1])


async def power_off(guest: GuestSession) -> None:
    """Power off; assert that the driver sent no bad request."""
    guest.console.send_line("quit")
    assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF
    counters = guest.vm.balloon.counters
    assert counters.inflate.bad_payloads == counters.deflate.bad_payloads == 0


async def squeeze(guest: GuestSession) -> int:
    """Inflate until 40 MiB are free; return the pages in the balloon."""
    await guest.wait_for_user_space()
    target_pages = await guest.free_bytes() // PAGE_BYTES - 40 * MIB_PAGES
    await guest.resize_balloon(target_pages)
    return target_pages


async def free_blocks_bytes(guest: GuestSession, order: int) -> int:
    """Return the free memory in blocks of at least 2**`order` pages."""
    total = 0
    for line in (await guest.shell("cat /proc/buddyinfo")).splitlines():
        blocks = re.findall(r" (\d+)(?= |$)", line.partition("zone")[2])
        total += sum(int(count) * PAGE_BYTES << n for n, count in enumerate(blocks) if n >= order)
    return total


async def driver_times(guest: GuestSession, direction: str) -> dict[str, int]:
    """Return the driver's sums for one direction, inflate or deflate."""
    said = await guest.shell(f"cd {TIMES}; grep . {direction}_*")
    pairs = (line.removeprefix(f"{direction}_").split(":") for line in said.split())
    return {name: int(value) for name, value in pairs}
