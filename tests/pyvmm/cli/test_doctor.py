# SPDX-License-Identifier: Apache-2.0
"""The findings, the conclusion and the advice of `pyvmm doctor`."""

import pytest
from click.testing import CliRunner

from pyvmm.cli import doctor
from pyvmm.cli.doctor import (
    Finding,
    Needed,
    conclude,
    describe_figures,
    device_remedy,
    install_lines,
)
from pyvmm.cli.main import main
from pyvmm.machine.kvm_probe import KvmFitness, Verdict
from pyvmm_native import checksum

UNFIT = KvmFitness(Verdict.UNFIT, "ring 0 crawls", 1.6e6, False)
FIT = KvmFitness(Verdict.FIT, "good", 2e9, True)
NO_QEMU = Finding("QEMU", "not installed", Needed.LAB, "apt-get install qemu-system-x86")
NO_KERNEL = Finding("lab kernel", "none", Needed.LAB, "apt-get install linux-image-amd64")
NO_SOURCE = Finding(
    "kernel source",
    "none",
    Needed.IMAGE,
    "apt-get install linux-source-6.12, or name a tree with --source",
)


@pytest.mark.parametrize(
    ("findings", "fitness", "usable", "word"),
    [
        ([], FIT, True, "this machine's KVM"),
        ([NO_QEMU], FIT, True, "this machine's KVM"),
        ([], UNFIT, True, "the lab"),
        ([NO_SOURCE], UNFIT, True, "the lab"),
        ([NO_QEMU, NO_KERNEL], UNFIT, False, "QEMU and lab kernel"),
    ],
)
def test_the_conclusion_says_where_guests_run(findings, fitness, usable, word) -> None:  # type: ignore[no-untyped-def]
    verdict = conclude(findings, fitness)
    assert verdict[0] is usable
    assert word in verdict[1]


def test_missing_packages_are_installed_with_one_command() -> None:
    native = Finding("native modules", "not built", Needed.NOTHING, "make native")
    host = Finding("/dev/kvm", "missing", Needed.HOST, "load the module")
    assert install_lines([host, NO_QEMU, NO_KERNEL, NO_QEMU, NO_SOURCE, native]) == [
        "apt-get install qemu-system-x86 linux-image-amd64 linux-source-6.12",
        "make native",
    ]
    assert install_lines([]) == []


def test_the_figures_of_the_probe_are_described() -> None:
    assert describe_figures(UNFIT) == "ring 0: 1.6 million instructions/s, SYSCALL: wrong"
    assert describe_figures(KvmFitness(Verdict.MISSING, "")) == ""


@pytest.mark.parametrize(
    ("mode", "group", "remedy"),
    [
        (0o660, "kvm", "usermod -aG kvm ada, then log in again"),
        (0o660, "virt", "usermod -aG virt ada, then log in again"),
        (
            0o660,
            "994",
            "groupadd -g 994 hostkvm && usermod -aG hostkvm ada, then log in again",
        ),
        (
            0o600,
            "kvm",
            "chgrp kvm /dev/kvm && chmod 660 /dev/kvm && usermod -aG kvm ada, then log in again",
        ),
        (
            0o660,
            "root",
            "chgrp kvm /dev/kvm && chmod 660 /dev/kvm && usermod -aG kvm ada, then log in again",
        ),
    ],
)
def test_a_user_is_advised_to_join_an_existing_group_but_not_root(
    mode: int, group: str, remedy: str
) -> None:
    assert device_remedy(mode, group, "ada") == remedy


def test_every_check_returns_a_finding() -> None:
    for check in doctor.CHECKS:
        finding = check()
        assert finding.subject
        assert finding.found


def test_a_build_without_the_xxhash_header_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_checksums().ok
    monkeypatch.setattr(checksum, "CHECKSUMS", ("crc32c", "none"))
    finding = doctor.check_checksums()
    assert finding.found == "crc32c, none; no xxh3, the fastest in a lab"
    assert install_lines([finding]) == ["apt-get install libxxhash-dev"]


def test_the_command_fails_only_when_no_guest_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "probe_host_kvm", lambda: UNFIT)
    monkeypatch.setattr(doctor, "CHECKS", (lambda: NO_QEMU,))
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == doctor.EXIT_NOTHING_USABLE
    assert "apt-get install qemu-system-x86" in result.output
    closed = Finding("/dev/kvm", "not accessible", Needed.HOST, "usermod -aG kvm me")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: closed,))
    result = CliRunner().invoke(main, ["doctor"])
    assert "not accessible; usermod -aG kvm me" in result.output
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_memory,))
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0
    assert "uses the lab" in result.output
