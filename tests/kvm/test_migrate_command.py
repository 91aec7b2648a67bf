# SPDX-License-Identifier: Apache-2.0
"""A guest moves from one process to another, as a person has it done with the commands."""

from __future__ import annotations

import fcntl
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm.qmp.client import QmpClient
from pyvmm.sockets.transport import TlsFiles
from pyvmm.units import MIB
from tests.kvm.programs import Program, pyvmm
from tests.pyvmm.sockets.certificates import certificate

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(600)]

PATTERN_MIB = 32
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # netdevice(7)
VERIFIED = f"ok verified {PATTERN_MIB * MIB} wrong 0"


@pytest.fixture
def at_home(guest_image: Path, directory: Path) -> Iterator[Program]:
    """A guest that holds a pattern, controlled at `directory`/home."""
    append = 'loglevel=4 pyvmm.run="pattern"'
    qmp = f"unix:{directory}/home"
    with Program(guest_image, "--memory", "128M", "--append", append, "--qmp", qmp) as program:
        program.expect("user space up")
        assert program.command(f"alloc {PATTERN_MIB}").startswith("ok")
        assert program.command("fill 3").startswith("ok")
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
def waiting(directory: Path, address: str, *options: object) -> Iterator[tuple[Program, str]]:
    """A process that waits for a guest, to be controlled at `directory`/away, and where it does."""
    with Program("--incoming", address, "--qmp", f"unix:{directory}/away", *options) as program:
        line = program.expect("waiting for a guest at ")
        yield program, line.split()[-1]


def tls_options(files: TlsFiles) -> list[object]:
    return ["--tls-ca", files.ca, "--tls-cert", files.certificate, "--tls-key", files.key]


def migrate(directory: Path, address: str, *options: object) -> tuple[int, str, str]:
    done = pyvmm("migrate", address, "--qmp", f"unix:{directory}/home", *options)
    return done.returncode, done.stdout, done.stderr


def lives(program: Program) -> None:
    """The guest is there, has lost nothing, and ends when it is told to."""
    assert program.command("verify 3") == VERIFIED
    assert program.command("quit").startswith("ok")
    assert program.status() == 0


def test_over_a_unix_socket(
    at_home: Program, directory: Path, figure: Callable[[str], None]
) -> None:
    with waiting(directory, f"unix:{directory}/m") as (away, address):
        status, out, err = migrate(directory, address)
        assert (status, "the guest has moved in" in out) == (0, True), err
        figure(f"pyvmm migrate: {out.strip()}")
        assert at_home.status() == 0
        away.expect("the guest has arrived")
        shown = pyvmm("balloon", "--qmp", f"unix:{directory}/away")
        assert (shown.returncode, "running" in shown.stdout) == (0, True)
        lives(away)
    assert list(directory.iterdir()) == []


@pytest.mark.usefixtures("loopback")
def test_over_tcp_with_certificates(at_home: Program, directory: Path) -> None:
    """Who is not trusted gets nothing, and the guest goes on; then it moves."""
    home, away_files = (certificate(directory, "ca", name) for name in ("home", "away"))
    stranger = certificate(directory, "other", "stranger")
    with waiting(directory, "tcp:127.0.0.1:0", *tls_options(away_files)) as (away, address):
        status, out, err = migrate(directory, address, *tls_options(stranger))
        assert (status, out) == (1, "")
        moving, refused = err.splitlines()
        assert moving == f"pyvmm: moving the guest to {address}"
        assert refused.startswith(f"pyvmm: the guest has not moved: {address} is not to be trusted")
        assert refused.endswith("; it goes on here")
        assert at_home.command("verify 3") == VERIFIED
        away.expect("a source was turned away: TLS failed")
        status, out, err = migrate(directory, address, *tls_options(home))
        assert status == 0, err
        assert at_home.status() == 0
        lives(away)


def test_a_paused_guest_arrives_paused_and_its_source_may_stay(
    at_home: Program, directory: Path
) -> None:
    with waiting(directory, f"unix:{directory}/m") as (away, address):
        with QmpClient(directory / "home") as client:
            client.execute("stop")
            status, _, err = migrate(directory, address, "--keep", "--no-unused")
            assert status == 0, err
            assert client.execute("query-status")["status"] == "postmigrate"
            client.execute("quit")
        assert at_home.status() == 0
        with QmpClient(directory / "away") as client:
            assert client.execute("query-status") == {"status": "paused", "running": False}
            client.execute("cont")
        lives(away)


def test_the_destination_is_ended_while_the_guest_arrives(
    at_home: Program, directory: Path
) -> None:
    with waiting(directory, f"unix:{directory}/m") as (away, address):
        with QmpClient(directory / "home") as client:
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
    assert list(directory.iterdir()) == []


def test_a_guest_that_is_too_large_stays(at_home: Program, directory: Path) -> None:
    with waiting(directory, f"unix:{directory}/m", "--memory", "64M") as (away, address):
        status, _, err = migrate(directory, address)
        assert status == 1
        assert "the guest has 128 MiB of RAM, and only 64 MiB may come" in err
        assert away.status() == 2
        assert "no guest has arrived: the guest has 128 MiB of RAM" in away.rest
        lives(at_home)
