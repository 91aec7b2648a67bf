# SPDX-License-Identifier: Apache-2.0
"""`pyvmm run` announces its guest, or says why it does not; its server starts with a client."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest

from pyvmm.cli.announced_run import announced
from pyvmm.cli.main import main
from pyvmm.cli.vm_run import AnnouncedServer
from pyvmm.errors import UserError
from pyvmm.qmp.client import QmpClient
from pyvmm.runtime_directory.announcement import announce
from pyvmm.runtime_directory.errors import RuntimeDirectoryUnusable
from pyvmm.runtime_directory.guests import AnnouncedGuest, find_guest, running_guests
from pyvmm.sockets.addresses import TcpAddress
from pyvmm.sockets.lab_paths import IN_LAB_VARIABLE, guest_socket, guest_variable
from pyvmm.units import GIB
from pyvmm.vm import VirtualMachine
from tests.pyvmm.boot.elf_kernel import elf_kernel
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the runtime directory of a test; its path is short."""
    with TemporaryDirectory(prefix="pyvmm-", dir="/tmp") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        yield Path(base) / "pyvmm"


def test_a_booted_guest_is_named_by_its_image(tmp_path: Path) -> None:
    with announced(None, tmp_path / "guest.img", GIB):
        guest = find_guest("guest-1")
    assert (guest.image, guest.ram_bytes, guest.incoming) == (f"{tmp_path}/guest.img", GIB, None)
    assert running_guests() == []


def test_a_guest_of_a_migration_is_announced_before_it_arrives() -> None:
    with announced(None, None, GIB, TcpAddress("127.0.0.1", 4444)):
        guest = find_guest("incoming-1")
    assert (guest.image, guest.incoming) == ("", "tcp:127.0.0.1:4444")


def test_a_guest_without_a_name_runs_where_none_can_be_announced(
    runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.mkdir(mode=0o700)
    runtime.chmod(0o777)
    with caplog.at_level(logging.INFO), announced(None, Path("/guest.img"), GIB) as socket:
        assert socket is None
    assert "the guest is not announced: other users may use" in caplog.text
    with pytest.raises(RuntimeDirectoryUnusable):
        announced("web", Path("/guest.img"), GIB)


def test_in_a_lab_the_guest_listens_where_the_host_forwards_to(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(IN_LAB_VARIABLE, "1")
    monkeypatch.setattr("pyvmm.sockets.lab_paths.GUEST_SOCKET", str(tmp_path / "inner"))
    for name, value in guest_variable(True).items():
        monkeypatch.setenv(name, value)
    assert guest_socket() == tmp_path / "inner"
    with announced("web", Path("/guest.img"), GIB) as listener:
        assert listener is not None
        assert listener.path == tmp_path / "inner"
        assert listener.path.is_socket()
    assert not runtime.exists()
    for name, value in guest_variable(False).items():
        monkeypatch.setenv(name, value)
    assert guest_socket() is None


def test_run_refuses_a_name_in_use_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(elf_kernel())

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("pyvmm.cli.guest_run.run_where_kvm_works", refuse)
    with announce("web"), pytest.raises(SystemExit) as exit_info:
        main(["run", "--kernel", str(kernel), "--name", "web"])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == (
        "pyvmm: a guest called web is running; give another --name, or end that guest with: pyvmm"
        " quit\n"
    )


@pytest.mark.parametrize("error", [None, UserError("the guest cannot run")])
def test_run_announces_its_guest_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: UserError | None
) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(elf_kernel())
    seen: list[AnnouncedGuest] = []

    def choose(*_: object, **__: object) -> None:
        seen.extend(running_guests())
        raise error or KeyboardInterrupt

    monkeypatch.setattr("pyvmm.cli.guest_run.run_where_kvm_works", choose)
    with pytest.raises(SystemExit):
        main(["run", "--kernel", str(kernel), "--name", "web", "--memory", "128M"])
    assert [(guest.name, guest.image) for guest in seen] == [("web", str(kernel))]
    assert running_guests() == []


async def served(vm: InMemoryVm, clients: int) -> None:
    with announce("web") as announcement:
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            server = AnnouncedServer(loop, cast(VirtualMachine, vm), announcement)
            stack.push_async_callback(server.close)
            for _ in range(clients):
                status = await asyncio.to_thread(query_status, announcement.path)
                assert status["status"] == "running"
        assert not announcement.path.exists()


def query_status(path: Path) -> Any:
    with QmpClient(path) as client:
        return client.execute("query-status")


def test_the_server_starts_with_the_first_client() -> None:
    asyncio.run(served(InMemoryVm(), 2))


def test_a_server_without_clients_ends() -> None:
    asyncio.run(served(InMemoryVm(), 0))


def test_a_client_that_comes_at_the_end_does_not_delay_it() -> None:
    async def main() -> None:
        with announce("web") as announcement:
            vm = cast(VirtualMachine, InMemoryVm())
            server = AnnouncedServer(asyncio.get_running_loop(), vm, announcement)
            _, writer = await asyncio.open_unix_connection(announcement.path)
            server._first_client()
            await server.close()
            writer.close()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_start_does_not_import_the_server() -> None:
    program = (
        "import sys\nimport pyvmm.cli.run, pyvmm.cli.terminal_run, pyvmm.cli.announced_run\n"
        "with pyvmm.cli.announced_run.announced('web', None, 1): pass\n"
        "assert not {'pyvmm.qmp.server', 'pyvmm.sockets.unix'} & sys.modules.keys()"
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", program]) == 0
