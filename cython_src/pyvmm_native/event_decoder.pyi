# SPDX-License-Identifier: Apache-2.0

from pyvmm_native.events import Batch

class EventError(ValueError): ...

def decode(batch: Batch) -> list[tuple[int, int, tuple[int | str, ...]]]: ...
