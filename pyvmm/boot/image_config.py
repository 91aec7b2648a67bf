# SPDX-License-Identifier: Apache-2.0
"""The configuration for booting an image: the caller's parameters completed by its manifest.

An image that carries a manifest (guest.img) brings its own command line and balloon dialect. Any
other kernel gets the standard dialect unless another is named: feature bits 3 and 4 mean different
things in other dialects, so the dialect is never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from guest_images.manifest import read_manifest
from pyvmm.boot.errors import KernelUnusable
from pyvmm.boot.panic import PANIC_PARAMETERS
from pyvmm.config import DEFAULT_HUGEPAGES, DEFAULT_RAM_BYTES, HugePages, MachineConfig

SERIAL_CONSOLE = "console=ttyS0"
IMAGE_CONSOLE_PARAMETERS = "earlyprintk=ttyS0 console=hvc0"
VIRTIO_CONSOLE_PARAMETERS = "console=ttyS0 console=hvc0"
"""Parameters of the kernel for the serial console, and for the virtio console in its place.

A guest.img, whose driver is built in, prints each message once: on the serial port until hvc0
exists. Another kernel may load the driver as a module, or not at all, so it keeps both consoles.
"""
COMMAND_LINE_WITHOUT_MANIFEST = f"{SERIAL_CONSOLE} {PANIC_PARAMETERS}"
"""The command line of a kernel that is no guest.img, before what the caller appends."""


def config_for_image(
    image: Path,
    *,
    initrd: Path | None = None,
    append: str = "",
    run: str | None = None,
    ram_bytes: int = DEFAULT_RAM_BYTES,
    vcpus: int = 1,
    dialect: str | None = None,
    offer: Sequence[str] = (),
    withhold: Sequence[str] = (),
    rng: int | None = None,
    console: str = "serial",
    ports: Sequence[str] = (),
    hotplug_ports: int = 0,
    hugepages: HugePages = DEFAULT_HUGEPAGES,
) -> MachineConfig:
    """Return the configuration for `image`; `append` is added to its command line.

    The init process of a guest.img executes the shell command `run`, or else a shell. `dialect`
    None means the image's own. With a `console` of "virtio" the kernel's console is hvc0. Raises
    `KernelUnusable` for an image that cannot be read, `ManifestError` for a damaged manifest and
    `InvalidConfiguration`, and ValueError for a `run` that contains a double quote, which no kernel
    command line can.
    """
    if run is not None:
        if '"' in run:
            raise ValueError(f"a command for init cannot contain a double quote: {run}")
        append = f'{append} pyvmm.run="{run}"'.lstrip()
    try:
        manifest = read_manifest(image)
        if manifest is None:
            dialect = dialect or "standard"
            command_line = COMMAND_LINE_WITHOUT_MANIFEST
        else:
            dialect = dialect or manifest.dialect
            command_line = manifest.command_line(dialect)
    except OSError as error:
        raise KernelUnusable(f"cannot read {image}: {error.strerror}") from error
    if console == "virtio":
        parameters = VIRTIO_CONSOLE_PARAMETERS if manifest is None else IMAGE_CONSOLE_PARAMETERS
        command_line = command_line.replace(SERIAL_CONSOLE, parameters)
    return MachineConfig(
        kernel=image,
        initrd=initrd,
        command_line=f"{command_line} {append}".strip(),
        ram_bytes=ram_bytes,
        vcpus=vcpus,
        dialect=dialect,
        offer=tuple(offer),
        withhold=tuple(withhold),
        rng=rng,
        console=console,
        ports=tuple(ports),
        hotplug_ports=hotplug_ports,
        hugepages=hugepages,
    )
