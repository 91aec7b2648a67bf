# SPDX-License-Identifier: Apache-2.0
"""A plugin for pytest: the fixture `guest`, a running guest for tests to run commands in.

    def test_memory(guest):
        assert "Mem:" in guest.run(["free", "-m"], check=True).stdout

pytest loads this package in every run where pyvmm is installed, so it imports nothing of pyvmm
before a test uses a guest. The options are in pytest's configuration file, or on its command line
with `-o NAME=VALUE`.

Belongs here: the fixtures and their options (`fixtures`), and the guests behind them
(`guest_source`). This package has the names that pytest looks for in a plugin.
"""

from pyvmm.pytest_plugin.fixtures import (
    guest,
    pytest_addoption,
    pyvmm_guest_options,
    pyvmm_guest_source,
)

__all__ = ["guest", "pytest_addoption", "pyvmm_guest_options", "pyvmm_guest_source"]
