# SPDX-License-Identifier: Apache-2.0
"""Sockets: addresses, unix socket files, TLS, links and listeners for migrations.

A leaf: of pyvmm it imports `errors` only. `lab_paths` and `proxy_client` are for code that runs in
the lab: they map its sockets to the host's, and connect to sockets on the host.
"""
