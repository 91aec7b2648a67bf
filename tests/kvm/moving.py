# SPDX-License-Identifier: Apache-2.0
"""Moving a guest that the test holds, by the commands that a person would use."""

from __future__ import annotations

import asyncio
from typing import Any

from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.harness.guest_session import GuestSession
from pyvmm.harness.scripted_console import ScriptedConsole
from pyvmm.machine.machine import Machine
from pyvmm.migration.incoming import arrive
from pyvmm.qmp import migration_commands as migrate_commands
from pyvmm.sockets.transport import MigrationListener, Security, parse_migration_address
from pyvmm.trace.logging import LogTracer

DOWNTIME_LIMIT_MS = 60_000
"""A guest that rewrites all of its memory within a round never fits into less."""


def migrate(
    guest: GuestSession, address: str, downtime_limit_ms: int = DOWNTIME_LIMIT_MS, **options: Any
) -> None:
    """Begin to move it to `address`."""
    limit = {"downtime-limit": downtime_limit_ms}
    migrate_commands.migrate_set_parameters(guest.machine, **limit)
    migrate_commands.migrate(guest.machine, address, **options)


async def migrated(guest: GuestSession) -> dict[str, Any]:
    """Wait for the end of a migration; returns what query-migrate says of it."""
    while guest.machine.migrations.active:
        await asyncio.sleep(0.01)
    return migrate_commands.query_migrate(guest.machine)


class Home:
    """Where a guest may arrive; its console can be looked at whether or not one does."""

    def __init__(self, address: str) -> None:
        self._listener = MigrationListener(parse_migration_address(address), Security())
        self._machines: list[Machine] = []
        self.console = ScriptedConsole()
        self.error = ""

    @property
    def touched(self) -> bool:
        """Whether a source has begun to send its guest."""
        return bool(self._machines)

    async def guest(self) -> GuestSession | None:
        """Wait for one; `error` says why there is none. The session is the caller's to close."""
        try:
            running = await arrive(self._listener, self._make)
        except BaseException as error:
            for machine in self._machines:
                machine.close()
            if not isinstance(error, UserError):
                raise
            self.error = str(error)
            return None
        (machine,) = self._machines
        self.console.connect(machine.console_input)
        return GuestSession(machine, self.console, running)

    def _make(self, config: MachineConfig) -> Machine:
        machine = Machine(
            config,
            console_output=self.console.queue,
            tracer=LogTracer(),
            on_console_room=self.console.send_pending,
            boot=False,
        )
        self._machines.append(machine)
        return machine
