# SPDX-License-Identifier: Apache-2.0
"""`pyvmm run --incoming` before a guest arrives: waiting, refusing, and ending by a signal.

It runs as in the lab, where KVM is not probed: it needs no KVM before the guest arrives.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm.errors import UserError
from pyvmm.migration import messages
from pyvmm.migration.stream import DestinationReader
from pyvmm.sockets.addresses import parse_migration_address
from pyvmm.sockets.connect import connect
from pyvmm.sockets.lab_paths import sockets_variable
from pyvmm.sockets.link import SocketLink
from pyvmm.sockets.tls import Security, TlsFiles
from pyvmm.sockets.unix import UnixListener
from tests.pyvmm.migration.migration_guest import config_of
from tests.pyvmm.sockets.certificates import certificate

PROMPT = "pyvmm: waiting for a guest at "


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pyvmm", "run", *map(str, arguments)]


ENVIRONMENT = {**os.environ, "PYVMM_IN_LAB": "1"}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class WaitingProcess:
    """A process that waits for a guest; `address` is the one that it prints."""

    def __init__(self, *arguments: object) -> None:
        self.popen = subprocess.Popen(
            command("--incoming", *arguments),
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.popen.stderr is not None
        line = self.popen.stderr.readline()
        assert line.startswith(PROMPT), line + self.popen.stderr.read()
        self.address = line.removeprefix(PROMPT).strip()

    def connect(self) -> SocketLink:
        return connect(parse_migration_address(self.address), Security())

    def next_line(self) -> str:
        """Return the next line of standard error."""
        assert self.popen.stderr is not None
        return self.popen.stderr.readline()

    def end(self) -> str:
        """End the wait, which still continues, by a signal; return the rest of standard error."""
        self.popen.send_signal(signal.SIGTERM)
        status, stderr = self.wait()
        assert status == 128 + signal.SIGTERM
        return stderr

    def wait(self) -> tuple[int, str]:
        """Return the exit status, and standard error after the first line."""
        out, err = self.popen.communicate(timeout=60)
        assert out == ""
        return self.popen.returncode, err


@contextmanager
def waiting(*arguments: object) -> Iterator[WaitingProcess]:
    process = WaitingProcess(*arguments)
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.communicate()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait(tmp_path: Path, signum: signal.Signals) -> None:
    address = f"unix:{tmp_path}/m"
    with waiting(address, "--qmp", f"unix:{tmp_path}/qmp") as process:
        assert process.address == address
        assert {path.name for path in tmp_path.iterdir()} == {"m", "qmp"}
        process.popen.send_signal(signum)
        assert process.wait() == (128 + signum, "")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_ends_the_wait_for_a_silent_source(tmp_path: Path) -> None:
    with waiting(f"unix:{tmp_path}/m") as process:
        link = process.connect()
        process.popen.send_signal(signal.SIGTERM)
        assert process.wait() == (128 + signal.SIGTERM, "")
        link.close()


def test_the_printed_address_has_the_port(tmp_path: Path) -> None:
    with waiting("tcp:127.0.0.1:0") as process:
        host, port = process.address.rsplit(":", 1)
        assert (host, int(port) > 0) == ("tcp:127.0.0.1", True)
        process.connect().close()
        assert process.next_line() == (
            "pyvmm: a source was refused: the source has closed the connection before the commit;"
            f" still waiting at {process.address}\n"
        )
        assert process.end() == ""


@pytest.mark.parametrize(("options", "limit"), [([], "1 GiB"), (["--memory", "512M"], "512 MiB")])
def test_a_guest_with_too_much_ram_is_refused(
    tmp_path: Path, options: list[str], limit: str
) -> None:
    with waiting(f"unix:{tmp_path}/m", *options) as process:
        link = process.connect()
        link.send(messages.Hello(config_of(2048)).record().encode())
        replies = DestinationReader()
        while (reply := replies.next()) is None:
            replies.feed(link.receive(1000))
        link.close()
        why = f"the guest has 2 GiB of RAM, the destination takes at most {limit}"
        assert reply == messages.Failed(why)
        assert process.next_line().startswith(
            f"pyvmm: a source was refused: {why}; start the destination with --memory 2048M;"
        )
        assert process.end() == ""


def test_a_stream_that_is_not_a_migration_is_refused_in_one_line(tmp_path: Path) -> None:
    with waiting(f"unix:{tmp_path}/m") as process:
        link = process.connect()
        link.send(b"GET / HTTP/1.1\r\n\r\n" * 100)
        link.close()
        assert process.next_line().startswith("pyvmm: a source was refused: the peer does not send")
        assert process.end() == ""


def test_untrusted_sources_are_refused_and_the_wait_continues(tmp_path: Path) -> None:
    ours, theirs = certificate(tmp_path, "ca", "here"), certificate(tmp_path, "other", "there")
    files = ("--tls-ca", ours.ca, "--tls-cert", ours.certificate, "--tls-key", ours.key)
    with waiting("tcp:127.0.0.1:0", *files) as process:
        address = parse_migration_address(process.address)
        with pytest.raises(UserError, match="is not trusted"):
            connect(address, Security(theirs))
        assert "a source was refused: TLS failed: " in process.next_line()
        link = connect(address, Security(TlsFiles(ours.ca, theirs.certificate, theirs.key)))
        assert "a source was refused: TLS failed: " in process.next_line()
        link.close()
        connect(address, Security(certificate(tmp_path, "ca", "there"))).close()
        refused = process.next_line()
        # A handshake ends with the destination's session tickets: the source may be gone by then.
        assert "has closed the connection" in refused or "connection failed: " in refused
        assert process.end() == ""


def test_a_control_socket_in_use_is_reported_before_the_wait(tmp_path: Path) -> None:
    other = UnixListener(tmp_path / "qmp")
    done = run("--incoming", f"unix:{tmp_path}/m", "--qmp", f"unix:{tmp_path}/qmp")
    assert (done.returncode, PROMPT in done.stderr) == (2, False)
    assert "is in use by another process" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"qmp"}
    other.remove()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--incoming", "unix:/m", "guest.img"], "--incoming and IMAGE cannot be combined"),
        (["--incoming", "unix:/m", "--cpus", "1"], "--incoming and --cpus cannot be combined"),
        (
            ["--incoming", "unix:/m", "--restore", "/s"],
            "--incoming and --restore cannot be combined",
        ),
        (["--incoming", "exec:cat"], "is not an address: expected tcp:HOST:PORT"),
        (["--incoming", "unix:/m", "--memory", "much"], "'much' is not a size"),
        (["--incoming", "tcp:192.0.2.1:1"], "is not on this host, and there is no TLS"),
        (["--incoming", "tcp:127.0.0.1:0", "--tls-ca", __file__], "TLS needs a CA, a certificate"),
        (["--incoming", "unix:/nowhere/m"], "cannot create the socket /nowhere/m"),
        (["guest.img", "--insecure"], "--insecure applies only to an incoming guest"),
        (["--restore", "/s", "--tls-key", __file__], "--tls-key applies only to an incoming"),
    ],
)
def test_invalid_arguments_are_refused(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_in_the_lab_a_control_socket_error_names_the_given_path(
    tmp_path: Path,
) -> None:
    given = tmp_path / "given.sock"
    inner = sockets_variable({given: str(tmp_path / "absent" / "inner.sock")})
    done = subprocess.run(
        command("--incoming", f"unix:{tmp_path}/m", "--qmp", f"unix:{given}"),
        env={**ENVIRONMENT, **inner},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert f"cannot create the socket {given}: no such file" in done.stderr
    assert "inner.sock" not in done.stderr
