# SPDX-License-Identifier: Apache-2.0
"""Migration sockets of programs in labs: what is sent arrives, and who dies is missed.

Each test starts labs, so each asks several things of them. The last is a person's whole story: two
terminals with `pyvmm run`, each in a lab of its own, and a third with `pyvmm migrate`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guest_images.build import image_path
from guest_images.recipe import read_recipe
from pyvmm.qmp.client import QmpClient
from pyvmm.sockets.lab_paths import in_lab
from pyvmm.sockets.tls import TlsFiles
from pyvmm.units import MIB
from tests.kvm.pyvmm_process import RunProcess, run_pyvmm
from tests.pyvmm.sockets.certificates import certificate

TIMEOUT_S = 150
MISSED_S = 10
"""A few times what it takes on a busy machine to see that the other side is gone."""

RUNNER = """
import sys
from pyvmm.lab.run import run_in_lab
from pyvmm.sockets.addresses import parse_migration_address
incoming = parse_migration_address(sys.argv[1]) if sys.argv[1] else None
command = [sys.executable, "-u", "-c", *sys.argv[2:]]
sys.exit(run_in_lab(command, memory_mib=2048, incoming=incoming))
"""

PEER = """
import random, sys, threading, zlib
from pyvmm.sockets.connect import connect
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security
from pyvmm.sockets.addresses import parse_migration_address
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
        process.wait(TIMEOUT_S)
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
    assert destination.wait(TIMEOUT_S) == 0


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
    assert destination.wait(TIMEOUT_S) == 0


def test_from_a_lab_to_this_machine_over_unix(start: Start, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/m"
    destination = start("-u", "-c", PEER, "destination", address, "4")
    assert line(destination) == address
    source = start("-c", RUNNER, "", PEER, "source", address, "4")
    assert line(source) == line(destination) == "exchanged"
    assert line(source).startswith(f"cannot connect to {address}: no such file")
    source.kill()
    assert line(destination) == "ended"
    assert destination.wait(TIMEOUT_S) == 0


def tls_options(files: TlsFiles) -> list[object]:
    return ["--tls-ca", files.ca, "--tls-cert", files.certificate, "--tls-key", files.key]


@pytest.fixture
def image() -> Path:
    path = image_path(read_recipe())
    if not path.exists():
        pytest.fail("there is no current guest image; run: make image")
    return path


RUN = ("--kvm", "lab", "--memory", "128M")
APPEND = ("--append", 'loglevel=4 pyvmm.run="pattern"')


def fill(program: RunProcess, mib: int) -> str:
    """Have the guest hold a pattern; what it says to "verify 3" as long as nothing is lost."""
    program.expect("user space up")
    assert program.command(f"alloc {mib}").startswith("ok")
    assert program.command("fill 3").startswith("ok")
    return f"ok verified {mib << 20} wrong 0"


@pytest.mark.timeout(600)
def test_a_guest_moves_from_lab_to_lab_with_certificates(image: Path, tmp_path: Path) -> None:
    home_files, away_files = (certificate(tmp_path, "ca", name) for name in ("home", "away"))
    qmp = f"unix:{tmp_path}/home.sock"
    waiting = ["--incoming", "tcp:127.0.0.1:0", *tls_options(away_files)]
    with (
        RunProcess(image, *RUN, *APPEND, "--qmp", qmp) as home,
        RunProcess(*waiting, *RUN, "--qmp", f"unix:{tmp_path}/away.sock") as away,
    ):
        whole = fill(home, 16)
        address = away.expect("waiting for a guest at ").split()[-1]
        stranger = certificate(tmp_path, "other", "stranger")
        refused = run_pyvmm("migrate", address, "--qmp", qmp, *tls_options(stranger))
        assert refused.returncode == 1
        assert "the guest has not moved: " in refused.stderr
        assert home.command("verify 3") == whole
        moved = run_pyvmm("migrate", address, "--qmp", qmp, *tls_options(home_files))
        assert moved.returncode == 0, moved.stderr
        assert home.status() == 0
        away.expect("the guest has arrived")
        assert away.command("verify 3") == whole
        shown = run_pyvmm("balloon", "--qmp", f"unix:{tmp_path}/away.sock")
        assert "running" in shown.stdout
        assert away.command("quit").startswith("ok")
        assert away.status() == 0
    assert not list(tmp_path.glob("*.sock"))


def leaving(client: QmpClient, address: str) -> None:
    """Begin to migrate; returns when the guest's memory is on its way."""
    client.execute("migrate", uri=address)
    state = client.execute("query-migrate")
    while state["status"] == "setup" or state["ram"]["transferred"] < 2 * MIB:
        assert state["status"] in ("setup", "active"), state
        state = client.execute("query-migrate")


@pytest.mark.timeout(600)
def test_whoever_is_killed_with_its_lab_is_missed_by_the_other(image: Path, tmp_path: Path) -> None:
    """First the destination: the guest goes on. Then the source: nothing incomplete runs."""
    addresses = [f"unix:{tmp_path}/{name}" for name in ("one", "two")]
    qmp = tmp_path / "home.sock"
    with (
        RunProcess(image, *RUN, *APPEND, "--qmp", f"unix:{qmp}") as home,
        RunProcess(*RUN, "--incoming", addresses[0]) as one,
        RunProcess(*RUN, "--incoming", addresses[1]) as two,
    ):
        whole = fill(home, 32)
        for destination in (one, two):
            destination.expect("waiting for a guest at ")
        with QmpClient(qmp) as client:
            client.execute("migrate-set-parameters", **{"max-bandwidth": 4 * MIB})
            leaving(client, addresses[0])
            one.send_signal(signal.SIGKILL)
            killed_at = time.monotonic()
            while (state := client.execute("query-migrate"))["status"] == "active":
                pass
            assert time.monotonic() - killed_at < MISSED_S
            assert state["status"] == "failed"
            assert client.execute("query-status")["status"] == "running"
            assert home.command("verify 3") == whole
            leaving(client, addresses[1])
            home.send_signal(signal.SIGKILL)
            assert two.status() == 2
            assert "no guest has arrived: " in two.rest
