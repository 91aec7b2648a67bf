# SPDX-License-Identifier: Apache-2.0
"""Events as lines for people: time, place, kind, and the fields in words.

    0.513204  balloon/inflate  chain  head 3: 2 descriptors, 4096 B readable, 0 B writable

The words of a kind are a function of its fields. A kind without words of its own, and an event of
another version whose fields they do not fit, show their fields by name. Text in events may come
from the guest: make a line printable before you print it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pyvmm.trace.logging import fields_text
from pyvmm.trace.stream import TraceEvent

_NS = 1_000_000_000
_IN_PLACE = ("device", "queue")
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_Fields = Mapping[str, Any]


class EventText(NamedTuple):
    """The columns of a line."""

    time: str
    """Seconds since the start, with microseconds."""
    place: str
    kind: str
    words: str


def event_text(event: TraceEvent, start_ns: int) -> EventText:
    """Return the columns of `event`; times count from `start_ns`."""
    place = "/".join(filter(None, (event.device or "machine", event.queue)))
    others = {name: event.fields[name] for name in event.fields if name not in _IN_PLACE}
    try:
        words = _WORDS[event.kind](event.fields)
    except (KeyError, TypeError, ValueError):
        words = fields_text(others)
    return EventText(f"{(event.time_ns - start_ns) / _NS:.6f}", place, event.kind, words)


def _descriptor(fields: _Fields) -> str:
    flags, table = fields["flags"], fields["table_gpa"]
    use = "writable" if flags & _WRITE else "readable"
    what = "an indirect table" if flags & _INDIRECT else use
    where = f" of the table at {table:#x}" if table else ""
    following = f", next {fields['next']}" if flags & _NEXT else ""
    place = f"[{fields['index']}]{where}: {fields['gpa']:#x}"
    return f"{place}, {fields['length']} B {what}{following}"


def _chain(fields: _Fields) -> str:
    count = fields["elements"]
    return (
        f"head {fields['head']}: {count} descriptor{'s' * (count != 1)},"
        f" {fields['readable_bytes']} B readable, {fields['writable_bytes']} B writable"
    )


def _notified(fields: _Fields) -> str:
    parts = []
    if caught := fields["caught"]:
        parts.append(f"{caught} by ioeventfd" + ", coalesced" * bool(fields["coalesced"]))
    if own := fields["own"]:
        parts.append(f"{own} by register or device")
    return ", ".join(parts)


def _avail_notifications(fields: _Fields) -> str:
    event_index = f" {fields['avail_event']}" if fields["why"] == "event index" else ""
    what = "asks the driver to notify" if fields["enabled"] else "suppresses notifications"
    return f"{what}, by {fields['why']}{event_index}"


def _used_notification(fields: _Fields) -> str:
    what = "notify" if fields["sent"] else "do not notify"
    index = f" {fields['used_event']}" if fields["why"] == "event index" else ""
    count = fields["buffers"]
    return (
        f"{what} of {count} used buffer{'s' * (count != 1)}, by {fields['why']}{index};"
        f" used index {fields['used_index']}"
    )


_WORDS: dict[str, Callable[[_Fields], str]] = {
    "register_read": lambda f: f"{f['table']}.{f['register']} is {f['value']:#x}",
    "register_write": lambda f: f"{f['table']}.{f['register']} := {f['value']:#x}",
    "status": lambda f: f"{f['before']:#x} -> {f['status']:#x}: {f['names'] or 'reset'}",
    "features": lambda f: f"accepted {f['accepted']:#x}: {f['accepted_names'] or 'none'}",
    "queue_live": lambda f: (
        f"{f['size']} entries: descriptors {f['desc_gpa']:#x}, available {f['driver_gpa']:#x},"
        f" used {f['device_gpa']:#x}"
    ),
    "notified": _notified,
    "avail_notifications": _avail_notifications,
    "descriptor": _descriptor,
    "chain": _chain,
    "used": lambda f: f"head {f['head']}: {f['length']} B written, at used index {f['used_index']}",
    "used_notification": _used_notification,
    "interrupt": lambda f: f"{f['cause']}: {f['how']}, vector {f['vector']}",
    "msix_route": lambda f: f"vector {f['vector']}: {f['address']:#x}, data {f['data']:#x}",
    "target": lambda f: f"{f['pages']} pages",
    "actual": lambda f: f"{f['pages']} pages",
    "inflate": lambda f: (
        f"{f['pages']} pages in {f['runs']} runs, {f['discarded_bytes']} B discarded"
    ),
    "deflate": lambda f: f"{f['pages']} pages in {f['runs']} runs",
    "dropped": lambda f: f"{f['count']} events are missing here",
}
