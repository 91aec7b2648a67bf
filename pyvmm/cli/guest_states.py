# SPDX-License-Identifier: Apache-2.0
"""The state of every running guest of this user, for `pyvmm ps` and `pyvmm top`.

The runtime directory has the guests, and each guest's process is asked over its control socket for
the rest, all at the same time: one that does not answer delays the others by no more than the
deadline, and is listed without what it has not told. A guest that ends meanwhile is left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.cli.qmp_command import execute_if_known
from pyvmm.errors import UserError
from pyvmm.qmp.client import ConnectionClosedError, QmpClient
from pyvmm.qmp.messages import QmpError
from pyvmm.runtime_directory.guests import AnnouncedGuest, running_guests

STATE_TIMEOUT_S = 5.0
"""Longest wait for the answers of all guests."""
START_TIMEOUT_S = 2.0
"""The same for a guest that may not have started or arrived: its process does not answer before."""
STARTING_S = 60.0
"""A guest whose process is younger may still be starting, for instance because a lab boots."""
MAX_THREADS = 32
NOT_RESPONDING, STARTING, INCOMING = "not responding", "starting", "inmigrate"
"""The status of a guest whose process does not answer, perhaps not yet."""


class GuestState(NamedTuple):
    """A running guest, with what its process has answered; None for each fact that it has not."""

    guest: AnnouncedGuest
    status: str
    ram_bytes: int
    actual_bytes: int | None
    """RAM that the balloon leaves to the guest."""
    target_bytes: int | None
    """RAM that the requested size of the balloon leaves to the guest."""
    counters: Mapping[str, Any] | None
    """The answer of `x-query-counters`."""
    time: float
    """Monotonic time of the answers."""

    @property
    def rss_bytes(self) -> int | None:
        """Resident memory of the process; in a lab, of the process there."""
        return None if self.counters is None else self.counters["rss"]


def query_states() -> list[GuestState]:
    """Return the states of all running guests, by name.

    Raises `RuntimeDirectoryUnusable` and `ThreadNotStarted`.
    """
    queries = [_Query(guest) for guest in running_guests()]
    waiting = list(queries)
    workers = [
        threading.Thread(target=_work, args=(waiting,), name="guest-state", daemon=True)
        for _ in range(min(MAX_THREADS, len(queries)))
    ]
    deadline = time.monotonic() + STATE_TIMEOUT_S
    for worker in workers:
        with thread_limit_reported():
            worker.start()
    for query in queries:
        query.done.wait(max(0.0, deadline - time.monotonic()))
    return [query.state for query in queries if query.state is not None]


class _Query:
    """The query of one guest, by a thread that may not end in time."""

    def __init__(self, guest: AnnouncedGuest) -> None:
        self._guest = guest
        self.done = threading.Event()
        status = _status_without_answer(guest)
        self._timeout_s = STATE_TIMEOUT_S if status == NOT_RESPONDING else START_TIMEOUT_S
        self.state: GuestState | None = GuestState(
            guest, status, guest.ram_bytes, None, None, None, time.monotonic()
        )

    def run(self) -> None:
        try:
            with QmpClient(self._guest.socket, self._timeout_s) as client:
                self.state = _ask(client, self._guest)
        except (UserError, QmpError, ConnectionClosedError, OSError):
            if not any(guest.name == self._guest.name for guest in running_guests()):
                self.state = None
        finally:
            self.done.set()


def _status_without_answer(guest: AnnouncedGuest) -> str:
    if guest.incoming is not None:
        return INCOMING
    return STARTING if time.time() - guest.started < STARTING_S else NOT_RESPONDING


def _work(waiting: list[_Query]) -> None:
    while waiting:
        try:
            query = waiting.pop(0)
        except IndexError:  # another thread has it
            return
        query.run()


def _ask(client: QmpClient, guest: AnnouncedGuest) -> GuestState:
    balloon = client.execute("query-balloon")
    return GuestState(
        guest,
        client.execute("query-status")["status"],
        client.execute("query-memory-size-summary")["base-memory"],
        balloon["actual"],
        balloon["target"],
        execute_if_known(client, "x-query-counters") or None,
        time.monotonic(),
    )
