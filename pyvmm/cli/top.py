# SPDX-License-Identifier: Apache-2.0
"""`pyvmm top`: show the running guests of this user with their rates, live or once.

Two queries of all guests give the rates between them. A terminal gets them repeatedly
(`top_screen`), anything else one table or one document.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from pyvmm.cli.guest_rates import GuestRates, rate_lines, rates_between
from pyvmm.cli.guest_states import query_states
from pyvmm.cli.json_output import json_option, print_json
from pyvmm.cli.options import parse_positive_seconds
from pyvmm.cli.ps import document
from pyvmm.standard_streams.text import print_line, print_message


@click.command()
@click.option(
    "--interval",
    "interval_s",
    type=parse_positive_seconds,
    default=1.0,
    show_default=True,
    metavar="S",
    help="Seconds between two queries of the guests.",
)
@click.option("--once", is_flag=True, help="Print one table, as without a terminal.")
@json_option
def top(interval_s: float, once: bool, as_json: bool) -> int:
    """Show the running guests of this user with their exits and requests per second.

    ACTUAL is the RAM that the balloon leaves to a guest, RSS the memory that its process has on the
    host. Exits are those of all vCPUs: for accesses to ports (PIO), to registers in memory (MMIO),
    to the serial port's fast path (FAST), because of a signal (INTR), and others. Requests are the
    buffers that each device has taken from its queues.

    On a terminal the table is updated until the key q: s sorts it by another column, the space bar
    updates it at once. With --json, one document is printed.

    \b
    Watch all guests, then print how many requests the balloon of one gets:
      pyvmm top
      pyvmm top --json | jq '.guests[] | select(.name == "web").requests.balloon'

    The exit status is 0, also without any guest, 2 when others could have changed the list of
    guests, and 128 + N when signal N ended the command.
    """
    if not (once or as_json) and sys.stdin.isatty() and sys.stdout.isatty():
        # Late: saves 1 ms for a script.
        from pyvmm.cli.top_screen import show_until_key

        return show_until_key(interval_s)
    before = query_states()
    time.sleep(interval_s)
    guests = rates_between(before, query_states())
    if as_json:
        print_json({"guests": [_document(guest) for guest in guests]})
    elif guests:
        for line in rate_lines(guests):
            print_line(line)
    else:
        print_message("no guest is running")
    return 0


def _document(guest: GuestRates) -> dict[str, Any]:
    return {
        **document(guest.state),
        "exits": None if guest.exits is None else dict(guest.exits),
        "requests": None if guest.requests is None else dict(guest.requests),
    }
