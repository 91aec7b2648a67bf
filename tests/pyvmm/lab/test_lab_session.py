# SPDX-License-Identifier: Apache-2.0
"""Commands in the real lab: streams, files, terminals, signals and sockets.

Starting a lab takes seconds, so each test checks several things in one. They need all parts of the
lab (`pyvmm doctor` lists them).
"""

import fcntl
import os
import pty
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.sockets.lab_paths import in_lab

TIMEOUT_S = 120


@pytest.fixture(autouse=True, scope="module")
def _parts() -> None:
    if in_lab():
        pytest.skip("labs do not nest")


def lab(*command: str) -> list[str]:
    return [sys.executable, "-m", "pyvmm", "lab", "--kvm", "lab", "--", *command]


def emulator_of(command: subprocess.Popen[str] | subprocess.Popen[bytes]) -> Path:
    """Return the /proc directory of the emulator that `command` has started."""
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
    (emulator,) = (Path("/proc") / child for child in children)
    assert b"pyvmm-lab" in (emulator / "cmdline").read_bytes()
    return emulator


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        select.select([], [], [], 0.05)


def test_a_command_has_the_streams_files_directory_and_environment_of_the_host(
    tmp_path: Path,
) -> None:
    data = random.Random(2).randbytes((1 << 20) + 1)
    script = """
    set -e
    test -c /dev/kvm
    printf '%s' "$PWD" > where
    printf '%s' "$GREETING" > greeting
    (umask; id -u) > person
    cat inbox > outbox
    echo complaint >&2
    tee copy
    exit 42
    """
    (tmp_path / "inbox").write_bytes(data[:5000])
    result = subprocess.run(
        lab("sh", "-c", script),
        cwd=tmp_path,
        env={**os.environ, "GREETING": "grüß dich\n$HOME"},
        input=data,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.stderr == b"complaint\n"
    assert result.returncode == 42
    assert result.stdout == data
    assert (tmp_path / "copy").read_bytes() == data
    assert (tmp_path / "where").read_text() == str(tmp_path)
    assert (tmp_path / "greeting").read_text() == "grüß dich\n$HOME"
    assert (tmp_path / "outbox").read_bytes() == data[:5000]
    assert (tmp_path / "person").read_text().splitlines()[1] == "0"


def test_a_missing_command_exits_with_127() -> None:
    result = subprocess.run(
        lab("no-such-command"), capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 127
    assert "no-such-command" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unlinked_temporary_file_can_be_used() -> None:
    """As pytest does, to capture output."""
    script = "import tempfile; file = tempfile.TemporaryFile(); file.truncate(9); print('works')"
    result = subprocess.run(
        lab(sys.executable, "-c", script), capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout == "works\n", result.stderr


def test_endless_output_ends_when_its_reader_closes() -> None:
    command = subprocess.Popen(lab("yes", "flood"), stdout=subprocess.PIPE)
    assert command.stdout is not None
    assert command.stdout.read(60_000) == b"flood\n" * 10_000
    status = Path(f"/proc/{command.pid}/status").read_text()
    rss_kib = int(next(x for x in status.splitlines() if x.startswith("VmRSS")).split()[1])
    assert rss_kib < 200 << 10
    emulator = emulator_of(command)
    command.stdout.close()
    assert command.wait(TIMEOUT_S) == 128 + signal.SIGPIPE
    assert not emulator.exists()


def test_output_that_is_not_read_is_dropped_after_its_time_limit() -> None:
    program = """
import sys
from pyvmm.lab.run import run_in_lab
sys.exit(run_in_lab(["head", "-c", "200000", "/dev/zero"], output_timeout_s=1))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.wait(TIMEOUT_S) == 1
        assert running.stderr is not None
        assert running.stderr.read() == "pyvmm: the end of the output was not read\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_command_and_emulator(number: signal.Signals) -> None:
    command = subprocess.Popen(
        lab("sh", "-c", "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.2; done"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    assert command.stdout.readline() == "up\n"
    emulator = emulator_of(command)
    command.send_signal(number)
    if number == signal.SIGTERM:
        assert command.wait(TIMEOUT_S) == 9
        assert command.stdout.read() == "caught\n"
    else:
        command.wait(TIMEOUT_S)
    command.stdout.close()
    wait_until(lambda: not emulator.exists())


def test_a_terminal_passes_its_size_and_interrupts_and_its_modes_are_restored(
    request: pytest.FixtureRequest,
) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    command = subprocess.Popen(
        lab("sh"), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    request.addfinalizer(command.kill)  # an interactive shell outlives SIGTERM
    shown = bytearray()

    def expect(text: bytes) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while text not in shown:
            ready, _, _ = select.select([master], [], [], max(0, deadline - time.monotonic()))
            assert ready, bytes(shown)
            shown.extend(os.read(master, 4096))
        del shown[: shown.index(text) + len(text)]

    expect(b"# ")
    assert not termios.tcgetattr(slave)[3] & termios.ICANON
    os.write(master, b"stty size\n")
    expect(b"33 101\r\n")
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 111, 0, 0))
    os.write(master, b"until [ \"$(stty size)\" = '44 111' ]; do :; done; echo re''sized\n")
    expect(b"resized\r\n")
    # exec: a shell that is starting another program may lose the signal.
    os.write(master, b"sh -c 'echo be\"\"gun; exec sleep 1000'\n")
    expect(b"begun\r\n")
    os.write(master, b"\x03")
    os.write(master, b"echo aft''er\n")
    expect(b"after\r\n")
    os.write(master, b"exit 5\n")
    assert command.wait(TIMEOUT_S) == 5
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


SERVER = """
import socket, sys, threading
from pathlib import Path
from pyvmm.sockets.lab_paths import listening_path
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(listening_path(Path(sys.argv[1]))))
listener.listen()
def serve(connection):
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data.upper())
        connection.sendall(b"bye")
threads = []
for _ in range(2):
    threads.append(threading.Thread(target=serve, args=(listener.accept()[0],)))
    threads[-1].start()
for thread in threads:
    thread.join()
sys.exit(7)
"""
RUNNER = """
import sys
from pathlib import Path
from pyvmm.lab.run import run_in_lab
path, server = sys.argv[1:]
sys.exit(run_in_lab([sys.executable, "-c", server, path], sockets=[Path(path)]))
"""


def test_two_clients_use_a_forwarded_socket_at_once(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    command = subprocess.Popen([sys.executable, "-c", RUNNER, str(path), SERVER])
    wait_until(path.exists)
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        for client in (one, two):
            client.settimeout(TIMEOUT_S)
            wait_until(lambda client=client: client.connect_ex(str(path)) == 0)  # type: ignore[misc]
        one.sendall(b"a" * 300_000)
        two.sendall(b"small")
        assert two.recv(100) == b"SMALL"
        got = bytearray()
        while len(got) < 300_000:
            got += one.recv(65536)
        assert got == b"A" * 300_000
        for client in (one, two):
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b"bye"
            assert client.recv(100) == b""
    assert command.wait(TIMEOUT_S) == 7
    assert not path.exists()


def test_a_socket_path_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        runner = f"import pyvmm.cli.main\n{RUNNER}"
        result = subprocess.run(
            [sys.executable, "-c", runner, str(path), SERVER],
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    assert "AddressUnavailable" in result.stderr
    assert "in use" in result.stderr
    assert path.exists()


OWN_COMMAND = """
import sys
from pyvmm.lab.run import run_in_lab
sys.exit(run_in_lab([sys.executable, "-m", "pyvmm", *sys.argv[1:]]))
"""


def run_own_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", OWN_COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_preloaded_pyvmm_runs_as_a_new_interpreter_would() -> None:
    script = (
        "import os, sys, json, xml; print(os.getcwd(), sys.executable, sys.prefix, os.getpid() > 1)"
    )
    result = run_own_command("lab", "--", sys.executable, "-c", script)
    assert result.stderr == ""
    assert result.stdout == f"{Path.cwd()} {sys.executable} {sys.prefix} True\n"
    assert result.returncode == 0
    result = run_own_command("balloon", "1X", "--qmp", "unix:/nowhere")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("pyvmm: ")


def test_a_command_beyond_its_time_limit_is_ended_with_a_diagnosis() -> None:
    command = [*lab("sleep", "1000")]
    command[-3:-3] = ["--timeout", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 124
    assert "did not end in 1 s" in result.stderr
    assert "CPU#0" in result.stderr, "the processors' state, from QEMU"
    assert "sysrq: Show Blocked State" in result.stderr, "blocked tasks, from the kernel"


def test_a_lab_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU's processors are stopped without the session's knowledge, as if the emulation hung."""
    from pyvmm.lab import session
    from pyvmm.lab.errors import LabError
    from pyvmm.lab.run import run_in_lab

    monkeypatch.setattr(session, "PING_INTERVAL_S", 0.2)
    monkeypatch.setattr(session, "MAX_UNANSWERED_PINGS", 5)
    start = session.LabSession._start

    def start_and_hang(self: session.LabSession, *args: object) -> None:
        start(self, *args)  # type: ignore[arg-type]
        self._lab.monitor.execute("stop")

    monkeypatch.setattr(session.LabSession, "_start", start_and_hang)
    with pytest.raises(LabError, match=r"stopped responding \(CPU#0; RIP="):
        run_in_lab(["sleep", "1000"], memory_mib=4096)


def test_the_agent_keeps_virtual_machines_that_pin_static_keys() -> None:
    script = "readlink /proc/1/fd/* | grep -c anon_inode:kvm-v"
    result = subprocess.run(
        lab("sh", "-c", script), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert result.stdout == "4\n", "two virtual machines with a vCPU each"


def test_a_lab_that_is_busy_for_longer_than_the_pings_is_not_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyvmm.lab import session
    from pyvmm.lab.run import run_in_lab

    monkeypatch.setattr(session, "PING_INTERVAL_S", 0.1)
    monkeypatch.setattr(session, "MAX_UNANSWERED_PINGS", 60)  # on a busy host, too
    assert run_in_lab(["sh", "-c", "sleep 8; exit 7"]) == 7
