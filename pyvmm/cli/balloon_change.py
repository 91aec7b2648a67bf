# SPDX-License-Identifier: Apache-2.0
"""One change of a balloon's size: set the target, wait for the guest, take the target back.

The guest's driver does the work. It may take long, or stop short of the target when it finds no
more free memory, and it tries again as long as the target is in force. So `wait` polls the size
that the driver reports until it is the target or does not change any more, and `take_back` sets the
target again that was in force before.

pyvmm's `query-balloon` returns the present target and whether a driver runs; QEMU's returns
neither. There the size at the beginning takes the place of the earlier target.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

from pyvmm.balloon.safe_target import check_target
from pyvmm.errors import UserError
from pyvmm.qmp.client import ConnectionClosedError, QmpClient
from pyvmm.qmp.messages import QmpError
from pyvmm.units import format_size
from pyvmm_native import PAGE_BYTES

POLL_PERIOD_S = 0.2
STATISTICS_TIMEOUT_S = 2.0
"""Longest wait for the statistics by which a target is judged."""
TAKE_BACK_TIMEOUT_S = 5.0
"""Longest wait for a new connection to take a target back, and for each reply on it."""

OnProgress = Callable[[int], None]
"""Takes the RAM that the guest has now, in bytes."""


class GuestShutDown(ConnectionClosedError):
    """The guest has ended; the control socket still answers."""


class Balloon(NamedTuple):
    """The state of a guest's balloon; None for what the server does not tell."""

    actual_bytes: int
    """RAM that the guest has now."""
    target_bytes: int | None
    """RAM that the target leaves to it."""
    driver_runs: bool | None
    kept_bytes: int | None
    """Memory of the balloon that the host keeps."""


class End(Enum):
    """The reason why a wait ended."""

    REACHED = auto()
    STUCK = auto()
    DRIVER_STOPPED = auto()
    SIGNAL = auto()


def query_balloon(client: QmpClient) -> Balloon:
    """Return the present state of the balloon."""
    reply = client.execute("query-balloon")
    optional = (reply.get(name) for name in ("target", "driver", "kept"))
    return Balloon(int(reply["actual"]), *optional)


class BalloonChange:
    """A change that leaves `target_bytes` of RAM to the guest whose control socket is at `path`.

    `client` is connected to it. The constructor changes nothing; `ram_bytes` is the guest's RAM at
    boot, `before` the state of its balloon.
    """

    def __init__(self, client: QmpClient, path: Path, target_bytes: int) -> None:
        self.target_bytes = target_bytes
        self._client = client
        self._path = path
        self.ram_bytes = int(client.execute("query-memory-size-summary")["base-memory"])
        self.before = self._balloon = query_balloon(client)
        # The balloon holds whole pages, so the RAM left to the guest is rounded up.
        taken_pages = (self.ram_bytes - target_bytes) // PAGE_BYTES
        self.goal_bytes = self.ram_bytes - taken_pages * PAGE_BYTES

    @property
    def actual_bytes(self) -> int:
        """The RAM that the guest had when it was last queried."""
        return self._balloon.actual_bytes

    @property
    def inflates(self) -> bool:
        """True if the change takes memory from the guest."""
        return self.goal_bytes < self.before.actual_bytes

    @property
    def reached(self) -> bool:
        """True when the guest has exactly the RAM that the target leaves to it."""
        return self.actual_bytes == self.goal_bytes

    @property
    def size(self) -> str:
        """The guest's present RAM, of its RAM at boot."""
        return f"{format_size(self.actual_bytes)} of {format_size(self.ram_bytes)}"

    @property
    def missing_bytes(self) -> int:
        """Bytes between the guest's present RAM and its goal, in either direction."""
        return abs(self.actual_bytes - self.goal_bytes)

    def check(self, *, running: bool) -> None:
        """Raise `UnsafeTarget` if the guest, which may be `running`, cannot live with the target.

        A guest that can answer is asked for its statistics.
        """
        in_force_bytes = self.before.target_bytes
        if not self.inflates or (in_force_bytes is not None and self.goal_bytes >= in_force_bytes):
            return
        statistics: Mapping[str, int | None] = {}
        if running and self.before.driver_runs:
            statistics = self._settled_statistics()
        check_target(self.target_bytes, self.actual_bytes, statistics)

    def _settled_statistics(self) -> Mapping[str, int | None]:
        """Return the guest's statistics, of a moment at which its size was `actual_bytes`.

        While an earlier change is in progress, the guest has given pages that it has not reported.
        """
        deadline = time.monotonic() + STATISTICS_TIMEOUT_S
        while True:
            earlier = self._balloon
            try:
                reply = self._client.execute("query-balloon-stats", timeout=STATISTICS_TIMEOUT_S)
            except QmpError:
                return {}  # the driver lacks the queue, or does not answer
            self._balloon = now = query_balloon(self._client)
            settled = earlier.actual_bytes == now.actual_bytes == now.target_bytes
            if settled or time.monotonic() > deadline:
                statistics: Mapping[str, int | None] = reply["stats"]
                return statistics
            time.sleep(POLL_PERIOD_S / 4)

    def start(self) -> None:
        """Set the target."""
        self._client.execute("balloon", value=self.target_bytes)

    def wait(self, timeout_s: float, signals: Sequence[int], on_progress: OnProgress) -> End:
        """Wait until the goal is reached, or nothing has changed for `timeout_s` seconds.

        `signals` are those that the process has received; the first one ends the wait. Raises
        `GuestShutDown` when the guest ends.
        """
        changed = time.monotonic()
        while not self.reached:
            left_s = changed + timeout_s - time.monotonic()
            if signals:
                return End.SIGNAL
            if left_s <= 0:
                return End.STUCK
            event = self._client.wait_for_event(min(POLL_PERIOD_S, left_s))
            if event is not None and event.get("event") == "SHUTDOWN":
                raise GuestShutDown
            before, self._balloon = self._balloon, query_balloon(self._client)
            if before.driver_runs and self._balloon.driver_runs is False:
                return End.DRIVER_STOPPED
            if before.actual_bytes != self.actual_bytes:
                changed = time.monotonic()
                on_progress(self.actual_bytes)
        return End.REACHED

    def take_back(self) -> tuple[bool, str]:
        """Set the earlier target again; return whether it is in force, and a clause that says so.

        A change that gives memory to the guest is not taken back, and a target that another client
        has set meanwhile stays. A new connection is used: this one may be the reason.
        """
        if not self.inflates:
            return False, f"its target stays {format_size(self.target_bytes)}"
        earlier_bytes = self.before.target_bytes
        if earlier_bytes is None:
            earlier_bytes = self.before.actual_bytes
        self._client.close()  # QEMU serves one client at a time
        try:
            with QmpClient(self._path, TAKE_BACK_TIMEOUT_S) as client:
                now_bytes = query_balloon(client).target_bytes
                if now_bytes not in (None, self.goal_bytes):
                    return False, f"another client has set its target to {format_size(now_bytes)}"
                client.execute("balloon", value=earlier_bytes)
        except (UserError, QmpError, ConnectionClosedError, TimeoutError):
            return False, "its target could not be taken back"
        return True, f"its target is {format_size(earlier_bytes)} again"
