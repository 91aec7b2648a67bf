# SPDX-License-Identifier: Apache-2.0
"""The destination of a migration over a real socket, for tests without KVM."""

from __future__ import annotations

import threading
from pathlib import Path

from pyvmm.migration.destination import DestinationMigration
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.link import MigrationLink
from pyvmm.sockets.addresses import UnixAddress
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security
from tests.pyvmm.migration.migration_guest import FakeTarget
from tests.pyvmm.sockets.accepting import accept_connection


class Destination(threading.Thread):
    """Waits for a guest at `path`; `error` is the reason if none arrives."""

    def __init__(self, path: Path, target: FakeTarget) -> None:
        super().__init__()
        self._listener = MigrationListener(UnixAddress(path), Security())
        self._home = target
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        link = MigrationLink(accept_connection(self._listener))
        try:
            DestinationMigration(self._home, link).run()
        except MigrationError as error:
            self.error = error
        link.close()
