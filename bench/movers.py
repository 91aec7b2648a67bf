# SPDX-License-Identifier: Apache-2.0
"""Guests that can move to another process, or into a file: ours, and QEMU's.

Both have their RAM touched and freed again, and hold some memory with a known pattern. Both take
QEMU's commands `migrate` and `query-migrate` and answer in the same words, so whoever moves them
need not know which is which. The limit on QEMU's bandwidth is lifted; all else is as it comes. Its
free page hints need an I/O thread and no capability of the migration: a device that offers them
asks for them whenever RAM is about to be copied (virtio_balloon_free_page_hint_notify in
hw/virtio/virtio-balloon.c).
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.arriving import RUNS, WAITS
from bench.qemu import QemuGuest, qemu_guest
from guest_images.build import image_path
from guest_images.recipe import read_recipe
from pyvmm.boot.image_config import config_for_image
from pyvmm.harness.console_guest import POLL_S, ConsoleGuest
from pyvmm.harness.errors import GuestExited
from pyvmm.harness.guest_session import GuestSession, guest_session
from pyvmm.qmp import commands
from pyvmm.qmp.messages import Request
from pyvmm.sockets.lab_paths import in_lab
from pyvmm.units import MIB

ASKED, NOT_ASKED = "pyvmm, bitmap", "pyvmm, bitmap, not asked"
QEMU, QEMU_HINTED = "QEMU pc", "QEMU pc, hints"
APPEND = "loglevel=4"
MEMORY = "/dev/shm"
LAB_TRIES = 3
MIGRATION_TIMEOUT_S = 420.0
UNLIMITED = 1 << 40
HELD_MIB, SEED = 16, 7
VERIFIED = f"verified {HELD_MIB * MIB} wrong 0"
HINTING = (
    *("-object", "iothread,id=hints"),
    *("-device", "virtio-balloon-pci,free-page-hint=on,iothread=hints"),
)


@dataclass(frozen=True)
class Size:
    """A guest's RAM; nearly all of it gets touched."""

    ram_mib: int

    @property
    def touch_mib(self) -> int:
        """Nearly all that a program can get."""
        return self.ram_mib * 15 // 16 - 128


QUICK_SIZE, THOROUGH_SIZE = Size(256), Size(8192)


class Mover(Protocol):
    """A guest at its source."""

    @property
    def guest(self) -> ConsoleGuest[Any]:
        """Its console."""

    async def qmp(self, name: str, **arguments: Any) -> Any:
        """Execute one command."""

    def destination(self, path: Path) -> AbstractAsyncContextManager[GuestCommand]:
        """A process that waits for it at the socket `path`."""


GuestCommand = Callable[[str], Awaitable[str]]
"""Has the `pattern` program of the guest, where it is now, carry out one command."""
Boot = Callable[[Size], AbstractAsyncContextManager[Mover]]


class PyvmmMover:
    """A guest of ours, in this process."""

    def __init__(self, guest: GuestSession) -> None:
        self.guest = guest

    async def qmp(self, name: str, **arguments: Any) -> Any:
        return commands.execute(self.guest.vm, Request(name, arguments))

    @asynccontextmanager
    async def destination(self, path: Path) -> AsyncIterator[GuestCommand]:
        pipe = asyncio.subprocess.PIPE
        argv = (sys.executable, "-m", "bench.arriving", f"unix:{path}")
        process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe)
        assert process.stdin is not None
        assert process.stdout is not None
        to_guest, from_guest = process.stdin, process.stdout
        arrived = False

        async def said() -> str:
            line = (await from_guest.readline()).decode().strip()
            if not line:
                raise GuestExited("the destination ended")
            return line

        async def command(line: str) -> str:
            nonlocal arrived
            if not arrived:
                assert await said() == RUNS
                arrived = True
            to_guest.write(line.encode() + b"\n")
            return await said()

        try:
            assert await said() == WAITS
            yield command
        finally:
            to_guest.close()
            with suppress(ProcessLookupError):  # it ended with its guest
                process.kill()
            await process.wait()


class QemuMover:
    """A guest of QEMU's; `balloon` are the arguments of its balloon, if not the usual ones."""

    def __init__(self, guest: QemuGuest, size: Size, balloon: tuple[str, ...]) -> None:
        self.guest = guest
        self._size = size
        self._balloon = balloon

    async def qmp(self, name: str, **arguments: Any) -> Any:
        return await self.guest.qmp(name, **arguments)

    @asynccontextmanager
    async def destination(self, path: Path) -> AsyncIterator[GuestCommand]:
        async with _qemu_guest(self._size, self._balloon, f"unix:{path}") as there:
            yield there.command


def pyvmm_boot(dialect: str, *offer: str) -> Boot:
    """How a guest of ours is started."""

    @asynccontextmanager
    async def boot(size: Size) -> AsyncIterator[Mover]:
        config = config_for_image(
            image_path(read_recipe()),
            append=f'{APPEND} pyvmm.run="pattern"',
            ram_bytes=size.ram_mib * MIB,
            vcpus=1,
            dialect=dialect,
            offer=offer,
        )
        async with guest_session(config) as guest:
            await _prepare(guest, size)
            yield PyvmmMover(guest)

    return boot


def qemu_boot(*balloon: str) -> Boot:
    """How a guest of QEMU's is started."""

    @asynccontextmanager
    async def boot(size: Size) -> AsyncIterator[Mover]:
        async with _qemu_guest(size, balloon) as guest:
            await guest.qmp("migrate-set-parameters", **{"max-bandwidth": UNLIMITED})
            await _prepare(guest, size)
            yield QemuMover(guest, size, balloon)

    return boot


def _qemu_guest(
    size: Size, balloon: tuple[str, ...], incoming: str = ""
) -> AbstractAsyncContextManager[QemuGuest]:
    return qemu_guest(
        "pc",
        image_path(read_recipe()),
        ram_mib=size.ram_mib,
        append=APPEND,
        balloon=balloon,
        incoming=incoming,
    )


async def _prepare(guest: ConsoleGuest[Any], size: Size) -> None:
    await guest.wait_for_user_space()
    for line in (f"grab {size.touch_mib}", "fill 1", "free", f"alloc {HELD_MIB}", f"fill {SEED}"):
        await guest.command(line)


class GivenUp(Exception):
    """A guest has not moved within `MIGRATION_TIMEOUT_S`."""


async def moved(mover: Mover, uri: str, **options: Any) -> tuple[float, dict[str, Any]]:
    """Move it to `uri`; returns the seconds that took, and what query-migrate says in the end.

    Raises `GivenUp`.
    """
    begin = time.monotonic()
    await mover.qmp("migrate", uri=uri, **options)
    while (answer := await mover.qmp("query-migrate"))["status"] != "completed":
        seconds = time.monotonic() - begin
        if answer["status"] in ("failed", "cancelled"):
            raise GuestExited(f"it has not moved: {answer}")
        if seconds > MIGRATION_TIMEOUT_S:
            raise GivenUp(f"it has not moved in {seconds:.0f} s: {answer}")
        await asyncio.sleep(POLL_S)
    return time.monotonic() - begin, answer


@asynccontextmanager
async def in_memory() -> AsyncIterator[Path]:
    """A directory for sockets and files; the lab's shared root has no sockets."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        yield Path(directory)


def again_in_the_lab(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run `work`; where the emulator ends a guest now and then (DECISIONS.md), once more."""

    async def tries() -> Any:
        for _ in range(LAB_TRIES - 1 if in_lab() else 0):
            try:
                return await work()
            except GuestExited as ended:
                print(f"the guest ended, once more: {ended}", file=sys.stderr, flush=True)
        return await work()

    return asyncio.run(tries())
