# SPDX-License-Identifier: Apache-2.0
"""The wheel as its user sees it: installed, and with a device test written in an empty folder.

The wheel is built from a copy of the checkout with the native modules that are built here already,
so nothing is compiled.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.project.sources import PRODUCT, ROOT

BALLOON_TEST = """\
import pytest
from devices.balloon.dialects import BITMAP, STANDARD
from devices.testing.balloon import INFLATE, BalloonDriver
from pyvmm_native.runs import PageRuns

@pytest.mark.parametrize("dialect", [STANDARD, BITMAP])
def test_inflated_pages_are_discarded_and_the_buffer_is_returned(dialect):
    driver = BalloonDriver(dialect).start()
    (used,) = driver.inflate([100, 101, 300])
    assert used.length == 0
    assert driver.board.ram.discarded_pages == PageRuns([(100, 2), (300, 1)])
    assert driver.board.msi.triggered == [1 + INFLATE]
"""

OWN_DEVICE_TEST = """\
from devices.testing import AnonymousRam, Board, RecordingTracer, VirtioDriver
from devices.virtio.device import VirtioDevice
from devices.virtio.queue import QueueSpec

class Upper(VirtioDevice):
    def serve(self, queue, chain):
        return chain.write(chain.readable.upper())

def test_requests_are_returned_in_upper_case():
    ram, tracer, queues = AnonymousRam(), RecordingTracer(), [QueueSpec("requests")]
    device = Upper(device_id=63, name="upper", queues=queues, memory=ram.memory, tracer=tracer)
    (used,) = VirtioDriver(Board(device, tracer)).start().send(0, [b"hello"], [5])
    assert used.data == b"HELLO"
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command without Python's environment variables; return its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env={**clean, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def copy_checkout(tree: Path) -> None:
    """Copy what a wheel is made of, and the native modules as building finds them up to date."""
    names = run(
        *("git", "ls-files", "-co", "--exclude-standard"),
        *("--", *PRODUCT, "pyproject.toml", "README.md"),
        cwd=ROOT,
    )
    for name in filter(lambda name: (ROOT / name).exists(), names.splitlines()):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    native = Path("cython_src/pyvmm_native")
    build = tree / f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    (build / native.name).mkdir(parents=True)
    for kind, target in (("*.c", tree / native), ("*.so", build / native.name)):
        for built in (ROOT / native).glob(kind):
            shutil.copyfile(built, target / built.name)  # newer than what it was made of


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and install it into a folder of its own, without its dependencies."""
    tree, target = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("installed")
    copy_checkout(tree)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index")
    run(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", tree, tree, cwd=tree)
    (wheel,) = tree.glob("*.whl")
    run(*pip, "install", *offline, "--target", target, wheel, cwd=tree)
    return target


@pytest.mark.parametrize("test", [BALLOON_TEST, OWN_DEVICE_TEST], ids=["balloon", "own device"])
def test_a_device_test_outside_the_checkout_is_under_15_lines_and_passes(
    test: str, installed: Path, tmp_path: Path
) -> None:
    assert len(test.splitlines()) < 15
    (tmp_path / "test_outsider.py").write_text(test)
    output = run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )
    assert "failed" not in output
    assert "passed" in output


def test_the_wheel_has_the_test_kit_and_its_types(installed: Path, tmp_path: Path) -> None:
    program = "import devices.testing.balloon, pyvmm_native.ring as ring; print(ring.__file__)"
    origin = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(installed))
    assert Path(origin.strip()).is_relative_to(installed)
    kit = installed / "devices/testing"
    shipped = {str(path.relative_to(kit)) for path in kit.rglob("*.py")}
    here = ROOT / "devices/testing"
    assert shipped == {str(path.relative_to(here)) for path in here.rglob("*.py")}
    assert (installed / "devices/py.typed").exists()
    assert not (installed / "tests").exists()
