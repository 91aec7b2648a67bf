# SPDX-License-Identifier: Apache-2.0
"""The plugin in a pytest of its own, whose guests are recorded and not run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RECORDED_GUESTS = '''
import os
from pathlib import Path
import pyvmm.pytest_plugin.guest_source as guest_source

class Guest:
    """Writes what happens to guests of this process to a file."""

    def __init__(self, image, record, **options):
        self.note(f"boot {Path(image).name} {sorted(options.items())}", record)

    @classmethod
    def restore(cls, path, record):
        guest = cls.__new__(cls)
        guest.note(f"restore {path.read_text()}", record)
        return guest

    def note(self, line, recording=None):
        if recording is not None:
            assert recording.parent.is_dir()
            line += f", recorded in {recording.relative_to(Path.cwd())}"
        with Path(f"guests-{os.getpid()}").open("a") as file:
            file.write(f"{line}\\n")

    def save_snapshot(self, path, keep_running):
        path.write_text(path.name)
        self.note("save")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.note("close")

guest_source.Guest = Guest
guest_source.check_kvm = lambda: None
'''
UNUSABLE_KVM = """
import pyvmm.harness.blocking_guest as blocking_guest
from pyvmm.machine.kvm_probe import KvmFitness, Verdict
blocking_guest.in_lab = lambda: False
blocking_guest.probe_host_kvm = lambda: KvmFitness(Verdict.MISSING, "there is no /dev/kvm")
"""
OPTIONS = "[('ram_bytes', 1073741824), ('vcpus', 1)]"


class Project:
    """A directory with tests, configured with the image "kernel"."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.configure()

    def configure(self, *lines: str) -> None:
        text = "\n".join(["[pytest]", "pyvmm_image = kernel", *lines])
        (self.directory / "pytest.ini").write_text(text)

    def add(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        arguments = ["-q", "-p", "pyvmm.pytest_plugin", "-p", "no:cacheprovider", *options]
        return subprocess.run(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=self.directory,
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
        )

    def guests(self) -> list[list[str]]:
        """Return what happened to the guests of each process."""
        return [path.read_text().splitlines() for path in self.directory.glob("guests-*")]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.add("conftest.py", RECORDED_GUESTS)
    for module in ("test_a.py", "test_b.py"):
        project.add(module, "def test_1(guest): pass\ndef test_2(guest): pass\n")
    return project


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("session", [f"boot kernel {OPTIONS}", "close"]),
        ("module", [f"boot kernel {OPTIONS}", "close"] * 2),
        (
            "function",
            [f"boot kernel {OPTIONS}", "save", "close"] + ["restore 0.snapshot", "close"] * 4,
        ),
    ],
)
def test_a_scope_has_its_guests(project: Project, scope: str, expected: list[str]) -> None:
    done = project.run("-o", f"pyvmm_guest_scope={scope}")
    assert "4 passed" in done.stdout, done.stdout + done.stderr
    assert project.guests() == [expected]


def test_options_come_from_the_configuration_and_from_an_overriding_fixture(
    project: Project,
) -> None:
    project.configure("pyvmm_memory = 512M", "pyvmm_cpus = 2", "pyvmm_guest_scope = function")
    project.add(
        "test_a.py",
        "import pytest\n@pytest.fixture\ndef pyvmm_guest_options(pyvmm_guest_options):\n"
        "    return {**pyvmm_guest_options, 'append': 'nosmt'}\n"
        "def test_1(guest): pass\ndef test_2(guest): pass\n",
    )
    project.run()
    boots = [line for line in project.guests()[0] if line.startswith("boot")]
    assert boots == [
        "boot kernel [('append', 'nosmt'), ('ram_bytes', 536870912), ('vcpus', 2)]",
        "boot kernel [('ram_bytes', 536870912), ('vcpus', 2)]",
    ]


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        ("session", ["session"]),
        ("module", ["test_a.py", "test_b.py"]),
        (
            "function",
            ["test_a.py-test_1", "test_a.py-test_2", "test_b.py-test_1-x", "test_b.py-test_1-x-2"],
        ),
    ],
)
def test_recordings_have_the_names_of_what_their_guests_are_for(
    project: Project, scope: str, names: list[str]
) -> None:
    project.configure("pyvmm_record = rec/ordings", f"pyvmm_guest_scope = {scope}")
    project.add(
        "test_b.py",
        "import pytest\n@pytest.mark.parametrize('text', ['x', '/x'])\n"
        "def test_1(guest, text): pass\n",
    )
    done = project.run()
    assert "4 passed" in done.stdout, done.stdout + done.stderr
    recorded = [line.partition(", recorded in ")[2] for line in project.guests()[0]]
    assert list(filter(None, recorded)) == [f"rec/ordings/{name}.rec" for name in names]


def test_every_worker_of_xdist_has_its_own_guest(project: Project) -> None:
    done = project.run("-p", "xdist", "-n", "2", "--dist", "loadfile")
    assert "4 passed" in done.stdout, done.stdout + done.stderr
    assert project.guests() == [[f"boot kernel {OPTIONS}", "close"]] * 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("pyvmm_guest_scope=class", "not one of session, module, function"),
        ("pyvmm_memory=1GB", "'1GB' is not a size"),
        ("pyvmm_cpus=two", "pyvmm_cpus is 'two', not a number"),
    ],
)
def test_a_wrong_option_is_named(project: Project, option: str, message: str) -> None:
    done = project.run("-o", option)
    assert done.returncode
    assert message in done.stdout + done.stderr


@pytest.mark.parametrize("scope", ["session", "function"])
def test_a_guest_that_cannot_run_fails_the_test_with_the_remedy(
    project: Project, scope: str
) -> None:
    project.add("conftest.py", UNUSABLE_KVM)
    done = project.run("-o", f"pyvmm_guest_scope={scope}")
    assert "4 errors" in done.stdout
    assert "cannot be used: there is no /dev/kvm; run the program where KVM works" in done.stdout
    assert "Traceback" not in done.stdout
    assert "another exception" not in done.stdout
    assert 'File "' not in done.stdout


def test_a_run_without_guests_loads_nothing_of_pyvmm(project: Project) -> None:
    project.add("conftest.py", "")
    project.add(
        "test_a.py",
        "import sys\ndef test_1():\n"
        "    names = {name for name in sys.modules if name.startswith('pyvmm')}\n"
        "    assert names == {'pyvmm', 'pyvmm.version', 'pyvmm.pytest_plugin',\n"
        "                     'pyvmm.pytest_plugin.fixtures'}\n",
    )
    done = project.run("test_a.py")
    assert "1 passed" in done.stdout, done.stdout
