# SPDX-License-Identifier: Apache-2.0
"""QMP without sockets: the JSON stream, requests and replies, sessions.

Error messages that matter are those of QEMU 7.2 for the same bytes.
"""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pyvmm.qmp import messages as qmp
from pyvmm.qmp.command import Command
from pyvmm.qmp.commands import COMMANDS
from pyvmm.qmp.json_stream import MAX_DEPTH, MAX_MESSAGE_BYTES, MAX_TOKENS, JsonStream
from pyvmm.qmp.messages import QmpError
from pyvmm.qmp.session import QmpSession
from pyvmm.units import GIB, MIB
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm


def drain(stream: JsonStream) -> list[Any]:
    """Return all messages of the stream, and the descriptions of errors."""
    items: list[Any] = []
    while True:
        try:
            message = stream.next()
        except QmpError as error:
            items.append(error.desc)
            continue
        if message is None:
            return items
        items.append(message)


def parse(data: bytes) -> list[Any]:
    stream = JsonStream()
    stream.feed(data)
    return drain(stream)


NEXT = b'\n{"next": 1}'


@pytest.mark.parametrize(
    ("data", "messages"),
    [
        (b"", []),
        (b" \r\n\t", []),
        (b"{}", [{}]),
        (b'{"a": 1}\r\n{"b": 2}', [{"a": 1}, {"b": 2}]),
        (b'{"a": 1}{"b": 2}', [{"a": 1}, {"b": 2}]),
        (b'{"a":\n {"b": [1, {"c": "}"}]}\n}', [{"a": {"b": [1, {"c": "}"}]}}]),
        (b'{"a": "\\"}{"}', [{"a": '"}{'}]),
        (b'{"a": "\\\\"}', [{"a": "\\"}]),
        (b'{"a": "\xc3\xa9\\u20ac"}', [{"a": "é€"}]),
        (b'{"a": "\\ud83d\\ude00\\\\ud800\\\\u0000"}', [{"a": "\U0001f600\\ud800\\u0000"}]),
        (b'{"a": "\\udc80"}', [{"a": "\udc80"}]),  # the byte 0x80 of a file name (PEP 383)
        (b'{"a"', []),
        (b'{"a": "}', []),
    ],
)
def test_messages_are_parsed_however_they_are_split(data: bytes, messages: list[Any]) -> None:
    assert parse(data) == messages
    stream, found = JsonStream(), []
    for at in range(len(data)):
        stream.feed(data[at : at + 1])
        found += drain(stream)
    assert found == messages


@pytest.mark.parametrize(
    ("data", "desc"),
    [
        (b"[]", "QMP input must be a JSON object"),
        (b"[1,\n2]", "QMP input must be a JSON object"),
        (b"3", "QMP input must be a JSON object"),
        (b'"x"', "QMP input must be a JSON object"),
        (b"GET / HTTP/1.1\r", "QMP input must be a JSON object"),
        (b"\xff\x00", "QMP input must be a JSON object"),
        (b"}}}", "QMP input must be a JSON object"),
        (b'{"a": 1, "a": 2}', "JSON parse error, duplicate key"),
        (b'{"a":]}', "JSON parse error, stray ']'"),
        (b'{"a": [1}', "JSON parse error, stray '}'"),
        (b'{"a"}', "JSON parse error, expecting ':' delimiter"),
        (b'{"a": NaN}', "JSON parse error, stray 'NaN'"),
        (b'{"a": -Infinity}', "JSON parse error, stray '-Infinity'"),
        (b'{"a": 1e999}', "JSON parse error, number out of range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "JSON parse error, number out of range"),
        (b'{"a": ' + b"9" * 101 + b"}", "JSON parse error, number out of range"),
        (b'{"a": "\xff"}', "JSON parse error, invalid UTF-8"),
        (b'{"a": "\\ud800"}', "JSON parse error, invalid character in a string"),
        (b'{"a": ["\\uDFFF"]}', "JSON parse error, invalid character in a string"),
        (b'{"\\ude00\\ud83d": 1}', "JSON parse error, invalid character in a string"),
        (b'{"a": {"\\u0000": 1}}', "JSON parse error, invalid character in a string"),
        (b'{"a": "\t"}', "JSON parse error, control character in a string"),
        (b'{"execute": "stop\n', "JSON parse error, control character in a string"),
        (b"[" * (MAX_DEPTH + 1), "JSON nesting depth limit exceeded"),
        (b'{"a": "' + b"x" * MAX_MESSAGE_BYTES, "JSON token size limit exceeded"),
        (b'{"a": [' + b'"",' * MAX_TOKENS, "JSON token count limit exceeded"),
        ("{}".encode("utf-16"), "QMP input must be a JSON object"),
    ],
)
def test_invalid_input_is_one_error_and_the_next_line_is_parsed(data: bytes, desc: str) -> None:
    items = parse(data + NEXT)
    assert items[-1] == {"next": 1}
    assert len(items) == 2
    assert items[0].startswith(desc)


def test_messages_at_the_limits_are_accepted() -> None:
    deepest = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert len(parse(deepest)) == 1
    assert isinstance(parse(deepest)[0], dict)
    most_tokens = b'{"a":[' + b"1," * (MAX_TOKENS - 6) + b"1]}"
    assert len(parse(most_tokens)[0]["a"]) == MAX_TOKENS - 5
    assert parse(most_tokens.replace(b"1", b"1,1", 1) + b"\n") == [
        "JSON token count limit exceeded"
    ]
    shell = len(b'{"a":""}')
    longest = b'{"a":"' + b"x" * (MAX_MESSAGE_BYTES - shell) + b'"}'
    assert [len(message["a"]) for message in parse(longest)] == [MAX_MESSAGE_BYTES - shell]
    assert parse(b" " + longest.replace(b"x", b"xx", 1) + b"\n") == [
        "JSON token size limit exceeded"
    ]


def test_an_endless_message_is_not_buffered() -> None:
    stream = JsonStream(max_bytes=1000)
    for _ in range(100):
        stream.feed(b'{"a": "' + b"y" * 1000)
        drain(stream)
        assert len(stream._buffer) <= 1000


@pytest.mark.parametrize("chunk_bytes", [256, 65536])
@pytest.mark.parametrize(
    "data",
    [
        b"{}" * 100_000,
        b"x\n" * 100_000,
        b'{"a": ["' + b'\\"' * 300_000 + b'"]}',
        b'{"a": [' + b'"",' * 300_000 + b"1]}\n",
        b'{"a": "' + b"y" * 1_000_000 + b'"}',
        b" " * 1_000_000 + b"{}",
    ],
    ids=["objects", "garbage lines", "escapes", "strings", "a long string", "blanks"],
)
def test_parsing_time_is_linear_in_the_input(data: bytes, chunk_bytes: int) -> None:
    def seconds(part: bytes) -> float:
        stream = JsonStream()
        begin = time.process_time()
        for at in range(0, len(part), chunk_bytes):
            stream.feed(part[at : at + chunk_bytes])
            drain(stream)
        return time.process_time() - begin

    quarter = min(seconds(data[: len(data) // 4]) for _ in range(3))
    assert seconds(data) < 12 * quarter + 0.05  # 16 if it were quadratic


def test_the_greeting_has_the_members_of_qemus() -> None:
    banner = qmp.greeting()["QMP"]
    assert banner["capabilities"] == []
    assert set(banner["version"]) == {"qemu", "package"}
    assert set(banner["version"]["qemu"]) == {"major", "minor", "micro"}


def test_an_event_has_a_timestamp_and_no_empty_data() -> None:
    assert qmp.event("STOP", {}, 1_500_000_999) == {
        "event": "STOP",
        "timestamp": {"seconds": 1, "microseconds": 500_000},
    }
    assert qmp.event("BALLOON_CHANGE", {"actual": 5}, 0)["data"] == {"actual": 5}


def test_lines_are_ascii_and_end_with_cr_lf() -> None:
    line = qmp.encode({"return": "é\n\ud800"})
    assert line.endswith(b"\r\n")
    assert line.count(b"\n") == 1
    assert line.isascii()


Ask = Callable[..., Any]


def reply_to(session: QmpSession, message: dict[str, Any]) -> dict[str, Any]:
    """Return the reply to a message that does not wait for the guest."""
    reply = session.reply(message)
    assert isinstance(reply, bytes)
    return decoded(reply)


def decoded(line: bytes) -> dict[str, Any]:
    message = json.loads(line)
    assert isinstance(message, dict)
    return message


@pytest.fixture
def vm() -> InMemoryVm:
    return InMemoryVm(step_bytes=0)


@pytest.fixture
def ask(vm: InMemoryVm) -> Ask:
    """Return a function that executes a command and returns its value or (class, desc)."""
    session = QmpSession(vm)
    session.reply({"execute": "qmp_capabilities"})

    def ask(command: str, **arguments: Any) -> Any:
        request: dict[str, Any] = {"execute": command, "id": 7}
        reply = reply_to(session, {**request, "arguments": arguments} if arguments else request)
        assert reply.pop("id") == 7
        if "error" in reply:
            return reply["error"]["class"], reply["error"]["desc"]
        return reply["return"]

    return ask


def test_negotiation_is_required_once_and_before_any_command(vm: InMemoryVm) -> None:
    session = QmpSession(vm)
    reply = reply_to(session, {"execute": "stop", "id": [1]})
    assert reply == {
        "error": {
            "class": "CommandNotFound",
            "desc": "Expecting capabilities negotiation with 'qmp_capabilities'",
        },
        "id": [1],
    }
    reply = reply_to(session, {"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}})
    assert reply["error"]["class"] == "GenericError"
    assert not session.negotiated
    reply = reply_to(session, {"execute": "qmp_capabilities", "arguments": {"enable": []}})
    assert reply == {"return": {}}
    assert session.negotiated
    assert reply_to(session, {"execute": "qmp_capabilities"})["error"]["desc"] == (
        "Capabilities negotiation is already complete, command ignored"
    )
    assert vm.status == "running"


@pytest.mark.parametrize(
    ("message", "desc"),
    [
        ({}, "QMP input lacks member 'execute'"),
        ({"execute": 1}, "QMP input member 'execute' must be a string"),
        ({"execute": "stop", "arguments": []}, "QMP input member 'arguments' must be an object"),
        ({"execute": "stop", "x": 1}, "QMP input member 'x' is unexpected"),
        ({"exec-oob": "stop"}, "QMP input member 'exec-oob' is unexpected"),
        ({"execute": "stop", "arguments": {"x": 1}}, "Parameter 'x' is unexpected"),
    ],
)
def test_errors_of_malformed_requests_have_their_id(
    vm: InMemoryVm, message: dict[str, Any], desc: str
) -> None:
    session = QmpSession(vm)
    session.reply({"execute": "qmp_capabilities"})
    reply = reply_to(session, {**message, "id": "é"})
    assert reply == {"error": {"class": "GenericError", "desc": desc}, "id": "é"}
    assert "id" not in reply_to(session, message)
    assert vm.status == "running"


def test_an_unknown_command_is_not_found(ask: Ask) -> None:
    assert ask("nosuch") == ("CommandNotFound", "The command nosuch has not been found")


def test_query_commands_names_every_command(ask: Ask) -> None:
    assert {entry["name"] for entry in ask("query-commands")} == set(COMMANDS)


def test_queries_return_the_state_of_the_vm(ask: Ask) -> None:
    assert ask("query-version") == qmp.greeting()["QMP"]["version"]
    assert ask("query-status") == {"status": "running", "running": True}
    assert ask("query-balloon") == {
        "actual": GIB,
        "target": GIB,
        "driver": True,
        "kept": 36864,
    }
    assert ask("query-memory-size-summary") == {"base-memory": GIB}
    assert ask("query-cpus-fast") == [
        {"cpu-index": 0, "thread-id": threading.get_native_id(), "target": "x86_64"}
    ]


def test_stop_and_cont_are_idempotent(ask: Ask, vm: InMemoryVm) -> None:
    events: list[str] = []
    vm.subscribe(lambda name, data: events.append(name))
    assert [ask("cont"), ask("stop"), ask("stop")] == [{}, {}, {}]
    assert ask("query-status") == {"status": "paused", "running": False}
    assert [ask("cont"), ask("cont")] == [{}, {}]
    assert events == ["STOP", "RESUME"]


@pytest.mark.parametrize("status", ["shutdown", "guest-panicked"])
def test_an_ended_vm_cannot_be_resumed(ask: Ask, vm: InMemoryVm, status: Any) -> None:
    vm.status = status
    assert ask("cont") == ("GenericError", "Resetting the Virtual Machine is required")
    assert ask("stop") == {}
    assert ask("query-status") == {"status": status, "running": False}


def test_quit_ends_the_vm(ask: Ask, vm: InMemoryVm) -> None:
    events: list[tuple[str, Any]] = []
    vm.subscribe(lambda name, data: events.append((name, data)))
    assert ask("quit") == {}
    assert events == [("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})]


@pytest.mark.parametrize("value", [1, 4097, 256 * MIB, GIB])
def test_balloon_accepts_any_size_up_to_ram(ask: Ask, vm: InMemoryVm, value: int) -> None:
    assert ask("balloon", value=value) == {}
    assert vm.targets == [value]


@pytest.mark.parametrize("value", [1.5, 268435456.0, "256M", True, False, None, [1], {"a": 1}])
def test_balloon_rejects_values_that_are_not_integers(
    ask: Ask, vm: InMemoryVm, value: object
) -> None:
    desc = "Invalid parameter type for 'value', expected: integer"
    assert ask("balloon", value=value) == ("GenericError", desc)
    assert vm.targets == []


@pytest.mark.parametrize("value", [0, -1, -(1 << 70), GIB + 1, 1 << 70])
def test_balloon_rejects_sizes_out_of_range(ask: Ask, vm: InMemoryVm, value: int) -> None:
    error_class, desc = ask("balloon", value=value)
    assert error_class == "GenericError"
    assert desc.startswith("Parameter 'value' expects a size")
    assert (str(GIB) in desc) == (value > 0)
    assert vm.targets == []


def test_balloon_requires_its_argument_and_no_other(ask: Ask, vm: InMemoryVm) -> None:
    assert ask("balloon") == ("GenericError", "Parameter 'value' is missing")
    assert ask("balloon", value=MIB, x=1) == ("GenericError", "Parameter 'x' is unexpected")
    assert vm.targets == []


def test_every_reply_can_be_encoded(vm: InMemoryVm) -> None:
    session = QmpSession(vm)
    for message in parse(b'{"id": [1e308, "\\udc80", null, -0.0]} {"execute": "\\udcff"}'):
        json.loads(qmp.encode(reply_to(session, message)))


def test_a_command_that_raises_is_replied_to_and_logged(
    vm: InMemoryVm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(vm: object) -> None:
        raise ZeroDivisionError("in the VM")

    async def fail_later(vm: object) -> None:
        raise ZeroDivisionError("in the guest")

    def refuse(vm: object) -> None:
        raise QmpError("not now")

    monkeypatch.setitem(COMMANDS, "fail", Command(fail))
    monkeypatch.setitem(COMMANDS, "fail-later", Command(fail_later))
    monkeypatch.setitem(COMMANDS, "refuse", Command(refuse))
    session = QmpSession(vm)
    session.reply({"execute": "qmp_capabilities"})
    reply = reply_to(session, {"execute": "fail", "id": 1})
    desc = "Internal error: ZeroDivisionError('in the VM')"
    assert reply == {"error": {"class": "GenericError", "desc": desc}, "id": 1}
    later = session.reply({"execute": "fail-later", "id": 2})
    assert not isinstance(later, bytes)
    desc = "Internal error: ZeroDivisionError('in the guest')"
    assert decoded(asyncio.run(awaited(later))) == {
        "error": {"class": "GenericError", "desc": desc},
        "id": 2,
    }
    assert caplog.text.count("Traceback") == 2
    assert reply_to(session, {"execute": "refuse"})["error"]["desc"] == "not now"
    assert caplog.text.count("Traceback") == 2
    assert reply_to(session, {"execute": "query-status"})["return"]["running"]


@pytest.mark.parametrize(
    "value",
    [float("nan"), {1}, object(), {(): 1}],
    ids=["NaN", "a set", "an object", "a tuple as key"],
)
@pytest.mark.parametrize("waits", [False, True])
def test_a_value_that_is_not_json_is_an_error(
    vm: InMemoryVm,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    value: object,
    waits: bool,
) -> None:
    async def later(vm: object) -> object:
        return value

    monkeypatch.setitem(COMMANDS, "odd", Command(later if waits else lambda vm: value))
    session = QmpSession(vm)
    session.reply({"execute": "qmp_capabilities"})
    reply = session.reply({"execute": "odd", "id": 1})
    line = reply if isinstance(reply, bytes) else asyncio.run(awaited(reply))
    assert decoded(line)["error"]["desc"].startswith("Internal error: ")
    assert decoded(line)["id"] == 1
    assert caplog.text.count("Traceback") == 1


def test_a_command_whose_own_wait_is_cancelled_is_replied_to(
    vm: InMemoryVm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def cancelled(vm: object) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    monkeypatch.setitem(COMMANDS, "cancelled", Command(cancelled))
    session = QmpSession(vm)
    session.reply({"execute": "qmp_capabilities"})
    reply = session.reply({"execute": "cancelled", "id": 1})
    assert not isinstance(reply, bytes)
    assert decoded(asyncio.run(awaited(reply))) == {
        "error": {"class": "GenericError", "desc": "Internal error: CancelledError()"},
        "id": 1,
    }
    assert caplog.text.count("a control command failed because of a bug") == 1


async def awaited(reply: Awaitable[bytes]) -> bytes:
    return await reply


@pytest.mark.parametrize("text", ["/s\0", "/s\ud800", "\udfff"])
@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("snapshot-to-file", "path"),
        ("migrate", "uri"),
        ("migrate", "tls-key"),
        ("qom-list", "path"),
    ],
)
def test_strings_that_cannot_be_paths_are_rejected(
    ask: Ask, vm: InMemoryVm, command: str, name: str, text: str
) -> None:
    arguments = {"uri": "unix:/m", name: text} if command == "migrate" else {name: text}
    desc = f"Parameter '{name}' contains an invalid character"
    assert ask(command, **arguments) == ("GenericError", desc)
    assert vm.migrations.status == "none"
