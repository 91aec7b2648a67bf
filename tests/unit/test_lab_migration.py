# SPDX-License-Identifier: Apache-2.0
"""Migration sockets of programs in labs: what is sent arrives, and who dies is missed.

Each test starts labs, so each asks several things of them. The last is a person's whole story: two
terminals with `pyvmm run`, each in a lab of its own, and a third with `pyvmm migrate`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guest_images.build import image_path
from guest_images.recipe import read_recipe
from pyvmm.lab.places import in_lab
from pyvmm.migration.transport import TlsFiles
from tests.certificates import certificate
from tests.kvm.programs import Program, pyvmm

PATIENCE_S = 150
MISSED_S = 10
"""A few times what it takes on a busy machine to see that the other side is gone."""

RUNNER = """
import sys
from pyvmm.lab.run import run_in_lab
from pyvmm.migration.transport import parse_migration_address
incoming = parse_migration_address(sys.argv[1]) if sys.argv[1] else None
command = [sys.executable, "-u", "-c", *sys.argv[2:]]
sys.exit(run_in_lab(command, memory_mib=2048, incoming=incoming))
"""

PEER = """
import random, sys, threading, zlib
from pyvmm.migration.transport import MigrationListener, Security, connect
from pyvmm.migration.transport import parse_migration_address
from pyvmm.errors import UserError

role, address, mib = sys.argv[1], parse_migration_address(sys.argv[2]), int(sys.argv[3])
if role == "destination":
    listener = MigrationListener(address, Security())
    print(listener.address)
    link = listener.accept()
else:
    link = connect(address, Security())
piece = random.Random(role).randbytes(1 << 20)

def send():
    check = 0
    for number in range(mib):
        check = zlib.crc32(piece[number:], check)
        link.send(piece[number:])
    link.send(check.to_bytes(4, "big"))

def exactly(count):
    data = b""
    while len(data) < count:
        got = link.receive(count - len(data))
        assert got, "it ended early"
        data += got
    return data

sender = threading.Thread(target=send)
sender.start()
check = 0
for number in range(mib):
    check = zlib.crc32(exactly((1 << 20) - number), check)
assert exactly(4) == check.to_bytes(4, "big")
sender.join()
print("exchanged")
if role == "destination":
    print("ended" if link.receive(1) == b"" else "more came")
else:
    try:
        connect(address, Security())
    except UserError as error:
        print(error)
    link.receive(1)
"""


@pytest.fixture(autouse=True, scope="module")
def _parts() -> None:
    if in_lab():
        pytest.skip("nothing nests")


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(*argv: str) -> subprocess.Popen[str]:
        command = [sys.executable, *argv]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(PATIENCE_S)
        assert process.stdout is not None
        process.stdout.close()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def test_from_lab_to_lab_over_tcp(start: Start) -> None:
    asked = "tcp:127.0.0.1:0"
    destination = start("-c", RUNNER, asked, PEER, "destination", asked, "4")
    address = line(destination)
    assert address.startswith("tcp:127.0.0.1:")
    assert address != asked
    source = start("-c", RUNNER, "", PEER, "source", address, "4")
    assert line(source) == "exchanged"
    assert line(destination) == "exchanged"
    assert line(source).startswith(f"cannot connect to {address}: connection refused; start the")
    source.kill()  # the session, the lab and the program in it
    killed_at = time.monotonic()
    assert line(destination) == "ended"
    assert time.monotonic() - killed_at < MISSED_S
    assert destination.wait(PATIENCE_S) == 0


def test_between_a_lab_and_this_machine_over_unix(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "m"
    address = f"unix:{path}"
    destination = start("-c", RUNNER, address, PEER, "destination", address, "4")
    assert line(destination) == address
    source = start("-u", "-c", PEER, "source", address, "4")
    assert line(source) == line(destination) == "exchanged"
    assert not path.exists()
    source.kill()
    assert line(destination) == "ended"
    assert destination.wait(PATIENCE_S) == 0


def test_from_a_lab_to_this_machine_over_unix(start: Start, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/m"
    destination = start("-u", "-c", PEER, "destination", address, "4")
    assert line(destination) == address
    source = start("-c", RUNNER, "", PEER, "source", address, "4")
    assert line(source) == line(destination) == "exchanged"
    assert line(source).startswith(f"cannot connect to {address}: no such file")
    source.kill()
    assert line(destination) == "ended"
    assert destination.wait(PATIENCE_S) == 0


def tls_options(files: TlsFiles) -> list[object]:
    return ["--tls-ca", files.ca, "--tls-cert", files.certificate, "--tls-key", files.key]


@pytest.mark.timeout(600)
def test_a_guest_moves_from_lab_to_lab_with_certificates(tmp_path: Path) -> None:
    image = image_path(read_recipe())
    if not image.exists():
        pytest.fail("there is no current guest image; run: make image")
    home_files, away_files = (certificate(tmp_path, "ca", name) for name in ("home", "away"))
    qmp = f"unix:{tmp_path}/home.sock"
    run = ["--kvm", "lab", "--memory", "128M", "--qmp"]
    append = 'loglevel=4 pyvmm.run="pattern"'
    waiting = ["--incoming", "tcp:127.0.0.1:0", *tls_options(away_files)]
    with (
        Program(image, *run, qmp, "--append", append) as home,
        Program(*waiting, *run, f"unix:{tmp_path}/away.sock") as away,
    ):
        home.expect("user space up")
        assert home.ask("alloc 16").startswith("ok")
        assert home.ask("fill 3").startswith("ok")
        address = away.expect("waiting for a guest at ").split()[-1]
        stranger = certificate(tmp_path, "other", "stranger")
        refused = pyvmm("migrate", address, "--qmp", qmp, *tls_options(stranger))
        assert refused.returncode == 1
        assert "the guest has not moved: " in refused.stderr
        assert home.ask("verify 3") == f"ok verified {16 << 20} wrong 0"
        moved = pyvmm("migrate", address, "--qmp", qmp, *tls_options(home_files))
        assert moved.returncode == 0, moved.stderr
        assert home.status() == 0
        away.expect("the guest has arrived")
        assert away.ask("verify 3") == f"ok verified {16 << 20} wrong 0"
        shown = pyvmm("balloon", "--qmp", f"unix:{tmp_path}/away.sock")
        assert "running" in shown.stdout
        assert away.ask("quit").startswith("ok")
        assert away.status() == 0
    assert not list(tmp_path.glob("*.sock"))
