# SPDX-License-Identifier: Apache-2.0
"""The choice between this host's KVM and the lab."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.cli.remedies import remedy
from pyvmm.lab.choose import KvmProvider, choose_kvm
from pyvmm.lab.errors import HostKvmUnusable
from pyvmm.machine import kvm_probe, kvm_verdict
from pyvmm.machine.kvm_probe import KvmFitness, Verdict
from pyvmm.sockets.lab_paths import IN_LAB_VARIABLE

MISSING = KvmFitness(Verdict.MISSING, "there is no /dev/kvm")
UNREADABLE = KvmFitness(Verdict.UNREADABLE, "this user has no permission to open /dev/kvm")
UNFIT = KvmFitness(Verdict.UNFIT, "ring 0 crawls", 1.6e6, True)
FIT = KvmFitness(Verdict.FIT, "good", 1e9, True)


@pytest.fixture(autouse=True)
def _on_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(IN_LAB_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("mode", "fitness", "choice"),
    [
        ("auto", FIT, KvmProvider.HOST),
        ("host", FIT, KvmProvider.HOST),
        ("lab", FIT, KvmProvider.LAB),
        ("lab", MISSING, KvmProvider.LAB),
        ("auto", MISSING, KvmProvider.LAB),
        ("auto", UNREADABLE, KvmProvider.LAB),
        ("auto", UNFIT, KvmProvider.LAB),
    ],
)
def test_the_mode_and_the_probe_decide(mode, fitness, choice, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(kvm_probe, "probe_host_kvm", lambda: fitness)
    assert choose_kvm(mode) is choice
    shown = capsys.readouterr().err
    if mode == "auto" and choice is KvmProvider.LAB:
        assert shown.count("\n") == 1
        assert fitness.reason in shown
    else:
        assert shown == ""


@pytest.mark.parametrize("fitness", [MISSING, UNREADABLE, UNFIT])
def test_a_host_kvm_that_cannot_be_used_is_refused(
    fitness: KvmFitness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm_probe, "probe_host_kvm", lambda: fitness)
    with pytest.raises(HostKvmUnusable, match=fitness.reason) as caught:
        choose_kvm("host")
    assert "--kvm lab" in remedy(caught.value)


@pytest.mark.parametrize("mode", ["auto", "host", "lab"])
def test_labs_do_not_nest(mode, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv(IN_LAB_VARIABLE, "1")
    monkeypatch.setattr(kvm_probe, "probe_host_kvm", lambda: UNFIT)
    assert choose_kvm(mode) is KvmProvider.HOST


def test_a_kvm_that_was_fit_is_not_probed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm_verdict, "KVM_DEVICE", "/dev/null")  # exists everywhere
    monkeypatch.setattr(kvm_probe, "probe_host_kvm", lambda: FIT)
    assert choose_kvm("host") is KvmProvider.HOST
    monkeypatch.setattr(kvm_probe, "probe_host_kvm", lambda: UNFIT)
    assert choose_kvm("host") is KvmProvider.HOST
    assert choose_kvm("lab") is KvmProvider.LAB


def test_only_a_fit_kvm_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm_verdict, "KVM_DEVICE", "/dev/null")
    monkeypatch.setattr(kvm_probe, "probe_host_kvm", lambda: UNFIT)
    assert choose_kvm("auto", quiet=True) is KvmProvider.LAB
    monkeypatch.setattr(kvm_probe, "probe_host_kvm", lambda: FIT)
    assert choose_kvm("auto") is KvmProvider.HOST
