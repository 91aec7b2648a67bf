# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests, so that they pass on a busy machine and in the background of a shell."""

import atexit
import os
import shutil
import signal
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# A shell makes its background jobs ignore SIGINT. Programs under test would inherit that and never
# end when they are interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)


# The developer's own guest is no default of the commands under test.
os.environ.pop("PYVMM_QMP", None)

# Neither are the guests of tests announced among the developer's own. The path is short, because
# sockets are created in it.
os.environ["XDG_RUNTIME_DIR"] = mkdtemp(prefix="pyvmm-run-", dir="/tmp")
atexit.register(shutil.rmtree, os.environ["XDG_RUNTIME_DIR"], ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: rounds for minutes each, see `make test-long`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the long rounds unless they are requested: `make test-long`, `-m long`."""
    if "long" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]
