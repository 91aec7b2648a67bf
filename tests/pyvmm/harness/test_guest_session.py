# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a scripted guest that cannot be taken."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.harness import GuestSession, SnapshotFailed
from pyvmm.harness.scripted_console import ScriptedConsole
from pyvmm.snapshot.saver import MachineEnded, MigrationActive, SnapshotActive


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (SnapshotActive, "already being taken"),
        (MigrationActive, "is being migrated"),
        (MachineEnded, "the guest has ended"),
    ],
)
def test_a_refused_snapshot_fails_with_the_reason(
    refusal: type[Exception], reason: str, tmp_path: Path
) -> None:
    def refuse(request: object) -> None:
        raise refusal

    async def scenario() -> None:
        vm: Any = SimpleNamespace(snapshots=SimpleNamespace(start=refuse))
        running: Any = asyncio.get_running_loop().create_future()
        guest = GuestSession(vm, ScriptedConsole(), running)
        with pytest.raises(SnapshotFailed, match=reason):
            await guest.save_snapshot(tmp_path / "file")

    asyncio.run(scenario())
