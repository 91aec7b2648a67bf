# SPDX-License-Identifier: Apache-2.0
"""`pyvmm stop`, `cont` and `quit`: pause, resume and end a running guest, as in QMP.

QMP's `stop` and `cont` return successfully in states that they do not change, such as that of a
guest that has ended. So the commands query the state afterwards, and succeed only if it is the one
that they are to reach.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from pyvmm.cli.options import qmp_option, timeout_option
from pyvmm.cli.qmp_command import EXIT_NOT_DONE, run_qmp_command
from pyvmm.qmp.client import ConnectionClosedError, QmpClient
from pyvmm.sockets.addresses import parse_unix_address
from pyvmm.standard_streams.text import print_line, print_message

POLL_PERIOD_S = 0.05
SENTENCES = {
    "running": "the guest runs",
    "paused": "the guest is paused",
    "finish-migrate": "the guest is stopped for the switchover of its migration",
    "postmigrate": "the guest has migrated and runs on the destination",
    "shutdown": "the guest has ended",
    "guest-panicked": "the guest has crashed",
}
"""Run states of a pyvmm; QEMU has others."""


@click.command()
@qmp_option
def stop(address: str) -> int:
    """Pause a running guest until 'pyvmm cont'.

    Its vCPUs stop; its memory and devices keep their contents. A paused guest does not resize its
    balloon or report statistics, but it can be saved and migrated. A guest that is paused already
    stays paused.

    \b
    Pause a guest, then let it run again:
      pyvmm stop --qmp unix:/tmp/vm.sock
      pyvmm cont --qmp unix:/tmp/vm.sock

    The exit status is 0 when the guest is paused, 1 when it has ended or migrated, 2 when the
    request was invalid.
    """
    return run_qmp_command(address, "pyvmm stop", lambda client: _reach(client, "stop", "paused"))


@click.command()
@qmp_option
def cont(address: str) -> int:
    """Resume a guest that is paused.

    A guest is paused by 'pyvmm stop', or because it was paused when it was saved or migrated. A
    guest that runs already keeps running.

    The exit status is 0 when the guest runs, 1 when it has ended, 2 when it cannot be resumed now.
    """
    return run_qmp_command(address, "pyvmm cont", lambda client: _reach(client, "cont", "running"))


def _reach(client: QmpClient, command: str, state: str) -> int:
    """Execute `command`, and report whether the guest is in `state` afterwards."""
    client.execute(command)
    now = client.execute("query-status")["status"]
    sentence = SENTENCES.get(now, f"the state of the guest is {now}")
    if now == state:
        print_line(sentence)
        return 0
    print_message(sentence)
    return EXIT_NOT_DONE


@click.command("quit")
@qmp_option
@timeout_option(10.0, "Stop waiting for the end of the process after this many seconds.")
def quit_guest(address: str, timeout_s: float) -> int:
    """End a guest at once, and with it the process that runs it.

    The guest is not notified: it loses what it has not written out, as when its power fails. To
    shut it down in order, log in on its console. The command returns when the process has removed
    its control socket, so that the address can be used again.

    The exit status is 0 when the guest has ended, 1 when that takes longer than --timeout, 2 when
    the request was invalid.
    """

    def work(client: QmpClient) -> int:
        deadline = time.monotonic() + timeout_s
        socket = parse_unix_address(address)
        try:
            client.execute("quit")
            while (left_s := deadline - time.monotonic()) > 0:
                client.wait_for_event(left_s)
        except ConnectionClosedError:
            if _wait_for_removal(socket, deadline):
                print_line("the guest has ended")
                return 0
        print_message(f"the guest has not ended within {timeout_s:g} s")
        return EXIT_NOT_DONE

    return run_qmp_command(address, "pyvmm quit", work)


def _wait_for_removal(socket: Path, deadline: float) -> bool:
    """Wait until the file `socket` is removed; return False if it still exists at `deadline`.

    The process that serves the guest removes it before it closes its connections, but in front of a
    lab another process listens, and removes it later.
    """
    while socket.exists():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_PERIOD_S)
    return True
