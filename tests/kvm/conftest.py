# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with real guests: the image, running one, and a table of figures."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from guest_images.build import image_path
from guest_images.recipe import read_recipe
from pyvmm.boot.image_config import config_for_image
from pyvmm.config import DEFAULT_HUGEPAGES, HugePages, MachineConfig
from pyvmm.harness.guest_session import guest_session
from pyvmm.units import MIB
from tests.kvm.fixture_types import MakeConfig, RunGuest, Scenario

FIGURES: list[str] = []


@pytest.fixture(scope="session")
def guest_image() -> Path:
    """Return the standard guest.img from the cache, which `make image` fills outside the lab."""
    image = image_path(read_recipe())
    if not image.exists():
        pytest.fail("there is no current guest image; run: make image")
    return image


@pytest.fixture
def make_config(guest_image: Path) -> MakeConfig:
    """Make the configuration of a guest of `memory_mib` MiB that executes `command`."""

    def make(
        command: str = "pattern",
        *,
        memory_mib: int = 256,
        vcpus: int = 1,
        dialect: str | None = None,
        initrd: Path | None = None,
        append: str = "",
        offer: Sequence[str] = (),
        withhold: Sequence[str] = (),
        rng: int | None = None,
        console: str = "serial",
        ports: Sequence[str] = (),
        hotplug_ports: int = 0,
        hugepages: HugePages = DEFAULT_HUGEPAGES,
    ) -> MachineConfig:
        return config_for_image(
            guest_image,
            append=f"loglevel=4 {append}".rstrip(),
            run=command,
            ram_bytes=memory_mib * MIB,
            vcpus=vcpus,
            dialect=dialect,
            initrd=initrd,
            offer=offer,
            withhold=withhold,
            rng=rng,
            console=console,
            ports=ports,
            hotplug_ports=hotplug_ports,
            hugepages=hugepages,
        )

    return make


@pytest.fixture
def run_guest(make_config: MakeConfig) -> RunGuest:
    """Run `scenario` with a guest configured by `make_config`."""

    def run(scenario: Scenario, command: str = "pattern", **options: Any) -> None:
        config = make_config(command, **options)

        async def main() -> None:
            async with guest_session(config) as guest:
                await scenario(guest)

        asyncio.run(main())

    return run


@pytest.fixture
def directory() -> Iterator[Path]:
    """Make a tmpfs directory for files and sockets; the lab's shared root supports neither."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture
def path(directory: Path) -> Path:
    """Return the path of the QMP socket."""
    return directory / "qmp.sock"


@pytest.fixture
def address(directory: Path) -> str:
    """Return the address of an incoming migration."""
    return f"unix:{directory / 'm'}"


@pytest.fixture
def file(directory: Path) -> Path:
    """Return the path of a snapshot."""
    return directory / "snapshot"


@pytest.fixture
def figure() -> Callable[[str], None]:
    """Return a function that adds a line to the table at the end of the run."""
    return FIGURES.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("figures")
        for line in FIGURES:
            terminalreporter.write_line(line)
