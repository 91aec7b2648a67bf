# SPDX-License-Identifier: Apache-2.0
"""Packages of several Debian releases, fetched with apt, whatever Debian this machine has.

apt has package sources and state of its own here, in a directory of the cache: the suites in
`SUITES`, from the mirrors that this machine's own sources name, else from deb.debian.org. These
suites have the newest kernels, and indices of 1 MB in all. Settings in /etc/apt, such as a proxy,
apply. Nothing is installed, and root is not needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SUITES = {
    "Debian": "trixie-backports",
    "Debian-Security": "bookworm-security trixie-security",
}
"""Suites by the label of their archive."""
MIRRORS = {
    "Debian": "http://deb.debian.org/debian",
    "Debian-Security": "http://deb.debian.org/debian-security",
}
"""Mirrors of the archives that this machine's own sources do not name."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SEARCH_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # of depmod


class Unavailable(Exception):
    """The package cannot be fetched; the message says why."""


@dataclass(frozen=True)
class Package:
    """One version of a binary package."""

    name: str
    version: str


class DebianArchive:
    """apt on `SUITES`, with its state in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._options = self._configure()

    def update(self) -> None:
        """Download the indices of the suites that have changed. Raises `Unavailable`."""
        sources = self._directory / "debian.sources"
        for made in (sources.parent / "state/lists/partial", sources.parent / "cache"):
            made.mkdir(parents=True, exist_ok=True)
        mirrors = MIRRORS | _mirrors()
        sources.write_text(
            "\n".join(
                f"Types: deb\nURIs: {mirrors[label]}\nSuites: {suites}\nComponents: main\n"
                f"Architectures: amd64\nTargets: Packages\nSigned-By: {KEYRING}\n"
                for label, suites in SUITES.items()
            )
        )
        run("apt-get", *self._options, "-q", "update")

    def kernel_packages(self, metapackage: str, suite: str) -> list[Package]:
        """Return the packages of the kernel that `metapackage` of `suite` depends on.

        The first is linux-image-RELEASE. It has the kernel and the modules up to Linux 6.18; from
        6.19 on, it only depends on linux-binary-, linux-modules- and linux-base-RELEASE, which
        have. Raises `Unavailable`.
        """
        (image, *_) = self._exact_dependencies(metapackage, suite, r"linux-image-[\d.]\S*")
        release = image.name.removeprefix("linux-image-")
        parts = rf"linux-(?:binary|modules|base)-{re.escape(release)}"
        return [image, *self._exact_dependencies(image.name, suite, parts, at_least=0)]

    def download(self, packages: list[Package], directory: Path) -> list[Path]:
        """Download `packages` to `directory`; return the archives. Raises `Unavailable`."""
        wanted = [f"{package.name}={package.version}" for package in packages]
        run("apt-get", *self._options, "-q", "download", *wanted, cwd=directory)
        return sorted(directory.glob("*.deb"))

    def _exact_dependencies(
        self, name: str, suite: str, pattern: str, *, at_least: int = 1
    ) -> list[Package]:
        """Return the packages that match `pattern` and of which `name` needs one exact version."""
        try:
            record = run("apt-cache", *self._options, "show", f"{name}/{suite}")
        except Unavailable as error:
            raise Unavailable(f"{suite} has no {name} ({error})") from error
        depends = re.search(r"^Depends: (.*)", record, re.MULTILINE)
        found = re.findall(rf"({pattern}) \(= (\S+)\)", depends[1] if depends else "")
        if len(found) < at_least:
            raise Unavailable(f"{name} of {suite} does not depend on a kernel")
        return [Package(*match) for match in found]

    def _configure(self) -> list[str]:
        settings = {
            "Dir::State": self._directory / "state",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": self._directory / "cache",
            "Dir::Etc::SourceList": self._directory / "debian.sources",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
        }
        if os.geteuid() == 0:  # apt's sandbox user may not write here
            settings["APT::Sandbox::User"] = "root"
        return [f"-o{name}={value}" for name, value in settings.items()]


def _mirrors() -> dict[str, str]:
    """Return the mirrors that this machine's own package sources name, by label."""
    wanted = ("Created-By: Packages", "Origin: Debian")
    lines = run("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", *wanted)
    return dict(reversed([line.split(" ", 1) for line in lines.splitlines()]))


def run(*command: str, cwd: Path | None = None) -> str:
    """Return the output of `command`. Raises `Unavailable` if it is missing or fails."""
    program = shutil.which(command[0], path=SEARCH_PATH)
    if program is None:
        raise Unavailable(f"{command[0]} is not installed")
    done = subprocess.run([program, *command[1:]], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        shown = [word for word in command if not word.startswith("-o")]
        raise Unavailable(f"{' '.join(shown)}: {last or f'status {done.returncode}'}")
    return done.stdout
