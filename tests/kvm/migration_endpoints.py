# SPDX-License-Identifier: Apache-2.0
"""Both sides of a migration within the test's process, controlled by QMP commands."""

from __future__ import annotations

import asyncio
from typing import Any

from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.harness.guest_session import GuestSession
from pyvmm.harness.scripted_console import ScriptedConsole
from pyvmm.machine.machine import Machine
from pyvmm.machine.platform import Platform
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.incoming import accept_migration
from pyvmm.qmp import commands
from pyvmm.qmp.messages import Request
from pyvmm.sockets.addresses import parse_migration_address
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security
from pyvmm.trace.logging import LogTracer
from pyvmm.vm import VirtualMachine

DOWNTIME_LIMIT_MS = 60_000
"""Enough for a guest that rewrites all of its memory within a round."""


def start_migration(
    guest: GuestSession, address: str, downtime_limit_ms: int = DOWNTIME_LIMIT_MS, **options: Any
) -> None:
    """Start to migrate `guest` to `address`."""
    limit = {"downtime-limit": downtime_limit_ms}
    commands.execute(guest.vm, Request("migrate-set-parameters", limit))
    commands.execute(guest.vm, Request("migrate", {"uri": address, **options}))


async def migration_result(guest: GuestSession) -> dict[str, Any]:
    """Wait for the end of a migration; return the reply of query-migrate."""
    while guest.vm.migrations.active:
        await asyncio.sleep(0.01)
    result: dict[str, Any] = commands.execute(guest.vm, Request("query-migrate"))
    return result


class GuestReceiver:
    """The destination of one migration, whose console can be read whether or not it succeeds."""

    def __init__(self, address: str) -> None:
        self._listener = MigrationListener(parse_migration_address(address), Security())
        self._vms: list[VirtualMachine] = []
        self.console = ScriptedConsole()
        self.error = ""

    @property
    def stream_started(self) -> bool:
        """True once a source has sent the configuration of its guest."""
        return bool(self._vms)

    async def receive(self) -> GuestSession | None:
        """Wait for a guest, whose session the caller closes; None if `error` says why not."""
        receiving = asyncio.current_task()
        assert receiving is not None

        def end(error: MigrationError) -> None:
            self.error = f"no guest has arrived: {error}"
            receiving.cancel()  # `accept_migration` would wait for another source

        try:
            running = await accept_migration(self._listener, self._make, on_refused=end)
        except BaseException as error:
            for vm in self._vms:
                vm.close()
            if isinstance(error, UserError):
                self.error = str(error)
            elif not self.error:
                raise
            return None
        (vm,) = self._vms
        self.console.connect(vm.console_input)
        return GuestSession(vm, self.console, running)

    def _make(self, config: MachineConfig) -> VirtualMachine:
        machine = Machine(Platform(config, console_output=self.console.queue, tracer=LogTracer()))
        vm = VirtualMachine(machine, on_console_room=self.console.send_pending)
        self._vms.append(vm)
        return vm
