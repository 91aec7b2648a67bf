# SPDX-License-Identifier: Apache-2.0
"""Invariant: whatever a client sends, each message gets exactly one reply, in order; none reports a
bug or is logged as one, and the session continues."""

from __future__ import annotations

import json
import logging
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.qmp.commands import COMMANDS
from pyvmm.units import MIB
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm, served_in_thread

ERROR_CLASSES = {"GenericError", "CommandNotFound", "DeviceNotActive", "DeviceNotFound"}
NAMES = sorted(
    {parameter.name for command in COMMANDS.values() for parameter in command.parameters}
)

characters = st.characters(exclude_characters="/")  # no path that could be written
texts = st.one_of(
    st.text(characters, max_size=20),
    st.text(st.sampled_from('\0\ud800\udc80\udfff é\\"{}[],:@%'), max_size=10),
    st.sampled_from(["/", "/absent/s", "/dev/null", "/\ud800", "/\0", "/" + "x" * 300]),
    st.sampled_from(
        ["unix:/tmp/\ud800", "unix:/absent/m", "unix:", "unix:/" + "x" * 200, "unix:\0"]
    ),
    st.sampled_from(["tcp:localhost:1", "tcp:[::1]:1", "tcp:[::1:1", "tcp::1", "tcp:x:99999"]),
    st.sampled_from(["tcp:" + "x" * 70 + ":1", "tcp:\udcff:1", "tcp:é:1", "exec:true", "fd:0"]),
    st.sampled_from(["/machine", "/machine/peripheral/balloon0", "balloon0", "type"]),
    st.sampled_from(["guest-stats", "guest-stats-polling-interval", "auto-converge"]),
)
numbers = st.one_of(
    st.integers(),
    st.integers(-2, 2),
    st.sampled_from([1 << 31, 1 << 32, 1 << 63, 1 << 64, 10**99, -(10**98), 64 * MIB]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(1e-9, 0.01),
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts, inner, max_size=3)
        | st.fixed_dictionaries({"capability": inner, "state": inner})
    ),
    max_leaves=6,
)


OF_TYPE: dict[type, st.SearchStrategy[Any]] = {
    str: texts,
    bool: st.booleans(),
    int: numbers.filter(lambda number: isinstance(number, int)),
    list: st.lists(values, max_size=3),
    object: values,
}


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Return a request whose arguments have the right types or wrong ones, and unknown names."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    arguments: dict[str, Any] = {}
    for parameter in COMMANDS[name].parameters:
        if parameter.name == "timeout":
            arguments["timeout"] = draw(st.floats(1e-9, 0.01) | texts)
        elif parameter.required or draw(st.booleans()):
            right_type = draw(st.integers(0, 9)) > 0
            arguments[parameter.name] = draw(OF_TYPE[parameter.type] if right_type else values)
    if name == "quit" or draw(st.integers(0, 9)) == 0:
        arguments[draw(st.sampled_from(["x", *NAMES]) | texts)] = draw(values)
    request: dict[str, Any] = {"execute": name, "id": draw(values)}
    if arguments:
        request["arguments"] = arguments
    return request


other_messages = st.one_of(
    st.dictionaries(st.sampled_from(["execute", "arguments", "id", "exec-oob", "x"]), values),
    st.lists(values, max_size=2),
)


class Client:
    """A negotiated client that exchanges messages."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self._lines: IO[bytes] = self._socket.makefile("rb")
        self.reply()
        self.exchange([{"execute": "qmp_capabilities"}])

    def reply(self) -> dict[str, Any]:
        """Return the next message that is not an event."""
        while True:
            message = json.loads(self._lines.readline())
            if "event" not in message:
                assert isinstance(message, dict)
                return message

    def exchange(self, messages: list[Any]) -> list[dict[str, Any]]:
        """Send `messages` and return a reply for each."""
        self._socket.sendall(b"".join(json.dumps(each).encode() + b"\n" for each in messages))
        return [self.reply() for _ in messages]


class BugHandler(logging.Handler):
    """Collects what is logged as an error, the event loop's own reports included."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Client, BugHandler]]:
    bugs = BugHandler()
    logging.getLogger().addHandler(bugs)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "qmp"
        with served_in_thread(InMemoryVm(64 * MIB), path):
            yield Client(path), bugs
    logging.getLogger().removeHandler(bugs)
    assert bugs.messages == []


VALID: dict[str, dict[str, Any]] = {
    "balloon": {"value": 32 * MIB},
    "migrate": {"uri": "unix:/absent/m"},
    "migrate-set-capabilities": {"capabilities": []},
    "qom-get": {"path": "balloon0", "property": "type"},
    "qom-list": {"path": "/"},
    "qom-set": {"path": "balloon0", "property": "guest-stats-polling-interval", "value": 0},
    "snapshot-to-file": {"path": "/absent/s", "timeout": 0.01},
}
HARD_VALUES: list[Any] = [
    *(None, True, [], {}, [[]], {"capability": 1}, [{"capability": "auto-converge", "state": 1}]),
    *(0, -1, 1.5, 10**99, -(10**99), 1e308, 1 << 63, (1 << 64) - 1, 5e-324),
    *(
        "",
        "x",
        "/",
        "/absent/s",
        "/dev/null",
        "unix:",
        "tcp::1",
        "tcp:[::1:1",
        "exec:true",
        "/" * 300,
    ),
    *(
        "\0",
        "/\0",
        "\ud800",
        "unix:/tmp/\ud800",
        "tcp:\udcff:1",
        "tcp:é:1",
        "tcp:" + "x" * 70 + ":1",
    ),
    *("unix:/" + "x" * 200, "é" * 5000, "\U0010ffff", "%s{}\n\x1b[31m"),
]


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"quit"}))
def test_every_argument_with_every_hard_value_gets_a_reply(
    served: tuple[Client, BugHandler], name: str
) -> None:
    valid = VALID.get(name, {})
    for parameter in COMMANDS[name].parameters:
        for value in HARD_VALUES:
            arguments = {**valid, parameter.name: value}
            if parameter.name.startswith("tls-"):
                arguments |= {f"tls-{key}": value for key in ("ca", "cert", "key")}
            check_exchange(served, [{"execute": name, "arguments": arguments, "id": value}])
            check_exchange(served, [{"execute": name, "arguments": {**valid, str(value): 1}}])


@settings(max_examples=150, deadline=None)
@given(messages=st.lists(requests() | other_messages, min_size=1, max_size=8))
def test_every_message_gets_one_reply(
    served: tuple[Client, BugHandler], messages: list[Any]
) -> None:
    check_exchange(served, messages)


def check_exchange(served: tuple[Client, BugHandler], messages: list[Any]) -> None:
    """Send `messages`, and check that each has one proper reply and that the session continues."""
    client, bugs = served
    *replies, last = client.exchange([*messages, {"execute": "query-status", "id": "last"}])
    assert last["id"] == "last"
    assert "return" in last
    for message, reply in zip(messages, replies, strict=True):
        error = reply.get("error")
        if error is None:
            assert "return" in reply
        else:
            assert error["class"] in ERROR_CLASSES
            assert not error["desc"].startswith("Internal error"), (message, error)
        if isinstance(message, dict) and "id" in message:
            if "JSON parse error" in str(error):
                assert "id" not in reply
            else:
                assert reply["id"] == json.loads(json.dumps(message["id"]))  # joins surrogates
    assert bugs.messages == []
