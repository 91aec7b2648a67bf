# SPDX-License-Identifier: Apache-2.0
"""A socket link whose failures are migration errors: the one place that converts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.migration.errors import LinkBroken
from pyvmm.sockets.errors import ConnectionLost

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyvmm.sockets.link import SocketLink


class MigrationLink:
    """Wraps `link`; satisfies `pyvmm.migration.source.Link`."""

    def __init__(self, link: SocketLink) -> None:
        self._link = link

    def send(self, data: Buffer) -> None:
        """Send all of `data`. Raises `LinkBroken`."""
        try:
            self._link.send(data)
        except ConnectionLost as error:
            raise LinkBroken(str(error)) from error

    def receive(self, at_most: int) -> bytes:
        """Return 1 to `at_most` bytes; none at the end of the stream. Raises `LinkBroken`."""
        try:
            return self._link.receive(at_most)
        except ConnectionLost as error:
            raise LinkBroken(str(error)) from error

    def readable(self) -> bool:
        """Return True if `receive` would not block. Raises `LinkBroken`."""
        try:
            return self._link.readable()
        except ConnectionLost as error:
            raise LinkBroken(str(error)) from error

    def abort(self) -> None:
        """Make the thread that uses the link fail, now."""
        self._link.abort()

    def close(self) -> None:
        """Close the connection; the link must not be in use."""
        self._link.close()
