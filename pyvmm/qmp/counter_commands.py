# SPDX-License-Identifier: Apache-2.0
"""The command that reads the VM's counters, for `pyvmm ps` and `pyvmm top`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvmm.qmp.command import Command

if TYPE_CHECKING:
    from pyvmm.qmp.vm_control import VmControl


def x_query_counters(vm: VmControl) -> dict[str, Any]:
    """Return counts since the VM was created, without interrupting the guest.

    The difference of two answers, divided by the time between them, is a rate. After a migration or
    a restore, exits start at 0; requests and interrupts continue.

    Returns:
        rss: memory of the process that is resident now, in bytes; guest RAM is part of it
        exits.fast-path: exits for accesses to the serial port that KVM_RUN's loop has served
        exits.pio: exits for other accesses to ports
        exits.mmio: exits for accesses to registers in memory
        exits.interrupted: exits because of a signal
        exits.other: all other exits
        queues[].device: the name of the device of a virtqueue
        queues[].queue: the name of the virtqueue
        queues[].requests: buffers that the device has taken
        queues[].interrupts: used buffer notifications sent to the driver
    In QEMU:
        no such command; `query-stats` has KVM's own counters
    """
    counters = vm.counters
    return {
        "rss": counters.resident_bytes,
        "exits": dict(counters.exits),
        "queues": [queue._asdict() for queue in counters.queues],
    }


COMMANDS = {"x-query-counters": Command(x_query_counters)}
