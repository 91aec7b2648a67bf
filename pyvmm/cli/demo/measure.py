# SPDX-License-Identifier: Apache-2.0
"""The measurement of the demonstration: one guest, whose balloon is inflated and deflated.

The guest runs `pattern`, a program that takes commands over the serial line. First it touches
nearly all of its memory and frees it again, so that the host holds pages that the guest no longer
needs: the situation that a balloon is for. The host populates the rest, which no program in the
guest can have: a page that is not resident would return nothing. Then the guest fills the memory
that it is to keep with a known pattern. The balloon is inflated and deflated, and the guest uses
the memory it got back; it verifies its pattern after each step. On the host's side, the resident
set size of this process is sampled from /proc.

`measure` returns plain data for a JSON file: it runs where KVM works, perhaps in the lab, and
`pyvmm.cli.demo.report` on the user's terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyvmm.balloon.safe_target import UnsafeTarget
from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.boot.image_config import config_for_image
from pyvmm.cli.errors import CommandError
from pyvmm.config import HugePages, MachineConfig
from pyvmm.harness.errors import GuestExited
from pyvmm.harness.guest_session import GuestSession, ResizeResult, guest_session
from pyvmm.machine.exit_result import ExitReason
from pyvmm.memory.rss import RssSampler, Sample, resident_bytes
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES

MEASUREMENTS_FILE, PLOT_FILE = "measurements.json", "resident-memory.png"
"""The files that the demonstration writes."""
SEED = 7
MIN_INFLATE_MIB = 64
MIN_KEPT_MIB = 256
KERNEL_BYTES_PER_PAGE = 192
"""Bound on the kernel's memory for each page of RAM."""
KERNEL_FIXED_MIB = 144
"""Bound on all other memory of the kernel and the shell."""


@dataclass(frozen=True)
class GuestSizes:
    """Sizes of the steps' memory in MiB, for a guest of `ram_mib` that inflates `inflate_mib`."""

    ram_mib: int = 1024
    inflate_mib: int = 512

    def __post_init__(self) -> None:
        smallest_mib = MIN_INFLATE_MIB + MIN_KEPT_MIB
        if self.ram_mib < smallest_mib:
            raise CommandError(
                f"a guest of {self.ram_mib} MiB is too small for this demo",
                f"choose --memory {smallest_mib}M or more",
            )
        if not MIN_INFLATE_MIB <= self.inflate_mib <= self.ram_mib - MIN_KEPT_MIB:
            raise CommandError(
                f"a guest of {self.ram_mib} MiB cannot inflate {self.inflate_mib} MiB in this demo",
                f"choose --inflate {MIN_INFLATE_MIB}M to {self.ram_mib - MIN_KEPT_MIB}M",
            )

    @property
    def touch_mib(self) -> int:
        """Nearly all the memory that a program can get."""
        return self.ram_mib - self.ram_mib * KERNEL_BYTES_PER_PAGE // PAGE_BYTES - KERNEL_FIXED_MIB

    @property
    def keep_mib(self) -> int:
        """The memory that holds the pattern while the balloon is inflated."""
        return (self.ram_mib - self.inflate_mib) // 2

    @property
    def reuse_mib(self) -> int:
        """More memory than the guest could have while the balloon was inflated."""
        return min(self.inflate_mib + self.keep_mib // 2, self.touch_mib)


@dataclass(frozen=True)
class Step:
    """The state after one step: seconds since the start and sizes in bytes."""

    name: str
    seconds: float
    rss_bytes: int
    guest_free_bytes: int
    balloon_bytes: int


@dataclass(frozen=True)
class Measurements:
    """All figures of the report; `wrong_bytes` is the sum of all verifications."""

    ram_bytes: int
    hugepages: HugePages
    dialect: str
    boot_seconds: float
    steps: list[Step]
    inflate: ResizeResult
    deflate: ResizeResult
    kept_bytes: int
    """Pages of the inflated balloon that the host kept, as parts of huge pages."""
    verified_bytes: int
    wrong_bytes: int
    samples: list[Sample]

    def to_json_object(self) -> dict[str, object]:
        return dataclasses.asdict(self)


def demo_config(
    image: Path, sizes: GuestSizes, dialect: str | None, hugepages: HugePages
) -> MachineConfig:
    """Return the configuration of the guest; the errors are those of `config_for_image`."""
    return config_for_image(
        image,
        run="pattern",
        ram_bytes=sizes.ram_mib * MIB,
        dialect=dialect,
        hugepages=hugepages,
    )


class Demonstration:
    """One run with a guest of `demo_config`.

    `announce` is called with a text at the start of each step.
    """

    def __init__(
        self, config: MachineConfig, sizes: GuestSizes, announce: Callable[[str], None]
    ) -> None:
        self._config = config
        self._sizes = sizes
        self._announce = announce
        self._steps: list[Step] = []
        self._verified = self._wrong = 0

    async def measure(self) -> Measurements:
        """Run all steps; raises GuestExited unless the guest powers off at the end."""
        self._sampler = RssSampler()
        with thread_limit_reported():
            self._sampler.start()
        try:
            async with guest_session(self._config) as guest:
                result = await self._run_steps(guest)
                outcome = await guest.wait_for_exit()
        finally:
            self._sampler.stop()
        if outcome.reason is not ExitReason.POWEROFF:
            raise GuestExited(f"the guest did not power off: {outcome}")
        return result

    async def _run_steps(self, guest: GuestSession) -> Measurements:
        sizes = self._sizes
        self._announce(f"Booting Linux with {sizes.ram_mib} MiB")
        boot_seconds = await guest.wait_for_user_space()
        await self._record(guest, "booted")
        self._announce(f"The guest touches {sizes.touch_mib} MiB and frees them again")
        for command in (f"alloc {sizes.touch_mib}", "free"):
            await guest.command(command)
        with contextlib.suppress(OSError):  # too old a kernel: a part of the rest is not resident
            guest.vm.ram.populate()
        self._announce(f"The guest fills {sizes.keep_mib} MiB with a pattern and keeps them")
        for command in (f"alloc {sizes.keep_mib}", f"fill {SEED}"):
            await guest.command(command)
        await self._record(guest, "before")
        self._announce(f"The balloon takes {sizes.inflate_mib} MiB")
        try:
            inflate = await guest.resize_balloon(sizes.inflate_mib * MIB // PAGE_BYTES)
        except UnsafeTarget as error:
            raise CommandError(str(error), "choose a smaller --inflate") from None
        await self._record(guest, "inflated")
        kept_bytes = guest.vm.balloon.counters.kept_bytes
        await self._verify(guest)
        self._announce("The balloon returns them")
        deflate = await guest.resize_balloon(0)
        await self._record(guest, "deflated")
        await self._verify(guest)
        self._announce(f"The guest uses {sizes.reuse_mib} MiB, part of them returned")
        for command in ("free", f"alloc {sizes.reuse_mib}", f"fill {SEED}"):
            await guest.command(command)
        await self._record(guest, "reused")
        await self._verify(guest)
        guest.console.send_line("quit")
        return Measurements(
            ram_bytes=guest.vm.ram_bytes,
            hugepages=self._config.hugepages,
            dialect=self._config.dialect,
            boot_seconds=boot_seconds,
            steps=self._steps,
            inflate=inflate,
            deflate=deflate,
            kept_bytes=kept_bytes,
            verified_bytes=self._verified,
            wrong_bytes=self._wrong,
            samples=self._sampler.samples,
        )

    async def _record(self, guest: GuestSession, name: str) -> None:
        free_bytes = await guest.free_bytes()
        balloon_bytes = guest.vm.balloon.actual * PAGE_BYTES
        self._steps.append(
            Step(name, self._sampler.elapsed_s, resident_bytes(), free_bytes, balloon_bytes)
        )

    async def _verify(self, guest: GuestSession) -> None:
        self._announce("The guest verifies its pattern")
        words = (await guest.command(f"verify {SEED}")).split()
        self._verified += int(words[1])
        self._wrong += int(words[3])
