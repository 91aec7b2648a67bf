# SPDX-License-Identifier: Apache-2.0
"""The wait for an incoming migration, when it is cancelled."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any

import pytest

from pyvmm.config import MachineConfig
from pyvmm.migration.incoming import IncomingVm, accept_migration
from pyvmm.sockets.addresses import UnixAddress
from pyvmm.sockets.errors import ListenerClosed
from pyvmm.sockets.link import SocketLink
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security


class SlowListener(MigrationListener):
    """Returns from `accept` only after `released` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(UnixAddress(path), Security())
        self.released = threading.Event()

    def accept(self) -> SocketLink:
        try:
            return super().accept()
        except ListenerClosed:
            self.released.wait(20)
            raise


def no_machine(config: MachineConfig) -> IncomingVm:
    raise AssertionError("no guest has been sent")


def test_a_repeated_cancellation_leaves_no_exception_behind(tmp_path: Path) -> None:
    unhandled: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: unhandled.append(context)
        )
        listener = SlowListener(tmp_path / "m")
        waiting = asyncio.create_task(accept_migration(listener, no_machine))
        for _ in range(3):
            await asyncio.sleep(0.01)
            waiting.cancel()
        await asyncio.sleep(0.01)
        listener.released.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        del waiting
        await asyncio.sleep(0.01)
        gc.collect()

    asyncio.run(main())
    assert unhandled == []
    assert list(tmp_path.iterdir()) == []
