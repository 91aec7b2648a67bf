# SPDX-License-Identifier: Apache-2.0

from typing import final

from typing_extensions import Buffer

from pyvmm_native.ring import Chain, SplitQueue
from pyvmm_native.runs import PageRuns

@final
class PageRequests:
    @property
    def runs(self) -> PageRuns: ...
    @property
    def pages(self) -> int: ...
    @property
    def readable_bytes(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def messages(self) -> tuple[bytes, ...]: ...
    def push(self) -> bool: ...

@final
class PageRequestReader:
    def __init__(self, format: str, ram: PageRuns, max_requests: int = 64) -> None: ...
    def pop(
        self, queue: SplitQueue, max_readable_bytes: int, max_requests: int = 64
    ) -> PageRequests | Chain | None: ...

def decode(format: str, message: Buffer, is_request: bool = True) -> PageRuns: ...
