# SPDX-License-Identifier: Apache-2.0
"""Machine configurations: their limits, and their balloon dialect and features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from devices.balloon import features
from pyvmm.boot.errors import KernelUnusable
from pyvmm.boot.image_config import config_for_image
from pyvmm.boot.panic import PANIC_PARAMETERS
from pyvmm.config import InvalidConfiguration, MachineConfig
from pyvmm.machine.exit_result import ExitReason, ExitResult
from pyvmm.state.config_record import encode_config
from pyvmm.units import MIB
from tests.pyvmm.boot.elf_kernel import elf_kernel

GOOD: dict[str, Any] = {
    "kernel": Path("vmlinux"),
    "initrd": None,
    "command_line": "",
    "ram_bytes": 64 * MIB,
    "vcpus": 1,
    "dialect": "bitmap",
}


@pytest.mark.parametrize(
    "good", [{}, {"ram_bytes": 16384 * MIB}, {"vcpus": 8}, {"dialect": "standard"}]
)
def test_the_limits_are_accepted(good: dict[str, Any]) -> None:
    MachineConfig(**{**GOOD, **good})


@pytest.mark.parametrize(
    "bad",
    [
        {"ram_bytes": 63 * MIB},
        {"ram_bytes": 64 * MIB + 4096},
        {"ram_bytes": 16385 * MIB},
        {"ram_bytes": -MIB},
        {"vcpus": 0},
        {"vcpus": 9},
        {"dialect": "guess"},
        {"hugepages": "1G"},
        {"console": "vga"},
        {"ports": tuple(f"port{number}" for number in range(32))},
        {"ports": ("a b",)},
        {"ports": ("console",)},
    ],
)
def test_values_beyond_the_limits_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfiguration, match="only") as caught:
        MachineConfig(**{**GOOD, **bad})
    assert [caught.value.parameter] == list(bad)


def test_ram_of_hugetlbfs_is_whole_huge_pages() -> None:
    odd = {**GOOD, "ram_bytes": 65 * MIB}
    assert MachineConfig(**odd).hugepages == "transparent"
    MachineConfig(**{**GOOD, "ram_bytes": 66 * MIB, "hugepages": "hugetlbfs"})
    with pytest.raises(InvalidConfiguration, match="65 MiB of RAM, only a multiple of 2 MiB"):
        MachineConfig(**odd, hugepages="hugetlbfs")


def test_huge_pages_are_not_saved() -> None:
    config = MachineConfig(**GOOD, hugepages="hugetlbfs")
    assert encode_config(config) == encode_config(MachineConfig(**GOOD))


@pytest.mark.parametrize(
    ("ram_bytes", "size"), [(63 * MIB, "63 MiB"), (64 * MIB + 1, "67108865 bytes"), (1, "1 bytes")]
)
def test_a_refused_size_of_ram_is_shown_exactly(ram_bytes: int, size: str) -> None:
    with pytest.raises(InvalidConfiguration, match=f"^a guest cannot have {size} of RAM, only"):
        MachineConfig(**{**GOOD, "ram_bytes": ram_bytes})


def test_a_kernel_without_a_manifest_gets_the_standard_dialect(tmp_path: Path) -> None:
    image = tmp_path / "vmlinux"
    image.write_bytes(elf_kernel())
    assert config_for_image(image).dialect == "standard"
    chosen = config_for_image(image, dialect="bitmap", append="quiet")
    assert chosen.dialect == "bitmap"
    assert chosen.command_line == f"console=ttyS0 {PANIC_PARAMETERS} quiet"


def test_two_ports_of_one_name_or_too_many_to_plug_in_are_refused() -> None:
    with pytest.raises(InvalidConfiguration, match="two ports are named 'a'"):
        MachineConfig(**{**GOOD, "ports": ("a", "b", "a")})
    for count in (-1, 32):
        with pytest.raises(InvalidConfiguration, match="only 31 in all"):
            MachineConfig(**{**GOOD, "hotplug_ports": count})
    assert MachineConfig(**{**GOOD, "hotplug_ports": 31}).has_console_device


def test_the_virtio_console_is_the_kernel_s_console(tmp_path: Path) -> None:
    image = tmp_path / "vmlinux"
    image.write_bytes(elf_kernel())
    config = config_for_image(image, console="virtio", append="quiet")
    parameters = f"console=ttyS0 console=hvc0 {PANIC_PARAMETERS} quiet"
    assert config.command_line == parameters
    assert config.has_console_device
    assert not config_for_image(image).has_console_device


def test_the_command_of_init_comes_last_on_the_command_line(tmp_path: Path) -> None:
    image = tmp_path / "vmlinux"
    image.write_bytes(elf_kernel())
    config = config_for_image(image, append="quiet", run="uname -r; pattern")
    assert config.command_line.endswith(' quiet pyvmm.run="uname -r; pattern"')
    with pytest.raises(ValueError, match="double quote: echo"):
        config_for_image(image, run='echo "x"')


def test_a_missing_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KernelUnusable, match="No such file or directory"):
        config_for_image(tmp_path / "none")


@pytest.mark.parametrize("ending", ExitReason)
def test_only_a_panic_and_a_crash_fail(ending: ExitReason) -> None:
    assert ExitResult(ending).exit_status == (ending in (ExitReason.PANIC, ExitReason.CRASH))


@pytest.mark.parametrize(
    ("dialect", "offer", "withhold", "bits"),
    [
        ("standard", (), (), features.STANDARD.default),
        ("bitmap", (), (), features.BITMAP.default),
        ("standard", ("deflate-on-oom",), ("stats-vq",), 0b10101),
        ("bitmap", ("deflate-on-oom", "stats-vq"), ("must-tell-host",), None),
    ],
)
def test_features_are_offered_and_withheld_by_name(
    dialect: str, offer: tuple[str, ...], withhold: tuple[str, ...], bits: int | None
) -> None:
    config = MachineConfig(**{**GOOD, "dialect": dialect, "offer": offer, "withhold": withhold})
    if bits is None:
        bits = features.BITMAP.default & ~features.MUST_TELL_HOST | features.DEFLATE_ON_OOM
    assert config.balloon_features == bits


@pytest.mark.parametrize(
    ("dialect", "offer", "withhold", "words"),
    [
        ("standard", ["page-bitmap"], [], "only must-tell-host, stats-vq, deflate-on-oom"),
        ("bitmap", [], ["reporting"], "only .*page-bitmap"),
        ("standard", ["guess"], [], "no feature 'guess'"),
        ("standard", ["stats-vq"], ["stats-vq"], "stats-vq cannot be both"),
        ("bitmap", [], ["page-bitmap"], "without page-bitmap"),
        ("bitmap", [], ["stats-vq"], "without stats-vq"),
    ],
)
def test_impossible_feature_selections_are_refused(
    tmp_path: Path, dialect: str, offer: list[str], withhold: list[str], words: str
) -> None:
    image = tmp_path / "vmlinux"
    image.write_bytes(elf_kernel())
    with pytest.raises(InvalidConfiguration, match=words):
        config_for_image(image, dialect=dialect, offer=offer, withhold=withhold)
