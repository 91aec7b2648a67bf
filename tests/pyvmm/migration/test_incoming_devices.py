# SPDX-License-Identifier: Apache-2.0
"""An incoming guest may have a device that only the program at the destination knows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from devices.virtio.device import VirtioDevice
from pyvmm.config import MachineConfig
from pyvmm.machine.catalogue import CATALOGUE, CatalogueEntry, Ports
from pyvmm.migration.errors import IncomingMigrationFailed, MigrationError
from pyvmm.migration.incoming import accept_migration
from pyvmm.migration.link import MigrationLink
from pyvmm.migration.progress import MigrationProgress, Settings
from pyvmm.migration.source import SourceMigration
from pyvmm.sockets.addresses import UnixAddress
from pyvmm.sockets.connect import connect
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security
from pyvmm.state.records import Record
from tests.pyvmm.migration.incoming_vm import EndingVm
from tests.pyvmm.migration.migration_guest import WritingGuest, config_of

PART = Record("virtio_entropy", 1, b"{}")


class EntropyGuest(WritingGuest):
    """A guest whose machine has one part, which no catalogue of ours knows."""

    def save_parts(self) -> Sequence[Record]:
        return [PART]


def send(address: UnixAddress) -> None:
    """Migrate the guest to `address`, whose side may fail."""
    link = MigrationLink(connect(address, Security()))
    guest = EntropyGuest(config_of(64), [], [])
    with contextlib.closing(link), contextlib.suppress(MigrationError):
        SourceMigration(guest, link, Settings(), MigrationProgress()).run()


def receive(path: Path, devices: Sequence[CatalogueEntry]) -> list[Record]:
    """Return the parts that were restored of a guest migrated to a VM with `devices`."""
    address, created = UnixAddress(path), list[EndingVm]()

    def make(config: MachineConfig) -> EndingVm:
        created.append(EndingVm(config))
        return created[0]

    async def main() -> None:
        accepted = accept_migration(MigrationListener(address, Security()), make, devices)  # type: ignore[arg-type]
        running, _ = await asyncio.gather(accepted, asyncio.to_thread(send, address))
        await running

    asyncio.run(main())
    return created[0].restored


def no_device(config: MachineConfig, ports: Ports) -> VirtioDevice | None:
    return None


def test_a_device_of_the_destinations_catalogue_is_restored(tmp_path: Path) -> None:
    devices = (*CATALOGUE, CatalogueEntry("entropy", 3, no_device))
    assert receive(tmp_path / "m", devices) == [PART]


def test_a_device_that_the_destination_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncomingMigrationFailed, match="virtio_entropy"):
        receive(tmp_path / "m", CATALOGUE)
