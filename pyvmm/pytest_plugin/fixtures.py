# SPDX-License-Identifier: Apache-2.0
"""The fixtures of the plugin, and the options by which a project configures them.

The scope of `guest` is an option. With `session` and `module`, tests share a guest, which is booted
for the first of them. With `function`, each test has a guest of its own, which is restored from a
snapshot: the first test boots the guest and saves it. With pytest-xdist, each worker has its own.

A test whose guest cannot run fails, with the remedy in the message. It is not skipped: wherever
pyvmm can be installed, its lab can run the tests, and a run that skips them passes without having
tested anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from pyvmm.harness.agent_config import GuestOptions
    from pyvmm.harness.blocking_guest import Guest
    from pyvmm.pytest_plugin.guest_source import GuestSource

Scope = Literal["session", "module", "function"]
_SCOPES: tuple[Scope, ...] = ("session", "module", "function")
_OPTIONS = {
    "pyvmm_image": ("kernel of the guest, relative to the configuration file", "that of pyvmm"),
    "pyvmm_guest_scope": ("scope of the fixture guest: session, module or function", "session"),
    "pyvmm_memory": ("RAM of the guest", "1G"),
    "pyvmm_cpus": ("vCPUs of the guest", "1"),
    "pyvmm_record": ("directory for a recording of each guest's events", "none"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the configuration file."""
    for name, (text, default) in _OPTIONS.items():
        parser.addini(name, f"pyvmm: {text} ({default})")


def _option(config: pytest.Config, name: str) -> str:
    return str(config.getini(name)) or _OPTIONS[name][1]


def _guest_scope(fixture_name: str, config: pytest.Config) -> Scope:
    scope = _option(config, "pyvmm_guest_scope")
    for each in _SCOPES:
        if scope == each:
            return each
    raise pytest.UsageError(f"pyvmm_guest_scope is {scope!r}, not one of {', '.join(_SCOPES)}")


@pytest.fixture(scope="session")
def pyvmm_guest_options(pytestconfig: pytest.Config) -> GuestOptions:
    """Return the options of the guest; override it to add any of `pyvmm.harness.GuestOptions`."""
    # Late: saves 1 module in runs that use no guest.
    from pyvmm.errors import UserError
    from pyvmm.units import parse_size

    memory, cpus = _option(pytestconfig, "pyvmm_memory"), _option(pytestconfig, "pyvmm_cpus")
    if not cpus.isdecimal():
        raise pytest.UsageError(f"pyvmm_cpus is {cpus!r}, not a number")
    try:
        return {"ram_bytes": parse_size(memory), "vcpus": int(cpus)}
    except UserError as error:
        raise pytest.UsageError(f"pyvmm_memory: {error}") from None


@pytest.fixture(scope="session")
def pyvmm_guest_source(pytestconfig: pytest.Config) -> Iterator[GuestSource]:
    """Return the source of guests of this session, for fixtures that need several guests."""
    # Late: saves 300 ms in runs that use no guest.
    from pyvmm.pytest_plugin.guest_source import GuestSource

    with GuestSource(
        _path(pytestconfig, "pyvmm_image"), pytestconfig, _path(pytestconfig, "pyvmm_record")
    ) as source:
        yield source


def _path(config: pytest.Config, option: str) -> Path | None:
    """Return the path that `option` has, relative to the configuration file."""
    path = str(config.getini(option))
    return (config.inipath or config.rootpath / "ini").parent / path if path else None


@pytest.fixture(scope=_guest_scope)
def guest(
    request: pytest.FixtureRequest,
    pyvmm_guest_source: GuestSource,
    pyvmm_guest_options: GuestOptions,
) -> Iterator[Guest]:
    """Run a guest that answers: a `pyvmm.harness.Guest`."""
    source = pyvmm_guest_source
    start = source.restored if request.scope == "function" else source.booted
    with start(pyvmm_guest_options, request.node.nodeid) as guest:
        yield guest
