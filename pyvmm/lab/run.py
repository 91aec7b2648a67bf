# SPDX-License-Identifier: Apache-2.0
"""Run a command in the lab."""

from __future__ import annotations

import compileall
import os
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pyvmm.errors import UserError
from pyvmm.lab.preload import describe_python
from pyvmm.lab.session import ForwardedListener, LabSession
from pyvmm.lab.start import start
from pyvmm.sockets.lab_paths import (
    IN_LAB_VARIABLE,
    INCOMING_SOCKET,
    incoming_variable,
    inner_sockets,
    sockets_variable,
)
from pyvmm.sockets.unix import UnixListener

if TYPE_CHECKING:
    from pyvmm.sockets.addresses import Address
    from pyvmm.sockets.tls import Security

DEFAULT_CPUS = 1
"""With more, QEMU 7.2 corrupts a lab in which guests of several vCPUs run (DECISIONS.md)."""
MIN_MEMORY_MIB = 4096
_OUR_PACKAGES = ("pykvm", "devices", "pyvmm", "pyvmm_native", "guest_images")
_OWN_VARIABLES = {IN_LAB_VARIABLE: "1", "TMPDIR": "/dev/shm"}
"""Temporary files are in the lab's memory: outside's are reached by name, even when they are open,
and those have none any more.
"""


def run_in_lab(
    argv: Sequence[str],
    *,
    memory_mib: int = MIN_MEMORY_MIB,
    cpus: int = DEFAULT_CPUS,
    sockets: Sequence[Path] = (),
    incoming: Address | None = None,
    security: Security | None = None,
    timeout_s: float | None = None,
) -> int:
    """Run `argv` in the lab and return its exit status (128 + N after signal N).

    `memory_mib` is the lab's RAM, `cpus` its processors. Each of `sockets` is a path this process
    listens on while the command runs; the command, inside, listens on
    `pyvmm.sockets.lab_paths.listening_path` of the same path. At `incoming` a migration is waited
    for, on behalf of the command's `MigrationListener` of the same address; `security` is what that
    one is given, so that what it would refuse is refused before anything starts. A command that
    takes longer than `timeout_s` is ended with status 124. Main thread only. UserError when
    something is missing or cannot be listened on, LabError when the lab breaks.
    """
    paths = [Path(os.path.abspath(path)) for path in sockets]
    inner = inner_sockets(paths)
    env = {**os.environ, **_OWN_VARIABLES, **sockets_variable(inner)}
    _compile_our_packages()
    with ExitStack() as stack:
        doors = []
        for outside, inside in inner.items():
            listener = UnixListener(outside)
            doors.append(ForwardedListener(listener.socket, inside, listener.remove))
            stack.callback(listener.remove)
        if incoming is not None:
            door, variable = _incoming_listener(incoming, security)
            env.update(variable)
            doors.append(door)
            stack.callback(door.close)
        lab = start(memory_mib=memory_mib, cpus=cpus)
        stack.callback(lab.end)
        python = describe_python([str(path.parent) for path in _package_directories()])
        return LabSession(lab, doors, program_directories(), python, timeout_s).run(argv, env)


def _incoming_listener(
    incoming: Address, security: Security | None
) -> tuple[ForwardedListener, dict[str, str]]:
    from pyvmm.sockets.listener import MigrationListener
    from pyvmm.sockets.tls import Security

    listener = MigrationListener(incoming, security or Security())
    door = ForwardedListener(listener.socket, INCOMING_SOCKET, listener.close)
    return door, incoming_variable(str(incoming), str(listener.address))


def run_here(argv: Sequence[str], *, timeout_s: float | None = None) -> NoReturn:
    """Become `argv` on this machine. UserError when it cannot be started."""
    if timeout_s is not None:
        argv = ["timeout", f"{timeout_s:g}", *argv]
    try:
        os.execvp(argv[0], list(argv))
    except OSError as error:
        raise UserError(f"cannot run {argv[0]}: {error.strerror}", "check the command") from error


def _package_directories() -> list[Path]:
    specs = [find_spec(name) for name in _OUR_PACKAGES]
    return [Path(s.origin).resolve().parent for s in specs if s is not None and s.origin]


def _compile_our_packages() -> None:
    """Leave bytecode beside our modules: compiling it in the lab takes seconds on every start."""
    for directory in _package_directories():
        if os.access(directory, os.W_OK):
            compileall.compile_dir(directory, quiet=2)


def program_directories() -> list[str]:
    """Directories the lab may cache because commands in it only read them."""
    candidates = [
        Path(p) for p in ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/usr/share")
    ]
    if Path(sys.base_prefix) != Path("/usr"):
        candidates.append(Path(sys.base_prefix))
    candidates.append(Path(sysconfig.get_path("purelib")))
    candidates += _package_directories()
    resolved = dict.fromkeys(path.resolve() for path in candidates if path.is_dir())
    kept: list[Path] = []
    for path in sorted(resolved):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return [str(path) for path in kept]
