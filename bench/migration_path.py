# SPDX-License-Identifier: Apache-2.0
"""The path of a migration without a guest: from the RAM of one process into that of another.

The source and the destination of a real migration, with a guest that has no state and writes
nothing, are compared with the simplest programs that move the same memory: `sendall` and
`recv_into` of both mappings, with a CRC-32C at either end and without. A migration of two streams
can use two processors on either side, so it shows what they bring only where there are four. All of
the memory is random bytes. The time runs from the first byte that is sent until the destination has
acknowledged the last one; connecting, and the handshake of TLS, are not in it. After every turn the
checksum of the destination's RAM must be that of the source's.

A first touch of memory takes as long as the host takes to provide it, which may differ by a factor
of ten from one moment to the next. So the destination's RAM is touched before, but in the cases
that say "fresh".
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.measure import Case, Contender, Plan, Values, seconds, take_turns
from bench.path_cases import (
    CHECKED,
    FRESH,
    PYVMM,
    SOCKETS,
    STREAMS,
    STREAMS_OF,
    TCP,
    TLS,
    TOUCHED,
    UNIX,
    case_name,
    connections,
)
from bench.path_ram import EmptyLog, checksum_of, fill
from bench.path_receiver import CRC_BYTES, PIECE_BYTES
from bench.touched_ram import TouchedRam, have_huge_pages
from pyvmm.config import MachineConfig
from pyvmm.errors import NotInstalled, UserError
from pyvmm.memory.precopy import UnusedPages
from pyvmm.migration.link import MigrationLink
from pyvmm.migration.progress import MigrationProgress, Settings
from pyvmm.migration.source import SourceMigration
from pyvmm.sockets.link import SocketLink
from pyvmm.sockets.tls import TlsFiles, handshake
from pyvmm.state.records import Record
from pyvmm.units import GIB, MIB
from pyvmm_native.checksum import crc32c
from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns

RAM_BYTES = 2 * GIB
QUICK_BYTES = 64 * MIB
ROUNDS = 7
LIMIT_S = 120
HOST = "localhost"


def measure(plan: Plan) -> list[Case]:
    """Measure each link, into RAM that is touched and into RAM that is not."""
    size_bytes = QUICK_BYTES if plan.quick else RAM_BYTES
    states = (TOUCHED, FRESH) if have_huge_pages() else (FRESH,)
    with TemporaryDirectory() as directory:
        tls = _certificate(Path(directory))
        with _Path(size_bytes, tls) as path:
            return [_measure(path, link, ram, plan) for ram in states for link in (TCP, UNIX, TLS)]


def _measure(path: _Path, link: str, ram: str, plan: Plan) -> Case:
    path.use(ram)
    case = Case(case_name(link, ram), "s", against=SOCKETS, panel="path")
    contenders: dict[str, Contender] = {
        name: partial(path.move, name, link, ram) for name in (PYVMM, STREAMS, CHECKED, SOCKETS)
    }
    rounds = plan.rounds(ROUNDS)
    return take_turns(case, contenders, rounds, plan, warm_up=not plan.quick, limit_s=LIMIT_S)


class _Path:
    """RAM of `size_bytes`, and the process that receives it."""

    def __init__(self, size_bytes: int, tls: TlsFiles) -> None:
        self._ram = TouchedRam(size_bytes)
        self._state = ""
        self._crc = 0
        self._tls = tls.context(server=False)
        self._control, theirs = socket.socketpair()
        argv = [sys.executable, "-m", "bench.path_receiver", str(theirs.fileno()), str(size_bytes)]
        argv += [str(tls.certificate), str(tls.key)]
        with theirs:
            self._receiver = subprocess.Popen(argv, pass_fds=(theirs.fileno(),))

    def __enter__(self) -> _Path:
        return self

    def __exit__(self, *exc: object) -> None:
        self._control.close()
        self._receiver.wait()

    def use(self, state: str) -> None:
        """Fill the source's RAM, in pages of the size that the destination has."""
        if state == self._state:
            return
        self._ram.use_huge_pages(state == TOUCHED)
        self._state = state
        fill(self._ram)
        self._crc = checksum_of(self._ram)

    def move(self, contender: str, link: str, state: str) -> Values:
        """Send all RAM to the destination; return how long it took."""
        with ExitStack() as stack:
            pairs = [_connected(link, stack) for _ in range(connections(contender))]
            request = {"contender": contender, "link": link, "ram": state}
            theirs = [each for _, each in pairs]
            socket.send_fds(
                self._control, [json.dumps(request).encode()], [each.fileno() for each in theirs]
            )
            for each in theirs:
                each.close()
            streams = [ours for ours, _ in pairs]
            if link == TLS:
                streams = [stack.enter_context(handshake(s, self._tls, HOST)) for s in streams]
            self._reply()
            begin = time.monotonic()
            if contender in STREAMS_OF:
                _migrate(self._ram, streams)
            else:
                _send_plainly(self._ram, streams[0], checked=contender == CHECKED)
            took = time.monotonic() - begin
            if int(self._reply()) != self._crc:
                raise UserError(f"{contender} has not moved all memory over {link}")
        return seconds(took)

    def _reply(self) -> bytes:
        if not (reply := self._control.recv(100)):
            raise UserError("the receiving process has failed; see its output for the reason")
        return reply


class _Guest:
    """Satisfies `pyvmm.migration.source.SourceGuest`; it has nothing but memory."""

    def __init__(self, ram: TouchedRam) -> None:
        self.config = MachineConfig(Path("/none"), None, "", ram.size_bytes, 1, "bitmap")
        self.memory: GuestMemory = ram.memory

    @contextmanager
    def log_dirty_pages(self) -> Iterator[EmptyLog]:
        yield EmptyLog()

    def request_unused_pages(self, timeout_s: float) -> Future[UnusedPages]:
        answer: Future[UnusedPages] = Future()
        answer.set_result(UnusedPages(PageRuns(), ""))
        return answer

    def throttle(self, percentage: int) -> None:
        assert not percentage

    def stop(self) -> bool:
        return True

    def save_parts(self) -> Sequence[Record]:
        return ()

    def resume(self) -> None:
        raise AssertionError("the migration has failed")


def _migrate(ram: TouchedRam, connections: Sequence[socket.socket]) -> None:
    """Migrate over the first of `connections`, with the others as its streams."""
    link, *further = [MigrationLink(SocketLink(each)) for each in connections]
    settings = Settings(streams=len(further) or 1)
    progress, connect = MigrationProgress(), iter(further).__next__
    SourceMigration(_Guest(ram), link, settings, progress, connect=connect).run()


def _send_plainly(ram: TouchedRam, stream: socket.socket, *, checked: bool) -> None:
    """Send all of RAM, in order, and its CRC-32C if it is `checked`; wait until it is there."""
    crc = 0
    for _, area in ram.areas:
        for at in range(0, len(area), PIECE_BYTES):
            piece = area[at : at + PIECE_BYTES]
            if checked:
                crc = crc32c(piece, crc)
            stream.sendall(piece)
    if checked:
        stream.sendall(crc.to_bytes(CRC_BYTES, "little"))
    if not stream.recv(1):
        raise UserError("the receiving process has failed; see its output for the reason")


def _connected(link: str, stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection over `link`, which `stack` closes."""
    if link == UNIX:
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            theirs, _ = server.accept()
        for stream in (ours, theirs):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for stream in (ours, theirs):
        stack.enter_context(stream)
    return ours, theirs


def _certificate(directory: Path) -> TlsFiles:
    """Return a certificate of both sides, which is its own CA."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    argv += ["-nodes", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    argv += ["-days", "2", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(argv, capture_output=True, check=True)
    except FileNotFoundError as error:
        raise NotInstalled("the certificates of TLS are made with openssl", "openssl") from error
    return TlsFiles(certificate, certificate, key)
