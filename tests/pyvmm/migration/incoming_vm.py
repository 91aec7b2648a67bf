# SPDX-License-Identifier: Apache-2.0
"""A VM at the destination of a migration, without KVM."""

from __future__ import annotations

from collections.abc import Sequence

from pyvmm.config import MachineConfig
from pyvmm.machine.exit_result import ExitReason, ExitResult
from pyvmm.state.records import Record
from tests.pyvmm.migration.migration_guest import PlainRam


class EndingVm:
    """Satisfies `pyvmm.migration.incoming.IncomingVm`, and ends at once when it is run."""

    def __init__(self, config: MachineConfig) -> None:
        self.ram = PlainRam(config.ram_bytes)
        self.restored: list[Record] = []
        self.has_run = False

    def prepare_incoming(self) -> None:
        pass

    def restore_parts(self, records: Sequence[Record]) -> None:
        self.restored += records

    def pause(self) -> None:
        pass

    def start(self) -> None:
        pass

    async def run(self) -> ExitResult:
        self.has_run = True
        return ExitResult(ExitReason.QUIT)
