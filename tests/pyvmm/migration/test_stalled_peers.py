# SPDX-License-Identifier: Apache-2.0
"""Stall each peer of a migration at each step: every wait ends, and the guest is on the right side.

Deadlines are multiplied by a factor, and cells run at the same time, since they mostly wait.
`make test-long` runs some with the real deadlines. A table is printed: peer, step, result, time.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pyvmm.migration.progress import Settings
from pyvmm.migration.timeouts import TIMEOUTS
from tests.pyvmm.migration import stalled_cells as cells
from tests.pyvmm.migration.stalled_cells import CellResult, Times
from tests.pyvmm.sockets.certificates import certificate

FACTOR = 0.03
AT_ONCE = 16
"""Cells that run at the same time."""
SLACK_S = 5.0
"""For a busy machine."""
LIMIT_S = 20.0
"""Longest time for a cell, after its deadline."""
AT_ONCE_S = 0.0
SWITCHOVER_S = TIMEOUTS.switchover + Settings().downtime_limit_s
TLS = "tls"
"""Stands for the certificates in the arguments of a cell."""


class Cell(NamedTuple):
    """A peer that stalls at a step, the expected result, and the deadline that leads to it."""

    peer: str
    step: str
    result: str
    limit_s: float
    run: Callable[..., Awaitable[CellResult]]
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.peer}: {self.step}"


def _cells() -> Iterator[Cell]:
    stalls = cells.destination_stalls
    before_commit = {
        "accept": TIMEOUTS.welcome,
        "welcome": TIMEOUTS.welcome,
        "pages": TIMEOUTS.message,
        "round-ack": TIMEOUTS.message,
        "restored": SWITCHOVER_S,
    }
    for mode in ("silent", "dribbling"):
        for step, limit_s in before_commit.items():
            arguments = (step, mode)
            yield Cell(f"{mode} destination", step, cells.RUNS_HERE, limit_s, stalls, arguments)
        arguments = ("running", mode)
        yield Cell(
            f"{mode} destination", "running", cells.PAUSED, TIMEOUTS.commit, stalls, arguments
        )
    for step in ("accept", "welcome", "pages", "round-ack", "restored", "running"):
        after = step == "running"
        told, peer = cells.source_is_told, "silent destination"
        yield Cell(peer, f"{step}, quit", cells.ENDED, AT_ONCE_S, told, (step, "quit"))
        if not after:
            cancel = (step, "migrate_cancel")
            yield Cell(peer, f"{step}, cancel", cells.CANCELLED, AT_ONCE_S, told, cancel)
    for call in ("look-up", "file"):
        hangs, peer = cells.source_hangs, f"hanging {call}"
        yield Cell(peer, "connection", cells.RUNS_HERE, TIMEOUTS.connection, hangs, (call, ""))
        yield Cell(peer, "quit", cells.ENDED, AT_ONCE_S, hangs, (call, "quit"))
        cancel = (call, "migrate_cancel")
        yield Cell(peer, "cancel", cells.CANCELLED, AT_ONCE_S, hangs, cancel)
    in_tls = cells.server_stalls_in_tls
    yield Cell("silent server", "handshake", cells.RUNS_HERE, TIMEOUTS.connection, in_tls, (TLS,))
    yield from _destination_cells()


def _destination_cells() -> Iterator[Cell]:
    stalls, waiting, gone = cells.source_stalls, cells.STILL_WAITING, cells.NOT_HERE
    for mode in ("silent", "dribbling"):
        peer = f"{mode} source"
        yield Cell(peer, "hello", waiting, TIMEOUTS.hello, stalls, ("hello", mode))
        yield Cell(peer, "pages", waiting, TIMEOUTS.message, stalls, ("pages", mode))
        yield Cell(peer, "page", waiting, TIMEOUTS.message, stalls, ("page", mode))
        for step in ("contents", "round-end", "ready", "commit"):
            yield Cell(peer, step, gone, TIMEOUTS.message, stalls, (step, mode))
        peer = f"{mode} TLS client"
        in_tls = ("handshake", mode, TLS)
        yield Cell(peer, "handshake", waiting, TIMEOUTS.hello, stalls, in_tls)
        yield Cell(peer, "hello", waiting, TIMEOUTS.hello, stalls, ("hello", mode, TLS))
        for step in ("contents", "commit"):
            yield Cell(peer, step, gone, TIMEOUTS.message, stalls, (step, mode, TLS))
    ends = cells.destination_ends
    for step in ("hello", "pages", "page", "contents", "round-end", "ready", "commit"):
        yield Cell("silent source", f"{step}, SIGTERM", cells.ENDED, AT_ONCE_S, ends, (step,))
    for step in ("handshake", "commit"):
        peer = "silent TLS client"
        yield Cell(peer, f"{step}, SIGTERM", cells.ENDED, AT_ONCE_S, ends, (step, TLS))
    for side in ("source", "destination"):
        for step in ("half a request", "replies unread"):
            control = cells.control_client_stalls
            peer = f"QMP client of the {side}"
            yield Cell(peer, step, cells.MOVED, AT_ONCE_S, control, (side, step))


CELLS = {str(cell): cell for cell in _cells()}
FULL_FIGURES = [
    "dribbling destination: restored",
    "dribbling destination: running",
    "dribbling destination: pages",
    "dribbling TLS client: handshake",
    "dribbling source: contents",
    "dribbling source: pages",
    "silent source: commit",
    "hanging file: connection",
]


def outcomes(factor: float, names: Sequence[str]) -> dict[str, CellResult | BaseException]:
    """Run the cells called `names`, print the table and return the outcomes."""
    times = Times(TIMEOUTS.scaled(factor), factor)

    async def run(name: str, files: dict[str, Any], places: asyncio.Semaphore) -> CellResult:
        cell = CELLS[name]
        arguments = [files.get(str(argument), argument) for argument in cell.arguments]
        with tempfile.TemporaryDirectory() as directory:
            async with places, asyncio.timeout(cell.limit_s * factor + LIMIT_S):
                return await cell.run(Path(directory), times, *arguments)

    async def main() -> list[CellResult | BaseException]:
        places = asyncio.Semaphore(AT_ONCE)
        with tempfile.TemporaryDirectory() as directory:
            files = {TLS: certificate(Path(directory), "ca", "host")}
            running = (run(name, files, places) for name in names)
            return await asyncio.gather(*running, return_exceptions=True)

    found = dict(zip(names, asyncio.run(main()), strict=True))
    print(f"\ndeadlines multiplied by {factor:g}")
    for name, outcome in found.items():
        cell = CELLS[name]
        if isinstance(outcome, CellResult):
            print(f"| {cell.peer} | {cell.step} | {outcome.result} | {outcome.seconds:.2f} s |")
    return found


def check(cell: Cell, outcome: CellResult | BaseException, factor: float) -> None:
    if isinstance(outcome, BaseException):
        raise outcome
    limit_s = cell.limit_s * factor
    assert outcome.result == cell.result, outcome
    assert limit_s - 0.1 <= outcome.seconds < limit_s + SLACK_S, outcome
    if cell.result == cells.PAUSED:
        assert "resume it here only if it does not run at the destination" in outcome.error


@pytest.fixture(scope="module", autouse=True)
def _hanging_calls() -> Iterator[None]:
    """Make name look-up, and the opening of files, hang for `cells.HANGING`."""
    released = threading.Event()

    def hanging(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(name: Any, *arguments: Any, **options: Any) -> Any:
            if str(name) == cells.HANGING:
                released.wait(120)
            return original(name, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", hanging(socket.getaddrinfo))
        patch.setattr(os, "stat", hanging(os.stat))
        yield
        released.set()


@pytest.fixture(scope="module")
def scaled() -> dict[str, CellResult | BaseException]:
    return outcomes(FACTOR, list(CELLS))


@pytest.mark.parametrize("name", CELLS)
def test_no_stalled_peer_is_waited_for_beyond_its_deadline(
    scaled: dict[str, CellResult | BaseException], name: str
) -> None:
    check(CELLS[name], scaled[name], FACTOR)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_stalled_peers_with_the_real_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.files.regular.OPEN_TIMEOUT_S", 60.0)
    for name, outcome in outcomes(1.0, FULL_FIGURES).items():
        check(CELLS[name], outcome, 1.0)
