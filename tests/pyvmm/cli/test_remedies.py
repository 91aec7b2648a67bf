# SPDX-License-Identifier: Apache-2.0
"""Every error that reaches the command line has a remedy or needs none."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import bench
import guest_images
import pyvmm
from guest_images.errors import KernelSourceMissing
from pyvmm.balloon.misc_requests import UNAVAILABLE
from pyvmm.boot.errors import NotEnoughRam
from pyvmm.cli import remedies
from pyvmm.cli.errors import CommandError, RequestFailed
from pyvmm.cli.remedies import remedy, reported_remedy, with_remedy
from pyvmm.config import InvalidConfiguration
from pyvmm.errors import NotInstalled, UserError
from pyvmm.lab.errors import HostKvmUnusable, LabKernelUnreadable
from pyvmm.machine.kvm_probe import Verdict
from pyvmm.memory.errors import HugePagesUnavailable
from pyvmm.migration.errors import IncomingMigrationFailed, MigrationError
from pyvmm.runtime_directory.errors import NoSuchGuest
from pyvmm.snapshot.errors import SnapshotDamaged
from pyvmm.sockets.errors import ControlSocketUnreachable

WITH_FIGURES = [
    (CommandError("both are given", "leave one out"), "leave one out"),
    (RequestFailed("No balloon device", "pyvmm balloon"), "see 'pyvmm balloon --help'"),
    (
        RequestFailed("The guest has migrated and runs on the destination", "pyvmm cont"),
        "give the control socket of the destination",
    ),
    (InvalidConfiguration("ram_bytes", "too small"), "change --memory"),
    (InvalidConfiguration("vcpus", "too many"), "change --cpus"),
    (InvalidConfiguration("dialect", "unknown"), "change --dialect"),
    (InvalidConfiguration("features", "unknown"), "change --offer, --withhold or --dialect"),
    (NotEnoughRam("too large", (65 << 20) + 1), "give the guest more with --memory, at least 66M"),
    (InvalidConfiguration("hugepages", "no whole huge pages"), "change --hugepages"),
    (
        HugePagesUnavailable("needs 512, has 9", 600),
        "reserve them with: sysctl vm.nr_hugepages=600, or leave out --hugepages",
    ),
    (HugePagesUnavailable("this kernel has none"), "leave out --hugepages"),
    (LabKernelUnreadable(Path("/boot/vmlinuz-6.8")), "chmod a+r /boot/vmlinuz-6.8"),
    (NotInstalled("no gcc", "gcc", "make"), "apt-get install gcc make"),
    (
        KernelSourceMissing("no source", "linux-source-6.12"),
        "apt-get install linux-source-6.12, or name a source tree with --source",
    ),
    (NoSuchGuest("no running guest is called web", ["a", "db"]), "give one of a, db"),
    (NoSuchGuest("no guest runs", []), "start it with: pyvmm run IMAGE --name NAME"),
    (
        ControlSocketUnreachable("no listener", Path("/tmp/vm.sock")),
        "start a guest with --qmp unix:/tmp/vm.sock, or give the path of a running one",
    ),
]
"""Errors whose remedy depends on their attributes."""


def all_errors() -> list[type[UserError]]:
    """Return every subclass of `UserError` that any of our modules defines."""
    for package in (bench, guest_images, pyvmm):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found = [UserError]
    for error in found:
        found += error.__subclasses__()
    return [error for error in found[1:] if not error.__module__.startswith("tests.")]


def test_every_error_class_has_a_remedy() -> None:
    known = {HostKvmUnusable, *remedies.REMEDIES, *(type(error) for error, _ in WITH_FIGURES)}
    assert {error.__qualname__ for error in all_errors() if error not in known} == set()


@pytest.mark.parametrize(("error", "expected"), WITH_FIGURES, ids=lambda value: str(value)[:20])
def test_a_remedy_has_the_figures_of_its_error(error: UserError, expected: str) -> None:
    assert remedy(error) == expected
    assert with_remedy(error) == f"{error}; {expected}"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "no destination can be reached at tcp:b:4444: connection refused",
            "pyvmm run --incoming tcp:b:4444",
        ),
        (UNAVAILABLE, "pyvmm image build"),
        ("The command query-snapshot has not been found", "QEMU"),
        ("cannot write the snapshot /x: no space left", "free some space"),
        ("tcp:b:4444 is not trusted: certificate has expired", "certificates of both sides"),
        ("No balloon device has been activated", "virtio-balloon-pci"),
        ("This pyvmm was built without the checksum xxh3", "libxxhash-dev"),
        ("Pages without a checksum are sent over unix sockets only", "--checksum crc32c"),
        ("the destination has aborted: this pyvmm has no checksum 'xxh3'", "--checksum crc32c"),
        (
            "the destination has aborted: the source sends version 4 of the migration stream; this"
            " pyvmm reads versions 2 to 3",
            "--streams 1",
        ),
        ("anything else", ""),
    ],
)
def test_a_message_of_the_control_socket_gets_its_remedy_here(message: str, words: str) -> None:
    found = reported_remedy(message)
    assert words in found
    assert bool(found) == bool(words)


def test_remedies_are_single_lines_without_a_full_stop() -> None:
    for text in (*remedies.REMEDIES.values(), *remedies.REPORTED.values()):
        assert text.strip() == text
        assert "\n" not in text
        assert not text.endswith(".")


def test_an_error_without_a_class_of_its_own_is_its_message_alone() -> None:
    assert with_remedy(UserError("'x' is not a size")) == "'x' is not a size"


@pytest.mark.parametrize("verdict", [one for one in Verdict if one is not Verdict.FIT])
def test_an_unusable_kvm_has_a_remedy_for_each_verdict(verdict: Verdict) -> None:
    text = remedy(HostKvmUnusable("this machine's KVM cannot be used", verdict.value))
    assert text.endswith("use --kvm lab")
    assert (text == "use --kvm lab") == (verdict is Verdict.UNFIT)


def test_the_remedy_of_the_cause_comes_first() -> None:
    failed = IncomingMigrationFailed("no guest has arrived: the snapshot is damaged")
    failed.__cause__ = MigrationError("the snapshot is damaged")
    failed.__cause__.__cause__ = SnapshotDamaged("the snapshot is damaged")
    assert remedy(failed) == f"take another one; {remedies.REMEDIES[IncomingMigrationFailed]}"


@pytest.mark.parametrize("package", [guest_images, pyvmm], ids=lambda package: package.__name__)
def test_only_the_command_line_names_its_options(package: ModuleType) -> None:
    """Messages of the core also go to the control socket and to the peer of a migration."""
    root = Path(str(package.__file__)).parent
    for file in root.rglob("*.py"):
        if root / "cli" not in file.parents:
            for text in raised_texts(ast.parse(file.read_text())):
                assert not re.search(r"(^|\s)--[a-z]|pyvmm (run|image|doctor)", text), file


def raised_texts(tree: ast.AST) -> Iterator[str]:
    """Return the string constants in the `raise` statements of a module."""
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Raise):
            for node in ast.walk(statement):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
