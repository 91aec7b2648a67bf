# SPDX-License-Identifier: Apache-2.0
"""Errors that are the guest's fault.

Guest bytes are hostile, so an error in them is an ordinary result with a type of its own, never an
assertion. Two kinds exist and they are never mixed: `pyvmm_native.ring.RingError` means that a ring
or descriptor chain itself is malformed, so nothing read from the queue can be trusted any more;
`BadPayload` means that one well-formed buffer holds an invalid request. Only
`devices.virtio.device` handles either. Every other exception raised while serving a guest is a bug
in the VMM and is not caught.
"""


class BadPayload(Exception):
    """A guest buffer was delivered properly but its contents are not a valid request.

    The message describes the fault in terms of the wire format; it is recorded in the trace.
    """
