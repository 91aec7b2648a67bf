# SPDX-License-Identifier: Apache-2.0
"""The host's side of the balloon: requests to the guest's driver, and its statistics.

`guest_requests` is the one mechanism, with its errors and time-outs; the other modules are what is
requested. The device model is `devices.balloon`.
"""
