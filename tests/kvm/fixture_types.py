# SPDX-License-Identifier: Apache-2.0
"""Types of the fixtures in conftest.py."""

from collections.abc import Awaitable, Callable

from pyvmm.config import MachineConfig
from pyvmm.harness.guest_session import GuestSession

Scenario = Callable[[GuestSession], Awaitable[None]]
RunGuest = Callable[..., None]
MakeConfig = Callable[..., MachineConfig]
