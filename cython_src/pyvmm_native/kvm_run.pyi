# SPDX-License-Identifier: Apache-2.0
"""The KVM_RUN loop of one vCPU, and the way to interrupt it.

`run` belongs to the vCPU's thread; it serves port and memory-mapped I/O by calling an `IoHandler`
and comes back for everything else. Another thread makes it come back with `kick`, without a race:
`kick` sets `kvm_run.immediate_exit`, which KVM polls when KVM_RUN starts, and then sends a signal,
which ends a KVM_RUN that started before (Documentation/virt/kvm/api.rst, section 5,
"immediate_exit"). The vCPU's thread goes

    while True:
        reason = run(vcpu_fd, run_area, io)
        if reason == -errno.EINTR:
            clear_kick(run_area)
            ...look for what is asked of this thread...

and whoever asks first notes what is asked, then kicks. Clearing comes before looking, so a request
made at any moment is either seen now or interrupts the next `run`.
"""

from typing import Protocol

from typing_extensions import Buffer

from pyvmm_native.serial import SerialShortcut

class IoHandler(Protocol):
    """Serves the guest's accesses to ports and to memory that no slot backs.

    Sizes are 1, 2 or 4 bytes for ports and 1, 2, 4 or 8 for memory; values are unsigned,
    little-endian integers of that size. String I/O arrives item by item, an access of another
    length in pieces. The methods are called on the vCPU's thread.
    """

    def pio_read(self, port: int, size: int) -> int: ...
    def pio_write(self, port: int, size: int, value: int) -> None: ...
    def mmio_read(self, gpa: int, size: int) -> int: ...
    def mmio_write(self, gpa: int, size: int, value: int) -> None: ...

def run(
    vcpu_fd: int, run_area: Buffer, io: IoHandler, serial: SerialShortcut | None = None
) -> int:
    """Run guest code until an exit that `io` cannot serve; returns its KVM_EXIT_* reason.

    What `serial` can serve never reaches `io`.

    Returns -errno.EINTR when a signal arrived or `immediate_exit` is set. `run_area` is the whole
    mmap of `vcpu_fd`; it cannot be closed meanwhile. The GIL is released while guest code runs.
    Signal handlers written in Python do not run in here, other than between two calls.

    Whatever a method of `io` raises comes out of here, as does OverflowError if it answers a read
    with a value that does not fit. The guest then finds all ones in what was not answered, once
    `run` is called again. Raises OSError if KVM_RUN fails, and RuntimeError if what KVM says lies
    outside `run_area`.
    """

def install_kick_handler(signum: int) -> None:
    """Make `signum` the signal that `kick` sends, and give it a handler that does nothing.

    The handler is the process's, in C and without SA_RESTART. Call it once, before the first
    vCPU runs; the signal must not be blocked in the vCPUs' threads. Raises OSError.
    """

def kick(native_thread_id: int, run_area: Buffer) -> bool:
    """Make the `run` of another thread, or its next one, return -errno.EINTR without delay.

    `native_thread_id` is that thread's `threading.get_native_id()`; `run_area` its vCPU's. False
    if there is no such thread any more. Stays in force until `clear_kick`. Raises RuntimeError if
    `install_kick_handler` was not called.
    """

def clear_kick(run_area: Buffer) -> None:
    """Let the vCPU of `run_area` run again; called by its own thread after -errno.EINTR."""
