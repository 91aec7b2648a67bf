# SPDX-License-Identifier: Apache-2.0
"""The values of the options for a guest's command and files, checked before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pyvmm.boot.agent_plan import ModulesFrom, plan_agent
from pyvmm.boot.overlay import PutPath, put_archive
from pyvmm.cli.command_options import HOME
from pyvmm.cli.command_status import check_status_file
from pyvmm.cli.console.kernel_log import close_log, open_log
from pyvmm.cli.errors import CommandError
from pyvmm.guest_agent.client import DEFAULT_ENVIRONMENT, initial_ports


class GetPath(NamedTuple):
    """A file or directory of the guest, and where to put it on the host."""

    guest: str
    host: Path


class CommandOptions(NamedTuple):
    """A command, its environment and directory, and what surrounds it."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    log: Path | None
    """File for the kernel's log; `-` is standard error output."""
    timeout_s: float | None
    status_file: Path | None
    get: tuple[GetPath, ...]


class GuestAdditions(NamedTuple):
    """Additions to a guest: kernel parameters, and archives for its initramfs.

    `command` is what to run in it, if anything, and `ports` are those that it needs. `host_paths`
    are the files of the host that are read or written. `overlay` is empty once it has been loaded.
    """

    append: str
    overlay: bytearray
    ports: tuple[str, ...]
    command: CommandOptions | None
    host_paths: tuple[Path, ...]


def read_additions(
    kernel: Path,
    initrd: Path | None,
    ram_bytes: int,
    command: Sequence[str],
    options: Mapping[str, Any],
) -> GuestAdditions:
    """Read what `options` add to the guest of `kernel` with `ram_bytes`. Raises `UserError`."""
    put = parse_put(options["put_values"])
    get = parse_get(options["get_values"])
    modules = parse_modules(options["modules_value"])
    plan = plan_agent(kernel, initrd, modules, command=bool(command))
    append, archive = ("", b"") if plan is None else plan
    request = None
    if command:
        # Reports files that cannot be written before the lab starts. The reader of a pipe would see
        # its end here.
        if (log := options["log"]) is not None and not log.is_fifo():
            close_log(open_log(log))
        if (status_file := options["status_file"]) is not None:
            check_status_file(status_file)
        append += "" if options["log"] else " quiet"
        request = CommandOptions(
            tuple(command),
            environment(options["variables"], DEFAULT_ENVIRONMENT),
            options["directory"],
            options["log"],
            options["timeout_s"],
            options["status_file"],
            get,
        )
    hosts = (*(path.host for path in put), *(path.host for path in get))
    ports = initial_ports() if command else ()
    overlay = bytearray(archive)
    overlay += put_archive(put, ram_bytes)
    return GuestAdditions(append, overlay, ports, request, hosts)


def parse_put(values: Sequence[str]) -> tuple[PutPath, ...]:
    """Return the paths of --put."""
    return tuple(_parse_put(value) for value in values)


def _parse_put(value: str) -> PutPath:
    path, separator, where = value.rpartition("::")
    if not separator:
        path, where = value, ""
    host = Path(path)
    name = host.name or host.resolve().name
    if not where or where.endswith("/"):
        where = str(PurePosixPath(where or HOME) / name)
    return PutPath(host, str(PurePosixPath(HOME) / where))


def parse_get(values: Sequence[str]) -> tuple[GetPath, ...]:
    """Return the paths of --get. Raises `CommandError` for one that would replace something."""
    found = tuple(_parse_get(value) for value in values)
    for path in found:
        if os.path.lexists(path.host):
            raise CommandError(f"{path.host} exists", "name another path in --get")
        if not path.host.parent.is_dir():
            raise CommandError(
                f"there is no directory {path.host.parent}", "name another path in --get"
            )
    return found


def _parse_get(value: str) -> GetPath:
    where, separator, path = value.rpartition("::")
    name = PurePosixPath(where).name
    if not separator or not path or not name:
        raise CommandError(f"{value!r} is no path of --get", "give --get WHERE::PATH")
    host = Path(path)
    return GetPath(str(PurePosixPath(HOME) / where), host / name if host.is_dir() else host)


def parse_modules(value: str) -> ModulesFrom:
    """Return where modules come from."""
    if value == "auto":
        return "auto"
    return "no" if value == "no" else Path(value)


def environment(variables: Sequence[str], base: Mapping[str, str]) -> dict[str, str]:
    """Return `base` with the variables of --env. Raises `CommandError`."""
    result = dict(base)
    for variable in variables:
        name, given, value = variable.partition("=")
        if not name:
            raise CommandError(f"{variable!r} has no name", "give --env NAME=VALUE")
        if given:
            result[name] = value
        elif name in os.environ:
            result[name] = os.environ[name]
        else:
            raise CommandError(f"there is no variable {name} here", f"give --env {name}=VALUE")
    return result
