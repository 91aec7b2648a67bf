# SPDX-License-Identifier: Apache-2.0

from typing_extensions import Buffer

CRC32C_IMPLEMENTATIONS: tuple[str, ...]
CHECKSUMS: tuple[str, ...]

class Checksum:
    name: str
    def __init__(self, name: str) -> None: ...
    def of(self, data: Buffer) -> int: ...

def crc32c(data: Buffer, crc: int = 0) -> int: ...
def crc32c_by(implementation: str, data: Buffer, crc: int = 0) -> int: ...
