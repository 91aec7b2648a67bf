# SPDX-License-Identifier: Apache-2.0
"""Migrate a guest from one process to another with pyvmm's commands."""

from __future__ import annotations

import fcntl
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm.config import MachineConfig
from pyvmm.migration.messages import Hello
from pyvmm.qmp.client import QmpClient
from pyvmm.sockets.tls import TlsFiles
from pyvmm.units import MIB
from tests.kvm.pyvmm_process import RunProcess, run_pyvmm
from tests.pyvmm.sockets.certificates import certificate

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(600)]

PATTERN_MIB = 32
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # netdevice(7)
VERIFIED = f"ok verified {PATTERN_MIB * MIB} wrong 0"


@pytest.fixture
def source(guest_image: Path, directory: Path) -> Iterator[RunProcess]:
    """Run a guest that holds a pattern; its QMP socket is `directory`/source."""
    append = 'loglevel=4 pyvmm.run="pattern"'
    qmp = f"unix:{directory}/source"
    with RunProcess(guest_image, "--memory", "128M", "--append", append, "--qmp", qmp) as program:
        program.expect("user space up")
        assert program.command(f"alloc {PATTERN_MIB}").startswith("ok")
        assert program.command("fill 3").startswith("ok")
        yield program


@pytest.fixture
def loopback() -> None:
    """Bring up the loopback interface: the lab has no network, and its loopback is down."""
    request = struct.Struct("16sh14x")
    with socket.socket() as any_socket:
        name, flags = request.unpack(fcntl.ioctl(any_socket, SIOCGIFFLAGS, request.pack(b"lo", 0)))
        if not flags & IFF_UP:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, request.pack(name, flags | IFF_UP))


@contextmanager
def destination(
    directory: Path, address: str, *options: object
) -> Iterator[tuple[RunProcess, str]]:
    """Run a process that waits for a guest; yield it and the address it listens at.

    Its QMP socket is `directory`/destination.
    """
    with RunProcess(
        "--incoming", address, "--qmp", f"unix:{directory}/destination", *options
    ) as program:
        line = program.expect("waiting for a guest at ")
        yield program, line.split()[-1]


def tls_options(files: TlsFiles) -> list[object]:
    return ["--tls-ca", files.ca, "--tls-cert", files.certificate, "--tls-key", files.key]


def migrate(directory: Path, address: str, *options: object) -> tuple[int, str, str]:
    done = run_pyvmm("migrate", address, "--qmp", f"unix:{directory}/source", *options)
    return done.returncode, done.stdout, done.stderr


def assert_intact(program: RunProcess) -> None:
    """Assert that the guest runs in `program` and has lost nothing; power it off."""
    assert program.command("verify 3") == VERIFIED
    assert program.command("quit").startswith("ok")
    assert program.status() == 0


def test_migrate_over_a_unix_socket(
    source: RunProcess, directory: Path, figure: Callable[[str], None]
) -> None:
    with destination(directory, f"unix:{directory}/m") as (target, address):
        status, out, err = migrate(directory, address)
        assert (status, "the guest has moved in" in out) == (0, True), err
        figure(f"pyvmm migrate: {out.strip()}")
        assert source.status() == 0
        target.expect("the guest has arrived")
        shown = run_pyvmm("balloon", "--qmp", f"unix:{directory}/destination")
        assert (shown.returncode, "running" in shown.stdout) == (0, True)
        assert_intact(target)
    assert list(directory.iterdir()) == []


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_migrate_over_two_streams(
    source: RunProcess, directory: Path, figure: Callable[[str], None], transport: str
) -> None:
    listen = f"unix:{directory}/m" if transport == "unix" else "tcp:127.0.0.1:0"
    with destination(directory, listen) as (target, address):
        status, out, err = migrate(directory, address, "--streams", 2)
        assert (status, "the guest has moved in" in out) == (0, True), err
        figure(f"pyvmm migrate --streams 2, {transport}: {out.strip()}")
        assert source.status() == 0
        target.expect("the guest has arrived")
        assert_intact(target)


@pytest.mark.usefixtures("loopback")
def test_migrate_over_tls(source: RunProcess, directory: Path) -> None:
    """An untrusted source is refused and its guest keeps running; a trusted one succeeds."""
    source_files, destination_files = (
        certificate(directory, "ca", name) for name in ("source", "destination")
    )
    stranger = certificate(directory, "other", "stranger")
    with destination(directory, "tcp:127.0.0.1:0", *tls_options(destination_files)) as (
        target,
        address,
    ):
        status, out, err = migrate(directory, address, *tls_options(stranger))
        assert (status, out) == (1, "")
        moving, refused = err.splitlines()
        assert moving == f"pyvmm: migrating the guest to {address}"
        assert refused.startswith(f"pyvmm: the guest has not moved: {address} is not trusted")
        assert refused.endswith("; it still runs here; check the certificates of both sides")
        assert source.command("verify 3") == VERIFIED
        target.expect("a source was refused: TLS failed")
        status, out, err = migrate(directory, address, *tls_options(source_files))
        assert status == 0, err
        assert source.status() == 0
        assert_intact(target)


def test_a_paused_guest_stays_paused_and_keep_leaves_the_source_running(
    source: RunProcess, directory: Path
) -> None:
    with destination(directory, f"unix:{directory}/m") as (target, address):
        with QmpClient(directory / "source") as client:
            client.execute("stop")
            status, _, err = migrate(directory, address, "--keep", "--no-unused")
            assert status == 0, err
            assert client.execute("query-status")["status"] == "postmigrate"
            client.execute("quit")
        assert source.status() == 0
        with QmpClient(directory / "destination") as client:
            assert client.execute("query-status") == {"status": "paused", "running": False}
            client.execute("cont")
        assert_intact(target)


def test_the_source_keeps_the_guest_when_the_destination_is_terminated(
    source: RunProcess, directory: Path
) -> None:
    with destination(directory, f"unix:{directory}/m") as (target, address):
        with QmpClient(directory / "source") as client:
            client.execute("migrate-set-parameters", **{"max-bandwidth": 4 * MIB})
            client.execute("migrate", uri=address)
            while client.execute("query-migrate")["ram"]["transferred"] < MIB:
                pass
            target.send_signal(signal.SIGTERM)
            assert target.status() == 128 + signal.SIGTERM
            assert "Traceback" not in target.rest
            while client.execute("query-migrate")["status"] == "active":
                pass
            assert client.execute("query-migrate")["status"] == "failed"
        assert_intact(source)
    assert list(directory.iterdir()) == []


def test_a_guest_larger_than_the_destination_accepts_keeps_running(
    source: RunProcess, directory: Path
) -> None:
    with destination(directory, f"unix:{directory}/m", "--memory", "64M") as (target, address):
        status, _, err = migrate(directory, address)
        assert status == 1
        assert "the guest has 128 MiB of RAM, the destination takes at most 64 MiB" in err
        target.expect("a source was refused: the guest has 128 MiB of RAM")
        target.send_signal(signal.SIGTERM)
        assert target.status() == 128 + signal.SIGTERM
        assert_intact(source)


def test_a_guest_arrives_after_strangers_and_a_source_that_failed(
    source: RunProcess, directory: Path
) -> None:
    """The VM that was created before any of them came is used by the source that failed."""
    hello = Hello(MachineConfig(Path(), None, "", 96 * MIB, 2, "standard")).record().encode()
    with destination(directory, f"unix:{directory}/m") as (target, address):
        for data in (b"GET / HTTP/1.1\r\n\r\n" * 100, hello):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(str(directory / "m"))
                stranger.sendall(data)
                assert stranger.recv(1)
            target.expect("a source was refused: ")
        status, _, err = migrate(directory, address)
        assert (status, err.count("Traceback")) == (0, 0), err
        assert_intact(target)
