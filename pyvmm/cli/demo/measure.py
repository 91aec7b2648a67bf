# SPDX-License-Identifier: Apache-2.0
"""The demonstration's measurements: one guest, its memory filled, given away, taken back, checked.

The guest runs `pattern`, which does what the serial line tells it. First it touches nearly all of
its memory and frees it again: the host then holds pages the guest no longer needs, which is what
ballooning is for. Then it fills memory to keep with a known pattern. The balloon is inflated
and deflated again, and the guest uses what it got back; the pattern is verified after
each step. The host's side of it is the resident set size of this process, read from /proc.

What `measure` returns is plain data, written as JSON: it is taken where KVM works (perhaps in the
lab) and told by `pyvmm.cli.demo.report` where the person is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyvmm.config import config_for_image
from pyvmm.errors import UserError
from pyvmm.harness.errors import GuestExited
from pyvmm.harness.guest_session import GuestSession, ResizeResult, guest_session
from pyvmm.machine.exit_result import ExitReason
from pyvmm.memory.rss import RssSampler, Sample, resident_bytes
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES

SEED = 7
MIN_INFLATE_MIB = 64
MIN_KEPT_MIB = 256
KERNEL_SHARE = 64
"""The kernel's own part of RAM, for its page structures above all: one part in this many."""
KERNEL_MIB = 144
"""And what it needs whatever the size of RAM, with some room for the shell."""


@dataclass(frozen=True)
class Script:
    """How much of everything: sizes in MiB, for a guest of `ram_mib` that gives `inflate_mib`."""

    ram_mib: int = 1024
    inflate_mib: int = 512

    def __post_init__(self) -> None:
        if not MIN_INFLATE_MIB <= self.inflate_mib <= self.ram_mib - MIN_KEPT_MIB:
            raise UserError(
                f"a guest of {self.ram_mib} MiB cannot give away {self.inflate_mib} MiB here",
                f"choose --inflate {MIN_INFLATE_MIB}M to {self.ram_mib - MIN_KEPT_MIB}M",
            )

    @property
    def touch_mib(self) -> int:
        """Nearly all that a program can get."""
        return self.ram_mib - 3 * self.ram_mib // KERNEL_SHARE - KERNEL_MIB

    @property
    def keep_mib(self) -> int:
        return (self.ram_mib - self.inflate_mib) // 2

    @property
    def reuse_mib(self) -> int:
        """More than the guest could have while the balloon was inflated."""
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
    """Everything the report tells; `wrong_bytes` counts over all verifications."""

    ram_bytes: int
    dialect: str
    boot_seconds: float
    steps: list[Step]
    inflate: ResizeResult
    deflate: ResizeResult
    verified_bytes: int
    wrong_bytes: int
    samples: list[Sample]

    def to_json_object(self) -> dict[str, object]:
        return dataclasses.asdict(self)


class Demonstration:
    """One run; `say` is told what is being done."""

    def __init__(
        self, image: Path, script: Script, dialect: str | None, say: Callable[[str], None]
    ) -> None:
        self._config = config_for_image(
            image, append='pyvmm.run="pattern"', ram_bytes=script.ram_mib * MIB, dialect=dialect
        )
        self._script = script
        self._say = say
        self._steps: list[Step] = []
        self._verified = self._wrong = 0

    async def measure(self) -> Measurements:
        """Run the whole story; the guest powers off at its end."""
        self._sampler = RssSampler()
        self._sampler.start()
        try:
            async with guest_session(self._config) as guest:
                result = await self._story(guest)
                outcome = await guest.wait_for_exit()
        finally:
            self._sampler.stop()
        if outcome.ending is not ExitReason.POWEROFF:
            raise GuestExited(f"the guest did not power off but: {outcome}")
        return result

    async def _story(self, guest: GuestSession) -> Measurements:
        script = self._script
        self._say(f"Booting Linux with {script.ram_mib} MiB")
        boot_seconds = await guest.wait_for_user_space()
        await self._record(guest, "booted")
        self._say(f"The guest touches {script.touch_mib} MiB and frees them again")
        for command in (f"alloc {script.touch_mib}", "free"):
            await guest.command(command)
        self._say(f"It fills {script.keep_mib} MiB with a pattern, to keep")
        for command in (f"alloc {script.keep_mib}", f"fill {SEED}"):
            await guest.command(command)
        await self._record(guest, "before")
        self._say(f"The balloon takes {script.inflate_mib} MiB")
        inflate = await guest.resize_balloon(script.inflate_mib * MIB // PAGE_BYTES)
        await self._record(guest, "inflated")
        await self._verify(guest)
        self._say("The balloon gives them back")
        deflate = await guest.resize_balloon(0)
        await self._record(guest, "deflated")
        await self._verify(guest)
        self._say(f"It uses what it got back: {script.reuse_mib} MiB")
        for command in ("free", f"alloc {script.reuse_mib}", f"fill {SEED}"):
            await guest.command(command)
        await self._record(guest, "reused")
        await self._verify(guest)
        guest.console.send_line("quit")
        return Measurements(
            ram_bytes=guest.machine.ram_bytes,
            dialect=self._config.dialect,
            boot_seconds=boot_seconds,
            steps=self._steps,
            inflate=inflate,
            deflate=deflate,
            verified_bytes=self._verified,
            wrong_bytes=self._wrong,
            samples=self._sampler.samples,
        )

    async def _record(self, guest: GuestSession, name: str) -> None:
        free_bytes = await guest.free_bytes()
        balloon_bytes = guest.machine.balloon.actual * PAGE_BYTES
        self._steps.append(
            Step(name, self._sampler.elapsed_s, resident_bytes(), free_bytes, balloon_bytes)
        )

    async def _verify(self, guest: GuestSession) -> None:
        self._say("The guest verifies its pattern")
        words = (await guest.command(f"verify {SEED}")).split()
        self._verified += int(words[1])
        self._wrong += int(words[3])
