# SPDX-License-Identifier: Apache-2.0
"""The wheel as its user sees it: installed, in an empty folder, beside other distributions."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from pyvmm.version import VERSION
from tests.project.packages import Environment, make_wheel, run
from tests.project.sources import PRODUCT, ROOT, files

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


def shipped_name(path: Path) -> str:
    """Return the path of a product's file in the wheel."""
    return str(path.relative_to(ROOT)).removeprefix("cython_src/")


@pytest.mark.parametrize("test", [BALLOON_TEST, OWN_DEVICE_TEST], ids=["balloon", "own device"])
def test_a_device_test_outside_the_checkout_is_under_15_lines_and_passes(
    test: str, installed: Environment, tmp_path: Path
) -> None:
    assert len(test.splitlines()) < 15
    (tmp_path / "test_outsider.py").write_text(test)
    pytest_command = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    output = run(installed.python, *pytest_command, cwd=tmp_path)
    assert "failed" not in output
    assert "passed" in output


def test_the_wheel_has_every_module_and_type_stub_of_the_product(installed: Environment) -> None:
    sources = files(*PRODUCT, suffixes=(".py", ".pyi", ".pyx", ".pxd", ".typed"))
    missing = {shipped_name(path) for path in sources}
    missing -= {str(path.relative_to(installed.packages)) for path in installed.packages.rglob("*")}
    assert missing == set()


def test_the_wheel_has_the_sources_of_the_guest_image(installed: Environment) -> None:
    sources = {shipped_name(path) for path in files("guest_images", suffixes=None)}
    assert {name for name in sources if not (installed.packages / name).is_file()} == set()


def test_a_package_that_no_list_names_is_in_the_wheel(
    installed: Environment, tmp_path: Path
) -> None:
    run(installed.python, "-c", "import devices.newcomer.tables", cwd=tmp_path)


def test_nothing_but_the_product_is_in_the_wheel(installed: Environment) -> None:
    (own,) = metadata.distributions(name="pyvmm-kvm", path=[str(installed.packages)])
    tops = {file.parts[0] for file in own.files or [] if ".." not in file.parts}
    assert tops == {
        *("devices", "guest_images", "pykvm", "pyvmm", "pyvmm_native"),
        f"pyvmm_kvm-{own.version}.dist-info",
    }


def test_every_package_can_be_imported_from_another_folder(
    installed: Environment, tmp_path: Path
) -> None:
    program = (
        "import pykvm, devices.testing.balloon, guest_images, pyvmm, pyvmm_native.ring, sys\n"
        "print(pyvmm.__version__, *(sys.modules[name].__file__ for name in"
        " ('pykvm', 'devices', 'guest_images', 'pyvmm', 'pyvmm_native.ring')))"
    )
    version, *origins = run(installed.python, "-c", program, cwd=tmp_path).split()
    assert version == VERSION
    assert all(Path(origin).is_relative_to(installed.packages) for origin in origins)


def test_the_command_is_installed(installed: Environment, tmp_path: Path) -> None:
    version = run(installed.bin / "pyvmm", "--version", cwd=tmp_path)
    assert version == f"pyvmm, version {VERSION}\n"


def test_manual_pages_and_completions_are_installed(installed: Environment) -> None:
    shared = {path.relative_to(ROOT) for path in files("share", suffixes=None)}
    assert {path.parts[1] for path in shared} == {"bash-completion", "fish", "man", "zsh"}
    assert {path for path in shared if not (installed.prefix / path).is_file()} == set()


@pytest.fixture
def own(wheel: Path, tmp_path: Path) -> Environment:
    """Install the wheel into a venv for one test."""
    return Environment(tmp_path / "own", wheel)


def doctor(environment: Environment, tmp_path: Path) -> str:
    """Return the line of `pyvmm doctor` about the installation, and its advice on it."""
    script = (
        "from pyvmm.cli import doctor as d; f = d.check_installation(); print(f.found, f.remedy)"
    )
    return run(environment.python, "-c", script, cwd=tmp_path)


def test_doctor_finds_nothing_wrong_with_the_wheel_alone(
    installed: Environment, tmp_path: Path
) -> None:
    assert doctor(installed, tmp_path) == f"pyvmm-kvm {VERSION}, {installed.packages} \n"


def test_doctor_reports_another_distribution_that_installed_into_our_package(
    own: Environment, tmp_path: Path
) -> None:
    own.install(make_wheel(tmp_path, "pykvm", {"pykvm/kvm_exit.py": "", "pykvm/more.py": ""}))
    (own.packages / "removed-1.0.dist-info").mkdir()  # left by a removal that failed
    report = doctor(own, tmp_path)
    assert "pykvm 9.9 has installed 2 files in pykvm/" in report
    assert "pip uninstall pykvm && pip install --force-reinstall --no-deps pyvmm-kvm" in report


def test_doctor_reports_files_that_a_removed_distribution_took_along(
    own: Environment, tmp_path: Path
) -> None:
    own.install(make_wheel(tmp_path, "gadgets", {"devices/py.typed": "", "devices/bus.py": "#"}))
    own.uninstall("gadgets")
    report = doctor(own, tmp_path)
    assert "2 files of devices/ changed or missing" in report
    assert "pip install --force-reinstall --no-deps pyvmm-kvm" in report


def test_doctor_reports_a_package_that_python_finds_elsewhere(
    installed: Environment, tmp_path: Path
) -> None:
    (tmp_path / "guest_images").mkdir()
    (tmp_path / "guest_images" / "__init__.py").touch()
    script = (
        "from pyvmm.cli.installation import find_conflicts as f; import sys;"
        f"sys.path.insert(0, {str(tmp_path)!r}); print(f())"
    )
    output = run(installed.python, "-c", script, cwd=tmp_path)
    assert f"Python finds guest_images in {tmp_path}" in output


def test_a_command_that_meets_a_foreign_package_says_so_in_one_line(
    own: Environment, tmp_path: Path
) -> None:
    own.install(make_wheel(tmp_path, "pykvm", {"pykvm/__init__.py": "version = 1\n"}))
    command = f"{own.bin}/pyvmm doctor || test $? = 2"
    output = run("sh", "-c", command, cwd=tmp_path)
    assert output.startswith("pyvmm: pykvm 9.9 has installed 1 file in pykvm/; run: pip uninstall")
    assert len(output.splitlines()) == 1
