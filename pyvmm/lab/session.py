# SPDX-License-Identifier: Apache-2.0
"""One command in the lab, from the host's side.

`LabSession` connects this process's standard streams, terminal, signals and forwarded sockets to
the agent in the lab (`pyvmm.lab.agent`) over the link. Signals arrive on a wake-up pipe, so there
is one loop and no locking.

An emulated machine can hang without a message. So an agent that sends nothing is pinged; after
`MAX_UNANSWERED_PINGS` the session ends with an error that shows the processors' state.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from typing import Any

from devices.listeners import Listeners
from pyvmm.blocking.signal_mask import blocked_signals
from pyvmm.lab.agent import DRAIN_TIMEOUT_S, TERMINAL_CHANNEL
from pyvmm.lab.errors import LabError
from pyvmm.lab.forwarding import ForwardedListener, SocketForwarder
from pyvmm.lab.frame_link import LinkClosedError
from pyvmm.lab.frames import FrameError
from pyvmm.lab.mux import Multiplexer
from pyvmm.lab.qemu import LabProcess
from pyvmm.lab.signals import ENDING, TAKEN
from pyvmm.lab.start import START_TIMEOUT_S, lab_error
from pyvmm.lab.stdio import InputCopier, OutputCopier, in_foreground, raw_terminal
from pyvmm.standard_streams.text import print_message

GRACE_PERIOD_S = 10.0
"""Time for a command to end after SIGTERM or SIGHUP, before the lab is killed."""

PING_INTERVAL_S = 5.0
MAX_UNANSWERED_PINGS = 24
DIAGNOSIS_S = 20.0
"""Longest wait for the lab's kernel to print its state, on a busy host."""
DIAGNOSIS_LINES = 400
TIMED_OUT_STATUS = 124
"""Exit status after `timeout_s`, as of timeout(1)."""

_ENDED_TURN_MS = 100
"""Longest turn of the loop when the command has ended, to notice progress of its output."""

_OUTPUT_LOST_STATUS = 1


class LabSession:
    """Runs one command in a started lab."""

    def __init__(
        self,
        lab: LabProcess,
        listeners: Sequence[ForwardedListener],
        programs: Sequence[str],
        python: Mapping[str, Any],
        releasing: Listeners[[]],
        timeout_s: float | None = None,
        output_timeout_s: float | None = None,
    ) -> None:
        """Connect to `lab` and forward connections of `listeners` to the command.

        `programs` are directories the lab may cache, `python` is `preload.describe_python` of this
        process, `releasing` is called before this process is ended, and `timeout_s` limits the
        command's run time. Output that is left when the command has ended is dropped after
        `output_timeout_s` without progress; None waits for its reader.
        """
        self._releasing = releasing
        self._timeout_s = timeout_s
        self._output_timeout_s = output_timeout_s
        self._ended_at: float | None = None  # when the command ended, or output was last written
        self._written_bytes = 0
        self._unanswered = 0
        self._python = dict(python)
        self._lab = lab
        self._programs = programs
        self._mux = Multiplexer(lab.link.fileno(), self._control, on_connect=self._serve_connect)
        self._forwarder = SocketForwarder(self._mux, listeners)
        self._drain_deadline = 0.0
        self._ready = False
        self._diagnosed = False
        self._status: int | None = None
        self._signals = 0
        self._deadline: float | None = None
        self._inputs: list[InputCopier] = []
        self._outputs: list[OutputCopier] = []
        self._terminals: list[int] = []

    def run(self, argv: Sequence[str], env: Mapping[str, str], signals: int) -> int:
        """Wait for the lab, run `argv` and return its exit status. Raises LabError.

        `signals` is the descriptor of `pyvmm.lab.signals.signal_pipe`.
        """
        self._mux.watch(signals, lambda: self._on_signals(signals))
        try:
            return self._run(argv, env)
        except LinkClosedError:
            raise self._error("the lab ended unexpectedly") from None
        except FrameError as error:
            raise self._error(str(error)) from error
        finally:
            self._forwarder.close()
            for number in list(self._mux.channels):
                self._mux.forget(number)

    def _run(self, argv: Sequence[str], env: Mapping[str, str]) -> int:
        self._deadline = time.monotonic() + START_TIMEOUT_S
        if self._lab.snapshot is not None:
            self._set_up()
        while not self._ready:
            self._turn()
            if self._signals:
                return 128 + self._signals
            if self._deadline_passed():
                raise self._error(f"the lab did not start in {START_TIMEOUT_S:.0f} s")
        self._deadline = None
        if self._timeout_s is not None:
            self._deadline = time.monotonic() + self._timeout_s
        self._terminals = [fd for fd in (0, 1, 2) if os.isatty(fd)]
        keyboard = 0 if in_foreground(0) else None
        with raw_terminal(keyboard) as restore:
            self._releasing.add(restore)
            self._start(argv, env)
            while not self._finished():
                self._turn()
                if self._deadline_passed():
                    return 128 + self._signals if self._signals else self._time_out()
                if self._output_stalled():
                    print_message("the end of the output was not read")
                    return 128 + self._signals if self._signals else _OUTPUT_LOST_STATUS
            for copier in self._inputs:
                copier.stop()
        assert self._status is not None
        lost = self._report_lost_output()
        return self._status or (_OUTPUT_LOST_STATUS if lost else 0)

    def _report_lost_output(self) -> bool:
        """Return True if results of the command were lost, and print why.

        A command that had ended before the error, or does not look for it, has status 0.
        """
        errors = [copier.error for copier in self._outputs if copier.error and copier.fd != 2]
        for error in errors:
            if not isinstance(error, BrokenPipeError):  # as a program that SIGPIPE ends
                print_message(f"standard output cannot be written: {error.strerror}")
        return bool(errors)

    def _set_up(self) -> None:
        seed = os.urandom(32).hex()
        request = {"programs": list(self._programs), "clock": time.time(), "seed": seed}
        self._mux.send_control({"setup": request})

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
        with blocked_signals(TAKEN):
            self._add_streams()
        self._mux.send_control({"start": request})

    def _add_streams(self) -> None:
        for fd in (0, 1, 2):
            if fd not in self._terminals:
                self._add_stream(fd, source=fd if fd == 0 else None, sink=None if fd == 0 else fd)
        if self._terminals:
            output = next(fd for fd in (1, 2, 0) if fd in self._terminals)
            self._add_stream(TERMINAL_CHANNEL, source=0 if in_foreground(0) else None, sink=output)

    def _add_stream(self, channel: int, source: int | None, sink: int | None) -> None:
        ends: dict[str, int] = {}
        if source is not None:
            self._inputs.append(InputCopier(source))
            ends["source"] = self._inputs[-1].end.detach()
        if sink is not None:
            self._outputs.append(OutputCopier(sink))
            ends["sink"] = self._outputs[-1].end.detach()
        self._mux.add(channel, **ends)

    def _finished(self) -> bool:
        """Return True when the command has ended and all of its output has been passed on."""
        if self._status is None:
            return False
        if not all(copier.finished() for copier in self._outputs):
            return False
        # Wait, up to a time limit, until forwarded clients have read their data.
        return self._mux.delivered or time.monotonic() > self._drain_deadline

    def _output_stalled(self) -> bool:
        """Return True if the command has ended and its output is no longer read."""
        if self._ended_at is None or self._output_timeout_s is None:
            return False
        written_bytes = sum(copier.written_bytes for copier in self._outputs)
        if written_bytes != self._written_bytes:
            self._written_bytes, self._ended_at = written_bytes, time.monotonic()
        return time.monotonic() - self._ended_at > self._output_timeout_s

    def _turn(self) -> None:
        # After the last frame only the copier threads have work, and the loop polls none of their
        # files.
        timeout_ms = int(PING_INTERVAL_S * 1000) if self._status is None else 5
        if self._ended_at is not None:
            timeout_ms = min(timeout_ms, _ENDED_TURN_MS)
        if self._deadline is not None:
            left_ms = max(0, int((self._deadline - time.monotonic()) * 1000)) + 1
            timeout_ms = min(timeout_ms, left_ms)
        received_bytes, started = self._mux.received_bytes, time.monotonic()
        self._mux.turn(timeout_ms)
        if self._mux.received_bytes != received_bytes:
            self._unanswered = 0
        elif self._ready and time.monotonic() - started >= PING_INTERVAL_S:
            self._ping()

    def _ping(self) -> None:
        if self._unanswered == MAX_UNANSWERED_PINGS:
            processors = "; ".join(self._lab.processors())
            raise LabError(f"the lab has stopped responding ({processors})")
        self._unanswered += 1
        self._mux.send_control({"ping": self._unanswered})

    def _time_out(self) -> int:
        """Print the state of the lab at the time limit; return the exit status."""
        assert self._timeout_s is not None
        print_message(f"the command did not end in {self._timeout_s:g} s; state of the lab:")
        self._mux.send_control({"diagnose": True})
        until = time.monotonic() + DIAGNOSIS_S
        while not self._diagnosed and (left_s := until - time.monotonic()) > 0:
            self._mux.turn(int(left_s * 1000) + 1)
        lines = [*self._lab.processors(), *self._lab.console(DIAGNOSIS_LINES)]
        print_message("\n".join(lines), "")
        return TIMED_OUT_STATUS

    def _deadline_passed(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _control(self, message: dict[str, Any]) -> None:
        if "booted" in message:
            self._set_up()
        elif "ready" in message:
            self._ready = True
        elif "ended" in message:
            self._ended_at = time.monotonic()
        elif "unlisten" in message:
            self._forwarder.unlisten(message["unlisten"])
        elif "diagnosed" in message:
            self._diagnosed = True
        elif "exit" in message:
            self._status = int(message["exit"])
            self._drain_deadline = time.monotonic() + DRAIN_TIMEOUT_S

    def _on_signals(self, wake: int) -> None:
        for number in os.read(wake, 512):
            if number == signal.SIGWINCH:
                if self._terminals:
                    self._mux.send_control({"winsize": self._winsize()})
                continue
            self._signals = number
            if self._ready:
                self._mux.send_control({"signal": number})
                if number in ENDING:
                    self._deadline = time.monotonic() + GRACE_PERIOD_S

    def _winsize(self) -> list[int]:
        if not self._terminals:
            return [24, 80]
        packed = fcntl.ioctl(self._terminals[0], termios.TIOCGWINSZ, bytes(8))
        return list(struct.unpack("HHHH", packed)[:2])

    def _serve_connect(self, number: int, address: str) -> None:
        self._forwarder.connect(number, address)

    def _error(self, message: str) -> LabError:
        if self._lab.snapshot is not None and not self._ready:
            self._lab.snapshot.unlink(missing_ok=True)
        return lab_error(self._lab, message)
