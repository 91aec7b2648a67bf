# SPDX-License-Identifier: Apache-2.0
"""One side of a migration in a process of its own, for tests that kill it.

    python -m tests.kvm.side leave SNAPSHOT ADDRESS    go on from there; move when told "migrate"
    python -m tests.kvm.side arrive ADDRESS            wait for a guest

Its standard output is the guest's console, and in the middle of that (of a line, too) words of its
own, from "side: " to a newline: "waiting" or "running", and at the end what became of it. Other
lines on standard input go to the guest.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from pyvmm.errors import UserError
from pyvmm.harness.guest_session import GuestSession, guest_session, incoming_session
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.sockets.transport import MigrationListener, Security, parse_migration_address
from pyvmm.state.parts import KINDS
from tests.kvm.churning import rest
from tests.kvm.moving import migrate, migrated


def say(words: str) -> None:
    print(f"side: {words}\n", end="", flush=True)


class Shown:
    """A guest's console on our standard output."""

    def __init__(self, guest: GuestSession) -> None:
        self._console = guest.console
        self._shown = 0

    def update(self) -> None:
        """Print what the guest has printed since."""
        text = self._console.text
        if text[self._shown :]:
            print(text[self._shown :], end="", flush=True)
        self._shown = len(text)

    async def keep_up(self) -> None:
        """Do that for ever."""
        while True:
            self.update()
            await asyncio.sleep(0.01)


async def obey(guest: GuestSession, address: str) -> None:
    """Do what standard input says, until its end."""
    shown = Shown(guest)
    showing = asyncio.create_task(shown.keep_up())
    rest(guest)
    say("running")
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if line != "migrate":
            guest.console.send_line(line)
            continue
        migrate(guest, address)
        answer = await migrated(guest)
        shown.update()  # whoever reads that it has moved may kill us, and wants to have it all
        say(f"{answer['status']} {answer.get('error-desc', '')}")
    showing.cancel()


async def leave(path: Path, address: str) -> None:
    with SnapshotFile(path, KINDS) as snapshot:
        async with guest_session(snapshot.config, snapshot) as guest:
            await obey(guest, address)


async def arrive(address: str) -> None:
    listener = MigrationListener(parse_migration_address(address), Security())
    say("waiting")
    async with incoming_session(listener) as guest:
        await obey(guest, "")


def main() -> None:
    try:
        match sys.argv[1:]:
            case ["leave", path, address]:
                asyncio.run(leave(Path(path), address))
            case ["arrive", address]:
                asyncio.run(arrive(address))
    except UserError as error:
        say(f"error: {error}")
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
