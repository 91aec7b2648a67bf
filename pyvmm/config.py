# SPDX-License-Identifier: Apache-2.0
"""What a person asked for, checked and completed into a `MachineConfig`.

An image that carries a manifest (guest.img) brings its own command line and balloon dialect; any
other kernel gets the standard dialect unless another is named, because feature bits 3 and 4 mean
different things in the two and are never used to guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.balloon.features import BY_DIALECT, FeatureSelectionError, offered_features
from pyvmm.errors import UserError
from pyvmm.memory import layout
from pyvmm.units import MIB

DEFAULT_RAM_BYTES = 1024 * MIB
DIALECTS = tuple(BY_DIALECT)
FOREIGN_COMMAND_LINE = "console=ttyS0"


@dataclass(frozen=True)
class MachineConfig:
    """Everything that decides what a machine is; sizes are checked, files not yet opened."""

    kernel: Path
    initrd: Path | None
    command_line: str
    ram_bytes: int
    vcpus: int
    dialect: str
    offer: tuple[str, ...] = ()
    """Balloon features offered beside the dialect's default, and `withhold` those that are not."""
    withhold: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        low, high = layout.MIN_RAM_BYTES // MIB, layout.MAX_RAM_BYTES // MIB
        if self.ram_bytes % MIB or not low <= self.ram_bytes // MIB <= high:
            raise UserError(
                f"a guest cannot have {self.ram_bytes} bytes of RAM",
                f"choose whole MiB, --memory {low}M to {high // 1024}G",
            )
        if not 1 <= self.vcpus <= layout.MAX_VCPUS:
            raise UserError(
                f"a guest cannot have {self.vcpus} vCPUs", f"choose --cpus 1 to {layout.MAX_VCPUS}"
            )
        if self.dialect not in DIALECTS:
            raise UserError(
                f"there is no balloon dialect {self.dialect!r}",
                f"choose --dialect {' or '.join(DIALECTS)}",
            )
        try:
            _ = self.balloon_features  # checks the names
        except FeatureSelectionError as error:
            raise UserError(str(error), "change --offer, --withhold or --dialect") from None

    @property
    def balloon_features(self) -> int:
        """Feature bits the balloon offers."""
        return offered_features(self.dialect, self.offer, self.withhold)


def config_for_image(
    image: Path,
    *,
    initrd: Path | None = None,
    append: str = "",
    ram_bytes: int = DEFAULT_RAM_BYTES,
    vcpus: int = 1,
    dialect: str | None = None,
    offer: Sequence[str] = (),
    withhold: Sequence[str] = (),
) -> MachineConfig:
    """Complete the options of `pyvmm run` with what the image says of itself.

    Raises `UserError` for an image that cannot be read, a broken manifest or a bad option.
    """
    from guest_images.manifest import ManifestError, read_manifest

    try:
        manifest = read_manifest(image)
        if manifest is None:
            dialect = dialect or "standard"
            command_line = FOREIGN_COMMAND_LINE
        else:
            dialect = dialect or manifest.dialect
            command_line = manifest.command_line(dialect)
    except OSError as error:
        raise UserError(
            f"cannot read {image}: {error.strerror}",
            "build one with: pyvmm image build --output guest.img",
        ) from error
    except ManifestError as error:
        raise UserError(f"{image}: {error}", "build it again with: pyvmm image build") from error
    return MachineConfig(
        kernel=image,
        initrd=initrd,
        command_line=f"{command_line} {append}".strip(),
        ram_bytes=ram_bytes,
        vcpus=vcpus,
        dialect=dialect,
        offer=tuple(offer),
        withhold=tuple(withhold),
    )
