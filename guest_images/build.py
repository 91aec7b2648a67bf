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
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from guest_images.errors import ImageNotWritten
from guest_images.initramfs import prepare_initramfs
from guest_images.kernel import KernelTree
from guest_images.manifest import SECTION, Manifest, ManifestError, read_manifest
from guest_images.recipe import HERE, Recipe, check_tools, read_recipe
from pyvmm.cache.directory import CacheUnusable, cache_root
from pyvmm.progress.reporter import Progress

DIALECT = "bitmap"
DIALECT_APPEND = {"bitmap": "virtio_balloon.page_bitmap=1", "standard": ""}
DRIVER = "pyvmm page-bitmap v1"
# loglevel=6 prints the interesting messages of a boot, about 1.2 KB; the next level prints 13.5 KB,
# and every byte costs two VM exits. The guest does not wait after a panic, which pvpanic reports to
# the host. It reboots by ACPI.
APPEND = "console=ttyS0 loglevel=6 panic=-1"
IMAGES_KEPT = 4


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
    `ImageNotWritten` and the errors of `guest_images.errors` about the kernel source.
    """
    recipe = read_recipe(source)
    cached = image_path(recipe)
    if force or not cached.exists():
        check_tools()
        with _build_lock(progress):
            if force or not cached.exists():
                _build(recipe, cached, jobs or len(os.sched_getaffinity(0)), progress)
    if output is None:
        return cached
    _install(cached, output, recipe.digest)
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
    add_manifest(vmlinux, manifest, image)
    _drop_old_images(image.parent)


def add_manifest(vmlinux: Path, manifest: Manifest, image: Path) -> None:
    """Write `image`: the ELF file `vmlinux` without symbols and with `manifest` in its note."""
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=".image-") as directory:
        note, result = Path(directory, "note"), Path(directory, "image")
        note.write_bytes(manifest.to_note())
        command = [
            "objcopy",
            "--strip-all",
            f"--add-section={SECTION}={note}",
            f"--set-section-flags={SECTION}=readonly",
            f"--set-section-alignment={SECTION}=4",
        ]
        subprocess.run([*command, str(vmlinux), str(result)], check=True)
        result.chmod(0o644)
        result.replace(image)


def _install(cached: Path, output: Path, digest: str) -> None:
    """Copy the image to `output` by a rename, unless the same image is there."""
    try:
        if output.is_file():
            try:
                found = read_manifest(output)
            except ManifestError:
                found = None
            if found is not None and found.inputs == digest:
                return
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".image-") as directory:
            copy = Path(directory, "image")
            shutil.copyfile(cached, copy)
            copy.replace(output)
    except OSError as error:
        raise ImageNotWritten(f"{output} cannot be written: {error.strerror}") from error


def _drop_old_images(directory: Path) -> None:
    images = sorted(directory.glob("*.img"), key=lambda path: path.stat().st_mtime, reverse=True)
    for image in images[IMAGES_KEPT:]:
        image.unlink(missing_ok=True)
