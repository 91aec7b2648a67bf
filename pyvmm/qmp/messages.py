# SPDX-License-Identifier: Apache-2.0
"""What QMP messages mean: requests, replies, errors and events, as QEMU words them.

The protocol is QEMU's docs/interop/qmp-spec. The server greets; the client answers with
`qmp_capabilities`; from then on every request is a JSON object with "execute", optionally
"arguments" and "id", and gets exactly one reply, with "return" or "error" and the same "id". Events
come at any time. Values in, values out: nothing here reads or writes anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pyvmm.version import VERSION

ErrorClass = Literal["GenericError", "CommandNotFound", "DeviceNotActive", "DeviceNotFound"]


class QmpError(Exception):
    """A request that cannot be served: QMP's error class and a description for people."""

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
    """The request in `message`; raises `QmpError` for a wrong shape.

    Out-of-band execution is not offered in the greeting, so "exec-oob" is a member like any other
    unknown one (qmp-spec, "Out-of-band execution").
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
    """QMP's VersionInfo. The member is called "qemu" whoever answers; the package says who."""
    major, minor, micro = (int(part) for part in VERSION.split("."))
    return {
        "qemu": {"major": major, "minor": minor, "micro": micro},
        "package": f"pyvmm {VERSION}",
    }


def greeting() -> dict[str, Any]:
    """What a server says first."""
    return {"QMP": {"version": version(), "capabilities": []}}


def success(value: Any) -> dict[str, Any]:
    """The reply of a command that returned `value`."""
    return {"return": value}


def failure(error: QmpError) -> dict[str, Any]:
    """The reply of a command that failed, or to input that is no command."""
    return {"error": {"class": error.error_class, "desc": error.desc}}


def event(name: str, data: Mapping[str, object], time_ns: int) -> dict[str, Any]:
    """Event `name`, which happened `time_ns` nanoseconds after the epoch; no empty "data"."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    timestamp = {"seconds": seconds, "microseconds": nanoseconds // 1000}
    message: dict[str, Any] = {"timestamp": timestamp, "event": name}
    if data:
        message["data"] = dict(data)
    return message


def encode(message: Mapping[str, Any]) -> bytes:
    """`message` as one line of ASCII, ended as QEMU ends its lines."""
    return json.dumps(message, allow_nan=False).encode("ascii") + b"\r\n"
