# SPDX-License-Identifier: Apache-2.0

from typing_extensions import Buffer

from pyvmm_native.memory import GuestMemory
from pyvmm_native.serial import SerialFastPath

def copy_pages(memory: GuestMemory, data: Buffer, times: int) -> None: ...
def print_characters(serial: SerialFastPath, port: int, first: int, count: int) -> int: ...

class Driver:
    def __init__(
        self, memory: GuestMemory, size: int, area_bytes: int, event_idx: bool
    ) -> None: ...
    @property
    def notifications(self) -> int: ...
    def run(self, count: int) -> int: ...
