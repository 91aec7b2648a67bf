# SPDX-License-Identifier: Apache-2.0
"""The process of `pyvmm scope`: the server of the page, until a signal ends it.

When the guest ends, the page is served on: the last events are often the ones to look at.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import webbrowser
from urllib.parse import quote

from pyvmm.blocking.event_loop import run_on_new_loop
from pyvmm.blocking.process_limit import process_limit_reported
from pyvmm.scope.live_guest import LiveGuest
from pyvmm.scope.recorded_guest import RecordedGuest
from pyvmm.scope.server import ScopeServer
from pyvmm.standard_streams.text import print_line, print_message

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_GUEST_ENDED = 1


def has_display() -> bool:
    """Return whether a browser can show a page to this user."""
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def serve(source: LiveGuest | RecordedGuest, port: int, opens: bool, view: str = "") -> int:
    """Serve the page of `source`; return the exit status.

    `opens` opens it in a browser. The page shows `view` first, such as `queues/rng`. Raises
    `PortInUse`, and what `LiveGuest.start` raises.
    """
    fragment = f"#{quote(view)}" if view else ""
    return run_on_new_loop(lambda: _serve(source, port, opens, fragment))


async def _serve(source: LiveGuest | RecordedGuest, port: int, opens: bool, fragment: str) -> int:
    stopped = asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    guest = source if isinstance(source, LiveGuest) else None
    if guest is not None:
        await guest.start()
    try:
        server = ScopeServer(source, port)
        url = server.url + fragment
        print_line(f"The scope is at {url} until Ctrl-C")
        sys.stdout.flush()
        if opens:
            with process_limit_reported():
                webbrowser.open(url)
        await _until(stopped, guest)
        await server.close()
    finally:
        if guest is not None:
            await guest.close()
    return EXIT_GUEST_ENDED if guest is not None and guest.ended.is_set() else 0


async def _until(stopped: asyncio.Event, guest: LiveGuest | None) -> None:
    """Wait for a signal, and say so when the guest ends before."""
    waiting = asyncio.create_task(stopped.wait())
    if guest is not None:
        ending = asyncio.create_task(guest.ended.wait())
        await asyncio.wait((waiting, ending), return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            print_message("the guest has ended; the page keeps its events until Ctrl-C")
        ending.cancel()
    await waiting
