# SPDX-License-Identifier: Apache-2.0
"""Connections that require TLS, and files that cannot be used for it."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.errors import UserError
from pyvmm.sockets.addresses import TcpAddress, UnixAddress
from pyvmm.sockets.connect import connect
from pyvmm.sockets.lab_paths import IN_LAB_VARIABLE, sockets_variable
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security, TlsFiles
from tests.pyvmm.sockets.certificates import certificate

LOCAL = TcpAddress("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("address", "security"),
    [
        (TcpAddress("192.0.2.1", 1), Security()),
        (TcpAddress("0.0.0.0", 1), Security()),
        (TcpAddress("no.such.host.invalid", 1), Security()),
        (UnixAddress(Path("/m")), Security(TlsFiles(Path("a"), Path("b"), Path("c")))),
    ],
)
def test_an_unprotected_network_and_tls_on_a_unix_socket_are_refused(
    address: TcpAddress | UnixAddress, security: Security
) -> None:
    with pytest.raises(UserError):
        security.check(address)


@pytest.mark.parametrize("special", [0, 1, 2], ids=["the CA", "the certificate", "the key"])
def test_a_tls_file_must_be_a_regular_file(tmp_path: Path, special: int) -> None:
    """OpenSSL would wait for a pipe without end; /dev/null only shows that it never opens it."""
    files = certificate(tmp_path, "ca", "host")
    paths = [files.ca, files.certificate, files.key]
    paths[special] = Path("/dev/null")
    with pytest.raises(UserError, match="it is a character device, not a regular file"):
        TlsFiles(*paths).context(server=True)


LOAD = """
import sys
from pathlib import Path
from pyvmm.errors import UserError
from pyvmm.sockets.tls import TlsFiles
try:
    TlsFiles(*map(Path, sys.argv[1:])).context(server=True)
except UserError as error:
    print(f"refused: {error}")
"""


@pytest.mark.parametrize("position", [0, 1, 2], ids=["the CA", "the certificate", "the key"])
@pytest.mark.parametrize("form", ["PKCS#8", "traditional"])
def test_openssl_asks_for_no_passphrase_on_the_terminal(
    tmp_path: Path, position: int, form: str
) -> None:
    """The terminal is the guest's console, where a prompt would take what is typed."""
    files = certificate(tmp_path, "ca", "host")
    encrypted = tmp_path / "encrypted.key"
    options = ["-traditional"] if form == "traditional" else []
    command = ["openssl", "pkey", "-in", str(files.key), "-out", str(encrypted), "-aes256"]
    command += options
    subprocess.run([*command, "-passout", "pass:secret"], check=True, capture_output=True)
    paths = [files.ca, files.certificate, files.key]
    paths[position] = encrypted
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", LOAD, *map(str, paths)])
    output = b""
    with contextlib.suppress(OSError):  # EIO: the process has ended
        while b"\n" not in output and b"assphrase" not in output and b"pass phrase" not in output:
            output += os.read(terminal, 1000)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(terminal)
    assert output.startswith(b"refused: the TLS ")
    assert (b"is encrypted with a passphrase" in output) == (position == 2)


def resolves_localhost() -> bool:
    try:
        socket.getaddrinfo("localhost", 1)
    except socket.gaierror:
        return False
    return True


needs_localhost = pytest.mark.skipif(
    not resolves_localhost(), reason="localhost is not in this machine's /etc/hosts"
)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1.2.3", "::1", pytest.param("localhost", marks=needs_localhost)],
)
def test_loopback_needs_no_tls(host: str) -> None:
    Security().check(TcpAddress(host, 1))
    Security(insecure=True).check(TcpAddress("192.0.2.1", 1))


def test_in_the_lab_a_name_that_does_not_resolve_is_not_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(IN_LAB_VARIABLE, "1")
    address = TcpAddress("no.such.host.invalid", 1)
    with pytest.raises(UserError, match="not on this host, and there is no TLS"):
        Security().check(address)
    Security(insecure=True).check(address)


@pytest.mark.parametrize("position", [0, 1, 2], ids=["the CA", "the certificate", "the key"])
def test_in_the_lab_a_file_that_it_does_not_share_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    files = certificate(tmp_path, "ca", "host")
    paths = [files.ca, files.certificate, files.key]
    paths[position] = Path("/dev/shm/file.pem")
    monkeypatch.setenv(IN_LAB_VARIABLE, "1")
    for name, value in sockets_variable({Path("/vm.sock"): "/inner"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="does not share /dev with the host, so not /dev/shm/file"):
        TlsFiles(*paths).context(server=False)


@needs_localhost
def test_in_the_lab_localhost_is_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IN_LAB_VARIABLE, "1")
    Security().check(TcpAddress("localhost", 1))


@pytest.mark.parametrize("security", [Security(), Security(insecure=True)])
def test_an_impossible_host_name_is_refused(security: Security) -> None:
    with pytest.raises(UserError, match="host"):
        connect(TcpAddress("a..b", 1), security)


def test_files_that_are_not_certificates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        MigrationListener(LOCAL, Security(TlsFiles(tmp_path, tmp_path, tmp_path)))
