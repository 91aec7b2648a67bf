# SPDX-License-Identifier: Apache-2.0
"""What all tests share: they pass on a busy machine, and in the background of a shell."""

import signal

from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# A shell has what it starts in the background ignore SIGINT, and programs under test inherit that:
# they would never end when they are interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)
