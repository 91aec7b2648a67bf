# SPDX-License-Identifier: Apache-2.0
"""The one direction of imports, and packages that stand alone."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_imports_go_one_way() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("package", "others"),
    [
        ("pykvm", "pyvmm devices pyvmm_native guest_images click rich"),
        ("pyvmm_native.runs", "pyvmm devices pykvm guest_images click rich"),
        ("devices.balloon.device", "pyvmm pykvm guest_images click rich"),
        ("devices.virtio.pci_transport", "pyvmm pykvm guest_images click rich"),
    ],
)
def test_imports_alone(package: str, others: str) -> None:
    program = (
        f"import sys\nimport {package}\n"
        f"taken = [name for name in {others.split()} if name in sys.modules]\n"
        "sys.exit(' '.join(taken) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
