# SPDX-License-Identifier: Apache-2.0
"""The machine as the control socket sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pyvmm.balloon.free_page_hints import FreePageHints
    from pyvmm.balloon.misc_requests import MiscRequests
    from pyvmm.balloon.statistics import BalloonStatistics
    from pyvmm.machine.run_state import EventSink, RunState
    from pyvmm.migration.outgoing import Migrations
    from pyvmm.snapshot.saver import Snapshots
    from pyvmm_native.runs import PageRuns


class VmControl(Protocol):
    """What can be asked of a machine. Everything here is called on the event loop's thread."""

    @property
    def ram_bytes(self) -> int:
        """RAM the guest was given at start."""

    @property
    def ram_pages(self) -> PageRuns:
        """Where that RAM lies."""

    @property
    def balloon_actual_bytes(self) -> int:
        """RAM the guest has now: `ram_bytes` less what its balloon holds."""

    @property
    def balloon_statistics(self) -> BalloonStatistics:
        """What the guest reports of its memory."""

    @property
    def misc_requests(self) -> MiscRequests:
        """What the guest can be asked."""

    @property
    def free_page_hints(self) -> FreePageHints:
        """What the guest does without, if it is asked to."""

    @property
    def snapshots(self) -> Snapshots:
        """What takes snapshots of it."""

    @property
    def migrations(self) -> Migrations:
        """What moves it to another pyvmm."""

    @property
    def status(self) -> RunState:
        """In the words of QMP's RunState."""

    def set_balloon_target(self, target_bytes: int) -> None:
        """Ask the guest to keep `target_bytes` of RAM, 0 < `target_bytes` <= `ram_bytes`."""

    def pause(self) -> None:
        """Stop a running machine's vCPUs and announce STOP."""

    def resume(self) -> None:
        """Let a paused machine's vCPUs run and announce RESUME."""

    def quit(self) -> None:
        """Begin to end the machine; announces SHUTDOWN. Returns at once."""

    def subscribe(self, sink: EventSink) -> None:
        """Call `sink`, on the event loop's thread, with every event from now on."""
