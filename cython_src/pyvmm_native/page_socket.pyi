# SPDX-License-Identifier: Apache-2.0

from typing_extensions import Buffer

from pyvmm_native.checksum import Checksum
from pyvmm_native.memory import GuestMemory

HEAD_BYTES: int
"""Size of the head of a block: a record with its page frame and its bitmap, without pages."""

class PageSocket:
    def __init__(self, fd: int, memory: GuestMemory, checksum: Checksum) -> None: ...
    def send_blocks(self, heads: Buffer, deadline: float) -> tuple[int, int]: ...
    def receive_blocks(
        self, head: Buffer, deadline: float, block_s: float
    ) -> tuple[bool, int, bytes]: ...
