# SPDX-License-Identifier: Apache-2.0
"""The threads of a running VM, the locks they share, and the calls each may make.

| thread | name | runs | may call |
| --- | --- | --- | --- |
| event loop | the owner's | asyncio: queues, timers, console input, QMP, VM control | everything, unless a docstring names another thread |
| vCPU | `vcpuN` | KVM_RUN; register accesses | device models, under the device lock; `VcpuGate`; `Listeners` of device events |
| throttle | `vcpu-throttle` | opens and shuts the gate of the vCPU threads | `VcpuGate` |
| migration | `migration` | connects; one side of a migration | dirty log, RAM, its socket; the rest through the event loop |
| stream sender | `stream-sender-N` | connects stream N of a migration, and sends pages on it | RAM, its socket |
| stream receiver | `stream-receiver-N` | receives the pages of stream N of a migration | RAM of a machine that has not run, its socket |
| snapshot | `snapshot` | copies pages, writes the file | dirty log, RAM, its file |
| userfaultfd loader | `userfaultfd-loader` | fetches the pages of a restored guest | RAM, its file; after a failure, kicks of vCPUs |
| end signals | `end-signals` | waits for signals that end the VM; limits the time of its end | wakes the event loop; ends the process |
| console writer | `console-writer` | writes the output of a console or port | its byte queue; the rest through the event loop |
| event taker | `event-taker` | takes events; writes a recording and queues them for a client | `EventBuffer.take`, the recording's file; the exit counters of vCPUs; wakes the event loop |
| output writer | `output-writer-N` | writes the output of a command in the guest to descriptor N | wakes the event loop |

| lock | protects | held | taken while holding | taken by |
| --- | --- | --- | --- | --- |
| device lock, `Machine.lock` | device models, interrupt routing | for one register access or one bounded piece of queue work; never while waiting for a vCPU or the console | no lock | event loop, vCPU |
| `VcpuGate`'s condition | the state of the gate | for a few instructions | device lock | event loop, vCPU, throttle |
| `SourceMigration`'s lock | the choice between the commit and a cancellation | for a few instructions | no lock | event loop, migration |
| `StreamSenders`'s lock | blocks to be sent, and the streams | for a few instructions, or to break connections | no lock | event loop, migration, stream sender |
| `StreamReceivers`'s condition | the streams, and which of them has failed | for a few instructions, or to break connections | no lock | event loop, migration, stream receiver |
| `LazyPages`'s mutex | the pages still to be loaded | while one block is read and checked | device lock | event loop, userfaultfd loader |
| `ConsoleWriter`'s condition | waiting for output and for room | for a few instructions | device lock | event loop, vCPU, console writer |
| `SerialFastPath`'s mutex | two UART registers and the console's byte queue | for one character; taken last | device lock | event loop, vCPU, console writer |
| `EventTaker`'s lock | the sinks of the events | for a few instructions | no lock | event loop, event taker |
| `EventBuffer`'s mutex | the events that wait for the taker | for the copy of a few bytes; taken last | device lock, `EventTaker`'s lock | event loop, vCPU, migration, event taker |
| `ChunkQueue`'s lock | the events that wait for a client | for a few instructions | no lock | event loop, event taker |

A class that is used by several threads has a line `Threads:` in its docstring that refers to these
rows. `Owner` asserts the most important rule; `python -O` drops the check.
"""  # noqa: E501 (a table)

from __future__ import annotations

import threading


class Owner:
    """The thread that owns an object: the one that created it, or the last to adopt it."""

    def __init__(self) -> None:
        self._ident = threading.get_ident()

    def adopt(self) -> None:
        """Make the calling thread the owner."""
        self._ident = threading.get_ident()

    def is_current(self) -> bool:
        """Return whether the calling thread is the owner."""
        return threading.get_ident() == self._ident
