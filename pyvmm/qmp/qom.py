# SPDX-License-Identifier: Apache-2.0
"""QEMU's object model (QOM), as far as clients need it for the balloon's statistics.

Clients written for QEMU find the balloon by walking the object tree with `qom-list` until they meet
a `child<virtio-balloon-pci>`, enable polling by its property `guest-stats-polling-interval`, and
read `guest-stats`, as QEMU's docs/interop/virtio-balloon-stats describes. The tree consists of the
balloon and the objects on its path. Errors are worded as in QEMU's qom/object.c and
hw/virtio/virtio-balloon.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from devices.balloon.stat_tags import STATISTICS
from pyvmm.qmp.command import Command, Parameter
from pyvmm.qmp.messages import QmpError
from pyvmm.qmp.vm_control import VmControl

ABSENT = 2**64 - 1
"""The value in QEMU's `guest-stats` of a statistic that the guest does not report: -1, unsigned."""
MAX_INTERVAL_S = 2**32 - 1


@dataclass(frozen=True)
class Property:
    """A property of an object; read-only without `set`."""

    type: str
    get: Callable[[VmControl], Any]
    set: Callable[[VmControl, Any], None] | None = None


@dataclass(frozen=True)
class Node:
    """An object of the tree: its type and the properties other than its children."""

    type: str
    properties: Mapping[str, Property] = field(default_factory=dict)


def _guest_stats(vm: VmControl) -> dict[str, Any]:
    """Return the last report; "last-update" is 0 before the first."""
    last = vm.balloon_statistics.last
    values = last.report.values if last else {}
    return {
        "stats": {each.name: values.get(tag, ABSENT) for tag, each in enumerate(STATISTICS)},
        "last-update": last.time_ns // 1_000_000_000 if last else 0,
    }


def _set_polling_interval(vm: VmControl, value: Any) -> None:
    if type(value) is not int:
        raise QmpError(
            "Invalid parameter type for 'guest-stats-polling-interval', expected: integer"
        )
    if value < 0:
        raise QmpError("timer value must be greater than zero")
    if value > MAX_INTERVAL_S:
        raise QmpError("timer value is too big")
    vm.balloon_statistics.set_polling_interval(value)


_TREE = {
    "/": Node("container"),
    "/machine": Node("container"),
    "/machine/peripheral": Node("container"),
    "/machine/peripheral/balloon0": Node(
        "virtio-balloon-pci",
        {
            "guest-stats": Property("guest statistics", _guest_stats),
            "guest-stats-polling-interval": Property(
                "int",
                lambda vm: vm.balloon_statistics.polling_interval_s,
                _set_polling_interval,
            ),
        },
    ),
}


def _resolve(path: str) -> str:
    """Return the full path of an object, given its path or the end of it, as QEMU allows."""
    parts = [part for part in path.split("/") if part]
    suffix = "/" + "/".join(parts)
    for full_path in _TREE:
        if full_path == suffix or (not path.startswith("/") and full_path.endswith(suffix)):
            return full_path
    raise QmpError(f"Device '{path}' not found", "DeviceNotFound")


def _properties(full_path: str) -> dict[str, Property]:
    """Return all properties of an object: "type", its children, and its own."""
    node = _TREE[full_path]
    prefix = full_path.rstrip("/") + "/"
    children = {
        path.removeprefix(prefix): _child(path)
        for path in _TREE
        if path != full_path and path.startswith(prefix) and "/" not in path.removeprefix(prefix)
    }
    return {"type": Property("string", lambda vm: node.type), **children, **node.properties}


def _child(path: str) -> Property:
    return Property(f"child<{_TREE[path].type}>", lambda vm: path)


def _property(path: str, name: str) -> Property:
    full_path = _resolve(path)
    found = _properties(full_path).get(name)
    if found is None:
        raise QmpError(f"Property '{_TREE[full_path].type}.{name}' not found")
    return found


def qom_list(vm: VmControl, path: str) -> list[dict[str, str]]:
    """Return the names and types of an object's properties.

    The objects are `/`, `/machine`, `/machine/peripheral` and the balloon,
    `/machine/peripheral/balloon0`. A path without a leading slash may be the end of one, if that is
    unique.

    Arguments:
        path: the object
    Returns:
        [].name: the name of a property
        [].type: its type, or `child<TYPE>` for an object
    Errors:
        DeviceNotFound: no object has this path
    In QEMU:
        the same; the tree there has all objects
    """
    properties = _properties(_resolve(path))
    return [{"name": name, "type": each.type} for name, each in properties.items()]


def qom_get(vm: VmControl, path: str, property: str) -> Any:
    """Return the value of a property.

    `guest-stats` of the balloon is the last report of the guest's driver: `stats` has each
    statistic by name (2^64 - 1 if the guest does not report it), and `last-update` is the time of
    the report in seconds since the epoch, 0 if there was none. `guest-stats-polling-interval` is
    the time between two requests for a report in seconds, 0 if there are none.
    `query-balloon-stats` returns a report that is measured after the command instead.

    Arguments:
        path: the object
        property: the name of the property
    Errors:
        DeviceNotFound: no object has this path
        GenericError: the object does not have the property
    In QEMU:
        the same
    """
    return _property(path, property).get(vm)


def qom_set(vm: VmControl, path: str, property: str, value: Any) -> dict[str, Any]:
    """Set a property; only `guest-stats-polling-interval` can be set.

    Arguments:
        path: the object
        property: the name of the property
        value: for the interval, seconds from 0, which ends polling, to 2^32 - 1
    Errors:
        DeviceNotFound: no object has this path
        GenericError: the object does not have the property, or it cannot have the value
    In QEMU:
        the same
    """
    write = _property(path, property).set
    if write is None:
        type_name = _TREE[_resolve(path)].type
        raise QmpError(f"Property '{type_name}.{property}' is not writable")
    write(vm, value)
    return {}


_PATH = Parameter("path", str)
_PROPERTY = Parameter("property", str)

COMMANDS = {
    "qom-list": Command(qom_list, (_PATH,)),
    "qom-get": Command(qom_get, (_PATH, _PROPERTY)),
    "qom-set": Command(qom_set, (_PATH, _PROPERTY, Parameter("value", object))),
}
