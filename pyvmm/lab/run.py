# SPDX-License-Identifier: Apache-2.0
"""Run a command in the lab, or in this process's place on the host.

`run_in_lab` listens on the host on behalf of the command's sockets, starts the lab and runs one
`LabSession`.
"""

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

from devices.listeners import Listeners
from pyvmm.errors import UserError
from pyvmm.lab.errors import NotSharedWithLab
from pyvmm.lab.forwarding import ForwardedListener
from pyvmm.lab.preload import describe_python
from pyvmm.lab.processors import DEFAULT_CPUS
from pyvmm.lab.session import LabSession
from pyvmm.lab.signals import signal_pipe
from pyvmm.lab.start import StartInterrupted, start
from pyvmm.sockets.lab_paths import (
    GUEST_SOCKET,
    IN_LAB_VARIABLE,
    INCOMING_SOCKET,
    guest_variable,
    incoming_variable,
    inner_sockets,
    lab_directory,
    sockets_variable,
)
from pyvmm.sockets.unix import UnixListener

if TYPE_CHECKING:
    from pyvmm.runtime_directory.announcement import ListeningSocket
    from pyvmm.sockets.addresses import Address
    from pyvmm.sockets.tls import Security

MIN_MEMORY_MIB = 4096
_OUR_PACKAGES = ("pykvm", "devices", "pyvmm", "pyvmm_native", "guest_images")
_OWN_VARIABLES = {IN_LAB_VARIABLE: "1", "TMPDIR": "/dev/shm"}
"""Temporary files are in the lab's memory, since 9p reaches open files by name and so loses a file
that is unlinked while it is open.
"""


def run_in_lab(
    argv: Sequence[str],
    *,
    memory_mib: int = MIN_MEMORY_MIB,
    cpus: int = DEFAULT_CPUS,
    sockets: Sequence[Path] = (),
    announced: ListeningSocket | None = None,
    incoming: Address | None = None,
    security: Security | None = None,
    timeout_s: float | None = None,
    output_timeout_s: float | None = None,
) -> int:
    """Run `argv` in the lab and return its exit status (128 + N after signal N).

    `memory_mib` is the lab's RAM, `cpus` its processors. This process listens at each path in
    `sockets` while the command runs; the command, in the lab, listens at
    `pyvmm.sockets.lab_paths.listening_path` of the same path. `announced` is the control socket of
    a guest that the command runs, and which listens already; the command listens at
    `pyvmm.sockets.lab_paths.guest_socket`. `incoming` is the address of an
    incoming migration, for which the command has a `MigrationListener` with the same address;
    `security` is that listener's, checked here before the lab starts. A command that takes longer
    than `timeout_s` is ended with status 124. Output that is left when the command has ended, and
    is not read for `output_timeout_s`, is dropped, with status 1; None waits without a limit. Main
    thread only. Raises UserError if a part is missing, or an address or the working directory
    cannot be used, LabError if the lab fails.
    """
    check_shared(_working_directory(), *_package_directories())
    requested = {Path(os.path.abspath(path)): path for path in sockets}
    inner = inner_sockets(list(requested))
    env = {**os.environ, **_OWN_VARIABLES, **sockets_variable(inner)}
    env.update(guest_variable(announced is not None))
    _compile_our_packages()
    with ExitStack() as stack:
        releasing: Listeners[[]] = Listeners()
        # Before anything that must be removed.
        signals = stack.enter_context(signal_pipe(releasing))
        listeners = []
        for path, lab_path in inner.items():
            listener = UnixListener(path, shown_as=requested[path])
            listeners.append(ForwardedListener(listener.socket, lab_path, listener.remove))
            stack.callback(listener.remove)
            releasing.add(listener.remove)
        if announced is not None:
            releasing.add(announced.remove)
            listeners.append(ForwardedListener(announced.socket, GUEST_SOCKET, announced.remove))
        if incoming is not None:
            forwarded, variable = _incoming_listeners(incoming, security)
            env.update(variable)
            listeners += forwarded
            stack.callback(forwarded[0].close)
            releasing.add(forwarded[0].close)
        try:
            lab = start(memory_mib=memory_mib, cpus=cpus, signals=signals)
        except StartInterrupted as interrupted:
            return 128 + interrupted.number
        stack.callback(lab.end)
        python = describe_python([str(path.parent) for path in _package_directories()])
        session = LabSession(
            lab, listeners, program_directories(), python, releasing, timeout_s, output_timeout_s
        )
        return session.run(argv, env, signals)


def check_shared(*paths: Path) -> None:
    """Raise `NotSharedWithLab` unless the lab reaches the host's files at all of `paths`."""
    for path in paths:
        if (own := lab_directory(path)) is not None:
            raise NotSharedWithLab(f"the lab does not share {own} with the host, so not {path}")


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise NotSharedWithLab("the working directory no longer exists") from None


def _incoming_listeners(
    incoming: Address, security: Security | None
) -> tuple[list[ForwardedListener], dict[str, str]]:
    """Return the listeners of `incoming`, each of which closes all, and the command's variable."""
    # Saves 7 ms (ssl) for commands without an incoming migration.
    from pyvmm.sockets.listener import MigrationListener
    from pyvmm.sockets.tls import Security

    listener = MigrationListener(incoming, security or Security())
    forwarded = [
        ForwardedListener(listening, INCOMING_SOCKET, listener.close)
        for listening in listener.sockets
    ]
    return forwarded, incoming_variable(str(incoming), str(listener.address))


def run_here(argv: Sequence[str], *, timeout_s: float | None = None) -> NoReturn:
    """Replace this process with `argv`, on this host. Raises UserError if it cannot start."""
    if timeout_s is not None:
        argv = ["timeout", f"{timeout_s:g}", *argv]
    try:
        os.execvp(argv[0], list(argv))
    except OSError as error:
        raise UserError(f"cannot run {argv[0]}: {error.strerror}") from error


def _package_directories() -> list[Path]:
    specs = [find_spec(name) for name in _OUR_PACKAGES]
    return [Path(s.origin).resolve().parent for s in specs if s is not None and s.origin]


def _compile_our_packages() -> None:
    """Compile our modules to bytecode: in the lab that would take seconds at every start."""
    for directory in _package_directories():
        if os.access(directory, os.W_OK):
            compileall.compile_dir(directory, quiet=2)


def program_directories() -> list[str]:
    """Return directories that the lab may cache, because commands only read them."""
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
