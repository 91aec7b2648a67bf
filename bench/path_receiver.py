# SPDX-License-Identifier: Apache-2.0
"""The destination of `bench.migration_path`, a process of its own.

    python -m bench.path_receiver CONTROL BYTES [CERTIFICATE KEY]

For each request on the socket CONTROL, a JSON object with the descriptors of the connections, it
prepares RAM of BYTES, replies that it is ready, receives, and replies with the CRC-32C of all RAM.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.path_cases import CHECKED, FRESH, STREAMS_OF, TLS, connections
from bench.path_ram import checksum_of, clear
from bench.touched_ram import TouchedRam
from pyvmm.config import MachineConfig
from pyvmm.migration.destination import DestinationMigration
from pyvmm.migration.link import MigrationLink
from pyvmm.migration.timeouts import TIMEOUTS
from pyvmm.sockets.link import SocketLink
from pyvmm.sockets.tls import TlsFiles, handshake
from pyvmm.state.records import Kind, Record
from pyvmm_native.checksum import crc32c

PIECE_BYTES = 256 * 1024
"""Bytes of one call of the plain programs; of 64 KiB to 2 MiB the fastest here."""
CRC_BYTES = 4
MAX_REQUEST_BYTES = 1000
MAX_CONNECTIONS = max(map(connections, STREAMS_OF))


class _Target:
    """Satisfies `pyvmm.migration.destination.Target` with RAM that exists already."""

    kinds: Mapping[str, Kind] = {}

    def __init__(self, ram: TouchedRam) -> None:
        self._ram = ram

    def create_machine(self, config: MachineConfig) -> TouchedRam:
        assert config.ram_bytes == self._ram.size_bytes
        return self._ram

    def restore(self, parts: Sequence[Record]) -> None:
        assert not parts

    def start(self, *, running: bool) -> None:
        assert running


def receive_plainly(stream: socket.socket, ram: TouchedRam, *, checked: bool) -> None:
    """Receive all of RAM, in order, and its CRC-32C if it is `checked`; acknowledge it."""
    flags = 0 if isinstance(stream, ssl.SSLSocket) else socket.MSG_WAITALL
    crc = 0
    for _, area in ram.areas:
        at = 0
        while at < len(area):
            piece = area[at : at + PIECE_BYTES]
            got = stream.recv_into(piece, len(piece), flags)
            if not got:
                raise EOFError
            if checked:
                crc = crc32c(piece[:got], crc)
            at += got
    if checked and int.from_bytes(stream.recv(CRC_BYTES), "little") != crc:
        raise ValueError("wrong CRC-32C")
    stream.sendall(b"x")


class Receiver:
    """Serves requests until the other side closes `control`."""

    def __init__(self, control: socket.socket, size_bytes: int, tls: TlsFiles | None) -> None:
        self._control = control
        self._ram = TouchedRam(size_bytes)
        self._context = tls.context(server=True) if tls else None
        self._state = FRESH

    def serve(self) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(self._control, MAX_REQUEST_BYTES, MAX_CONNECTIONS)
            if not data:
                return
            request = json.loads(data)
            with ExitStack() as stack:
                streams = [stack.enter_context(socket.socket(fileno=fd)) for fd in fds]
                self._serve(request, streams)

    def _serve(self, request: dict[str, Any], streams: Sequence[socket.socket]) -> None:
        self._prepare(request["ram"])
        if request["link"] == TLS:
            assert self._context is not None
            streams = [handshake(stream, self._context, None) for stream in streams]
        self._control.sendall(b"ready")
        if request["contender"] in STREAMS_OF:
            self._migrate([MigrationLink(SocketLink(stream)) for stream in streams])
        else:
            receive_plainly(streams[0], self._ram, checked=request["contender"] == CHECKED)
        self._control.sendall(str(checksum_of(self._ram)).encode())

    def _migrate(self, links: Sequence[MigrationLink]) -> None:
        """Receive over the first of `links`, with the others as its streams."""
        target = _Target(self._ram)
        migration = DestinationMigration(target, links[0])

        def join(link: MigrationLink) -> None:
            hello = DestinationMigration(target, link).receive_hello(TIMEOUTS.hello)
            assert hello is not None
            migration.streams.admit(hello, link)

        for link in links[1:]:
            threading.Thread(target=join, args=(link,)).start()
        migration.run()

    def _prepare(self, state: str) -> None:
        """Make RAM as `state` says, without anything that an earlier request has left."""
        if state != self._state:
            self._ram.use_huge_pages(state != FRESH)
            self._state = state
        if state == FRESH:
            self._ram.close()
            return
        clear(self._ram)


def main(control: str, size_bytes: str, *files: str) -> None:
    certificate, key = (*map(Path, files), None, None)[:2]
    tls = TlsFiles(certificate, certificate, key) if certificate and key else None
    with socket.socket(fileno=int(control)) as stream:
        Receiver(stream, int(size_bytes), tls).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
