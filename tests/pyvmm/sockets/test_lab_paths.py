# SPDX-License-Identifier: Apache-2.0
"""Where sockets are inside the lab, and where to run."""

from pathlib import Path

import pytest

from pyvmm.errors import UserError
from pyvmm.lab import choose
from pyvmm.lab.choose import Choice, choose_kvm
from pyvmm.lab.run import program_directories
from pyvmm.machine.kvm_probe import KvmFitness, Verdict
from pyvmm.sockets.lab_paths import (
    IN_LAB_VARIABLE,
    in_lab,
    incoming_socket,
    incoming_variable,
    inner_sockets,
    listening_path,
    proxy_socket,
    sockets_variable,
)

MISSING = KvmFitness(Verdict.MISSING, "there is no /dev/kvm")
UNREADABLE = KvmFitness(Verdict.UNREADABLE, "/dev/kvm may not be opened by this user")
UNFIT = KvmFitness(Verdict.UNFIT, "ring 0 crawls", 1.6e6, True)
FIT = KvmFitness(Verdict.FIT, "good", 1e9, True)


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(IN_LAB_VARIABLE, raising=False)


def test_outside_a_socket_is_where_it_was_asked_for() -> None:
    assert not in_lab()
    assert listening_path(Path("relative.sock")) == Path("relative.sock")
    assert incoming_socket("tcp:127.0.0.1:0") is None
    assert proxy_socket() is None


def test_inside_only_forwarded_sockets_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = inner_sockets([tmp_path / "a.sock", tmp_path / "b.sock"])
    monkeypatch.setenv(IN_LAB_VARIABLE, "1")
    for name, value in sockets_variable(inner).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    moved = [listening_path(Path("a.sock")), listening_path(tmp_path / "b.sock")]
    assert [str(path) for path in moved] == list(inner.values())
    assert len(set(moved)) == 2
    assert listening_path(tmp_path / "c.sock") == tmp_path / "c.sock"


def test_inside_only_the_address_that_is_listened_on_outside_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(IN_LAB_VARIABLE, "1")
    assert incoming_socket("tcp:127.0.0.1:0") is None
    for name, value in incoming_variable("tcp:127.0.0.1:0", "tcp:127.0.0.1:4444").items():
        monkeypatch.setenv(name, value)
    place = incoming_socket("tcp:127.0.0.1:0")
    assert place is not None
    assert place.address == "tcp:127.0.0.1:4444"
    assert place.path != proxy_socket()
    assert incoming_socket("tcp:127.0.0.1:1") is None


@pytest.mark.parametrize(
    ("mode", "fitness", "choice"),
    [
        ("auto", FIT, Choice.HOST),
        ("host", FIT, Choice.HOST),
        ("lab", FIT, Choice.LAB),
        ("lab", MISSING, Choice.LAB),
        ("auto", MISSING, Choice.LAB),
        ("auto", UNREADABLE, Choice.LAB),
        ("auto", UNFIT, Choice.LAB),
    ],
)
def test_the_choice(mode, fitness, choice, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(choose, "probe_host_kvm", lambda: fitness)
    assert choose_kvm(mode) is choice
    told = capsys.readouterr().err
    if mode == "auto" and choice is Choice.LAB:
        assert told.count("\n") == 1
        assert fitness.reason in told
    else:
        assert told == ""


@pytest.mark.parametrize("fitness", [MISSING, UNREADABLE, UNFIT])
def test_a_host_kvm_that_cannot_be_used_is_refused(
    fitness: KvmFitness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "probe_host_kvm", lambda: fitness)
    with pytest.raises(UserError, match="--kvm lab"):
        choose_kvm("host")


@pytest.mark.parametrize("mode", ["auto", "host", "lab"])
def test_nothing_nests(mode, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv(IN_LAB_VARIABLE, "1")
    monkeypatch.setattr(choose, "probe_host_kvm", lambda: UNFIT)
    assert choose_kvm(mode) is Choice.HOST


def test_program_directories_are_apart_and_hold_no_work() -> None:
    directories = [Path(path) for path in program_directories()]
    assert directories
    for path in directories:
        assert path.is_dir()
        assert not any(path.is_relative_to(other) for other in directories if other != path)
    for place in (Path("/tmp"), Path.home(), Path.cwd()):
        assert place not in directories
