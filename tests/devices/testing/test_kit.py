# SPDX-License-Identifier: Apache-2.0
"""The test kit as a library: documented, with working examples, and without other packages."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType

import pytest

import devices
import devices.testing
import devices.testing.balloon
from devices.balloon.dialects import STANDARD
from devices.testing import DriverQueue, guest_memory, timers
from devices.testing.balloon import BalloonDriver

MODULES = [
    importlib.import_module(each.name)
    for each in pkgutil.walk_packages(devices.testing.__path__, "devices.testing.")
]


def public_members(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Yield the public classes and functions of `module` with their public methods."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        yield name, value
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                if attribute.startswith("_"):
                    continue
                if callable(member) or isinstance(member, property):
                    yield f"{name}.{attribute}", member


@pytest.mark.parametrize("module", MODULES, ids=lambda each: each.__name__)
def test_every_public_name_has_a_docstring(module: ModuleType) -> None:
    assert module.__doc__
    missing = [name for name, value in public_members(module) if not inspect.getdoc(value)]
    assert missing == []


@pytest.mark.parametrize(
    "module",
    [devices.testing, devices.testing.balloon, devices.testing.driver_queue, timers],
    ids=lambda each: each.__name__,
)
def test_the_example_of_the_module_runs(module: ModuleType) -> None:
    assert module.__doc__
    examples = re.findall(r"(?:^(?: {4}.*)?\n)+", module.__doc__, re.MULTILINE)
    example = textwrap.dedent(max(examples, key=len))
    assert "assert " in example
    exec(compile(example, module.__name__, "exec"), {"__name__": "example"})


ALONE = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pyvmm", "pykvm", "guest_images", "tests", "bench",
                                      "hypothesis", "pytest", "click", "rich"}:
            raise AssertionError(f"imports {name}")

def no_kvm(event, arguments):
    if event == "open" and arguments[0] == "/dev/kvm":
        raise AssertionError("opens /dev/kvm")

sys.meta_path.insert(0, Blocked())
sys.addaudithook(no_kvm)
import devices
for each in pkgutil.walk_packages(devices.__path__, "devices."):
    if each.name != "devices.testing.strategies":
        importlib.import_module(each.name)
from devices.balloon.dialects import BITMAP, HYBRID, RANGES, STANDARD
from devices.testing.balloon import BalloonDriver
for dialect in (STANDARD, BITMAP, HYBRID, RANGES):
    driver = BalloonDriver(dialect).start()
    driver.inflate([7])
    assert driver.board.ram.discarded_pages.pages == 1
"""


def test_devices_work_without_kvm_or_any_other_package_of_ours() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_queue_outside_ram_is_refused() -> None:
    with pytest.raises(ValueError, match="no RAM for a queue's buffers at 0x10000"):
        DriverQueue(guest_memory(1 << 16), base_gpa=1 << 16, data_gpa=1 << 16)


def test_a_buffer_for_a_queue_that_is_not_set_up_is_refused() -> None:
    driver = BalloonDriver(STANDARD)
    with pytest.raises(ValueError, match="queue 0 is not set up, only \\[\\]"):
        driver.inflate([1])
    driver.start(queues=[0])
    with pytest.raises(ValueError, match="queue 1 is not set up, only \\[0\\]"):
        driver.deflate([1])
