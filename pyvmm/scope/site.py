# SPDX-License-Identifier: Apache-2.0
"""The things that all requests to a server share: its source, token, addresses and connections."""

from __future__ import annotations

from typing import NamedTuple

from pyvmm.scope.connections import Connections
from pyvmm.scope.live_guest import LiveGuest
from pyvmm.scope.recorded_guest import RecordedGuest


class Site(NamedTuple):
    """One server."""

    source: RecordedGuest | LiveGuest
    token: str
    hosts: tuple[str, ...]
    """The addresses under which a browser reaches it, as in `Host`."""
    connections: Connections
