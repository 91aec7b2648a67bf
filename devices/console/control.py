# SPDX-License-Identifier: Apache-2.0
"""Control messages of the console: struct virtio_console_control (VIRTIO 1.2, 5.3.6.2).

Device and driver exchange messages of 8 bytes, little-endian: the number of a port, an event and a
value. The device appends a name or a window size to some. `decode` reads the driver's.

Messages to the driver wait in `PendingMessages` until the driver supplies a buffer. A driver that
supplies none must not make the queue grow, so a message that repeats a pending one is not added,
and of a port that keeps opening and closing only the last two changes are kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from devices.errors import BadPayload
from devices.state import Fields, Payload

HEADER = struct.Struct("<IHH")
"""id, event and value."""
WINDOW_SIZE = struct.Struct("<HH")
"""struct virtio_console_resize: columns and rows."""


class Event(IntEnum):
    """Events of control messages (5.3.6.2)."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


DRIVER_EVENTS = (Event.DEVICE_READY, Event.PORT_READY, Event.PORT_OPEN)
DEVICE_EVENTS = tuple(event for event in Event if event not in DRIVER_EVENTS[:2])
"""Events that the driver sends, and those that the device sends."""


class ControlMessage(NamedTuple):
    """One message, without what follows its header."""

    port: int
    """Number of the port; not used by DEVICE_READY."""
    event: Event
    """The event, which determines the meaning of the rest."""
    value: int
    """0 or 1."""


def decode(data: bytes) -> ControlMessage:
    """Return the message that the driver has sent. Raises BadPayload."""
    if len(data) != HEADER.size:
        raise BadPayload(f"a control message has {HEADER.size} bytes, not {len(data)}")
    port, event, value = HEADER.unpack(data)
    if event not in DRIVER_EVENTS:
        raise BadPayload(f"a driver does not send control event {event}")
    if value > 1:
        raise BadPayload(f"control event {event} has value {value}, not 0 or 1")
    return ControlMessage(port, Event(event), value)


class PendingMessages:
    """Messages to the driver, in order; at most `MAX_PER_PORT` for each port."""

    MAX_PER_PORT = len(DEVICE_EVENTS) + 1

    def __init__(self) -> None:
        self._messages: list[ControlMessage] = []

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[ControlMessage]:
        return iter(self._messages)

    @property
    def first(self) -> ControlMessage:
        """The message to send next; IndexError if there is none."""
        return self._messages[0]

    def add(self, port: int, event: Event, value: int = 0) -> None:
        """Append a message, unless an equal one is pending that no other has made obsolete."""
        same = [each for each in self._messages if each[:2] == (port, event)]
        if same and same[-1].value == value:
            return
        if len(same) == 2:  # PORT_OPEN: the driver will see the change before these two
            del self._messages[self._last_index(same[-1])]
        else:
            self._messages.append(ControlMessage(port, event, value))

    def take_first(self) -> None:
        """Remove the first message: it was sent."""
        del self._messages[0]

    def drop(self, port: int, *events: Event) -> None:
        """Remove the messages of `port` with one of `events`, or with any but DEVICE_REMOVE."""
        dropped = events or tuple(event for event in Event if event is not Event.DEVICE_REMOVE)
        self._messages = [
            each for each in self._messages if each.port != port or each.event not in dropped
        ]

    def clear(self) -> None:
        """Remove all messages."""
        self._messages.clear()

    def save_state(self) -> list[Payload]:
        """Return all messages."""
        return [
            {"port": each.port, "event": int(each.event), "value": each.value}
            for each in self._messages
        ]

    @classmethod
    def from_state(cls, state: Fields, name: str, max_ports: int) -> PendingMessages:
        """Return the messages of the list `name` in `state`. Raises StateError."""
        pending = cls()
        for saved in state.parts(name, at_most=max_ports * cls.MAX_PER_PORT):
            event = saved.number("event", below=len(Event))
            if event not in DEVICE_EVENTS:
                raise saved.error("event", f"cannot be {event}")
            pending.add(
                saved.number("port", below=max_ports),
                Event(event),
                saved.number("value", below=2),
            )
        return pending

    def _last_index(self, message: ControlMessage) -> int:
        return len(self._messages) - 1 - self._messages[::-1].index(message)
