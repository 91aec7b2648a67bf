# SPDX-License-Identifier: Apache-2.0
"""Check that the packages of this installation are ours, all of them and unchanged.

Other projects may install packages of the same names, as PyPI's `pykvm` does. pip does not notice
when two distributions contain the same file: the last one installed overwrites the other's, and
removing either deletes it. Three observations show this, for the folder that this module was
imported from: another distribution has recorded files in one of our packages; a file differs from
the hash in our record, or is missing; or Python finds one of our packages in another folder. A
checkout has no record of its files, so only the first and the last apply to it.
"""

from __future__ import annotations

import base64
import csv
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

DISTRIBUTION = "pyvmm-kvm"
PACKAGES = ("devices", "guest_images", "pykvm", "pyvmm", "pyvmm_native")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Conflict:
    """A package that is not, or not only, ours; `distribution` is the other one, "" if unknown."""

    package: str
    fact: str
    distribution: str = ""

    @property
    def remedy(self) -> str:
        """Return the commands that leave only our files."""
        ours = f"pip install --force-reinstall --no-deps {DISTRIBUTION}"
        return f"pip uninstall {self.distribution} && {ours}" if self.distribution else ours


def describe_installation() -> str:
    """Return the name and version of this installation, or say that it is a checkout, and where."""
    ours = next(filter(_is_ours, _distributions()), None)
    kind = f"{DISTRIBUTION} {ours.version}" if ours and _hashes(ours) else "checkout"
    return f"{kind}, {ROOT}"


def find_conflicts() -> list[Conflict]:
    """Return the conflicts of each package, those with the name of the other distribution first."""
    installed = _distributions()
    others = [each for each in installed if not _is_ours(each)]
    found = [*_other_records(others), *_other_folders()]
    named = {each.package for each in found}
    changed = [each for dist in installed if _is_ours(dist) for each in _changed_files(dist)]
    return found + [each for each in changed if each.package not in named]


def _distributions() -> list[metadata.Distribution]:
    """Return what is installed, without folders that a failed removal has left without metadata."""
    return [each for each in metadata.distributions() if each.read_text("METADATA")]


def _is_ours(distribution: metadata.Distribution) -> bool:
    folder = Path(str(distribution.locate_file("")))
    return distribution.metadata["Name"] == DISTRIBUTION and folder.resolve() == ROOT


def _hashes(distribution: metadata.Distribution) -> dict[str, str]:
    """Return the recorded hash of each file in a package of our name, by its path."""
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    sources = (row for row in rows if row and not row[0].endswith(".pyc"))
    return {row[0]: row[1] for row in sources if row[0].partition("/")[0] in PACKAGES}


def _other_records(others: list[metadata.Distribution]) -> Iterator[Conflict]:
    for distribution in others:
        name = distribution.metadata["Name"]
        if name == DISTRIBUTION:
            continue  # another installation of ours, earlier or later on the path
        files = Counter(path.partition("/")[0] for path in _hashes(distribution))
        for package, count in files.items():
            fact = f"{name} {distribution.version} has installed {_files(count)} in {package}/"
            yield Conflict(package, fact, name)


def _other_folders() -> Iterator[Conflict]:
    for package in PACKAGES:
        spec = find_spec(package)
        folders = [
            Path(each).resolve() for each in (spec and spec.submodule_search_locations) or ()
        ]
        ours = {ROOT / package, ROOT / "cython_src" / package}
        if folders and folders[0] not in ours:
            yield Conflict(package, f"Python finds {package} in {folders[0].parent}")


def _changed_files(distribution: metadata.Distribution) -> Iterator[Conflict]:
    changed: Counter[str] = Counter()
    for path, recorded in _hashes(distribution).items():
        if recorded and recorded != _hash(ROOT / path):
            changed[path.partition("/")[0]] += 1
    for package, count in changed.items():
        yield Conflict(package, f"{_files(count)} of {package}/ changed or missing")


def _hash(path: Path) -> str:
    """Return the hash of a file in the form of a record; "" if the file is missing."""
    if not path.is_file():
        return ""
    digest = hashlib.sha256(path.read_bytes()).digest()
    return f"sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"
