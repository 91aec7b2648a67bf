# SPDX-License-Identifier: Apache-2.0
"""The commands of the control socket, as one table.

Names, arguments and answers are those of QEMU's QAPI schema (machine.json, run-state.json,
migration.json, qom.json and control.json under qapi/) where QEMU has the command, and errors are
worded as QEMU words them. One semantic differs on purpose: a balloon target larger than the guest's
RAM is an error here, and QEMU silently takes all of RAM instead.

A command that has to wait for the guest is a coroutine function; its client waits, others do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyvmm.qmp import guest_request_commands as guest_questions
from pyvmm.qmp import messages as qmp
from pyvmm.qmp import migration_commands as migrate_commands
from pyvmm.qmp import qom
from pyvmm.qmp import snapshot_commands as snapshots
from pyvmm.qmp.messages import QmpError, Request
from pyvmm.qmp.vm_control import MachineControl

_QMP_TYPE_NAMES = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
}


@dataclass(frozen=True)
class Parameter:
    """One argument of a command."""

    name: str
    type: type
    """`float` takes integers too; `object` takes anything."""
    required: bool = True

    def takes(self, value: Any) -> bool:
        if self.type is float:
            return type(value) in (int, float)
        return self.type is object or type(value) is self.type  # true is no integer


@dataclass(frozen=True)
class Command:
    """What a command does to the machine, and the arguments it takes (by name).

    `run` returns the command's value, or an awaitable of it.
    """

    run: Callable[..., Any]
    parameters: tuple[Parameter, ...] = ()


def execute(machine: MachineControl, request: Request) -> Any:
    """Run `request` on `machine`; returns its value or an awaitable of it. Raises `QmpError`."""
    command = COMMANDS.get(request.command)
    if command is None:
        raise QmpError(f"The command {request.command} has not been found", "CommandNotFound")
    _check_arguments(command, request.arguments)
    return command.run(machine, **request.arguments)


def _check_arguments(command: Command, arguments: dict[str, Any]) -> None:
    for parameter in command.parameters:
        if parameter.name not in arguments:
            if parameter.required:
                raise QmpError(f"Parameter '{parameter.name}' is missing")
        elif not parameter.takes(arguments[parameter.name]):
            expected = _QMP_TYPE_NAMES[parameter.type]
            raise QmpError(f"Invalid parameter type for '{parameter.name}', expected: {expected}")
    unexpected = arguments.keys() - {parameter.name for parameter in command.parameters}
    if unexpected:
        raise QmpError(f"Parameter '{min(unexpected)}' is unexpected")


def _qmp_capabilities(machine: MachineControl, enable: list[Any] | None = None) -> dict[str, Any]:
    if enable:
        raise QmpError(f"Parameter 'enable' does not accept value '{enable[0]}'")
    return {}


def _query_commands(machine: MachineControl) -> list[dict[str, str]]:
    return [{"name": name} for name in COMMANDS]


def _query_version(machine: MachineControl) -> dict[str, Any]:
    return qmp.version()


def _query_status(machine: MachineControl) -> dict[str, Any]:
    return {"status": machine.status, "running": machine.status == "running"}


def _query_memory_size_summary(machine: MachineControl) -> dict[str, int]:
    return {"base-memory": machine.ram_bytes}


def _stop(machine: MachineControl) -> dict[str, Any]:
    if machine.status == "running":
        machine.pause()
    return {}


def _cont(machine: MachineControl) -> dict[str, Any]:
    if machine.status in ("shutdown", "guest-panicked"):
        raise QmpError("Resetting the Virtual Machine is required")
    if machine.snapshots.active:
        raise QmpError("There is a snapshot in process, please wait")
    if machine.status == "finish-migrate":
        raise QmpError("The guest stands still while it is handed over")
    if machine.status == "postmigrate":
        raise QmpError("The guest has moved and runs elsewhere")
    if machine.status == "paused":
        machine.resume()
    return {}


def _quit(machine: MachineControl) -> dict[str, Any]:
    machine.quit()
    return {}


def _balloon(machine: MachineControl, value: int) -> dict[str, Any]:
    if value <= 0:
        raise QmpError("Parameter 'value' expects a size")
    if value > machine.ram_bytes:
        raise QmpError(
            f"Parameter 'value' expects a size of at most {machine.ram_bytes} bytes,"
            " the RAM of the guest"
        )
    machine.set_balloon_target(value)
    return {}


def _query_balloon(machine: MachineControl) -> dict[str, int]:
    return {"actual": machine.balloon_actual_bytes}


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
    "query-balloon-stats": Command(qom.query_balloon_stats, (_TIMEOUT,)),
    "query-unused-pages": Command(guest_questions.query_unused_pages, _PAGES),
    "query-free-page-hints": Command(guest_questions.query_free_page_hints, _PAGES),
    "balloon-drop-caches": Command(guest_questions.drop_caches, (_TIMEOUT,)),
    "balloon-sync-filesystems": Command(guest_questions.sync_filesystems, (_TIMEOUT,)),
    "snapshot-to-file": Command(snapshots.snapshot_to_file, _SNAPSHOT),
    "query-snapshot": Command(snapshots.query_snapshot),
    "migrate": Command(migrate_commands.migrate, _MIGRATE),
    "migrate_cancel": Command(migrate_commands.migrate_cancel),
    "query-migrate": Command(migrate_commands.query_migrate),
    "migrate-set-parameters": Command(migrate_commands.migrate_set_parameters, _MIGRATE_PARAMETERS),
    "query-migrate-parameters": Command(migrate_commands.query_migrate_parameters),
    "migrate-set-capabilities": Command(
        migrate_commands.migrate_set_capabilities, (Parameter("capabilities", list),)
    ),
    "query-migrate-capabilities": Command(migrate_commands.query_migrate_capabilities),
    "qom-list": Command(qom.qom_list, (_PATH,)),
    "qom-get": Command(qom.qom_get, (_PATH, _PROPERTY)),
    "qom-set": Command(qom.qom_set, (_PATH, _PROPERTY, Parameter("value", object))),
}
