# SPDX-License-Identifier: Apache-2.0
"""The saved ports of a console, which become those of the device that they are restored into.

A port that exists here with the number and name of a saved one is restored, so its host stays
connected. Ports that were plugged in at the source are made.
"""

from __future__ import annotations

from collections.abc import Mapping

from devices.console.names import is_port_name
from devices.console.port import ConsolePort, PortDevice
from devices.console.queues import transmit_queue
from devices.state import Fields, Restore
from devices.virtio.device import SavedDevice


def check_ports(
    device: PortDevice, state: Fields, saved: SavedDevice, present: Mapping[int, ConsolePort]
) -> tuple[dict[int, ConsolePort], list[Restore]]:
    """Check the ports in `state`; return them by number, and the functions that restore them.

    `present` are the ports of `device` now. Raises StateError.
    """
    ports: dict[int, ConsolePort] = {}
    restores = []
    for each in state.parts("ports", at_most=_max_ports(saved)):
        port = _port(device, each, _max_ports(saved), present)
        if port.number in ports or port.name in [other.name for other in ports.values()]:
            raise each.error("name", f"{port.name!r} or its number is that of another port")
        ports[port.number] = port
        restores.append(_check_port(port, each, saved))
    return ports, restores


def _max_ports(saved: SavedDevice) -> int:
    return len(saved.queues) // 2 - 1


def _port(
    device: PortDevice, state: Fields, max_ports: int, present: Mapping[int, ConsolePort]
) -> ConsolePort:
    """Return the port of a saved one's number, or a new one."""
    number, name = state.number("number", below=max_ports), state.text("name")
    is_console = state.flag("is_console")
    port = present.get(number)
    if port is None:
        port = ConsolePort(number, name, is_console=is_console, device=device)
    if (port.name, port.is_console) != (name, is_console):
        raise state.error("name", f"is {name!r} in the saved state and {port.name!r} here")
    if is_console != (number == 0) or not is_port_name(name):
        raise state.error("name", f"cannot be {name!r} of port {number}")
    return port


def _check_port(port: ConsolePort, state: Fields, saved: SavedDevice) -> Restore:
    held, restore_port = port.check_state(state)
    ring = saved.queues[transmit_queue(port.number)].ring
    if held and (ring is None or ring.next_avail == ring.next_used):
        raise state.error("held", "is a buffer of a queue that has none in flight")

    def restore() -> None:
        restore_port()
        if held and ring is not None:
            ring.next_avail = (ring.next_avail - 1) & 0xFFFF  # take the buffer again

    return restore
