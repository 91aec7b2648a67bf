# SPDX-License-Identifier: Apache-2.0
"""The file that `pyvmm image build --output` writes: only a guest image is replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guest_images import build as module
from guest_images.build import add_manifest, build_image
from guest_images.errors import ImageNotWritten
from pyvmm.cli.remedies import remedy
from pyvmm.progress.reporter import Silent
from tests.guest_images.test_guest_images_build import cache, cached_image, linux, recipe_of
from tests.guest_images.test_guest_images_manifest import MANIFEST, program

__all__ = ["cache", "linux", "program"]


@pytest.fixture
def older(program: Path, tmp_path: Path) -> Path:
    """Return a directory with an older guest image, guest.img."""
    directory = tmp_path / "images"
    directory.mkdir()
    add_manifest(program, MANIFEST, directory / "guest.img")
    return directory


def build(output: Path, source: Path) -> None:
    assert build_image(output, source=source, progress=Silent()) == output


def test_an_older_image_is_replaced(linux: Path, older: Path) -> None:
    cached_image(linux, b"image")
    (older / ".pyvmm-0.part").touch()  # of a process that was killed
    build(older / "guest.img", linux)
    assert (older / "guest.img").read_bytes() == b"image"
    assert os.listdir(older) == ["guest.img"]


def test_a_link_to_an_image_is_followed(linux: Path, older: Path, tmp_path: Path) -> None:
    cached_image(linux, b"image")
    link = tmp_path / "link"
    link.symlink_to("images/guest.img")
    build(link, linux)
    assert link.is_symlink()
    assert (older / "guest.img").read_bytes() == b"image"


def test_another_file_is_refused_before_the_build(
    linux: Path, tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "check_tools", lambda: pytest.fail("the build has started"))
    pipe, notes = tmp_path / "pipe", tmp_path / "notes"
    os.mkfifo(pipe)
    notes.write_text("not an image")
    for path, reason in (
        (notes, "is a file, but not a guest image, and is not replaced"),
        (program, "is a file, but not a guest image, and is not replaced"),
        (pipe, "cannot be written: it is a pipe, not a regular file"),
    ):
        before = path.stat()
        with pytest.raises(ImageNotWritten) as error:
            build(path, linux)
        assert str(error.value) == f"{path} {reason}"
        assert "--output" in remedy(error.value)
        assert os.path.samestat(path.stat(), before)


def test_a_build_removes_what_a_killed_one_has_left(
    linux: Path, cache: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is held, so an unfinished image is no other build's."""

    class Tree:
        version, objects = "6.12.117", cache

        def __init__(self, *_: object) -> None:
            """There is nothing to build."""

        unpack = patch = configure = __init__

        def build(self, *_: object) -> Path:
            return program

    monkeypatch.setattr(module, "KernelTree", Tree)
    monkeypatch.setattr(module, "prepare_initramfs", lambda *_: None)
    monkeypatch.setattr(module, "read_recipe", lambda source: recipe_of(linux))
    monkeypatch.setattr(module, "check_tools", lambda: None)
    left = cache / "images" / ".image-abc"
    left.mkdir(parents=True)
    (left / "image").write_bytes(b"half")
    built = build_image(source=linux, progress=Silent())
    assert list(built.parent.iterdir()) == [built]


def test_the_images_used_last_are_kept(linux: Path) -> None:
    cached = cached_image(linux, b"image")
    os.utime(cached, (1, 1))
    others = [cached.with_name(f"{number}.img") for number in range(5)]
    for number, path in enumerate(others):
        path.touch()
        os.utime(path, (10 + number, 10 + number))
    build_image(source=linux, progress=Silent())
    assert set(cached.parent.iterdir()) == {cached, *others[2:]}
