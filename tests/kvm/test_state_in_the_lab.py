# SPDX-License-Identifier: Apache-2.0
"""The tests of tests/pyvmm/state/test_state_tiny_*.py, with a KVM that can run Linux: the lab's."""

import pytest

from tests.pyvmm.state.test_state_tiny_guests import *  # noqa: F403
from tests.pyvmm.state.test_state_tiny_refused import *  # noqa: F403

pytestmark = pytest.mark.kvm
