# SPDX-License-Identifier: Apache-2.0
"""Messages between the VMM and the guest agent (docs/reference/protocols/agent.md).

A message is a header, the length of the payload, the type and the number of a command, then the
payload. Numbers are little-endian and packed, strings end with a NUL. `guest_images/src/agent` has
the same definitions in protocol.h.

The guest is hostile: `MessageReader` accepts only the two messages that an agent sends, each with
its one length, and so never has more than one of them in memory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

from pyvmm.guest_agent.errors import AgentFailed, CommandUnusable

CONTROL_PORT = "pyvmm.agent"
"""Name of the virtio-console port on which messages travel."""
VERSION = 1
MAX_PAYLOAD_BYTES = 160 * 1024
"""Longest payload that the agent takes; Linux itself limits arguments to a quarter of the stack."""
STREAMS = 3
"""Ports of a command, for its standard input, output and error output."""

HEADER = struct.Struct("<IHH")
_HELLO = struct.Struct("<Q")
_INPUT_END = struct.Struct("<Q")
_SIGNAL = struct.Struct("<I")
_RESIZE = struct.Struct("<HH")
RUN = struct.Struct("<IHHHHHHH")
_HELLO_REPLY = struct.Struct("<IQ")
ENDED = struct.Struct("<IIIQQ")
_TERMINAL = 1


class Type(IntEnum):
    """Types of messages; the agent sends the last two."""

    RUN = 1
    SIGNAL = 2
    RESIZE = 3
    HELLO = 4
    INPUT_END = 5
    HELLO_REPLY = 16
    ENDED = 17


class EndKind(IntEnum):
    """Ways in which a command ends; they say what the value beside them is."""

    EXITED = 0
    """It exited with this status."""
    SIGNALED = 1
    """This signal ended it."""
    NOT_STARTED = 2
    """execve(2) failed with this errno."""
    NO_DIRECTORY = 3
    """Its working directory cannot be entered, for the reason of this errno."""
    REFUSED = 4
    """The agent could not prepare it, for the reason of this errno."""


class HelloReply(NamedTuple):
    """The answer to a hello with this `value`."""

    version: int
    value: int


class Ended(NamedTuple):
    """The end of command `number`; `written` are the bytes of its output and error output."""

    number: int
    kind: EndKind
    value: int
    oom_kills: int
    written: tuple[int, int]


class TerminalSize(NamedTuple):
    """The size of a terminal, in characters."""

    rows: int
    columns: int


class RunRequest(NamedTuple):
    """A command: arguments, environment and working directory, and the ports of its streams.

    With a `terminal` all streams are that terminal, on the port of standard input.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    directory: str
    ports: tuple[int, int, int]
    terminal: TerminalSize | None = None


def hello(value: int) -> bytes:
    """Return the message that asks for a `HelloReply`."""
    return _message(Type.HELLO, 0, _HELLO.pack(value))


def run(number: int, request: RunRequest) -> bytes:
    """Return the message that starts command `number`. Raises `CommandUnusable`."""
    if not request.arguments:
        raise CommandUnusable("there is no command")
    size = request.terminal or TerminalSize(0, 0)
    variables = [f"{name}={value}" for name, value in request.environment.items()]
    strings = [request.directory, *request.arguments, *variables]
    encoded = [os.fsencode(string) for string in strings]
    if any(b"\0" in string for string in encoded):
        raise CommandUnusable("an argument, or a variable of the environment, holds a NUL")
    payload = b"\0".join([*encoded, b""])
    if RUN.size + len(payload) > MAX_PAYLOAD_BYTES or len(variables) > 0xFFFF:
        raise CommandUnusable(
            f"the arguments and the environment are {len(payload)} bytes long, the guest takes"
            f" {MAX_PAYLOAD_BYTES - RUN.size}"
        )
    flags = _TERMINAL if request.terminal else 0
    counts = (len(request.arguments), len(variables))
    head = RUN.pack(flags, *size, *request.ports, *counts)
    return _message(Type.RUN, number, head + payload)


def send_signal(number: int, signum: int) -> bytes:
    """Return the message that sends a signal to the process group of command `number`."""
    return _message(Type.SIGNAL, number, _SIGNAL.pack(signum))


def input_end(number: int, size_bytes: int) -> bytes:
    """Return the message that the input of command `number` ends after `size_bytes`."""
    return _message(Type.INPUT_END, number, _INPUT_END.pack(size_bytes))


def resize(number: int, size: TerminalSize) -> bytes:
    """Return the message that sets the size of the terminal of command `number`."""
    return _message(Type.RESIZE, number, _RESIZE.pack(*size))


def _message(type_: Type, number: int, payload: bytes) -> bytes:
    return HEADER.pack(len(payload), type_, number) + payload


class MessageReader:
    """Splits the bytes that an agent sends into messages."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[HelloReply | Ended]:
        """Yield the messages that `data` completes. Raises `AgentFailed` for any other bytes."""
        self._received += data
        while len(self._received) >= HEADER.size:
            length, type_, number = HEADER.unpack_from(self._received)
            expected = {Type.HELLO_REPLY: _HELLO_REPLY.size, Type.ENDED: ENDED.size}.get(type_)
            if length != expected:
                raise AgentFailed(f"the guest agent has sent message {type_} of {length} bytes")
            end = HEADER.size + length
            if len(self._received) < end:
                return
            payload = bytes(self._received[HEADER.size : end])
            del self._received[:end]
            yield _decode(type_, number, payload)


def _decode(type_: int, number: int, payload: bytes) -> HelloReply | Ended:
    if type_ == Type.HELLO_REPLY:
        return HelloReply(*_HELLO_REPLY.unpack(payload))
    kind, value, oom_kills, output, error = ENDED.unpack(payload)
    if kind not in list(EndKind):
        raise AgentFailed(f"the guest agent has reported an end of unknown kind {kind}")
    return Ended(number, EndKind(kind), value, oom_kills, (output, error))
