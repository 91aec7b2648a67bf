# SPDX-License-Identifier: Apache-2.0
"""The commands of the control socket, as one table.

Names, arguments and return values are those of QEMU's QAPI schema (machine.json, run-state.json,
migration.json, qom.json and control.json under qapi/) if QEMU has the command, and errors are
worded as QEMU words them. One command differs on purpose: a balloon target larger than the guest's
RAM is an error here, while QEMU silently uses all of RAM instead.

A command that waits for the guest is a coroutine function; only its own client waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyvmm.qmp import guest_request_commands as guest_requests
from pyvmm.qmp import messages as qmp
from pyvmm.qmp import migration_commands as migration
from pyvmm.qmp import qom
from pyvmm.qmp import snapshot_commands as snapshots
from pyvmm.qmp.messages import QmpError, Request
from pyvmm.qmp.vm_control import VmControl

_QMP_TYPE_NAMES = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a command."""

    name: str
    type: type
    """`float` accepts integers too; `object` accepts anything."""
    required: bool = True

    def accepts(self, value: Any) -> bool:
        """Return whether `value` has the type of the parameter."""
        if self.type is float:
            return type(value) in (int, float)
        return self.type is object or type(value) is self.type  # a boolean is not an integer


@dataclass(frozen=True)
class Command:
    """A command: its function and its parameters.

    `run` is called with the VM and the arguments by name; it returns the command's value, or an
    awaitable of it.
    """

    run: Callable[..., Any]
    parameters: tuple[Parameter, ...] = ()


def execute(vm: VmControl, request: Request) -> Any:
    """Run `request` on `vm`; return its value or an awaitable of it. Raises `QmpError`."""
    command = COMMANDS.get(request.command)
    if command is None:
        raise QmpError(f"The command {request.command} has not been found", "CommandNotFound")
    _check_arguments(command, request.arguments)
    return command.run(vm, **request.arguments)


def _check_arguments(command: Command, arguments: dict[str, Any]) -> None:
    for parameter in command.parameters:
        if parameter.name not in arguments:
            if parameter.required:
                raise QmpError(f"Parameter '{parameter.name}' is missing")
        elif not parameter.accepts(arguments[parameter.name]):
            expected = _QMP_TYPE_NAMES[parameter.type]
            raise QmpError(f"Invalid parameter type for '{parameter.name}', expected: {expected}")
        elif parameter.type is str and not _is_os_string(arguments[parameter.name]):
            raise QmpError(f"Parameter '{parameter.name}' contains an invalid character")
    unexpected = arguments.keys() - {parameter.name for parameter in command.parameters}
    if unexpected:
        raise QmpError(f"Parameter '{min(unexpected)}' is unexpected")


def _is_os_string(text: str) -> bool:
    """Return whether `text` can be passed to the operating system, as a path for example."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # an unpaired surrogate
        return False


def _qmp_capabilities(vm: VmControl, enable: list[Any] | None = None) -> dict[str, Any]:
    if enable:
        raise QmpError(f"Parameter 'enable' does not accept value '{enable[0]}'")
    return {}


def _query_commands(vm: VmControl) -> list[dict[str, str]]:
    return [{"name": name} for name in COMMANDS]


def _query_version(vm: VmControl) -> dict[str, Any]:
    return qmp.version()


def _query_status(vm: VmControl) -> dict[str, Any]:
    return {"status": vm.status, "running": vm.status == "running"}


def _query_memory_size_summary(vm: VmControl) -> dict[str, int]:
    return {"base-memory": vm.ram_bytes}


def _stop(vm: VmControl) -> dict[str, Any]:
    if vm.status == "running":
        vm.pause()
    return {}


def _cont(vm: VmControl) -> dict[str, Any]:
    if vm.status in ("shutdown", "guest-panicked"):
        raise QmpError("Resetting the Virtual Machine is required")
    if vm.snapshots.active:
        raise QmpError("There is a snapshot in process, please wait")
    if vm.status == "finish-migrate":
        raise QmpError("The guest is stopped for the switchover of its migration")
    if vm.status == "postmigrate":
        raise QmpError("The guest has migrated and runs on the destination")
    if vm.status == "paused":
        vm.resume()
    return {}


def _quit(vm: VmControl) -> dict[str, Any]:
    vm.quit()
    return {}


def _balloon(vm: VmControl, value: int) -> dict[str, Any]:
    if value <= 0:
        raise QmpError("Parameter 'value' expects a size")
    if value > vm.ram_bytes:
        raise QmpError(
            f"Parameter 'value' expects a size of at most {vm.ram_bytes} bytes,"
            " the RAM of the guest"
        )
    vm.set_balloon_target(value)
    return {}


def _query_balloon(vm: VmControl) -> dict[str, int]:
    return {"actual": vm.balloon_actual_bytes}


_PATH = Parameter("path", str)
_PROPERTY = Parameter("property", str)
_TIMEOUT = Parameter("timeout", float, required=False)
_PAGES = (
    _TIMEOUT,
    Parameter("runs", int, required=False),
    Parameter("cells", int, required=False),
)
_SNAPSHOT = (
    _PATH,
    Parameter("keep-running", bool, required=False),
    Parameter("unused", bool, required=False),
    _TIMEOUT,
)
_MIGRATE = (
    Parameter("uri", str),
    Parameter("unused", bool, required=False),
    Parameter("insecure", bool, required=False),
    Parameter("tls-ca", str, required=False),
    Parameter("tls-cert", str, required=False),
    Parameter("tls-key", str, required=False),
)
_MIGRATE_PARAMETERS = (
    Parameter("max-bandwidth", int, required=False),
    Parameter("downtime-limit", int, required=False),
    Parameter("throttle-trigger-threshold", int, required=False),
    Parameter("cpu-throttle-initial", int, required=False),
    Parameter("cpu-throttle-increment", int, required=False),
    Parameter("max-cpu-throttle", int, required=False),
)

COMMANDS = {
    "qmp_capabilities": Command(_qmp_capabilities, (Parameter("enable", list, required=False),)),
    "query-commands": Command(_query_commands),
    "query-version": Command(_query_version),
    "query-status": Command(_query_status),
    "query-memory-size-summary": Command(_query_memory_size_summary),
    "stop": Command(_stop),
    "cont": Command(_cont),
    "quit": Command(_quit),
    "balloon": Command(_balloon, (Parameter("value", int),)),
    "query-balloon": Command(_query_balloon),
    "query-balloon-stats": Command(guest_requests.query_balloon_stats, (_TIMEOUT,)),
    "query-unused-pages": Command(guest_requests.query_unused_pages, _PAGES),
    "query-free-page-hints": Command(guest_requests.query_free_page_hints, _PAGES),
    "balloon-drop-caches": Command(guest_requests.drop_caches, (_TIMEOUT,)),
    "balloon-sync-filesystems": Command(guest_requests.sync_filesystems, (_TIMEOUT,)),
    "snapshot-to-file": Command(snapshots.snapshot_to_file, _SNAPSHOT),
    "query-snapshot": Command(snapshots.query_snapshot),
    "migrate": Command(migration.migrate, _MIGRATE),
    "migrate_cancel": Command(migration.migrate_cancel),
    "query-migrate": Command(migration.query_migrate),
    "migrate-set-parameters": Command(migration.migrate_set_parameters, _MIGRATE_PARAMETERS),
    "query-migrate-parameters": Command(migration.query_migrate_parameters),
    "migrate-set-capabilities": Command(
        migration.migrate_set_capabilities, (Parameter("capabilities", list),)
    ),
    "query-migrate-capabilities": Command(migration.query_migrate_capabilities),
    "qom-list": Command(qom.qom_list, (_PATH,)),
    "qom-get": Command(qom.qom_get, (_PATH, _PROPERTY)),
    "qom-set": Command(qom.qom_set, (_PATH, _PROPERTY, Parameter("value", object))),
}
