# SPDX-License-Identifier: Apache-2.0
"""The image builder without the compiler: its inputs, and its private source tree.

The kernel is a directory of three files here; the tools that process it are the real ones.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from guest_images import recipe as recipe_module
from guest_images.build import build_image, image_path
from guest_images.errors import ImageNotWritten
from guest_images.initramfs import prepare_initramfs
from guest_images.kernel import KernelTree, lost_options
from guest_images.recipe import HERE, Recipe, check_tools, read_recipe
from pyvmm.cache.directory import CacheUnusable, cache_root
from pyvmm.cli.image import image as image_command
from pyvmm.cli.remedies import remedy
from pyvmm.errors import NotInstalled, UserError
from pyvmm.progress.reporter import Silent

MAKEFILE = "# comment\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 117\nEXTRAVERSION =\n"
CHANGE = """\
--- a/driver.c
+++ b/driver.c
@@ -1,2 +1,2 @@
 one
-two
+{new}
"""
CREATE = """\
diff --git a/new/file.h b/new/file.h
new file mode 100644
--- /dev/null
+++ b/new/file.h
@@ -0,0 +1 @@
+created
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pyvmm"


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    tree = tmp_path / "linux"
    tree.mkdir()
    (tree / "Makefile").write_text(MAKEFILE)
    (tree / "driver.c").write_text("one\ntwo\n")
    (tree / ".git").mkdir()
    (tree / ".git" / "config").write_text("not to be copied\n")
    return tree


def recipe_of(source: Path, *patches: str) -> Recipe:
    paths: list[Path] = []
    for number, text in enumerate(patches):
        path = source.parent / f"{number:04}-{len(paths)}.patch"
        path.write_text(text)
        paths.append(path)
    config, busybox = HERE / "kernel.config", Path("/bin/busybox")
    return Recipe(source, str(source), tuple(paths), config, busybox, "0" * 64)


def contents(tree: Path) -> dict[str, str]:
    return {
        str(path.relative_to(tree)): path.read_text() for path in tree.rglob("*") if path.is_file()
    }


def test_a_source_directory_is_copied_and_not_modified(linux: Path, cache: Path) -> None:
    before = contents(linux)
    tree = KernelTree(cache, recipe_of(linux, CHANGE.format(new="three"), CREATE))
    tree.unpack(Silent())
    tree.patch(Silent())
    assert contents(linux) == before
    assert contents(tree.source) == {
        "Makefile": MAKEFILE,
        "driver.c": "one\nthree\n",
        "new/file.h": "created\n",
    }
    assert tree.version == "6.12.117"


def test_a_source_archive_is_unpacked(linux: Path, cache: Path) -> None:
    archive = linux.parent / "linux.tar.xz"
    subprocess.run(["tar", "-C", linux.parent, "-cJf", archive, "linux"], check=True)
    tree = KernelTree(cache, recipe_of(archive))
    tree.unpack(Silent())
    assert (tree.source / "driver.c").read_text() == "one\ntwo\n"


def test_another_patch_series_starts_from_the_original_files(linux: Path, cache: Path) -> None:
    KernelTree(cache, recipe_of(linux)).unpack(Silent())
    KernelTree(cache, recipe_of(linux, CHANGE.format(new="three"), CREATE)).patch(Silent())
    tree = KernelTree(cache, recipe_of(linux, CHANGE.format(new="four")))
    tree.patch(Silent())
    assert contents(tree.source) == {"Makefile": MAKEFILE, "driver.c": "one\nfour\n"}
    KernelTree(cache, recipe_of(linux)).patch(Silent())
    assert (tree.source / "driver.c").read_text() == "one\ntwo\n"


def test_another_series_keeps_the_time_of_files_that_it_leaves_equal(
    linux: Path, cache: Path
) -> None:
    """Or make would compile everything that includes them."""
    tree = KernelTree(cache, recipe_of(linux, CHANGE.format(new="three"), CREATE))
    tree.unpack(Silent())
    tree.patch(Silent())
    changed, equal = tree.source / "driver.c", tree.source / "new" / "file.h"
    for file in (changed, equal):
        os.utime(file, (1, 1))
    KernelTree(cache, recipe_of(linux, CHANGE.format(new="four"), CREATE)).patch(Silent())
    assert (changed.stat().st_mtime == 1, equal.stat().st_mtime == 1) == (False, True)


def test_an_interrupted_patch_series_is_repeated(linux: Path, cache: Path) -> None:
    KernelTree(cache, recipe_of(linux)).unpack(Silent())
    broken = recipe_of(
        linux, CHANGE.format(new="three"), CREATE, "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"
    )
    with pytest.raises(UserError, match=r"0002-2.patch does not apply"):
        KernelTree(cache, broken).patch(Silent())
    tree = KernelTree(cache, recipe_of(linux, CHANGE.format(new="three"), CREATE))
    tree.patch(Silent())
    assert (tree.source / "driver.c").read_text() == "one\nthree\n"
    assert (tree.source / "new" / "file.h").read_text() == "created\n"


def test_an_unchanged_patch_series_modifies_no_file(linux: Path, cache: Path) -> None:
    tree = KernelTree(cache, recipe_of(linux, CHANGE.format(new="three")))
    tree.unpack(Silent())
    tree.patch(Silent())
    stamp = (tree.source / "driver.c").stat().st_mtime_ns
    tree.unpack(Silent())
    tree.patch(Silent())
    assert (tree.source / "driver.c").stat().st_mtime_ns == stamp


def test_an_interrupted_unpacking_is_repeated(linux: Path, cache: Path) -> None:
    tree = KernelTree(cache, recipe_of(linux))
    partial = tree.source.parent / "partial"
    partial.mkdir(parents=True)
    (partial / "half").write_text("")
    tree.unpack(Silent())
    assert "half" not in contents(tree.source)


@pytest.mark.parametrize(
    ("makefile", "message"),
    [
        (None, "is not a kernel source tree"),
        ("", "is not Linux 6.12"),
        (MAKEFILE.replace("12", "11"), "is not Linux 6.12"),
        ("VERSION = 6\nPATCHLEVEL = 120\nSUBLEVEL = 1\n", "is not Linux 6.12"),
    ],
)
def test_a_tree_of_another_version_is_refused(
    linux: Path, makefile: str | None, message: str
) -> None:
    (linux / "Makefile").unlink()
    if makefile is not None:
        (linux / "Makefile").write_text(makefile)
    with pytest.raises(UserError, match=message):
        read_recipe(linux)


def test_a_missing_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_recipe(tmp_path / "absent")


def test_a_damaged_archive_is_refused(tmp_path: Path, cache: Path) -> None:
    archive = tmp_path / "linux.tar.xz"
    archive.write_bytes(b"\xfd7zXZ\0" + bytes(100))
    with pytest.raises(UserError, match="cannot be unpacked"):
        KernelTree(cache, recipe_of(archive)).unpack(Silent())


def test_the_digest_depends_on_the_inputs(linux: Path) -> None:
    first = read_recipe(linux).digest
    assert read_recipe(linux).digest == first
    os.utime(linux / "driver.c", ns=(1, 1))
    assert read_recipe(linux).digest != first


def test_the_digest_depends_on_every_file_of_the_package(
    linux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "package"
    shutil.copytree(HERE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(recipe_module, "HERE", copy)
    digests = {read_recipe(linux).digest}
    for name in ("kernel.config", "build.py", "rootfs/init", "src/pattern.c", "src/background.h"):
        with (copy / name).open("a") as file:
            file.write("\n")
        digests.add(read_recipe(linux).digest)
    (copy / "patches").mkdir(exist_ok=True)
    (copy / "patches" / "9999-more.patch").write_text(CREATE)
    digests.add(read_recipe(linux).digest)
    assert len(digests) == 7
    (copy / "src" / "for_a_test.c").write_text("not in the image")
    digests.add(read_recipe(linux).digest)
    assert len(digests) == 7


def test_missing_tools_are_named_with_their_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("gcc", "make", "patch", "objcopy", "tar", "xz"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as caught:
        check_tools()
    assert str(caught.value).endswith("without flex, bison, bc")
    assert remedy(caught.value) == "apt-get install bc bison flex"


def test_a_missing_header_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipe_module.HEADERS, "no-such-header.h", "libelf-dev")
    with pytest.raises(UserError) as caught:
        check_tools()
    assert str(caught.value).endswith("without no-such-header.h")
    assert remedy(caught.value) == "apt-get install libelf-dev"


@pytest.mark.parametrize(
    ("name", "package"), [("KERNEL_ARCHIVE", "linux-source-6.12"), ("BUSYBOX", "busybox-static")]
)
def test_missing_inputs_are_named_with_their_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, linux: Path, name: str, package: str
) -> None:
    monkeypatch.setattr(recipe_module, name, tmp_path / "absent")
    with pytest.raises(NotInstalled, match="there is no") as caught:
        read_recipe(None if name == "KERNEL_ARCHIVE" else linux)
    assert caught.value.packages == (package,)


def test_lost_kernel_options_are_found() -> None:
    wanted = ["# A comment", "CONFIG_A=y", "# CONFIG_B is not set", 'CONFIG_C="x"', "CONFIG_D=8"]
    assert (
        lost_options(wanted, ["CONFIG_A=y", "# CONFIG_B is not set", 'CONFIG_C="x"', "CONFIG_D=8"])
        == []
    )
    assert lost_options(wanted, ["CONFIG_A=y", 'CONFIG_C="x"', "CONFIG_D=8"]) == []
    assert lost_options(wanted, ["CONFIG_AA=y", "CONFIG_B=y", 'CONFIG_C="y"', "CONFIG_D=80"]) == [
        "CONFIG_A=y",
        "CONFIG_B",
        'CONFIG_C="x"',
        "CONFIG_D=8",
    ]


def test_the_file_list_is_complete_and_reproducible(tmp_path: Path) -> None:
    trees = [tmp_path / "one", tmp_path / "two"]
    for tree in trees:
        tree.mkdir()
        prepare_initramfs(tree, HERE, Path("/bin/busybox"))
    lines = (trees[0] / "initramfs.list").read_text().splitlines()
    assert lines == (trees[1] / "initramfs.list").read_text().splitlines()
    for line in lines:
        kind, *words = line.split(" ")
        assert len(words) == {"dir": 4, "slink": 5, "file": 5, "nod": 7}[kind], line
        if kind == "file":
            one, two = (tree / words[1] for tree in trees)
            assert one.read_bytes() == two.read_bytes()
            assert one.stat().st_mtime == 0
    names = {line.split(" ")[1] for line in lines}
    assert {"/init", "/dev/console", "/bin/sh", "/bin/pattern", "/bin/poweroff"} <= names


def cached_image(linux: Path, content: bytes) -> Path:
    """Write `content` to the cache as the image of `linux`."""
    path = image_path(read_recipe(linux))
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_an_image_in_the_cache_is_not_built_again(linux: Path, tmp_path: Path) -> None:
    cached = cached_image(linux, b"image")
    assert build_image(source=linux, progress=Silent()) == cached
    output = tmp_path / "guest.img"
    assert build_image(output, source=linux, progress=Silent()) == output
    assert output.read_bytes() == b"image"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_cli_prints_where_the_image_is(linux: Path) -> None:
    missing = CliRunner().invoke(image_command, ["where", "--source", str(linux)])
    assert isinstance(missing.exception, UserError)
    cached = cached_image(linux, b"image")
    for command in ("where", "build"):
        outcome = CliRunner().invoke(image_command, [command, "--source", str(linux)])
        assert outcome.output == f"{cached}\n"


def test_an_unwritable_output_is_a_user_error(linux: Path, tmp_path: Path) -> None:
    cached_image(linux, b"image")
    for output in (tmp_path / "absent" / "guest.img", tmp_path):
        with pytest.raises(ImageNotWritten, match="cannot be written"):
            build_image(output, source=linux, progress=Silent())


def test_a_cache_path_that_make_cannot_handle_is_refused(
    linux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "my cache"))
    with pytest.raises(CacheUnusable, match="has a space or a colon"):
        build_image(source=linux, progress=Silent())


class Waiting(Silent):
    """Progress that reports when the build waits for another one."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def stage(self, text: str, total: int | None = None) -> None:
        assert text == "Waiting for another build to end"
        self.event.set()


def test_a_build_that_waited_for_another_takes_its_image(linux: Path) -> None:
    cache_root().mkdir(parents=True)
    progress, results = Waiting(), list[Path]()
    with (cache_root() / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(
            target=lambda: results.append(build_image(source=linux, progress=progress))
        )
        thread.start()
        assert progress.event.wait(60)
        cached = cached_image(linux, b"image")
    thread.join(60)
    assert results == [cached]


def test_a_failed_build_is_reported_in_one_line_with_its_log(linux: Path, cache: Path) -> None:
    with (linux / "Makefile").open("a") as makefile:
        makefile.write("allnoconfig:\n\t@echo 'driver.c:1: error: no such thing'; false\n")
    recipe = replace(recipe_of(linux), digest="1" * 64)
    tree = KernelTree(cache, recipe)
    tree.unpack(Silent())
    with pytest.raises(UserError, match=r"error: no such thing; see .*build\.log"):
        tree.configure(Silent())
