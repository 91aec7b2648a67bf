# SPDX-License-Identifier: Apache-2.0
"""Guests that can be migrated to another process, or into a file: pyvmm's and QEMU's.

Both have their RAM touched and freed again, and hold some memory with a known pattern. Both support
QEMU's commands `migrate` and `query-migrate` with the same replies, so callers need not distinguish
them. The limit on QEMU's bandwidth is lifted; everything else is the default. QEMU's free page
hints need an I/O thread and no migration capability: a device that offers them requests them
whenever RAM is about to be copied (virtio_balloon_free_page_hint_notify in
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

from bench.incoming_process import LISTENING, RUNNING
from bench.peers import Qemu
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

WITH_QUERY, QUERY_DISABLED = "pyvmm, bitmap", "pyvmm, bitmap, query disabled"
QEMU, QEMU_HINTS = "QEMU pc", "QEMU pc, hints"
APPEND = "loglevel=4"
MEMORY = "/dev/shm"
LAB_ATTEMPTS = 3
MIGRATION_TIMEOUT_S = 420.0
DOWNTIME_TIMEOUT_S = 5.0
"""Longest time from QEMU's completion until it knows the downtime."""
UNLIMITED_BANDWIDTH = 1 << 40
PATTERN_MIB, PATTERN_SEED = 16, 7
VERIFIED = f"verified {PATTERN_MIB * MIB} wrong 0"
QEMU_HINTS_DEVICE = (
    *("-object", "iothread,id=hints"),
    *("-device", "virtio-balloon-pci,free-page-hint=on,iothread=hints"),
)


@dataclass(frozen=True)
class Size:
    """A guest's RAM; nearly all of it gets touched."""

    ram_mib: int

    @property
    def touch_mib(self) -> int:
        """Nearly all memory that a program can allocate."""
        return self.ram_mib * 15 // 16 - 128


QUICK_SIZE, FULL_SIZE, LARGE_SIZE = Size(256), Size(1024), Size(8192)


class MigratableGuest(Protocol):
    """A guest at the source of a migration."""

    @property
    def guest(self) -> ConsoleGuest[Any]:
        """Its console."""

    async def qmp(self, name: str, **arguments: Any) -> Any:
        """Execute one command."""

    def destination(self, path: Path) -> AbstractAsyncContextManager[GuestCommand]:
        """Start a process that waits for the guest at the socket `path`."""


GuestCommand = Callable[[str], Awaitable[str]]
"""Has the guest's `pattern` program, at the destination, execute one command."""
Boot = Callable[[Size], AbstractAsyncContextManager[MigratableGuest]]


class MigratablePyvmmGuest:
    """A guest of pyvmm, in this process."""

    def __init__(self, guest: GuestSession) -> None:
        self.guest = guest

    async def qmp(self, name: str, **arguments: Any) -> Any:
        return commands.execute(self.guest.vm, Request(name, arguments))

    @asynccontextmanager
    async def destination(self, path: Path) -> AsyncIterator[GuestCommand]:
        pipe = asyncio.subprocess.PIPE
        argv = (sys.executable, "-m", "bench.incoming_process", f"unix:{path}")
        process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe)
        assert process.stdin is not None
        assert process.stdout is not None
        to_guest, from_guest = process.stdin, process.stdout
        running = False

        async def reply() -> str:
            line = (await from_guest.readline()).decode().strip()
            if not line:
                raise GuestExited("the destination ended")
            return line

        async def command(line: str) -> str:
            nonlocal running
            if not running:
                assert await reply() == RUNNING
                running = True
            to_guest.write(line.encode() + b"\n")
            return await reply()

        try:
            assert await reply() == LISTENING
            yield command
        finally:
            to_guest.close()
            with suppress(ProcessLookupError):  # it exited with its guest
                process.kill()
            await process.wait()


class MigratableQemuGuest:
    """A guest of QEMU's.

    `balloon` are the arguments of its balloon, if not the default ones; `peer` is the QEMU, if not
    the baseline.
    """

    def __init__(
        self, guest: QemuGuest, size: Size, balloon: tuple[str, ...], peer: Qemu | None
    ) -> None:
        self.guest = guest
        self._size = size
        self._balloon = balloon
        self._peer = peer

    async def qmp(self, name: str, **arguments: Any) -> Any:
        return await self.guest.qmp(name, **arguments)

    @asynccontextmanager
    async def destination(self, path: Path) -> AsyncIterator[GuestCommand]:
        async with _qemu_guest(self._size, self._balloon, self._peer, f"unix:{path}") as there:
            yield there.command


def pyvmm_boot(dialect: str, *offer: str) -> Boot:
    """Return a function that boots a guest of pyvmm."""

    @asynccontextmanager
    async def boot(size: Size) -> AsyncIterator[MigratableGuest]:
        config = config_for_image(
            image_path(read_recipe()),
            append=APPEND,
            run="pattern",
            ram_bytes=size.ram_mib * MIB,
            vcpus=1,
            dialect=dialect,
            offer=offer,
        )
        async with guest_session(config) as guest:
            await _prepare(guest, size)
            yield MigratablePyvmmGuest(guest)

    return boot


def qemu_boot(*balloon: str, peer: Qemu | None = None) -> Boot:
    """Return a function that boots a guest of QEMU's: of `peer`, or of the baseline."""

    @asynccontextmanager
    async def boot(size: Size) -> AsyncIterator[MigratableGuest]:
        async with _qemu_guest(size, balloon, peer) as guest:
            await guest.qmp("migrate-set-parameters", **{"max-bandwidth": UNLIMITED_BANDWIDTH})
            await _prepare(guest, size)
            yield MigratableQemuGuest(guest, size, balloon, peer)

    return boot


def _qemu_guest(
    size: Size, balloon: tuple[str, ...], peer: Qemu | None, incoming: str = ""
) -> AbstractAsyncContextManager[QemuGuest]:
    return qemu_guest(
        "pc",
        image_path(read_recipe()),
        ram_mib=size.ram_mib,
        append=APPEND,
        balloon=balloon,
        incoming=incoming,
        peer=peer,
    )


async def _prepare(guest: ConsoleGuest[Any], size: Size) -> None:
    await guest.wait_for_user_space()
    for line in (
        f"grab {size.touch_mib}",
        "fill 1",
        "free",
        f"alloc {PATTERN_MIB}",
        f"fill {PATTERN_SEED}",
    ):
        await guest.command(line)


class MigrationTimeout(Exception):
    """A migration has not completed within `MIGRATION_TIMEOUT_S`."""


async def migrate(guest: MigratableGuest, uri: str, **options: Any) -> tuple[float, dict[str, Any]]:
    """Migrate `guest` to `uri`; return the seconds that took and the final `query-migrate` reply.

    QEMU reports the completion a moment before it has computed the downtime, which is 0 until then.

    Raises `MigrationTimeout`.
    """
    begin = time.monotonic()
    await guest.qmp("migrate", uri=uri, **options)
    while (answer := await guest.qmp("query-migrate"))["status"] != "completed":
        seconds = time.monotonic() - begin
        if answer["status"] in ("failed", "cancelled"):
            raise GuestExited(f"the migration failed: {answer}")
        if seconds > MIGRATION_TIMEOUT_S:
            raise MigrationTimeout(f"the migration has not completed in {seconds:.0f} s: {answer}")
        await asyncio.sleep(POLL_S)
    seconds = time.monotonic() - begin
    while not answer["downtime"] and time.monotonic() - begin < seconds + DOWNTIME_TIMEOUT_S:
        await asyncio.sleep(POLL_S)
        answer = await guest.qmp("query-migrate")
    return seconds, answer


@asynccontextmanager
async def in_memory() -> AsyncIterator[Path]:
    """Provide a directory for sockets and files; the lab's shared root supports no sockets."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        yield Path(directory)


def retry_in_lab(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run `work`; in the lab, where the emulator can end a guest (docs/adr/0011), retry it."""

    async def attempts() -> Any:
        for _ in range(LAB_ATTEMPTS - 1 if in_lab() else 0):
            try:
                return await work()
            except GuestExited as ended:
                print(f"the guest ended, retrying: {ended}", file=sys.stderr, flush=True)
        return await work()

    return asyncio.run(attempts())
