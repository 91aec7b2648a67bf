# SPDX-License-Identifier: Apache-2.0
"""Paths of sockets in the lab."""

from pathlib import Path

import pytest

from pyvmm.sockets.lab_paths import (
    IN_LAB_VARIABLE,
    host_cannot_see,
    in_lab,
    incoming_socket,
    incoming_variable,
    inner_sockets,
    lab_directory,
    listening_path,
    proxy_socket,
    sockets_variable,
)


@pytest.fixture(autouse=True)
def _on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(IN_LAB_VARIABLE, raising=False)


def test_on_the_host_no_path_is_mapped() -> None:
    assert not in_lab()
    assert listening_path(Path("relative.sock")) == Path("relative.sock")
    assert incoming_socket("tcp:127.0.0.1:0") is None
    assert proxy_socket() is None


def test_in_the_lab_only_forwarded_paths_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = inner_sockets([tmp_path / "a.sock", tmp_path / "b.sock"])
    monkeypatch.setenv(IN_LAB_VARIABLE, "1")
    for name, value in sockets_variable(inner).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    mapped = [listening_path(Path("a.sock")), listening_path(tmp_path / "b.sock")]
    assert [str(path) for path in mapped] == list(inner.values())
    assert len(set(mapped)) == 2
    assert listening_path(tmp_path / "c.sock") == tmp_path / "c.sock"


def test_in_the_lab_only_the_forwarded_migration_address_is_mapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(IN_LAB_VARIABLE, "1")
    assert incoming_socket("tcp:127.0.0.1:0") is None
    for name, value in incoming_variable("tcp:127.0.0.1:0", "tcp:127.0.0.1:4444").items():
        monkeypatch.setenv(name, value)
    incoming = incoming_socket("tcp:127.0.0.1:0")
    assert incoming is not None
    assert incoming.address == "tcp:127.0.0.1:4444"
    assert incoming.path != proxy_socket()
    assert incoming_socket("tcp:127.0.0.1:1") is None


@pytest.mark.parametrize("own", ["/dev", "/proc", "/sys"])
def test_the_lab_shares_all_but_the_file_systems_of_the_kernel(tmp_path: Path, own: str) -> None:
    assert lab_directory(tmp_path / "x") is None
    assert lab_directory(Path(own) / "x") == Path(own)
    (tmp_path / "link").symlink_to(Path(own) / "x")
    assert lab_directory(tmp_path / "link") == Path(own)


def test_only_a_client_on_the_host_cannot_see_files_of_the_lab(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = Path("/dev/shm/x")
    assert not host_cannot_see(path)
    monkeypatch.setenv(IN_LAB_VARIABLE, "1")
    for sockets, hidden in (([], False), ([Path("/vm.sock")], True)):
        for name, value in sockets_variable(inner_sockets(sockets)).items():
            monkeypatch.setenv(name, value)
        assert host_cannot_see(path) == hidden
