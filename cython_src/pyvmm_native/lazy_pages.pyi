# SPDX-License-Identifier: Apache-2.0

from collections.abc import Iterable
from typing import final

from typing_extensions import Buffer

from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns

@final
class LazyPages:
    serving: bool
    failed: bool

    def __init__(
        self,
        memory: GuestMemory,
        blocks: Iterable[tuple[int, Buffer, int, int]],
        fd: int,
        *,
        whole_blocks: bool = False,
    ) -> None: ...
    def add_vcpu(self, tid: int, signum: int, run_area: Buffer) -> None: ...
    def skip(self, pages: PageRuns) -> None: ...
    def serve(self) -> None: ...
    def stop(self) -> None: ...
