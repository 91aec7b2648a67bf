# SPDX-License-Identifier: Apache-2.0
"""pyvmm as its users have it: installed in a virtual environment, and started by its command.

The environment of a checkout has hooks that run whenever its interpreter starts, for the editable
installation and for the measurement of coverage; users have none. So the packages are copied into
an environment of their own and compiled, as `pip install` does. The dependencies, of which a boot
imports none, come after them on the path, from the environment that runs the benchmark.

The interpreter is the distribution's if the native modules fit it, as the QEMU to compare with is
the distribution's: one that was built without profile-guided optimization, as pyenv does by
default, takes a third longer.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

PACKAGES = ("pykvm", "devices", "pyvmm", "guest_images", "pyvmm_native")
DISTRIBUTION_PYTHON = Path("/usr/bin/python3")
_SUFFIX = "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"
_PACKAGES = "import sysconfig; print(sysconfig.get_path('purelib'))"
_COMMAND = """#!{python}
import sys
from pyvmm.cli.entry import main
if __name__ == "__main__":
    sys.exit(main())
"""


class Installation(NamedTuple):
    """An installed pyvmm: its interpreter and its command."""

    python: Path
    command: Path


@contextmanager
def installed() -> Iterator[Installation]:
    """Install this pyvmm for the `with` block."""
    with TemporaryDirectory(prefix="pyvmm-bench-") as directory:
        yield install(Path(directory, "environment"))


def install(directory: Path) -> Installation:
    """Install this pyvmm into a new virtual environment in `directory`."""
    run = [str(base_python()), "-m", "venv", "--without-pip", str(directory)]
    subprocess.run(run, check=True)
    python, command = directory / "bin/python", directory / "bin/pyvmm"
    packages = Path(_output(python, _PACKAGES))
    for name in PACKAGES:
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        ignored = shutil.ignore_patterns("__pycache__", "*.c", "*.pyx")
        shutil.copytree(Path(spec.origin).parent, packages / name, ignore=ignored)
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    subprocess.run([str(python), "-m", "compileall", "-q", str(packages)], check=True)
    command.write_text(_COMMAND.format(python=python))
    command.chmod(0o755)
    return Installation(python, command)


def base_python() -> Path:
    """Return the distribution's interpreter if the native modules fit it, else this one's."""
    ours = sysconfig.get_config_var("EXT_SUFFIX")
    if DISTRIBUTION_PYTHON.exists() and _output(DISTRIBUTION_PYTHON, _SUFFIX) == ours:
        return DISTRIBUTION_PYTHON
    return Path(sys.executable)


def _output(python: Path, program: str) -> str:
    done = subprocess.run(
        [str(python), "-I", "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
