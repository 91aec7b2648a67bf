# SPDX-License-Identifier: Apache-2.0
"""The sources of events that the server knows: the Protocol of both, and their description.

`describe` makes the answer of `api/source`, from which the page learns what there is to see.
"""

from __future__ import annotations

from typing import Any

from pyvmm.memory.layout import ram_ranges
from pyvmm.trace.kinds import KINDS


def describe(
    *,
    live: bool,
    name: str,
    ram_bytes: int | None,
    devices: list[dict[str, Any]],
    start_ns: int,
    notes: list[str],
) -> dict[str, Any]:
    """Return the description of a source, ready for JSON.

    `start_ns` is CLOCK_MONOTONIC of its first event; 0 if it is not known. `devices` have a `name`
    and the names of their `queues`; those that only events name are found by the page.
    """
    return {
        "live": live,
        "name": name,
        "memory": ram_bytes,
        "ram": [list(each) for each in ram_ranges(ram_bytes)] if ram_bytes else [],
        "devices": devices,
        "kinds": [
            {"name": kind.name, "meaning": kind.meaning, "fields": kind.fields} for kind in KINDS
        ],
        "start-ns": start_ns,
        "notes": notes,
    }
