# SPDX-License-Identifier: Apache-2.0
"""Announce the guest of `pyvmm run`, where other commands find it by its name.

A guest with --name is announced or does not run. Without, it runs unannounced where that is not
possible, for example without a directory that this user may write to; `run -v` says why.

In a lab that `pyvmm run` itself has started, the guest is announced already, by the process in
front of the lab, which forwards the clients to the socket here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.runtime_directory.announcement import ListeningSocket, announce, announce_numbered
from pyvmm.runtime_directory.errors import RuntimeDirectoryUnusable
from pyvmm.sockets.lab_paths import guest_socket

if TYPE_CHECKING:
    from pyvmm.sockets.addresses import Address


def announced(
    name: str | None, image: Path | None, ram_bytes: int, incoming: Address | None = None
) -> AbstractContextManager[ListeningSocket | None]:
    """Announce a guest while the `with` block runs, which gets its control socket, if it has one.

    Without a `name` it is called by the kernel or snapshot `image`, or `incoming`, and a number.
    Raises `InvalidGuestName`, `GuestNameInUse` or `RuntimeDirectoryUnusable` for a `name`.
    """
    if (forwarded := guest_socket()) is not None:
        return ListeningSocket(forwarded)
    try:
        if name is not None:
            announcement = announce(name)
        else:
            announcement = announce_numbered(image.stem if image else "incoming")
        path = str(image.absolute()) if image else ""
        announcement.describe(path, ram_bytes, str(incoming) if incoming else None)
    except RuntimeDirectoryUnusable as error:
        if name is not None:
            raise
        # Late: saves 5 ms of every start.
        import logging

        logging.getLogger(__name__).info("the guest is not announced: %s", error)
        return nullcontext()
    return announcement
