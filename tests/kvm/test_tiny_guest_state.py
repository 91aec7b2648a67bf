# SPDX-License-Identifier: Apache-2.0
"""Run the tests of tests/pyvmm/state/test_state_tiny_*.py on a KVM that runs Linux, too."""

import pytest

from tests.pyvmm.state.test_state_tiny_guests import *  # noqa: F403
from tests.pyvmm.state.test_state_tiny_refused import *  # noqa: F403

pytestmark = pytest.mark.kvm
