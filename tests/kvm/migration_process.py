# SPDX-License-Identifier: Apache-2.0
"""One side of a migration in a process of its own, for tests that kill it.

    python -m tests.kvm.migration_process source SNAPSHOT ADDRESS
    python -m tests.kvm.migration_process destination ADDRESS

The source restores the snapshot and migrates the guest to ADDRESS when it reads the line "migrate".
Other lines on standard input go to the guest's console. Standard output is the guest's console,
with status messages anywhere in it, even within a line, each from `STATUS_PREFIX` to a newline:
"waiting", "running", then the result of the migration.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from pyvmm.errors import UserError
from pyvmm.harness.guest_session import GuestSession, guest_session, incoming_session
from pyvmm.machine.catalogue import part_kinds
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.sockets.addresses import parse_migration_address
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security
from tests.kvm.migration_endpoints import migration_result, start_migration
from tests.kvm.verifying_guest import throttle

STATUS_PREFIX = "migration process: "


def report_status(status: str) -> None:
    """Print a status message."""
    print(f"{STATUS_PREFIX}{status}\n", end="", flush=True)


class ConsoleMirror:
    """Copies a guest's console to standard output."""

    def __init__(self, guest: GuestSession) -> None:
        self._console = guest.console
        self._printed_chars = 0

    def update(self) -> None:
        """Print the guest's output since the last call."""
        text = self._console.text
        if text[self._printed_chars :]:
            print(text[self._printed_chars :], end="", flush=True)
        self._printed_chars = len(text)

    async def run(self) -> None:
        """Call `update` until cancelled."""
        while True:
            self.update()
            await asyncio.sleep(0.01)


async def serve_commands(guest: GuestSession, address: str) -> None:
    """Serve the lines of standard input, until its end."""
    mirror = ConsoleMirror(guest)
    mirroring = asyncio.create_task(mirror.run())
    throttle(guest)
    report_status("running")
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if line != "migrate":
            guest.console.send_line(line)
            continue
        start_migration(guest, address)
        answer = await migration_result(guest)
        mirror.update()  # the test may kill this process as soon as it reads the status
        report_status(f"{answer['status']} {answer.get('error-desc', '')}")
    mirroring.cancel()


async def run_source(path: Path, address: str) -> None:
    with SnapshotFile(path, part_kinds()) as snapshot:
        async with guest_session(snapshot.config, snapshot) as guest:
            await serve_commands(guest, address)


async def run_destination(address: str) -> None:
    listener = MigrationListener(parse_migration_address(address), Security())
    report_status("waiting")
    async with incoming_session(listener) as guest:
        await serve_commands(guest, "")


def main() -> None:
    try:
        match sys.argv[1:]:
            case ["source", path, address]:
                asyncio.run(run_source(Path(path), address))
            case ["destination", address]:
                asyncio.run(run_destination(address))
    except UserError as error:
        report_status(f"error: {error}")
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
