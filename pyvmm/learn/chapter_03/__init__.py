# SPDX-License-Identifier: Apache-2.0
"""Before a driver uses a device, both agree on what they can do: the device offers features, the
driver accepts some of them, and the device confirms the choice. The device status register leads
through these steps.

A Linux guest with a virtio-rng and a virtio-balloon device boots now. Below are the steps of its
drivers: each change of the device status, and the features that were offered and accepted.
"""

from pyvmm.learn.chapter import Chapter

CHAPTER = Chapter(
    number=3,
    slug="feature-negotiation",
    title="Feature negotiation",
    goal="Initialise a device, and agree with it on features.",
    minutes=20,
    run_needs="guest",
    view="handshake/balloon",
)
