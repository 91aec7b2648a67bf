# SPDX-License-Identifier: Apache-2.0
"""One command in the lab, as seen from the machine outside.

`LabSession` joins this process's standard streams, terminal, signals and forwarded sockets to the
agent inside (`pyvmm.lab.agent`) over the link. Signals arrive on a wake-up pipe, so there is one
loop and no locking.

An emulated machine can hang, and then it says nothing at all. So a silent agent is pinged, and one
that leaves `PINGS` unanswered is given up with what the processors were doing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from pyvmm.lab.agent import FAREWELL_S, TERMINAL_CHANNEL
from pyvmm.lab.frames import FrameError
from pyvmm.lab.mux import LinkClosedError, Multiplexer
from pyvmm.lab.outbound_connector import OutboundConnector
from pyvmm.lab.proxy import FIRST_CHANNEL
from pyvmm.lab.qemu import LabProcess
from pyvmm.lab.start import START_TIMEOUT_SECONDS, LabError, broken
from pyvmm.lab.stdio import InputCopier, OutputCopier, in_foreground, raw_terminal

GRACE_SECONDS = 10.0
"""How long a command may take to end after SIGTERM or SIGHUP before the lab is ended."""

PING_SECONDS = 5.0
PINGS = 24
DIAGNOSIS_SECONDS = 5.0
DIAGNOSIS_LINES = 400
TIMED_OUT_STATUS = 124
"""Exit status after `timeout_s`, as timeout(1) has it."""

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_FIRST_SOCKET_CHANNEL = 16
_LAST_SOCKET_CHANNEL = FIRST_CHANNEL - 1
MAX_CHANNELS = 64
"""Clients that come while there are so many connections are sent away."""


class ForwardedListener(NamedTuple):
    """A socket that is listened on here on behalf of the command."""

    socket: socket.socket
    inside: str
    """The path that connections go to."""
    close: Callable[[], None]
    """Stop listening; calling it again does nothing."""


class LabSession:
    """Runs one command in a started lab."""

    def __init__(
        self,
        lab: LabProcess,
        doors: Sequence[ForwardedListener],
        programs: Sequence[str],
        python: Mapping[str, Any],
        timeout_s: float | None = None,
    ) -> None:
        """`doors`: where to listen for the command.

        `programs`: directories the lab may cache; `python`: `warm.describe_python` of this process;
        `timeout_s`: how long the command may run.
        """
        self._timeout_s = timeout_s
        self._unanswered = 0
        self._python = dict(python)
        self._lab = lab
        self._programs = programs
        self._mux = Multiplexer(lab.link.fileno(), self._control)
        self._mux.on_connect = self._dial
        self._dialler = OutboundConnector()
        self._mux.watch(self._dialler.fileno(), self._answer_dials)
        self._doors = doors
        for door in doors:
            door.socket.setblocking(False)
            self._mux.watch(door.socket.fileno(), partial(self._accept, door))
        self._farewell_until = 0.0
        self._ready = False
        self._status: int | None = None
        self._signals = 0
        self._deadline: float | None = None
        self._next_channel = _FIRST_SOCKET_CHANNEL
        self._inputs: list[InputCopier] = []
        self._outputs: list[OutputCopier] = []
        self._terminals: list[int] = []

    def run(self, argv: Sequence[str], env: Mapping[str, str]) -> int:
        """Wait for the lab, run `argv`, return its exit status. LabError."""
        with _signal_pipe() as wake:
            self._mux.watch(wake, lambda: self._on_signals(wake))
            try:
                return self._run(argv, env)
            except LinkClosedError:
                raise self._broken("the lab ended unexpectedly") from None
            except FrameError as error:
                raise self._broken(str(error)) from error
            finally:
                self._dialler.close()
                for number in list(self._mux.channels):
                    self._mux.forget(number)

    def _run(self, argv: Sequence[str], env: Mapping[str, str]) -> int:
        self._deadline = time.monotonic() + START_TIMEOUT_SECONDS
        if self._lab.resumed:
            self._begin()
        while not self._ready:
            self._turn()
            if self._signals:
                return 128 + self._signals
            if self._deadline_passed():
                raise self._broken(f"the lab did not start in {START_TIMEOUT_SECONDS:.0f} s")
        self._deadline = None
        if self._timeout_s is not None:
            self._deadline = time.monotonic() + self._timeout_s
        self._terminals = [fd for fd in (0, 1, 2) if _is_terminal(fd)]
        keyboard = 0 if in_foreground(0) else None
        with raw_terminal(keyboard):
            self._start(argv, env)
            while not self._finished():
                self._turn()
                if self._deadline_passed():
                    return 128 + self._signals if self._signals else self._time_out()
            for copier in self._inputs:
                copier.stop()
        assert self._status is not None
        return self._status

    def _begin(self) -> None:
        seed = os.urandom(32).hex()
        begin = {"programs": list(self._programs), "clock": time.time(), "seed": seed}
        self._mux.send_control({"begin": begin})

    def _start(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        umask = os.umask(0)
        os.umask(umask)
        request: dict[str, Any] = {
            "argv": list(argv),
            "cwd": os.getcwd(),
            "env": dict(env),
            "umask": umask,
            "terminal": self._terminals,
            "winsize": self._winsize(),
            "python": self._python,
        }
        for fd in (0, 1, 2):
            if fd not in self._terminals:
                self._connect(fd, source=fd if fd == 0 else None, sink=None if fd == 0 else fd)
        if self._terminals:
            shown = next(fd for fd in (1, 2, 0) if fd in self._terminals)
            self._connect(TERMINAL_CHANNEL, source=0 if in_foreground(0) else None, sink=shown)
        self._mux.send_control({"start": request})

    def _connect(self, channel: int, source: int | None, sink: int | None) -> None:
        ends: dict[str, int] = {}
        if source is not None and _is_open(source):
            self._inputs.append(InputCopier(source))
            ends["source"] = self._inputs[-1].end.detach()
        if sink is not None:
            self._outputs.append(OutputCopier(sink))
            ends["sink"] = self._outputs[-1].end.detach()
        self._mux.add(channel, **ends)

    def _finished(self) -> bool:
        """The command has ended and all it wrote has been passed on."""
        if self._status is None:
            return False
        if not all(copier.finished() for copier in self._outputs):
            return False
        # What clients have not taken yet is theirs, too, but not for ever.
        return self._mux.delivered or time.monotonic() > self._farewell_until

    def _turn(self) -> None:
        # After the last frame only the copier threads have work, and they have no descriptor here.
        timeout_ms = int(PING_SECONDS * 1000) if self._status is None else 5
        if self._deadline is not None:
            left_ms = max(0, int((self._deadline - time.monotonic()) * 1000)) + 1
            timeout_ms = min(timeout_ms, left_ms)
        received_bytes, begun = self._mux.received_bytes, time.monotonic()
        self._mux.turn(timeout_ms)
        if self._mux.received_bytes != received_bytes:
            self._unanswered = 0
        elif self._ready and time.monotonic() - begun >= PING_SECONDS:
            self._ping()

    def _ping(self) -> None:
        if self._unanswered == PINGS:
            where = "; ".join(self._lab.processors())
            raise LabError(f"the lab has stopped answering ({where})", "try again")
        self._unanswered += 1
        self._mux.send_control({"ping": self._unanswered})

    def _time_out(self) -> int:
        """Say what the lab was doing when its time was up."""
        assert self._timeout_s is not None
        print(
            f"pyvmm lab: the command did not end in {self._timeout_s:g} s; the lab says:",
            file=sys.stderr,
        )
        self._mux.send_control({"diagnose": True})
        until = time.monotonic() + DIAGNOSIS_SECONDS
        while (left_s := until - time.monotonic()) > 0:
            self._mux.turn(int(left_s * 1000) + 1)
        lines = [*self._lab.processors(), *self._lab.console(DIAGNOSIS_LINES)]
        print("\n".join(lines), file=sys.stderr)
        return TIMED_OUT_STATUS

    def _deadline_passed(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _control(self, message: dict[str, Any]) -> None:
        if "awake" in message:
            self._begin()
        elif "ready" in message:
            self._ready = True
        elif "unlisten" in message:
            self._unlisten(message["unlisten"])
        elif "exit" in message:
            self._status = int(message["exit"])
            self._farewell_until = time.monotonic() + FAREWELL_S

    def _on_signals(self, wake: int) -> None:
        for number in os.read(wake, 512):
            if number == signal.SIGWINCH:
                if self._terminals:
                    self._mux.send_control({"winsize": self._winsize()})
                continue
            self._signals = number
            if self._ready:
                self._mux.send_control({"signal": number})
                if number in _ENDING:
                    self._deadline = time.monotonic() + GRACE_SECONDS

    def _winsize(self) -> list[int]:
        import fcntl
        import termios

        if not self._terminals:
            return [24, 80]
        packed = fcntl.ioctl(self._terminals[0], termios.TIOCGWINSZ, bytes(8))
        return list(struct.unpack("HHHH", packed)[:2])

    def _accept(self, door: ForwardedListener) -> None:
        try:
            connection, _ = door.socket.accept()
        except OSError:
            return
        if len(self._mux.channels) >= MAX_CHANNELS:
            connection.close()
            return
        while self._next_channel in self._mux.channels:
            self._next_channel += 1
        self._mux.open(self._next_channel, door.inside, connection.detach())
        self._next_channel += 1
        if self._next_channel > _LAST_SOCKET_CHANNEL:
            self._next_channel = _FIRST_SOCKET_CHANNEL

    def _unlisten(self, inside: str) -> None:
        for door in self._doors:
            if door.inside == inside:
                self._mux.unwatch(door.socket.fileno())
                door.close()

    def _dial(self, number: int, address: str) -> None:
        self._mux.reserve(number)
        self._dialler.connect(number, address)

    def _answer_dials(self) -> None:
        for number, stream, refused in self._dialler.results():
            self._mux.answer_connect(number, refused)
            if stream is None:
                self._mux.forget(number)
            else:
                self._mux.attach(number, stream.detach())

    def _broken(self, what: str) -> LabError:
        if self._lab.resumed and not self._ready:
            self._lab.kept.unlink(missing_ok=True)
        return broken(self._lab, what)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _is_terminal(fd: int) -> bool:
    return _is_open(fd) and os.isatty(fd)


@contextlib.contextmanager
def _signal_pipe() -> Iterator[int]:
    """Forwarded signals as bytes on a pipe instead of their usual effect."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    numbers = (*_FORWARDED, signal.SIGWINCH)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
        sys.stdout.flush()
