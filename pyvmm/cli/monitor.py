# SPDX-License-Identifier: Apache-2.0
"""A command line's visit to the monitor of a running guest: where it can end early, and how.

What a person can mend is a `UserError` (exit status 2). A guest that ends meanwhile is no mistake:
it is said on standard error, and the exit status is 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from pyvmm.errors import UserError
from pyvmm.qmp.client import ConnectionClosedError, QmpClient
from pyvmm.qmp.messages import QmpError
from pyvmm.sockets.addresses import parse_unix_address

EXIT_NOT_DONE = 1
REPLY_TIMEOUT_S = 10.0
"""A monitor that takes longer than this for what needs no guest has stopped."""


qmp_option = click.option(
    "--qmp", "address", required=True, metavar="unix:PATH", help="Control socket of the guest."
)
unused_option = click.option(
    "--unused/--no-unused",
    "ask_unused",
    default=True,
    show_default=True,
    help="Ask the guest which pages it does not use, and leave them out.",
)


def visit(
    address: str,
    command: str,
    work: Callable[[QmpClient], int],
    *,
    guest_timeout_s: float = 0.0,
) -> int:
    """Run `work` for `command` ("pyvmm stats") on the monitor at `address`; its exit status.

    `guest_timeout_s` is what the monitor itself may wait for the guest.
    """
    with QmpClient(parse_unix_address(address), guest_timeout_s + REPLY_TIMEOUT_S) as client:
        try:
            return work(client)
        except QmpError as error:
            raise UserError(
                f"the guest's monitor refuses: {error.desc}", f"see '{command} --help'"
            ) from error
        except ConnectionClosedError:
            print("pyvmm: the guest has ended", file=sys.stderr)
            return EXIT_NOT_DONE
        except TimeoutError:
            raise UserError(
                "the guest's monitor has stopped answering", "see whether its process still runs"
            ) from None
