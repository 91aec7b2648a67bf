# SPDX-License-Identifier: Apache-2.0
"""The use that an outgoing migration makes of its machine: when, and in which order."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from pykvm import KvmError
from pyvmm.memory.precopy import UnusedPages
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.outgoing import MigrationRefused
from pyvmm.sockets.addresses import UnixAddress
from pyvmm.sockets.tls import Security
from pyvmm.state.records import Record
from pyvmm.units import MIB
from tests.pyvmm.migration.migration_destination import Destination
from tests.pyvmm.migration.migration_guest import FakeTarget
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm
from tests.pyvmm.snapshot.test_saver import RecordingMachine


def test_state_is_prepared_before_the_guest_is_paused(tmp_path: Path) -> None:
    async def main() -> None:
        machine, target = RecordingMachine(), FakeTarget()
        destination = Destination(tmp_path / "m", target)
        migrations = machine.migrations
        migrations.start(UnixAddress(tmp_path / "m"), Security(), migrations.settings)
        async with asyncio.timeout(20):
            while migrations.active:
                await asyncio.sleep(0.001)
        await migrations.end()
        destination.join()
        assert (migrations.status, migrations.error) == ("completed", "")
        assert target.runs
        before_commit = ["prepare", "pause", "devices stop", "save"]
        assert machine.calls == [*before_commit, "devices continue"]

    asyncio.run(main())


def test_a_guest_that_ends_during_the_migration_does_not_run_at_the_destination(
    tmp_path: Path,
) -> None:
    class EndingGuest(RecordingMachine):
        async def unused_pages(self, timeout_s: float) -> UnusedPages:
            unused = await super().unused_pages(timeout_s)
            self.status = "shutdown"
            return unused

    async def main() -> None:
        machine, target = EndingGuest(), FakeTarget()
        destination = Destination(tmp_path / "m", target)
        migrations = machine.migrations
        migrations.start(UnixAddress(tmp_path / "m"), Security(), migrations.settings)
        async with asyncio.timeout(20):
            while migrations.active:
                await asyncio.sleep(0.001)
        await migrations.end()
        destination.join()
        assert (migrations.status, migrations.error) == ("failed", "the guest has ended")
        assert (machine.calls, machine.status) == (["prepare"], "shutdown")
        assert target.runs is None
        assert isinstance(destination.error, MigrationError)

    asyncio.run(main())


def test_a_guest_that_is_being_saved_is_not_migrated(tmp_path: Path) -> None:
    class SavingMachine(InMemoryVm):
        saving = True

    async def main() -> None:
        migrations = SavingMachine().migrations
        with pytest.raises(MigrationRefused, match="a snapshot in process"):
            migrations.start(UnixAddress(tmp_path / "m"), Security(), migrations.settings)
        assert not migrations.active
        await migrations.end()

    asyncio.run(main())


def test_a_request_that_kvm_refuses_is_the_error_of_the_migration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class RefusingMachine(InMemoryVm):
        def save_parts(self) -> Sequence[Record]:
            raise KvmError("KVM_GET_SREGS", errno.EFAULT)

    async def main() -> None:
        machine = RefusingMachine(64 * MIB)
        destination = Destination(tmp_path / "m", FakeTarget())
        migrations = machine.migrations
        migrations.start(UnixAddress(tmp_path / "m"), Security(), migrations.settings)
        async with asyncio.timeout(20):
            while migrations.active:
                await asyncio.sleep(0.001)
        await migrations.end()
        destination.join()
        refusal = "KVM_GET_SREGS: Bad address (EFAULT)"
        assert migrations.error == f"a request to KVM has failed: {refusal}"
        assert machine.status == "running"

    asyncio.run(main())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_request_that_the_destinations_kvm_refuses_is_reported_at_both_ends(
    tmp_path: Path,
) -> None:
    def refuse() -> None:
        raise KvmError("KVM_SET_SREGS", errno.EINVAL)

    async def main() -> None:
        machine = InMemoryVm(64 * MIB)
        destination = Destination(tmp_path / "m", FakeTarget(on_restore=refuse))
        migrations = machine.migrations
        migrations.start(UnixAddress(tmp_path / "m"), Security(), migrations.settings)
        async with asyncio.timeout(20):
            while migrations.active:
                await asyncio.sleep(0.001)
        await migrations.end()
        destination.join()
        refusal = "KVM_SET_SREGS: Invalid argument (EINVAL)"
        assert str(destination.error) == refusal
        assert refusal in migrations.error
        assert "bug" not in migrations.error
        assert machine.status == "running"

    asyncio.run(main())
