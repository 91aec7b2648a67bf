# SPDX-License-Identifier: Apache-2.0
"""`pyvmm ps`: list the running guests of this user."""

from __future__ import annotations

import time
from typing import Any

import click

from pyvmm.cli.guest_states import GuestState, query_states
from pyvmm.cli.json_output import json_option, print_json
from pyvmm.cli.text_table import print_table
from pyvmm.sockets.addresses import format_unix_address
from pyvmm.standard_streams.text import print_message
from pyvmm.units import format_size

COLUMNS = ("NAME", "PID", "STATUS", "RAM", "ACTUAL", "RSS", "UP", "IMAGE")
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


@click.command()
@json_option
def ps(as_json: bool) -> int:
    """List the running guests of this user: those that 'pyvmm run' has announced.

    ACTUAL is the RAM that the balloon leaves to the guest, RSS the memory that its process has on
    the host; PID is the process to send a signal to. STATUS is that of 'pyvmm status'; it is
    inmigrate until a guest of --incoming has arrived, starting while a new one does not answer yet.

    \b
    List them, and end one:
      pyvmm ps
      pyvmm quit --vm web

    The exit status is 0, also without any guest, and 2 when others could have changed the list.
    """
    states = query_states()
    if as_json:
        print_json({"guests": [document(state) for state in states]})
    elif states:
        print_table(COLUMNS, [_row(state) for state in states], right="PID RAM ACTUAL RSS UP")
    else:
        print_message("no guest is running")
    return 0


def document(state: GuestState) -> dict[str, Any]:
    """Return the document of one guest."""
    guest = state.guest
    return {
        "name": guest.name,
        "pid": guest.pid,
        "status": state.status,
        "base-memory": state.ram_bytes,
        "actual": state.actual_bytes,
        "target": state.target_bytes,
        "rss": state.rss_bytes,
        "started": guest.started,
        "image": guest.image or None,
        "incoming": guest.incoming,
        "qmp": format_unix_address(guest.socket),
    }


def size_or_dash(size_bytes: int | None) -> str:
    """Return a size, or "-" for one that is not known."""
    return "-" if size_bytes is None else format_size(size_bytes)


def _row(state: GuestState) -> list[str]:
    guest = state.guest
    return [
        guest.name,
        str(guest.pid),
        state.status,
        format_size(state.ram_bytes),
        size_or_dash(state.actual_bytes),
        size_or_dash(state.rss_bytes),
        _duration(time.time() - guest.started),
        guest.image or f"from {guest.incoming}",
    ]


def _duration(seconds: float) -> str:
    """Return a duration in its largest whole unit: "45 s", "3 min", "5 h", "2 d"."""
    whole = max(0, int(seconds))
    name, length_s = next(unit for unit in _UNITS if whole >= unit[1] or unit[1] == 1)
    return f"{whole // length_s} {name}"
