# SPDX-License-Identifier: Apache-2.0
"""The guest kernel: a private source tree, our patches on it, a configuration, `make vmlinux`.

The tree and its objects are kept in the cache, so that make compiles only what a change affects.
Interrupted steps are repeated: the source gets its final name only when it is complete, and the
original of a file is saved before the file is patched for the first time, so that the next patch
series starts from the same files. A file that two series leave equal keeps its modification time,
or make would compile all that includes it. The user's own tree is never modified.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from guest_images.errors import KernelSourceModified, KernelSourceUnusable
from guest_images.recipe import Recipe, kernel_version
from pyvmm.blocking.process_limit import process_limit_reported
from pyvmm.errors import UserError
from pyvmm.progress.reporter import Progress

# Lines that a full build prints; only the progress bar uses it.
BUILD_LINES = 1420
# Source that our configuration does not compile: half of the unpacked size.
NOT_NEEDED = ("*/drivers/gpu/drm/amd/include/*", "*/tools/testing/*", "./.git")
# A fixed identity makes equal inputs give equal kernels.
IDENTITY = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
    "KBUILD_BUILD_USER": "pyvmm",
    "KBUILD_BUILD_HOST": "pyvmm",
    "KBUILD_BUILD_VERSION": "1",
}


class KernelTree:
    """One kernel source in the cache: `src` (patched), `obj` (built), `originals` (saved)."""

    def __init__(self, directory: Path, recipe: Recipe) -> None:
        self._recipe = recipe
        name = hashlib.sha256(recipe.source_identity.encode()).hexdigest()[:16]
        self._root = directory / name
        self.source = self._root / "src"
        self.objects = self._root / "obj"
        self.log = self._root / "build.log"
        self._originals = self._root / "originals"
        self._patched = self._root / "patched"

    @property
    def version(self) -> str:
        """Return the kernel's version; the tree must exist."""
        return kernel_version(self.source)

    def unpack(self, progress: Progress) -> None:
        """Put a private copy of the source into the cache, unless there is one."""
        if self.source.exists():
            return
        progress.stage("Unpacking the kernel source")
        shutil.rmtree(self._root, ignore_errors=True)
        partial = self._root / "partial"
        partial.mkdir(parents=True)
        source = self._recipe.source
        if source.is_dir():
            _copy_tree(source, partial)
        else:
            _extract(source, partial)
        kernel_version(partial)
        if (partial / ".config").exists() or (partial / "include" / "config").exists():
            # The user built in this tree; make does not build out of tree from it.
            with process_limit_reported():
                subprocess.run(
                    ["make", "-s", "-C", partial, "mrproper"], env=_environment(), check=True
                )
        partial.rename(self.source)

    def patch(self, progress: Progress) -> None:
        """Apply exactly our patch series to the original source."""
        contents = [patch.read_bytes() for patch in self._recipe.patches]
        wanted = hashlib.sha256(b"".join(contents)).hexdigest()
        if self._patched.exists() and self._patched.read_text() == wanted:
            return
        progress.stage("Patching the kernel source")
        self._patched.unlink(missing_ok=True)
        built = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in self._changed()}
        self._restore()
        self._save_originals(_patched_files(contents))
        for patch in self._recipe.patches:
            self._apply(patch)
        for path, (content, mtime_ns) in built.items():
            if path.exists() and path.read_bytes() == content:
                os.utime(path, ns=(mtime_ns, mtime_ns))
        self._patched.write_text(wanted)

    def configure(self, progress: Progress) -> None:
        """Write `.config` from our fragment. Raises `KernelSourceModified` if an option is lost."""
        progress.stage("Configuring the kernel")
        self.objects.mkdir(exist_ok=True)
        self._make(f"KCONFIG_ALLCONFIG={self._recipe.config}", "allnoconfig")
        result = (self.objects / ".config").read_text().splitlines()
        lost = lost_options(self._recipe.config.read_text().splitlines(), result)
        if lost:
            raise KernelSourceModified(
                f"the kernel in {self._recipe.source} does not support {', '.join(lost)}"
            )

    def build(self, jobs: int, progress: Progress) -> Path:
        """Compile and return the path of `vmlinux`."""
        progress.stage(f"Building Linux {self.version} ({jobs} jobs)", BUILD_LINES)
        self._make(f"-j{jobs}", "vmlinux", progress=progress)
        return self.objects / "vmlinux"

    def _make(self, *arguments: str, progress: Progress | None = None) -> None:
        """Run make on the kernel, with its output in the log. Raises `UserError` if it fails."""
        command = ["make", "-C", str(self.source), f"O={self.objects}", "ARCH=x86_64", *arguments]
        with process_limit_reported():
            process = subprocess.Popen(
                command,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        with process, self.log.open("w", buffering=1) as log:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    log.write(line)
                    if progress is not None:
                        progress.advance()
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise UserError(f"the kernel build failed: {_first_error(self.log)}; see {self.log}")

    def _changed(self) -> list[Path]:
        """Return the files that the last patch series changed or created."""
        saved = (path for path in self._originals.rglob("*") if path.is_file())
        targets = (self.source / path.relative_to(self._originals) for path in saved)
        return [path for path in targets if path.exists()]

    def _restore(self) -> None:
        """Undo the last patch series: restore the originals, remove files that it created."""
        for saved in [path for path in self._originals.rglob("*") if path.is_file()]:
            target = self.source / saved.relative_to(self._originals)
            if saved.stat().st_size:
                shutil.copyfile(saved, target)
            else:
                target.unlink(missing_ok=True)

    def _save_originals(self, names: Iterable[str]) -> None:
        """Save the files that will be patched; an empty file stands for one that is created."""
        for name in names:
            original, saved = self.source / name, self._originals / name
            if saved.exists():
                continue
            saved.parent.mkdir(parents=True, exist_ok=True)
            partial = saved.with_name(saved.name + ".partial")
            partial.write_bytes(original.read_bytes() if original.exists() else b"")
            partial.rename(saved)

    def _apply(self, patch: Path) -> None:
        command = ["patch", "-p1", "--batch", "--forward", "--no-backup-if-mismatch"]
        with process_limit_reported():
            done = subprocess.run(
                [*command, "-d", str(self.source), "-i", str(patch)],
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            raise KernelSourceModified(f"{patch.name} does not apply to {self._recipe.source}")


def lost_options(wanted: Sequence[str], result: Sequence[str]) -> list[str]:
    """Return the options of the fragment `wanted` that `.config` lines do not have as written.

    An option that must be off may also be absent: then it cannot be on.
    """
    lines = set(result)
    names = {line.partition("=")[0] for line in lines}
    lost = []
    for line in wanted:
        off = re.fullmatch(r"# (CONFIG_\w+) is not set", line)
        if off:
            if off[1] in names:
                lost.append(off[1])
        elif line.startswith("CONFIG_") and line not in lines:
            lost.append(line)
    return lost


def _patched_files(patches: Iterable[bytes]) -> set[str]:
    """Return the paths, relative to the tree, of all files that `patches` change or create."""
    names = re.findall(rb"^(?:---|\+\+\+) [ab]/([^\t\n]+)", b"\n".join(patches), re.MULTILINE)
    return {name.decode() for name in names}


def _extract(archive: Path, target: Path) -> None:
    """Unpack a kernel archive; with xz on every CPU it takes half the time."""
    exclude = [f"--exclude={pattern}" for pattern in NOT_NEEDED]
    decompress = ["--use-compress-program=xz -T0"] if archive.suffix == ".xz" else []
    command = ["tar", "-xf", str(archive), "--strip-components=1", "-C", str(target)]
    with process_limit_reported():
        done = subprocess.run(
            [*command, *decompress, *exclude], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise KernelSourceUnusable(
            f"{archive} cannot be unpacked: {done.stderr.strip().splitlines()[0]}"
        )


def _copy_tree(source: Path, target: Path) -> None:
    exclude = [f"--exclude={pattern}" for pattern in NOT_NEEDED]
    reader = ["tar", "-C", str(source), *exclude, "-cf", "-", "."]
    writer = ["tar", "-C", str(target), "-xf", "-"]
    with process_limit_reported(), subprocess.Popen(reader, stdout=subprocess.PIPE) as process:
        subprocess.run(writer, stdin=process.stdout, check=True)
    if process.returncode:
        raise KernelSourceUnusable(f"{source} cannot be copied; all of it must be readable")


def _environment() -> dict[str, str]:
    """Return the environment of make, without the variables (MAKEFLAGS, O) of an outer make."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return {**kept, **IDENTITY, "LC_ALL": "C"}


def _first_error(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    errors = [line for line in lines if "error:" in line or "***" in line]
    return (errors or lines or ["no output"])[0].strip()
