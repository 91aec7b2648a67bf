# SPDX-License-Identifier: Apache-2.0
"""The destination of a migration over a real socket, for tests without KVM."""

from __future__ import annotations

import threading
from pathlib import Path

from pyvmm.migration.destination import DestinationMigration
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.link import MigrationLink
from pyvmm.migration.page_channel import PageChannel
from pyvmm.sockets.addresses import UnixAddress
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security
from pyvmm_native.checksum import Checksum
from pyvmm_native.memory import GuestMemory
from tests.pyvmm.migration.migration_guest import FakeTarget
from tests.pyvmm.sockets.accepting import accept_connection


class _Link(MigrationLink):
    """A link that knows the checksum of the pages on it."""

    checksum = ""

    def pages(self, memory: GuestMemory, checksum: Checksum) -> PageChannel:
        self.checksum = checksum.name
        return super().pages(memory, checksum)


class Destination(threading.Thread):
    """Waits for a guest at `path`; `error` is the reason if none arrives."""

    def __init__(self, path: Path, target: FakeTarget) -> None:
        super().__init__()
        self._listener = MigrationListener(UnixAddress(path), Security())
        self._home = target
        self.error: Exception | None = None
        self.checksum = ""
        """The name of the checksum that the pages had."""
        self.start()

    def run(self) -> None:
        link = _Link(accept_connection(self._listener))
        try:
            DestinationMigration(self._home, link).run()
            self.checksum = link.checksum
        except MigrationError as error:
            self.error = error
        link.close()
