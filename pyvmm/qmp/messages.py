# SPDX-License-Identifier: Apache-2.0
"""QMP messages: requests, replies, errors and events, worded as QEMU words them.

The protocol is QEMU's docs/interop/qmp-spec. The server greets; the client answers with
`qmp_capabilities`; from then on every request is a JSON object with "execute", optionally
"arguments" and "id", and gets exactly one reply, with "return" or "error" and the same "id". Events
come at any time. Nothing here performs I/O.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pyvmm.version import VERSION

ErrorClass = Literal["GenericError", "CommandNotFound", "DeviceNotActive", "DeviceNotFound"]


class QmpError(Exception):
    """A failed request: QMP's error class and a description for people."""

    def __init__(self, desc: str, error_class: ErrorClass = "GenericError") -> None:
        super().__init__(desc)
        self.desc = desc
        self.error_class = error_class


@dataclass(frozen=True)
class Request:
    """A well-formed request; the command may still be unknown and its arguments wrong."""

    command: str
    arguments: dict[str, Any] = field(default_factory=dict)


def parse_request(message: Mapping[str, Any]) -> Request:
    """Return the request in `message`; raises `QmpError` if it is malformed.

    Out-of-band execution is not offered in the greeting, so "exec-oob" is an unknown member
    (qmp-spec, "Out-of-band execution").
    """
    for name, value in message.items():
        if name == "execute":
            if not isinstance(value, str):
                raise QmpError("QMP input member 'execute' must be a string")
        elif name == "arguments":
            if not isinstance(value, dict):
                raise QmpError("QMP input member 'arguments' must be an object")
        elif name != "id":
            raise QmpError(f"QMP input member '{name}' is unexpected")
    if "execute" not in message:
        raise QmpError("QMP input lacks member 'execute'")
    return Request(message["execute"], message.get("arguments", {}))


def version() -> dict[str, Any]:
    """Return QMP's VersionInfo. The member is always called "qemu"; "package" names pyvmm."""
    major, minor, micro = (int(part) for part in VERSION.split("."))
    return {
        "qemu": {"major": major, "minor": minor, "micro": micro},
        "package": f"pyvmm {VERSION}",
    }


def greeting() -> dict[str, Any]:
    """Return the greeting, the first message of a server."""
    return {"QMP": {"version": version(), "capabilities": []}}


def success(value: Any) -> dict[str, Any]:
    """Return the reply of a command that returned `value`."""
    return {"return": value}


def failure(error: QmpError) -> dict[str, Any]:
    """Return the reply of a failed command, or to input that is not a command."""
    return {"error": {"class": error.error_class, "desc": error.desc}}


def timestamp(time_ns: int) -> dict[str, int]:
    """Return the time `time_ns` nanoseconds after the epoch as QMP writes it."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return {"seconds": seconds, "microseconds": nanoseconds // 1000}


def event(name: str, data: Mapping[str, object], time_ns: int) -> dict[str, Any]:
    """Return event `name`, which happened `time_ns` nanoseconds after the epoch.

    Without data it has no member "data".
    """
    message: dict[str, Any] = {"timestamp": timestamp(time_ns), "event": name}
    if data:
        message["data"] = dict(data)
    return message


def encode(message: Mapping[str, Any]) -> bytes:
    """Return `message` as one line of ASCII, terminated by CR LF as QEMU does."""
    return json.dumps(message, allow_nan=False).encode("ascii") + b"\r\n"
