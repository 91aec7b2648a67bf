# SPDX-License-Identifier: Apache-2.0
"""A recording with hostile text, and servers of the scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pyvmm.scope.live_guest import LiveGuest
from pyvmm.scope.server import ScopeServer
from pyvmm.trace.recording_file import RecordingFile
from pyvmm_native.events import EventBuffer
from tests.pyvmm.qmp.conftest import serve
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm
from tests.pyvmm.qmp.qmp_scenarios import Serve

__all__ = ["serve"]

Scenario = Callable[[InMemoryVm, LiveGuest, ScopeServer], Awaitable[None]]
MARKUP = "</script><img src=x onerror=alert(1)>\x1b[2J\n"


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Return a recording of two chunks, with text of a guest in it."""
    path = tmp_path / "boot.rec"
    file = RecordingFile(path)
    file.commit()
    buffer = EventBuffer()
    buffer.start()
    for number in range(2):
        buffer.event("balloon.target", pages=number)
        buffer.event("echo.bad_payload", count=1, why=MARKUP, queue=MARKUP)
        batch = buffer.take()
        assert batch is not None
        file.write(batch)
    file.close()
    buffer.stop()
    return path


@pytest.fixture
def watch(serve: Serve) -> Callable[[Scenario], None]:
    """Run a scenario with a guest that is watched by a server."""

    def watch(scenario: Scenario) -> None:
        async def served(vm: InMemoryVm, path: Path) -> None:
            guest = LiveGuest(path, "vm")
            await guest.start()
            server = ScopeServer(guest)
            try:
                await scenario(vm, guest, server)
            finally:
                await server.close()
                await guest.close()

        serve(served)

    return watch
