# SPDX-License-Identifier: Apache-2.0
"""The first process inside the lab: it makes the place habitable, runs one command and reports.

It is started by the kernel from the initramfs (`pyvmm.lab.initramfs` put it there together with
the interpreter), loads the modules, mounts the root file system of the machine outside, and then
serves the link with a `Multiplexer`. Control messages, each a JSON object with one key:

| from    | message | meaning |
| ---     | ---     | --- |
| agent   | `awake`: seconds since the kernel started | a snapshot may be taken now |
| outside | `begin`: programs (directories to cache), clock, seed (hexadecimal) | mount the root |
| agent   | `ready`: seconds since the kernel started | waiting for a command |
| outside | `start`: argv, cwd, env, umask, terminal, winsize, python | run this, once |
| outside | `signal`: number | send it to the command's process group |
| outside | `winsize`: [rows, columns] | the terminal changed its size |
| outside | `ping`: number | is anybody there? |
| agent   | `pong`: number | yes |
| outside | `diagnose`: true | have the kernel say on its console what its processors do |
| agent   | `unlisten`: path inside | nobody listens there any more: let nobody come for it |
| agent   | `exit`: status | ended; 128 + N after signal N; nothing follows |

Channels 0 to 2 are the command's standard streams where they are no terminal, channel 3 is the
pseudo-terminal when at least one of them is. Higher ones are socket connections from outside, and
from `outward.FIRST_CHANNEL` on those that commands here have asked for (`pyvmm.lab.proxy`).
Only what the command needs runs here: no udev, no init system, no network but loopback.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import struct
import termios
import traceback
from typing import Any, NoReturn

from pyvmm.lab import mounts
from pyvmm.lab import pinned_static_keys as held_vms
from pyvmm.lab import preload as warm
from pyvmm.lab.mux import LinkClosedError, Multiplexer
from pyvmm.lab.proxy import SocketProxy
from pyvmm.sockets.lab_paths import PROXY_SOCKET

TERMINAL_CHANNEL = 3
PORT_NAME = "pyvmm.link"
FAREWELL_S = 5.0
"""How long a client that reads nothing can keep the lab from ending."""
_RETRY_MS = 100
_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


class Agent:
    """The command's life between `start` and `exit`."""

    def __init__(self, link: int) -> None:
        self._mux = Multiplexer(link, self._control)
        self._mux.on_open = self._open
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
        """Serve the link until the command has ended and everything it wrote is outside."""
        self._mux.send_control({"awake": _uptime()})
        while self._status is None:
            self._turn()
        for channel in list(self._mux.channels.values()):
            patience_s = None if channel.number <= TERMINAL_CHANNEL else FAREWELL_S
            self._mux.drain_source(channel, patience_s)
        os.sync()
        self._mux.send_control({"exit": self._status})
        while True:
            self._mux.turn()

    def _control(self, message: dict[str, Any]) -> None:
        if "begin" in message:
            self._begin(message["begin"])
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
            self._mux.send_control({"pong": message["ping"]})
        elif "diagnose" in message:
            mounts.diagnose()

    def _begin(self, request: dict[str, Any]) -> None:
        mounts.set_surroundings(request["clock"], bytes.fromhex(request["seed"]))
        mounts.mount_outside(request["programs"])
        SocketProxy(self._mux, mounts.inside(PROXY_SOCKET), self._unlisten)
        self._mux.send_control({"ready": _uptime()})

    def _open(self, number: int, path: str) -> None:
        """Connect a channel; a client may well come before the command listens."""
        self._mux.reserve(number)
        if path in self._unlistened:
            self._mux.abandon(number)
        elif not self._connect(number, path):
            self._waiting[number] = path

    def _unlisten(self, path: str) -> None:
        """The command listens no more; who waits for it at `path` is sent away."""
        self._unlistened.add(path)
        self._mux.send_control({"unlisten": path})
        for number in [number for number, wanted in self._waiting.items() if wanted == path]:
            del self._waiting[number]
            self._mux.abandon(number)

    def _connect(self, number: int, path: str) -> bool:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)  # its backlog may be full
        try:
            connection.connect(mounts.inside(path))
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
            _become(request, theirs)
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


def _uptime() -> float:
    with open("/proc/uptime") as uptime:
        return float(uptime.read().split()[0])


def _set_winsize(terminal: int, size: list[int]) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size[0], size[1], 0, 0))


def _become(request: dict[str, Any], fds: dict[int, int]) -> NoReturn:
    """In the new process: turn into the command, or exit as a shell would."""
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
        if warm.serves(request):
            signal.set_wakeup_fd(-1)
            warm.run(request)
        os.execvpe(request["argv"][0], request["argv"], request["env"])
    except OSError as error:
        os.write(2, f"pyvmm lab: {request['argv'][0]}: {error.strerror}\n".encode())
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        os._exit(_NOT_FOUND if missing else _NOT_EXECUTABLE)


def main() -> None:
    """Entry point of the lab's first process."""
    try:
        mounts.prepare()
        held_vms.hold()
        warm.preload()
        Agent(mounts.open_port(PORT_NAME)).run()
    except LinkClosedError:
        pass
    except Exception:
        # The serial console is kept outside for exactly this; a dead first process would only
        # add a kernel panic's registers to it.
        traceback.print_exc()
    mounts.power_off()
