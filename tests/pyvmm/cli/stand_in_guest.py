# SPDX-License-Identifier: Apache-2.0
"""A guest without KVM, for programs that test what a command line does around it.

`use` puts `Board` in place of the platform; `Guest` is for `terminal_run.VirtualMachine`, which not
every program may import. A program derives its own of each where something happens in them.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.cli import vm_start
from pyvmm.config import MachineConfig
from pyvmm.machine.early_boot import EarlyBoot

if TYPE_CHECKING:
    from pyvmm.machine.exit_result import ExitResult

CONFIG = MachineConfig(Path("/k"), None, "", 1 << 28, 1, "standard")


class Board:
    """A platform that does nothing."""

    vcpu_threads = ()
    lock: Any = contextlib.nullcontext()

    def __init__(self, config: MachineConfig, **options: Any) -> None:
        self.config, self.tracer = config, options["tracer"]
        self.output = options["console_output"]

    def set_up_vcpus(self, start: object) -> None:
        pass

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass


class Guest:
    """A VM that runs until `end`."""

    def __init__(self, machine: Board, *, on_console_room: object) -> None:
        import asyncio  # some programs find that it is imported late

        self.config, self.machine, self.output = machine.config, machine, machine.output
        self.ending: asyncio.Future[ExitResult] = asyncio.get_running_loop().create_future()

    def subscribe(self, sink: object) -> None:
        pass

    async def run(self) -> ExitResult:
        return await self.ending

    def end(self, result: ExitResult) -> None:
        if not self.ending.done():
            self.ending.set_result(result)

    def close(self) -> None:
        self.machine.close()


def use(board: type[Board]) -> None:
    """Boot every guest on a `board`; no VM is created and no kernel is loaded."""
    for step in ("begin", "setup", "loaded"):
        setattr(EarlyBoot, step, lambda boot: None)
    setattr(vm_start, "Platform", board)  # noqa: B010
