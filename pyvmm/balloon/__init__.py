# SPDX-License-Identifier: Apache-2.0
"""The host's side of the balloon: requests to the guest's driver, on the event loop.

`guest_requests` is the mechanism, with its errors and time-outs; `statistics`, `misc_requests` and
`free_page_hints` are the requests, one module for each queue. `unused_pages` makes one of them for
a copy of memory. The device model is `devices.balloon`; nothing here knows of QMP.
"""
