# SPDX-License-Identifier: Apache-2.0
"""Errors that are the guest's fault.

Guest bytes are hostile, so what is wrong with them is an ordinary outcome with its own type, never
an assertion. Two kinds exist and they are never mixed: `pyvmm_native.ring.RingError` says that a
ring or descriptor chain itself is malformed, so nothing read from the queue can be trusted any
more; `BadPayload` says that one well-formed buffer holds a request that makes no sense.
`devices.virtio.device` is the one place that acts on either. Every other exception raised while
serving a guest is a bug of ours and is left to be loud.
"""


class BadPayload(Exception):
    """A guest buffer was delivered properly but its contents are not a valid request.

    The message says what is wrong in terms of the wire format; it ends up in the trace.
    """
