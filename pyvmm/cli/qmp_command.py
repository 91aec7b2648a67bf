# SPDX-License-Identifier: Apache-2.0
"""Commands that act on a running guest over its control socket (QMP).

`run_qmp_command` connects, lets the command do its work and turns every way in which that can fail
into an exit status. An error that the user can correct is a `UserError` (status 2). A guest that
ends meanwhile is not a mistake: it is reported on standard error, and the status is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyvmm.cli.errors import CommandError, RequestFailed
from pyvmm.qmp.client import ConnectionClosedError, QmpClient
from pyvmm.qmp.messages import QmpError
from pyvmm.sockets.addresses import parse_unix_address
from pyvmm.standard_streams.text import print_message

_NOT_THERE = ("CommandNotFound", "DeviceNotActive")
"""Error classes of a server without the command, or a guest without the device."""
EXIT_NOT_DONE = 1
REPLY_TIMEOUT_S = 10.0
"""Bound on a reply for which the server need not wait for the guest."""


def run_qmp_command(
    address: str,
    command: str,
    work: Callable[[QmpClient], int],
    *,
    guest_timeout_s: float = 0.0,
) -> int:
    """Run `work` on a client of the control socket at `address`; returns its exit status.

    `command` is named in errors ("pyvmm stats"). `guest_timeout_s` is how long the server itself
    may wait for the guest before it replies. Raises `RequestFailed` or `CommandError`.
    """
    with QmpClient(parse_unix_address(address), guest_timeout_s + REPLY_TIMEOUT_S) as client:
        try:
            return work(client)
        except QmpError as error:
            raise RequestFailed(error.desc, command) from error
        except ConnectionClosedError:
            print_message("the guest has ended")
            return EXIT_NOT_DONE
        except TimeoutError:
            raise CommandError(
                f"no reply from the control socket {address}",
                "check that the process of the guest is still running",
            ) from None


def execute_if_known(client: QmpClient, command: str) -> dict[str, Any]:
    """Return the answer to `command`; empty if the server or the guest lacks its subject."""
    try:
        answer: dict[str, Any] = client.execute(command)
    except QmpError as error:
        if error.error_class not in _NOT_THERE:
            raise
        return {}
    return answer
