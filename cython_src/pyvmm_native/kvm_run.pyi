# SPDX-License-Identifier: Apache-2.0

from typing import Protocol, final

from typing_extensions import Buffer

from pyvmm_native.events import EventBuffer
from pyvmm_native.serial import SerialFastPath

class IoHandler(Protocol):
    """Serves the guest's accesses to ports and to memory that no slot backs.

    Sizes are 1, 2 or 4 bytes for ports and 1, 2, 4 or 8 for memory; values are unsigned,
    little-endian integers of that size. String I/O arrives item by item, an access of another
    length in pieces. The methods are called on the vCPU's thread.
    """

    def pio_read(self, port: int, size: int) -> int:
        """Return what the guest reads from `port`."""

    def pio_write(self, port: int, size: int, value: int) -> None:
        """Serve a write of the guest to `port`."""

    def mmio_read(self, gpa: int, size: int) -> int:
        """Return what the guest reads from `gpa`."""

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        """Serve a write of the guest to `gpa`."""

@final
class ExitCounters:
    sample_every: int

    def __init__(self, vcpu: int = 0, events: EventBuffer | None = None) -> None: ...
    @property
    def counts(self) -> tuple[int, ...]: ...

def run(
    vcpu_fd: int,
    run_area: Buffer,
    io: IoHandler,
    serial: SerialFastPath | None = None,
    exits: ExitCounters | None = None,
) -> int: ...
def install_kick_handler(signum: int) -> None: ...
def kick(native_thread_id: int, run_area: Buffer) -> bool: ...
def clear_kick(run_area: Buffer) -> None: ...
