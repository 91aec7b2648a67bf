# SPDX-License-Identifier: Apache-2.0

from typing_extensions import Buffer

from pyvmm_native.checksum import Checksum
from pyvmm_native.memory import GuestMemory

class PageSocket:
    def __init__(self, fd: int, memory: GuestMemory, checksum: Checksum) -> None: ...
    def send_block(self, head: Buffer, first_pfn: int, bitmap: Buffer, deadline: float) -> None: ...
    def receive_block(self, first_pfn: int, bitmap: Buffer, deadline: float) -> bool: ...
