# SPDX-License-Identifier: Apache-2.0
"""The commands of the control socket, as one table.

Names, arguments and return values are those of QEMU's QAPI schema (machine.json, run-state.json,
migration.json, qom.json and control.json under qapi/) if QEMU has the command, and errors are
worded as QEMU words them. Each handler's docstring names the differences.

A command that waits for the guest is a coroutine function; only its own client waits.
"""

from __future__ import annotations

from typing import Any

from pyvmm.qmp import counter_commands, qom, trace_commands, virtio_commands, vm_commands
from pyvmm.qmp import guest_request_commands as guest_requests
from pyvmm.qmp import migration_commands as migration
from pyvmm.qmp import snapshot_commands as snapshots
from pyvmm.qmp.command import Client, Command
from pyvmm.qmp.messages import QmpError, Request
from pyvmm.qmp.vm_control import VmControl


def execute(vm: VmControl, request: Request, client: Client | None = None) -> Any:
    """Run `request` of `client` on `vm`; return its value or an awaitable of it.

    Without a client, the request is the only one of its client. Raises `QmpError`.
    """
    command = COMMANDS.get(request.command)
    if command is None:
        raise QmpError(f"The command {request.command} has not been found", "CommandNotFound")
    return command.execute(vm, request.arguments, client or Client())


def query_commands(vm: VmControl) -> list[dict[str, str]]:
    """Return the names of all commands.

    Returns:
        [].name: the name of a command
    In QEMU:
        the same
    """
    return [{"name": name} for name in COMMANDS]


COMMANDS = {
    **vm_commands.COMMANDS,
    "query-commands": Command(query_commands),
    **counter_commands.COMMANDS,
    **virtio_commands.COMMANDS,
    **guest_requests.COMMANDS,
    **snapshots.COMMANDS,
    **migration.COMMANDS,
    **qom.COMMANDS,
    **trace_commands.COMMANDS,
}
