# SPDX-License-Identifier: Apache-2.0
"""Migration sockets of programs in labs: data arrives, and a peer that dies is noticed.

Starting a lab takes seconds, so each test checks several things. The last two do what a user
does: two terminals with `pyvmm run`, each in a lab of its own, and a third with `pyvmm migrate`.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
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
from tests.pyvmm.sockets.accepting import accept_connection

role, address, mib = sys.argv[1], parse_migration_address(sys.argv[2]), int(sys.argv[3])
if role == "destination":
    listener = MigrationListener(address, Security())
    print(listener.address)
    link = accept_connection(listener)
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
    print("ended" if link.receive(1) == b"" else "more data arrived")
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
        pytest.skip("labs do not nest")


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


def test_a_program_in_a_lab_connects_to_another_lab_over_tcp(start: Start) -> None:
    asked = "tcp:127.0.0.1:0"
    destination = start("-c", RUNNER, asked, PEER, "destination", asked, "4")
    address = line(destination)
    assert address.startswith("tcp:127.0.0.1:")
    assert address != asked
    source = start("-c", RUNNER, "", PEER, "source", address, "4")
    assert line(source) == "exchanged"
    assert line(destination) == "exchanged"
    assert line(source).startswith(
        f"no destination can be reached at {address}: connection refused"
    )
    source.kill()  # the session, the lab and the program in it
    assert line(destination) == "ended"  # it waits without a limit
    assert destination.wait(TIMEOUT_S) == 0


def test_a_program_on_the_host_connects_to_a_lab_over_unix(start: Start, tmp_path: Path) -> None:
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


def test_a_program_in_a_lab_connects_to_the_host_over_unix(start: Start, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/m"
    destination = start("-u", "-c", PEER, "destination", address, "4")
    assert line(destination) == address
    source = start("-c", RUNNER, "", PEER, "source", address, "4")
    assert line(source) == line(destination) == "exchanged"
    assert line(source).startswith(f"no destination can be reached at {address}: no such file")
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
    """Write a pattern to guest memory; return the reply to "verify 3" while it is intact."""
    program.expect("user space up")
    assert program.command(f"alloc {mib}").startswith("ok")
    assert program.command("fill 3").startswith("ok")
    return f"ok verified {mib << 20} wrong 0"


@pytest.mark.timeout(600)
def test_a_guest_migrates_between_labs_over_tls(image: Path, tmp_path: Path) -> None:
    source_files, destination_files = (
        certificate(tmp_path, "ca", name) for name in ("source", "destination")
    )
    qmp = f"unix:{tmp_path}/source.sock"
    waiting = ["--incoming", "tcp:127.0.0.1:0", *tls_options(destination_files)]
    with (
        RunProcess(image, *RUN, *APPEND, "--qmp", qmp) as source,
        RunProcess(*waiting, *RUN, "--qmp", f"unix:{tmp_path}/destination.sock") as destination,
    ):
        verified = fill(source, 16)
        address = destination.expect("waiting for a guest at ").split()[-1]
        stranger = certificate(tmp_path, "other", "stranger")
        refused = run_pyvmm("migrate", address, "--qmp", qmp, *tls_options(stranger))
        assert refused.returncode == 1
        assert "the guest has not moved: " in refused.stderr
        assert source.command("verify 3") == verified
        moved = run_pyvmm("migrate", address, "--qmp", qmp, *tls_options(source_files))
        assert moved.returncode == 0, moved.stderr
        assert source.status() == 0
        destination.expect("the guest has arrived")
        assert destination.command("verify 3") == verified
        shown = run_pyvmm("balloon", "--qmp", f"unix:{tmp_path}/destination.sock")
        assert "running" in shown.stdout
        assert destination.command("quit").startswith("ok")
        assert destination.status() == 0
    assert not list(tmp_path.glob("*.sock"))


def start_migration(client: QmpClient, address: str) -> None:
    """Start to migrate, and return when the destination has some of the guest's memory.

    What is sent passes the buffers of both labs, which hold less than 8 MiB.
    """
    client.execute("migrate", uri=address)
    state = client.execute("query-migrate")
    while state["status"] == "setup" or state["ram"]["transferred"] < 8 * MIB:
        assert state["status"] in ("setup", "active"), state
        state = client.execute("query-migrate")


@pytest.mark.timeout(600)
def test_a_side_killed_with_its_lab_fails_the_migration(image: Path, tmp_path: Path) -> None:
    """Kill the destination: the guest keeps running. Kill the source: the guest runs nowhere."""
    addresses = [f"unix:{tmp_path}/{name}" for name in ("one", "two")]
    qmp = tmp_path / "source.sock"
    with (
        RunProcess(image, *RUN, *APPEND, "--qmp", f"unix:{qmp}") as source,
        RunProcess(*RUN, "--incoming", addresses[0]) as one,
        RunProcess(*RUN, "--incoming", addresses[1]) as two,
    ):
        verified = fill(source, 32)
        for destination in (one, two):
            destination.expect("waiting for a guest at ")
        with QmpClient(qmp) as client:
            client.execute("migrate-set-parameters", **{"max-bandwidth": 4 * MIB})
            start_migration(client, addresses[0])
            one.send_signal(signal.SIGKILL)
            while (state := client.execute("query-migrate"))["status"] == "active":
                pass
            assert state["status"] == "failed"
            assert not re.search(r" for [\d.]+ s", state["error-desc"]), "a limit has passed"
            assert client.execute("query-status")["status"] == "running"
            assert source.command("verify 3") == verified
            start_migration(client, addresses[1])
            source.send_signal(signal.SIGKILL)
            assert two.status() == 2
            assert "no guest has arrived: " in two.rest
