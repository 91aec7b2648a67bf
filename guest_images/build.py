# SPDX-License-Identifier: Apache-2.0
"""Build `guest.img`: kernel and userland in one ELF file, cached under the hash of its inputs.

    kernel source + patches + kernel.config --+
    busybox + init + pattern ----------------+--> vmlinux --> stripped, manifest added --> guest.img

Finished images are in the cache (`pyvmm.cache`) under the digest of their recipe (see
`guest_images.recipe`). Each gets its name by a rename, so an image that exists is complete. A lock
allows one build at a time; a build that waited for another uses its image.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from guest_images.errors import ImageNotWritten
from guest_images.initramfs import prepare_initramfs
from guest_images.kernel import KernelTree
from guest_images.manifest import (
    SECTION,
    Manifest,
    ManifestError,
    has_manifest,
    read_manifest,
)
from guest_images.recipe import HERE, Recipe, check_tools, read_recipe
from pyvmm.blocking.process_limit import process_limit_reported
from pyvmm.cache.directory import CacheUnusable, cache_root, keep_most_recent
from pyvmm.files.replacement import ForeignFileError, remove_abandoned, replace_file, replaceable
from pyvmm.progress.reporter import Progress

DIALECT = "bitmap"
DIALECT_APPEND = {
    **{name: f"virtio_balloon.dialect={name}" for name in ("bitmap", "hybrid", "ranges")},
    "standard": "",
}
DRIVER = "pyvmm balloon dialects v2"
# loglevel=6 prints the interesting messages of a boot, about 1.2 KB; the next level prints 13.5 KB,
# and every byte costs two VM exits. The guest does not wait after a panic, which pvpanic reports to
# the host. It reboots by ACPI.
APPEND = "console=ttyS0 loglevel=6 panic=-1"
IMAGES_KEPT = 4
_UNFINISHED = ".image-"


def build_image(
    output: Path | None = None,
    *,
    source: Path | None = None,
    jobs: int | None = None,
    progress: Progress,
    force: bool = False,
) -> Path:
    """Return the path of an up-to-date guest image, building it if there is none.

    With `output` the image is copied there, else it stays in the cache. `source` is a Linux 6.12
    source directory or archive, by default Debian's; `jobs` is the number of parallel compilers, by
    default one per CPU. `force` rebuilds the image. Raises `NotInstalled`, `CacheUnusable`,
    `ImageNotWritten` and the errors of `guest_images.errors` about the kernel source. A file at
    `output` that is no guest image is not replaced.
    """
    target = None if output is None else _replaceable(output)  # known before minutes of a build
    recipe = read_recipe(source)
    cached = image_path(recipe)
    if force or not cached.exists():
        check_tools()
        with _build_lock(progress):
            if force or not cached.exists():
                _build(recipe, cached, jobs or len(os.sched_getaffinity(0)), progress)
    keep_most_recent("*.img", cached, IMAGES_KEPT)
    if output is None or target is None:
        return cached
    _install(cached, target, recipe.digest)
    return output


def image_path(recipe: Recipe) -> Path:
    """Return the path of the image of `recipe` in the cache, whether or not it exists."""
    return cache_root() / "images" / f"{recipe.digest[:32]}.img"


@contextmanager
def _build_lock(progress: Progress) -> Iterator[None]:
    cache = cache_root()
    if set(str(cache)) & set(" \t:"):
        raise CacheUnusable(
            f"the kernel cannot be built below '{cache}', which has a space or a colon in it"
        )
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / "build.lock").open("w")
    except OSError as error:
        raise CacheUnusable(f"{cache} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.stage("Waiting for another build to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(recipe: Recipe, image: Path, jobs: int, progress: Progress) -> None:
    tree = KernelTree(cache_root() / "kernel", recipe)
    tree.unpack(progress)
    tree.patch(progress)
    tree.configure(progress)
    prepare_initramfs(tree.objects, HERE, recipe.busybox)
    vmlinux = tree.build(jobs, progress)
    manifest = Manifest(
        dialect=DIALECT,
        append=APPEND,
        dialect_append=DIALECT_APPEND,
        kernel=tree.version,
        driver=DRIVER,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        inputs=recipe.digest,
    )
    image.parent.mkdir(parents=True, exist_ok=True)
    for unfinished in image.parent.glob(f"{_UNFINISHED}*"):  # of a build that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    add_manifest(vmlinux, manifest, image)


def add_manifest(vmlinux: Path, manifest: Manifest, image: Path) -> None:
    """Write `image`: the ELF file `vmlinux` without symbols and with `manifest` in its note."""
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=_UNFINISHED) as directory:
        note, result = Path(directory, "note"), Path(directory, "image")
        note.write_bytes(manifest.to_note())
        command = [
            "objcopy",
            "--strip-all",
            f"--add-section={SECTION}={note}",
            f"--set-section-flags={SECTION}=readonly",
            f"--set-section-alignment={SECTION}=4",
        ]
        with process_limit_reported():
            subprocess.run([*command, str(vmlinux), str(result)], check=True)
        result.chmod(0o644)
        result.replace(image)


def _replaceable(output: Path) -> Path:
    """Return the path of the file to write for `output`. Raises `ImageNotWritten`."""
    try:
        return replaceable(output, has_manifest)
    except ForeignFileError as error:
        raise ImageNotWritten(
            f"{output} is a file, but not a guest image, and is not replaced"
        ) from error
    except OSError as error:
        raise ImageNotWritten(f"{output} cannot be written: {error.strerror}") from error


def _install(cached: Path, target: Path, digest: str) -> None:
    """Copy the image to `target` by a rename, unless the same image is there."""
    with suppress(OSError, ManifestError):
        found = read_manifest(target)
        if found is not None and found.inputs == digest:
            return
    try:
        remove_abandoned(target.parent)
        replace_file(target, cached.read_bytes())
    except OSError as error:
        raise ImageNotWritten(f"{target} cannot be written: {error.strerror}") from error
