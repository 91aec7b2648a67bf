# SPDX-License-Identifier: Apache-2.0
"""The other side of a migration, in a process of its own, as in reality.

    python -m bench.arriving unix:PATH

It waits there for a guest. What it says on standard output: `waits`, then `runs` when the guest
runs here; after that it hands each line of standard input to the guest's `pattern` program and
says what that replied, until there are no more.
"""

from __future__ import annotations

import asyncio
import sys

from pyvmm.harness.guest_session import incoming_session
from pyvmm.sockets.addresses import parse_migration_address
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security

WAITS, RUNS = "waits", "runs"


async def _serve(uri: str) -> None:
    listener = MigrationListener(parse_migration_address(uri), Security())
    print(WAITS, flush=True)
    async with incoming_session(listener) as guest:
        print(RUNS, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(await guest.command(line.strip()), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
