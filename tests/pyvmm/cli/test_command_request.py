# SPDX-License-Identifier: Apache-2.0
"""The options for a guest's command and files: their values, and every misuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.boot.overlay import PutPath
from pyvmm.cli.command_request import (
    GetPath,
    environment,
    parse_get,
    parse_modules,
    parse_put,
)
from pyvmm.cli.errors import CommandError
from tests.pyvmm.boot.elf_kernel import elf_kernel


@pytest.mark.parametrize(
    ("value", "guest"),
    [
        ("dir/file", "/root/file"),
        ("dir/file::", "/root/file"),
        ("dir/file::other", "/root/other"),
        ("dir/file::/etc/", "/etc/file"),
        ("dir/file::/etc/hosts", "/etc/hosts"),
    ],
)
def test_a_file_is_put_below_root_unless_another_path_is_given(value: str, guest: str) -> None:
    assert parse_put([value]) == (PutPath(Path("dir/file"), guest),)


def test_the_working_directory_is_put_under_its_name() -> None:
    assert parse_put(["."])[0].guest == f"/root/{Path.cwd().name}"


def test_files_are_got_into_a_directory_or_under_a_new_name(tmp_path: Path) -> None:
    values = [f"log::{tmp_path}", f"/var/log::{tmp_path}/new"]
    assert parse_get(values) == (
        GetPath("/root/log", tmp_path / "log"),
        GetPath("/var/log", tmp_path / "new"),
    )


def test_nothing_is_replaced_by_what_is_got(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("nowhere")
    for value in (f"log::{tmp_path}", f"x::{tmp_path}/log"):
        with pytest.raises(CommandError, match="exists"):
            parse_get([value])


@pytest.mark.parametrize("value", ["log", "log::", "::x", "/::x", "x::/nowhere/y"])
def test_paths_to_get_are_complete(value: str) -> None:
    with pytest.raises(CommandError):
        parse_get([value])


def test_variables_are_set_or_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "1")
    monkeypatch.delenv("ABSENT", raising=False)
    assert environment(["A=b=c", "HERE", "E="], {"A": "x", "B": "y"}) == {
        "A": "b=c",
        "B": "y",
        "HERE": "1",
        "E": "",
    }
    for variable in ("ABSENT", "=x"):
        with pytest.raises(CommandError):
            environment([variable], {})


def test_modules_come_from_somewhere() -> None:
    assert [parse_modules(value) for value in ("auto", "no", "/lib")] == [
        "auto",
        "no",
        Path("/lib"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cpus", "9", "--", "true"], "cannot have 9 vCPUs"),
        (["--kernel", "/nowhere/k", "--", "true"], "cannot read /nowhere/k"),
        (["--cpus", "x", "--", "true"], "is not a valid integer"),
        (["--restore", "x", "--", "true"], "a guest that runs already"),
        (["--put", "/nowhere/x", "--", "true"], "cannot read /nowhere/x"),
        (["--env", "=", "--", "true"], "has no name"),
        (["--log", "/nowhere/log", "--", "true"], "cannot write to /nowhere/log"),
    ],
)
def test_failures_before_a_command_have_status_125(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(elf_kernel())
    status_file = tmp_path / "status"
    command = ["run", "--kernel", str(kernel), "--modules", "no", "--kvm", "host"]
    status = ["--status-file", str(status_file)]
    done = run([*command, *status, *arguments])
    assert done.returncode == 125
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    if "integer" not in message:
        written = json.loads(status_file.read_text())
        assert (written["reason"], written["status"]) == ("failed", 125)
        assert message in written["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--"], "there is no command after --"),
        (["--timeout", "3"], "--timeout applies only to a command"),
        (["--status-file", "x"], "--status-file applies only to a command"),
        (["--get", "a::b"], "--get applies only to a command"),
    ],
)
def test_options_of_a_command_need_one(arguments: list[str], message: str) -> None:
    done = run(["run", "guest.img", *arguments])
    assert done.returncode == 2
    assert message in done.stderr


def test_a_status_file_that_is_not_ours_is_kept(tmp_path: Path) -> None:
    kernel, status_file = tmp_path / "vmlinux", tmp_path / "status"
    kernel.write_bytes(elf_kernel())
    status_file.write_text("mine")
    options = ["--kernel", str(kernel), "--modules", "no", "--status-file", str(status_file)]
    done = run(["run", *options, "--", "true"])
    assert done.returncode == 125
    assert "status cannot be written" in done.stderr
    assert "choose another --status-file" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert status_file.read_text() == "mine"


def test_a_word_after_the_dashes_is_never_the_image() -> None:
    done = run(["run", "--", "guest.img"])
    assert done.returncode == 125
    assert "no kernel to boot is given" in done.stderr


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyvmm", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
