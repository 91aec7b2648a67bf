# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of the control socket."""

import asyncio
from pathlib import Path

import pytest

from pyvmm.qmp.server import ControlServer
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm
from tests.pyvmm.qmp.qmp_scenarios import Scenario, Serve


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Run a scenario with a served VM; every await in it is bounded."""

    def serve(scenario: Scenario, **vm_options: int) -> None:
        async def main() -> None:
            vm = InMemoryVm(**vm_options)
            server = ControlServer(vm, tmp_path / "qmp")
            await server.start()
            try:
                await asyncio.wait_for(scenario(vm, tmp_path / "qmp"), 30)
            finally:
                await server.close()

        asyncio.run(main())
        assert list(tmp_path.iterdir()) == []

    return serve
