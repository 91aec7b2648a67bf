# SPDX-License-Identifier: Apache-2.0
"""Commands that watch the guest's events and read its memory; all are pyvmm's own.

The client that starts to watch is the only one that can read the events, and its watch ends with
its connection.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyvmm.qmp.command import Command, Parameter
from pyvmm.qmp.messages import QmpError
from pyvmm.trace.errors import WatchRefused
from pyvmm_native.memory import GuestAddressError

if TYPE_CHECKING:
    from pyvmm.machine.step import StepRequest
    from pyvmm.qmp.command import Client
    from pyvmm.qmp.vm_control import VmControl

MAX_TIMEOUT_S = 10
MAX_READ_BYTES = 1 << 20
MAX_KINDS = 64
MIN_CELL_PAGES, MAX_CELL_PAGES = 512, 1 << 22


def trace_start(vm: VmControl, client: Client) -> dict[str, Any]:
    """Start to watch the events of the guest.

    One client watches at a time, and only it may read the events. The watch ends with
    `x-trace-stop` or when the client disconnects. A recording continues beside it. Events are kept
    from this command on; what happened before is not repeated.

    Returns:
        format: the version of the format of chunks, 1: that of [recordings](events.md)
    Errors:
        GenericError: another client watches, or the events of this guest cannot be watched
    In QEMU:
        no such command; `trace-event-set-state` enables events for a log of the process
    """
    # 1 module, for events that are watched.
    from pyvmm.trace.recording_format import VERSION

    with _refusals():
        vm.event_watch.start(client)
    if not client.watches:
        client.gone.add(lambda: vm.event_watch.leave(client))
        client.watches = True
    return {"format": VERSION}


async def trace_read(vm: VmControl, client: Client, timeout: float = 1.0) -> dict[str, Any]:
    """Wait for events, and return the next chunk of them.

    At most 8 MiB of chunks wait for the client; beyond that, events are dropped and counted. The
    guest does not wait for the client.

    Arguments:
        timeout: the longest wait for an event
    Returns:
        chunk: one chunk of a [recording](events.md), its header and its body, in base64; null if
            there is no event
        events: the number of events in it
        dropped: the number of events that were lost since the last read because the client was too
            slow; those that the chunk itself counts were lost in addition
    Errors:
        GenericError: this client does not watch the events
    In QEMU:
        no such command
    """
    with _refusals():
        found = await vm.event_watch.read(client, timeout)
    chunk = None if found.chunk is None else base64.b64encode(found.chunk).decode()
    return {"chunk": chunk, "events": found.events, "dropped": found.dropped}


def trace_stop(vm: VmControl, client: Client) -> dict[str, Any]:
    """End the watch of this client.

    Errors:
        GenericError: this client does not watch the events
    In QEMU:
        no such command
    """
    with _refusals():
        vm.event_watch.stop(client)
    return {}


def trace_step(
    vm: VmControl,
    client: Client,
    kinds: list[str],
    device: str = "",
    queue: str = "",
    resume: bool = False,
    pause: bool = False,
) -> dict[str, Any]:
    """Stop the guest at the next event of some kinds, once; only for the client that watches.

    A vCPU that causes the event, by an access to a register, completes the access and executes no
    further instruction. For an event of the event loop, such as `chain`, the device completes its
    call: at most 16 buffers, or 64 of a stream or of the balloon's valid requests. Then the status
    is `paused`, the events STOP and X_TRACE_STEP are sent, and queues are not served until `cont`.
    Notifications are register accesses while this is armed: the kinds `register_write`, with a
    device and a queue, and `notified` stop the guest at one.

    The client must call `x-trace-read` at least every 10 seconds. If it does not, or its watch
    ends, the guest runs again, unless another client has sent `stop`.

    Arguments:
        kinds: the [kinds](events.md) of events, or kinds of a device's own that it has emitted
            already; with an empty list nothing is armed any more
        device: only events of this device
        queue: only events of this queue, or accesses to the register that notifies it
        resume: with an empty list of kinds: resume the guest if it is stopped at an event, unless
            another client has sent `stop`
        pause: with an empty list of kinds: pause the guest at once if it runs; what is armed stays
            so
    Errors:
        GenericError: this client does not watch the events; or no event has such a kind; or no
            device has such a queue; or a vCPU does not stop
        DeviceNotFound: the guest has no such device
    In QEMU:
        no such command
    """
    with _refusals():
        vm.event_watch.check(client)
    if kinds:
        vm.step.arm(_step_request(vm, kinds, device, queue))
    elif pause:
        vm.step.pause()
    elif resume:
        vm.step.end()
    else:
        vm.step.disarm()
    return {}


def _step_request(vm: VmControl, kinds: list[str], device: str, queue: str) -> StepRequest:
    # 2 modules, for guests that are stopped at events.
    from pyvmm.machine.step import StepRequest

    if unknown := sorted({*kinds} - vm.step.kinds()):
        names = ", ".join(f"'{kind}'" for kind in unknown)
        raise QmpError(f"No event has the kind {names}")
    queues = vm.traced_devices()
    if device and device not in queues:
        raise QmpError(f"Device '{device}' not found", "DeviceNotFound")
    if not queue:
        return StepRequest(frozenset(kinds), device)
    if not device:
        if not any(queue in each for each in queues.values()):
            raise QmpError(f"No device has a queue '{queue}'")
        return StepRequest(frozenset(kinds), queue=queue)
    if queue not in queues[device]:
        raise QmpError(f"Device '{device}' has no queue '{queue}'")
    register = f"queue{queues[device].index(queue)}"
    return StepRequest(frozenset(kinds), device, queue, register)


def read_memory(vm: VmControl, gpa: int, size: int) -> dict[str, Any]:
    """Return a part of the guest's RAM as it is at the moment, while the guest may be writing it.

    Arguments:
        gpa: the guest-physical address
        size: the number of bytes
    Returns:
        data: the bytes, in base64
    Errors:
        GenericError: a byte is outside RAM
    In QEMU:
        `pmemsave` writes them to a file; the monitor's `xp` prints them
    """
    try:
        data = vm.ram.memory.read(gpa, size)
    except GuestAddressError:
        raise QmpError(f"{size} bytes at {gpa:#x} are not all in the guest's RAM") from None
    return {"data": base64.b64encode(data).decode()}


async def query_page_states(vm: VmControl, pages_per_cell: int = 512) -> dict[str, Any]:
    """Count the guest's pages by state, for a map of its memory.

    Each row of `cells` has the guest-physical address of a cell, 8 bytes, then five counts of
    pages of 4 KiB, 4 bytes each, little-endian: resident pages; pages in the balloon; pages
    that the guest has reported as unused, in its last answer to `query-unused-pages` or
    `query-free-page-hints`, or to a snapshot or migration; untouched ones, which are neither
    resident nor in the balloon, as the guest has never used them or the host has discarded
    them; and parts of huge pages of the host, if its kernel tells (Linux 6.7). A page may count
    more than once.

    Pages in the balloon are noted from the first of these commands on, or from the start with
    `--hugepages hugetlbfs`; `ballooned` counts all. The host's kernel looks at every page, some ten
    milliseconds for 8 GiB, while the guest and other clients are served.

    Arguments:
        pages-per-cell: the size of a cell
    Returns:
        cells: the rows of all cells that have RAM, in base64
        ballooned: the pages in the balloon, as its driver counts
        rss: memory of the process that is resident, in bytes
    Errors:
        GenericError: the size is no power of two, or out of its range
    In QEMU:
        no such command
    """
    # 1 module, for views of memory.
    from pyvmm.memory.rss import resident_bytes

    found = await vm.page_states(pages_per_cell)
    return {
        "cells": base64.b64encode(found.rows).decode(),
        "ballooned": found.ballooned_pages,
        "rss": resident_bytes(),
    }


def query_pci_registers(vm: VmControl, device: str) -> dict[str, Any]:
    """Return the registers of a PCI device as they are at the moment.

    Nothing is changed: what a read by the guest would clear stays as it is, and there is no event.

    Arguments:
        device: the name of the device, such as `balloon`, `rng` or `console`
    Returns:
        config: the 256 bytes of configuration space, in base64
        bars[].index: the number of a BAR
        bars[].address: the guest-physical address that the guest has programmed
        bars[].size: its size in bytes
        bars[].decoded: whether the device responds there
        capabilities[].offset: where a capability is in configuration space
        capabilities[].id: its id, 9 for a structure of virtio (VIRTIO 1.2, 4.1.4), 17 for MSI-X
        capabilities[].name: the id in words
        capabilities[].fields.*: its fields
        msix[].vector: the number of an MSI-X vector
        msix[].address: the address of its message
        msix[].data: the data of its message
        msix[].masked: whether the guest has masked it
        msix[].pending: whether it is to be sent once it is not masked
        registers[].table: the name of a register table, such as `balloon.common`, as in events
        registers[].register: the name of a register
        registers[].offset: its offset in the table
        registers[].size: its size in bytes
        registers[].value: its value
        features.offered: the feature bits that the device offers
        features.accepted: those that the driver has accepted
        features.offered-names: their names
        features.accepted-names: their names
        properties.*: further properties that do not change, such as the balloon's `dialect`
        queues[].index: the number of a queue
        queues[].name: its name
        queues[].size: the number of entries
        queues[].enable: whether the driver has enabled it
        queues[].live: whether the device uses it
        queues[].desc: the guest-physical address of the descriptor table
        queues[].driver: that of the available ring
        queues[].device: that of the used ring
        queues[].next-avail: the available index of the buffer that the device takes next
        queues[].used-idx: the used index at which it returns the next buffer
        queues[].features: features in effect for it: `EVENT_IDX`, `INDIRECT_DESC`
    Errors:
        DeviceNotFound: the guest has no such device
    In QEMU:
        no such command; `x-query-virtio-status` and `query-pci` have some of it
    """
    try:
        return vm.pci_registers(device)
    except KeyError:
        raise QmpError(f"Device '{device}' not found", "DeviceNotFound") from None


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except WatchRefused as error:
        raise QmpError(str(error)) from None


_TIMEOUT = Parameter(
    "timeout",
    float,
    required=False,
    expects=f"seconds, from 0 to {MAX_TIMEOUT_S}",
    accepts=lambda value: 0 <= value <= MAX_TIMEOUT_S,
)
_KINDS = Parameter(
    "kinds",
    list,
    expects=f"at most {MAX_KINDS} names",
    accepts=lambda kinds: len(kinds) <= MAX_KINDS and all(isinstance(each, str) for each in kinds),
)
_CELL = Parameter(
    "pages-per-cell",
    int,
    required=False,
    expects=f"a power of two, from {MIN_CELL_PAGES} to {MAX_CELL_PAGES}",
    accepts=lambda pages: MIN_CELL_PAGES <= pages <= MAX_CELL_PAGES and pages.bit_count() == 1,
)
_GPA = Parameter(
    "gpa",
    int,
    expects="an address, from 0 to 2^64 - 1",
    accepts=lambda value: 0 <= value < 1 << 64,
)
_SIZE = Parameter(
    "size",
    int,
    expects=f"bytes, from 1 to {MAX_READ_BYTES}",
    accepts=lambda value: 1 <= value <= MAX_READ_BYTES,
)

COMMANDS = {
    "x-trace-start": Command(trace_start, of_client=True),
    "x-trace-read": Command(trace_read, (_TIMEOUT,), of_client=True),
    "x-trace-stop": Command(trace_stop, of_client=True),
    "x-trace-step": Command(
        trace_step,
        (
            _KINDS,
            Parameter("device", str, required=False),
            Parameter("queue", str, required=False),
            Parameter("resume", bool, required=False),
            Parameter("pause", bool, required=False),
        ),
        of_client=True,
    ),
    "x-read-memory": Command(read_memory, (_GPA, _SIZE)),
    "x-query-page-states": Command(query_page_states, (_CELL,)),
    "x-query-pci-registers": Command(query_pci_registers, (Parameter("device", str),)),
}
