# SPDX-License-Identifier: Apache-2.0
"""The same guest in the installed QEMU, on the same KVM.

    async with qemu_guest("pc", image, ram_mib=1024, vcpus=1) as guest:
        await guest.wait_for_user_space()
        await guest.command("alloc 64")
        seconds = await guest.resize_balloon(pages)

`pc` is QEMU's default machine, `microvm` its smallest. Both are configured with care: KVM, the
host's processor, no device but a serial port and a balloon (virtio-pci on `pc`, virtio-mmio on
`microvm`), and the kernel by its PVH entry without a decompressor. The image's own command line is
used, in the standard dialect, which is QEMU's; where it names no command the guest runs `pattern`.

The console is a socket pair; QMP uses a listening socket created here, so that a connection is
never refused. Needs a KVM that runs Linux: without real hardware, the lab.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from bench.peers import Qemu, baseline
from guest_images.manifest import read_manifest
from pyvmm.harness.console_guest import POLL_S, ConsoleGuest
from pyvmm.harness.errors import GuestExited
from pyvmm.harness.scripted_console import ScriptedConsole
from pyvmm.qmp.client import ConnectionClosedError, QmpClient
from pyvmm.sockets.unix import UnixListener
from pyvmm_native import PAGE_BYTES

MachineType = Literal["pc", "microvm"]

BALLOON: dict[MachineType, tuple[str, ...]] = {
    "pc": ("-device", "virtio-balloon-pci"),
    "microvm": (
        *("-device", "virtio-balloon-device"),
        *("-global", "virtio-mmio.force-legacy=false"),  # as on `pc`: VIRTIO 1
    ),
}
QMP_TIMEOUT_S = 60.0
BALLOON_TIMEOUT_S = 600.0


class QemuGuest(ConsoleGuest[str]):
    """A guest in a QEMU child process, which exits with its guest."""

    def __init__(
        self, process: asyncio.subprocess.Process, console: ScriptedConsole, qmp: QmpClient
    ) -> None:
        super().__init__(console, asyncio.create_task(_ended(process)))
        self.pid = process.pid
        self._qmp = qmp

    async def qmp(self, command: str, **arguments: Any) -> Any:
        """Execute one QMP command and return its value.

        Raises GuestExited, and the errors of `QmpClient.execute`.
        """
        try:
            return await asyncio.to_thread(self._qmp.execute, command, **arguments)
        except ConnectionClosedError:
            raise GuestExited(await self.wait_for_exit()) from None

    async def balloon_pages(self) -> int:
        """Size of the balloon as the driver last reported it, in 4 KiB pages."""
        return (await self._ram_bytes() - await self._kept_bytes()) // PAGE_BYTES

    async def resize_balloon(self, target_pages: int) -> float:
        """Set the balloon's target, in 4 KiB pages, and wait until the driver reports it.

        Returns the seconds that took, measured as `GuestSession.resize_balloon` measures them.
        """
        keep_bytes = await self._ram_bytes() - target_pages * PAGE_BYTES
        begin = time.monotonic()
        await self.qmp("balloon", value=keep_bytes)
        await self.while_running(self._reach(keep_bytes))
        return time.monotonic() - begin

    async def _reach(self, keep_bytes: int) -> None:
        async with asyncio.timeout(BALLOON_TIMEOUT_S):
            while await self._kept_bytes() != keep_bytes:
                await asyncio.sleep(POLL_S)

    async def _ram_bytes(self) -> int:
        return int((await self.qmp("query-memory-size-summary"))["base-memory"])

    async def _kept_bytes(self) -> int:
        return int((await self.qmp("query-balloon"))["actual"])


@asynccontextmanager
async def qemu_guest(
    machine: MachineType,
    image: Path,
    *,
    ram_mib: int,
    vcpus: int = 1,
    append: str = "",
    balloon: Sequence[str] = (),
    overlay: bytes = b"",
    incoming: str = "",
    peer: Qemu | None = None,
) -> AsyncIterator[QemuGuest]:
    """Start QEMU with the guest `image` and end it with the block.

    `append` is added to the image's own command line, the archive `overlay` to its initramfs;
    `balloon` are arguments in place of the default ones. With `incoming` it boots nothing and waits
    at that address for a migration. `peer` is the QEMU, if not the baseline. Raises UserError when
    there is none.
    """
    console = ScriptedConsole()
    with _sockets() as (ours, theirs, listener, qmp_path):
        initrd = qmp_path.with_name("initrd")
        initrd.write_bytes(overlay)
        argv = [
            (peer or baseline()).program,
            *_arguments(machine, image, ram_mib, vcpus, append),
            *(balloon or BALLOON[machine]),
            *(("-initrd", str(initrd)) if overlay else ()),
            *(("-incoming", incoming) if incoming else ()),
            *("-chardev", f"socket,id=console,fd={theirs.fileno()}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off"),
            *("-mon", "chardev=qmp,mode=control"),
        ]
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(), listener.fileno())
        )
        theirs.close()
        reading = asyncio.create_task(_join(ours, console))
        try:
            with await asyncio.to_thread(QmpClient, qmp_path, QMP_TIMEOUT_S) as qmp:
                yield QemuGuest(process, console, qmp)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            await reading


def _arguments(
    machine: MachineType, image: Path, ram_mib: int, vcpus: int, append: str
) -> Sequence[str]:
    """QEMU's command line without the balloon and the sockets."""
    manifest = read_manifest(image)
    if manifest is None:
        raise ValueError(f"{image} is not a guest image")
    if "pyvmm.run=" not in append:
        append += ' pyvmm.run="pattern"'
    return [
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", machine, "-accel", "kvm", "-cpu", "host"),
        *("-m", f"{ram_mib}M", "-smp", str(vcpus)),
        *("-kernel", str(image), "-append", f"{manifest.command_line('standard')} {append}"),
    ]


@contextlib.contextmanager
def _sockets() -> Iterator[tuple[socket.socket, socket.socket, socket.socket, Path]]:
    """Provide both ends of the console, and a listening QMP socket with its path.

    The path is in memory: the lab's shared root file system supports no sockets.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory, "qmp")
        listener = UnixListener(path)
        try:
            yield ours, theirs, listener.socket, path
        finally:
            listener.remove()


async def _join(stream: socket.socket, console: ScriptedConsole) -> None:
    """Carry bytes between QEMU's serial port and `console` until QEMU closes the connection."""
    reader, writer = await asyncio.open_connection(sock=stream)

    def send(data: bytes) -> int:
        writer.write(data)
        return len(data)

    console.connect(send)
    with contextlib.suppress(ConnectionResetError):
        while data := await reader.read(4096):
            console.output(data)
    writer.close()


async def _ended(process: asyncio.subprocess.Process) -> str:
    return f"QEMU ended with status {await process.wait()}"
