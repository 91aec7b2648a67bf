# SPDX-License-Identifier: Apache-2.0
"""A guest moves from one process to another, as a person has it done with the commands."""

from __future__ import annotations

import fcntl
import signal
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm.control.client import QmpClient
from pyvmm.migration.transport import TlsFiles
from pyvmm.units import MIB
from tests.certificates import certificate
from tests.kvm.programs import Program, pyvmm

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(600)]

PATTERN_MIB = 32
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # netdevice(7)
VERIFIED = f"ok verified {PATTERN_MIB * MIB} wrong 0"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that can have sockets; the lab's shared root cannot."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def at_home(guest_image: Path, place: Path) -> Iterator[Program]:
    """A guest that holds a pattern, controlled at `place`/home."""
    append = 'loglevel=4 pyvmm.run="pattern"'
    qmp = f"unix:{place}/home"
    with Program(guest_image, "--memory", "128M", "--append", append, "--qmp", qmp) as program:
        program.expect("user space up")
        assert program.ask(f"alloc {PATTERN_MIB}").startswith("ok")
        assert program.ask("fill 3").startswith("ok")
        yield program


@pytest.fixture
def loopback() -> None:
    """Tcp within this machine; the lab has no network, and its loopback is down."""
    request = struct.Struct("16sh14x")
    with socket.socket() as any_socket:
        name, flags = request.unpack(fcntl.ioctl(any_socket, SIOCGIFFLAGS, request.pack(b"lo", 0)))
        if not flags & IFF_UP:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, request.pack(name, flags | IFF_UP))


@contextmanager
def waiting(place: Path, address: str, *options: object) -> Iterator[tuple[Program, str]]:
    """A process that waits for a guest, to be controlled at `place`/away, and where it does."""
    with Program("--incoming", address, "--qmp", f"unix:{place}/away", *options) as program:
        line = program.expect("waiting for a guest at ")
        yield program, line.split()[-1]


def tls_options(files: TlsFiles) -> list[object]:
    return ["--tls-ca", files.ca, "--tls-cert", files.certificate, "--tls-key", files.key]


def migrate(place: Path, address: str, *options: object) -> tuple[int, str, str]:
    done = pyvmm("migrate", address, "--qmp", f"unix:{place}/home", *options)
    return done.returncode, done.stdout, done.stderr


def lives(program: Program) -> None:
    """The guest is there, has lost nothing, and ends when it is told to."""
    assert program.ask("verify 3") == VERIFIED
    assert program.ask("quit").startswith("ok")
    assert program.status() == 0


def test_over_a_unix_socket(at_home: Program, place: Path, figure: Callable[[str], None]) -> None:
    with waiting(place, f"unix:{place}/m") as (away, address):
        status, out, err = migrate(place, address)
        assert (status, "the guest has moved in" in out) == (0, True), err
        figure(f"pyvmm migrate: {out.strip()}")
        assert at_home.status() == 0
        away.expect("the guest has arrived")
        shown = pyvmm("balloon", "--qmp", f"unix:{place}/away")
        assert (shown.returncode, "running" in shown.stdout) == (0, True)
        lives(away)
    assert list(place.iterdir()) == []


@pytest.mark.usefixtures("loopback")
def test_over_tcp_with_certificates(at_home: Program, place: Path) -> None:
    """Who is not trusted gets nothing, and the guest goes on; then it moves."""
    home, away_files = (certificate(place, "ca", name) for name in ("home", "away"))
    stranger = certificate(place, "other", "stranger")
    with waiting(place, "tcp:127.0.0.1:0", *tls_options(away_files)) as (away, address):
        status, out, err = migrate(place, address, *tls_options(stranger))
        assert (status, out) == (1, "")
        moving, refused = err.splitlines()
        assert moving == f"pyvmm: moving the guest to {address}"
        assert refused.startswith(f"pyvmm: the guest has not moved: {address} is not to be trusted")
        assert refused.endswith("; it goes on here")
        assert at_home.ask("verify 3") == VERIFIED
        away.expect("a source was turned away: TLS failed")
        status, out, err = migrate(place, address, *tls_options(home))
        assert status == 0, err
        assert at_home.status() == 0
        lives(away)


def test_a_paused_guest_arrives_paused_and_its_source_may_stay(
    at_home: Program, place: Path
) -> None:
    with waiting(place, f"unix:{place}/m") as (away, address):
        with QmpClient(place / "home") as client:
            client.execute("stop")
            status, _, err = migrate(place, address, "--keep", "--no-unused")
            assert status == 0, err
            assert client.execute("query-status")["status"] == "postmigrate"
            client.execute("quit")
        assert at_home.status() == 0
        with QmpClient(place / "away") as client:
            assert client.execute("query-status") == {"status": "paused", "running": False}
            client.execute("cont")
        lives(away)


def test_the_destination_is_ended_while_the_guest_arrives(at_home: Program, place: Path) -> None:
    with waiting(place, f"unix:{place}/m") as (away, address):
        with QmpClient(place / "home") as client:
            client.execute("migrate-set-parameters", **{"max-bandwidth": 4 * MIB})
            client.execute("migrate", uri=address)
            while client.execute("query-migrate")["ram"]["transferred"] < MIB:
                pass
            away.send_signal(signal.SIGTERM)
            assert away.status() == 128 + signal.SIGTERM
            assert "Traceback" not in away.rest
            while client.execute("query-migrate")["status"] == "active":
                pass
            assert client.execute("query-migrate")["status"] == "failed"
        lives(at_home)
    assert list(place.iterdir()) == []


def test_a_guest_that_is_too_large_stays(at_home: Program, place: Path) -> None:
    with waiting(place, f"unix:{place}/m", "--memory", "64M") as (away, address):
        status, _, err = migrate(place, address)
        assert status == 1
        assert "the guest has 128 MiB of RAM, and only 64 MiB may come" in err
        assert away.status() == 2
        assert "no guest has arrived: the guest has 128 MiB of RAM" in away.rest
        lives(at_home)
