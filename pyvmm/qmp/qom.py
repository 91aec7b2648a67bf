# SPDX-License-Identifier: Apache-2.0
"""The balloon's statistics over QMP: as properties in QEMU's object model, and fresh on demand.

Clients written for QEMU find the balloon by walking the object tree with `qom-list` until they meet
a `child<virtio-balloon-pci>`, switch polling on by its property `guest-stats-polling-interval`, and
read `guest-stats`, as QEMU's docs/interop/virtio-balloon-stats describes. So there is such a tree
here, with the few objects on the way and nothing else. Errors are those of QEMU's qom/object.c and
hw/virtio/virtio-balloon.c. `query-balloon-stats` is ours: it asks the guest and waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from devices.balloon.stat_tags import STATISTICS
from pyvmm.balloon.statistics import StatisticsUnavailable
from pyvmm.qmp.messages import QmpError
from pyvmm.qmp.vm_control import MachineControl

ABSENT = 2**64 - 1
"""How QEMU's `guest-stats` shows a statistic that the guest did not report: -1, unsigned."""
MAX_INTERVAL_S = 2**32 - 1
DEFAULT_TIMEOUT_S = 5.0
MAX_TIMEOUT_S = 86400.0


@dataclass(frozen=True)
class Property:
    """One property of an object; without `set` it cannot be written."""

    type: str
    get: Callable[[MachineControl], Any]
    set: Callable[[MachineControl, Any], None] | None = None


@dataclass(frozen=True)
class Node:
    """An object of the tree: its type and the properties that are not its children."""

    type: str
    properties: Mapping[str, Property] = field(default_factory=dict)


def _guest_stats(machine: MachineControl) -> dict[str, Any]:
    """Whatever came last; "last-update" 0 says that nothing came yet."""
    last = machine.balloon_statistics.last
    values = last.report.values if last else {}
    return {
        "stats": {each.name: values.get(tag, ABSENT) for tag, each in enumerate(STATISTICS)},
        "last-update": last.time_ns // 1_000_000_000 if last else 0,
    }


def _set_polling_interval(machine: MachineControl, value: Any) -> None:
    if type(value) is not int:
        raise QmpError(
            "Invalid parameter type for 'guest-stats-polling-interval', expected: integer"
        )
    if value < 0:
        raise QmpError("timer value must be greater than zero")
    if value > MAX_INTERVAL_S:
        raise QmpError("timer value is too big")
    machine.balloon_statistics.set_polling_interval(value)


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
                lambda machine: machine.balloon_statistics.polling_interval_s,
                _set_polling_interval,
            ),
        },
    ),
}


def _resolve(path: str) -> str:
    """The full path of an object given by it or by the end of it, as QEMU allows."""
    parts = [part for part in path.split("/") if part]
    wanted = "/" + "/".join(parts)
    for full_path in _TREE:
        if full_path == wanted or (not path.startswith("/") and full_path.endswith(wanted)):
            return full_path
    raise QmpError(f"Device '{path}' not found", "DeviceNotFound")


def _properties(full_path: str) -> dict[str, Property]:
    """All properties of an object: "type", its children, and its own."""
    node = _TREE[full_path]
    prefix = full_path.rstrip("/") + "/"
    children = {
        path.removeprefix(prefix): _child(path)
        for path in _TREE
        if path != full_path and path.startswith(prefix) and "/" not in path.removeprefix(prefix)
    }
    return {"type": Property("string", lambda machine: node.type), **children, **node.properties}


def _child(path: str) -> Property:
    return Property(f"child<{_TREE[path].type}>", lambda machine: path)


def _property(path: str, name: str) -> Property:
    full_path = _resolve(path)
    found = _properties(full_path).get(name)
    if found is None:
        raise QmpError(f"Property '{_TREE[full_path].type}.{name}' not found")
    return found


def qom_list(machine: MachineControl, path: str) -> list[dict[str, str]]:
    properties = _properties(_resolve(path))
    return [{"name": name, "type": each.type} for name, each in properties.items()]


def qom_get(machine: MachineControl, path: str, property: str) -> Any:
    return _property(path, property).get(machine)


def qom_set(machine: MachineControl, path: str, property: str, value: Any) -> dict[str, Any]:
    write = _property(path, property).set
    if write is None:
        type_name = _TREE[_resolve(path)].type
        raise QmpError(f"Property '{type_name}.{property}' is not writable")
    write(machine, value)
    return {}


async def query_balloon_stats(
    machine: MachineControl, timeout: float = DEFAULT_TIMEOUT_S
) -> dict[str, Any]:
    """Statistics measured after the request; null for what the guest does not report."""
    if not 0 <= timeout <= MAX_TIMEOUT_S:
        raise QmpError(f"Parameter 'timeout' expects seconds, 0 to {MAX_TIMEOUT_S:g}")
    try:
        timed = await machine.balloon_statistics.fresh(timeout)
    except StatisticsUnavailable as error:
        paused = ": it is paused" if machine.status == "paused" else ""
        raise QmpError(f"{error}{paused}", "DeviceNotActive") from None
    seconds, nanoseconds = divmod(timed.time_ns, 1_000_000_000)
    return {
        "stats": timed.report.known,
        "unknown": {str(tag): value for tag, value in timed.report.unknown.items()},
        "time": {"seconds": seconds, "microseconds": nanoseconds // 1000},
    }
