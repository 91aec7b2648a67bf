# SPDX-License-Identifier: Apache-2.0
"""The lab's init process: it sets up the system, runs one command, and reports to the host.

The kernel starts it from the initramfs, where `pyvmm.lab.initramfs` put it together with the
interpreter. It loads the modules, mounts the host's root file system, and then serves the link with
a `Multiplexer`. Control messages, each a JSON object with one key:

| from    | message | meaning |
| ---     | ---     | --- |
| agent   | `booted`: seconds since the kernel started | the host may take the boot snapshot now |
| host    | `setup`: programs (directories to cache), clock, seed (hexadecimal) | mount the root |
| agent   | `ready`: seconds since the kernel started | waiting for a command |
| host    | `start`: argv, cwd, env, umask, terminal, winsize, python | run this command, once |
| host    | `signal`: number | send it to the command's process group |
| host    | `winsize`: [rows, columns] | the terminal's size has changed |
| host    | `ping`: number | send `pong` |
| agent   | `pong`: seconds since the kernel started | reply to `ping` |
| host    | `diagnose`: true | make the kernel print tasks and stacks on its console |
| agent   | `diagnosed`: seconds since the kernel started | it has |
| agent   | `unlisten`: path in the lab | the command stopped listening: close the host's end |
| agent   | `ended`: status | the command ended; its output may follow |
| agent   | `exit`: status | its output is on the host; 128 + N after signal N; nothing follows |

Channels 0 to 2 are the command's standard streams where they are not a terminal; channel 3 is the
pseudo-terminal if at least one of them is. Higher ones are socket connections from the host, and
from `proxy.FIRST_CHANNEL` on those that commands here have requested (`pyvmm.lab.proxy`).
There is no udev, no init system, and no network but loopback.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import struct
import termios
import time
import traceback
from typing import Any, NoReturn

from pyvmm.lab import mounts, preload
from pyvmm.lab.frame_link import LinkClosedError
from pyvmm.lab.mux import Multiplexer
from pyvmm.lab.pinned_static_keys import pin_static_keys
from pyvmm.lab.proxy import SocketProxy
from pyvmm.sockets.lab_paths import PROXY_SOCKET
from pyvmm.standard_streams.descriptors import open_missing_descriptors
from pyvmm.standard_streams.text import printable

TERMINAL_CHANNEL = 3
PORT_NAME = "pyvmm.link"
DRAIN_TIMEOUT_S = 3.0
"""Longest time for which a client that reads nothing delays the end of the lab."""
_RETRY_MS = 100
_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


class Agent:
    """Serves the link from `booted` to `exit`."""

    def __init__(self, link: int) -> None:
        self._mux = Multiplexer(link, self._control, on_open=self._open)
        self._child: int | None = None
        self._terminal: int | None = None
        self._status: int | None = None
        self._waiting: dict[int, str] = {}
        self._unlistened: set[str] = set()
        self._wake, wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(os.dup(wake_writer), warn_on_full_buffer=False)
        self._mux.watch(self._wake, self._reap)

    def run(self) -> None:
        """Serve the link until the command has ended and all of its output is on the host."""
        self._mux.send_control({"booted": _uptime()})
        while self._status is None:
            self._turn()
        deadline = time.monotonic() + DRAIN_TIMEOUT_S  # of all forwarded clients together
        for channel in list(self._mux.channels.values()):
            left_s = max(0.0, deadline - time.monotonic())
            self._mux.drain_source(channel, None if channel.number <= TERMINAL_CHANNEL else left_s)
        os.sync()
        self._mux.send_control({"exit": self._status})
        while True:
            self._mux.turn()

    def _control(self, message: dict[str, Any]) -> None:
        if "setup" in message:
            self._set_up(message["setup"])
        elif "start" in message and self._child is None:
            self._start(message["start"])
        elif "signal" in message and self._child is not None:
            try:
                os.killpg(self._child, message["signal"])
            except ProcessLookupError:
                return
        elif "winsize" in message and self._terminal is not None:
            _set_winsize(self._terminal, message["winsize"])
        elif "ping" in message:
            self._mux.send_control({"pong": _uptime()})
        elif "diagnose" in message:
            mounts.print_diagnosis()
            self._mux.send_control({"diagnosed": _uptime()})

    def _set_up(self, request: dict[str, Any]) -> None:
        mounts.set_clock_and_seed(request["clock"], bytes.fromhex(request["seed"]))
        mounts.mount_host_root(request["programs"])
        SocketProxy(self._mux, mounts.path_in_root(PROXY_SOCKET), self._unlisten)
        self._mux.send_control({"ready": _uptime()})

    def _open(self, number: int, path: str) -> None:
        """Connect a channel to `path`, now or as soon as the command listens there."""
        self._mux.reserve(number)
        if path in self._unlistened:
            self._mux.abandon(number)
        elif not self._connect(number, path):
            self._waiting[number] = path

    def _unlisten(self, path: str) -> None:
        """Tell the host that the command no longer listens, and drop waiting connections."""
        self._unlistened.add(path)
        self._mux.send_control({"unlisten": path})
        for number in [number for number, waiting in self._waiting.items() if waiting == path]:
            del self._waiting[number]
            self._mux.abandon(number)

    def _connect(self, number: int, path: str) -> bool:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)  # the listener's backlog may be full
        try:
            connection.connect(mounts.path_in_root(path))
        except OSError:
            connection.close()
            return False
        self._mux.attach(number, connection.detach())
        return True

    def _turn(self) -> None:
        self._mux.turn(_RETRY_MS if self._waiting else None)
        for number, path in list(self._waiting.items()):
            if self._connect(number, path):
                del self._waiting[number]

    def _start(self, request: dict[str, Any]) -> None:
        terminal = set(request["terminal"])
        ours: dict[int, int] = {}
        theirs: dict[int, int] = {}
        if terminal:
            master, slave = os.openpty()
            _set_winsize(master, request["winsize"])
            self._terminal = master
            self._mux.add(TERMINAL_CHANNEL, master, os.dup(master))
            theirs = dict.fromkeys(terminal, slave)
        for fd in {0, 1, 2} - terminal:
            reader, writer = os.pipe()
            theirs[fd], ours[fd] = (reader, writer) if fd == 0 else (writer, reader)
        self._child = os.fork()
        if self._child == 0:
            _exec_command(request, theirs)
        for fd in set(theirs.values()):
            os.close(fd)
        for fd, end in ours.items():
            self._mux.add(fd, **({"sink": end} if fd == 0 else {"source": end}))

    def _reap(self) -> None:
        os.read(self._wake, 512)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._child:
                code = os.waitstatus_to_exitcode(status)
                self._status = code if code >= 0 else 128 - code
                self._mux.send_control({"ended": self._status})


def _uptime() -> float:
    with open("/proc/uptime") as uptime:
        return float(uptime.read().split()[0])


def _set_winsize(terminal: int, size: list[int]) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size[0], size[1], 0, 0))


def _exec_command(request: dict[str, Any], fds: dict[int, int]) -> NoReturn:
    """Execute the command in the forked process; on failure exit as a shell would."""
    try:
        os.setsid()
        for fd in (0, 1, 2):
            os.dup2(fds[fd], fd)
        if request["terminal"]:
            fcntl.ioctl(request["terminal"][0], termios.TIOCSCTTY, 0)
        os.closerange(3, 256)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.umask(request["umask"])
        mounts.enter_root()
        os.chdir(request["cwd"])
        if preload.can_run(request):
            signal.set_wakeup_fd(-1)
            preload.run(request)
        os.execvpe(request["argv"][0], request["argv"], request["env"])
    except OSError as error:
        command = printable(request["argv"][0])
        os.write(2, f"pyvmm lab: {command}: {error.strerror}\n".encode())
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        os._exit(_NOT_FOUND if missing else _NOT_EXECUTABLE)


def main() -> None:
    """Run as the lab's init process."""
    try:
        mounts.prepare()
        open_missing_descriptors()
        pin_static_keys()
        preload.preload()
        Agent(mounts.open_port(PORT_NAME)).run()
    except LinkClosedError:
        pass
    except Exception:
        # The host keeps the output of the serial console for this error; if init died, a kernel
        # panic would only add registers to it.
        traceback.print_exc()
    mounts.power_off()
