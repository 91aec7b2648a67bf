# SPDX-License-Identifier: Apache-2.0
"""`--vm NAME` in place of `--qmp`, in every command to a running guest."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from pyvmm.cli.main import COMMANDS, main
from pyvmm.runtime_directory.announcement import announce
from pyvmm.units import MIB
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm, served_in_thread


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(list(arguments))
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def test_every_command_with_a_control_socket_takes_a_name() -> None:
    context = click.Context(main)
    by_option: dict[str, set[str]] = {"--qmp": set(), "--vm": set()}
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            for option in by_option.keys() & set(parameter.opts):
                by_option[option].add(name)
    assert by_option["--vm"] == by_option["--qmp"] - {"run"}  # run creates the socket
    assert {"balloon", "migrate", "quit", "snapshot", "stats", "status"} <= by_option["--vm"]


def test_a_guest_is_controlled_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    web, db = InMemoryVm(256 * MIB), InMemoryVm(256 * MIB)
    with (
        announce("web") as announcement,
        announce("db") as other,
        served_in_thread(web, announcement),
        served_in_thread(db, other),
    ):
        for guest in (announcement, other):
            guest.describe("/guest.img", 256 * MIB, None)
        assert run("balloon", "128M", "--vm", "web", "--force") == 0
        assert (web.balloon_actual_bytes, db.balloon_actual_bytes) == (128 * MIB, 256 * MIB)
        assert run("quit", "--vm", "web") == 0
        assert (web.status, db.status) == ("shutdown", "running")
        assert run("status", "--vm", "web") == 2
        err = capsys.readouterr().err
    assert err == "pyvmm: no running guest is called web; give one of db\n"


def test_a_name_precedes_an_address_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYVMM_QMP", f"unix:{tmp_path}/none")
    with announce("web") as announcement, served_in_thread(InMemoryVm(), announcement):
        announcement.describe("/guest.img", 256 * MIB, None)
        assert run("status", "--vm", "web") == 0
        assert run("status") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vm", "web", "--qmp", "unix:/x"], "--vm and --qmp both name a guest; leave one out"),
        (["--vm", "../web"], "a guest cannot be called '../web', only by"),
        (["--vm", "none"], "no running guest is called none; give one of web"),
        ([], "Missing option '--qmp' or '--vm'; see 'pyvmm stop --help'"),
    ],
)
def test_a_guest_that_is_not_named_rightly_is_an_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with announce("web") as announcement:
        announcement.describe("/guest.img", 256 * MIB, None)
        assert run("stop", *arguments) == 2
    assert message in capsys.readouterr().err


def test_snapshot_info_takes_no_guest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with announce("web") as announcement:
        announcement.describe("/guest.img", 256 * MIB, None)
        assert run("snapshot", str(tmp_path / "x"), "--info", "--vm", "web") == 2
    assert "give either --vm, --qmp or --info" in capsys.readouterr().err
