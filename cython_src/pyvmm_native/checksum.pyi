# SPDX-License-Identifier: Apache-2.0

from typing_extensions import Buffer

def crc32c(data: Buffer, crc: int = 0, *, by_table: bool = False) -> int: ...
