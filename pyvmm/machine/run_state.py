# SPDX-License-Identifier: Apache-2.0
"""The run state of a VM and its events, with QMP's names (`RunState` and events).

Other modules import this for their types only, so the descriptions cost nothing at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

RunState = Literal[
    "running", "paused", "finish-migrate", "postmigrate", "shutdown", "guest-panicked"
]
"""The state of a guest, as `status` of QMP's query-status."""

EventName = Literal[
    "BALLOON_CHANGE",
    "GUEST_PANICKED",
    "MIGRATION",
    "RESUME",
    "SHUTDOWN",
    "STOP",
    "X_TRACE_STEP",
]
"""The name of an event of QMP."""

EventSink = Callable[[EventName, Mapping[str, object]], None]
"""Takes an event's name and data; `EVENTS` describes them."""

EVENTS: Mapping[EventName, str] = {
    "BALLOON_CHANGE": """The guest's driver has reported a new size of the balloon.

    Clients get at most one a second, and always the last one.

    Data:
        actual: RAM in bytes that the balloon leaves the guest
    In QEMU:
        the same
    """,
    "GUEST_PANICKED": """The guest's kernel has panicked; SHUTDOWN follows.

    Data:
        action: `poweroff`: the VM ends
    In QEMU:
        the same, with further actions and members
    """,
    "MIGRATION": """The status of an outgoing migration has changed.

    Data:
        status: as in `query-migrate`
    In QEMU:
        the same, once the capability `events` is enabled
    """,
    "RESUME": """The guest's vCPUs run again: after `cont`, a snapshot, or a failed migration.

    In QEMU:
        the same
    """,
    "SHUTDOWN": """The VM ends; the connection is closed after this event.

    Data:
        guest: whether the guest ended the VM
        reason: `guest-shutdown`, `guest-reset`, `guest-panic`, `host-error`, `host-qmp-quit`,
            `host-ui` (the terminal's escape) or `host-signal`
    In QEMU:
        the same, with further reasons
    """,
    "STOP": """The guest's vCPUs are paused: after `stop`, or for a snapshot or a switchover.

    In QEMU:
        the same
    """,
    "X_TRACE_STEP": """The guest is stopped at the event that `x-trace-step` has asked for.

    Data:
        seq: the number of the event in the stream
        kind: its kind
        device: the device that it belongs to; empty if there is none
        queue: the queue that it belongs to; empty if there is none
    In QEMU:
        no such event
    """,
}
"""Every event, described in the format of `pyvmm.qmp.command`."""
