# SPDX-License-Identifier: Apache-2.0
"""Saving the state of a device model and restoring it into another (`devices.state`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from devices.state import Fields, Payload, StateError, Stateful, decode, encode


def transfer_state(source: Stateful, target: Stateful) -> None:
    """Restore into `target` the state of `source`, through the bytes of a file.

    The state of a virtio device is part of its transport's: `source` and `target` are then the
    `transport` of two boards over the same RAM.

    AssertionError if saving changes `source`.
    """
    data = encode(source.save_state())
    target.restore_state(Fields(source.STATE_KIND, decode(data)))
    assert encode(source.save_state()) == data, "saving changed something"


def restores(target: Stateful, payload: Payload) -> bool:
    """Return whether `target` accepts `payload`, which may be arbitrary.

    AssertionError if it changes although it raises StateError; other exceptions are not caught.
    """
    before = encode(target.save_state())
    try:
        target.restore_state(Fields("hostile", payload))
    except StateError:
        assert encode(target.save_state()) == before
        return False
    return True


def mutable_copy(value: Any) -> Any:
    """Return a copy of a payload with dictionaries and lists that can be changed."""
    if isinstance(value, dict):
        return {name: mutable_copy(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [mutable_copy(each) for each in value]
    return value


def payload_items(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value in a payload, at any depth."""
    keys: Any = ()
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        yield value, key
        yield from payload_items(value[key])
