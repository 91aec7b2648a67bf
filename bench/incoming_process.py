# SPDX-License-Identifier: Apache-2.0
"""The destination of a migration, in a process of its own, as on another host.

    python -m bench.incoming_process unix:PATH

It waits at the socket for a guest. On standard output it writes `listening`, then `running` when
the guest runs here; after that it passes each line of standard input to the guest's `pattern`
program and writes the reply, until standard input ends.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  # For `to_thread`, which is called during the move.
import sys
from contextlib import closing

import pyvmm.migration.incoming  # noqa: F401  # Before it says that it waits, as the command does.
from pyvmm.harness.guest_session import incoming_session
from pyvmm.migration.prepared_vm import prepare_vm
from pyvmm.sockets.addresses import parse_migration_address
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security

LISTENING, RUNNING = "listening", "running"


async def _serve(uri: str) -> None:
    listener = MigrationListener(parse_migration_address(uri), Security())
    prepared = prepare_vm()
    print(LISTENING, flush=True)
    with closing(prepared):
        async with incoming_session(listener, prepared=prepared) as guest:
            print(RUNNING, flush=True)
            while line := await asyncio.to_thread(sys.stdin.readline):
                print(await guest.command(line.strip()), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
