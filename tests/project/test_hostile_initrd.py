# SPDX-License-Identifier: Apache-2.0
"""The hostile guest of tests/kvm compiles without a warning into an initramfs."""

from tests.kvm.hostile_initrd import hostile_initrd


def test_the_hostile_init_compiles_into_an_initramfs() -> None:
    archive = hostile_initrd().read_bytes()
    assert archive.startswith(b"070701")
    assert b"hostile\0" in archive
    assert b"\x7fELF" in archive
